//! The open inference protocol over gRPC.

mod admission;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::middleware::from_fn_with_state;
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tonic::codegen::{BoxStream, CompressionEncoding};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use weir_core::history::Calls;
use weir_core::tensor::{DType, Tensor};
use weir_schema::oip::inference::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer, SERVICE_NAME,
};
use weir_schema::oip::inference::infer_parameter::ParameterChoice;
use weir_schema::oip::inference::model_infer_response::InferOutputTensor;
use weir_schema::oip::inference::model_metadata_response::TensorMetadata;
use weir_schema::oip::inference::model_version_policy::{Latest, PolicyChoice};
use weir_schema::oip::inference::repository_index_response::ModelIndex;
use weir_schema::oip::inference::*;
use weir_schema::oip::{self, DESCRIPTORS};

use self::admission::{Admitted, Coming};
use crate::callers::{Caller, Callers};
use crate::http::Held;
use crate::infer::{self, Parameter, VERSION, Wishes};
use crate::models::{self, Described, EXTENSIONS, Marks, PLATFORM, Statistics};
use crate::refusal::{Kind, Refusal};
use crate::serve::Shared;

/// Largest request, in bytes: what a message of the cluster holds, and what is around it here.
const REQUEST_MAX: usize = (16 << 20) + (64 << 10);
/// Largest response: as of bodies over HTTP.
const RESPONSE_MAX: usize = 64 << 20;
/// How much earlier than a call's own time-out its queries are due, at most.
const TIMEOUT_MARGIN: Duration = Duration::from_millis(2);
/// Requests of one stream that are answered at once; their answers come in order.
const STREAM_AT_ONCE: usize = 64;
/// Calls of one connection at once: clients with one connection and many calls are the rule.
const STREAMS_MAX: u32 = 256;
/// Calls of one connection that were given up before anybody took them up: in a spike time may be up for many at once, and then again before
/// this thread looks. The connection of whoever gives up more is closed (CVE-2023-44487); by default 20 were enough for that.
const GIVEN_UP_MAX: usize = 4 * STREAMS_MAX as usize;
/// After so long without a word a peer is asked whether it is there, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Serves connections until `stop` says so, and what they carry until it ends.
pub async fn serve<S>(
    incoming: S,
    callers: Callers,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error>
where
    S: Stream<Item = std::io::Result<crate::serve::Socket>> + Send,
{
    let service = GrpcInferenceServiceServer::new(Service {
        callers: callers.clone(),
        shared: Arc::clone(&shared),
        stop: stop.clone(),
    });
    let service = service.max_decoding_message_size(REQUEST_MAX).max_encoding_message_size(RESPONSE_MAX);
    let encodings = [CompressionEncoding::Gzip, CompressionEncoding::Deflate];
    let service = encodings
        .into_iter()
        .fold(service, |service, encoding| service.accept_compressed(encoding).send_compressed(encoding));
    let (health, health_service) = tonic_health::server::health_reporter();
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let sound = "descriptors that a test has compared";
    // Many clients know the older of the two alone.
    let (reflection, older) = (described().build_v1().expect(sound), described().build_v1alpha().expect(sound));
    // Who asks is known, and how much may come, before any of it is read.
    let admission = from_fn_with_state((callers, Arc::clone(&shared)), admission::admit);
    let service = tonic::service::Routes::new(service).into_axum_router().layer(admission);
    let routes = tonic::service::Routes::from(service);
    let serving = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_pending_accept_reset_streams(Some(GIVEN_UP_MAX))
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_routes(routes)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(older)
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = stop.wait_for(|stop| *stop).await;
        });
    tokio::select! {
        ended = serving => ended,
        () = tell_health(&health, shared.found_unready()) => unreachable!("it tells as long as it is asked"),
    }
}

/// Keeps health true: of the service, and of the server as a whole, which probes ask by default.
async fn tell_health(health: &HealthReporter, mut unready: watch::Receiver<Option<String>>) {
    loop {
        let status = match *unready.borrow_and_update() {
            None => ServingStatus::Serving,
            Some(_) => ServingStatus::NotServing,
        };
        for service in ["", SERVICE_NAME] {
            health.set_service_status(service, status).await;
        }
        if unready.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Clone)]
struct Service {
    callers: Callers,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
}

/// A call, as it was let in.
#[derive(Clone)]
struct OfCall {
    caller: Arc<Caller>,
    arrived: Instant,
    /// What its messages hold on their way.
    coming: Coming,
    wishes: Wishes,
    traceparent: Option<String>,
}

