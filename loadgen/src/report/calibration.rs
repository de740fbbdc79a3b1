//! What a cascade gets right and costs, as one page like that of a run.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use weir_core::endpoint::GainTable;
use weir_core::endpoint::frontier::Point;
use weir_core::endpoint::thresholds::{FixedPoint, Goal};

use super::{FAINT, LINES, RULE, escape, figure, key, label, mesh, page, svg, ticks};

/// What `weir calibrate` found.
pub struct Calibration<'a> {
    /// The endpoint.
    pub endpoint: &'a str,
    /// The text above the plots.
    pub says: &'a str,
    /// What is measured: the accuracy, or agreement with the deepest stage.
    pub judge: &'a str,
    /// By stage: its name, what it gets right alone, from 0 to 1, and its slot time a row in seconds.
    pub stages: &'a [(String, f64, f64)],
    /// The cascade at rising prices of computing time.
    pub priced: &'a [Point],
    /// Fixed thresholds, cheapest first.
    pub fixed: &'a [FixedPoint],
    /// What was asked of thresholds, and the share of right answers and the slot time a row, in seconds, of those that were found.
    pub target: Option<(Goal, f64, f64)>,
    /// By gate: the stages before and behind it, and the table.
    pub gates: &'a [(String, String, &'a GainTable)],
}

/// The page of a calibration.
pub fn calibration(found: &Calibration<'_>) -> String {
    let title = escape(&format!("Calibration of {}", found.endpoint));
    let mut names = vec!["priced gates", "fixed thresholds, the best there are", "a stage alone"];
    names.extend(found.target.map(|_| "the thresholds asked for"));
    let judge = escape(found.judge);
    let mut body = format!("<h1>{title}</h1><pre>{}</pre>", escape(found.says));
    body += &figure(
        &format!("Cost and {judge}"),
        &format!("By slot time a row, on a logarithmic axis. {}", key(&names)),
        by_cost(found),
    );
    for (before, behind, table) in found.gates {
        let (before, behind) = (escape(before), escape(behind));
        body += &figure(
            &format!("What {behind} gains after {before}"),
            &format!(
                "Right answers a row by what the gate sees of {before}, made regular. Bars: one standard error of what was measured, either way."
            ),
            by_confidence(table),
        );
    }
    page(&title, &body)
}

/// Share of right answers against slot time a row in µs.
fn by_cost(found: &Calibration<'_>) -> Option<String> {
    let us = |seconds: f64| (seconds * 1e6).max(1e-3);
    let priced: Vec<(f64, f64)> = found.priced.iter().map(|point| (us(point.seconds), point.accuracy)).collect();
    let fixed: Vec<(f64, f64)> = found.fixed.iter().map(|point| (us(point.seconds), point.accuracy)).collect();
    let alone: Vec<(f64, f64)> = found.stages.iter().map(|(_, right, seconds)| (us(*seconds), *right)).collect();
    let all = || priced.iter().chain(&fixed).chain(&alone);
    let (low, high) = bounds(all().map(|(cost, _)| *cost))?;
    let (low, high) = (low / 1.5, (high * 1.5).max(low * 10.0));
    let (least, most) = bounds(all().map(|(_, right)| *right))?;
    let margin = 0.08 * (most - least).max(0.01);
    let (least, most) = (least - margin, most + margin);
    svg(360, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(64)
            .build_cartesian_2d((low..high).log_scale().with_key_points(ticks(low, high)), least..most)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RULE)
            .axis_style(RULE)
            .label_style(label())
            .y_labels(8)
            .x_label_formatter(&|us| format!("{} us", (us * 1e6).round() / 1e6))
            .y_label_formatter(&|share| format!("{:.1} %", share * 100.0))
            .draw()?;
        let [(_, price), (_, threshold), (_, stage), (_, asked), ..] = LINES else {
            unreachable!("there are six colours")
        };
        // Who may spend a little more than one point and less than the next gets what the one gets.
        let ends = fixed.iter().skip(1).map(|(cost, _)| *cost).chain([high]);
        let stairs = fixed.iter().zip(ends).flat_map(|((cost, right), end)| [(*cost, *right), (end, *right)]);
        chart.draw_series(LineSeries::new(stairs, threshold.stroke_width(2)))?;
        chart.draw_series(LineSeries::new(priced.iter().copied(), price.stroke_width(2)))?;
        chart.draw_series(priced.iter().map(|at| Circle::new(*at, 3, price.filled())))?;
        chart.draw_series(alone.iter().map(|at| Circle::new(*at, 5, stage.filled())))?;
        for ((name, ..), at) in found.stages.iter().zip(&alone) {
            let beside = label().pos(Pos::new(HPos::Center, VPos::Top));
            chart.draw_series([Text::new(name.clone(), (at.0, at.1 - margin / 4.0), beside)])?;
        }
        if let Some((goal, right, seconds)) = found.target {
            let line = match goal {
                Goal::Accuracy(asked) => [(low, asked), (high, asked)],
                Goal::Seconds(asked) => [(us(asked), least), (us(asked), most)],
            };
            let inside = |(cost, right): &(f64, f64)| (low..=high).contains(cost) && (least..=most).contains(right);
            if line.iter().all(inside) {
                chart.draw_series(DashedLineSeries::new(line, 6, 4, FAINT.into()))?;
            }
            chart.draw_series([Circle::new((us(seconds), right), 6, asked.stroke_width(3))])?;
        }
        Ok(())
    })
}

