//! An endpoint checked against what its models take and give.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::graph::{Feed, Flow, How, Needs, Run, STAGES_MAX, Signal, Stages};
use super::{AUDIT_MAX, DEFAULT, Endpoint, Gate, Stage, WEIGHTS};
use crate::ids::{EndpointName, ModelRef};
use crate::tensor::{DType, Signature, TensorSpec};

/// Where a stage's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Source {
    /// The endpoint's input of this number.
    Request { input: usize, each: bool },
    /// The output of this number of a stage before. `each`: item by item.
    Stage { stage: usize, output: usize, each: bool },
}

impl Source {
    /// Whether each item of it runs by itself.
    pub fn is_flattened(self) -> bool {
        let (Source::Request { each, .. } | Source::Stage { each, .. }) = self;
        each
    }
}

/// An endpoint with what its models take and give: everything that a home needs to run a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Wiring {
    /// Inputs of the request; outputs by name, type and shape of every stage that can answer.
    pub signature: Signature,
    /// By stage: where each of its inputs comes from.
    pub sources: Vec<Vec<Source>>,
    /// By stage: the number of each of `signature.outputs` among what it gives; empty where it cannot answer.
    pub outputs: Vec<Vec<usize>>,
    /// By stage: what it gives, as others see it.
    pub gives: Vec<Vec<TensorSpec>>,
    /// By stage: the number of the label output among what it gives.
    pub labels: Vec<Option<usize>>,
    /// By stage: the number of the output that the gate behind it looks at among what it gives, or else of the one that says how sure
    /// it is: the confidence output, or the label output.
    pub confidence: Vec<Option<usize>>,
    /// By stage: the conditions that look at it, as the stage that has one and the number of the output that is looked at.
    pub conditions: Vec<Vec<(usize, usize)>>,
    /// What stages wait for.
    pub flow: Arc<Flow>,
}

/// By stage: the numbers of the outputs that tell the class, and the confidence.
type Told = (Vec<Option<usize>>, Vec<Option<usize>>);

/// Why an endpoint cannot be served as declared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("endpoint {endpoint}: {what}")]
#[allow(missing_docs)]
pub struct BadEndpoint {
    pub endpoint: EndpointName,
    pub what: String,
}

impl Wiring {
    /// Whether a stage runs for each item of a row.
    pub fn is_flattened(&self, stage: usize) -> bool {
        self.sources[stage].iter().any(|source| source.is_flattened())
    }
}

/// A name that no endpoint may have.
const RESERVED: &str = "stats";

impl Endpoint {
    /// Checks the declaration against the signatures of its models and wires the stages to each other.
    pub fn wire(&self, signatures: &BTreeMap<ModelRef, &Signature>) -> Result<Wiring, BadEndpoint> {
        self.wired(signatures).map_err(|what| BadEndpoint { endpoint: self.name.clone(), what })
    }

    fn wired(&self, signatures: &BTreeMap<ModelRef, &Signature>) -> Result<Wiring, String> {
        self.check()?;
        if !self.versions.is_empty() || self.shadow.is_some() {
            return self.wire_versions(signatures);
        }
        let wiring = if self.is_chain() { self.wire_chain(signatures)? } else { self.wire_graph(signatures)? };
        self.check_default(&wiring.signature)?;
        Ok(wiring)
    }

    /// As its first version; the others, and its shadow, take and give the same.
    fn wire_versions(&self, signatures: &BTreeMap<ModelRef, &Signature>) -> Result<Wiring, String> {
        if self.stages.len() != 1 || self.stages[0].model().is_none() {
            return Err("has versions or a shadow, and several stages; only an endpoint of one model can".into());
        }
        if !self.versions.is_empty() && self.versions.iter().map(|split| u64::from(split.share)).sum::<u64>() == 0 {
            return Err("has versions that all have a share of 0; one at least needs a share".into());
        }
        let mut wirings = Vec::new();
        for (i, split) in self.versions.iter().enumerate() {
            if self.versions[..i].iter().any(|other| other.model == split.model) {
                return Err(format!("names version {} twice", split.model));
            }
        }
        let variants: Vec<Endpoint> =
            self.variants().into_iter().map(|(_, variant)| variant).chain(self.as_shadow()).collect();
        for variant in &variants {
            wirings.push(Endpoint { shadow: None, ..variant.clone() }.wired(signatures)?);
        }
        if let Some(other) = wirings.iter().position(|wiring| wiring.signature != wirings[0].signature) {
            let model = |variant: usize| variants[variant].stages[0].model().map_or(String::new(), ToString::to_string);
            return Err(format!("versions {} and {} take or give something else", model(0), model(other)));
        }
        Ok(wirings.swap_remove(0))
    }

