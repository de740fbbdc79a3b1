//! HTTP/1.1 of the open inference protocol, with its binary extension where the server has it.
//!
//! A connection carries one call at a time. So that an open loop stays open, connections are made as they are needed: what
//! waits for a free one would be the generator's doing, not the server's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use weir_core::outcome::{Outcome, Rejection};
use weir_core::tensor::{DType, Tensor};
use weir_schema::oip::HEADER_LENGTH;
use weir_schema::oip::json::{Flat, read};

use super::oip::{self, ANSWER_MAX, CONNECT_WITHIN, OPEN_MAX, Places};
use super::{Ask, Connect, Described, Reply, Stream, Target, TargetError};
use crate::run::PATIENCE;

/// A server.
pub struct OipHttp {
    /// `host:port`.
    pub authority: String,
    /// What it would be asked of itself; without, it is asked.
    pub metadata: Option<Metadata>,
}

/// What a server that can only infer would tell of itself and of its models, from a file.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    binary: bool,
    models: BTreeMap<String, Described>,
}

/// A file that tells nothing of models.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path} is no metadata ({cause}); write {{\"extensions\": [...], \"models\": [{{\"name\": ..., \
     \"inputs\": [...], \"outputs\": [...]}}]}}"
)]
pub struct BadMetadata {
    path: PathBuf,
    cause: String,
}

impl Metadata {
    /// Reads a file: `extensions` as `/v2` answers them, and in `models` for each what `/v2/models/NAME` does.
    pub fn read(path: &Path) -> Result<Metadata, BadMetadata> {
        let bad = |cause: String| BadMetadata { path: path.to_owned(), cause };
        let text = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
        let told: Value = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        let listed = told["models"].as_array().ok_or_else(|| bad("it lists no models".into()))?;
        let mut models = BTreeMap::new();
        for model in listed {
            let name = model["name"].as_str().ok_or_else(|| bad("a model has no name".into()))?;
            let described = read_metadata(model).map_err(|why| bad(format!("model {name}: {why}")))?;
            models.insert(name.to_owned(), described);
        }
        Ok(Metadata { path: path.to_owned(), binary: has_binary(&told), models })
    }
}

impl Connect for OipHttp {
    fn name(&self) -> String {
        format!("oip-http://{}", self.authority)
    }

    fn describe<'a>(&'a self, endpoint: &'a str) -> LocalBoxFuture<'a, Result<Described, TargetError>> {
        Box::pin(async move {
            if let Some(told) = &self.metadata {
                let described = told.models.get(endpoint).cloned();
                return described.ok_or_else(|| {
                    TargetError::NotFound(format!("{} has no model {endpoint:?}", told.path.display()))
                });
            }
            let pool = Pool::open(&self.authority, 1).await?;
            let asked = pool.get(&model_path(endpoint)).await;
            let (status, body) = asked.map_err(|why| TargetError::Unreachable(format!("{}: {why}", self.name())))?;
            let of_protocol = |why: &str| {
                TargetError::Unreachable(format!("{} does not speak the open inference protocol: {why}", self.name()))
            };
            if status != StatusCode::OK {
                // Triton answers 400 for a model that it does not know.
                return Err(match status {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        TargetError::Forbidden(error_text(status, &body))
                    }
                    StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => TargetError::NotFound(format!(
                        "{} has no model {endpoint:?}: {}",
                        self.name(),
                        error_text(status, &body)
                    )),
                    _ => of_protocol(&error_text(status, &body)),
                });
            }
            let told = serde_json::from_slice(&body).map_err(|e| of_protocol(&e.to_string()))?;
            read_metadata(&told).map_err(|why| of_protocol(&why))
        })
    }

    fn connect(
        &self,
        streams: Arc<[Stream]>,
        connections: usize,
    ) -> LocalBoxFuture<'_, Result<Rc<dyn Target>, TargetError>> {
        Box::pin(async move {
            let pool = Pool::open(&self.authority, connections).await?;
            let binary = match &self.metadata {
                Some(told) => told.binary,
                None => {
                    let server = pool.get("/v2").await.ok().filter(|(status, _)| *status == StatusCode::OK);
                    has_binary(&server.and_then(|(_, body)| serde_json::from_slice(&body).ok()).unwrap_or_default())
                }
            };
            Ok(Rc::new(Server { pool: Rc::new(pool), streams, binary }) as Rc<dyn Target>)
        })
    }
}

