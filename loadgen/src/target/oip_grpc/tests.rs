//! Against a stub server with hostile answers.

use std::time::Duration;

use tonic::{Request, Response};
use weir_schema::oip::inference;
use weir_schema::oip::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};

use super::super::oip_http::tests::{Asked, ask_once, stream};
use super::*;

/// What the stub answers; the model's name says how.
struct Stub;

#[tonic::async_trait]
impl GrpcInferenceService for Stub {
    async fn model_metadata(
        &self,
        request: Request<inference::ModelMetadataRequest>,
    ) -> Result<Response<inference::ModelMetadataResponse>, Status> {
        use inference::model_metadata_response::TensorMetadata;
        let name = request.into_inner().name;
        let tensor = |name: &str, shape: &[i64]| TensorMetadata {
            name: name.into(),
            datatype: "FP32".into(),
            shape: shape.to_vec(),
        };
        match name.as_str() {
            "none" => Err(Status::not_found("no such model")),
            "odd" => Ok(Response::new(inference::ModelMetadataResponse {
                inputs: vec![TensorMetadata { datatype: "FP4".into(), ..tensor("x", &[-1]) }],
                ..Default::default()
            })),
            _ => Ok(Response::new(inference::ModelMetadataResponse {
                name,
                inputs: vec![tensor("x", &[-1, 2])],
                outputs: vec![tensor("probs", &[-1, 3])],
                ..Default::default()
            })),
        }
    }

    async fn model_infer(
        &self,
        request: Request<inference::ModelInferRequest>,
    ) -> Result<Response<inference::ModelInferResponse>, Status> {
        use inference::model_infer_response::InferOutputTensor;
        let request = request.into_inner();
        let rows = request.inputs[0].shape[0];
        assert_eq!(request.raw_input_contents[0].len() as i64, 8 * rows);
        assert!(request.parameters.contains_key("timeout"));
        let data: Vec<f32> = (0..rows).flat_map(|_| [0.1, 0.2, 0.7]).collect();
        let output = InferOutputTensor {
            name: "probs".into(),
            datatype: "FP32".into(),
            shape: vec![rows, 3],
            ..Default::default()
        };
        let raw: Vec<u8> = data.iter().flat_map(|n| n.to_le_bytes()).collect();
        let good = inference::ModelInferResponse {
            outputs: vec![output.clone()],
            raw_output_contents: vec![raw.clone()],
            ..Default::default()
        };
        let with = |output: InferOutputTensor| inference::ModelInferResponse { outputs: vec![output], ..good.clone() };
        let typed = inference::InferTensorContents { fp32_contents: data, ..Default::default() };
        Ok(Response::new(match request.model_name.as_str() {
            "m" => good,
            "typed" => inference::ModelInferResponse {
                outputs: vec![InferOutputTensor { contents: Some(typed), ..output }],
                raw_output_contents: Vec::new(),
                ..good
            },
            // Typed half floats, which the protocol does not have, beside what is wanted.
            "half" => inference::ModelInferResponse {
                outputs: vec![
                    InferOutputTensor { name: "h".into(), datatype: "FP16".into(), ..output.clone() },
                    InferOutputTensor { contents: Some(typed), ..output },
                ],
                raw_output_contents: Vec::new(),
                ..good
            },
            "slow" => std::future::pending().await,
            "full" => return Err(Status::resource_exhausted("queue full")),
            "late" => return Err(Status::deadline_exceeded("too late")),
            "broken" => return Err(Status::internal("it broke")),
            "bad" => return Err(Status::invalid_argument("no such input")),
            "short" => inference::ModelInferResponse { raw_output_contents: vec![vec![0; 3]], ..good },
            "several" => inference::ModelInferResponse { raw_output_contents: vec![raw; 2], ..good },
            "negative" => with(InferOutputTensor { shape: vec![-1, 3], ..output }),
            "endless" => with(InferOutputTensor { shape: vec![i64::MAX, i64::MAX], ..output }),
            "unnamed" => with(InferOutputTensor { name: "other".into(), ..output }),
            "typeless" => with(InferOutputTensor { datatype: "FP99".into(), ..output }),
            "rowless" => with(InferOutputTensor { shape: vec![rows * 3], ..output }),
            other => return Err(Status::not_found(other.to_owned())),
        }))
    }
}

async fn serve() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = futures::stream::unfold(listener, |listener| async {
        let socket = listener.accept().await.map(|(socket, _)| socket);
        Some((socket, listener))
    });
    tokio::task::spawn_local(async move {
        let server = tonic::transport::Server::builder().add_service(GrpcInferenceServiceServer::new(Stub));
        server.serve_with_incoming(Box::pin(incoming)).await.unwrap();
    });
    address
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

#[test]
fn a_model_is_described_and_asked() {
    block_on(async {
        let target = OipGrpc(serve().await);
        let told = target.describe("m").await.unwrap();
        assert_eq!(told.inputs[0].to_string(), "x f32[-,2]");
        assert_eq!(told.label_output.as_deref(), Some("probs"));
        assert!(matches!(target.describe("none").await, Err(TargetError::NotFound(_))));
        assert!(matches!(target.describe("odd").await, Err(TargetError::Unreachable(_))));
        for model in ["m", "typed", "half"] {
            let reply = ask_once(&target, stream(model), Asked { rows: vec![1, 0], ..Asked::default() }).await;
            assert_eq!(reply.outcome, Outcome::Answered, "{}", reply.message);
            assert_eq!(reply.rows.iter().map(|row| row.label).collect::<Vec<_>>(), [Some(2), Some(2)]);
        }
    });
}

#[test]
fn hostile_answers_are_outcomes_not_crashes() {
    block_on(async {
        let target = OipGrpc(serve().await);
        for (model, word) in [
            ("full", "rejected"),
            ("late", "expired"),
            ("broken", "failed"),
            ("bad", "rejected"),
            ("nobody", "rejected"),
            ("slow", "unknown"),
            ("short", "failed"),
            ("several", "failed"),
            ("negative", "failed"),
            ("endless", "failed"),
            ("unnamed", "failed"),
            ("typeless", "failed"),
            ("rowless", "failed"),
        ] {
            let asked = Asked { deadline: Duration::from_millis(200), ..Asked::default() };
            let reply = ask_once(&target, stream(model), asked).await;
            assert_eq!(reply.outcome.word(), word, "{model}: {}", reply.message);
            assert!(!reply.message.is_empty());
        }
    });
}

#[test]
fn a_server_that_is_not_there_is_said_to_be_so() {
    block_on(async {
        // A port that was free a moment ago.
        let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = OipGrpc(address.to_string()).describe("m").await.unwrap_err();
        assert!(matches!(&error, TargetError::Unreachable(text) if text.contains("start the server")), "{error}");
    });
}
