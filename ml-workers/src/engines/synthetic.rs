//! A model made of a formula, for tests, load experiments and simulation: it takes `alpha + beta × rows` without
//! computing anything, and answers with its input. The artifact is a few lines of TOML:
//!
//! ```toml
//! width = 4          # f32 numbers a row: input `x` [N, width], output `y` the same
//! alpha_us = 500     # per batch
//! beta_us = 100      # per row
//! load_ms = 300      # to load it
//! fail_above = 1e6   # a row whose first number is larger fails its batch
//! panic_above = 1e9  # … makes the engine panic
//! hang_above = 1e12  # … makes it never return
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use weir_core::tensor::{DType, Signature, Tensor, TensorSpec};
use weir_core::units::Bytes;

use crate::engine::{Engine, LoadError, RunError, Session, Terminator};

/// The engine.
pub struct Synthetic;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Formula {
    width: u64,
    #[serde(default)]
    alpha_us: u64,
    #[serde(default)]
    beta_us: u64,
    #[serde(default)]
    load_ms: u64,
    fail_above: Option<f32>,
    panic_above: Option<f32>,
    hang_above: Option<f32>,
}

impl Engine for Synthetic {
    fn load(&self, artifact: &[u8]) -> Result<Box<dyn Session>, LoadError> {
        let malformed = |why: String| LoadError::Malformed { engine: "the synthetic engine", why };
        let text = std::str::from_utf8(artifact).map_err(|_| malformed("it is not text".into()))?;
        let formula: Formula = toml::from_str(text).map_err(|error| malformed(error.message().to_owned()))?;
        if formula.width == 0 || formula.width > 1 << 20 {
            return Err(malformed("width must be from 1 to 1048576".into()));
        }
        std::thread::sleep(Duration::from_millis(formula.load_ms));
        let spec =
            |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![None, Some(formula.width)] };
        let signature = Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] };
        Ok(Box::new(Model { formula, signature, stop: Arc::default() }))
    }
}

struct Model {
    formula: Formula,
    signature: Signature,
    stop: Arc<AtomicBool>,
}

impl Session for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let x = &inputs[0];
        let numbers = x.as_f32().ok_or_else(|| RunError::Model("x must be f32".into()))?;
        let above = |bound: Option<f32>| {
            bound.is_some_and(|bound| numbers.chunks(self.formula.width as usize).any(|row| row[0] > bound))
        };
        self.stop.store(false, Ordering::Relaxed);
        if above(self.formula.hang_above) {
            while !self.stop.swap(false, Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            return Err(RunError::Terminated);
        }
        assert!(!above(self.formula.panic_above), "told to panic");
        if above(self.formula.fail_above) {
            return Err(RunError::Model("a row is above the bound".into()));
        }
        Ok(vec![x.clone()])
    }

    fn pause(&self, rows: u64) -> Duration {
        Duration::from_micros(self.formula.alpha_us.saturating_add(self.formula.beta_us.saturating_mul(rows)))
    }

    fn terminator(&self) -> Terminator {
        let stop = Arc::clone(&self.stop);
        Terminator::new(move || stop.store(true, Ordering::Relaxed))
    }

    fn memory(&self) -> Bytes {
        Bytes(64 << 10)
    }
}
