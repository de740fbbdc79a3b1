//! What a model takes is measured where no other is loaded meanwhile: what the process takes more is all that can be seen.

use std::path::Path;
use std::sync::Barrier;

use weir_core::replicated::EngineKind;
use weir_core::units::Bytes;
use weir_ml_workers::engine::engine;

const AT_ONCE: usize = 8;

#[test]
fn models_that_are_loaded_at_once_are_each_charged_for_themselves() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/big.onnx");
    let artifact = std::fs::read(path).expect("the demo has it");
    let load = || engine(EngineKind::Onnx).expect("the runtime is here").load(&artifact).expect("it loads");
    // The first one brings what the runtime itself takes.
    let _first = load();
    let Bytes(alone) = load().memory();
    let (begin, measured) = (Barrier::new(AT_ONCE), Barrier::new(AT_ONCE));
    let one = || {
        begin.wait();
        let session = load();
        // None is gone before all are there.
        measured.wait();
        session.memory().0
    };
    let all: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().expect("loaded")).sum()
    });
    assert!(all <= 2 * alone * AT_ONCE as u64, "{all} bytes for {AT_ONCE} of {alone}");
}
