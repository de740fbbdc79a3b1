//! What batches of a model take, and what batching gains, as one page like that of a run.

use plotters::prelude::*;
use weir_core::profile::estimate;
use weir_core::units::ServiceTime;

use super::{LINES, escape, figure, key, mesh, page, svg};

/// Batch sizes, ascending, and what a batch takes.
type Points = [(u32, ServiceTime)];

/// The page of a model's profile: `points` are what a scheduler plans by, `measured` what it began with; `says` is the text
/// above the plots.
pub fn profile(model: &str, says: &str, measured: &Points, points: &Points) -> String {
    let title = escape(&format!("Profile of {model}"));
    let most = points.last().map_or(0, |(batch, _)| *batch);
    let over = |of: &dyn Fn(u32) -> f64| (1..=most).map(|batch| (f64::from(batch), of(batch))).collect::<Vec<_>>();
    let took = over(&|batch| ms(estimate(points, batch)));
    let rate = over(&|batch| f64::from(batch) / (ms(estimate(points, batch)).max(1e-6) / 1e3));
    let dots: Vec<_> = measured.iter().map(|(batch, time)| (f64::from(*batch), ms(*time))).collect();
    let body = [
        format!("<h1>{title}</h1><pre>{}</pre>", escape(says)),
        figure("Time of a batch, ms", &key(&["estimate", "measured"]), by_size(&took, &dots)),
        figure("Rows a second on one slot", &key(&["by the estimate"]), by_size(&rate, &[])),
    ];
    page(&title, &body.concat())
}

fn ms(time: ServiceTime) -> f64 {
    time.as_nanos() as f64 / 1e6
}

/// A line and dots over batch sizes, from zero.
fn by_size(line: &[(f64, f64)], dots: &[(f64, f64)]) -> Option<String> {
    let most = line.last()?.0;
    let top = line.iter().chain(dots).map(|(_, y)| *y).fold(1e-3, f64::max) * 1.05;
    svg(260, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(26)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..most * 1.05, 0.0..top)?;
        mesh(&mut chart, "rows")?;
        let [(_, ink), (_, dot), ..] = LINES else { unreachable!("there are six colours") };
        chart.draw_series(LineSeries::new(line.iter().copied(), ink.stroke_width(2)))?;
        chart.draw_series(dots.iter().map(|at| Circle::new(*at, 4, dot.filled())))?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_stands_alone_and_shows_estimate_and_measurements() {
        let us = ServiceTime::from_micros;
        let evil = "<script>alert(1)</script>";
        let page = profile(evil, evil, &[(1, us(90)), (8, us(200))], &[(1, us(100)), (8, us(240))]);
        assert!(!page.contains("<script") && !page.contains("http"), "nothing runs and nothing is fetched");
        assert_eq!((page.matches("<svg").count(), page.matches("<circle").count()), (2, 2));
        assert!(page.contains("prefers-color-scheme:dark"));
        let colours: Vec<&str> = page.split("=\"#").skip(1).map(|rest| &rest[..6]).collect();
        assert!(colours.iter().all(|colour| colour.ends_with("0203")), "{colours:?}");
    }

    #[test]
    fn a_model_of_one_row_at_a_time_has_a_page_too() {
        let point = [(1, ServiceTime::from_micros(100))];
        assert_eq!(profile("m@1", "one query at a time", &point, &point).matches("<svg").count(), 2);
    }
}
