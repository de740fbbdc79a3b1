//! The run as one HTML file without anything outside it; readable in light and dark, and printed.
//!
//! Plots are SVG by plotters. Their colours are names for the style sheet, which gives each theme its own.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

mod calibration;
mod profile;

pub use calibration::{Calibration, calibration};
pub use profile::profile;

use crate::hdr;
use crate::result::RunResult;
use crate::scenario;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#6e7781;--rule:#d0d7de;--a:#0b69c7;--b:#c2571a;--c:#1a7f37;--d:#8250df;--e:#9a6700;--f:#bf3989}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--faint:#8b949e;--rule:#30363d;--a:#58a6ff;--b:#f0883e;--c:#3fb950;--d:#bc8cff;--e:#d29922;--f:#f778ba}}
@media print{:root{--ink:#000;--paper:#fff;--faint:#444;--rule:#bbb;--a:#0b69c7;--b:#c2571a;--c:#1a7f37;--d:#8250df;--e:#9a6700;--f:#bf3989}body{max-width:none}section,table{break-inside:avoid}pre{white-space:pre-wrap;overflow-wrap:anywhere}details{display:none}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:54rem;margin:2rem auto;padding:0 1rem}
h1,p,td{overflow-wrap:anywhere}h1{font-size:1.6rem}h2{font-size:1.15rem;margin:1.4rem 0 .3rem}p{margin:.3rem 0}.bad{border-left:4px solid var(--b);padding-left:.8rem}
table{border-collapse:collapse}td,th{padding:.15rem 1rem .15rem 0;text-align:left;vertical-align:top;font-variant-numeric:tabular-nums}th{font-weight:600;white-space:nowrap}
pre{overflow-x:auto;font-size:13px}figure{margin:0}svg{display:block;width:100%;height:auto;font-family:system-ui,sans-serif}svg rect{shape-rendering:crispEdges}
.key span{margin-right:1.2rem;white-space:nowrap}.key i{display:inline-block;width:.9rem;height:.3rem;margin-right:.35rem;vertical-align:middle}";

/// Stands for a colour of the style sheet in a plot: its red is the index.
const INKS: [(&str, RGBColor); 9] = [
    ("ink", RGBColor(1, 2, 3)),
    ("faint", RGBColor(2, 2, 3)),
    ("rule", RGBColor(3, 2, 3)),
    ("a", RGBColor(4, 2, 3)),
    ("b", RGBColor(5, 2, 3)),
    ("c", RGBColor(6, 2, 3)),
    ("d", RGBColor(7, 2, 3)),
    ("e", RGBColor(8, 2, 3)),
    ("f", RGBColor(9, 2, 3)),
];
const FAINT: RGBColor = INKS[1].1;
const RULE: RGBColor = INKS[2].1;
/// For lines and areas.
const LINES: &[(&str, RGBColor)] = INKS.split_at(3).1;

const WIDTH: u32 = 860;

/// The report of a run.
pub fn html(result: &RunResult) -> String {
    let title = result.question.clone().unwrap_or_else(|| format!("{} under {}", result.endpoint, result.arrivals));
    let title = escape(&title);
    let mut body = format!("<h1>{title}</h1>");
    if let Some(because) = &result.invalid_because {
        body += &format!("<p class=bad><b>Not valid:</b> {}</p>", escape(because));
    }
    if let Some(silence) = result.silence() {
        body += &format!("<p class=bad><b>Silent:</b> {}</p>", escape(&silence));
    }
    if let Some(bounds) = result.lower_bounds() {
        body += &format!("<p class=bad><b>Latencies are missing:</b> {}</p>", escape(&bounds));
    }
    if result.arrivals.starts_with("closed:") {
        body += "<p class=bad><b>A closed loop:</b> callers waited for their answers, so what a stall would have cost others is not in these figures.</p>";
    }
    body += &format!("<pre>{}</pre>", escape(&result.table()));
    body += &figure(
        "Latency by percentile",
        "Of answered queries, from the instant at which each was meant to be sent. Both axes are logarithmic.",
        by_percentile(result),
    );
    let seconds = &result.per_second;
    let line = |of: &dyn Fn(&crate::result::PerSecond) -> f64| seconds.iter().map(of).collect::<Vec<f64>>();
    body += &figure(
        "Arrivals a second",
        &key(&["offered", "answered in time"]),
        over_time(&[line(&|s| s.offered as f64), line(&|s| s.within_deadline as f64)], None),
    );
    body += &figure(
        "Latency by second, ms",
        &key(&["p50", "p99"]),
        over_time(&[line(&|s| s.p50_us as f64 / 1e3), line(&|s| s.p99_us as f64 / 1e3)], None),
    );
    body += &figure(
        "Attainment by second",
        "Answered in time, as a share of what was offered; a second without queries is left at 1.",
        over_time(
            &[line(&|s| if s.offered == 0 { 1.0 } else { s.within_deadline as f64 / s.offered as f64 })],
            Some(1.0),
        ),
    );
    let stages: Vec<String> = result.stages.keys().take(LINES.len()).cloned().collect();
    if !stages.is_empty() {
        body += &figure(
            "Stages by second",
            &format!("Share of answered rows. {}", key(&stages)),
            stage_mix(result, &stages),
        );
    }
    body += &match seconds.iter().any(|second| second.price > 0.0) {
        true => figure("Price of computing time", "Highest in each second.", over_time(&[line(&|s| s.price)], None)),
        false => "<h2>Price of computing time</h2><p>It was 0 all the time, or the target has none.</p>".into(),
    };
    let lost = seconds.iter().any(|second| second.expected_loss > 0.0);
    body += &match lost {
        true => figure(
            "Value lost to load",
            "By second: what deeper stages would have gained, by calibration, that were worth running and did not run.",
            over_time(&[line(&|s| s.expected_loss)], None),
        ),
        false => "<h2>Value lost to load</h2><p>None, or the target does not tell.</p>".into(),
    };
    let models: Vec<&String> = result.demand.keys().take(LINES.len()).collect();
    if !models.is_empty() {
        body += &figure(
            "Demand for deeper stages",
            &format!(
                "On average: so many slots would be busy with what is worth so much, and more, a second of their time. {}",
                key(&models)
            ),
            demand(result),
        );
    }
    body += &format!("<h2>Settings</h2><table>{}</table>", settings(result));
    if let Some(scenario) = scenario::repeating(result) {
        body += &format!(
            "<h2>Once more</h2><p>Kept as a file in the folder in which this run was started, with <code>weir load run --target {} --scenario FILE</code>:</p><pre>{}</pre>",
            escape(&result.target),
            escape(&scenario)
        );
    }
    // Histograms are for programs; the page has what they show.
    let mut plain = serde_json::to_value(result).expect("a result is plain data");
    plain["histogram"].take();
    let seconds = plain["per_second"].as_array_mut().expect("a list");
    seconds.iter_mut().filter_map(|second| second.as_object_mut()).for_each(|second| drop(second.remove("histogram")));
    let json = serde_json::to_string_pretty(&plain).expect("it was JSON before");
    body += &format!("<details><summary>The run as JSON</summary><pre>{}</pre></details>", escape(&json));
    page(&title, &body)
}

/// A whole page; title and body are HTML already.
fn page(title: &str, body: &str) -> String {
    let inks: String = INKS
        .iter()
        .map(|(name, RGBColor(r, g, b))| {
            let hex = format!("#{r:02X}{g:02X}{b:02X}");
            format!("svg [fill=\"{hex}\"]{{fill:var(--{name})}}svg [stroke=\"{hex}\"]{{stroke:var(--{name})}}")
        })
        .collect();
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><link rel=icon href=\"data:,\"><title>{title}</title><style>{STYLE}{inks}</style>{body}</html>\n"
    )
}

/// A plot under its title and text, which are HTML already.
fn figure(title: &str, text: &str, plot: Option<String>) -> String {
    match plot {
        Some(svg) => format!("<section><h2>{title}</h2><p>{text}</p><figure>{svg}</figure></section>"),
        None => format!("<h2>{title}</h2><p>Nothing was measured for this.</p>"),
    }
}

/// What the lines of a plot are, in the order of their colours.
fn key<T: AsRef<str>>(names: &[T]) -> String {
    let entry = |(name, (ink, _)): (&T, &(&str, RGBColor))| {
        format!("<span><i style=\"background:var(--{ink})\"></i>{}</span>", escape(name.as_ref()))
    };
    format!("<span class=key>{}</span>", names.iter().zip(LINES.iter().cycle()).map(entry).collect::<String>())
}

fn settings(result: &RunResult) -> String {
    let machine = &result.machine;
    let rate = result.rate.map_or("-".into(), |rate| format!("{rate} a second"));
    let asked = result.duration_asked_s.filter(|asked| *asked != result.duration_s);
    let asked = asked.map_or(String::new(), |asked| format!(" of {asked} s that were asked for"));
    let mut rows = vec![
        ("target", result.target.clone()),
        ("arrivals", result.arrivals.clone()),
        ("rate", rate),
        ("goal", result.goal.clone().unwrap_or("-".into())),
        ("seed", result.seed.to_string()),
        ("duration", format!("{} s{asked}", result.duration_s)),
        ("deadline", format!("{} ms", result.deadline_us as f64 / 1e3)),
        ("rows a query", result.rows_per_query.to_string()),
        ("connections", format!("{} (threads: {})", result.connections, result.threads)),
        (
            "send lag",
            format!(
                "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
                result.send_lag_us.p50 as f64 / 1e3,
                result.send_lag_us.p99 as f64 / 1e3,
                result.send_lag_us.max as f64 / 1e3
            ),
        ),
        ("generator on", format!("{}, {} cores, {} {}", machine.cpu, machine.cores, machine.os, machine.arch)),
        ("weir", machine.weir.clone()),
    ];
    for part in &result.parts {
        let labels = part.labels.as_ref().map_or(String::new(), |labels| format!(", labels {labels}"));
        let output = part.label_output.as_ref().map_or(String::new(), |output| format!(" compared with {output}"));
        // One part has the load that stands above.
        let load = if result.parts.len() > 1 { format!("{}, ", part.load()) } else { String::new() };
        let asked = format!(
            "{}: {load}within {} ms; {} ({} rows){labels}{output}",
            part.name,
            part.deadline_us as f64 / 1e3,
            part.data,
            part.rows
        );
        rows.push(("asked", asked));
    }
    rows.iter().map(|(name, value)| format!("<tr><th>{name}<td>{}", escape(value))).collect()
}

/// What plotters draws, as an element that scales with the page.
fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn std::error::Error>>) -> Option<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&area).expect("drawing into memory");
        area.present().expect("drawing into memory");
    }
    // The namespace is only for files of their own.
    Some(text.replace(" xmlns=\"http://www.w3.org/2000/svg\"", " role=\"img\""))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn label() -> TextStyle<'static> {
    ("sans-serif", 13).into_font().color(&FAINT)
}

