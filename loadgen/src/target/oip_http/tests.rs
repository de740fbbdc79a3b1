//! Against a stub that writes whatever bytes the model's name says: no server of the protocol would.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_core::outcome::Outcome;
use weir_core::tensor::Tensor;

use super::*;
use crate::data::Data;

/// One question.
pub struct Asked {
    pub rows: Vec<u32>,
    pub deadline: Duration,
}

impl Default for Asked {
    fn default() -> Asked {
        Asked { rows: vec![0], deadline: Duration::from_secs(5) }
    }
}

/// Rows of two numbers with labels, for `model`.
pub fn stream(model: &str) -> Stream {
    Stream {
        name: model.into(),
        endpoint: model.into(),
        data: Arc::new(
            Data::of(Tensor::f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]))
                .fit(&[oip::spec("x", "FP32", &[-1, 2]).unwrap()])
                .unwrap(),
        ),
        labels: Some([2, 2].into()),
        label_output: Some("probs".into()),
        deadline: Duration::from_secs(5),
    }
}

/// Connects and asks.
pub async fn ask_once(connect: &dyn Connect, stream: Stream, asked: Asked) -> Reply {
    let target = connect.connect(Arc::new([stream]), 1).await.unwrap();
    target.ask(Ask { stream: 0, rows: asked.rows, deadline: asked.deadline }).await
}

fn json_answer(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()).into_bytes()
}

fn binary_answer(length: &str, json: &str, tail: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {length}\r\ncontent-length: {}\r\n\r\n{json}",
        json.len() + tail.len()
    );
    [head.as_bytes(), tail].concat()
}

