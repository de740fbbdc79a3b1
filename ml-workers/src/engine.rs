//! The trait that every engine stands behind: load an artifact, get a session; run a batch, get outputs.

use std::sync::Arc;
use std::time::Duration;

use weir_core::replicated::EngineKind;
use weir_core::tensor::{Signature, Tensor};
use weir_core::units::Bytes;

/// Why an artifact cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LoadError {
    #[error("{0}")]
    Runtime(String),
    #[error("the file is not a model that {engine} can load: {why}")]
    Malformed { engine: &'static str, why: String },
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Driver(String),
}

/// Why a batch has no outputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error("the model failed: {0}")]
    Model(String),
    #[error("the model took too long and was stopped")]
    Terminated,
    /// The session cannot be used again: its actor ends, and another is started.
    #[error("the model failed for good: {0}")]
    Broken(String),
    #[error("the model's actor ended before it ran this")]
    ActorGone,
}

/// Makes sessions from artifacts.
pub trait Engine: Send + Sync {
    /// Loads the bytes of an artifact. Takes as long as it takes: call it on a thread that may wait.
    fn load(&self, artifact: &[u8]) -> Result<Box<dyn Session>, LoadError>;
}

/// One loaded copy of a model. Runs one batch at a time, on one thread.
pub trait Session: Send {
    /// What it takes and gives, in its own order.
    fn signature(&self) -> &Signature;
    /// Runs on `inputs`, which are in the signature's order and of its types; shapes are whatever the caller made.
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError>;
    /// Time that a run of `rows` rows takes beyond computing; whoever runs it lets that pass. Only models made of a formula
    /// have one.
    fn pause(&self, rows: u64) -> Duration {
        let _ = rows;
        Duration::ZERO
    }
    /// Asks the run in progress to stop, from any thread.
    fn terminator(&self) -> Terminator;
    /// Memory that it holds, as far as it can tell.
    fn memory(&self) -> Bytes;
}

/// Asks a run that hangs to stop. It may not be able to.
#[derive(Clone)]
pub struct Terminator(Arc<dyn Fn() + Send + Sync>);

impl Terminator {
    /// A terminator that does `stop`.
    pub fn new(stop: impl Fn() + Send + Sync + 'static) -> Terminator {
        Terminator(Arc::new(stop))
    }

    /// Asks.
    pub fn terminate(&self) {
        (self.0)();
    }
}

/// The engine of this kind, or why it does not work on this machine.
pub fn engine(kind: EngineKind) -> Result<Arc<dyn Engine>, LoadError> {
    Ok(match kind {
        EngineKind::Onnx => Arc::new(crate::engines::onnx::OnnxRuntime::start()?),
        EngineKind::Synthetic => Arc::new(crate::engines::synthetic::Synthetic),
        EngineKind::Kernel => Arc::new(crate::engines::kernel::Kernels::new(crate::engines::kernel::Cuda::start()?)),
    })
}

/// Loads `artifact` once to read its signature, before anybody else is asked to serve it.
pub fn inspect(kind: EngineKind, artifact: &[u8]) -> Result<Signature, LoadError> {
    Ok(engine(kind)?.load(artifact)?.signature().clone())
}