/// Latency in ms against "one in so many queries is slower".
fn by_percentile(result: &RunResult) -> Option<String> {
    let histogram = hdr::decode(&result.histogram).filter(|histogram| !histogram.is_empty())?;
    let all = histogram.len() as f64;
    let longest = result.latency_us.max as f64 / 1e3;
    let end = all.max(10.0);
    let mut points = Vec::new();
    let mut at = 1.0f64;
    while at < end * 1.02 {
        let ms = histogram.value_at_quantile(1.0 - 1.0 / at) as f64 / 1e6;
        points.push((at.min(end), ms.min(longest)));
        at *= 1.02;
    }
    points.push((end, longest));
    let low = points[0].1.max(1e-3) / 1.3;
    let high = longest.max(low * 10.0) * 1.3;
    svg(320, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(64)
            .build_cartesian_2d((1.0..end).log_scale(), (low..high).log_scale().with_key_points(ticks(low, high)))?;
        let percentile = |one_in: &f64| {
            let text = format!("{:.6}", 100.0 * (1.0 - 1.0 / one_in));
            format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
        };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RULE)
            .axis_style(RULE)
            .label_style(label())
            .x_label_formatter(&percentile)
            .y_label_formatter(&round_ms)
            .draw()?;
        chart.draw_series(LineSeries::new(points, LINES[0].1.stroke_width(2)))?;
        let deadline = result.deadline_us as f64 / 1e3;
        if (low..high).contains(&deadline) {
            chart.draw_series(DashedLineSeries::new([(1.0, deadline), (end, deadline)], 6, 4, FAINT.into()))?;
            chart.draw_series([Text::new(
                "deadline",
                (1.1, deadline * 1.02),
                label().pos(Pos::new(HPos::Left, VPos::Bottom)),
            )])?;
        }
        Ok(())
    })
}

