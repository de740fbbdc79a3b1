use super::passage::NoRoom;
use super::*;
use crate::tensor::{DType, Row, Signature, TensorSpec};

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
    let stage = |(name, gate): &(&str, Option<Gate>)| {
        Stage::new(StageName::parse(name).unwrap(), ModelRef::parse(&format!("{name}@1")).unwrap(), gate.clone())
    };
    Endpoint {
        label_output: Some("probs".into()),
        ..Endpoint::new(
            EndpointName::parse("e").unwrap(),
            Duration::from_millis(50),
            stages.iter().map(stage).collect(),
        )
    }
}

fn wire(endpoint: &Endpoint, signatures: &[(&str, &Signature)]) -> Result<Wiring, String> {
    let signatures = signatures.iter().map(|(name, s)| (ModelRef::parse(&format!("{name}@1")).unwrap(), *s)).collect();
    endpoint.wire(&signatures).map_err(|bad| bad.to_string())
}

const ASKED: Source = Source::Request { input: 0, each: false };
const GATE: Option<Gate> = Some(Gate::ConfidenceBelow(0.9));

#[test]
fn a_cascade_answers_with_what_its_stages_share() {
    let hidden = spec("h_out", DType::F32, &[-1, 32, 14, 14]);
    let (first, second) = (image(&[hidden.clone(), probs()]), image(&[probs(), spec("extra", DType::I64, &[-1])]));
    let wiring = wire(&endpoint(&[("a", None), ("b", GATE)]), &[("a", &first), ("b", &second)]).unwrap();
    assert_eq!(wiring.signature, image(&[probs()]));
    assert_eq!(wiring.sources, [[ASKED], [ASKED]]);
    assert_eq!(wiring.outputs, [[1], [0]]);
    assert_eq!(wiring.confidence, [Some(1), Some(0)]);
}

