//! Of what does a reload consist, and what does a session's first batch take more than its later ones? Models of the demo, each loaded 50 times in a
//! thread of its own; medians in microseconds.
//!
//! `cargo run --release -p weir-tests --example what_does_a_reload_take [LOADS]`

use std::time::Instant;

use sha2::{Digest as _, Sha256};
use weir_core::replicated::EngineKind;
use weir_core::tensor::Tensor;
use weir_ml_workers::engine::engine;
use weir_tests::processes::root;

/// What is timed, in the order in which it happens.
const STEPS: [&str; 9] = [
    "read the file",
    "hash it",
    "make a session",
    "1st run of 1 row",
    "2nd run of 1 row",
    "3rd run of 1 row",
    "1st run of 16 rows",
    "2nd run of 16 rows",
    "3rd run of 16 rows",
];

fn main() {
    let loads: usize = std::env::args().nth(1).map_or(50, |text| text.parse().expect("a whole number"));
    let names = ["tiny", "mid", "big"];
    let times = names.map(|name| {
        let mut by_load: Vec<[f64; STEPS.len()]> = Vec::new();
        for _ in 0..loads {
            by_load.push(std::thread::spawn(move || load(name)).join().expect("it loads"));
        }
        std::array::from_fn::<f64, { STEPS.len() }, _>(|step| {
            let mut of_step: Vec<f64> = by_load.iter().map(|times| times[step]).collect();
            of_step.sort_unstable_by(f64::total_cmp);
            of_step[of_step.len() / 2]
        })
    });
    println!("{:<20} {}", "us", names.map(|name| format!("{name:>9}")).concat());
    for (step, title) in STEPS.iter().enumerate() {
        println!("{title:<20} {}", times.map(|times| format!("{:9.0}", times[step])).concat());
    }
}

/// Times of one load and its first runs, in microseconds.
fn load(name: &str) -> [f64; STEPS.len()] {
    let mut times = Vec::new();
    let mut timed = Instant::now();
    let mut step = || {
        times.push(1e6 * timed.elapsed().as_secs_f64());
        timed = Instant::now();
    };
    let bytes = std::fs::read(root().join(format!("demo/{name}.onnx"))).expect("the demo is here");
    step();
    std::hint::black_box(Sha256::digest(&bytes));
    step();
    let onnx = engine(EngineKind::Onnx).expect("the runtime is here");
    let mut session = onnx.load(&bytes).expect("it can be loaded");
    step();
    for rows in [1, 16] {
        let input = Tensor::f32(&[rows, 1, 28, 28], &vec![0.5; 784 * rows as usize]);
        for _ in 0..3 {
            session.run(std::slice::from_ref(&input)).expect("it runs");
            step();
        }
    }
    times.try_into().expect("a time for each step")
}