fn model_path(model: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encoded: String =
        model.bytes().map(|b| if safe(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect();
    format!("/v2/models/{encoded}")
}

/// Whether a server says that it takes and gives tensors as bytes.
fn has_binary(told: &Value) -> bool {
    told["extensions"].as_array().is_some_and(|all| all.iter().any(|e| e == "binary_tensor_data"))
}

fn read_metadata(told: &Value) -> Result<Described, String> {
    let empty = Vec::new();
    let list = |name: &str| told[name].as_array().unwrap_or(&empty).clone();
    let mut inputs = Vec::new();
    for input in list("inputs") {
        let name = input["name"].as_str().ok_or("an input has no name")?;
        let shape: Option<Vec<i64>> =
            input["shape"].as_array().and_then(|dims| dims.iter().map(Value::as_i64).collect());
        let shape = shape.ok_or_else(|| format!("its input {name} has no shape"))?;
        inputs.push(oip::spec(name, input["datatype"].as_str().unwrap_or(""), &shape)?);
    }
    let outputs: Vec<String> = list("outputs").iter().filter_map(|o| o["name"].as_str().map(str::to_owned)).collect();
    Ok(oip::described(inputs, &outputs))
}

fn error_text(status: StatusCode, body: &[u8]) -> String {
    let told: Value = serde_json::from_slice(body).unwrap_or_default();
    let told = told["error"].as_str().or(told["detail"].as_str()).map(str::to_owned);
    let told = told.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    // Of a page or a traceback the ends: one says what it is, the other what went wrong.
    let mut lines = told.lines().map(str::trim).filter(|line| !line.is_empty());
    let short = |line: &str| line.chars().take(200).collect::<String>();
    let (first, last) = (lines.next().map_or(String::new(), short), lines.next_back().map(short));
    let last = last.map_or(String::new(), |last| format!(" … {last}"));
    format!("{} {first}{last}", status.as_u16()).trim_end().to_owned()
}

type Link = SendRequest<Full<Bytes>>;

struct Pool {
    authority: String,
    idle: RefCell<Vec<Link>>,
    places: Places,
}

/// How a call ended that has no response.
enum Broken {
    NotSent(String),
    Unknown(String),
    TooLong,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::NotSent(why) | Broken::Unknown(why) => f.write_str(why),
            Broken::TooLong => write!(f, "it answers more than {} MiB", ANSWER_MAX >> 20),
        }
    }
}

impl Pool {
    async fn open(authority: &str, connections: usize) -> Result<Pool, TargetError> {
        let pool = Pool {
            authority: authority.to_owned(),
            idle: RefCell::default(),
            places: Places::new(connections.max(OPEN_MAX)),
        };
        for _ in 0..connections.max(1) {
            let link = pool.dial().await.map_err(|why| {
                TargetError::Unreachable(format!(
                    "nothing answers at oip-http://{authority} ({why}); start the server, or name another --target"
                ))
            })?;
            pool.idle.borrow_mut().push(link);
        }
        Ok(pool)
    }

