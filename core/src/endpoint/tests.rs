use super::*;

fn spec(name: &str, dtype: DType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.iter().map(|d| u64::try_from(*d).ok()).collect() }
}

fn image(outputs: &[TensorSpec]) -> Signature {
    Signature { inputs: vec![spec("x", DType::F32, &[-1, 1, 28, 28])], outputs: outputs.to_vec() }
}

fn probs() -> TensorSpec {
    spec("probs", DType::F32, &[-1, 10])
}

pub(crate) fn endpoint(stages: &[(&str, Option<Gate>)]) -> Endpoint {
    let stage = |(name, gate): &(&str, Option<Gate>)| Stage {
        name: StageName::parse(name).unwrap(),
        model: ModelRef::parse(&format!("{name}@1")).unwrap(),
        gate: gate.clone(),
    };
    Endpoint {
        name: EndpointName::parse("e").unwrap(),
        deadline: Duration::from_millis(50),
        weight: 1.0,
        class: Class::Default,
        label_output: Some("probs".into()),
        confidence_output: None,
        stages: stages.iter().map(stage).collect(),
    }
}

fn wire(endpoint: &Endpoint, signatures: &[(&str, &Signature)]) -> Result<Wiring, String> {
    let signatures = signatures.iter().map(|(name, s)| (ModelRef::parse(&format!("{name}@1")).unwrap(), *s)).collect();
    endpoint.wire(&signatures).map_err(|bad| bad.to_string())
}

const GATE: Option<Gate> = Some(Gate::ConfidenceBelow(0.9));

#[test]
fn a_cascade_answers_with_what_its_stages_share() {
    let hidden = spec("h_out", DType::F32, &[-1, 32, 14, 14]);
    let (first, second) = (image(&[hidden.clone(), probs()]), image(&[probs(), spec("extra", DType::I64, &[-1])]));
    let wiring = wire(&endpoint(&[("a", None), ("b", GATE)]), &[("a", &first), ("b", &second)]).unwrap();
    assert_eq!(wiring.signature, image(&[probs()]));
    assert_eq!(wiring.sources, [[Source::Request(0)], [Source::Request(0)]]);
    assert_eq!(wiring.outputs, [[1], [0]]);
    assert_eq!(wiring.confidence, [Some(1), Some(0)]);
}

#[test]
fn a_segment_takes_the_hidden_tensor_of_the_one_before() {
    let first = image(&[spec("h_out", DType::F32, &[-1, 32, 14, 14]), probs()]);
    let second = Signature { inputs: vec![spec("h", DType::F32, &[-1, 32, 14, 14])], outputs: vec![probs()] };
    let wiring = wire(&endpoint(&[("a", None), ("b", GATE)]), &[("a", &first), ("b", &second)]).unwrap();
    assert_eq!(wiring.sources[1], [Source::Previous(0)]);
}

#[test]
fn what_cannot_be_served_is_refused_with_the_reason() {
    let good = image(&[probs()]);
    let refused = |endpoint: &Endpoint, second: &Signature| wire(endpoint, &[("a", &good), ("b", second)]).unwrap_err();
    let cascade = endpoint(&[("a", None), ("b", GATE)]);
    assert!(refused(&endpoint(&[]), &good).contains("has no stage"));
    assert!(refused(&endpoint(&[("a", GATE)]), &good).contains("first stage has a gate"));
    assert!(refused(&endpoint(&[("a", None), ("a", GATE)]), &good).contains("stands twice"));
    assert!(refused(&endpoint(&[("c", None)]), &good).contains("model c@1, which is not registered"));
    assert!(refused(&cascade, &image(&[spec("probs", DType::F32, &[-1, 11])])).contains("share no output"));
    assert!(
        refused(&cascade, &Signature { inputs: vec![spec("y", DType::F32, &[-1])], ..good.clone() })
            .contains("needs the input y f32[-]")
    );
    let mut unnamed = cascade.clone();
    unnamed.label_output = None;
    assert!(refused(&unnamed, &good).contains("name a label_output"));
    let mut misnamed = cascade.clone();
    misnamed.label_output = Some("prob".into());
    assert!(refused(&misnamed, &good).contains("has no output prob; it has probs"));
    assert!(refused(&Endpoint { weight: f64::NAN, ..cascade }, &good).contains("finite weight"));
}

#[test]
fn gates_that_cannot_decide_are_refused() {
    let good = image(&[probs(), spec("sure", DType::F32, &[-1])]);
    let refused = |endpoint: &Endpoint| wire(endpoint, &[("a", &good), ("b", &good), ("c", &good)]).unwrap_err();
    let mut unnamed = endpoint(&[("a", None), ("b", Some(Gate::EntropyAbove(0.5)))]);
    unnamed.label_output = None;
    unnamed.confidence_output = Some("sure".into());
    assert!(refused(&unnamed).contains("name their label_output"));
    let gate = |next: &[f32]| {
        let bin =
            |confidence| gain::Bin { confidence, rows: 9, right: 0.5, gain: 0.1, error: 0.1, next: next.to_vec() };
        let table = GainTable::new(vec![bin(0.4), bin(0.6)]).unwrap();
        Some(Gate::Gain { table: std::sync::Arc::new(table), min_gain: 0.0 })
    };
    let cascade = |first, second| endpoint(&[("a", None), ("b", first), ("c", second)]);
    assert!(refused(&cascade(gate(&[1.0]), gate(&[]))).contains("not made together"));
    let fits = cascade(gate(&[0.5, 0.5]), gate(&[]));
    assert!(wire(&fits, &[("a", &good), ("b", &good), ("c", &good)]).is_ok());
    let alone = cascade(gate(&[1.0]), GATE);
    assert!(wire(&alone, &[("a", &good), ("b", &good), ("c", &good)]).is_ok(), "the next gate needs no table");
}
