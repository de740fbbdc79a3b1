//! The body of an inference request and of its response: JSON, and after it the tensors that are sent as they are.

use std::borrow::Cow;

use serde::Deserialize;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use weir_client::EndpointInfo;
use weir_core::tensor::{DType, Tensor, check};
use weir_schema::oip::{self, json};

use crate::infer::{self, Parameter, Response, Wishes};
use crate::refusal::Refusal;

/// A request, understood.
#[derive(Debug, Default)]
pub struct Infer {
    /// The caller's word for it, given back.
    pub id: Option<String>,
    /// By name.
    pub inputs: Vec<(String, Tensor)>,
    /// Those that are wanted, and whether as binary data where that is said; all where there are none.
    pub outputs: Vec<(String, Option<bool>)>,
    /// How it wants to be treated.
    pub wishes: Wishes,
}

#[derive(Deserialize)]
struct RequestJson<'a> {
    id: Option<String>,
    parameters: Option<Map<String, Value>>,
    #[serde(borrow)]
    inputs: Vec<InputJson<'a>>,
    outputs: Option<Vec<OutputJson>>,
}

#[derive(Deserialize)]
struct InputJson<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    shape: Vec<i64>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    parameters: Option<Map<String, Value>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OutputJson {
    name: String,
    parameters: Option<Map<String, Value>>,
}

/// Length of the JSON at the beginning of a body of so many bytes: what the header says, or all of it.
pub fn json_length(header: Option<&str>, body: usize) -> Result<usize, Refusal> {
    let Some(text) = header else { return Ok(body) };
    let length: Option<usize> = text.trim().parse().ok().filter(|_| !text.trim().starts_with('+'));
    length.filter(|length| *length <= body).ok_or_else(|| {
        let text: String = text.chars().take(40).collect();
        Refusal::bad(format!(
            "Inference-Header-Content-Length is {text:?}, and must be a number of bytes of the body, which has {body}"
        ))
    })
}

/// Reads a request whose JSON takes the first `json` bytes of its body.
pub fn read(body: &[u8], json: usize) -> Result<Infer, Refusal> {
    let (head, mut tail) = body.split_at(json);
    let told: RequestJson<'_> = serde_json::from_slice(head)
        .map_err(|error| Refusal::bad(format!("the request is not of the open inference protocol: {error}")))?;
    let mut infer = Infer { id: told.id.filter(|id| !id.is_empty()), ..Infer::default() };
    for (name, value) in told.parameters.iter().flatten() {
        infer.wishes.take(name, &parameter(name, value)?)?;
    }
    for input in &told.inputs {
        let tensor = read_input(input, &mut tail)?;
        infer.inputs.push((input.name.clone().into_owned(), tensor));
    }
    if !tail.is_empty() {
        return Err(Refusal::bad(format!("{} bytes follow the last input; check the binary_data_size", tail.len())));
    }
    for output in told.outputs.into_iter().flatten() {
        let mut binary = None;
        for (name, value) in output.parameters.iter().flatten() {
            infer::check_tensor_parameter(&output.name, name)?;
            if name == "binary_data" {
                let bad = || Refusal::bad(format!("output {}: binary_data must be true or false", output.name));
                binary = Some(value.as_bool().ok_or_else(bad)?);
            }
        }
        infer.outputs.push((output.name, binary));
    }
    Ok(infer)
}

fn parameter(name: &str, value: &Value) -> Result<Parameter, Refusal> {
    match value {
        Value::Bool(value) => Some(Parameter::Bool(*value)),
        Value::String(value) => Some(Parameter::Text(value.clone())),
        Value::Number(value) => value.as_i64().map(Parameter::Int).or(value.as_f64().map(Parameter::Float)),
        _ => None,
    }
    .ok_or_else(|| Refusal::bad(format!("parameter {name} must be a text, a number, true or false")))
}

fn read_input(input: &InputJson<'_>, tail: &mut &[u8]) -> Result<Tensor, Refusal> {
    let name = &input.name;
    let bad = |why: String| Refusal::bad(format!("input {name}: {why}"));
    let (dtype, shape) = infer::kind(name, &input.datatype, &input.shape)?;
    let mut size = None;
    for (name, value) in input.parameters.iter().flatten() {
        infer::check_tensor_parameter(&input.name, name)?;
        if name == "binary_data_size" {
            size = Some(value.as_u64().ok_or_else(|| bad("binary_data_size must be a number of bytes".into()))?);
        }
    }
    let data = match (size, input.data) {
        (Some(_), Some(_)) => return Err(bad("it has both data and binary_data_size".into())),
        (None, None) => return Err(bad("it has neither data nor binary_data_size".into())),
        (Some(size), None) => {
            let taken = usize::try_from(size).ok().and_then(|size| tail.split_at_checked(size));
            let left = tail.len();
            let (data, rest) = taken.ok_or_else(|| {
                bad(format!("binary_data_size is {size}, and {left} bytes are left of the body behind its JSON"))
            })?;
            *tail = rest;
            data.to_vec()
        }
        (None, Some(data)) => {
            // A shape that no data can have is not worth reading any for.
            let mut from = serde_json::Deserializer::from_str(data.get());
            json::read(&mut from, dtype, &shape).map_err(|error| bad(error.to_string()))?
        }
    };
    Tensor::new(dtype, shape, data).map_err(|error| bad(error.to_string()))
}

