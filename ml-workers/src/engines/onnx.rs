//! ONNX Runtime on the CPU.
//!
//! One thread a session (a device has slots for parallelism), no spinning. Inputs are lent to the runtime as they lie in
//! memory; outputs are copied out once, with the type and shape that really came, whatever the file declares.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytemuck::{AnyBitPattern, NoUninit};
use half::{bf16, f16};
use ort::environment::Environment;
use ort::session::builder::SessionBuilder;
use ort::session::{RunOptions, Session as OrtSession, SessionInputValue};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor as OrtTensor, TensorElementType, TensorRef, ValueType};
use weir_core::tensor::{DType, Signature, Tensor, TensorSpec, texts};
use weir_core::units::Bytes;

use super::onnx_file;
use crate::engine::{Engine, LoadError, RunError, Session, Terminator};
use crate::runtime;

/// Held while a model is loaded.
static MEASURED: Mutex<()> = Mutex::new(());

/// The runtime of this process.
pub struct OnnxRuntime {
    environment: &'static Environment,
}

impl OnnxRuntime {
    /// Loads the library, once a process.
    pub fn start() -> Result<OnnxRuntime, LoadError> {
        static STARTED: OnceLock<Result<Environment, LoadError>> = OnceLock::new();
        let started = STARTED.get_or_init(|| {
            let path = runtime::locate()?;
            let wrong = |why: String| {
                LoadError::Runtime(format!(
                    "{} is not a library that weir can use ({why}); run scripts/setup in weir's folder, or set ORT_DYLIB_PATH to ONNX Runtime {}",
                    path.display(),
                    runtime::VERSION
                ))
            };
            // Anything before this call would panic where the library is missing.
            let builder = ort::environment::init_from(&path).map_err(|error| wrong(error.to_string()))?;
            builder.with_name("weir").with_telemetry(false).build().map_err(|error| wrong(error.to_string()))
        });
        Ok(OnnxRuntime { environment: started.as_ref().map_err(Clone::clone)? })
    }
}

impl Engine for OnnxRuntime {
    fn load(&self, artifact: &[u8]) -> Result<Box<dyn Session>, LoadError> {
        let malformed = |why: String| LoadError::Malformed { engine: "ONNX Runtime", why };
        if let Some(location) = onnx_file::external_data(artifact).map_err(|why| malformed(why.to_owned()))? {
            return Err(LoadError::Unsupported(format!(
                "the model keeps weights in another file ({location:?}); save it with all its data in one file"
            )));
        }
        // What the process takes more is what this model takes only where no other is loaded meanwhile.
        let _alone = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
        let before = resident();
        let failed = |error: ort::Error| malformed(first_line(&error.to_string()));
        let refused = |error: ort::Error<SessionBuilder>| malformed(first_line(&error.to_string()));
        let builder = OrtSession::builder(self.environment).map_err(failed)?;
        let builder = builder.with_intra_threads(1).map_err(refused)?;
        let builder = builder.with_inter_threads(1).map_err(refused)?;
        let mut builder = builder.with_config_entry("session.intra_op.allow_spinning", "0").map_err(refused)?;
        let session = builder.commit_from_memory(artifact).map_err(failed)?;
        let specs = |outlets: &[ort::value::Outlet]| {
            outlets.iter().map(|o| spec(o.name(), o.dtype())).collect::<Result<Vec<_>, _>>()
        };
        let signature = Signature { inputs: specs(session.inputs())?, outputs: specs(session.outputs())? };
        if signature.inputs.is_empty() {
            return Err(LoadError::Unsupported("the model takes no input, so there is nothing to ask it".into()));
        }
        if signature.outputs.is_empty() {
            return Err(LoadError::Unsupported("the model gives no output".into()));
        }
        let memory = Bytes(resident().saturating_sub(before).max(artifact.len() as u64));
        let options = Arc::new(RunOptions::new().map_err(failed)?);
        Ok(Box::new(Onnx { session, signature, options, memory }))
    }
}

