use weir_core::ids::QueryId;
use weir_core::outcome::Rejection;
use weir_core::tensor::DType;

use super::*;

fn spec(name: &str, shape: &[Option<u64>]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: DType::F32, shape: shape.to_vec() }
}

pub fn info(inputs: &[TensorSpec], outputs: &[TensorSpec]) -> EndpointInfo {
    EndpointInfo {
        inputs: inputs.to_vec(),
        outputs: outputs.to_vec(),
        label_output: None,
        deadline: Duration::from_millis(50),
        unready: None,
    }
}

fn rows() -> EndpointInfo {
    info(&[spec("x", &[None, Some(2)])], &[spec("y", &[None, Some(1)]), spec("z", &[None])])
}

fn ask(inputs: &[(&str, Tensor)], outputs: &[&str]) -> Result<Request, Refusal> {
    let inputs = inputs.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
    let outputs = outputs.iter().map(|name| (*name).to_owned()).collect();
    request(EndpointName::parse("e").unwrap(), &rows(), inputs, outputs, Wishes::default())
}

fn answer(stage: &str, y: f32) -> Answer {
    Answer {
        id: QueryId(7),
        outcome: Outcome::Answered,
        message: String::new(),
        outputs: vec![("y".into(), Tensor::f32(&[1], &[y]))],
        model: "m@1".into(),
        stage: stage.into(),
        degraded: false,
        node: "n1".into(),
        price: 0.0,
        expected_loss: 0.0,
        expected_right: None,
        timings: weir_client::Timings::default(),
        trace: None,
    }
}