impl OfCall {
    fn of<T>(request: &Request<T>) -> Result<OfCall, Status> {
        let admitted = admitted(request);
        Ok(OfCall {
            caller: Arc::clone(&admitted.caller),
            arrived: admitted.arrived,
            coming: admitted.coming.clone(),
            wishes: wishes(request.metadata()).map_err(|refusal| refusal.grpc())?,
            traceparent: traceparent(request.metadata()),
        })
    }
}

fn admitted<T>(request: &Request<T>) -> &Admitted {
    request.extensions().get::<Admitted>().expect("every call was let in")
}

fn caller<T>(request: &Request<T>) -> Arc<Caller> {
    Arc::clone(&admitted(request).caller)
}

impl Service {
    /// Answers a request, and counts how that ended.
    async fn infer(
        &self,
        asked: ModelInferRequest,
        call: &OfCall,
        arrived: Instant,
    ) -> Result<ModelInferResponse, Refusal> {
        let counting = self.shared.counts.begin("grpc");
        let answered = self.answer(asked, call, arrived).await;
        counting.ended(&match &answered {
            Ok(_) => "Ok".to_owned(),
            Err(refusal) => format!("{:?}", refusal.grpc().code()),
        });
        answered
    }

    async fn answer(
        &self,
        asked: ModelInferRequest,
        call: &OfCall,
        arrived: Instant,
    ) -> Result<ModelInferResponse, Refusal> {
        let _in_flight = self.shared.in_flight();
        let OfCall { caller, wishes: of_call, traceparent, .. } = call;
        // What it holds now takes the place of what it held on its way.
        let on_its_way = call.coming.take();
        let mut held = Held::default();
        self.shared.budget.take(&mut held, held_by(&asked))?;
        drop(on_its_way);
        let endpoint = infer::endpoint(&asked.model_name, &asked.model_version)?;
        let info = caller.info(&endpoint).await?;
        let mut wishes = of_call.clone();
        for (name, value) in &asked.parameters {
            if let Some(value) = parameter(value) {
                wishes.take(name, &value)?;
            }
        }
        let raw = !asked.raw_input_contents.is_empty();
        let inputs = read_inputs(asked.inputs, asked.raw_input_contents)?;
        for output in &asked.outputs {
            output.parameters.keys().try_for_each(|name| infer::check_tensor_parameter(&output.name, name))?;
        }
        let outputs = asked.outputs.into_iter().map(|output| output.name).collect();
        let id = Some(asked.id.as_str()).filter(|id| !id.is_empty());
        let marks = Marks { id, traceparent: traceparent.as_deref(), arrived };
        let response = models::answer(caller, (&endpoint, &info), (inputs, outputs), wishes, marks).await?;
        Ok(write_response(asked.model_name, asked.id, response, raw))
    }
}

/// What a message holds in memory, in bytes.
fn held_by(asked: &ModelInferRequest) -> usize {
    let raw: usize = asked.raw_input_contents.iter().map(|data| data.len() + size_of::<Vec<u8>>()).sum();
    let typed = asked.inputs.iter().filter_map(|input| input.contents.as_ref()).map(oip::held_by).sum::<usize>();
    raw + typed
}

/// What the metadata of a call wants.
fn wishes(metadata: &MetadataMap) -> Result<Wishes, Refusal> {
    let mut wishes = Wishes::default();
    let text = |name: &str| metadata.get(name).map(|value| value.to_str().unwrap_or("?").trim());
    if let Some(text) = text("grpc-timeout") {
        let whole = timeout(text).ok_or_else(|| Refusal::bad(format!("grpc-timeout {text:?}")))?;
        // The call's own clock ends it without a word: what is to be said has to be said before.
        wishes.within(whole - (whole / 20).min(TIMEOUT_MARGIN));
    }
    wishes.take_headers(text("weir-deadline-ms"), text("weir-class"))?;
    Ok(wishes)
}

