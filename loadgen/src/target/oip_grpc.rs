//! gRPC of the open inference protocol, tensors as raw bytes.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use futures::future::LocalBoxFuture;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use weir_core::outcome::{Outcome, Rejection};
use weir_core::tensor::Tensor;
use weir_schema::oip::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use weir_schema::oip::inference::infer_parameter::ParameterChoice;
use weir_schema::oip::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use weir_schema::oip::inference::{InferParameter, ModelInferRequest, ModelInferResponse, ModelMetadataRequest};

use super::oip::{self, ANSWER_MAX, CONNECT_WITHIN, OPEN_MAX, Places};
use super::{Ask, Connect, Described, Reply, Stream, Target, TargetError};
use crate::run::PATIENCE;

/// A server, by `host:port`.
pub struct OipGrpc(pub String);

type Client = GrpcInferenceServiceClient<Channel>;

impl OipGrpc {
    async fn dial(&self) -> Result<Client, TargetError> {
        let unreachable = |why: String| {
            TargetError::Unreachable(format!(
                "nothing answers at oip-grpc://{} ({why}); start the server, or name another --target",
                self.0
            ))
        };
        let endpoint = Endpoint::from_shared(format!("http://{}", self.0)).map_err(|e| unreachable(e.to_string()))?;
        let endpoint = endpoint.connect_timeout(CONNECT_WITHIN).tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|error| unreachable(root(&error)))?;
        Ok(Client::new(channel).max_decoding_message_size(ANSWER_MAX).max_encoding_message_size(ANSWER_MAX))
    }
}

/// The innermost cause: the outer ones only say that there was a transport.
fn root(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

impl Connect for OipGrpc {
    fn name(&self) -> String {
        format!("oip-grpc://{}", self.0)
    }

    fn describe<'a>(&'a self, endpoint: &'a str) -> LocalBoxFuture<'a, Result<Described, TargetError>> {
        Box::pin(async move {
            let mut client = self.dial().await?;
            let asked = client.model_metadata(ModelMetadataRequest { name: endpoint.into(), version: String::new() });
            let slow = || TargetError::Unreachable(format!("{} does not answer in 5 s", self.name()));
            let told = tokio::time::timeout(CONNECT_WITHIN, asked).await.map_err(|_| slow())?;
            let told = told.map_err(|status| {
                let text = format!("{} has no model {endpoint:?}: {}", self.name(), message(&status));
                match status.code() {
                    Code::NotFound | Code::InvalidArgument => TargetError::NotFound(text),
                    Code::Unauthenticated | Code::PermissionDenied => TargetError::Forbidden(message(&status)),
                    // Triton says so of a model that it does not know.
                    Code::Unavailable if status.message().contains("unknown model") => TargetError::NotFound(text),
                    _ => TargetError::Unreachable(format!(
                        "{} does not tell its models: {}",
                        self.name(),
                        message(&status)
                    )),
                }
            })?;
            let told = told.into_inner();
            let inputs = told.inputs.iter().map(|input| oip::spec(&input.name, &input.datatype, &input.shape));
            let inputs = inputs.collect::<Result<_, _>>().map_err(TargetError::Unreachable)?;
            let outputs: Vec<String> = told.outputs.into_iter().map(|output| output.name).collect();
            Ok(oip::described(inputs, &outputs))
        })
    }

    fn connect(
        &self,
        streams: Arc<[Stream]>,
        connections: usize,
    ) -> LocalBoxFuture<'_, Result<Rc<dyn Target>, TargetError>> {
        Box::pin(async move {
            let mut clients = Vec::new();
            for _ in 0..connections.max(1) {
                clients.push(self.dial().await?);
            }
            let authority = self.0.clone();
            let places = Rc::new(Places::new(OPEN_MAX));
            Ok(Rc::new(Server { authority, clients, turn: Cell::new(0), places, streams }) as Rc<dyn Target>)
        })
    }
}

fn message(status: &Status) -> String {
    let short: String = status.message().chars().take(200).collect();
    format!("{:?} {short}", status.code()).trim_end().to_owned()
}

struct Server {
    authority: String,
    clients: Vec<Client>,
    turn: Cell<usize>,
    places: Rc<Places>,
    streams: Arc<[Stream]>,
}