#[test]
fn the_first_dimension_is_rows_where_it_is_open_everywhere() {
    assert!(has_rows(&rows()));
    for (input, output) in [
        (spec("x", &[Some(1), Some(2)]), spec("y", &[None])),
        (spec("x", &[None]), spec("y", &[Some(3)])),
        (spec("x", &[]), spec("y", &[None])),
    ] {
        assert!(!has_rows(&info(&[input], &[output])));
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let x = Tensor::f32(&[2, 2], &[0.0; 4]);
    assert!(!ask(&[("x", x.clone())], &["z"]).unwrap().whole);
    let of_type = Tensor { dtype: DType::I32, ..x.clone() };
    for (inputs, outputs, word) in [
        (vec![], vec![], "\"x\" is missing"),
        (vec![("x", x.clone()), ("x", x.clone())], vec![], "twice"),
        (vec![("x", x.clone()), ("w", x.clone())], vec![], "no input \"w\""),
        (vec![("x", of_type)], vec![], "is FP32, and the request has INT32"),
        (vec![("x", x.clone())], vec!["q"], "no output \"q\""),
        (vec![("x", x.clone())], vec!["y", "y"], "asked for twice"),
        (vec![("x", Tensor::f32(&[0, 2], &[]))], vec![], "no rows"),
        (vec![("x", Tensor::f32(&[], &[0.0]))], vec![], "numbers of rows"),
    ] {
        let refused = ask(&inputs, &outputs).unwrap_err();
        assert!(refused.kind == Kind::BadInput && refused.message.contains(word), "{refused}");
    }
}

#[test]
fn rows_are_put_together_and_one_that_has_no_answer_is_the_answer_to_all() {
    let told = response(vec![answer("a", 1.0), answer("b", 2.0)], false).unwrap();
    assert_eq!(told.outputs, [("y".to_owned(), Tensor::f32(&[2, 1], &[1.0, 2.0]))]);
    assert!(told.parameters.contains(&("weir_stage", Parameter::Text("a,b".into()))));
    let alike = response(vec![answer("a", 1.0), answer("a", 2.0)], false).unwrap();
    assert!(alike.parameters.contains(&("weir_stage", Parameter::Text("a".into()))));
    let late = Answer { outcome: Outcome::Expired, message: "late".into(), ..answer("a", 0.0) };
    let refused = response(vec![answer("a", 1.0), late], false).unwrap_err();
    assert_eq!((refused.kind, refused.message.as_str()), (Kind::Late, "row 1 of 2: late"));
    let long = Answer { outputs: vec![("y".into(), Tensor::f32(&[2], &[0.0; 2]))], ..answer("a", 0.0) };
    let refused = response(vec![answer("a", 1.0), long], false).unwrap_err();
    assert!(refused.message.contains("row by row"), "{refused}");
    let whole = response(vec![answer("a", 1.0)], true).unwrap();
    assert_eq!(whole.outputs[0].1.shape, [1], "the array as it is");
}

#[test]
fn every_outcome_says_who_must_act() {
    for (outcome, status, code) in [
        (Outcome::Rejected(Rejection::TooLate), 429, tonic::Code::ResourceExhausted),
        (Outcome::Rejected(Rejection::Outbid), 429, tonic::Code::ResourceExhausted),
        (Outcome::Rejected(Rejection::NoReplica), 503, tonic::Code::Unavailable),
        (Outcome::Rejected(Rejection::Draining), 503, tonic::Code::Unavailable),
        (Outcome::Rejected(Rejection::BadInput), 400, tonic::Code::InvalidArgument),
        (Outcome::Rejected(Rejection::UnknownEndpoint), 404, tonic::Code::NotFound),
        (Outcome::Rejected(Rejection::Forbidden), 403, tonic::Code::PermissionDenied),
        (Outcome::Expired, 504, tonic::Code::DeadlineExceeded),
        (Outcome::Failed, 500, tonic::Code::Internal),
        (Outcome::Unknown, 502, tonic::Code::Unknown),
    ] {
        let refusal = Refusal::of(&Answer { outcome, ..answer("a", 0.0) }, 0, 1);
        assert_eq!((refusal.status().as_u16(), refusal.grpc().code()), (status, code), "{outcome:?}");
        let told = refusal.grpc().metadata().contains_key("retry-after-ms");
        assert_eq!(told, status == 429);
    }
}

#[test]
fn wishes_are_read_from_parameters() {
    let mut wishes = Wishes::default();
    for (name, value) in [
        ("timeout", Parameter::Int(50_000)),
        ("priority", Parameter::Int(1)),
        ("weir_min_stage", Parameter::Text("mid".into())),
        ("weir_whole", Parameter::Bool(true)),
        ("headers", Parameter::Text("whatever".into())),
        ("something", Parameter::Float(1.0)),
    ] {
        wishes.take(name, &value).unwrap();
    }
    assert_eq!(wishes.deadline, Some(Duration::from_millis(50)));
    assert_eq!((wishes.class.clone().get(), wishes.whole), (Some(Class::Critical), Some(true)));
    assert_eq!(wishes.min_stage.as_ref().unwrap().as_str(), "mid");
    wishes.take("priority", &Parameter::Int(9)).unwrap();
    wishes.take("timeout", &Parameter::Int(0)).unwrap();
    let deadline = Some(Duration::from_millis(50));
    assert_eq!((wishes.class.clone().get(), wishes.deadline), (Some(Class::Sheddable), deadline), "none is no shorter");
    wishes.take("weir_deadline_ms", &Parameter::Float(2.5)).unwrap();
    assert_eq!(wishes.deadline, Some(Duration::from_micros(2_500)));
    for (name, value) in [
        ("timeout", Parameter::Int(-1)),
        ("timeout", Parameter::Bool(true)),
        ("weir_deadline_ms", Parameter::Float(f64::NAN)),
        ("weir_deadline_ms", Parameter::Int(0)),
        ("priority", Parameter::Int(-1)),
        ("weir_class", Parameter::Text("best".into())),
        ("weir_class", Parameter::Int(1)),
        ("weir_max_stage", Parameter::Text("no such NAME".into())),
        ("sequence_id", Parameter::Int(3)),
    ] {
        assert_eq!(wishes.take(name, &value).unwrap_err().kind, Kind::BadInput, "{name} {value:?}");
    }
}

#[test]
fn what_is_said_in_several_places_counts_alike_in_any_order() {
    let parameters = [
        ("timeout", Parameter::Int(30_000)),
        ("weir_deadline_ms", Parameter::Int(40)),
        ("priority", Parameter::Int(1)),
        ("weir_class", Parameter::Text("sheddable".into())),
    ];
    let said = |order: &[usize], headers_first: bool| {
        let mut wishes = Wishes::default();
        let headers = |wishes: &mut Wishes| wishes.take_headers(Some("35"), Some("default")).unwrap();
        if headers_first {
            headers(&mut wishes);
        }
        for i in order {
            wishes.take(parameters[*i].0, &parameters[*i].1).unwrap();
        }
        if !headers_first {
            headers(&mut wishes);
        }
        (wishes.deadline.unwrap().as_millis(), wishes.class.get().unwrap())
    };
    for headers_first in [true, false] {
        assert_eq!(said(&[0, 1, 2, 3], headers_first), (30, Class::Sheddable));
        assert_eq!(said(&[3, 2, 1, 0], headers_first), (30, Class::Sheddable));
        assert_eq!(said(&[2], headers_first), (35, Class::Critical));
        assert_eq!(said(&[], headers_first), (35, Class::Default));
    }
}

#[test]
fn a_model_has_version_1_alone() {
    assert_eq!(endpoint("e", "").unwrap().as_str(), "e");
    assert_eq!(endpoint("e", "1").unwrap().as_str(), "e");
    for (name, version) in [("e", "2"), ("e", "latest"), ("", ""), ("E F", ""), ("../e", "")] {
        assert_eq!(endpoint(name, version).unwrap_err().kind, Kind::NotFound, "{name} {version}");
    }
}