fn status(code: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {code}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What is written back for a request; nothing closes the connection.
fn answer(binary: bool, path: &str, body: &[u8]) -> Option<Vec<u8>> {
    let model = path.strip_prefix("/v2/models/").unwrap_or("");
    let one = r#"{"name":"probs","datatype":"FP32","shape":[1,3],"data":[0.1,0.2,0.7]}"#;
    let outputs = |inner: &str| {
        json_answer(&format!(r#"{{"model_name":"m","outputs":[{inner}],"parameters":{{"weir_stage":"tiny"}}}}"#))
    };
    let raw: Vec<u8> = [0.1f32, 0.2, 0.7].iter().flat_map(|n| n.to_le_bytes()).collect();
    let with_tail =
        r#"{"outputs":[{"name":"probs","datatype":"FP32","shape":[1,3],"parameters":{"binary_data_size":12}}]}"#;
    Some(match model {
        "" if path == "/v2" => json_answer(if binary { r#"{"extensions":["binary_tensor_data"]}"# } else { "{}" }),
        "m" => json_answer(
            r#"{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"probs"}]}"#,
        ),
        "none" => status("404 Not Found", r#"{"error":"no such model"}"#),
        "web" => json_answer("<html>hello</html>"),
        "m/infer" if binary => {
            assert!(body.len() > 8 && body[body.len() - 8..] == [0, 0, 128, 63, 0, 0, 0, 64], "1.0 and 2.0 follow");
            binary_answer(&with_tail.len().to_string(), with_tail, &raw)
        }
        "m/infer" => {
            let told: Value = serde_json::from_slice(body).unwrap();
            assert_eq!(told["inputs"][0]["data"], json!([1.0, 2.0]));
            assert_eq!(told["parameters"]["timeout"], 5_000_000);
            outputs(one)
        }
        "nested/infer" => outputs(&one.replace("[0.1,0.2,0.7]", "[[0.1,0.2,0.7]]")),
        // As MLServer sends half floats, and a traceback.
        "half/infer" => outputs(&format!(
            r#"{{"name":"h","datatype":"FP16","shape":[1,1],"data":[0.5]}},{one},{{"name":"z","datatype":"?"}}"#
        )),
        "only-half/infer" => outputs(r#"{"name":"h","datatype":"FP16","shape":[1,1],"data":[0.5]}"#),
        "traceback/infer" => status(
            "500 Internal Server Error",
            "Traceback (most recent call last):\n  File \"a.py\"\n\nValueError: it broke\n",
        ),
        "headerless/infer" => json_answer(&format!("{with_tail}{}", "\0".repeat(12))),
        "headerless-short/infer" => json_answer(&format!("{with_tail}{}", "\0".repeat(11))),
        "headerless-of-spaces/infer" => json_answer(&format!("{with_tail}{}", " ".repeat(12))),
        "headerless-long/infer" => json_answer(&format!("{with_tail}{}", "\0".repeat(13))),
        "full/infer" => status("429 Too Many Requests", "{}"),
        "drain/infer" => status("503 Service Unavailable", ""),
        "late/infer" => status("504 Gateway Timeout", ""),
        "broken/infer" => status("500 Internal Server Error", r#"{"error":"it broke"}"#),
        "bad/infer" => status("422 Unprocessable Entity", r#"{"detail":"no such input"}"#),
        "lost/infer" => return None,
        "cut/infer" => b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"outputs\"".to_vec(),
        "garbage/infer" => b"\x00\xff\r\n\r\n".to_vec(),
        "notjson/infer" => json_answer("hello"),
        "deep/infer" => outputs(&format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))),
        "empty/infer" => json_answer("{}"),
        "other/infer" => outputs(&one.replace("probs", "logits")),
        "typeless/infer" => outputs(&one.replace("FP32", "FP99")),
        "words/infer" => outputs(&one.replace("0.1", "\"a\"")),
        "few/infer" => outputs(&one.replace("0.1,", "")),
        "negative/infer" => outputs(&one.replace("[1,3]", "[-1,3]")),
        "endless/infer" => outputs(&one.replace("[1,3]", "[18446744073709551615,2]")),
        "rowless/infer" => outputs(&one.replace("[1,3]", "[3]")),
        "longer/infer" => binary_answer("100000", with_tail, &raw),
        "nan/infer" => binary_answer("x", with_tail, &raw),
        "minus/infer" => binary_answer("-1", with_tail, &raw),
        "tail/infer" => binary_answer(&with_tail.len().to_string(), with_tail, &[&raw[..], &[0; 5]].concat()),
        "short/infer" => binary_answer(&with_tail.len().to_string(), with_tail, &raw[..11]),
        "huge/infer" => {
            let big = with_tail.replace("12", "18446744073709551615");
            binary_answer(&big.len().to_string(), &big, &raw)
        }
        _ => status("404 Not Found", ""),
    })
}

async fn serve(binary: bool) -> OipHttp {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::task::spawn_local(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
                loop {
                    let Some(head) = read.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
                        match socket.read(&mut buffer).await {
                            Ok(0) | Err(_) => return,
                            Ok(n) => read.extend(&buffer[..n]),
                        }
                        continue;
                    };
                    let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
                    let length = text.split("content-length: ").nth(if text.contains(HEADER_LENGTH) { 2 } else { 1 });
                    let length: usize = length.and_then(|rest| rest.lines().next()?.parse().ok()).unwrap_or(0);
                    while read.len() < head + length {
                        let n = socket.read(&mut buffer).await.unwrap();
                        read.extend(&buffer[..n]);
                    }
                    let path = text.split_whitespace().nth(1).unwrap().to_owned();
                    if path == "/v2/models/slow/infer" {
                        std::future::pending::<()>().await;
                    }
                    let body: Vec<u8> = read.drain(..head + length).skip(head).collect();
                    let Some(answer) = answer(binary, &path, &body) else { return };
                    socket.write_all(&answer).await.unwrap();
                    if path.contains("cut") || path.contains("garbage") {
                        return;
                    }
                }
            });
        }
    });
    OipHttp { authority: address, metadata: None }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

#[test]
fn a_model_is_described_and_asked_in_binary_or_json() {
    block_on(async {
        for binary in [false, true] {
            let target = serve(binary).await;
            let told = target.describe("m").await.unwrap();
            assert_eq!(told.inputs[0].to_string(), "x f32[-,2]");
            assert_eq!((told.label_output.as_deref(), told.deadline), (Some("probs"), None));
            let reply = ask_once(&target, stream("m"), Asked::default()).await;
            assert_eq!(reply.outcome, Outcome::Answered, "{}", reply.message);
            assert_eq!(reply.rows[0].label, Some(2));
            assert_eq!(reply.rows[0].stage, if binary { "" } else { "tiny" });
        }
        let target = serve(false).await;
        assert_eq!(ask_once(&target, stream("nested"), Asked::default()).await.outcome, Outcome::Answered);
        assert!(
            matches!(target.describe("none").await, Err(TargetError::NotFound(text)) if text.contains("no such model"))
        );
        assert!(
            matches!(target.describe("web").await, Err(TargetError::Unreachable(text)) if text.contains("does not speak"))
        );
    });
}

#[test]
fn hostile_answers_are_outcomes_not_crashes() {
    block_on(async {
        let target = serve(true).await;
        for (model, word) in [
            ("full", "rejected"),
            ("drain", "rejected"),
            ("late", "expired"),
            ("broken", "failed"),
            ("bad", "rejected"),
            ("nobody", "rejected"),
            ("lost", "unknown"),
            ("cut", "unknown"),
            ("garbage", "unknown"),
            ("slow", "unknown"),
            ("notjson", "failed"),
            ("deep", "failed"),
            ("empty", "failed"),
            ("other", "failed"),
            ("typeless", "failed"),
            ("words", "failed"),
            ("few", "failed"),
            ("negative", "failed"),
            ("endless", "failed"),
            ("rowless", "failed"),
            ("longer", "failed"),
            ("nan", "failed"),
            ("minus", "failed"),
            ("tail", "failed"),
            ("short", "failed"),
            ("huge", "failed"),
            ("headerless-short", "failed"),
            ("headerless-long", "failed"),
        ] {
            let asked = Asked { deadline: Duration::from_millis(200), ..Asked::default() };
            let reply = ask_once(&target, stream(model), asked).await;
            assert_eq!(reply.outcome.word(), word, "{model}: {}", reply.message);
            assert!(!reply.message.is_empty());
        }
    });
}

/// Servers send outputs that nobody asked for.
#[test]
fn only_the_output_that_is_compared_has_to_be_understood() {
    block_on(async {
        let target = serve(false).await;
        let half = ask_once(&target, stream("half"), Asked::default()).await;
        assert_eq!(
            (half.outcome, half.rows.first().and_then(|row| row.label)),
            (Outcome::Answered, Some(2)),
            "{}",
            half.message
        );
        let unlabelled = Stream { labels: None, ..stream("only-half") };
        assert_eq!(ask_once(&target, unlabelled, Asked::default()).await.outcome, Outcome::Answered);
        let compared = Stream { label_output: Some("h".into()), ..stream("only-half") };
        let reply = ask_once(&target, compared, Asked::default()).await;
        assert!(
            reply.outcome == Outcome::Failed && reply.message.contains("its output h: FP16 has no form in JSON"),
            "{}",
            reply.message
        );
    });
}

/// Some frameworks route no GET, and set no header.
#[test]
fn a_server_that_can_only_infer_is_told_of_by_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.json");
    let told = r#"{"extensions":["binary_tensor_data"],"models":[{"name":"headerless",
        "inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"probs"}]}]}"#;
    std::fs::write(&path, told).unwrap();
    block_on(async {
        // It says that it takes no bytes; the file is believed.
        let target = OipHttp { metadata: Some(Metadata::read(&path).unwrap()), ..serve(false).await };
        let described = target.describe("headerless").await.unwrap();
        assert_eq!(
            (described.inputs[0].to_string(), described.label_output),
            ("x f32[-,2]".into(), Some("probs".into()))
        );
        for model in ["headerless", "headerless-of-spaces"] {
            let reply = ask_once(&target, stream(model), Asked::default()).await;
            assert_eq!(reply.outcome, Outcome::Answered, "{model}: {}", reply.message);
            assert_eq!(reply.rows[0].label, Some(0), "{model}");
        }
        let unknown = target.describe("m").await.unwrap_err();
        assert!(matches!(&unknown, TargetError::NotFound(text) if text.contains("metadata.json")), "{unknown}");
    });
    for bad in ["", "{}", r#"{"models":[{}]}"#, r#"{"models":[{"name":"m","inputs":[{"name":"x"}]}]}"#] {
        std::fs::write(&path, bad).unwrap();
        let why = Metadata::read(&path).unwrap_err().to_string();
        assert!(why.contains("metadata.json is no metadata"), "{why}");
    }
}

#[test]
fn an_error_is_one_line() {
    block_on(async {
        let reply = ask_once(&serve(false).await, stream("traceback"), Asked::default()).await;
        assert_eq!(reply.message, "500 Traceback (most recent call last): … ValueError: it broke");
    });
}

/// An open loop: a second call does not wait for the first one's answer.
#[test]
fn connections_are_made_as_they_are_needed() {
    block_on(async {
        let target = serve(false).await.connect(Arc::new([stream("slow"), stream("m")]), 1).await.unwrap();
        let ask = |stream, rows: u32| target.ask(Ask { stream, rows: vec![rows], deadline: Duration::from_secs(5) });
        let slow = ask(0, 0);
        let quick = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            ask(1, 0).await
        };
        tokio::select! {
            reply = slow => panic!("{reply:?}"),
            reply = quick => assert_eq!(reply.outcome, Outcome::Answered),
        }
    });
}

#[test]
fn a_server_that_is_not_there_or_goes_is_said_to_be_so() {
    block_on(async {
        let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody = OipHttp { authority: address.to_string(), metadata: None };
        let error = nobody.describe("m").await.unwrap_err();
        assert!(matches!(&error, TargetError::Unreachable(text) if text.contains("start the server")), "{error}");

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = OipHttp { authority: listener.local_addr().unwrap().to_string(), metadata: None };
        // It takes a connection, and is gone.
        let (target, ()) = tokio::join!(target.connect(Arc::new([stream("m")]), 1), async {
            drop(listener.accept().await);
            drop(listener);
        });
        let reply = target.unwrap().ask(Ask { stream: 0, rows: vec![0], deadline: Duration::from_secs(1) }).await;
        assert_eq!(reply.outcome, Outcome::Rejected(Rejection::NoReplica), "{}", reply.message);
    });
}
