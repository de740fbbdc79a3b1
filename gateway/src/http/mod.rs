//! The open inference protocol over HTTP/1.1: routes, headers and status codes.

mod body;
mod wire;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use weir_client::EndpointInfo;
use weir_core::history::Calls;
use weir_core::ids::EndpointName;
use weir_schema::oip::{self, HEADER_LENGTH};

use self::body::{Encoding, inflate};
use self::wire::{Binary, Infer};
use crate::callers::{Caller, Callers, header};
use crate::infer::{self, VERSION};
use crate::models::{self, Described, EXTENSIONS, Marks, PLATFORM, Statistics};
use crate::refusal::{Kind, RETRY_AFTER_MS, Refusal};
use crate::serve::{Peer, Shared};

pub use self::body::{BODY_WITHIN, Budget, Held};

/// A body from which on it is read off the thread that serves connections: some milliseconds.
const LARGE: usize = 512 << 10;
/// A body below this is sent as it is, whatever the caller takes.
const WORTH_DEFLATING: usize = 256;

/// What handlers of one thread have.
#[derive(Clone)]
struct Http {
    callers: Callers,
    shared: Arc<Shared>,
}

/// The routes, asking through these callers.
pub fn routes(callers: Callers, shared: Arc<Shared>) -> Router {
    let http = Http { callers, shared };
    let model = Router::new()
        .route("/", get(metadata))
        .route("/ready", get(model_ready))
        .route("/config", get(config))
        .route("/stats", get(statistics))
        .route("/infer", post(infer));
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", get(all_statistics))
        .nest("/v2/models/{model}", model.clone())
        .nest("/v2/models/{model}/versions/{version}", model)
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(not_here))
        .route("/v2/repository/models/{model}/unload", post(not_here))
        .route("/openapi.json", get(openapi))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&http.shared), count))
        .with_state(http)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = json!({"error": self.message});
        if let Some(query) = &self.query {
            body["weir_query_id"] = json!(query.id);
            if let Some(trace) = &query.trace {
                body["weir_trace"] = json!(trace);
            }
        }
        let mut response = reply(self.status(), body);
        if self.kind == Kind::Shed {
            let headers = response.headers_mut();
            // Whole seconds are all that this header knows.
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            headers.insert("retry-after-ms", HeaderValue::from(RETRY_AFTER_MS));
        }
        if self.kind == Kind::NoToken {
            response.headers_mut().insert("www-authenticate", HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn reply(status: StatusCode, body: Value) -> Response {
    let mut response = (status, body.to_string()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// When the head of a request was read, in its extensions.
#[derive(Clone, Copy)]
struct Arrived(Instant);

/// Counts what was asked and how it ended, for metrics.
async fn count(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Arrived(Instant::now()));
    let _in_flight = shared.in_flight();
    let counting = shared.counts.begin("http");
    let response = next.run(request).await;
    counting.ended(response.status().as_str());
    response
}

async fn nothing(request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(120).collect();
    Refusal::new(Kind::NotFound, format!("there is nothing at {path}; GET /openapi.json says what there is"))
}

async fn wrong_method(method: Method) -> Response {
    let text = format!("{method} does not go here; GET /openapi.json says what does");
    reply(StatusCode::METHOD_NOT_ALLOWED, json!({"error": text}))
}

async fn not_here() -> Refusal {
    let why = "models come and go with `weir apply` and `weir delete`, not through this door";
    Refusal::new(Kind::Unsupported, why)
}

async fn openapi() -> Response {
    let mut response = include_str!("openapi.json").into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn server() -> Response {
    reply(StatusCode::OK, json!({"name": "weir", "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS}))
}

async fn live() -> Response {
    reply(StatusCode::OK, json!({"live": true}))
}

async fn ready(State(http): State<Http>) -> Response {
    match http.shared.unready(&http.callers).await {
        None => reply(StatusCode::OK, json!({"ready": true})),
        Some(why) => reply(StatusCode::SERVICE_UNAVAILABLE, json!({"ready": false, "error": why})),
    }
}

/// Whose request it is.
struct By(Arc<Caller>);

impl FromRequestParts<Http> for By {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, http: &Http) -> Result<By, Refusal> {
        let Peer(peer) = *parts.extensions.get::<Peer>().expect("every connection has a peer");
        http.callers.of(peer.ip(), &parts.headers).await.map(By)
    }
}

/// Which endpoint a request names.
struct Model(EndpointName);

impl FromRequestParts<Http> for Model {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, http: &Http) -> Result<Model, Refusal> {
        let path = Path::<Vec<(String, String)>>::from_request_parts(parts, http).await;
        let Path(path) = path.map_err(|bad| Refusal::bad(bad.to_string()))?;
        let part = |name: &str| path.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
        infer::endpoint(part("model"), part("version")).map(Model)
    }
}

async fn metadata(Model(endpoint): Model, By(caller): By) -> Result<Response, Refusal> {
    let told = models::metadata(&caller, &endpoint).await?;
    let tensor =
        |tensor: &Described| json!({"name": tensor.name, "datatype": oip::word(tensor.dtype), "shape": tensor.dims});
    let list = |tensors: &[Described]| tensors.iter().map(tensor).collect::<Vec<_>>();
    Ok(reply(
        StatusCode::OK,
        json!({"name": told.name, "versions": [VERSION], "platform": PLATFORM,
            "inputs": list(&told.inputs), "outputs": list(&told.outputs)}),
    ))
}

async fn model_ready(Model(endpoint): Model, By(caller): By) -> Result<Response, Refusal> {
    let info = caller.ask(&endpoint).await?;
    match &info.unready {
        None => Ok(reply(StatusCode::OK, json!({"name": endpoint.as_str(), "ready": true}))),
        Some(why) => Err(Refusal::new(Kind::Unavailable, format!("model {endpoint} is not ready: {why}"))),
    }
}

async fn config(Model(endpoint): Model, By(caller): By) -> Result<Response, Refusal> {
    let told = models::config(&caller, &endpoint).await?;
    let tensor = |tensor: &Described| json!({"name": tensor.name, "data_type": tensor.data_type().as_str_name(), "dims": tensor.dims});
    let list = |tensors: &[Described]| tensors.iter().map(tensor).collect::<Vec<_>>();
    let mut config = json!({
        "name": told.name, "platform": PLATFORM, "backend": PLATFORM,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": told.max_batch_size,
        "input": list(&told.inputs), "output": list(&told.outputs),
        "model_transaction_policy": {"decoupled": false},
    });
    if told.batches() {
        config["dynamic_batching"] = json!({});
    }
    Ok(reply(StatusCode::OK, config))
}

async fn statistics(State(http): State<Http>, Model(endpoint): Model, By(caller): By) -> Result<Response, Refusal> {
    let told = models::statistics(&caller, &http.shared.book, &endpoint).await?;
    Ok(reply(StatusCode::OK, json!({"model_stats": [statistics_of(&told)]})))
}

async fn all_statistics(State(http): State<Http>, By(caller): By) -> Result<Response, Refusal> {
    let list = models::all_statistics(&caller, &http.shared.book).await?;
    let list: Vec<Value> = list.iter().map(statistics_of).collect();
    Ok(reply(StatusCode::OK, json!({"model_stats": list})))
}

fn statistics_of(told: &Statistics) -> Value {
    let calls = |calls: &Calls| json!({"count": calls.count, "ns": calls.time.as_nanos() as u64});
    json!({
        "name": told.name, "version": VERSION,
        "last_inference": told.last_inference,
        "inference_count": told.inferences, "execution_count": told.executions,
        "inference_stats": {
            "success": calls(&told.success), "fail": calls(&told.fail), "queue": calls(&told.queue),
            "compute_input": calls(&told.compute_input), "compute_infer": calls(&told.compute_infer),
            "compute_output": calls(&told.compute_output),
            "cache_hit": calls(&told.cache_hit), "cache_miss": calls(&told.cache_miss),
        },
        "batch_stats": [],
    })
}

async fn index(State(http): State<Http>, By(caller): By, request: Request) -> Result<Response, Refusal> {
    let (body, _held) = body::read(request.into_body(), &http.shared.budget).await?;
    let only_ready = match body.iter().all(u8::is_ascii_whitespace) {
        true => false,
        false => {
            let told: Value = serde_json::from_slice(&body)
                .map_err(|error| Refusal::bad(format!("the request is no JSON: {error}")))?;
            told["ready"].as_bool().unwrap_or(false)
        }
    };
    let entry = |(endpoint, state, reason): models::Listed| {
        let mut entry = json!({"name": endpoint.as_str(), "version": VERSION, "state": state});
        if !reason.is_empty() {
            entry["reason"] = json!(reason);
        }
        entry
    };
    let list = models::repository(&caller, only_ready).await?;
    Ok(reply(StatusCode::OK, list.into_iter().map(entry).collect()))
}

async fn infer(
    State(http): State<Http>,
    Model(endpoint): Model,
    By(caller): By,
    request: Request,
) -> Result<Response, Refusal> {
    let info = caller.info(&endpoint).await?;
    let (head, body) = request.into_parts();
    let Arrived(arrived) = *head.extensions.get::<Arrived>().expect("every request has arrived");
    let (body, mut held) = body::read(body, &http.shared.budget).await?;
    let mut infer = understand(&http, &head.headers, body, &mut held, &info).await?;
    let said = |name: &'static str| header(&head.headers, name);
    infer.wishes.take_headers(said("weir-deadline-ms"), said("weir-class"))?;
    let binary = Binary::of(&infer, &info)?;
    let outputs = infer.outputs.into_iter().map(|(name, _)| name).collect();
    let traceparent = header(&head.headers, "traceparent");
    let marks = Marks { id: infer.id.as_deref(), traceparent, arrived };
    let response = models::answer(&caller, (&endpoint, &info), (infer.inputs, outputs), infer.wishes, marks).await?;
    drop(held);
    let encoding = header(&head.headers, ACCEPT_ENCODING.as_str()).and_then(Encoding::wanted);
    respond(&http.shared, endpoint, infer.id, response, binary, encoding).await
}

/// A large body is read elsewhere than on the thread that serves connections.
async fn understand(
    http: &Http,
    headers: &HeaderMap,
    body: Bytes,
    held: &mut Held,
    info: &Arc<EndpointInfo>,
) -> Result<Infer, Refusal> {
    let length = header(headers, HEADER_LENGTH).map(str::to_owned);
    let encoding = header(headers, CONTENT_ENCODING.as_str()).map(str::to_owned);
    let (budget, info) = (http.shared.budget.clone(), Arc::clone(info));
    let large = body.len() >= LARGE || encoding.is_some();
    let mut taken = std::mem::take(held);
    let read = move || {
        let body = inflate(encoding.as_deref(), body, &budget, &mut taken)?;
        let json = wire::json_length(length.as_deref(), body.len())?;
        let infer = match length {
            Some(_) if json == 0 => wire::read_raw(&body, &info)?,
            _ => wire::read(&body, json)?,
        };
        Ok::<_, Refusal>((infer, taken))
    };
    let (infer, taken) = if large { elsewhere(read).await } else { read() }?;
    *held = taken;
    Ok(infer)
}

/// Writes a response; a large one is written elsewhere than on the thread that serves connections, and what waits to be sent is bounded.
async fn respond(
    shared: &Shared,
    endpoint: EndpointName,
    id: Option<String>,
    answered: infer::Response,
    binary: Binary,
    encoding: Option<Encoding>,
) -> Result<Response, Refusal> {
    let large = answered.outputs.iter().map(|(_, tensor)| tensor.data.len()).sum::<usize>() >= LARGE;
    let write = move || {
        let (body, json) = wire::write(endpoint.as_str(), id.as_deref(), &answered, &binary)?;
        let encoding = encoding.filter(|_| body.len() >= WORTH_DEFLATING);
        let body = match encoding {
            Some(encoding) => encoding.encode(&body),
            None => body,
        };
        Ok::<_, Refusal>((body, json, encoding))
    };
    let (body, json, encoding) = if large { elsewhere(write).await } else { write() }?;
    let mut held = Held::default();
    // It ran: nobody is to think that it may be asked again for nothing.
    let full = |_| Refusal::new(Kind::Failed, "it was answered, and too many bytes of answers wait to be sent here");
    shared.responses.take(&mut held, body.len()).map_err(full)?;
    let mut response = Response::new(Body::new(body::Sent::new(body, held)));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(if json.is_some() { "application/octet-stream" } else { "application/json" }),
    );
    if let Some(length) = json {
        headers.insert(HeaderName::from_static(HEADER_LENGTH), HeaderValue::from(length));
    }
    if let Some(encoding) = encoding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.word()));
    }
    Ok(response)
}

/// Work that takes some milliseconds: other connections of this thread go on.
async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Refusal::new(Kind::Failed, error.to_string()))?
}