    fn check(&self) -> Result<(), String> {
        if self.name.as_str() == RESERVED {
            return Err(format!(
                "cannot be called {RESERVED}: the open inference protocol has the statistics of all models there"
            ));
        }
        if self.stages.is_empty() {
            return Err("has no stage; give it a model".into());
        }
        if self.stages.len() > STAGES_MAX {
            return Err(format!("has {} stages; {STAGES_MAX} are the most", self.stages.len()));
        }
        if !WEIGHTS.contains(&self.weight) {
            let (least, most) = (WEIGHTS.start(), WEIGHTS.end());
            return Err(format!(
                "needs a weight from {least} to {most}: what counts is how it stands to those of other endpoints"
            ));
        }
        if !(0.0..=1.0).contains(&self.share) {
            return Err("needs a share from 0 to 1".into());
        }
        if !(0.0..=AUDIT_MAX).contains(&self.audit) {
            return Err(format!("audits from 0 to {AUDIT_MAX} of its rows"));
        }
        if self.deadline.is_zero() {
            return Err("needs a deadline above 0".into());
        }
        for (i, stage) in self.stages.iter().enumerate() {
            if self.stages[..i].iter().any(|other| other.name == stage.name) {
                return Err(format!("stage {} stands twice", stage.name));
            }
            if i == 0 && stage.gate.is_some() {
                return Err("its first stage has a gate, but always runs".into());
            }
        }
        self.check_gates()
    }

    fn check_gates(&self) -> Result<(), String> {
        for (i, stage) in self.stages.iter().enumerate() {
            let Some(gate) = &stage.gate else { continue };
            if self.label_output.is_none() && gate.needs_probabilities() {
                return Err(format!("stage {} has a gate by class probabilities: name their label_output", stage.name));
            }
            let Gate::Gain { table, .. } = gate else { continue };
            let next = self.stages.get(i + 1).and_then(|next| match &next.gate {
                Some(Gate::Gain { table, .. }) => Some(table.bins().len()),
                _ => None,
            });
            let shares = table.bins()[0].next.len();
            if shares != 0 && next.is_some_and(|bins| bins != shares) {
                return Err(format!(
                    "the gain tables of stages {} and {} were not made together; calibrate both again",
                    stage.name,
                    self.stages[i + 1].name
                ));
            }
        }
        Ok(())
    }

    fn check_default(&self, signature: &Signature) -> Result<(), String> {
        if self.default_outputs.is_empty() {
            return Ok(());
        }
        if self.stages.iter().any(|stage| stage.name.as_str() == DEFAULT) {
            return Err("has a default_output, which answers as `default`: call that stage otherwise".into());
        }
        for output in &signature.outputs {
            let Some((_, given)) = self.default_outputs.iter().find(|(name, _)| *name == output.name) else {
                return Err(format!("default_output has no {}, which its stages give", output.name));
            };
            // One row, whatever the model's first dimension says.
            let mut row = output.clone();
            row.shape.first_mut().into_iter().for_each(|rows| *rows = Some(1));
            if !row.accepts(given.dtype, &given.shape) {
                return Err(format!(
                    "default_output {} is {}{:?}, its stages give {output}",
                    output.name,
                    given.dtype,
                    given.shape.get(1..).unwrap_or_default()
                ));
            }
        }
        let known = |name: &String| signature.outputs.iter().any(|output| output.name == *name);
        match self.default_outputs.iter().find(|(name, _)| !known(name)) {
            Some((unknown, _)) => Err(format!("default_output {unknown} is no output of its stages")),
            None => Ok(()),
        }
    }