struct Onnx {
    session: OrtSession,
    signature: Signature,
    options: Arc<RunOptions>,
    memory: Bytes,
}

impl Session for Onnx {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let failed = |error: ort::Error| RunError::Model(first_line(&error.to_string()));
        // Numbers that do not lie on their boundary are moved to where they do.
        let aligned: Vec<Aligned> = inputs.iter().map(Aligned::new).collect();
        let values = inputs.iter().zip(&aligned).map(|(tensor, aligned)| lend(tensor, aligned));
        let named = self.signature.inputs.iter().map(|spec| Cow::from(spec.name.as_str())).zip(values);
        let named =
            named.map(|(name, value)| Ok((name, value?))).collect::<Result<Vec<_>, ort::Error>>().map_err(failed)?;
        // A run that ended before it heard that it should must not stop this one.
        let _ = self.options.unterminate();
        let outputs = self.session.run_with_options(named, &*self.options);
        let outputs = match outputs {
            Ok(outputs) => outputs,
            Err(error) => {
                let stopped = error.to_string().contains("erminate");
                return Err(if stopped { RunError::Terminated } else { failed(error) });
            }
        };
        let names = self.signature.outputs.iter();
        names
            .map(|spec| {
                outputs
                    .get(&spec.name)
                    .ok_or_else(|| RunError::Model(format!("output {} is missing", spec.name)))
                    .and_then(copy_out)
            })
            .collect()
    }

    fn terminator(&self) -> Terminator {
        let options = Arc::clone(&self.options);
        Terminator::new(move || {
            // It can fail only where the runtime is out of memory; then the thread is given up soon.
            let _ = options.terminate();
        })
    }

    fn memory(&self) -> Bytes {
        self.memory
    }
}

/// Bytes of an input on an 8-byte boundary, where they do not lie on one already.
struct Aligned(Vec<u64>);

impl Aligned {
    fn new(tensor: &Tensor) -> Aligned {
        let size = tensor.dtype.size().unwrap_or(1);
        if (tensor.data.as_ptr() as usize).is_multiple_of(size) {
            return Aligned(Vec::new());
        }
        let mut words = vec![0u64; tensor.data.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..tensor.data.len()].copy_from_slice(&tensor.data);
        Aligned(words)
    }

    fn bytes<'a>(&'a self, tensor: &'a Tensor) -> &'a [u8] {
        if self.0.is_empty() { &tensor.data } else { &bytemuck::cast_slice(&self.0)[..tensor.data.len()] }
    }
}

fn lend<'a>(tensor: &'a Tensor, aligned: &'a Aligned) -> Result<SessionInputValue<'a>, ort::Error> {
    fn of<'a, T>(shape: Vec<i64>, data: &'a [u8]) -> Result<SessionInputValue<'a>, ort::Error>
    where
        T: PrimitiveTensorElementType + AnyBitPattern + std::fmt::Debug,
    {
        let numbers: &[T] = bytemuck::try_cast_slice(data).map_err(|error| ort::Error::new(error.to_string()))?;
        Ok(TensorRef::from_array_view((shape, numbers))?.into())
    }
    let shape: Vec<i64> = tensor.shape.iter().map(|dim| *dim as i64).collect();
    let data = aligned.bytes(tensor);
    match tensor.dtype {
        DType::Bool => {
            let bools = bytemuck::checked::try_cast_slice::<u8, bool>(data)
                .map_err(|_| ort::Error::new("a bool is one byte, 0 or 1"))?;
            Ok(TensorRef::from_array_view((shape, bools))?.into())
        }
        DType::U8 => of::<u8>(shape, data),
        DType::U16 => of::<u16>(shape, data),
        DType::U32 => of::<u32>(shape, data),
        DType::U64 => of::<u64>(shape, data),
        DType::I8 => of::<i8>(shape, data),
        DType::I16 => of::<i16>(shape, data),
        DType::I32 => of::<i32>(shape, data),
        DType::I64 => of::<i64>(shape, data),
        DType::F16 => of::<f16>(shape, data),
        DType::Bf16 => of::<bf16>(shape, data),
        DType::F32 => of::<f32>(shape, data),
        DType::F64 => of::<f64>(shape, data),
        DType::String => {
            let string = |text: &[u8]| String::from_utf8(text.to_vec());
            let strings: Result<Vec<String>, _> = texts(data).map(string).collect();
            let strings = strings.map_err(|_| ort::Error::new("a string is not UTF-8"))?;
            Ok(OrtTensor::from_string_array((shape, strings.as_slice()))?.into())
        }
    }
}