    async fn dial(&self) -> Result<Link, String> {
        let dialing = async {
            let socket = tokio::net::TcpStream::connect(&self.authority).await.map_err(|e| e.to_string())?;
            socket.set_nodelay(true).map_err(|e| e.to_string())?;
            let (link, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(|e| e.to_string())?;
            tokio::task::spawn_local(async move {
                // A call that it breaks has an error of its own.
                let _ = connection.await;
            });
            Ok(link)
        };
        tokio::time::timeout(CONNECT_WITHIN, dialing).await.map_err(|_| "no answer in 5 s".to_owned())?
    }

    /// One call: status, headers and body.
    async fn call(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, HeaderMap, Bytes), Broken> {
        loop {
            let idle = self.idle.borrow_mut().pop();
            let kept = idle.is_some();
            let mut link = match idle {
                Some(link) => link,
                None => self.dial().await.map_err(Broken::NotSent)?,
            };
            if link.is_closed() || link.ready().await.is_err() {
                if kept {
                    continue;
                }
                return Err(Broken::NotSent("it closes connections at once".into()));
            }
            let response = match link.try_send_request(request.clone()).await {
                Ok(response) => response,
                // The server closed a connection that was idle, before anything was written.
                Err(error) if error.message().is_some() && kept => continue,
                Err(error) => return Err(Broken::Unknown(format!("the connection broke ({})", error.into_error()))),
            };
            let (head, body) = response.into_parts();
            let body = match Limited::new(body, ANSWER_MAX).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(Broken::TooLong),
                Err(error) => return Err(Broken::Unknown(format!("the connection broke ({error})"))),
            };
            if !link.is_closed() {
                self.idle.borrow_mut().push(link);
            }
            return Ok((head.status, head.headers, body));
        }
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), String> {
        let request = Request::get(path).header("host", &self.authority).body(Full::default());
        let request = request.map_err(|e| e.to_string())?;
        match tokio::time::timeout(CONNECT_WITHIN, self.call(request)).await {
            Ok(Ok((status, _, body))) => Ok((status, body)),
            Ok(Err(broken)) => Err(broken.to_string()),
            Err(_) => Err("no answer in 5 s".into()),
        }
    }
}

struct Server {
    pool: Rc<Pool>,
    streams: Arc<[Stream]>,
    binary: bool,
}

impl Target for Server {
    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply> {
        let stream = &self.streams[ask.stream];
        let inputs = stream.data.take(&ask.rows);
        let binary = self.binary;
        let path = format!("{}/infer", model_path(&stream.endpoint));
        let (pool, streams) = (Rc::clone(&self.pool), Arc::clone(&self.streams));
        Box::pin(async move {
            let (_place, left) = match pool.places.take(ask.deadline).await {
                Ok(place) => place,
                Err(reply) => return reply,
            };
            let (json_length, body) = match write_request(&inputs, streams[ask.stream].compared(), left, binary) {
                Ok(body) => body,
                Err(why) => return Reply::none(Outcome::Rejected(Rejection::BadInput), why),
            };
            let mut request = Request::post(path).header("host", &pool.authority);
            request = match json_length {
                Some(length) => {
                    request.header(HEADER_LENGTH, length).header("content-type", "application/octet-stream")
                }
                None => request.header("content-type", "application/json"),
            };
            let request = request.body(Full::new(body.into())).expect("parts that were checked");
            match tokio::time::timeout(left + PATIENCE, pool.call(request)).await {
                Err(_) => Reply::none(Outcome::Unknown, "no answer in time; it may have run"),
                Ok(Err(Broken::NotSent(why))) => oip::not_sent(&pool.authority, why),
                Ok(Err(Broken::Unknown(why))) => Reply::none(Outcome::Unknown, format!("{why}; it may have run")),
                Ok(Err(long @ Broken::TooLong)) => oip::not_understood(&long.to_string()),
                Ok(Ok((StatusCode::OK, headers, body))) => {
                    let read = read_response(&headers, &body, streams[ask.stream].compared());
                    let reply = read.and_then(|(outputs, stage)| {
                        oip::answered(&streams, ask.stream, ask.rows.len(), &outputs, &stage)
                    });
                    reply.unwrap_or_else(|why| oip::not_understood(&why))
                }
                Ok(Ok((status, _, body))) => Reply::none(outcome(status), error_text(status, &body)),
            }
        })
    }
}

/// What a status other than 200 says of the query.
fn outcome(status: StatusCode) -> Outcome {
    match status.as_u16() {
        429 => Outcome::Rejected(Rejection::QueueFull),
        503 => Outcome::Rejected(Rejection::NoReplica),
        401 | 403 => Outcome::Rejected(Rejection::Forbidden),
        404 => Outcome::Rejected(Rejection::UnknownEndpoint),
        408 | 504 => Outcome::Expired,
        400..=499 => Outcome::Rejected(Rejection::BadInput),
        _ => Outcome::Failed,
    }
}