    fn model_signature<'a>(
        &self,
        stage: &Stage,
        model: &ModelRef,
        signatures: &BTreeMap<ModelRef, &'a Signature>,
    ) -> Result<&'a Signature, String> {
        signatures.get(model).copied().ok_or_else(|| {
            format!(
                "stage {} names model {model}, which is not registered; declare it in the same file or apply it first",
                stage.name
            )
        })
    }

    fn wire_chain(&self, signatures: &BTreeMap<ModelRef, &Signature>) -> Result<Wiring, String> {
        let signature = |stage: &Stage| self.model_signature(stage, stage.model().expect("a chain"), signatures);
        let stages = self.stages.iter().map(signature).collect::<Result<Vec<_>, _>>()?;
        let sources = self.sources(&stages)?;
        // A stage before a stage without a gate never answers by itself, but does when the deeper one cannot be had.
        let shared: Vec<TensorSpec> = stages[0]
            .outputs
            .iter()
            .filter(|output| stages.iter().all(|stage| stage.outputs.iter().any(|other| alike(output, other))))
            .cloned()
            .collect();
        if shared.is_empty() {
            return Err("its stages share no output of the same name, type and shape; an answer would depend on the stage that gave it".into());
        }
        let outputs = stages
            .iter()
            .map(|stage| {
                shared.iter().map(|output| position(&stage.outputs, &output.name).expect("shared by all")).collect()
            })
            .collect();
        let (labels, confidence) = self.told(stages.iter().map(|stage| &*stage.outputs), u64::MAX)?;
        let takes_nothing =
            |stage: &usize| sources[*stage].iter().all(|source| matches!(source, Source::Request { .. }));
        let alone = mask((0..stages.len()).filter(takes_nothing));
        let flow = Flow::chain(self.stages.iter().map(|stage| stage.gate.is_some())).asked_alone(alone);
        Ok(Wiring {
            labels,
            confidence,
            gives: stages.iter().map(|stage| stage.outputs.clone()).collect(),
            signature: Signature { inputs: stages[0].inputs.clone(), outputs: shared },
            sources,
            outputs,
            conditions: vec![Vec::new(); stages.len()],
            flow: Arc::new(flow),
        })
    }

    fn sources(&self, stages: &[&Signature]) -> Result<Vec<Vec<Source>>, String> {
        let request = &stages[0].inputs;
        let asked = |input| Source::Request { input, each: false };
        let mut all = vec![(0..request.len()).map(asked).collect()];
        for (i, pair) in stages.windows(2).enumerate() {
            let (before, stage) = (pair[0], pair[1]);
            let mut sources = Vec::new();
            for input in &stage.inputs {
                let from_request = request.iter().position(|given| given.name == input.name && feeds(given, input));
                // A hidden tensor is called h_out where it leaves and h where it enters.
                let from_previous = before.outputs.iter().position(|given| {
                    (given.name == input.name || given.name == format!("{}_out", input.name)) && feeds(given, input)
                });
                sources.push(match (from_previous, from_request) {
                    (Some(output), _) => Source::Stage { stage: i, output, each: false },
                    (None, Some(given)) => asked(given),
                    (None, None) => {
                        let stage = &self.stages[i + 1];
                        return Err(format!(
                            "stage {} needs the input {input}, which neither the request nor an output of the stage before gives; say with `inputs` where it comes from",
                            stage.name
                        ));
                    }
                });
            }
            all.push(sources);
        }
        Ok(all)
    }

    /// By stage: the numbers of the outputs that tell the class and the confidence among those that it gives. `answers`: stages whose
    /// answer can be the endpoint's, and that have to tell.
    fn told<'a>(&self, gives: impl Iterator<Item = &'a [TensorSpec]>, answers: Stages) -> Result<Told, String> {
        let (mut labels, mut confidences) = (Vec::new(), Vec::new());
        for (i, outputs) in gives.enumerate() {
            let answers = answers & (1 << i) != 0;
            let label = self.label(i, outputs, answers)?;
            labels.push(label);
            confidences.push(self.confidence(i, outputs, answers)?.or(label));
        }
        Ok((labels, confidences))
    }

    /// The number of the label output among what stage `i` gives.
    fn label(&self, i: usize, outputs: &[TensorSpec], answers: bool) -> Result<Option<usize>, String> {
        let Some(name) = &self.label_output else { return Ok(None) };
        let looked_at = self.gate_behind(i).is_some_and(|gate| self.learned(gate).is_none());
        self.number(i, outputs, name, answers || looked_at)
    }

    /// The number of the confidence output among what stage `i` gives, where it is looked at.
    fn confidence(&self, i: usize, outputs: &[TensorSpec], answers: bool) -> Result<Option<usize>, String> {
        let gate = self.gate_behind(i);
        let Some(name) = gate.map_or(self.confidence_output.as_ref(), |gate| self.learned(gate)) else {
            return match gate {
                Some(_) if self.label_output.is_none() => Err(format!(
                    "stage {} has a gate by confidence: name a label_output or a confidence_output",
                    self.stages[i + 1].name
                )),
                _ => Ok(None),
            };
        };
        let number = self.number(i, outputs, name, gate.is_some() || answers && self.label_output.is_none())?;
        let single =
            |spec: &TensorSpec| spec.shape.iter().skip(1).all(|length| length.is_none_or(|length| length == 1));
        match number.map(|number| &outputs[number]).filter(|spec| !single(spec)) {
            Some(spec) => {
                Err(format!("stage {} gives {spec}; a confidence_output has one number a row", self.stages[i].name))
            }
            None => Ok(number),
        }
    }

    /// The gate that looks at what stage `i` gives.
    fn gate_behind(&self, i: usize) -> Option<&Gate> {
        self.stages.get(i + 1)?.gate.as_ref()
    }

    /// The output with the number that a gate looks at, where the models say it.
    fn learned(&self, gate: &Gate) -> Option<&String> {
        self.confidence_output.as_ref().filter(|_| !gate.needs_probabilities())
    }

    /// The number of an output of numbers among what stage `i` gives; `needed`: it has to be there.
    fn number(&self, i: usize, outputs: &[TensorSpec], name: &str, needed: bool) -> Result<Option<usize>, String> {
        let stage = &self.stages[i].name;
        let output = position(outputs, name);
        match output.map(|o| outputs[o].dtype) {
            Some(DType::F32) => Ok(output),
            None if !needed => Ok(None),
            Some(other) => Err(format!("output {name} of stage {stage} is {other}; confidences must be f32")),
            None => {
                let known = outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>().join(", ");
                Err(format!("stage {stage} has no output {name}; it has {known}"))
            }
        }
    }

    fn wire_graph(&self, signatures: &BTreeMap<ModelRef, &Signature>) -> Result<Wiring, String> {
        let mut graph = Graph { endpoint: self, request: Vec::new(), gives: Vec::new(), sources: Vec::new() };
        graph.ask_for_request(signatures)?;
        for (i, stage) in self.stages.iter().enumerate() {
            let named = |feed: &Feed| graph.named(i, feed);
            let (sources, gives) = match &stage.run {
                Run::Model(model) => {
                    let signature = self.model_signature(stage, model, signatures)?;
                    graph.model(i, signature)?
                }
                Run::Combine(combine) => {
                    let sources = stage.inputs.iter().map(named).collect::<Result<Vec<_>, _>>()?;
                    let gives = graph.combined(i, &combine.how, &sources)?;
                    (sources.into_iter().map(|(source, _)| source).collect(), vec![gives])
                }
            };
            graph.sources.push(sources);
            graph.gives.push(gives);
        }
        graph.finish()
    }
}