fn copy_out(value: &DynValue) -> Result<Tensor, RunError> {
    fn of<T: PrimitiveTensorElementType + NoUninit>(value: &DynValue, dtype: DType) -> Result<Tensor, ort::Error> {
        let (shape, numbers) = value.try_extract_tensor::<T>()?;
        let data = bytemuck::cast_slice(numbers).to_vec();
        Ok(Tensor { dtype, shape: shape.iter().map(|dim| *dim as u64).collect(), data })
    }
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err(RunError::Model("an output is not a tensor, although the model declares one".into()));
    };
    let dtype = dtype(*ty)
        .ok_or_else(|| RunError::Model(format!("an output has the element type {ty}, which weir does not carry")))?;
    match dtype {
        DType::Bool => of::<bool>(value, dtype),
        DType::U8 => of::<u8>(value, dtype),
        DType::U16 => of::<u16>(value, dtype),
        DType::U32 => of::<u32>(value, dtype),
        DType::U64 => of::<u64>(value, dtype),
        DType::I8 => of::<i8>(value, dtype),
        DType::I16 => of::<i16>(value, dtype),
        DType::I32 => of::<i32>(value, dtype),
        DType::I64 => of::<i64>(value, dtype),
        DType::F16 => of::<f16>(value, dtype),
        DType::Bf16 => of::<bf16>(value, dtype),
        DType::F32 => of::<f32>(value, dtype),
        DType::F64 => of::<f64>(value, dtype),
        DType::String => value.try_extract_strings().map(|(shape, strings)| {
            Tensor::strings(&shape.iter().map(|dim| *dim as u64).collect::<Vec<_>>(), &strings)
        }),
    }
    .map_err(|error| RunError::Model(first_line(&error.to_string())))
}

fn spec(name: &str, of: &ValueType) -> Result<TensorSpec, LoadError> {
    let unsupported = |what: &str| {
        Err(LoadError::Unsupported(format!(
            "{name:?} is {what}; weir serves tensors: export the model with tensors in and out"
        )))
    };
    match of {
        ValueType::Tensor { ty, shape, .. } => match dtype(*ty) {
            Some(dtype) => Ok(TensorSpec {
                name: name.to_owned(),
                dtype,
                shape: shape.iter().map(|dim| u64::try_from(*dim).ok()).collect(),
            }),
            None => unsupported(&format!("a tensor of {ty}")),
        },
        ValueType::Sequence(_) => unsupported("a sequence"),
        ValueType::Map { .. } => unsupported("a map"),
        ValueType::Optional(_) => unsupported("optional"),
    }
}

fn dtype(of: TensorElementType) -> Option<DType> {
    Some(match of {
        TensorElementType::Bool => DType::Bool,
        TensorElementType::Uint8 => DType::U8,
        TensorElementType::Uint16 => DType::U16,
        TensorElementType::Uint32 => DType::U32,
        TensorElementType::Uint64 => DType::U64,
        TensorElementType::Int8 => DType::I8,
        TensorElementType::Int16 => DType::I16,
        TensorElementType::Int32 => DType::I32,
        TensorElementType::Int64 => DType::I64,
        TensorElementType::Float16 => DType::F16,
        TensorElementType::Bfloat16 => DType::Bf16,
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Float64 => DType::F64,
        TensorElementType::String => DType::String,
        _ => return None,
    })
}

/// The runtime's messages go on with stack frames and paths of its build.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("no reason given").chars().take(400).collect()
}

/// Resident memory of this process in bytes; 0 where the system does not tell.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()).map_or(0, |pages| pages * 4096)
}