/// What a call is part of, in the words of W3C's trace context.
fn traceparent(metadata: &MetadataMap) -> Option<String> {
    metadata.get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// A number of at most eight digits, and its unit.
fn timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn parameter(told: &InferParameter) -> Option<Parameter> {
    Some(match told.parameter_choice.as_ref()? {
        ParameterChoice::BoolParam(value) => Parameter::Bool(*value),
        ParameterChoice::Int64Param(value) => Parameter::Int(*value),
        ParameterChoice::Uint64Param(value) => Parameter::Int(i64::try_from(*value).unwrap_or(i64::MAX)),
        ParameterChoice::DoubleParam(value) => Parameter::Float(*value),
        ParameterChoice::StringParam(value) => Parameter::Text(value.clone()),
    })
}

fn to_wire(value: Parameter) -> InferParameter {
    let choice = match value {
        Parameter::Bool(value) => ParameterChoice::BoolParam(value),
        Parameter::Int(value) => ParameterChoice::Int64Param(value),
        Parameter::Float(value) => ParameterChoice::DoubleParam(value),
        Parameter::Text(value) => ParameterChoice::StringParam(value),
    };
    InferParameter { parameter_choice: Some(choice) }
}

fn read_inputs(
    inputs: Vec<model_infer_request::InferInputTensor>,
    raw: Vec<Vec<u8>>,
) -> Result<Vec<(String, Tensor)>, Refusal> {
    if !raw.is_empty() {
        if raw.len() != inputs.len() {
            let (raw, inputs) = (raw.len(), inputs.len());
            return Err(Refusal::bad(format!(
                "there are {raw} raw_input_contents for {inputs} inputs; send one for each"
            )));
        }
        if let Some(both) = inputs.iter().find(|input| input.contents.is_some()) {
            return Err(Refusal::bad(format!("input {} has contents beside raw_input_contents", both.name)));
        }
    }
    let mut raw = raw.into_iter();
    let read = |input: model_infer_request::InferInputTensor| {
        let name = input.name;
        let bad = |why: String| Refusal::bad(format!("input {name}: {why}"));
        input.parameters.keys().try_for_each(|parameter| infer::check_tensor_parameter(&name, parameter))?;
        let (dtype, shape) = infer::kind(&name, &input.datatype, &input.shape)?;
        let data = match (raw.next(), input.contents) {
            (Some(data), _) => data,
            (None, Some(_)) if matches!(dtype, DType::F16 | DType::Bf16) => {
                return Err(bad("half floats have no typed contents; send raw_input_contents".into()));
            }
            (None, Some(typed)) => oip::bytes_of(&typed, dtype).map_err(bad)?,
            (None, None) => return Err(bad("it has neither contents nor raw_input_contents".into())),
        };
        let tensor = Tensor::new(dtype, shape, data).map_err(|error| bad(error.to_string()))?;
        Ok((name, tensor))
    };
    inputs.into_iter().map(read).collect()
}

/// Raw where the request was, or where an output has no typed form.
fn write_response(model: String, id: String, response: infer::Response, raw: bool) -> ModelInferResponse {
    let typed = |tensor: &Tensor| oip::typed(tensor.dtype, &tensor.data);
    let contents: Option<Vec<InferTensorContents>> =
        (!raw).then(|| response.outputs.iter().map(|(_, tensor)| typed(tensor)).collect()).flatten();
    let mut contents = contents.map(Vec::into_iter);
    let mut told = ModelInferResponse {
        model_name: model,
        model_version: VERSION.into(),
        id,
        parameters: response.parameters.into_iter().map(|(name, value)| (name.to_owned(), to_wire(value))).collect(),
        ..ModelInferResponse::default()
    };
    for (name, tensor) in response.outputs {
        told.outputs.push(InferOutputTensor {
            name,
            datatype: oip::word(tensor.dtype).into(),
            shape: tensor.shape.iter().map(|dim| *dim as i64).collect(),
            parameters: HashMap::new(),
            contents: contents.as_mut().and_then(Iterator::next),
        });
        if contents.is_none() {
            told.raw_output_contents.push(tensor.data);
        }
    }
    told
}

type Answers = BoxStream<ModelStreamInferResponse>;

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.shared.unready(&self.callers).await.is_none() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let caller = caller(&request);
        let asked = request.into_inner();
        let told = match infer::endpoint(&asked.name, &asked.version) {
            Ok(endpoint) => caller.ask(&endpoint).await,
            Err(refusal) => Err(refusal),
        };
        match told {
            Ok(info) => Ok(Response::new(ModelReadyResponse { ready: info.unready.is_none() })),
            // No error, as clients expect.
            Err(Refusal { kind: Kind::NotFound, .. }) => Ok(Response::new(ModelReadyResponse { ready: false })),
            Err(refusal) => Err(refusal.grpc()),
        }
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "weir".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let caller = caller(&request);
        let asked = request.into_inner();
        let told = async {
            let endpoint = infer::endpoint(&asked.name, &asked.version)?;
            let told = models::metadata(&caller, &endpoint).await?;
            let tensor = |tensor: Described| TensorMetadata {
                name: tensor.name,
                datatype: oip::word(tensor.dtype).into(),
                shape: tensor.dims,
            };
            Ok::<_, Refusal>(ModelMetadataResponse {
                name: told.name,
                versions: vec![VERSION.into()],
                platform: PLATFORM.into(),
                inputs: told.inputs.into_iter().map(tensor).collect(),
                outputs: told.outputs.into_iter().map(tensor).collect(),
            })
        };
        told.await.map(Response::new).map_err(|refusal| refusal.grpc())
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let call = OfCall::of(&request)?;
        let answered = self.infer(request.into_inner(), &call, call.arrived).await;
        answered.map(Response::new).map_err(|refusal| refusal.grpc())
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let call = OfCall::of(&request)?;
        // Errors end the stream where the caller wants statuses; else they are answers, and it goes on.
        let as_status = request.metadata().get("triton_grpc_error").is_some_and(|value| value == "true");
        let (service, mut stop) = (self.clone(), self.stop.clone());
        // No more is read of it once the gateway stops: what was read is answered.
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let answers = request.into_inner().take_until(Box::pin(stopped)).map(move |asked| {
            let (service, call) = (service.clone(), call.clone());
            async move {
                let asked = asked?;
                let id = asked.id.clone();
                let answered = service.infer(asked, &call, Instant::now()).await;
                match answered {
                    Ok(mut response) => {
                        // As Triton marks it: there is one response to each request, and so it is the last.
                        let last = ("triton_final_response".to_owned(), to_wire(Parameter::Bool(true)));
                        response.parameters.extend([last]);
                        Ok(ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) })
                    }
                    Err(refusal) if as_status => Err(refusal.grpc()),
                    Err(refusal) => Ok(ModelStreamInferResponse {
                        error_message: refusal.message,
                        infer_response: Some(ModelInferResponse { id, ..ModelInferResponse::default() }),
                    }),
                }
            }
        });
        Ok(Response::new(Box::pin(answers.buffered(STREAM_AT_ONCE))))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let caller = caller(&request);
        let asked = request.into_inner();
        let told = async {
            let endpoint = infer::endpoint(&asked.name, &asked.version)?;
            let told = models::config(&caller, &endpoint).await?;
            let dynamic_batching = told.batches().then(ModelDynamicBatching::default);
            let input = |tensor: Described| ModelInput {
                data_type: tensor.data_type().into(),
                name: tensor.name,
                dims: tensor.dims,
            };
            let output = |tensor: Described| ModelOutput {
                data_type: tensor.data_type().into(),
                name: tensor.name,
                dims: tensor.dims,
            };
            let latest = ModelVersionPolicy { policy_choice: Some(PolicyChoice::Latest(Latest { num_versions: 1 })) };
            Ok::<_, Refusal>(ModelConfig {
                name: told.name,
                platform: PLATFORM.into(),
                version_policy: Some(latest),
                max_batch_size: told.max_batch_size,
                input: told.inputs.into_iter().map(input).collect(),
                output: told.outputs.into_iter().map(output).collect(),
                dynamic_batching,
                backend: PLATFORM.into(),
                model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
            })
        };
        let config = told.await.map_err(|refusal| refusal.grpc())?;
        Ok(Response::new(ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let caller = caller(&request);
        let asked = request.into_inner();
        let told = async {
            let book = &self.shared.book;
            let list = match asked.name.as_str() {
                "" => models::all_statistics(&caller, book).await?,
                name => {
                    let endpoint = infer::endpoint(name, &asked.version)?;
                    vec![models::statistics(&caller, book, &endpoint).await?]
                }
            };
            Ok(ModelStatisticsResponse { model_stats: list.into_iter().map(statistics).collect() })
        };
        told.await.map(Response::new).map_err(|refusal: Refusal| refusal.grpc())
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let caller = caller(&request);
        let only_ready = request.into_inner().ready;
        let list = models::repository(&caller, only_ready).await.map_err(|refusal| refusal.grpc())?;
        let models = list.into_iter().map(|(endpoint, state, reason)| ModelIndex {
            name: endpoint.to_string(),
            version: VERSION.into(),
            state: state.into(),
            reason,
        });
        Ok(Response::new(RepositoryIndexResponse { models: models.collect() }))
    }
}

fn statistics(told: Statistics) -> ModelStatistics {
    let calls = |calls: Calls| Some(StatisticDuration { count: calls.count, ns: calls.time.as_nanos() as u64 });
    ModelStatistics {
        name: told.name,
        version: VERSION.into(),
        last_inference: told.last_inference,
        inference_count: told.inferences,
        execution_count: told.executions,
        inference_stats: Some(InferStatistics {
            success: calls(told.success),
            fail: calls(told.fail),
            queue: calls(told.queue),
            compute_input: calls(told.compute_input),
            compute_infer: calls(told.compute_infer),
            compute_output: calls(told.compute_output),
            cache_hit: calls(told.cache_hit),
            cache_miss: calls(told.cache_miss),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_eight_digits_and_a_unit() {
        for (text, wanted) in [
            ("50m", Some(Duration::from_millis(50))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("1H", Some(Duration::from_secs(3600))),
            ("100000000n", None),
            ("50", None),
            ("m", None),
            ("", None),
            ("-1m", None),
            ("5µ", None),
        ] {
            assert_eq!(timeout(text), wanted, "{text:?}");
        }
    }
}