/// The body, and the length of its JSON where tensors follow.
fn write_request(
    inputs: &[(String, Tensor)],
    wanted: Option<&str>,
    deadline: Duration,
    binary: bool,
) -> Result<(Option<usize>, Vec<u8>), String> {
    let mut tail = Vec::new();
    let mut list = Vec::new();
    for (name, tensor) in inputs {
        let mut input = json!({"name": name, "shape": tensor.shape, "datatype": oip::word(tensor.dtype)});
        if binary {
            input["parameters"] = json!({"binary_data_size": tensor.data.len()});
            tail.extend_from_slice(&tensor.data);
        } else {
            let flat = Flat { dtype: tensor.dtype, data: &tensor.data };
            input["data"] = serde_json::to_value(flat).map_err(|error| format!("input {name}: {error}"))?;
        }
        list.push(input);
    }
    let mut parameters = Map::new();
    parameters.insert("timeout".into(), Value::from(deadline.as_micros() as u64));
    let mut request = json!({"inputs": list});
    match wanted {
        Some(name) if binary => request["outputs"] = json!([{"name": name, "parameters": {"binary_data": true}}]),
        Some(name) => request["outputs"] = json!([{"name": name}]),
        None if binary => drop(parameters.insert("binary_data_output".into(), Value::from(true))),
        None => {}
    }
    request["parameters"] = Value::Object(parameters);
    let mut body = request.to_string().into_bytes();
    let length = binary.then_some(body.len());
    body.extend(tail);
    Ok((length, body))
}

/// The JSON that a body begins with, and what follows it.
fn json_and_rest(body: &[u8]) -> Result<(Value, &[u8]), String> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter();
    let told = values.next().ok_or("it is empty")?.map_err(|e| format!("no JSON ({e})"))?;
    Ok((told, &body[values.byte_offset()..]))
}

/// Outputs that labels could be compared with, and the stage that answered, where it is told.
type Read = (Vec<(String, Tensor)>, String);

/// Where an output is `wanted`, the others need not be understood: some servers send them all, and half floats have no form in JSON
/// that all agree on.
fn read_response(headers: &HeaderMap, body: &[u8], wanted: Option<&str>) -> Result<Read, String> {
    let (told, mut tail) = match headers.get(HEADER_LENGTH) {
        // Frameworks that let nobody set a header (Mosec) send tensors behind their JSON all the same.
        None => json_and_rest(body)?,
        Some(length) => {
            let length: Option<usize> = length.to_str().ok().and_then(|text| text.parse().ok());
            let length = length.filter(|length| *length <= body.len()).ok_or("its JSON is longer than its body")?;
            let (json, tail) = body.split_at(length);
            (serde_json::from_slice(json).map_err(|e| format!("no JSON ({e})"))?, tail)
        }
    };
    let mut outputs = Vec::new();
    for output in told["outputs"].as_array().ok_or("it has no outputs")? {
        let name = output["name"].as_str().ok_or("an output has no name")?;
        let raw = match output["parameters"]["binary_data_size"].as_u64() {
            Some(size) => {
                let short = || format!("its output {name} is longer than its body");
                let (data, rest) =
                    usize::try_from(size).ok().and_then(|n| tail.split_at_checked(n)).ok_or_else(short)?;
                tail = rest;
                Some(data)
            }
            None => None,
        };
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let datatype = output["datatype"].as_str().and_then(oip::dtype);
        let dtype = datatype.ok_or_else(|| format!("its output {name} has no known datatype"))?;
        if wanted.is_none() && raw.is_none() && matches!(dtype, DType::F16 | DType::Bf16) {
            continue;
        }
        let shape: Option<Vec<u64>> =
            output["shape"].as_array().and_then(|dims| dims.iter().map(Value::as_u64).collect());
        let shape = shape.ok_or_else(|| format!("its output {name} has no shape"))?;
        let data = match raw {
            Some(data) => data.to_vec(),
            None => read(&output["data"], dtype, &shape).map_err(|error| format!("its output {name}: {error}"))?,
        };
        outputs.push((name.to_owned(), oip::tensor(name, dtype, shape, data)?));
    }
    // A line may end behind JSON alone.
    if !tail.trim_ascii().is_empty() {
        return Err(format!("{} bytes follow its last output", tail.len()));
    }
    Ok((outputs, told["parameters"]["weir_stage"].as_str().unwrap_or_default().to_owned()))
}

#[cfg(test)]
pub(super) mod tests;