impl Target for Server {
    fn ask(&self, ask: Ask) -> LocalBoxFuture<'static, Reply> {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let mut client = self.clients[turn % self.clients.len()].clone();
        let stream = &self.streams[ask.stream];
        let mut request = ModelInferRequest { model_name: stream.endpoint.clone(), ..ModelInferRequest::default() };
        for (name, Tensor { dtype, shape, data }) in stream.data.take(&ask.rows) {
            request.inputs.push(InferInputTensor {
                name,
                datatype: oip::word(dtype).into(),
                shape: shape.iter().map(|dim| *dim as i64).collect(),
                ..InferInputTensor::default()
            });
            request.raw_input_contents.push(data);
        }
        if let Some(name) = stream.compared().map(str::to_owned) {
            request.outputs.push(InferRequestedOutputTensor { name, ..InferRequestedOutputTensor::default() });
        }
        let (authority, places, streams) = (self.authority.clone(), Rc::clone(&self.places), Arc::clone(&self.streams));
        Box::pin(async move {
            let (_place, left) = match places.take(ask.deadline).await {
                Ok(place) => place,
                Err(reply) => return reply,
            };
            let timeout = ParameterChoice::Int64Param(left.as_micros() as i64);
            request.parameters.insert("timeout".into(), InferParameter { parameter_choice: Some(timeout) });
            match tokio::time::timeout(left + PATIENCE, client.model_infer(request)).await {
                Err(_) => Reply::none(Outcome::Unknown, "no answer in time; it may have run"),
                Ok(Err(status)) => refused(&authority, &status),
                Ok(Ok(response)) => {
                    let read = read_response(response.into_inner(), streams[ask.stream].compared());
                    let reply = read.and_then(|(outputs, stage)| {
                        oip::answered(&streams, ask.stream, ask.rows.len(), &outputs, &stage)
                    });
                    reply.unwrap_or_else(|why| oip::not_understood(&why))
                }
            }
        })
    }
}

/// What a status says of the query.
fn refused(authority: &str, status: &Status) -> Reply {
    if let Some(source) = std::error::Error::source(status) {
        let mut cause = Some(source);
        while let Some(error) = cause {
            let io = error.downcast_ref::<std::io::Error>();
            if io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused) {
                return oip::not_sent(authority, "connection refused");
            }
            cause = error.source();
        }
        return Reply::none(Outcome::Unknown, format!("the connection broke ({}); it may have run", root(source)));
    }
    let outcome = match status.code() {
        Code::ResourceExhausted => Outcome::Rejected(Rejection::QueueFull),
        Code::Unavailable => Outcome::Rejected(Rejection::NoReplica),
        Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange | Code::FailedPrecondition => {
            Outcome::Rejected(Rejection::BadInput)
        }
        Code::NotFound => Outcome::Rejected(Rejection::UnknownEndpoint),
        Code::PermissionDenied | Code::Unauthenticated => Outcome::Rejected(Rejection::Forbidden),
        Code::DeadlineExceeded => Outcome::Expired,
        Code::Cancelled => Outcome::Unknown,
        _ => Outcome::Failed,
    };
    Reply::none(outcome, message(status))
}

/// Outputs, and the stage that answered, where it is told. Where an output is `wanted`, the others need not be understood.
fn read_response(
    response: ModelInferResponse,
    wanted: Option<&str>,
) -> Result<(Vec<(String, Tensor)>, String), String> {
    let raw = !response.raw_output_contents.is_empty();
    if raw && response.raw_output_contents.len() != response.outputs.len() {
        return Err(format!(
            "{} raw contents for {} outputs",
            response.raw_output_contents.len(),
            response.outputs.len()
        ));
    }
    let mut contents = response.raw_output_contents.into_iter();
    let mut outputs = Vec::new();
    for output in response.outputs {
        let name = output.name;
        let content = contents.next();
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let dtype = oip::dtype(&output.datatype).ok_or_else(|| format!("its output {name} has no known datatype"))?;
        let shape: Result<Vec<u64>, _> = output.shape.iter().map(|dim| u64::try_from(*dim)).collect();
        let shape = shape.map_err(|_| format!("its output {name} has a dimension below 0"))?;
        let data = match (content, output.contents) {
            (Some(data), _) => data,
            (None, Some(typed)) => oip::bytes_of(&typed, dtype)?,
            (None, None) => Vec::new(),
        };
        let tensor = oip::tensor(&name, dtype, shape, data)?;
        outputs.push((name, tensor));
    }
    let stage = response.parameters.get("weir_stage").and_then(|told| match &told.parameter_choice {
        Some(ParameterChoice::StringParam(stage)) => Some(stage.clone()),
        _ => None,
    });
    Ok((outputs, stage.unwrap_or_default()))
}

#[cfg(test)]
mod tests;
