//! What whoever speaks the open inference protocol sees, and whoever asks for metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_client::{Client, Options, Request, Token};
use weir_core::ids::EndpointName;
use weir_core::tensor::Tensor;
use weir_host::disk::SystemDisk;
use weir_schema::oip::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use weir_schema::oip::inference::model_infer_request::InferInputTensor;
use weir_schema::oip::inference::{InferTensorContents, ModelInferRequest, ModelInferResponse, ModelReadyRequest};
use weir_tests::processes::{self, Cluster, Process, npy, root};

use crate::python::python;

const DOORS: [&str; 6] = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];

/// What came back: status, headers in small letters, body.
pub struct Told {
    pub status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Told {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }
}

/// Sends bytes, and reads until the other side closes.
pub fn exchange(address: &str, bytes: &[u8]) -> Told {
    let mut socket = TcpStream::connect(address).expect("the door is open");
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.write_all(bytes).unwrap();
    let mut told = Vec::new();
    socket.read_to_end(&mut told).expect("an answer");
    let end = told.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(told[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Told { status, headers: head.to_lowercase(), body: told[end + 4..].to_vec() }
}

pub fn http(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Told {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    if method == "POST" {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    head.push_str("\r\n");
    exchange(address, &[head.as_bytes(), body].concat())
}

pub fn get(address: &str, path: &str) -> Told {
    http(address, "GET", path, &[], b"")
}

pub fn metric(node: &Process, name: &str) -> f64 {
    processes::metric(node, name).unwrap_or_else(|| panic!("{name} is not told"))
}

pub fn eventually(what: &str, is: impl Fn() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Four images of the demo, and what their class probabilities are by weir's own protocol.
fn images_and_probabilities(cluster: &Cluster) -> (Vec<u8>, Vec<u8>) {
    let images = std::fs::read(root().join("demo/images.npy")).unwrap();
    let all = &images[images.len() - 500 * 784 * 4..];
    let images = all[..4 * 784 * 4].to_vec();
    let token = Token::read_file(&SystemDisk, Path::new(&cluster.path("c1/admin.token"))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answers = runtime.block_on(async {
        let client = Client::connect(Options { coordinators: vec![cluster.addresses()], token }).await.unwrap();
        let tensor = Tensor { shape: vec![4, 1, 28, 28], data: images.clone(), ..Tensor::f32(&[0], &[]) };
        let request = Request {
            endpoint: EndpointName::parse("fashion").unwrap(),
            inputs: vec![("x".into(), tensor)],
            whole: false,
            deadline: Some(Duration::from_secs(20)),
            class: None,
            outputs: vec!["probs".into()],
            min_stage: None,
            max_stage: None,
            trace: false,
        };
        client.predict(request).await.unwrap()
    });
    (images, answers.into_iter().flat_map(|answer| answer.outputs.into_iter().next().expect("probs").1.data).collect())
}

#[test]
fn every_way_of_asking_gives_the_same_bytes() {
    let cluster = Cluster::start_with(1, 1, &DOORS);
    let demo = cluster.demo_with(["confidence_below = 0.95", "confidence_below = 0.8"]);
    cluster.ok(&["apply", "-f", &demo]);
    let (images, wanted) = images_and_probabilities(&cluster);
    let (over_http, over_grpc) = (&cluster.nodes[0].doors["http"], &cluster.nodes[0].doors["grpc"]);
    let path = "/v2/models/fashion/infer";
    let input = |more: Value| {
        let mut input = json!({"name": "x", "shape": [4, 1, 28, 28], "datatype": "FP32"});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    };
    let wish = json!({"timeout": 20_000_000});

    // Binary in and out.
    let head = json!({"id": "a", "parameters": wish, "inputs": [input(json!({"parameters": {"binary_data_size": images.len()}}))],
        "outputs": [{"name": "probs", "parameters": {"binary_data": true}}]})
    .to_string();
    let told = http(
        over_http,
        "POST",
        path,
        &[("Inference-Header-Content-Length", &head.len().to_string())],
        &[head.as_bytes(), &images].concat(),
    );
    assert_eq!(told.status, 200, "{}", told.text());
    let json: usize = told.header("inference-header-content-length").unwrap().parse().unwrap();
    assert_eq!(told.body[json..], wanted);
    let head: Value = serde_json::from_slice(&told.body[..json]).unwrap();
    assert_eq!((&head["id"], &head["outputs"][0]["shape"]), (&json!("a"), &json!([4, 10])));
    assert!(head["parameters"]["weir_query_id"].as_str().unwrap().len() == 32);

    // JSON in and out, nested.
    let numbers: Vec<f32> = images.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let nested: Vec<Value> =
        numbers.chunks(784).map(|image| json!([image.chunks(28).map(|row| json!(row)).collect::<Vec<_>>()])).collect();
    let body = json!({"parameters": wish, "inputs": [input(json!({"data": nested}))], "outputs": [{"name": "probs"}]});
    let told = http(over_http, "POST", path, &[], body.to_string().as_bytes());
    assert_eq!(told.status, 200, "{}", told.text());
    let data: Vec<u8> = told.json()["outputs"][0]["data"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|number| (number.as_f64().unwrap() as f32).to_le_bytes())
        .collect();
    assert_eq!(data, wanted);

    // How each row came about, where somebody wants to know; and who asks `weir why` is told the same.
    let body = json!({"parameters": {"timeout": 20_000_000, "weir_trace": true}, "outputs": [{"name": "probs"}],
        "inputs": [input(json!({"data": numbers}))]});
    let told = http(over_http, "POST", path, &[], body.to_string().as_bytes()).json();
    let trace: Value = serde_json::from_str(told["parameters"]["weir_trace"].as_str().expect("a trace")).unwrap();
    assert_eq!(trace.as_array().map(Vec::len), Some(4));
    assert_eq!((&trace[0]["outcome"], &trace[0]["stages"][0]["stage"]), (&json!("answered"), &json!("tiny")));
    let asked = told["parameters"]["weir_query_id"].as_str().unwrap();
    let why: Value = serde_json::from_str(&cluster.ok(&["why", asked, "-o", "json"])).unwrap();
    assert_eq!(why["records"][0]["stages"], trace[0]["stages"]);

    // One row without any JSON.
    let told = http(
        over_http,
        "POST",
        path,
        &[("inference-header-content-length", "0"), ("weir-deadline-ms", "20000")],
        &images[..784 * 4],
    );
    let json: usize = told.header("inference-header-content-length").unwrap().parse().unwrap();
    assert_eq!(told.body[json..][..40], wanted[..40]);

    // gRPC, raw and typed.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{over_grpc}")).unwrap();
        let mut client = GrpcInferenceServiceClient::new(channel.connect().await.unwrap());
        let ask = |raw: bool| {
            let typed = InferTensorContents { fp32_contents: numbers.clone(), ..Default::default() };
            let mut request = tonic::Request::new(ModelInferRequest {
                model_name: "fashion".into(),
                inputs: vec![InferInputTensor {
                    name: "x".into(),
                    datatype: "FP32".into(),
                    shape: vec![4, 1, 28, 28],
                    contents: (!raw).then_some(typed),
                    ..Default::default()
                }],
                raw_input_contents: if raw { vec![images.clone()] } else { Vec::new() },
                ..Default::default()
            });
            request.set_timeout(Duration::from_secs(20));
            request
        };
        let probs = |told: &ModelInferResponse| told.outputs.iter().position(|output| output.name == "probs").unwrap();
        let raw = client.model_infer(ask(true)).await.unwrap().into_inner();
        assert_eq!(raw.raw_output_contents[probs(&raw)], wanted);
        let typed = client.model_infer(ask(false)).await.unwrap().into_inner();
        assert!(typed.raw_output_contents.is_empty(), "as it was asked");
        let contents = typed.outputs[probs(&typed)].contents.clone().unwrap().fp32_contents;
        assert_eq!(contents.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>(), wanted);
        // A stream: one response to each request, in order, marked as the last of its own; an error is one too, and it goes on.
        let unknown = ModelInferRequest { model_name: "nobody".into(), id: "odd".into(), ..Default::default() };
        let asked = [ask(true).into_inner(), unknown, ask(true).into_inner()];
        let mut answers = client.model_stream_infer(futures::stream::iter(asked)).await.unwrap().into_inner();
        let mut told = Vec::new();
        while let Some(answer) = answers.message().await.unwrap() {
            told.push(answer);
        }
        assert_eq!(told.len(), 3);
        assert!(told[1].error_message.contains("not found") && told[1].infer_response.as_ref().unwrap().id == "odd");
        for answer in [&told[0], &told[2]] {
            let response = answer.infer_response.as_ref().unwrap();
            assert_eq!(response.raw_output_contents[probs(response)], wanted);
            assert!(response.parameters.contains_key("triton_final_response"));
        }
        let nobody = ModelReadyRequest { name: "nobody".into(), ..Default::default() };
        assert!(!client.model_ready(nobody).await.unwrap().into_inner().ready);
    });

    // Python.
    let path = cluster.write("four.npy", [npy(&[4, 1, 28, 28], &[]), images.clone()].concat());
    let ask = "import sys, numpy, weir\n\
        with weir.Client(sys.argv[1], token_file=sys.argv[2]) as client:\n\
        \x20   for answer in client.predict('fashion', numpy.load(sys.argv[3]), deadline=20.0, outputs=['probs']):\n\
        \x20       print(answer.outputs['probs'].tobytes().hex())";
    let told = python(ask, &[&cluster.addresses(), &cluster.path("c1/admin.token"), &path]);
    let hex: String = wanted.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(told.lines().collect::<String>(), hex);

    // All of it was counted: in the protocol's statistics, and in metrics under both names.
    let stats = get(over_http, "/v2/models/fashion/stats").json();
    let stats = &stats["model_stats"][0];
    assert_eq!(
        (stats["inference_count"].as_u64(), stats["inference_stats"]["success"]["count"].as_u64()),
        (Some(37), Some(10))
    );
    assert!(stats["last_inference"].as_u64().unwrap() > 1_700_000_000_000);
    let node = &cluster.nodes[0];
    assert_eq!(metric(node, "weir_answered_total{endpoint=\"fashion\"}"), 37.0);
    assert_eq!(metric(node, "nv_inference_count{model=\"fashion\",version=\"1\"}"), 37.0);
    assert_eq!(metric(node, "weir_gateway_requests_total{protocol=\"grpc\",code=\"Ok\"}"), 4.0);
    // What clients want to know of a model before they ask.
    assert_eq!(get(over_http, "/v2/models/fashion").json()["inputs"][0]["shape"], json!([-1, 1, 28, 28]));
    assert_eq!(get(over_http, "/v2/models/fashion/config").json()["input"][0]["dims"], json!([1, 28, 28]));
    assert_eq!(http(over_http, "POST", "/v2/repository/index", &[], b"").json()[0]["state"], "READY");
    assert_eq!(get(over_http, "/openapi.json").json()["openapi"], "3.1.0");
}

#[test]
fn nonsense_is_refused_in_the_protocols_words_and_the_next_one_is_served() {
    let cluster = Cluster::start_with(1, 1, &DOORS);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\nbeta_us = 20\n", "");
    let address = &cluster.nodes[0].doors["http"];
    let path = "/v2/models/echo/infer";
    let good = json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).to_string();
    let rows = |rows: &str, more: &str| {
        format!(
            "{{{more}\"inputs\": [{{\"name\": \"x\", \"shape\": [{rows}, 0], \"datatype\": \"FP32\", \"data\": []}}]}}"
        )
    };
    let rows_said = "\"parameters\": {\"weir_whole\": false}, ";
    let many = (rows("10000000000", ""), rows("4611686018427387904", ""), rows("10000000000", rows_said));
    let length = |length: &'static str| vec![("inference-header-content-length", length)];
    let cases = [
        ("POST", path, vec![], &b"{"[..], 400),
        ("POST", path, vec![], b"", 400),
        ("POST", path, vec![], b"{\"inputs\": []}", 400),
        ("POST", path, length("-1"), good.as_bytes(), 400),
        ("POST", path, length("2147483648"), good.as_bytes(), 400),
        ("POST", path, length("x"), good.as_bytes(), 400),
        ("POST", path, length("1"), good.as_bytes(), 400),
        ("POST", path, length("0"), b"1234567", 400),
        ("POST", path, vec![("content-encoding", "gzip")], good.as_bytes(), 400),
        ("POST", path, vec![("content-encoding", "br")], good.as_bytes(), 400),
        ("POST", path, vec![("weir-deadline-ms", "soon")], good.as_bytes(), 400),
        ("POST", path, vec![("weir-class", "best")], good.as_bytes(), 400),
        ("POST", path, vec![("authorization", "Basic eDp5")], good.as_bytes(), 401),
        ("POST", path, vec![("authorization", "Bearer 00")], good.as_bytes(), 401),
        ("POST", "/v2/models/nobody/infer", vec![], good.as_bytes(), 404),
        ("POST", "/v2/models/echo/versions/2/infer", vec![], good.as_bytes(), 404),
        ("GET", "/v2/models/%2e%2e%2f", vec![], b"", 404),
        ("GET", "/v2/nothing", vec![], b"", 404),
        ("GET", path, vec![], b"", 405),
        ("POST", "/v2/repository/models/echo/unload", vec![], b"", 501),
        // Rows without data, so many that nobody can hold as many answers.
        ("POST", path, vec![], many.0.as_bytes(), 400),
        ("POST", path, vec![], many.1.as_bytes(), 400),
        ("POST", path, vec![], many.2.as_bytes(), 400),
        // A page of another site in a browser on this machine, and somebody behind a proxy: no token of their own.
        ("POST", path, vec![("origin", "https://evil.example")], good.as_bytes(), 401),
        ("POST", path, vec![("x-forwarded-for", "192.0.2.7")], good.as_bytes(), 401),
    ];
    for (method, path, headers, body, status) in cases {
        let told = http(address, method, path, &headers, body);
        let error = told.json()["error"].as_str().map(str::to_owned);
        let error = error.unwrap_or_else(|| panic!("{method} {path} {headers:?}: {}", told.text()));
        assert_eq!(told.status, status, "{method} {path} {headers:?}: {error}");
        assert!(!error.is_empty());
    }
    // A token that opens nothing, and one that opens everything.
    let nobody = format!("Bearer {}", "0".repeat(64));
    assert_eq!(http(address, "POST", path, &[("authorization", &nobody)], good.as_bytes()).status, 401);
    let admin = std::fs::read_to_string(cluster.path("c1/admin.token")).unwrap();
    let admin = format!("Bearer {}", admin.trim());
    assert_eq!(http(address, "POST", path, &[("authorization", &admin)], good.as_bytes()).status, 200);
    // A body that is said to be larger than any may be is refused without being read.
    let huge = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\nconnection: close\r\n\r\n");
    assert_eq!(exchange(address, huge.as_bytes()).status, 413);
    // Somebody who says half of it and goes.
    let mut half = TcpStream::connect(address).unwrap();
    half.write_all(format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nhalf").as_bytes()).unwrap();
    drop(half);
    // What could not be in time is shed, and told when to come again.
    let late = json!({"parameters": {"timeout": 1}, "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]});
    let told = http(address, "POST", path, &[], late.to_string().as_bytes());
    assert_eq!(told.json()["weir_query_id"].as_str().map(str::len), Some(32), "for `weir why`");
    assert_eq!((told.status, told.header("retry-after"), told.header("retry-after-ms")), (429, Some("1"), Some("100")));
    // What is compressed on its way is the same, whatever the length of its JSON is beside the length of the body.
    let zeros = vec![0u8; 2 * 4 * 64];
    let head = json!({"inputs": [{"name": "x", "shape": [64, 2], "datatype": "FP32", "parameters": {"binary_data_size": zeros.len()}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": false}}], "parameters": {"timeout": 20_000_000}})
    .to_string();
    let plain = [head.as_bytes(), &zeros].concat();
    let length = head.len().to_string();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&plain).unwrap();
    let packed = packed.finish().unwrap();
    assert!(packed.len() < head.len(), "the JSON is longer than the body");
    let headers = [("inference-header-content-length", length.as_str()), ("content-encoding", "gzip")];
    let outputs = |told: &Told| told.json()["outputs"].clone();
    let wanted = http(address, "POST", path, &headers[..1], &plain);
    assert_eq!(outputs(&http(address, "POST", path, &headers, &packed)), outputs(&wanted));
    let told = http(address, "POST", path, &[headers[0], headers[1], ("accept-encoding", "gzip")], &packed);
    assert_eq!((told.status, told.header("content-encoding")), (200, Some("gzip")));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&told.body[..]).read_to_string(&mut text).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["outputs"], outputs(&wanted));
}

/// A channel to a gateway.
async fn channel(address: &str) -> tonic::transport::Channel {
    tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

#[test]
fn nonsense_over_grpc_is_refused_in_its_own_codes() {
    let cluster = Cluster::start_with(1, 1, &DOORS);
    cluster.serve_synthetic("width = 2\nalpha_us = 300000\nbeta_us = 20\n", "max_batch = 1");
    let address = cluster.nodes[0].doors["grpc"].clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = GrpcInferenceServiceClient::new(channel(&address).await);
        let request = |shape: &[i64], contents: Option<InferTensorContents>, raw: &[&[u8]]| {
            tonic::Request::new(ModelInferRequest {
                model_name: "echo".into(),
                inputs: vec![InferInputTensor {
                    name: "x".into(),
                    datatype: "FP32".into(),
                    shape: shape.to_vec(),
                    contents,
                    ..Default::default()
                }],
                raw_input_contents: raw.iter().map(|data| data.to_vec()).collect(),
                ..Default::default()
            })
        };
        let floats = InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() };
        let both = InferTensorContents { int_contents: vec![1], ..floats.clone() };
        for bad in [
            request(&[10_000_000_000, 0], None, &[b""]),
            request(&[1 << 62, 0], None, &[b""]),
            request(&[1, 2], Some(both), &[]),
            request(&[1, 2], Some(floats.clone()), &[&[0; 8]]),
            request(&[1, 3], Some(floats.clone()), &[]),
            request(&[1, -2], Some(floats.clone()), &[]),
            request(&[1, 2], None, &[]),
        ] {
            let what = format!("{:?}", bad.get_ref().inputs);
            let refused = client.model_infer(bad).await.expect_err(&what);
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{what}: {refused}");
        }
        let mut of_a_page = request(&[1, 2], Some(floats.clone()), &[]);
        of_a_page.metadata_mut().insert("origin", "https://evil.example".parse().unwrap());
        assert_eq!(client.model_infer(of_a_page).await.unwrap_err().code(), tonic::Code::Unauthenticated);
        // A batch takes 300 ms: the second of two waits that long, and its call's time is up before.
        let asked = || request(&[1, 2], Some(floats.clone()), &[]);
        let mut patient = asked();
        patient.set_timeout(Duration::from_secs(20));
        let mut other = client.clone();
        let first = tokio::spawn(async move { other.model_infer(patient).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut hasty = asked();
        hasty.set_timeout(Duration::from_millis(400));
        let code = client.model_infer(hasty).await.unwrap_err().code();
        assert!([tonic::Code::DeadlineExceeded, tonic::Code::ResourceExhausted].contains(&code), "{code:?}");
        assert!(first.await.unwrap().is_ok());
        // Whoever goes takes the work along, and is counted.
        let mut gone = asked();
        gone.set_timeout(Duration::from_secs(20));
        let given_up = tokio::time::timeout(Duration::from_millis(100), client.model_infer(gone)).await;
        assert!(given_up.is_err(), "a batch takes three times as long");
        // Time to say so.
        tokio::time::sleep(Duration::from_millis(50)).await;
    });
    let node = &cluster.nodes[0];
    eventually("its caller went away", || {
        get(&node.doors["metrics"], "/metrics")
            .text()
            .contains("weir_gateway_requests_total{protocol=\"grpc\",code=\"cancelled\"} 1")
    });
    eventually("nothing runs", || metric(node, "weir_calls_in_flight") == 0.0);
}

/// A gateway by itself, killed when dropped.
struct Alone {
    child: std::process::Child,
    doors: std::collections::BTreeMap<String, String>,
}

impl Alone {
    fn start(cluster: &Cluster, coordinators: &str) -> Alone {
        let mut command = cluster.command(&[&["gateway"], &DOORS[..], &["--coordinators", coordinators]].concat());
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        let doors = (0..3).map(|_| {
            let line = lines.next().unwrap().unwrap();
            let (door, address) = line.split_once(' ').unwrap();
            (door.to_owned(), address.to_owned())
        });
        let doors = doors.collect();
        std::thread::spawn(move || lines.for_each(drop));
        Alone { child, doors }
    }

    fn ready(&self) -> u16 {
        get(&self.doors["metrics"], "/v2/health/ready").status
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_gateway_by_itself_is_ready_when_it_serves_and_ends_beside_open_streams() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

    let cluster = Cluster::start_with(1, 1, &DOORS);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\nbeta_us = 20\n", "");
    // Nobody listens there: it waits, and says so.
    let waits = Alone::start(&cluster, "127.0.0.1:1");
    assert_eq!(waits.ready(), 503);
    assert!(get(&waits.doors["metrics"], "/v2/health/ready").text().contains("not reached its cluster"));
    assert_eq!(get(&waits.doors["metrics"], "/v2/health/live").status, 200);
    drop(waits);

    let mut gateway = Alone::start(&cluster, &cluster.addresses());
    eventually("it is ready", || gateway.ready() == 200);
    let address = gateway.doors["grpc"].clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let channel = channel(&address).await;
        let mut health = HealthClient::new(channel.clone());
        let named = |service: &str| HealthCheckRequest { service: service.to_owned() };
        for service in ["", "inference.GRPCInferenceService"] {
            let told = health.check(named(service)).await.unwrap().into_inner();
            assert_eq!(told.status(), ServingStatus::Serving, "{service:?}");
        }
        let mut watched = health.watch(named("")).await.unwrap().into_inner();
        assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        // A stream that nobody closes.
        let mut client = GrpcInferenceServiceClient::new(channel);
        let silent = futures::stream::pending::<ModelInferRequest>();
        let mut stream = client.model_stream_infer(silent).await.unwrap().into_inner();
        let told = std::process::Command::new("kill").args(["-TERM", &gateway.child.id().to_string()]).status();
        assert!(told.unwrap().success());
        let began = Instant::now();
        let not_serving = watched.message().await.unwrap().unwrap();
        assert_eq!(not_serving.status(), ServingStatus::NotServing, "before it takes no more connections");
        assert_eq!(gateway.ready(), 503);
        assert!(matches!(stream.message().await, Ok(None)), "the stream ends in good order");
        began
    });
    while gateway.child.try_wait().unwrap().is_none() {
        assert!(ended.elapsed() < Duration::from_secs(15), "it waits for streams in which nothing is asked");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn whoever_goes_takes_the_work_along() {
    let cluster = Cluster::start_with(1, 1, &DOORS);
    cluster.serve_synthetic("width = 2\nalpha_us = 200000\nbeta_us = 20\n", "max_batch = 1");
    let node = &cluster.nodes[0];
    let body = json!({"parameters": {"timeout": 20_000_000},
        "inputs": [{"name": "x", "shape": [20, 2], "datatype": "FP32", "data": vec![1; 40]}]})
    .to_string();
    let head = format!("POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut socket = TcpStream::connect(&node.doors["http"]).unwrap();
    socket.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    eventually("it is under way", || metric(node, "weir_calls_in_flight") == 1.0);
    drop(socket);
    let name = "weir_cancelled_calls_total{endpoint=\"echo\"}";
    // Four seconds of work were asked for.
    eventually("it is given up", || metric(node, name) == 1.0 && metric(node, "weir_calls_in_flight") == 0.0);
    assert!(metric(node, "weir_device_busy_seconds_total{device=\"cpu0\"}") < 3.5);
}

#[test]
fn statistics_are_of_all_nodes_and_outlive_them() {
    let mut cluster = Cluster::start_with(1, 2, &DOORS);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\nbeta_us = 20\n", "replicas = { min = 2 }");
    let address = cluster.nodes[0].doors["http"].clone();
    let body = json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).to_string();
    let counts = || {
        let told = get(&address, "/v2/models/echo/stats").json();
        told["model_stats"][0]["inference_stats"]["success"]["count"].as_u64().unwrap()
    };
    for node in &cluster.nodes {
        for _ in 0..15 {
            assert_eq!(http(&node.doors["http"], "POST", "/v2/models/echo/infer", &[], body.as_bytes()).status, 200);
        }
    }
    assert_eq!(counts(), 30);
    assert_eq!(metric(&cluster.nodes[1], "weir_answered_total{endpoint=\"echo\"}"), 15.0);
    cluster.nodes[1].kill();
    assert_eq!(counts(), 30);
}

#[test]
fn a_door_asks_its_own_node_and_others_once_that_drains() {
    let cluster = Cluster::start_with(1, 2, &DOORS);
    cluster.serve_synthetic("width = 2\nalpha_us = 300\nbeta_us = 20\n", "replicas = { min = 2 }");
    let address = &cluster.nodes[0].doors["http"];
    let body = json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).to_string();
    let answered = |node: usize| metric(&cluster.nodes[node], "weir_answered_total{endpoint=\"echo\"}");
    let ask = || assert_eq!(http(address, "POST", "/v2/models/echo/infer", &[], body.as_bytes()).status, 200);
    (0..20).for_each(|_| ask());
    assert_eq!((answered(0), answered(1)), (20.0, 0.0), "no hop that is not needed");
    cluster.ok(&["node", "drain", "n1"]);
    eventually("it asks the other", || {
        ask();
        answered(1) > 0.0
    });
    let before = answered(0);
    (0..20).for_each(|_| ask());
    assert_eq!(answered(0), before);
    assert!(answered(1) >= 20.0);
}

#[test]
fn a_node_that_is_told_to_stop_is_not_ready_and_says_so_first() {
    let cluster = Cluster::start_with(1, 1, &DOORS);
    cluster.serve_synthetic("width = 2\nalpha_us = 1500000\nbeta_us = 20\n", "");
    let node = &cluster.nodes[0];
    let (http_at, metrics_at) = (node.doors["http"].clone(), node.doors["metrics"].clone());
    assert_eq!(get(&http_at, "/v2/health/ready").status, 200);
    eventually("the port beside it says so too", || get(&metrics_at, "/v2/health/ready").status == 200);
    assert_eq!(get(&metrics_at, "/health/live").status, 200);
    let body = json!({"parameters": {"timeout": 20_000_000},
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})
    .to_string();
    let admitted = {
        let http_at = http_at.clone();
        std::thread::spawn(move || http(&http_at, "POST", "/v2/models/echo/infer", &[], body.as_bytes()))
    };
    eventually("it is under way", || metric(node, "weir_calls_in_flight") == 1.0);
    assert!(std::process::Command::new("kill").args(["-TERM", &node.pid().to_string()]).status().unwrap().success());
    eventually("it is not ready", || get(&metrics_at, "/v2/health/ready").status == 503);
    assert_eq!(get(&metrics_at, "/health/live").status, 200);
    let admitted = admitted.join().unwrap();
    assert_eq!(admitted.status, 200, "what was admitted is answered: {}", admitted.text());
}

/// A frame of HTTP/2: its kind, flags and stream before what it carries (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The kinds and flags of the frames that come, until one in `last`.
fn frames_until(connection: &mut TcpStream, last: &[[u8; 2]]) -> Vec<[u8; 2]> {
    let mut frames = Vec::new();
    while frames.last().is_none_or(|frame| !last.contains(frame)) {
        let mut head = [0; 9];
        connection.read_exact(&mut head).expect("the connection lives");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        connection.read_exact(&mut vec![0; length as usize]).expect("a frame is whole");
        frames.push([head[3], head[4]]);
    }
    frames
}

#[test]
fn a_client_that_gives_up_many_calls_at_once_keeps_its_connection() {
    const HEADERS: u8 = 1;
    const RESET: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GO_AWAY: u8 = 7;
    let cluster = Cluster::start_with(1, 1, &DOORS);
    let mut connection = TcpStream::connect(&cluster.nodes[0].doors["grpc"]).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let literal = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    // POST, http, and by the static table: path, authority, content-type (RFC 7541, appendix A).
    let path = literal("/inference.GRPCInferenceService/ServerLive");
    let named: [&[u8]; 8] = [
        &[0x83, 0x86, 0x04],
        &path,
        &[0x01],
        &literal("weir"),
        &[0x0f, 0x10],
        &literal("application/grpc"),
        &[0x00],
        &literal("te"),
    ];
    let headers = [named.concat(), literal("trailers")].concat();
    let mut sent = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
    // All at one look of the server, as where time is up for many in a spike: cancelled (8) before anybody has taken them up.
    for stream in (1..200).step_by(2) {
        sent.extend(frame(HEADERS, 4, stream, &headers));
        sent.extend(frame(RESET, 0, stream, &8u32.to_be_bytes()));
    }
    connection.write_all(&sent).unwrap();
    connection.write_all(&frame(PING, 0, 0, &[7; 8])).unwrap();
    let (answered, closed) = ([PING, 1], [GO_AWAY, 0]);
    let frames = frames_until(&mut connection, &[answered, closed]);
    assert_eq!(frames.last(), Some(&answered), "{frames:?}");
}
