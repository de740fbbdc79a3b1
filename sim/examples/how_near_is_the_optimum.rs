//! How near is each policy to the optimum on small queues? Against a search over all sequences of batches.
//!
//! `cargo run --release -p weir-sim --example how_near_is_the_optimum [-- CASES [SEED]]`

use weir_core::scheduler::Policy;
use weir_sim::small::{Coming, Small};

fn main() {
    let mut args = std::env::args().skip(1);
    let cases: u64 = args.next().map_or(100_000, |text| text.parse().expect("a number of cases"));
    let seed: u64 = args.next().map_or(0, |text| text.parse().expect("a seed"));
    for (coming, what) in [
        (Coming::Behind, "all there when the slot is free"),
        (Coming::Online, "coming over time, the optimum knows when"),
    ] {
        println!("{cases} cases, {what}");
        println!("{:12} {:>9} {:>10} {:>11} {:>14}", "policy", "optimal", "within 1", "worst miss", "share in time");
        // By policy: cases by queries fewer than the optimum, and queries in time.
        let mut fewer = vec![[0u64; 10]; Policy::ALL.len()];
        let (mut in_time, mut best) = (vec![0; Policy::ALL.len()], 0);
        for number in 0..cases {
            let small = Small::random(seed.wrapping_mul(cases) + number, coming);
            let optimum = small.optimum();
            best += optimum;
            for (i, policy) in Policy::ALL.into_iter().enumerate() {
                let served = small.in_time(policy);
                fewer[i][(optimum - served) as usize] += 1;
                in_time[i] += served;
            }
        }
        for (i, policy) in Policy::ALL.into_iter().enumerate() {
            let name = policy.to_string();
            let share = |count: u64, of: u64| 100.0 * count as f64 / of as f64;
            println!(
                "{:12} {:>7.2} % {:>8.2} % {:>11} {:>12.2} %",
                name.split(':').next().unwrap_or_default(),
                share(fewer[i][0], cases),
                share(fewer[i][0] + fewer[i][1], cases),
                fewer[i].iter().rposition(|count| *count > 0).unwrap_or_default(),
                share(in_time[i], best),
            );
        }
    }
}