/// Where a logarithmic axis has a line and a label: at 1, 2 and 5 of every power of ten, of many powers only at these.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    /// More do not fit beside a plot.
    const POWERS_MAX: f64 = 4.0;
    let steps: &[f64] = if (high / low).log10() < POWERS_MAX { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

fn round_ms(ms: &f64) -> String {
    format!("{} ms", (ms * 1e6).round() / 1e6)
}

/// Lines over the run's seconds, from zero.
fn over_time(lines: &[Vec<f64>], top: Option<f64>) -> Option<String> {
    let seconds = lines.iter().map(Vec::len).max().filter(|seconds| *seconds > 0)?;
    let top = top.unwrap_or_else(|| lines.iter().flatten().copied().fold(0.0, f64::max).max(1e-3) * 1.05);
    svg(190, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(26)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..seconds as f64, 0.0..top)?;
        mesh(&mut chart, "s")?;
        for (line, (_, ink)) in lines.iter().zip(LINES.iter().cycle()) {
            // A second is a step: what was counted in it holds for all of it.
            let steps = line.iter().enumerate().flat_map(|(t, y)| [(t as f64, *y), (t as f64 + 1.0, *y)]);
            chart.draw_series(LineSeries::new(steps, ink.stroke_width(2)))?;
        }
        Ok(())
    })
}