/// The gain by confidence, with the standard error of each bin.
fn by_confidence(table: &GainTable) -> Option<String> {
    let bins = table.bins();
    let at = |bin: &weir_core::endpoint::gain::Bin| f64::from(bin.confidence);
    let (low, high) = bounds(bins.iter().map(at))?;
    let margin = 0.03 * (high - low).max(1e-3);
    let (least, most) = bounds(bins.iter().flat_map(|bin| [bin.gain - bin.error, bin.gain + bin.error, 0.0]))?;
    let room = 0.05 * (most - least).max(1e-3);
    svg(260, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(26)
            .y_label_area_size(64)
            .build_cartesian_2d(low - margin..high + margin, least - room..most + room)?;
        mesh(&mut chart, "")?;
        let ink = LINES[0].1;
        chart.draw_series(LineSeries::new([(low - margin, 0.0), (high + margin, 0.0)], FAINT))?;
        let bar = |bin| {
            let (x, y) = (at(bin), bin.gain);
            PathElement::new(vec![(x, y - bin.error), (x, y + bin.error)], FAINT.stroke_width(2))
        };
        chart.draw_series(bins.iter().map(bar))?;
        chart.draw_series(LineSeries::new(bins.iter().map(|bin| (at(bin), bin.gain)), ink.stroke_width(2)))?;
        chart.draw_series(bins.iter().map(|bin| Circle::new((at(bin), bin.gain), 3, ink.filled())))?;
        Ok(())
    })
}

/// The least and the largest; `None` of none.
fn bounds(numbers: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    numbers.fold(None, |bounds, number| {
        let (low, high) = bounds.unwrap_or((number, number));
        Some((low.min(number), high.max(number)))
    })
}

#[cfg(test)]
mod tests {
    use weir_core::endpoint::gain::Bin;
    use weir_core::endpoint::thresholds::FixedGate;

    use super::*;

    #[test]
    fn the_page_stands_alone_and_shows_both_frontiers_and_errors() {
        let evil = "<script>alert(1)</script>";
        let bin = |confidence, gain| Bin { confidence, rows: 60, right: 0.6, gain, error: 0.05, next: Vec::new() };
        let table = GainTable::new(vec![bin(0.3, 0.4), bin(0.6, 0.2), bin(0.9, -0.01)]).expect("a table");
        let priced = |accuracy, seconds| Point { price: 1.0, accuracy, seconds, shares: vec![0.5, 0.5] };
        let fixed = |accuracy, seconds| FixedPoint {
            stages: vec![0, 1],
            gates: vec![FixedGate::Below(0.5)],
            accuracy,
            seconds,
        };
        let found = Calibration {
            endpoint: evil,
            says: evil,
            judge: evil,
            stages: &[(evil.into(), 0.8, 2e-6), ("big".into(), 0.95, 400e-6)],
            priced: &[priced(0.94, 200e-6), priced(0.9, 60e-6), priced(0.8, 2e-6)],
            fixed: &[fixed(0.8, 2e-6), fixed(0.9, 50e-6), fixed(0.95, 210e-6)],
            target: Some((Goal::Accuracy(0.9), 0.9, 50e-6)),
            gates: &[(evil.into(), evil.into(), &table)],
        };
        let page = calibration(&found);
        assert!(!page.contains("<script") && !page.contains("http"), "nothing runs and nothing is fetched");
        // Three priced points, two stages and the target; three bins.
        assert_eq!((page.matches("<svg").count(), page.matches("<circle").count()), (2, 9));
        assert!(page.contains("prefers-color-scheme:dark") && page.contains(">\n10 us\n<"));
        let colours: Vec<&str> = page.split("=\"#").skip(1).map(|rest| &rest[..6]).collect();
        assert!(colours.iter().all(|colour| colour.ends_with("0203")), "{colours:?}");
        let unasked = calibration(&Calibration { target: None, ..found });
        assert_eq!(unasked.matches("<circle").count(), 8);
    }

    #[test]
    fn a_cascade_of_which_little_is_known_has_a_page_too() {
        let bin = Bin { confidence: 1.0, rows: 20, right: 1.0, gain: 0.0, error: 0.0, next: Vec::new() };
        let table = GainTable::new(vec![bin]).expect("a table");
        let point = FixedPoint { stages: vec![0], gates: Vec::new(), accuracy: 1.0, seconds: 0.0 };
        let gates = [("a".into(), "b".into(), &table)];
        let target = Some((Goal::Seconds(1.0), 1.0, 0.0));
        let found = Calibration {
            endpoint: "e",
            says: "",
            judge: "",
            stages: &[],
            priced: &[],
            fixed: &[point],
            target,
            gates: &gates,
        };
        assert_eq!(calibration(&found).matches("<svg").count(), 2);
    }
}
