//! CUDA kernels of one's own, on a stream that belongs to the session.
//!
//! The artifact is a TOML file: `width` (f32 numbers a row), `entry` (the kernel's name) and `ptx` (its code). The kernel
//! has the form `entry(const float *x, float *y, unsigned int n)` and gives one number for each of the `n` it takes:
//! input `x` [N, width], output `y` [N, width], both f32. The driver is loaded at run time; where there is none, loading
//! is refused with a sentence that says so. [`Driver`] stands between the engine and CUDA, so that the engine's part
//! (checks, shapes, one stream a session) is tested without a GPU; the CUDA part compiles here and has run nowhere yet.
#![allow(unsafe_code)] // launching a kernel is: the driver checks neither its argument list nor its bounds

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use serde::Deserialize;
use weir_core::tensor::{DType, Signature, Tensor, TensorSpec};
use weir_core::units::Bytes;

use crate::engine::{Engine, LoadError, RunError, Session, Terminator};

/// What can hold kernels and run them.
pub trait Driver: Send + Sync {
    /// Loads `ptx` and finds `entry` in it, on a new stream.
    fn load(&self, ptx: &str, entry: &str) -> Result<Box<dyn Stream>, String>;
}

/// One kernel on one stream.
pub trait Stream: Send {
    /// Copies `x` to the device, runs the kernel over all of it, copies the result back, and waits for that.
    fn run(&mut self, x: &[f32]) -> Result<Vec<f32>, RunError>;
}

/// The engine over a driver.
pub struct Kernels<D> {
    driver: D,
}

impl<D: Driver> Kernels<D> {
    /// An engine that loads through `driver`.
    pub fn new(driver: D) -> Kernels<D> {
        Kernels { driver }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    width: u64,
    entry: String,
    ptx: String,
}

impl<D: Driver> Engine for Kernels<D> {
    fn load(&self, artifact: &[u8]) -> Result<Box<dyn Session>, LoadError> {
        let malformed = |why: String| LoadError::Malformed { engine: "the kernel engine", why };
        let text = std::str::from_utf8(artifact).map_err(|_| malformed("it is not text".into()))?;
        let declared: Declared = toml::from_str(text).map_err(|error| malformed(error.message().to_owned()))?;
        if declared.width == 0 || declared.width > 1 << 24 {
            return Err(malformed("width must be from 1 to 16777216".into()));
        }
        let stream = self.driver.load(&declared.ptx, &declared.entry).map_err(LoadError::Driver)?;
        let spec =
            |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![None, Some(declared.width)] };
        let signature = Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] };
        Ok(Box::new(Kernel { stream, signature, memory: Bytes(artifact.len() as u64) }))
    }
}

struct Kernel {
    stream: Box<dyn Stream>,
    signature: Signature,
    memory: Bytes,
}

impl Session for Kernel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let x = inputs[0].as_f32().ok_or_else(|| RunError::Model("x must be f32".into()))?;
        if x.is_empty() {
            return Ok(vec![inputs[0].clone()]);
        }
        let y = self.stream.run(&x)?;
        if y.len() != x.len() {
            return Err(RunError::Model(format!("the kernel gave {} numbers for {}", y.len(), x.len())));
        }
        Ok(vec![Tensor::f32(&inputs[0].shape, &y)])
    }

    fn terminator(&self) -> Terminator {
        // A kernel cannot be stopped; its thread is given up instead.
        Terminator::new(|| {})
    }

    fn memory(&self) -> Bytes {
        self.memory
    }
}

/// The first CUDA device of this machine.
pub struct Cuda {
    context: Arc<CudaContext>,
}

impl Cuda {
    /// Loads the driver and opens its first device.
    pub fn start() -> Result<Cuda, LoadError> {
        // SAFETY: only looks whether the library can be loaded.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(LoadError::Driver(
                "this machine has no CUDA driver; place the model on a node with a GPU".into(),
            ));
        }
        // A driver that is too old lacks symbols, which the bindings answer with a panic.
        let context = catch_unwind(|| CudaContext::new(0));
        match context {
            Ok(Ok(context)) => Ok(Cuda { context }),
            Ok(Err(error)) => {
                Err(LoadError::Driver(format!("the CUDA driver does not open its first device: {error}")))
            }
            Err(_) => Err(LoadError::Driver("the CUDA driver is too old; install one for CUDA 12.8 or newer".into())),
        }
    }
}

impl Driver for Cuda {
    fn load(&self, ptx: &str, entry: &str) -> Result<Box<dyn Stream>, String> {
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            let module = self.context.load_module(Ptx::from_src(ptx))?;
            Ok((module.load_function(entry)?, self.context.new_stream()?))
        }));
        let failed = |error: DriverError| format!("the driver does not take the kernel: {error}");
        let (function, stream) = loaded.map_err(|_| "the CUDA driver is too old".to_owned())?.map_err(failed)?;
        Ok(Box::new(OnStream { function, stream }))
    }
}