/// Shares of the stages, one on the other.
fn stage_mix(result: &RunResult, stages: &[String]) -> Option<String> {
    let seconds = &result.per_second;
    svg(190, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(26)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..seconds.len() as f64, 0.0..1.0)?;
        mesh(&mut chart, "s")?;
        for (t, second) in seconds.iter().enumerate() {
            let all = second.stages.values().sum::<u64>().max(1) as f64;
            let mut below = 0.0;
            for (stage, (_, ink)) in stages.iter().zip(LINES) {
                let share = second.stages.get(stage).copied().unwrap_or(0) as f64 / all;
                if share > 0.0 {
                    let corners = [(t as f64, below), (t as f64 + 1.0, below + share)];
                    chart.draw_series([Rectangle::new(corners, ink.filled())])?;
                }
                below += share;
            }
        }
        Ok(())
    })
}

/// Demand curves: by what a second of slot time is worth, the slots that what is worth so much would keep busy.
fn demand(result: &RunResult) -> Option<String> {
    let all = || result.demand.values().flatten().filter(|point| point.value_per_s > 0.0);
    let low = all().map(|point| point.value_per_s).reduce(f64::min)? / 1.3;
    let high = all().map(|point| point.value_per_s).fold(low * 10.0, f64::max) * 1.3;
    let top = result.demand.values().map(|points| points.iter().map(|point| point.slot_s_per_s).sum::<f64>());
    let top = top.fold(1e-3, f64::max) * 1.05;
    svg(240, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(64)
            .build_cartesian_2d((low..high).log_scale().with_key_points(ticks(low, high)), 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RULE)
            .axis_style(RULE)
            .label_style(label())
            .y_labels(5)
            .x_label_formatter(&|worth| format!("{worth}/s"))
            .y_label_formatter(&short)
            .draw()?;
        for (points, (_, ink)) in result.demand.values().zip(LINES) {
            // From the dearest on; what is asked at one value stands until the next.
            let mut line = vec![(high, 0.0)];
            let mut slots = 0.0;
            for point in points.iter().rev() {
                line.push((point.value_per_s, slots));
                slots += point.slot_s_per_s;
                line.push((point.value_per_s, slots));
            }
            line.push((low, slots));
            chart.draw_series(LineSeries::new(line, ink.stroke_width(2)))?;
        }
        Ok(())
    })
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn mesh(chart: &mut Chart<'_, '_>, unit: &str) -> Result<(), Box<dyn std::error::Error>> {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RULE)
        .axis_style(RULE)
        .label_style(label())
        .y_labels(5)
        .x_label_formatter(&|t| format!("{} {unit}", short(t)))
        .y_label_formatter(&short)
        .draw()?;
    Ok(())
}

