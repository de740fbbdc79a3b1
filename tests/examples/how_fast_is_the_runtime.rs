//! How many rows a second does the runtime compute by itself, on one thread, with nothing around it?
//!
//! `cargo run --release -p weir-tests --example how_fast_is_the_runtime MODEL ROWS SECONDS` prints that number for batches of so many rows.

use std::time::{Duration, Instant};

use weir_core::replicated::EngineKind;
use weir_core::tensor::{DType, Tensor};
use weir_ml_workers::engine::{Session, engine};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let [_, path, rows, seconds] = words.as_slice() else { panic!("MODEL ROWS SECONDS") };
    let (rows, seconds): (u64, f64) = (rows.parse().expect("rows"), seconds.parse().expect("seconds"));
    let artifact = std::fs::read(path).expect("the model");
    let mut session = engine(EngineKind::Onnx).expect("the runtime is here").load(&artifact).expect("it loads");
    let inputs: Vec<Tensor> = session
        .signature()
        .inputs
        .iter()
        .map(|spec| {
            assert_eq!(spec.dtype, DType::F32, "{}", spec.name);
            let shape: Vec<u64> = spec.shape.iter().map(|dim| dim.unwrap_or(rows)).collect();
            Tensor::f32(&shape, &vec![0.5; shape.iter().product::<u64>() as usize])
        })
        .collect();
    let run = |session: &mut dyn Session, span: Duration| {
        let (started, mut runs) = (Instant::now(), 0);
        while started.elapsed() < span {
            session.run(&inputs).expect("it runs");
            runs += 1;
        }
        (rows * runs) as f64 / started.elapsed().as_secs_f64()
    };
    run(&mut *session, Duration::from_secs_f64(seconds / 4.0));
    println!("{:.0}", run(&mut *session, Duration::from_secs_f64(seconds)));
}