struct OnStream {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Stream for OnStream {
    fn run(&mut self, x: &[f32]) -> Result<Vec<f32>, RunError> {
        let n = u32::try_from(x.len()).map_err(|_| RunError::Model("more numbers than one launch takes".into()))?;
        let run = || {
            let x = self.stream.clone_htod(x)?;
            let mut y = self.stream.alloc_zeros::<f32>(n as usize)?;
            let mut launch = self.stream.launch_builder(&self.function);
            launch.arg(&x).arg(&mut y).arg(&n);
            // SAFETY: the arguments are those of the documented form, and both buffers hold `n` numbers.
            unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }?;
            let y = self.stream.clone_dtoh(&y)?;
            self.stream.synchronize()?;
            Ok(y)
        };
        run().map_err(|error: DriverError| {
            let why = format!("the kernel failed: {error}");
            if is_lasting(error.0) { RunError::Broken(why) } else { RunError::Model(why) }
        })
    }
}

/// Errors after which nothing works any more on the context, by the driver's documentation of `CUresult`.
fn is_lasting(code: CUresult) -> bool {
    use CUresult as C;
    matches!(
        code,
        C::CUDA_ERROR_ECC_UNCORRECTABLE
            | C::CUDA_ERROR_ILLEGAL_ADDRESS
            | C::CUDA_ERROR_LAUNCH_TIMEOUT
            | C::CUDA_ERROR_ASSERT
            | C::CUDA_ERROR_HARDWARE_STACK_ERROR
            | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | C::CUDA_ERROR_MISALIGNED_ADDRESS
            | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | C::CUDA_ERROR_INVALID_PC
            | C::CUDA_ERROR_LAUNCH_FAILED
            | C::CUDA_ERROR_UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Doubles numbers; counts its streams.
    struct StandIn(Arc<AtomicUsize>);

    impl Driver for StandIn {
        fn load(&self, ptx: &str, entry: &str) -> Result<Box<dyn Stream>, String> {
            if !ptx.contains(entry) {
                return Err(format!("no kernel {entry}"));
            }
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Doubling))
        }
    }

    struct Doubling;

    impl Stream for Doubling {
        fn run(&mut self, x: &[f32]) -> Result<Vec<f32>, RunError> {
            if x[0] < 0.0 {
                return Err(RunError::Broken("the kernel failed: an illegal address".into()));
            }
            Ok(x.iter().map(|v| v * 2.0).collect())
        }
    }

    const ARTIFACT: &[u8] = b"width = 2\nentry = 'twice'\nptx = '.visible .entry twice()'\n";

    #[test]
    fn each_session_has_a_stream_and_keeps_shapes() {
        let streams = Arc::new(AtomicUsize::new(0));
        let engine = Kernels::new(StandIn(Arc::clone(&streams)));
        let mut first = engine.load(ARTIFACT).unwrap();
        let _second = engine.load(ARTIFACT).unwrap();
        assert_eq!(streams.load(Ordering::Relaxed), 2);
        let y = first.run(&[Tensor::f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0])]).unwrap();
        assert_eq!(y, [Tensor::f32(&[2, 2], &[2.0, 4.0, 6.0, 8.0])]);
        assert_eq!(first.run(&[Tensor::f32(&[0, 2], &[])]).unwrap()[0].shape, [0, 2]);
    }

    #[test]
    fn what_lasts_ends_the_actor_and_what_does_not_only_the_batch() {
        assert!(is_lasting(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS) && !is_lasting(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        let mut session = Kernels::new(StandIn(Arc::default())).load(ARTIFACT).unwrap();
        let failed = session.run(&[Tensor::f32(&[1, 2], &[-1.0, 0.0])]).unwrap_err();
        assert!(matches!(failed, RunError::Broken(_)));
    }

    #[test]
    fn mistakes_are_refused_with_what_the_driver_says() {
        let engine = Kernels::new(StandIn(Arc::default()));
        let refused = |artifact: &[u8]| engine.load(artifact).err().expect("refused").to_string();
        assert!(refused(b"width = 2\nentry = 'thrice'\nptx = 'twice'").contains("no kernel thrice"));
        assert!(refused(b"width = 0\nentry = 'a'\nptx = 'a'").contains("width must be"));
        assert!(refused(b"\xff").contains("not text"));
    }

    #[test]
    fn a_machine_without_a_driver_says_so() {
        // SAFETY: only looks whether the library can be loaded.
        if unsafe { cudarc::driver::sys::is_culib_present() } {
            return;
        }
        assert!(Cuda::start().err().expect("refused").to_string().contains("no CUDA driver"));
    }
}