fn short(value: &f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::result::tests::sample;
    use crate::result::{Part, PerSecond};

    #[test]
    fn a_report_stands_alone_and_trusts_no_name() {
        let evil = "<script>alert(1)</script>".to_owned();
        let mut histogram = hdr::histogram();
        (1..2000).for_each(|i| hdr::record(&mut histogram, Duration::from_micros(i * i)));
        let second = PerSecond {
            offered: 10,
            answered: 9,
            stages: [(evil.clone(), 9)].into(),
            price: 0.5,
            expected_loss: 0.25,
            ..PerSecond::default()
        };
        let result = RunResult {
            endpoint: evil.clone(),
            question: Some(evil.clone()),
            arrivals: evil.clone(),
            invalid_because: Some(evil.clone()),
            errors: vec![(evil.clone(), 1)],
            stages: [(evil.clone(), 9)].into(),
            demand: [(evil.clone(), sample().demand["fashion-mid@1"].clone())].into(),
            goal: Some(evil.clone()),
            parts: vec![Part {
                name: evil.clone(),
                endpoint: evil.clone(),
                data: evil.clone(),
                labels: Some(evil.clone()),
                label_output: Some(evil.clone()),
                arrivals: Some(evil),
                ..Part::default()
            }],
            per_second: vec![second; 3],
            histogram: hdr::encode(&histogram),
            ..sample()
        };
        let page = html(&result);
        assert!(!page.contains("<script") && !page.contains("http"), "nothing runs and nothing is fetched");
        assert_eq!(page.matches("<svg").count(), 8);
        assert!(page.contains("99.9 %") && page.contains("Not valid"));
        // Every colour of a plot is one of the style sheet's.
        let colours: Vec<&str> = page.split("=\"#").skip(1).map(|rest| &rest[..6]).collect();
        assert!(colours.iter().all(|colour| colour.ends_with("0203")), "{colours:?}");
    }

    #[test]
    fn the_settings_are_enough_to_run_it_again() {
        let page = html(&sample());
        for says in [
            "demo/images.npy (500 rows), labels demo/labels.npy compared with probs",
            "attainment&gt;=0.99",
            "<td>fashion: within 50 ms",
        ] {
            assert!(page.contains(says), "{says}");
        }
        assert!(page.contains(&escape(&scenario::repeating(&sample()).unwrap())));
        let twice = RunResult { parts: vec![sample().parts.remove(0); 2], ..sample() };
        assert!(html(&twice).contains("a share by weight 1 of gamma:cv=4 at 400 a second, within 50 ms"));
        // A result of an older version has a report too.
        assert!(!html(&RunResult { parts: Vec::new(), duration_asked_s: None, ..sample() }).contains("Once more"));
        let stopped = html(&RunResult { duration_s: 4.5, ..sample() });
        assert!(stopped.contains("4.5 s of 30 s that were asked for"));
    }

    #[test]
    fn a_logarithmic_axis_has_enough_labels_and_not_too_many() {
        let labels = |low, high| ticks(low, high).iter().map(round_ms).collect::<Vec<_>>();
        assert_eq!(labels(0.9, 12.0), ["1 ms", "2 ms", "5 ms", "10 ms"]);
        assert_eq!(labels(0.013, 0.3), ["0.02 ms", "0.05 ms", "0.1 ms", "0.2 ms"]);
        assert_eq!(labels(0.02, 900.0), ["0.1 ms", "1 ms", "10 ms", "100 ms"]);
        // Whatever a run's latencies are, from one decade on, the plot has between 3 and 13.
        for (low, decades) in (1..40).flat_map(|i| (10..80).map(move |d| (1e-3 * 1.3f64.powi(i), f64::from(d) / 10.0)))
        {
            let drawn = ticks(low, low * 10f64.powf(decades)).len();
            assert!((3..=13).contains(&drawn), "{low} and {decades} decades: {drawn}");
        }
        let mut histogram = hdr::histogram();
        (0..1000).for_each(|i| hdr::record(&mut histogram, Duration::from_micros(1000 + 9 * i)));
        let page = html(&RunResult { histogram: hdr::encode(&histogram), ..sample() });
        for label in ["1 ms", "2 ms", "5 ms", "10 ms", "20 ms", "50 ms"] {
            assert!(page.contains(&format!(">\n{label}\n<")), "{label} stands at the axis");
        }
    }

    #[test]
    fn a_run_without_answers_has_a_report_too() {
        let nothing = RunResult { answered: 0, stages: Default::default(), per_second: Vec::new(), ..sample() };
        assert!(html(&nothing).contains("Nothing was measured for this."));
    }
}
