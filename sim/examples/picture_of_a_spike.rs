//! Draws what a spike does to the demo's cascade on one slot, in virtual time, by tenths of a second of ten seeds: arrivals, the price that gates met,
//! which stage answers, and p99.
//!
//! `cargo run --release -p weir-sim --example picture_of_a_spike > docs/understand/spike.svg`

use std::fmt::Write;
use std::time::Duration;

use weir_core::outcome::Outcome;
use weir_core::prng::Prng;
use weir_core::units::Instant;
use weir_sim::cluster::{self, Cluster, Due};
use weir_sim::demo::{ROWS, demo};

const TENTHS: usize = 60;

#[derive(Clone, Default)]
struct Tenth {
    offered: u32,
    in_time: u32,
    price: f64,
    by_stage: [u32; 3],
    latencies: Vec<Duration>,
}

/// Ten times the rate from the second to the fourth second.
fn spike(cluster: &Cluster) -> Vec<Tenth> {
    let mut tenths = vec![Tenth::default(); TENTHS];
    for seed in 0..10 {
        let mut prng = Prng::new(100 + seed);
        let (mut at, mut dues) = (0.0, Vec::new());
        while at < 6.0 {
            at += prng.exponential() / if (2.0..4.0).contains(&at) { 4000.0 } else { 400.0 };
            let rows = vec![prng.below(ROWS as u64) as u32];
            let deadline = Duration::from_millis(50);
            dues.push(Due { at: Instant::ZERO + Duration::from_secs_f64(at), endpoint: 0, rows, deadline });
        }
        cluster::run(cluster, dues, seed, |end| {
            let Some(tenth) = tenths.get_mut((end.due.at.as_nanos() / 100_000_000) as usize) else { return };
            tenth.offered += 1;
            tenth.in_time += u32::from(end.outcome == Outcome::Answered && end.latency <= end.due.deadline);
            tenth.price += end.price;
            tenth.latencies.push(end.latency);
            if let Some(stage) = end.stages[0] {
                tenth.by_stage[stage] += 1;
            }
        });
    }
    tenths
}

/// A panel of the picture: what it shows, and by tenth one height for each colour, stacked; `top` is the full height.
fn panel(svg: &mut String, number: usize, title: &str, top: f64, heights: &[Vec<f64>]) {
    let (width, height, gap) = (10.0, 90.0, 34.0);
    let base = 30.0 + number as f64 * (height + gap) + height;
    let colours = ["#7aa6c2", "#3a6ea5", "#1b2a49"];
    let text = format!("<text x=\"40\" y=\"{:.0}\">{title}</text>", base - height - 6.0);
    writeln!(svg, "{text}").expect("text");
    for (tenth, stack) in heights.iter().enumerate() {
        let mut y = base;
        for (value, colour) in stack.iter().zip(colours) {
            let h = height * (value / top).min(1.0);
            y -= h;
            let x = 40.0 + tenth as f64 * width;
            writeln!(svg, "<rect x=\"{x:.0}\" y=\"{y:.1}\" width=\"9\" height=\"{h:.1}\" fill=\"{colour}\"/>")
                .expect("text");
        }
    }
    writeln!(svg, "<line x1=\"40\" y1=\"{base}\" x2=\"640\" y2=\"{base}\" stroke=\"#888\"/>").expect("text");
}

fn main() {
    let tenths = spike(&demo());
    let share = |tenth: &Tenth, count: u32| f64::from(count) / f64::from(tenth.offered.max(1));
    let p99 = |tenth: &Tenth| {
        let mut latencies = tenth.latencies.clone();
        latencies.sort_unstable();
        latencies.get(latencies.len() * 99 / 100).map_or(0.0, |latency| 1e3 * latency.as_secs_f64())
    };
    let each = |of: &dyn Fn(&Tenth) -> Vec<f64>| tenths.iter().map(of).collect::<Vec<_>>();
    let most = |heights: &[Vec<f64>]| heights.iter().flatten().copied().fold(1e-9, f64::max);
    let offered = each(&|tenth| vec![f64::from(tenth.offered)]);
    let price = each(&|tenth| vec![tenth.price / f64::from(tenth.offered.max(1))]);
    let mix = each(&|tenth| tenth.by_stage.iter().map(|count| share(tenth, *count)).collect());
    let least = tenths.iter().map(|tenth| share(tenth, tenth.in_time)).fold(1.0, f64::min);
    let latency = each(&|tenth| vec![p99(tenth)]);
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"660\" height=\"540\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#444\">\n<rect width=\"660\" height=\"540\" fill=\"white\"/>\n",
    );
    panel(&mut svg, 0, &format!("arrivals: {:.0} a second at most", most(&offered)), most(&offered), &offered);
    panel(&mut svg, 1, &format!("price of a second of slot time: {:.0} at most", most(&price)), most(&price), &price);
    let title =
        format!("answered by tiny, mid, big (light to dark); at least {:.2} % in time in each tenth", 100.0 * least);
    panel(&mut svg, 2, &title, 1.0, &mix);
    panel(&mut svg, 3, "p99 of 50 ms", 50.0, &latency);
    for second in 0..=6 {
        let x = 40 + second * 100;
        writeln!(svg, "<text x=\"{x}\" y=\"532\" text-anchor=\"middle\">{second} s</text>").expect("text");
    }
    println!("{svg}</svg>");
}
