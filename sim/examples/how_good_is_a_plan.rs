//! How good is a plan? Random cases of graphs of one to four stages, price lists, arrivals, deadlines and goals: what the planner's fleet
//! costs over the cheapest of all fleets of up to twelve machines, each judged by the same simulation. Ends with exit code 1 where one
//! costs more than 1.15 times as much.
//!
//! Judged by five draws of each load and a margin as wide as they differ, as `weir plan` does it; beside that it tells what the margin costs and is worth:
//! the cost against a plan for one draw alone, and under how many of ten further draws, which no plan has seen, either meets its goal.
//!
//! All fleets that cost less are tried, the cheapest first, and none is left out because of what is known of others: the planner takes more
//! machines never to be worse, and where that is wrong it counts against the planner.
//!
//! `cargo run --release -p weir-sim --example how_good_is_a_plan [-- CASES [SEED]]`: 200 from 1 on, where nobody says. Cases in which no fleet
//! of up to twelve machines meets the goal are told, and do not count.

use std::process::ExitCode;

use weir_sim::plans::{Case, RUNS, UNSEEN};

const GOAL: f64 = 1.15;
/// Of each case, about.
const QUERIES: u32 = 2500;

fn main() -> ExitCode {
    let asked = |i: usize, otherwise: u64| {
        std::env::args().nth(i).map_or(otherwise, |text| text.parse().expect("CASES and SEED are whole numbers"))
    };
    let (cases, first) = (asked(1, 200) as usize, asked(2, 1));
    let mut ratios: Vec<(f64, usize)> = Vec::new();
    let (mut none, mut missed, mut tried, mut brute) = (0, 0, 0, 0);
    // Of plans with a margin and those for one draw: the draws that were kept; and what the margin costs.
    let (mut kept, mut dearer) = ((0, 0), Vec::new());
    for seed in first.. {
        if ratios.len() == cases {
            break;
        }
        let case = Case::random(seed, QUERIES);
        let Some(found) = case.plan(RUNS) else {
            match case.best(f64::INFINITY, RUNS) {
                None => none += 1,
                Some(best) => {
                    missed += 1;
                    println!("seed {seed}: no plan, and {:?} meets the goal; {}", best.fleet, case.what);
                }
            }
            continue;
        };
        let cost = case.cost(&found.fleet);
        let best = case.best(cost, RUNS);
        let ratio = best.as_ref().map_or(1.0, |best| cost / case.cost(&best.fleet));
        tried += found.tried;
        brute += best.as_ref().map_or(0, |best| best.tried);
        if let Some(best) = &best {
            println!("seed {seed}: {ratio:.3}, {:?} where {:?} does; {}", found.fleet, best.fleet, case.what);
        }
        ratios.push((ratio, case.stages));
        if let Some(bare) = case.plan(1) {
            kept = (kept.0 + case.kept(&found.fleet), kept.1 + case.kept(&bare.fleet));
            dearer.push(cost / case.cost(&bare.fleet));
        }
    }
    let of = |stages: usize| ratios.iter().filter(move |(_, count)| stages == 0 || *count == stages);
    println!(
        "{:>8} {:>6} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "stages", "cases", "the best", "<= 1.05", "<= 1.15", "above", "worst"
    );
    for stages in 0..=4 {
        let within = |most: f64| of(stages).filter(|(ratio, _)| *ratio <= most + 1e-9).count();
        let worst = of(stages).map(|(ratio, _)| *ratio).fold(1.0, f64::max);
        let name = if stages == 0 { "all".to_owned() } else { stages.to_string() };
        let count = of(stages).count();
        println!(
            "{name:>8} {count:>6} {:>9} {:>9} {:>9} {:>9} {worst:>7.3}",
            within(1.0),
            within(1.05),
            within(GOAL),
            count - within(GOAL)
        );
    }
    println!(
        "{:.1} fleets tried for a plan, {brute} beside them until a cheaper one was found; {none} cases have no plan, {missed} have one that was not found",
        tried as f64 / ratios.len().max(1) as f64
    );
    let unseen = (UNSEEN * dearer.len()) as f64;
    dearer.sort_by(f64::total_cmp);
    println!(
        "with a margin {:.1} % of draws that no plan has seen meet the goal, without {:.1} %; it costs {:.3} times as much on average, {:.3} at the median",
        100.0 * kept.0 as f64 / unseen,
        100.0 * kept.1 as f64 / unseen,
        dearer.iter().sum::<f64>() / dearer.len() as f64,
        dearer[dearer.len() / 2]
    );
    let met = missed == 0 && of(0).all(|(ratio, _)| *ratio <= GOAL);
    println!("at most {GOAL} times the best: {}", if met { "met" } else { "missed" });
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
