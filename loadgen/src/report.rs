//! The run as one HTML file without anything outside it; readable in light and dark, and printed.

use std::fmt::Write;

use crate::result::RunResult;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#8b949e;--line:#0b69c7;--second:#c2571a}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--line:#58a6ff;--second:#f0883e}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:52rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left}pre{overflow-x:auto}
svg{width:100%;height:auto}svg text{fill:var(--faint);font-size:11px}.axis{stroke:var(--faint);stroke-width:.5}
.a{fill:none;stroke:var(--line);stroke-width:1.8}.b{fill:none;stroke:var(--second);stroke-width:1.8;stroke-dasharray:4 3}";

/// The report of a run.
pub fn html(result: &RunResult) -> String {
    let mut page = String::new();
    let title = format!("{} under {}", escape(&result.endpoint), escape(&result.arrivals));
    let seconds = &result.per_second;
    let offered: Vec<f64> = seconds.iter().map(|s| s.offered as f64).collect();
    let in_time: Vec<f64> = seconds.iter().map(|s| s.within_deadline as f64).collect();
    let p99: Vec<f64> = seconds.iter().map(|s| s.p99_us as f64 / 1e3).collect();
    write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}</title>\
         <style>{STYLE}</style><h1>{title}</h1><pre>{}</pre>\
         <h2>Queries a second</h2><p>Offered, and (dashed) answered in time.</p>{}\
         <h2>p99 latency by second, ms</h2>{}\
         <h2>The run as JSON</h2><pre>{}</pre></html>",
        escape(&result.table()),
        chart(&[(&offered, "a"), (&in_time, "b")]),
        chart(&[(&p99, "a")]),
        escape(&serde_json::to_string_pretty(result).expect("a result is plain data")),
    )
    .expect("writing to a string");
    page
}

/// Lines over seconds, from zero.
fn chart(lines: &[(&[f64], &str)]) -> String {
    const WIDTH: f64 = 700.0;
    const HEIGHT: f64 = 160.0;
    const LEFT: f64 = 46.0;
    let count = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    let top = lines.iter().flat_map(|(line, _)| line.iter().copied()).fold(1.0, f64::max);
    let x = |i: usize| LEFT + (WIDTH - LEFT - 10.0) * i as f64 / count.saturating_sub(1).max(1) as f64;
    let y = |value: f64| HEIGHT - 20.0 - (HEIGHT - 34.0) * value / top;
    let mut svg = format!("<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img>");
    for value in [0.0, top / 2.0, top] {
        let at = y(value);
        write!(
            svg,
            "<line class=axis x1={LEFT} x2={WIDTH} y1={at:.1} y2={at:.1} /><text x=4 y={:.1}>{value:.0}</text>",
            at + 4.0
        )
        .expect("a string");
    }
    for (line, class) in lines {
        let points: Vec<String> =
            line.iter().enumerate().map(|(i, value)| format!("{:.1},{:.1}", x(i), y(*value))).collect();
        write!(svg, "<polyline class={class} points='{}' />", points.join(" ")).expect("a string");
    }
    write!(
        svg,
        "<text x={LEFT} y={HEIGHT}>0 s</text><text x={:.0} y={HEIGHT} text-anchor=end>{} s</text></svg>",
        WIDTH - 4.0,
        count
    )
    .expect("a string");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Latency, PerSecond, SendLag};

    #[test]
    fn a_report_stands_alone_and_trusts_no_name() {
        let result = RunResult {
            target: "t".into(),
            endpoint: "<script>".into(),
            arrivals: "poisson".into(),
            seed: 1,
            rate: Some(1.0),
            duration_s: 1.0,
            deadline_us: 1,
            offered: 0,
            answered: 0,
            rejected: 0,
            expired: 0,
            failed: 0,
            unknown: 0,
            degraded: 0,
            within_deadline: 0,
            attainment: 0.0,
            goodput_per_s: 0.0,
            accuracy: None,
            correct_within_deadline: None,
            latency_us: Latency::default(),
            stages: Default::default(),
            send_lag_us: SendLag::default(),
            valid: true,
            invalid_because: None,
            errors: Vec::new(),
            per_second: vec![PerSecond::default()],
        };
        let page = html(&result);
        assert!(!page.contains("<script") && !page.contains("http"));
        assert!(page.contains("&lt;script&gt;") && page.contains("<polyline"));
    }
}