#[test]
fn a_segment_takes_the_hidden_tensor_of_the_one_before() {
    let first = image(&[spec("h_out", DType::F32, &[-1, 32, 14, 14]), probs()]);
    let second = Signature { inputs: vec![spec("h", DType::F32, &[-1, 32, 14, 14])], outputs: vec![probs()] };
    let wiring = wire(&endpoint(&[("a", None), ("b", GATE)]), &[("a", &first), ("b", &second)]).unwrap();
    assert_eq!(wiring.sources[1], [Source::Stage { stage: 0, output: 0, each: false }]);
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
    for weight in [f64::NAN, f64::INFINITY, 0.0, -1.0, 0.009, 2e6] {
        assert!(refused(&Endpoint { weight, ..cascade.clone() }, &good).contains("a weight from 0.01 to 1000000"));
    }
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

#[test]
fn a_learned_signal_decides_and_another_output_tells_the_class() {
    let sure = |width| spec("sure", DType::F32, &[-1, width]);
    let (first, last) = (image(&[probs(), sure(1)]), image(&[probs()]));
    let with =
        |gate| Endpoint { confidence_output: Some("sure".into()), ..endpoint(&[("a", None), ("b", Some(gate))]) };
    let models = [("a", &first), ("b", &last)];
    let mut row = [0.0; 10];
    (row[3], row[4]) = (0.75, 0.25);
    let tensors = vec![Tensor::f32(&[1, 10], &row), Tensor::f32(&[1, 1], &[0.125])];
    let outputs = Row { tensors: std::sync::Arc::new(tensors), row: Some(0) };

    let cascade = with(Gate::ConfidenceBelow(0.5));
    let wiring = wire(&cascade, &models).unwrap();
    assert_eq!(wiring.labels, [Some(0), Some(0)]);
    assert_eq!(wiring.confidence, [Some(1), Some(0)], "of the last stage nothing else is known");
    assert_eq!(wiring.signature, image(&[probs()]));
    assert_eq!(passage::signal(&cascade, &wiring, 0, &outputs), Some(0.125));
    assert_eq!(passage::class(&wiring, 0, &outputs), Some(3));
    assert_eq!(passage::signal(&cascade, &wiring, 1, &outputs), Some(0.75));

    // A gate by probabilities looks at them.
    let unsure = with(Gate::MarginBelow(0.9));
    let wiring = wire(&unsure, &models).unwrap();
    assert_eq!(wiring.confidence, [Some(0), Some(0)]);
    assert_eq!(passage::signal(&unsure, &wiring, 0, &outputs), Some(0.5));
    assert!(wire(&unsure, &[("a", &last), ("b", &last)]).is_ok(), "nothing looks at what is not there");

    assert!(wire(&cascade, &[("a", &last), ("b", &last)]).unwrap_err().contains("stage a has no output sure"));
    let wide = image(&[probs(), sure(2)]);
    assert!(wire(&cascade, &[("a", &wide), ("b", &last)]).unwrap_err().contains("one number a row"));
    // Where it is all that there is, every stage has it.
    let alone = Endpoint { label_output: None, ..cascade };
    assert!(wire(&alone, &models).unwrap_err().contains("stage b has no output sure"));
}

fn feed(input: &str, stage: Option<u32>, tensor: &str, each: bool) -> Feed {
    Feed { input: input.into(), stage, tensor: tensor.into(), each }
}

fn combining(name: &str, how: graph::How, inputs: Vec<Feed>) -> Stage {
    let run = Run::Combine(Combine { how, at_least: None });
    Stage { name: StageName::parse(name).unwrap(), run, gate: None, inputs, when: None }
}

/// Two models side by side, and what combines them.
fn ensemble(how: graph::How) -> Endpoint {
    let mut both = endpoint(&[("a", None), ("b", None)]);
    let inputs = vec![feed("a", Some(0), "probs", false), feed("b", Some(1), "probs", false)];
    both.stages.push(combining("both", how, inputs));
    both
}

#[test]
fn stages_that_name_nothing_run_side_by_side_in_a_graph() {
    let good = image(&[probs()]);
    let models = [("a", &good), ("b", &good)];
    let wiring = wire(&ensemble(graph::How::Mean), &models).unwrap();
    assert_eq!(wiring.signature, image(&[probs()]));
    assert_eq!(wiring.flow.answers(), 0b111, "a branch can answer where the combination cannot");
    assert_eq!(wiring.flow.needs()[1].mask(), 0);
    assert_eq!(wiring.flow.needs()[2].some, Some((0b11, 2)));
    let joined = wire(&ensemble(graph::How::Concat), &models).unwrap();
    assert_eq!(joined.signature.outputs, [spec("probs", DType::F32, &[-1, 20])]);
    assert_eq!(joined.flow.answers(), 0b100, "what branches give is something else");
}

#[test]
fn a_flattened_stage_gives_a_list_that_is_combined_by_item() {
    let cut = image(&[spec("crops", DType::F32, &[-1, -1, 1, 8, 8])]);
    let of_crop = Signature { inputs: vec![spec("x", DType::F32, &[-1, 1, 8, 8])], outputs: vec![probs()] };
    let mut flat = endpoint(&[("a", None), ("b", None)]);
    flat.stages[1].inputs = vec![feed("x", Some(0), "crops", true)];
    let models = [("a", &cut), ("b", &of_crop)];
    let listed = wire(&flat, &models).unwrap();
    assert_eq!(listed.signature.outputs, [spec("probs", DType::F32, &[-1, -1, 10])]);
    assert!(listed.is_flattened(1) && !listed.is_flattened(0));
    flat.stages.push(combining("all", graph::How::Mean, vec![feed("probs", Some(1), "probs", false)]));
    let joined = wire(&flat, &models).unwrap();
    assert_eq!(joined.signature.outputs, [probs()]);
    assert_eq!(joined.flow.answers(), 0b100);
    flat.stages[1].inputs = vec![feed("x", Some(0), "crops", false)];
    assert!(wire(&flat, &models).unwrap_err().contains("needs the input x f32[-,1,8,8] and would get crops"));
}

#[test]
fn items_are_counted_and_weighed_before_anything_is_copied() {
    let of_crop = Signature {
        inputs: vec![spec("x", DType::F32, &[-1, 1]), spec("shared", DType::F32, &[-1, -1])],
        outputs: vec![probs()],
    };
    let mut flat = endpoint(&[("a", None)]);
    flat.stages[0].inputs = vec![feed("x", None, "xs", true), feed("shared", None, "shared", false)];
    let wiring = wire(&flat, &[("a", &of_crop)]).unwrap();
    let ask = |items: u64, numbers: usize, room: &mut passage::Room| {
        let given = |name: &str| match name {
            "xs" => Tensor::f32(&[1, items, 1], &vec![0.5; items as usize]),
            _ => Tensor::f32(&[1, numbers as u64], &vec![1.0; numbers]),
        };
        let inputs = wiring.signature.inputs.iter().map(|spec| given(&spec.name)).collect();
        let request = crate::tensor::Row { tensors: std::sync::Arc::new(inputs), row: Some(0) };
        let passage = Passage { endpoint: &flat, wiring: &wiring, request: &request, answer: &|_| None };
        match passage.asks_within(0, room)? {
            Asks::Each(items) => Ok::<usize, NoRoom>(items.len()),
            Asks::One(_) => panic!("it is flattened"),
        }
    };
    let once = |items, numbers| ask(items, numbers, &mut passage::Room::new());
    let why = |refused: Result<usize, NoRoom>| match refused.unwrap_err() {
        NoRoom::Ever(why) => why,
        NoRoom::Now => panic!("no other call is there"),
    };
    assert_eq!(once(4096, 4), Ok(4096));
    assert!(why(once(4097, 1 << 20)).contains("4097 items; 4096 are the most"));
    // 1 MiB that each of them would have for itself.
    assert_eq!(once(60, 1 << 18), Ok(60));
    assert!(why(once(4096, 1 << 18)).contains("take 4097 MiB; 64 MiB are the most"));

    // Each row may, and all of a call may not.
    let mut room = passage::Room::new();
    let rows = (0..).take_while(|_| ask(60, 1 << 18, &mut room).is_ok()).count();
    assert_eq!(rows, 8, "of 512 MiB");
    assert!(why(ask(60, 1 << 18, &mut room)).contains("send fewer rows in a call"));
    let mut room = passage::Room::new();
    let rows = (0..).take_while(|_| ask(4096, 1, &mut room).is_ok()).count();
    assert_eq!(rows, 16);
    let before = room.left();
    assert!(ask(4096, 1, &mut room).is_err() && room.left() == before, "who is refused takes nothing");
    room.give_back(passage::Taken { items: 4096, bytes: 4096 * 8 });
    assert_eq!(ask(4096, 1, &mut room), Ok(4096), "what has ended makes room");
}

#[test]
fn who_finds_no_room_beside_what_lies_at_devices_for_nobody_may_ask_again() {
    let mut room = passage::Room::new();
    (0..16).for_each(|_| room.take_items(4096, 4 << 20).unwrap());
    assert!(matches!(room.take_items(1, 0), Err(NoRoom::Ever(_))));
    let left = passage::Taken { items: 100, bytes: 100 << 10 };
    room.abandon(left);
    assert_eq!(room.take_items(100, 0), Err(NoRoom::Now), "it lies there still");
    assert!(matches!(room.take_items(101, 0), Err(NoRoom::Ever(_))));
    assert!(room.take(448 << 20).is_ok());
    assert_eq!(room.take(100 << 10), Err(NoRoom::Now));
    assert!(matches!(room.take((100 << 10) + 1), Err(NoRoom::Ever(_))));
    room.give_back_abandoned(left);
    assert_eq!(room.take_items(100, 100 << 10), Ok(()));
    assert!(matches!(room.take_items(1, 0), Err(NoRoom::Ever(_))), "now all of it is asked for");
}

#[test]
fn calls_of_a_node_have_to_leave_each_other_room() {
    const MIB: usize = 1 << 20;
    let held = passage::Held::new(100 * MIB);
    let [mut first, mut second, mut small] = [0, 1, 2].map(|_| passage::Room::among(&held));
    assert_eq!((first.take(60 * MIB), second.take(40 * MIB)), (Ok(()), Ok(())));
    assert_eq!(second.take(1), Err(NoRoom::Now));
    assert_eq!((small.take(4096), held.bytes()), (Ok(()), 100 * MIB + 4096), "a little has room beside them");
    assert!(small.take(MIB).is_err());
    drop(small);
    second.give_back(passage::Taken { items: 0, bytes: 10 * MIB });
    assert_eq!((held.bytes(), second.take(5 * MIB)), (90 * MIB, Ok(())));
    drop(first);
    assert_eq!((held.bytes(), second.take(65 * MIB)), (35 * MIB, Ok(())));
    drop(second);
    assert_eq!(held.bytes(), 0);
}

#[test]
fn a_condition_looks_at_a_stage_before() {
    let good = image(&[probs(), spec("score", DType::F32, &[-1])]);
    let models = [("a", &good), ("b", &good)];
    let when = |stage, signal| {
        let mut routed = endpoint(&[("a", None), ("b", None)]);
        routed.stages[1].when = Some(Condition { stage, signal, is: graph::Comparison::Less, than: 0.5 });
        wire(&routed, &models)
    };
    let wiring = when(0, graph::Signal::Confidence).unwrap();
    assert_eq!((wiring.conditions[0].as_slice(), wiring.flow.needs()[1].when), ([(1, 0)].as_slice(), Some(0)));
    assert_eq!(when(0, graph::Signal::Output("score".into())).unwrap().conditions[0], [(1, 1)]);
    let mut learned = endpoint(&[("a", None), ("b", None)]);
    learned.confidence_output = Some("score".into());
    for (signal, output) in [(graph::Signal::Confidence, 1), (graph::Signal::Label, 0)] {
        learned.stages[1].when = Some(Condition { stage: 0, signal, is: graph::Comparison::Less, than: 0.5 });
        assert_eq!(wire(&learned, &models).unwrap().conditions[0], [(1, output)]);
    }
    assert!(when(0, graph::Signal::Output("scores".into())).unwrap_err().contains("looks at a.scores"));
    assert!(when(1, graph::Signal::Label).unwrap_err().contains("does not stand before it"));
}

#[test]
fn graphs_that_cannot_be_served_are_refused_with_the_reason() {
    let good = image(&[probs()]);
    let models = [("a", &good), ("b", &good)];
    let refused = |change: fn(&mut Endpoint)| {
        let mut graph = ensemble(graph::How::Mean);
        change(&mut graph);
        wire(&graph, &models).unwrap_err()
    };
    assert!(refused(|g| g.stages[2].inputs[0].tensor = "prob".into()).contains("there is no a.prob; a has probs"));
    assert!(refused(|g| g.stages[2].inputs[0].stage = Some(2)).contains("does not stand before it"));
    assert!(refused(|g| g.stages[2].inputs.clear()).contains("has no inputs"));
    assert!(refused(|g| g.stages[0].inputs = vec![feed("y", None, "x", false)]).contains("has no input y; it has x"));
    assert!(
        refused(|g| g.stages[2].run = Run::Combine(Combine { how: graph::How::Mean, at_least: Some(3) }))
            .contains("at_least is from 1")
    );
    assert!(
        refused(|g| g.stages[2].run = Run::Combine(Combine { how: graph::How::Weighted(vec![1.0]), at_least: None }))
            .contains("weights need")
    );
    let other = image(&[spec("probs", DType::F32, &[-1, 11])]);
    assert!(
        wire(&ensemble(graph::How::Mean), &[("a", &good), ("b", &other)]).unwrap_err().contains("do not go together")
    );
    let mut idle = ensemble(graph::How::Concat);
    idle.stages[2].inputs.pop();
    assert!(wire(&idle, &models).is_ok(), "b has the same output as one input alone, so it can answer");
    let hidden = image(&[spec("h", DType::F32, &[-1, 4])]);
    assert!(wire(&idle, &[("a", &good), ("b", &hidden)]).unwrap_err().contains("nothing takes what stage b gives"));
}

#[test]
fn a_default_answer_is_what_the_stages_give() {
    let good = image(&[probs()]);
    let with = |name: &str, classes: u64| {
        let mut cascade = endpoint(&[("a", None), ("b", GATE)]);
        cascade.default_outputs = vec![(name.into(), Tensor::f32(&[1, classes], &vec![0.1; classes as usize]))];
        wire(&cascade, &[("a", &good), ("b", &good)])
    };
    assert!(with("probs", 10).is_ok());
    assert!(with("probs", 9).unwrap_err().contains("default_output probs is f32[9], its stages give probs f32[-,10]"));
    assert!(with("prob", 10).unwrap_err().contains("has no probs"));
}

#[test]
fn a_default_answer_has_the_types_that_the_stages_give() {
    let good = image(&[probs(), spec("label", DType::I64, &[-1]), spec("flag", DType::U8, &[-1])]);
    let number = |n: i64| Tensor::new(DType::I64, vec![1], n.to_le_bytes().to_vec()).unwrap();
    let mut cascade = endpoint(&[("a", None), ("b", GATE)]);
    let wired = |flag: i64, cascade: &mut Endpoint| {
        let tenth = Tensor::new(DType::F64, vec![1, 10], 0.1f64.to_le_bytes().repeat(10)).unwrap();
        cascade.default_outputs =
            vec![("flag".into(), number(flag)), ("label".into(), number(3)), ("probs".into(), tenth)];
        cascade.type_defaults(|_| Some(&good));
        wire(cascade, &[("a", &good), ("b", &good)])
    };
    assert!(wired(255, &mut cascade).is_ok());
    let typed: Vec<DType> = cascade.default_outputs.iter().map(|(_, tensor)| tensor.dtype).collect();
    assert_eq!(typed, [DType::U8, DType::I64, DType::F32]);
    let refused = wired(256, &mut cascade).unwrap_err();
    assert!(refused.contains("default_output flag is i64[], its stages give flag u8[-]"), "{refused}");
    // Of a model that nobody knows yet nothing is known.
    cascade.default_outputs = vec![("label".into(), number(3))];
    cascade.type_defaults(|_| None);
    assert_eq!(cascade.default_outputs[0].1, number(3));
}

#[test]
fn versions_take_and_give_the_same() {
    let good = image(&[probs()]);
    let split = |name: &str, share| Split { model: ModelRef::parse(&format!("{name}@1")).unwrap(), share };
    let with = |versions: &[Split], second: &Signature| {
        let endpoint = Endpoint { versions: versions.to_vec(), ..endpoint(&[("a", None)]) };
        wire(&endpoint, &[("a", &good), ("b", second)]).map(|wiring| (wiring, endpoint))
    };
    let (wiring, both) = with(&[split("a", 9), split("b", 1)], &good).unwrap();
    assert_eq!(wiring.signature, image(&[probs()]));
    assert_eq!(both.models().count(), 2);
    let variants = both.variants();
    assert_eq!(variants.iter().map(|(share, _)| *share).collect::<Vec<_>>(), [9, 1]);
    assert_eq!(variants[1].1.stages[0].model(), Some(&split("b", 1).model));
    let other = image(&[spec("probs", DType::F32, &[-1, 11])]);
    assert!(with(&[split("a", 1), split("b", 1)], &other).unwrap_err().contains("take or give something else"));
    assert!(with(&[split("a", 0)], &good).unwrap_err().contains("share of 0"));
    assert!(with(&[split("a", 1), split("a", 2)], &good).unwrap_err().contains("twice"));
    assert!(with(&[split("c", 1)], &good).unwrap_err().contains("not registered"));
    let cascade = Endpoint { versions: vec![split("a", 1)], ..endpoint(&[("a", None), ("b", GATE)]) };
    assert!(wire(&cascade, &[("a", &good), ("b", &good)]).unwrap_err().contains("several stages"));
}