/// A graph that is being wired.
struct Graph<'a> {
    endpoint: &'a Endpoint,
    /// What the request has to bring.
    request: Vec<TensorSpec>,
    /// By stage that has been wired: what it gives, as others see it.
    gives: Vec<Vec<TensorSpec>>,
    sources: Vec<Vec<Source>>,
}

impl Graph<'_> {
    /// What stages take from the request says what it is.
    fn ask_for_request(&mut self, signatures: &BTreeMap<ModelRef, &Signature>) -> Result<(), String> {
        for stage in &self.endpoint.stages {
            let Some(model) = stage.model() else { continue };
            for input in &self.endpoint.model_signature(stage, model, signatures)?.inputs {
                let feed = stage.inputs.iter().find(|feed| feed.input == input.name);
                if feed.is_some_and(|feed| feed.stage.is_some()) {
                    continue;
                }
                let mut wanted = input.clone();
                if let Some(feed) = feed {
                    wanted.name = feed.tensor.clone();
                    if feed.each {
                        wanted = list(wanted);
                    }
                }
                match self.request.iter_mut().find(|known| known.name == wanted.name) {
                    None => self.request.push(wanted),
                    Some(known) if feeds(known, &wanted) => {
                        for (known, wanted) in known.shape.iter_mut().zip(&wanted.shape) {
                            *known = known.or(*wanted);
                        }
                    }
                    Some(known) => {
                        return Err(format!(
                            "stage {} takes {wanted} from the request, another stage {known}; give one of them another name with `inputs`",
                            stage.name
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Where a named input of stage `i` comes from, and what it is.
    fn named(&self, i: usize, feed: &Feed) -> Result<(Source, TensorSpec), String> {
        let name = &self.endpoint.stages[i].name;
        let each = feed.each;
        let (known, of) = match feed.stage {
            None => (&self.request, "request".to_owned()),
            Some(stage) if (stage as usize) < i => {
                (&self.gives[stage as usize], self.endpoint.stages[stage as usize].name.to_string())
            }
            Some(_) => {
                return Err(format!("stage {name} takes {} from a stage that does not stand before it", feed.tensor));
            }
        };
        let Some(number) = position(known, &feed.tensor) else {
            let has = known.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(format!("stage {name}: there is no {of}.{}; {of} has {has}", feed.tensor));
        };
        let mut spec = known[number].clone();
        if each {
            if spec.shape.len() < 2 {
                return Err(format!("stage {name}: {of}.{} is one value a row and has no items", feed.tensor));
            }
            spec.shape.remove(1);
        }
        let source = match feed.stage {
            None => Source::Request { input: number, each },
            Some(stage) => Source::Stage { stage: stage as usize, output: number, each },
        };
        Ok((source, spec))
    }

    fn model(&self, i: usize, signature: &Signature) -> Result<(Vec<Source>, Vec<TensorSpec>), String> {
        let stage = &self.endpoint.stages[i];
        let known = |feed: &&Feed| signature.inputs.iter().any(|input| input.name == feed.input);
        if let Some(unknown) = stage.inputs.iter().find(|feed| !known(feed)) {
            let has = signature.inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(format!("stage {}: its model has no input {}; it has {has}", stage.name, unknown.input));
        }
        let mut sources = Vec::new();
        for input in &signature.inputs {
            let by_name = Feed { input: input.name.clone(), stage: None, tensor: input.name.clone(), each: false };
            let feed = stage.inputs.iter().find(|feed| feed.input == input.name).unwrap_or(&by_name);
            let (source, spec) = self.named(i, feed)?;
            if !feeds(&spec, input) {
                return Err(format!("stage {} needs the input {input} and would get {spec}", stage.name));
            }
            sources.push(source);
        }
        let flattened = sources.iter().any(|source| source.is_flattened());
        let gives = signature.outputs.iter().cloned();
        Ok((sources, if flattened { gives.map(list).collect() } else { gives.collect() }))
    }

    /// What a combination gives.
    fn combined(&self, i: usize, how: &How, sources: &[(Source, TensorSpec)]) -> Result<TensorSpec, String> {
        let stage = &self.endpoint.stages[i];
        let bad = |what: String| Err(format!("stage {} cannot combine: {what}", stage.name));
        if let Some((_, spec)) = sources.iter().find(|(source, _)| source.is_flattened()) {
            return bad(format!("{} with [] is for models; what runs item by item is combined as a whole", spec.name));
        }
        if let Run::Combine(combine) = &stage.run
            && let Some(least) = combine.at_least
            && (least == 0 || least as usize > sources.len() || matches!(how, How::Concat))
        {
            return bad("at_least is from 1 to the number of its inputs, and not for concat".into());
        }
        if let How::Weighted(weights) = how
            && (weights.len() != sources.len() || weights.iter().any(|weight| !(weight.is_finite() && *weight > 0.0)))
        {
            return bad("weights need a number above 0 for each input".into());
        }
        // Of a list, its items.
        let item = |(source, spec): &(Source, TensorSpec)| {
            let mut spec = spec.clone();
            if self.is_list(*source) {
                spec.shape.remove(1);
            }
            spec
        };
        let Some(first) = sources.first().map(item) else {
            return bad("it has no inputs; say which with `inputs`".into());
        };
        let numbers = !matches!(how, How::Concat);
        if numbers && first.dtype != DType::F32 {
            return bad(format!("{first} is not f32"));
        }
        let cut = if numbers { 1 } else { 2 };
        if first.shape.len() < cut.max(2) {
            return bad(format!("{first} is one value a row"));
        }
        let mut length = first.shape.get(1).copied().flatten();
        for other in sources[1..].iter().map(item) {
            let rest = |spec: &TensorSpec| TensorSpec {
                shape: spec.shape.get(cut..).unwrap_or_default().to_vec(),
                ..spec.clone()
            };
            let alike = first.shape.len() == other.shape.len() && feeds_from(&rest(&first), &rest(&other), 0);
            if !alike {
                return bad(format!("{first} and {other} do not go together"));
            }
            length = length.zip(other.shape[1]).map(|(a, b)| a + b);
        }
        let mut gives = first;
        if !numbers {
            let lists = sources.iter().any(|(source, _)| self.is_list(*source));
            gives.shape[1] = length.filter(|_| !lists);
        }
        Ok(gives)
    }

    /// Whether what a source gives is a list of items.
    fn is_list(&self, source: Source) -> bool {
        match source {
            Source::Stage { stage, each: false, .. } => {
                self.endpoint.stages[stage].model().is_some()
                    && self.sources[stage].iter().any(|source| source.is_flattened())
            }
            _ => false,
        }
    }

    fn finish(self) -> Result<Wiring, String> {
        let Graph { endpoint, request, gives, sources } = self;
        let stages = endpoint.stages.len();
        let wanted = gives.last().expect("a graph has stages").clone();
        let outputs: Vec<Vec<usize>> = gives
            .iter()
            .map(|given| {
                let of = |output: &TensorSpec| position(given, &output.name).filter(|o| alike(&given[*o], output));
                wanted.iter().map(of).collect::<Option<Vec<usize>>>().unwrap_or_default()
            })
            .collect();
        let answers = mask((0..stages).filter(|stage| !outputs[*stage].is_empty()));
        let mut conditions = vec![Vec::new(); stages];
        let mut needs = Vec::new();
        for (i, stage) in endpoint.stages.iter().enumerate() {
            let from = mask(sources[i].iter().filter_map(|source| match source {
                Source::Stage { stage, .. } => Some(*stage),
                Source::Request { .. } => None,
            }));
            let gated = stage.gate.is_some();
            let mut need = Needs { gated, at_home: stage.model().is_none(), ..Needs::default() };
            match &stage.run {
                Run::Combine(combine) => need.some = Some((from, combine.at_least.unwrap_or(from.count_ones()))),
                Run::Model(_) => need.all = from,
            }
            if gated {
                need.all |= 1 << (i - 1);
            }
            if let Some(when) = &stage.when {
                let at = when.stage as usize;
                if at >= i {
                    return Err(format!("stage {} looks at a stage that does not stand before it", stage.name));
                }
                let named = |name: &str| position(&gives[at], name).filter(|o| gives[at][*o].dtype == DType::F32);
                let numbers = |name: &Option<String>| name.as_deref().and_then(named);
                let output = match &when.signal {
                    Signal::Output(name) => named(name),
                    Signal::Confidence => numbers(&endpoint.confidence_output).or(numbers(&endpoint.label_output)),
                    _ => numbers(&endpoint.label_output),
                };
                let Some(output) = output else {
                    return Err(format!(
                        "stage {} looks at {}.{}, which is neither an f32 output of that stage nor told by the endpoint's label_output or confidence_output",
                        stage.name,
                        endpoint.stages[at].name,
                        when.signal.word()
                    ));
                };
                conditions[at].push((i, output));
                need.when = Some(at);
            }
            needs.push(need);
        }
        let used = needs.iter().fold(answers, |used, need| used | need.mask());
        if let Some(idle) = (0..stages).find(|stage| used & (1 << stage) == 0) {
            return Err(format!(
                "nothing takes what stage {} gives, and it cannot answer: the last stage gives something else",
                endpoint.stages[idle].name
            ));
        }
        let (labels, confidence) = endpoint.told(gives.iter().map(|given| &**given), answers)?;
        Ok(Wiring {
            labels,
            confidence,
            gives,
            signature: Signature { inputs: request, outputs: wanted },
            sources,
            outputs,
            conditions,
            flow: Arc::new(Flow::new(needs, answers)),
        })
    }
}

fn mask(stages: impl Iterator<Item = usize>) -> Stages {
    stages.fold(0, |mask, stage| mask | 1 << stage)
}

/// What one item is, as a list of them.
fn list(mut item: TensorSpec) -> TensorSpec {
    item.shape.insert(item.shape.len().min(1), None);
    item
}

fn position(outputs: &[TensorSpec], name: &str) -> Option<usize> {
    outputs.iter().position(|spec| spec.name == name)
}

/// Same name, type and row shape.
fn alike(a: &TensorSpec, b: &TensorSpec) -> bool {
    a.name == b.name && feeds(a, b)
}

/// Whether a tensor of `given` can be one of `wanted`: the first dimension is the batch's affair.
fn feeds(given: &TensorSpec, wanted: &TensorSpec) -> bool {
    feeds_from(given, wanted, 1)
}

fn feeds_from(given: &TensorSpec, wanted: &TensorSpec, dimension: usize) -> bool {
    given.dtype == wanted.dtype
        && given.shape.len() == wanted.shape.len()
        && given.shape.iter().zip(&wanted.shape).skip(dimension).all(|(a, b)| a.is_none() || b.is_none() || a == b)
}
