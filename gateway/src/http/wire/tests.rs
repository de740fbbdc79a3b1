use std::time::Duration;

use serde_json::json;
use weir_core::tensor::TensorSpec;

use super::*;
use crate::refusal::Kind;

fn info(dtype: DType, shape: &[Option<u64>]) -> EndpointInfo {
    let spec = |name: &str| TensorSpec { name: name.into(), dtype, shape: shape.to_vec() };
    EndpointInfo {
        inputs: vec![spec("x")],
        outputs: vec![spec("y")],
        label_output: None,
        deadline: Duration::from_millis(50),
        unready: None,
    }
}

fn body(head: serde_json::Value, tail: &[u8]) -> (Vec<u8>, usize) {
    let head = head.to_string().into_bytes();
    let length = head.len();
    ([&head, tail].concat(), length)
}

#[test]
fn json_and_binary_inputs_may_be_mixed() {
    let (body, json) = body(
        json!({"id": "7", "parameters": {"timeout": 5}, "inputs": [
            {"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            {"name": "b", "shape": [2], "datatype": "INT32", "data": [1, 2]},
            {"name": "c", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": true}}, {"name": "z"}], "something": null}),
        b"\0\0\x80\x3f\0\0\0\x40\x02\0\0\0ab",
    );
    let infer = read(&body, json).unwrap();
    assert_eq!(infer.id.as_deref(), Some("7"));
    assert_eq!(infer.inputs[0], ("a".to_owned(), Tensor::f32(&[1, 2], &[1.0, 2.0])));
    assert_eq!(infer.inputs[1].1.data, [1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(infer.inputs[2].1.data, b"\x02\0\0\0ab");
    assert_eq!(infer.outputs, [("y".to_owned(), Some(true)), ("z".to_owned(), None)]);
    assert_eq!(infer.wishes.deadline, Some(Duration::from_micros(5)));
}

#[test]
fn the_length_of_the_json_is_a_number_of_bytes_of_the_body() {
    assert_eq!(json_length(None, 10).unwrap(), 10);
    for (text, length) in [("0", 0), ("1", 1), ("10", 10), (" 7 ", 7)] {
        assert_eq!(json_length(Some(text), 10).unwrap(), length);
    }
    for text in ["11", "-1", "2147483648", "x", "", "1.5", "+5", "0x5", "99999999999999999999"] {
        assert_eq!(json_length(Some(text), 10).unwrap_err().kind, Kind::BadInput, "{text}");
    }
}

#[test]
fn hostile_requests_are_refused_with_a_reason() {
    let input = |input: serde_json::Value| json!({"inputs": [input]});
    let x = |more: serde_json::Value| {
        let mut it = json!({"name": "x", "shape": [2], "datatype": "FP32"});
        it.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input(it)
    };
    for (head, tail, word) in [
        (json!([]), &b""[..], "not of the open inference protocol"),
        (json!({}), b"", "inputs"),
        (json!({"inputs": {}}), b"", "not of the open inference protocol"),
        (x(json!({})), b"", "neither data"),
        (x(json!({"data": [1]})), b"", "needs 8 bytes, got 4"),
        (x(json!({"data": [1, 2, 3]})), b"", "needs 8 bytes, got 12"),
        (x(json!({"data": [[1], [2]]})), b"", "nesting"),
        (x(json!({"data": [1, "a"]})), b"", "no FP32"),
        (x(json!({"data": [1, 2], "parameters": {"binary_data_size": 8}})), b"12345678", "both data"),
        (x(json!({"data": [1, 2]})), b"left", "4 bytes follow"),
        (x(json!({"parameters": {"binary_data_size": 9}})), b"12345678", "8 bytes are left"),
        (x(json!({"parameters": {"binary_data_size": 7}})), b"1234567", "needs 8 bytes, got 7"),
        (x(json!({"parameters": {"binary_data_size": -1}})), b"", "number of bytes"),
        (x(json!({"parameters": {"binary_data_size": "8"}})), b"12345678", "number of bytes"),
        (x(json!({"shape": [-1], "data": [1, 2]})), b"", "below 0"),
        (x(json!({"shape": [1u64 << 62, 1u64 << 62], "data": [1, 2]})), b"", "more elements than can be counted"),
        (x(json!({"datatype": "FP99", "data": [1, 2]})), b"", "no datatype"),
        (x(json!({"datatype": "FP16", "data": [1, 2]})), b"", "binary"),
        (
            x(json!({"datatype": "BYTES", "parameters": {"binary_data_size": 9}})),
            b"\xff\xff\xff\xff\0\0\0\0a",
            "strings",
        ),
        (x(json!({"parameters": {"shared_memory_region": "r"}})), b"", "no shared memory"),
        (json!({"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}), b"", "classify"),
        (json!({"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}), b"", "true or false"),
        (json!({"inputs": [], "parameters": {"a": []}}), b"", "parameter a"),
    ] {
        let (bytes, json) = body(head.clone(), tail);
        let refused = read(&bytes, json).expect_err(&head.to_string());
        assert!(refused.kind == Kind::BadInput && refused.message.contains(word), "{head}: {refused}");
    }
    let deep = "[".repeat(100_000);
    let text = format!("{{\"inputs\": [{{\"name\": \"x\", \"shape\": [1], \"datatype\": \"FP32\", \"data\": {deep}");
    assert_eq!(read(text.as_bytes(), text.len()).unwrap_err().kind, Kind::BadInput);
    assert_eq!(read(b"\xff{}", 3).unwrap_err().kind, Kind::BadInput);
}

#[test]
fn a_request_without_json_is_one_row_of_the_only_input() {
    let raw = |dtype, shape: &[Option<u64>], bytes: usize| read_raw(&vec![0; bytes], &info(dtype, shape));
    let shape =
        |infer: Result<Infer, Refusal>| infer.map(|infer| infer.inputs[0].1.shape.clone()).map_err(|r| r.message);
    assert_eq!(shape(raw(DType::F32, &[None, Some(2)], 8)).unwrap(), [1, 2]);
    assert_eq!(shape(raw(DType::F32, &[None, None, Some(2)], 24)).unwrap(), [1, 3, 2]);
    assert_eq!(shape(raw(DType::U8, &[Some(3), None], 6)).unwrap(), [3, 2]);
    let text = read_raw(b"ab", &info(DType::String, &[None])).unwrap();
    assert_eq!((&text.inputs[0].1.data[..], &text.inputs[0].1.shape[..]), (&b"\x02\0\0\0ab"[..], &[1][..]));
    assert!(text.wishes.binary_output);
    assert!(shape(raw(DType::F32, &[None, Some(2)], 12)).unwrap_err().contains("needs 8 bytes"));
    assert!(shape(raw(DType::F32, &[None, Some(2)], 7)).is_err());
    assert!(shape(raw(DType::F32, &[None, None, None], 8)).unwrap_err().contains("one open dimension"));
    assert!(shape(raw(DType::F32, &[None, None, Some(0)], 8)).is_err());
    let mut two = info(DType::F32, &[None]);
    two.inputs.push(two.inputs[0].clone());
    assert!(read_raw(b"", &two).unwrap_err().message.contains("several"));
}

#[test]
fn outputs_come_back_as_each_was_asked_for() {
    let y = Tensor::f32(&[1, 2], &[0.5, f32::NAN]);
    let z = Tensor::new(DType::I8, vec![1], vec![0xff]).unwrap();
    let response = Response {
        outputs: vec![("y".into(), y.clone()), ("z".into(), z)],
        parameters: vec![("weir_stage", Parameter::Text("a".into())), ("weir_degraded", Parameter::Bool(false))],
    };
    let told = |asked: &[(&str, Option<bool>)], otherwise| {
        let asked = asked.iter().map(|(name, binary)| ((*name).to_owned(), *binary)).collect();
        write("m", Some("7"), &response, &Binary { asked, otherwise }).unwrap()
    };
    let (text, length) = told(&[], false);
    assert_eq!(length, None);
    assert_eq!(
        String::from_utf8(text).unwrap(),
        "{\"model_name\":\"m\",\"model_version\":\"1\",\"id\":\"7\",\"parameters\":{\"weir_stage\":\"a\",\"weir_degraded\":false},\
         \"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[1,2],\"data\":[0.5,\"NaN\"]},\
         {\"name\":\"z\",\"datatype\":\"INT8\",\"shape\":[1],\"data\":[-1]}]}"
    );
    let (bytes, length) = told(&[("y", Some(true)), ("z", None)], false);
    let head: serde_json::Value = serde_json::from_slice(&bytes[..length.unwrap()]).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert_eq!(head["outputs"][1]["data"], json!([-1]));
    assert_eq!(bytes[length.unwrap()..], y.data);
    let (bytes, length) = told(&[("z", Some(false))], true);
    assert_eq!(bytes.len() - length.unwrap(), 8, "y alone");
}

#[test]
fn half_floats_are_refused_in_json_before_anything_runs() {
    let info = info(DType::F16, &[None]);
    let ask = |otherwise| {
        let mut infer = Infer::default();
        infer.wishes.binary_output = otherwise;
        Binary::of(&infer, &info)
    };
    assert!(ask(true).is_ok());
    assert!(ask(false).unwrap_err().message.contains("binary_data"));
}