/// A request without JSON: the bytes of the only input, one row of it.
pub fn read_raw(body: &[u8], info: &EndpointInfo) -> Result<Infer, Refusal> {
    let [spec] = &info.inputs[..] else {
        return Err(Refusal::bad("a request without JSON needs a model with one input, and this one has several"));
    };
    let mut shape: Vec<Option<u64>> = spec.shape.clone();
    if infer::has_rows(info) {
        shape[0] = Some(1);
    }
    let data = match spec.dtype {
        // One element, as it is.
        DType::String => [&(body.len() as u32).to_le_bytes(), body].concat(),
        _ => body.to_vec(),
    };
    let fixed: u64 = shape.iter().flatten().product();
    let open = shape.iter().filter(|dim| dim.is_none()).count();
    let elements = match spec.dtype.size() {
        Some(size) => (body.len() / size) as u64,
        None => 1,
    };
    if open > 1 {
        return Err(Refusal::bad("a request without JSON needs an input with one open dimension at most"));
    }
    let filled = elements.checked_div(fixed).unwrap_or(0);
    let shape: Vec<u64> = shape.into_iter().map(|dim| dim.unwrap_or(filled)).collect();
    check(spec.dtype, &shape, &data)
        .map_err(|error| Refusal::bad(format!("the body is not input {}: {error}", spec.name)))?;
    let wishes = Wishes { binary_output: true, ..Wishes::default() };
    let tensor = Tensor { dtype: spec.dtype, shape, data };
    Ok(Infer { id: None, inputs: vec![(spec.name.clone(), tensor)], outputs: Vec::new(), wishes })
}

/// Which outputs come back as binary data.
#[derive(Clone, Debug, Default)]
pub struct Binary {
    asked: Vec<(String, Option<bool>)>,
    otherwise: bool,
}

impl Binary {
    /// As the request wants it. One that has no form in JSON is refused before anything runs.
    pub fn of(infer: &Infer, info: &EndpointInfo) -> Result<Binary, Refusal> {
        let binary = Binary { asked: infer.outputs.clone(), otherwise: infer.wishes.binary_output };
        for spec in &info.outputs {
            let wanted = binary.asked.is_empty() || binary.asked.iter().any(|(name, _)| *name == spec.name);
            if wanted && matches!(spec.dtype, DType::F16 | DType::Bf16) && !binary.is(&spec.name) {
                let (name, word) = (&spec.name, oip::word(spec.dtype));
                return Err(Refusal::bad(format!(
                    "output {name} is {word}, which has no form in JSON: ask for it with binary_data"
                )));
            }
        }
        Ok(binary)
    }

    fn is(&self, name: &str) -> bool {
        let asked = self.asked.iter().find(|(asked, _)| asked == name);
        asked.and_then(|(_, binary)| *binary).unwrap_or(self.otherwise)
    }
}

/// The body of a response, and the length of its JSON where tensors follow.
pub fn write(
    model: &str,
    id: Option<&str>,
    response: &Response,
    binary: &Binary,
) -> Result<(Vec<u8>, Option<usize>), Refusal> {
    let mut body = Vec::with_capacity(512);
    let head = Head { model, id, response, binary };
    serde_json::to_writer(&mut body, &head).map_err(|error| Refusal::bad(format!("an output: {error}")))?;
    let length = body.len();
    let mut tensors = response.outputs.iter().filter(|(name, _)| binary.is(name)).peekable();
    let follow = tensors.peek().is_some();
    tensors.for_each(|(_, tensor)| body.extend_from_slice(&tensor.data));
    Ok((body, follow.then_some(length)))
}

struct Head<'a> {
    model: &'a str,
    id: Option<&'a str>,
    response: &'a Response,
    binary: &'a Binary,
}

impl Serialize for Head<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("model_name", self.model)?;
        map.serialize_entry("model_version", infer::VERSION)?;
        if let Some(id) = self.id {
            map.serialize_entry("id", id)?;
        }
        map.serialize_entry("parameters", &Parameters(&self.response.parameters))?;
        map.serialize_entry("outputs", &Outputs(self))?;
        map.end()
    }
}

struct Parameters<'a>(&'a [(&'static str, Parameter)]);

impl Serialize for Parameters<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            match value {
                Parameter::Bool(value) => map.serialize_entry(name, value)?,
                Parameter::Int(value) => map.serialize_entry(name, value)?,
                Parameter::Float(value) => map.serialize_entry(name, value)?,
                Parameter::Text(value) => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    }
}

struct Outputs<'a>(&'a Head<'a>);

impl Serialize for Outputs<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.0.response.outputs.len()))?;
        for (name, tensor) in &self.0.response.outputs {
            list.serialize_element(&Output { name, tensor, binary: self.0.binary.is(name) })?;
        }
        list.end()
    }
}

struct Output<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    binary: bool,
}

#[derive(serde::Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

impl Serialize for Output<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Output { name, tensor, binary } = self;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("name", name)?;
        map.serialize_entry("datatype", oip::word(tensor.dtype))?;
        map.serialize_entry("shape", &tensor.shape)?;
        match binary {
            true => map.serialize_entry("parameters", &BinarySize { binary_data_size: tensor.data.len() })?,
            false => map.serialize_entry("data", &json::Flat { dtype: tensor.dtype, data: &tensor.data })?,
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
