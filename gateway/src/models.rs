//! What both protocols ask of the cluster: an answer to a request, what endpoints are and what was counted of them, and which there are. What
//! they tell of it is the same, and stands here; each writes it in its own way.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::future::join_all;
use weir_client::EndpointInfo;
use weir_core::history::Calls;
use weir_core::ids::EndpointName;
use weir_core::tensor::{DType, Tensor, TensorSpec};
use weir_schema::oip::inference::DataType;

use crate::callers::Caller;
use crate::infer::{self, Response, Wishes};
use crate::refusal::{Kind, Refusal};
use crate::statistics::{Book, Counted};

/// The protocol's extensions that there are.
pub const EXTENSIONS: [&str; 4] = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"];

/// What is told of a request in the log: its own id, what it is part of (W3C's trace context), and since when it is here.
pub struct Marks<'a> {
    /// The caller's word for it.
    pub id: Option<&'a str>,
    /// The trace that it belongs to.
    pub traceparent: Option<&'a str>,
    /// When it came: its deadline counts from then, not from when it was read.
    pub arrived: Instant,
}

/// Asks, and puts the answers together.
pub async fn answer(
    caller: &Caller,
    (endpoint, info): (&EndpointName, &EndpointInfo),
    (inputs, outputs): (Vec<(String, Tensor)>, Vec<String>),
    mut wishes: Wishes,
    marks: Marks<'_>,
) -> Result<Response, Refusal> {
    let left = |deadline: Duration| deadline.saturating_sub(marks.arrived.elapsed()).max(Duration::from_micros(1));
    wishes.deadline = wishes.deadline.map(left);
    let request = infer::request(endpoint.clone(), info, inputs, outputs, wishes)?;
    let whole = request.whole;
    let answers = caller.client.predict(request).await?;
    if let Some(first) = answers.first() {
        // Who it is and how it ended; never what was asked.
        let (query, outcome, us) = (first.id, first.outcome.word(), marks.arrived.elapsed().as_micros() as u64);
        let (rows, request, traceparent) = (answers.len(), marks.id, marks.traceparent);
        tracing::debug!(%endpoint, %query, rows, request, traceparent, outcome, us, "answered");
    }
    infer::response(answers, whole)
}

/// What makes and runs every model.
pub const PLATFORM: &str = "weir";

/// A tensor of an endpoint.
#[derive(Debug, PartialEq)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Of its elements.
    pub dtype: DType,
    /// Its dimensions; -1 of one that is open.
    pub dims: Vec<i64>,
}

impl Described {
    fn of(specs: &[TensorSpec]) -> Vec<Described> {
        let of = |spec: &TensorSpec| Described { name: spec.name.clone(), dtype: spec.dtype, dims: infer::dims(spec) };
        specs.iter().map(of).collect()
    }

    /// Its element type as configurations name it.
    pub fn data_type(&self) -> DataType {
        match self.dtype {
            DType::Bool => DataType::TypeBool,
            DType::U8 => DataType::TypeUint8,
            DType::U16 => DataType::TypeUint16,
            DType::U32 => DataType::TypeUint32,
            DType::U64 => DataType::TypeUint64,
            DType::I8 => DataType::TypeInt8,
            DType::I16 => DataType::TypeInt16,
            DType::I32 => DataType::TypeInt32,
            DType::I64 => DataType::TypeInt64,
            DType::F16 => DataType::TypeFp16,
            DType::Bf16 => DataType::TypeBf16,
            DType::F32 => DataType::TypeFp32,
            DType::F64 => DataType::TypeFp64,
            DType::String => DataType::TypeString,
        }
    }
}

/// What an endpoint takes and gives.
#[derive(Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Metadata {
    pub name: String,
    pub inputs: Vec<Described>,
    pub outputs: Vec<Described>,
}

/// The same as Triton's clients read it.
#[derive(Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Config {
    pub name: String,
    /// 0 where the first dimension is not rows; then nothing is put together.
    pub max_batch_size: i32,
    /// Without the dimension of the rows.
    pub inputs: Vec<Described>,
    pub outputs: Vec<Described>,
}

/// What was counted of an endpoint, in the protocol's words.
#[derive(Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Statistics {
    pub name: String,
    /// In milliseconds since 1970; 0 where there was none.
    pub last_inference: u64,
    pub inferences: u64,
    pub executions: u64,
    pub success: Calls,
    pub fail: Calls,
    pub queue: Calls,
    /// Is part of `compute_infer`, and so takes no time; likewise `compute_output`.
    pub compute_input: Calls,
    pub compute_infer: Calls,
    pub compute_output: Calls,
    /// There is no cache; likewise `cache_miss`.
    pub cache_hit: Calls,
    pub cache_miss: Calls,
}

impl Metadata {
    fn of(endpoint: &EndpointName, info: &EndpointInfo) -> Metadata {
        let (inputs, outputs) = (Described::of(&info.inputs), Described::of(&info.outputs));
        Metadata { name: endpoint.to_string(), inputs, outputs }
    }
}

impl Config {
    fn of(endpoint: &EndpointName, info: &EndpointInfo) -> Config {
        let rows = infer::has_rows(info);
        let Metadata { name, mut inputs, mut outputs } = Metadata::of(endpoint, info);
        if rows {
            for tensor in inputs.iter_mut().chain(&mut outputs) {
                tensor.dims.remove(0);
            }
        }
        Config { name, max_batch_size: if rows { infer::ROWS_TOLD } else { 0 }, inputs, outputs }
    }

    /// Whether rows of several callers run together.
    pub fn batches(&self) -> bool {
        self.max_batch_size > 0
    }
}

impl Statistics {
    fn of(endpoint: &EndpointName, Counted { sum: told, last_inference_ms }: Counted) -> Statistics {
        let no_time = Calls { time: Duration::ZERO, ..told.compute };
        Statistics {
            name: endpoint.to_string(),
            last_inference: last_inference_ms,
            inferences: told.rows,
            executions: told.batches.round() as u64,
            success: told.success,
            fail: told.fail,
            queue: told.queue,
            compute_input: no_time,
            compute_infer: told.compute,
            compute_output: no_time,
            cache_hit: Calls::default(),
            cache_miss: Calls::default(),
        }
    }
}

/// What an endpoint takes and gives.
pub async fn metadata(caller: &Arc<Caller>, endpoint: &EndpointName) -> Result<Metadata, Refusal> {
    Ok(Metadata::of(endpoint, &*caller.info(endpoint).await?))
}

/// The same as Triton's clients read it.
pub async fn config(caller: &Arc<Caller>, endpoint: &EndpointName) -> Result<Config, Refusal> {
    Ok(Config::of(endpoint, &*caller.info(endpoint).await?))
}

/// What all nodes have counted of an endpoint that this caller may ask: else a stranger's names were kept.
pub async fn statistics(caller: &Arc<Caller>, book: &Book, endpoint: &EndpointName) -> Result<Statistics, Refusal> {
    caller.info(endpoint).await?;
    let told = caller.client.statistics(endpoint.clone()).await?;
    Ok(Statistics::of(endpoint, book.read(SystemTime::now(), endpoint, told)))
}

/// The same of all of them; one that this caller may not ask is not told of.
pub async fn all_statistics(caller: &Arc<Caller>, book: &Book) -> Result<Vec<Statistics>, Refusal> {
    let of = async |endpoint: EndpointName| {
        caller.info(&endpoint).await.ok()?;
        Some(statistics(caller, book, &endpoint).await)
    };
    join_all(caller.client.endpoints().await?.into_iter().map(of)).await.into_iter().flatten().collect()
}

/// An endpoint, its state in the protocol's words, and why it is so.
pub type Listed = (EndpointName, &'static str, String);

/// Every endpoint that a caller may ask; those alone that are ready where only they are wanted.
pub async fn repository(caller: &Arc<Caller>, only_ready: bool) -> Result<Vec<Listed>, Refusal> {
    let of = async |endpoint: EndpointName| match caller.ask(&endpoint).await {
        Ok(info) => {
            let state = if info.unready.is_none() { "READY" } else { "UNAVAILABLE" };
            Some((endpoint, state, info.unready.clone().unwrap_or_default()))
        }
        Err(refusal) if refusal.kind == Kind::NotFound => None,
        Err(refusal) => Some((endpoint, "UNKNOWN", refusal.message)),
    };
    let all = join_all(caller.client.endpoints().await?.into_iter().map(of)).await;
    Ok(all.into_iter().flatten().filter(|(_, state, _)| *state == "READY" || !only_ready).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: DType, shape: &[Option<u64>]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
    }

    #[test]
    fn a_configuration_has_no_dimension_of_rows_where_there_are_rows() {
        let endpoint = EndpointName::parse("e").unwrap();
        let info = |output: &[Option<u64>]| EndpointInfo {
            inputs: vec![spec("x", DType::String, &[None, Some(3)])],
            outputs: vec![spec("y", DType::F32, output)],
            label_output: None,
            deadline: Duration::from_secs(1),
            unready: None,
        };
        let rows = Config::of(&endpoint, &info(&[None, None]));
        assert_eq!((rows.inputs[0].dims.as_slice(), rows.outputs[0].dims.as_slice()), (&[3][..], &[-1][..]));
        assert_eq!((rows.max_batch_size, rows.batches()), (infer::ROWS_TOLD, true));
        assert_eq!(rows.inputs[0].data_type().as_str_name(), "TYPE_STRING");
        let whole = Config::of(&endpoint, &info(&[Some(2)]));
        assert_eq!((whole.inputs[0].dims.as_slice(), whole.outputs[0].dims.as_slice()), (&[-1, 3][..], &[2][..]));
        assert_eq!((whole.max_batch_size, whole.batches()), (0, false));
        let told = Metadata::of(&endpoint, &info(&[None, None]));
        assert_eq!(told.inputs[0].dims, [-1, 3]);
    }
}
