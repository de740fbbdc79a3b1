//! A Triton model repository as a weir file: what can be said in it, and what cannot, field by field.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use weir_client::weirfile::parse_duration;
use weir_core::ids::ModelName;

use super::pbtxt::{Message, Value};

/// A folder of a repository.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    /// Its name.
    pub name: String,
    /// Its `config.pbtxt`, where it has one that can be read.
    pub config: Option<Message>,
    /// Versions, ascending, and the model file of each.
    pub versions: Vec<(u64, PathBuf)>,
}

/// Something that the weir file does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Of the folder.
    pub model: String,
    /// Field, with those around it.
    pub field: String,
    /// Why, and what weir does instead.
    pub why: String,
}

/// What became of a repository.
#[derive(Clone, Debug, Default)]
pub struct Imported {
    /// The weir file.
    pub text: String,
    /// Endpoints in it.
    pub endpoints: usize,
    /// What it does not say.
    pub notes: Vec<Note>,
    /// What folders are called in it.
    names: BTreeMap<String, String>,
}

/// Longest name that weir takes, in bytes.
const NAME_MAX: usize = 64;

/// Fields of a configuration that are said in the weir file, or that the model file says itself.
const SAID: [&str; 10] = [
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "input",
    "output",
    "default_model_filename",
    "ensemble_scheduling",
    "instance_group",
    "dynamic_batching",
];

/// Of those, what an ensemble has nothing to do with, and why.
const OF_MODELS: [(&str, &str); 3] = [
    ("max_batch_size", "rows meet in batches at each of its models, as those say"),
    ("instance_group", "it runs where its models do"),
    ("default_model_filename", "it has no model file"),
];

/// Everything of a repository, its folders in order.
pub fn import(folders: &[Folder]) -> Imported {
    let mut imported = Imported { names: names(folders), ..Imported::default() };
    imported.text.push_str("# Imported from a Triton model repository by `weir import triton`.\n");
    // Ensembles name models, which stand before them.
    let (ensembles, plain): (Vec<&Folder>, Vec<&Folder>) = folders.iter().partition(|folder| is_ensemble(folder));
    let mut models = BTreeMap::new();
    for folder in plain {
        if let Some(model) = import_model(folder, &mut imported) {
            models.insert(folder.name.as_str(), model);
        }
    }
    for folder in ensembles {
        import_ensemble(folder, &models, &mut imported);
    }
    imported
}

/// The name that each folder has in weir: its own where weir takes it, else one like it that no other has.
fn names(folders: &[Folder]) -> BTreeMap<String, String> {
    let is_taken_as_it_is = |name: &&String| ModelName::parse(name).is_ok();
    let mut taken: BTreeSet<String> =
        folders.iter().map(|folder| &folder.name).filter(is_taken_as_it_is).cloned().collect();
    let mut names: BTreeMap<String, String> = taken.iter().map(|name| (name.clone(), name.clone())).collect();
    for folder in folders {
        let like = like(&folder.name);
        if names.contains_key(&folder.name) || ModelName::parse(&like).is_err() {
            continue;
        }
        let numbered = |number: usize| match number {
            1 => like.clone(),
            _ => ended(&like, &format!("-{number}")),
        };
        if let Some(name) = (1..=folders.len()).map(numbered).find(|name| !taken.contains(name)) {
            taken.insert(name.clone());
            names.insert(folder.name.clone(), name);
        }
    }
    names
}

/// A name as weir writes them.
fn like(name: &str) -> String {
    let is_of_name = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(*c);
    let name: String = name.chars().map(|c| Some(c.to_ascii_lowercase()).filter(is_of_name).unwrap_or('-')).collect();
    name.trim_start_matches(['-', '.', '_']).to_owned()
}

/// The name with this end, not longer than a name may be. Both are ASCII.
fn ended(name: &str, end: &str) -> String {
    format!("{}{end}", &name[..name.len().min(NAME_MAX - end.len())])
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn is_true(value: &Value) -> bool {
    value.scalar().is_some_and(|word| ["true", "True", "t", "1"].contains(&word))
}

fn is_ensemble(folder: &Folder) -> bool {
    let config = folder.config.as_ref();
    config.is_some_and(|config| {
        config.text("platform") == Some("ensemble") || config.message("ensemble_scheduling").is_some()
    })
}

impl Imported {
    fn note(&mut self, folder: &Folder, field: impl Into<String>, why: impl Into<String>) {
        self.notes.push(Note { model: folder.name.clone(), field: field.into(), why: why.into() });
    }

    fn endpoint(&mut self, folder: &Folder, name: &str) {
        self.endpoints += 1;
        let policy = folder.config.as_ref().and_then(|config| config.message("dynamic_batching"));
        let timeout = policy.and_then(|batching| batching.message("default_queue_policy")).and_then(timeout_of);
        let deadline = match timeout {
            Some(us) => format!("deadline = \"{us}us\"               # default_timeout_microseconds"),
            None => {
                "deadline = \"1s\"                  # Triton has none: say when an answer is worth nothing any more"
                    .into()
            }
        };
        let _ = write!(self.text, "\n[[endpoint]]\nname = {}\n{deadline}\n", quoted(name));
    }

    /// A name that weir takes; told where it is another.
    fn name(&mut self, folder: &Folder) -> Option<String> {
        let Some(name) = self.names.get(&folder.name).cloned() else {
            let why = "weir has no name like it: [a-z0-9][a-z0-9._-]{0,63}; the model is left out";
            self.note(folder, "name", why);
            return None;
        };
        if name != like(&folder.name) {
            self.note(
                folder,
                "name",
                format!("another folder has that name in weir, which writes names small: it is {name:?}"),
            );
        } else if name != folder.name {
            self.note(folder, "name", format!("weir writes names small: it is {name:?}"));
        }
        Some(name)
    }

    /// A field that is a whole number from 1 on; told where it is there and none that weir takes. 0 is Triton's word for none.
    fn count(&mut self, folder: &Folder, field: &str) -> Option<u32> {
        let value = folder.config.as_ref().and_then(|config| config.all(field).next())?;
        let number = value.scalar().and_then(|text| text.parse::<u32>().ok());
        if number.is_none() {
            self.note(folder, field, format!("{value}: weir takes a number below 2^32 here"));
        }
        number.filter(|number| *number > 0)
    }
}

/// The deadline that a queue policy says, in microseconds.
fn timeout_of(policy: &Message) -> Option<i64> {
    let us = policy.number("default_timeout_microseconds").filter(|us| *us > 0)?;
    parse_duration(&format!("{us}us")).map(|_| us)
}

/// The model's reference, where it can be served.
fn import_model(folder: &Folder, imported: &mut Imported) -> Option<String> {
    let config = folder.config.clone().unwrap_or_default();
    let name = imported.name(folder)?;
    let backend = config.text("backend").or(config.text("platform")).unwrap_or("onnxruntime");
    if !["onnxruntime", "onnxruntime_onnx"].contains(&backend) {
        imported.note(folder, "backend", format!("weir serves ONNX models, not {backend}; the model is left out"));
        return None;
    }
    for (field, why) in [
        ("sequence_batching", "weir keeps no state between requests"),
        ("model_transaction_policy", "weir answers each request once"),
    ] {
        let decoupled =
            |message: &Message| field != "model_transaction_policy" || message.all("decoupled").any(is_true);
        if config.message(field).is_some_and(decoupled) {
            imported.note(folder, field, format!("{why}; the model is left out"));
            return None;
        }
    }
    let Some((version, path)) = folder.versions.last() else {
        imported.note(
            folder,
            "versions",
            "there is no folder with a number and a model file in it; the model is left out",
        );
        return None;
    };
    let Some(path_text) = path.to_str() else {
        let why = format!("{} has letters that no weir file can write; the model is left out", path.display());
        imported.note(folder, "versions", why);
        return None;
    };
    let mut lines =
        format!("\n[[model]]\nname = {}\nversion = \"{version}\"\npath = {}\n", quoted(&name), quoted(path_text));
    if path.extension().is_none_or(|ending| ending != "onnx") {
        lines.push_str("engine = \"onnx\"\n");
    }
    // A configuration without it batches nothing; without a configuration Triton finds it out, and so does weir.
    match imported.count(folder, "max_batch_size") {
        Some(batch) => lines.push_str(&format!("max_batch = {batch}\n")),
        None if folder.config.is_some() => lines.push_str("max_batch = 1\n"),
        None => {}
    }
    let counts = config.messages("instance_group").map(|group| group.number("count").unwrap_or(1));
    let instances = counts.fold(0, i64::saturating_add);
    match u32::try_from(instances) {
        Ok(0) => {}
        Ok(instances) => lines.push_str(&format!("replicas = {{ min = {instances} }}\n")),
        Err(_) => imported.note(folder, "instance_group.count", format!("{instances}: that many no cluster has")),
    }
    imported.text.push_str(&lines);
    imported.endpoint(folder, &name);
    let model = format!("{name}@{version}");
    let _ = writeln!(imported.text, "model = {}", quoted(&model));
    note_versions(folder, &config, imported);
    note_fields(folder, &config, imported);
    Some(model)
}

fn note_versions(folder: &Folder, config: &Message, imported: &mut Imported) {
    let latest = folder.versions.last().map_or(0, |(version, _)| *version);
    let older: Vec<String> =
        folder.versions.iter().map(|(version, _)| version.to_string()).filter(|v| *v != latest.to_string()).collect();
    if !older.is_empty() {
        let older = older.join(", ");
        let why = format!(
            "version {latest} is served, not {older}: an endpoint has versions by share (`weir rollout`), not by number"
        );
        imported.note(folder, "versions", why);
    }
    for policy in config.all("version_policy").filter(|policy| !is_newest_only(policy)) {
        imported.note(folder, "version_policy", format!("{policy}: the newest version is served"));
    }
}

/// Whether a version policy is what weir does.
fn is_newest_only(policy: &Value) -> bool {
    let Value::Message(Message(fields)) = policy else { return false };
    fields.iter().all(|(field, value)| match value {
        Value::Message(latest) if field == "latest" => {
            latest.0.iter().all(|(field, value)| field == "num_versions" && value.scalar() == Some("1"))
        }
        _ => false,
    })
}

/// Each field that is left, and why.
fn note_fields(folder: &Folder, config: &Message, imported: &mut Imported) {
    for (kind, tensor) in ["input", "output"].iter().flat_map(|kind| config.messages(kind).map(move |m| (kind, m))) {
        let name = tensor.text("name").unwrap_or("?");
        for (field, value) in &tensor.0 {
            let why = match field.as_str() {
                // The model file says these.
                "name" | "data_type" | "dims" | "format" => continue,
                "label_filename" => "weir has no classification: take the largest of the output",
                "allow_ragged_batch" => "rows of several lengths share batches by `pad`, with a mask",
                "reshape" => "shapes are those of the model file",
                _ => "weir has nothing like it",
            };
            imported.note(folder, format!("{kind}[{name}].{field}"), format!("{value}: {why}"));
        }
    }
    for group in config.messages("instance_group").filter(|_| !is_ensemble(folder)) {
        for (field, value) in group.0.iter().filter(|(field, _)| !["count", "name"].contains(&field.as_str())) {
            if field == "kind" && ["KIND_CPU", "KIND_AUTO", "KIND_MODEL"].contains(&value.to_string().as_str()) {
                continue;
            }
            let why = format!("{value}: weir chooses nodes and devices itself");
            imported.note(folder, format!("instance_group.{field}"), why);
        }
    }
    if let Some(batching) = config.message("dynamic_batching") {
        for (field, value) in &batching.0 {
            let why = match field.as_str() {
                "preferred_batch_size" => {
                    "sizes of batches follow from deadlines and measured latencies (allowed_batch_sizes fixes them)"
                }
                "max_queue_delay_microseconds" => "a row waits as long as its deadline allows and others gain by it",
                "preserve_ordering" => "each answer goes to its request",
                "priority_levels" | "default_priority_level" | "priority_queue_policy" => {
                    "there are classes: critical, default, sheddable"
                }
                "default_queue_policy" => {
                    note_queue_policy(folder, value, imported);
                    continue;
                }
                _ => "weir has nothing like it",
            };
            imported.note(folder, format!("dynamic_batching.{field}"), format!("{value}: {why}"));
        }
    }
    for (field, value) in &config.0 {
        let of_models = OF_MODELS.iter().find(|(of, _)| of == field && is_ensemble(folder));
        let why = match (field.as_str(), of_models) {
            ("max_batch_size", Some(_)) if value.scalar() == Some("0") => continue,
            (_, Some((_, why))) => why,
            (field, None) if SAID.contains(&field) => continue,
            // It is told with the versions.
            ("version_policy", None) if !is_ensemble(folder) || is_newest_only(value) => continue,
            ("version_policy", None) => "an ensemble is an endpoint, and that has no versions of its own",
            ("model_warmup", None) => "every replica is probed before it serves",
            ("response_cache", None) => "weir has no cache",
            ("optimization", None) => "ONNX Runtime is used as weir sets it",
            ("parameters", None) => "there are no parameters of backends",
            ("model_transaction_policy", None) => {
                note_transaction_policy(folder, value, imported);
                continue;
            }
            _ => "weir has nothing like it",
        };
        imported.note(folder, field.clone(), format!("{value}: {why}"));
    }
}

fn note_queue_policy(folder: &Folder, policy: &Value, imported: &mut Imported) {
    let Value::Message(policy) = policy else { return };
    for (field, value) in &policy.0 {
        let why = match field.as_str() {
            // It is the endpoint's deadline.
            "default_timeout_microseconds" if timeout_of(policy).is_some() || value.scalar() == Some("0") => continue,
            "default_timeout_microseconds" => "that is no deadline that weir takes",
            "allow_timeout_override" if is_true(value) => continue,
            "allow_timeout_override" => "every query may bring a deadline of its own",
            "timeout_action" if value.scalar() == Some("REJECT") => continue,
            "timeout_action" => "what cannot be in time is refused, not delayed",
            "max_queue_size" => "the queue is as long as deadlines allow",
            _ => "weir has nothing like it",
        };
        imported.note(folder, format!("dynamic_batching.default_queue_policy.{field}"), format!("{value}: {why}"));
    }
}

fn note_transaction_policy(folder: &Folder, policy: &Value, imported: &mut Imported) {
    let Value::Message(policy) = policy else { return };
    for (field, value) in policy.0.iter().filter(|(field, value)| field != "decoupled" || is_true(value)) {
        let why = format!("{value}: weir answers each request once");
        imported.note(folder, format!("model_transaction_policy.{field}"), why);
    }
}

/// One step of an ensemble.
struct Step<'a> {
    /// The stage that it becomes.
    stage: String,
    /// `name@version`.
    model: &'a str,
    /// The model's input, and the ensemble's tensor that it takes.
    inputs: Vec<(&'a str, &'a str)>,
    /// The model's output, and the ensemble's tensor that it is.
    outputs: Vec<(&'a str, &'a str)>,
}

impl Step<'_> {
    /// The model's output that is this tensor.
    fn output(&self, tensor: &str) -> Option<&str> {
        self.outputs.iter().find(|(_, given)| *given == tensor).map(|(output, _)| *output)
    }
}

fn import_ensemble(folder: &Folder, models: &BTreeMap<&str, String>, imported: &mut Imported) {
    let config = folder.config.clone().unwrap_or_default();
    let Some(name) = imported.name(folder) else { return };
    let scheduling = config.message("ensemble_scheduling").cloned().unwrap_or_default();
    let of_request: BTreeSet<&str> = config.messages("input").filter_map(|input| input.text("name")).collect();
    let steps = match steps(&scheduling, models).and_then(|steps| in_order(steps, &of_request)) {
        Ok(steps) => steps,
        Err(why) => {
            imported.note(folder, "ensemble_scheduling", format!("{why}; it is left out"));
            return;
        }
    };
    imported.endpoint(folder, &name);
    for step in &steps {
        let from = |tensor: &str| match steps.iter().find_map(|step| Some((step, step.output(tensor)?))) {
            Some((step, output)) => format!("{}.{output}", step.stage),
            None => format!("request.{tensor}"),
        };
        let feed = |(input, tensor): &(&str, &str)| ((*input).to_owned(), toml::Value::from(from(tensor)));
        let _ = write!(
            imported.text,
            "[[endpoint.stage]]\nname = {}\nmodel = {}\ninputs = {}\n",
            quoted(&step.stage),
            quoted(step.model),
            toml::Value::Table(step.inputs.iter().map(feed).collect())
        );
    }
    note_scheduling(folder, &scheduling, imported);
    // The last stage's answer is the endpoint's.
    for output in config.messages("output").filter_map(|output| output.text("name")) {
        let why = match steps.last().and_then(|last| last.output(output)) {
            Some(own) if own == output => continue,
            Some(own) => format!("it keeps the model's name: {own:?}"),
            None => "the last step does not give it, and the endpoint's answer is that of its last stage".to_owned(),
        };
        imported.note(folder, format!("output[{output}]"), why);
    }
    note_fields(folder, &config, imported);
}

/// The steps as they stand there; else why weir can have none of them.
fn steps<'a>(scheduling: &'a Message, models: &'a BTreeMap<&str, String>) -> Result<Vec<Step<'a>>, String> {
    let mut steps = Vec::new();
    for (i, step) in scheduling.messages("step").enumerate() {
        let name = step.text("model_name").unwrap_or("");
        let model = models.get(name).ok_or_else(|| format!("its model {name:?} is not imported"))?;
        // The number tells stages apart; the name is for people.
        let (number, of) = (format!("s{}-", i + 1), model.split('@').next().unwrap_or(model));
        let stage = format!("{number}{}", &of[..of.len().min(NAME_MAX - number.len())]);
        let (inputs, outputs) = (pairs(step, "input_map")?, pairs(step, "output_map")?);
        if let Some((input, _)) = inputs.iter().enumerate().find_map(|(i, a)| inputs[..i].iter().find(|b| a.0 == b.0)) {
            return Err(format!("a step gives its model's input {input:?} twice"));
        }
        // To a weir file that is each item of a row.
        let is_each = |tensor: &&str| tensor.ends_with("[]");
        let tensors = inputs.iter().map(|(_, tensor)| *tensor).chain(outputs.iter().map(|(output, _)| *output));
        if let Some(tensor) = tensors.into_iter().find(is_each) {
            return Err(format!("a weir file cannot name its tensor {tensor:?}"));
        }
        steps.push(Step { stage, model, inputs, outputs });
    }
    if steps.is_empty() { Err("it has no steps".to_owned()) } else { Ok(steps) }
}

/// A map of a step: the model's tensor, and the ensemble's.
fn pairs<'a>(step: &'a Message, field: &str) -> Result<Vec<(&'a str, &'a str)>, String> {
    let text = |pair: &'a Message, of: &str| pair.text(of).filter(|text| !text.is_empty());
    let pair =
        |pair| text(pair, "key").zip(text(pair, "value")).ok_or_else(|| format!("a step's {field} lacks a name"));
    step.messages(field).map(pair).collect()
}

/// Steps behind those that they need.
fn in_order<'a>(mut steps: Vec<Step<'a>>, of_request: &BTreeSet<&'a str>) -> Result<Vec<Step<'a>>, String> {
    let mut given = of_request.clone();
    let mut order = Vec::new();
    while !steps.is_empty() {
        let ready = |step: &Step<'_>| step.inputs.iter().all(|(_, tensor)| given.contains(tensor));
        let next = steps.iter().position(ready).ok_or("its steps need each other, or a tensor that none gives")?;
        let step = steps.remove(next);
        given.extend(step.outputs.iter().map(|(_, tensor)| *tensor));
        order.push(step);
    }
    Ok(order)
}

/// What steps say that stages do not.
fn note_scheduling(folder: &Folder, scheduling: &Message, imported: &mut Imported) {
    for (field, value) in scheduling.0.iter().filter(|(field, _)| field != "step") {
        imported.note(folder, format!("ensemble_scheduling.{field}"), format!("{value}: weir has nothing like it"));
    }
    for (field, value) in scheduling.messages("step").flat_map(|step| &step.0) {
        let why = match field.as_str() {
            "model_name" | "input_map" | "output_map" => continue,
            "model_version" if value.scalar() == Some("-1") => continue,
            "model_version" => "the newest version is served",
            _ => "weir has nothing like it",
        };
        imported.note(folder, format!("ensemble_scheduling.step.{field}"), format!("{value}: {why}"));
    }
}

/// The folders of a repository, by name; of a configuration that cannot be read, why.
pub fn read(repository: &Path) -> std::io::Result<(Vec<Folder>, Vec<Note>)> {
    let (mut folders, mut notes) = (Vec::new(), Vec::new());
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(repository)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries.into_iter().filter(|path| path.is_dir()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = match std::fs::read_to_string(path.join("config.pbtxt")) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let config = match text.as_deref().map(Message::parse).transpose() {
            Ok(config) => config,
            Err(bad) => {
                let why = format!("{bad}; the model is left out");
                notes.push(Note { model: name, field: "config.pbtxt".into(), why });
                continue;
            }
        };
        let file = config.as_ref().and_then(|config| config.text("default_model_filename")).unwrap_or("model.onnx");
        let mut versions = Vec::new();
        for version in std::fs::read_dir(&path)? {
            let version = version?.path();
            let number = version.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
            // An external model is a folder of that name with the model in it.
            let model =
                [version.join(file), version.join(file).join("model.onnx")].into_iter().find(|path| path.is_file());
            versions.extend(number.zip(model));
        }
        versions.sort();
        folders.push(Folder { name, config, versions });
    }
    Ok((folders, notes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weir_client::weirfile;
    use weir_core::endpoint::Endpoint;
    use weir_core::ids::ModelRef;

    use super::*;

    fn folder(name: &str, config: &str, versions: &[u64]) -> Folder {
        Folder {
            name: name.into(),
            config: Some(Message::parse(config).unwrap()),
            versions: versions.iter().map(|v| (*v, PathBuf::from(format!("{name}/{v}/model.onnx")))).collect(),
        }
    }

    fn fields(imported: &Imported) -> Vec<String> {
        imported.notes.iter().map(|note| format!("{}/{}", note.model, note.field)).collect()
    }

    #[test]
    fn a_model_is_said_and_what_is_not_is_listed() {
        let config = "platform: \"onnxruntime_onnx\" max_batch_size: 16\n\
            input { name: \"x\" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 2 ] } }\n\
            output { name: \"y\" data_type: TYPE_FP32 dims: [ 1 ] label_filename: \"labels.txt\" }\n\
            instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0 ] } ]\n\
            dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 100\n\
              default_queue_policy { default_timeout_microseconds: 50000 timeout_action: DELAY max_queue_size: 9 } }\n\
            version_policy { all { } } model_warmup { name: \"w\" } response_cache { enable: true } something_new: 3";
        let imported = import(&[folder("Re_Sent", config, &[1, 3])]);
        let file = weirfile::parse(&imported.text, Path::new("weir.toml")).unwrap();
        assert_eq!(file.models[0].name.as_str(), "re_sent");
        assert_eq!(file.models[0].version.as_ref().unwrap().as_str(), "3");
        assert_eq!((file.models[0].max_batch, file.models[0].replicas.min), (Some(16), 2));
        assert!(imported.text.contains("deadline = \"50000us\""), "{}", imported.text);
        let told = fields(&imported);
        for field in [
            "name",
            "versions",
            "version_policy",
            "input[x].reshape",
            "output[y].label_filename",
            "instance_group.kind",
            "instance_group.gpus",
            "dynamic_batching.preferred_batch_size",
            "dynamic_batching.max_queue_delay_microseconds",
            "dynamic_batching.default_queue_policy.timeout_action",
            "dynamic_batching.default_queue_policy.max_queue_size",
            "model_warmup",
            "response_cache",
            "something_new",
        ] {
            assert!(told.contains(&format!("Re_Sent/{field}")), "{field} is not in {told:?}");
        }
        assert_eq!(told.len(), 14, "{told:?}");
    }

    #[test]
    fn what_cannot_be_served_is_left_out_with_a_reason() {
        let imported = import(&[
            folder("py", "backend: \"python\"", &[1]),
            folder("seq", "sequence_batching { }", &[1]),
            folder("stream", "model_transaction_policy { decoupled: true }", &[1]),
            folder("empty", "", &[]),
            folder("once", "model_transaction_policy { decoupled: false }", &[1]),
        ]);
        assert_eq!(imported.endpoints, 1);
        assert_eq!(
            fields(&imported),
            ["py/backend", "seq/sequence_batching", "stream/model_transaction_policy", "empty/versions"]
        );
        let file = weirfile::parse(&imported.text, Path::new("weir.toml")).unwrap();
        assert_eq!(file.endpoints[0].name().as_str(), "once");
    }

    #[test]
    fn an_ensemble_is_a_graph_in_an_order_that_works() {
        let ensemble = "platform: \"ensemble\" input { name: \"RAW\" } output { name: \"SCORES\" } ensemble_scheduling { step [\n\
            { model_name: \"head\" model_version: -1 input_map { key: \"f\" value: \"features\" } output_map { key: \"p\" value: \"SCORES\" } },\n\
            { model_name: \"body\" model_version: 2 input_map { key: \"x\" value: \"RAW\" } output_map { key: \"h\" value: \"features\" } } ] }";
        let loop_of = "ensemble_scheduling { step [ { model_name: \"body\" input_map { key: \"x\" value: \"b\" } \
            output_map { key: \"h\" value: \"b\" } } ] }";
        let imported = import(&[
            folder("all", ensemble, &[]),
            folder("body", "max_batch_size: 4", &[2]),
            folder("head", "", &[1]),
            folder("knot", loop_of, &[]),
            folder("orphan", "ensemble_scheduling { step { model_name: \"gone\" } }", &[]),
        ]);
        let file = weirfile::parse(&imported.text, Path::new("weir.toml")).expect(&imported.text);
        assert_eq!(file.endpoints.len(), 3);
        let (body, head) = (imported.text.find("name = \"s2-body\""), imported.text.find("name = \"s1-head\""));
        assert!(body.unwrap() < head.unwrap(), "{}", imported.text);
        assert!(imported.text.contains("inputs = { x = \"request.RAW\" }"), "{}", imported.text);
        assert!(imported.text.contains("inputs = { f = \"s2-body.h\" }"), "{}", imported.text);
        let told = fields(&imported);
        let wanted = [
            "all/ensemble_scheduling.step.model_version",
            "all/output[SCORES]",
            "knot/ensemble_scheduling",
            "orphan/ensemble_scheduling",
        ];
        assert_eq!(told, wanted);
    }

    /// What the project's own reader makes of it.
    fn read_back(imported: &Imported) -> (weirfile::WeirFile, Vec<Endpoint>) {
        let file = weirfile::parse(&imported.text, Path::new("weir.toml"))
            .unwrap_or_else(|bad| panic!("{bad}\n{}", imported.text));
        let declared: Vec<ModelRef> = file
            .models
            .iter()
            .map(|model| ModelRef { name: model.name.clone(), version: model.version.clone().unwrap() })
            .collect();
        let endpoints = file.endpoints.iter().map(|endpoint| endpoint.resolve(&declared).unwrap()).collect();
        (file, endpoints)
    }

    #[test]
    fn what_an_ensemble_says_and_an_endpoint_does_not_is_listed() {
        let ensemble = "platform: \"ensemble\" max_batch_size: 8 version_policy { specific { versions: [ 1 ] } }\n\
            model_transaction_policy { decoupled: true } instance_group { count: 2 } default_model_filename: \"x\"\n\
            input { name: \"RAW\" reshape { shape: [ 1 ] } } output { name: \"h\" label_filename: \"l.txt\" }\n\
            dynamic_batching { default_queue_policy { default_timeout_microseconds: 70 allow_timeout_override: false } }\n\
            ensemble_scheduling { later: 1 step { model_name: \"body\" model_version: 1 model_namespace: \"n\" colour: \"red\"\n\
              input_map { key: \"x\" value: \"RAW\" } output_map { key: \"h\" value: \"h\" } } }";
        let imported = import(&[folder("all", ensemble, &[]), folder("body", "", &[1])]);
        let mut told = fields(&imported);
        told.sort();
        let mut wanted = [
            "all/ensemble_scheduling.later",
            "all/ensemble_scheduling.step.model_version",
            "all/ensemble_scheduling.step.model_namespace",
            "all/ensemble_scheduling.step.colour",
            "all/input[RAW].reshape",
            "all/output[h].label_filename",
            "all/dynamic_batching.default_queue_policy.allow_timeout_override",
            "all/max_batch_size",
            "all/version_policy",
            "all/model_transaction_policy.decoupled",
            "all/instance_group",
            "all/default_model_filename",
        ];
        wanted.sort_unstable();
        assert_eq!(told, wanted);
        let (_, endpoints) = read_back(&imported);
        assert_eq!(endpoints[1].deadline, Duration::from_micros(70));
        let plain = "platform: \"ensemble\" max_batch_size: 0 version_policy { latest { num_versions: 1 } } input { name: \"RAW\" }\n\
            dynamic_batching { default_queue_policy { default_timeout_microseconds: 70 allow_timeout_override: true } }\n\
            ensemble_scheduling { step { model_name: \"body\" model_version: -1 input_map { key: \"x\" value: \"RAW\" } } }";
        assert_eq!(fields(&import(&[folder("all", plain, &[]), folder("body", "", &[1])])), [""; 0]);
    }

    #[test]
    fn version_policies_and_time_outs_of_models_are_honoured_or_listed() {
        let told = |config: &str| fields(&import(&[folder("m", config, &[3])]));
        assert_eq!(told("version_policy { latest { num_versions: 1 } }"), [""; 0]);
        for policy in ["latest { num_versions: 2 }", "all { }", "specific { versions: [ 1 ] }"] {
            assert_eq!(told(&format!("version_policy {{ {policy} }}")), ["m/version_policy"], "{policy}");
        }
        let queue = |policy: &str| told(&format!("dynamic_batching {{ default_queue_policy {{ {policy} }} }}"));
        assert_eq!(
            queue("default_timeout_microseconds: 0 allow_timeout_override: true timeout_action: REJECT"),
            [""; 0]
        );
        for (field, value) in [
            ("allow_timeout_override", "false"),
            ("default_timeout_microseconds", "-5"),
            ("default_timeout_microseconds", "9000000000000000000"),
            ("default_timeout_microseconds", "soon"),
        ] {
            let wanted = format!("m/dynamic_batching.default_queue_policy.{field}");
            assert_eq!(queue(&format!("{field}: {value}")), [wanted], "{value}");
        }
        assert_eq!(
            told("model_transaction_policy { decoupled: false other: 1 }"),
            ["m/model_transaction_policy.other"]
        );
        assert_eq!(told("max_batch_size: 5000000000"), ["m/max_batch_size"]);
        assert_eq!(told("instance_group [ { count: 5000000000 } ]"), ["m/instance_group.count"]);
    }

    #[test]
    fn numbers_that_weir_does_not_take_leave_a_file_that_can_be_read() {
        let huge = "max_batch_size: 5000000000 instance_group [ { count: 9223372036854775807 }, { count: 5 } ]\n\
            dynamic_batching { default_queue_policy { default_timeout_microseconds: 9000000000000000000 } }";
        let (file, endpoints) = read_back(&import(&[folder("m", huge, &[1])]));
        assert_eq!((file.models[0].max_batch, file.models[0].replicas.min), (Some(1), 1));
        assert_eq!(endpoints[0].deadline, Duration::from_secs(1));
    }

    #[test]
    fn folders_with_one_name_in_weir_are_told_apart() {
        let long = "m".repeat(64);
        let names = ["A B", "ResNet", "a b", "a-b", "resnet", "resnet-2", &long, &format!("{}M", &long[1..])];
        let folders: Vec<Folder> = names.iter().map(|name| folder(name, "", &[1])).collect();
        let imported = import(&folders);
        let (file, endpoints) = read_back(&imported);
        let ended = format!("{}-2", &long[..62]);
        let wanted = ["a-b-2", "resnet-3", "a-b-3", "a-b", "resnet", "resnet-2", &long, &ended];
        assert_eq!(file.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), wanted);
        for (i, folder) in folders.iter().enumerate() {
            assert_eq!(file.models[i].path, folder.versions[0].1, "each keeps its own file");
            assert_eq!((endpoints[i].name.as_str(), endpoints[i].stages[0].name.as_str()), (wanted[i], wanted[i]));
        }
        let told = |folder: &str| imported.notes.iter().find(|note| note.model == folder).map(|note| note.why.clone());
        assert!(told("ResNet").unwrap().ends_with("it is \"resnet-3\""), "{:?}", imported.notes);
        assert_eq!((told("resnet"), told("a-b")), (None, None));
    }

    #[test]
    fn any_path_and_any_name_of_a_tensor_comes_back_as_it_was() {
        let odd = [
            "a b",
            "q\"uo'te",
            "back\\slash",
            "\u{7f}",
            "tab\tnew\nline\r",
            "\n\n",
            "\u{1b}[0m",
            "e\u{301}\u{200b}",
            "'''\"\"\"",
            "a.b=#",
        ];
        for odd in odd {
            let mut body = folder("body", "", &[1]);
            body.versions[0].1 = PathBuf::from(format!("/models/{odd}/model.onnx"));
            let text = |text: &str| Value::Scalar(text.to_owned());
            let message = |fields: Vec<(&str, Value)>| {
                Message(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            };
            let pair =
                |key: &str, value: &str| Value::Message(message(vec![("key", text(key)), ("value", text(value))]));
            let step = |input: Value, output: Value| {
                let fields = vec![("model_name", text("body")), ("input_map", input), ("output_map", output)];
                ("step", Value::Message(message(fields)))
            };
            let steps = vec![step(pair(odd, odd), pair("y", "given")), step(pair("x", "given"), pair("y", "out"))];
            let config = message(vec![
                ("input", Value::Message(message(vec![("name", text(odd))]))),
                ("ensemble_scheduling", Value::Message(message(steps))),
            ]);
            let all = Folder { name: "all".into(), config: Some(config), versions: Vec::new() };
            let (file, endpoints) = read_back(&import(&[body.clone(), all]));
            assert_eq!(file.models[0].path, body.versions[0].1);
            let feed = &endpoints[1].stages[0].inputs[0];
            assert_eq!((feed.input.as_str(), feed.stage, feed.tensor.as_str(), feed.each), (odd, None, odd, false));
            let feed = &endpoints[1].stages[1].inputs[0];
            assert_eq!((feed.input.as_str(), feed.stage, feed.tensor.as_str()), ("x", Some(0), "y"));
        }
    }

    #[test]
    fn names_of_stages_are_names_that_weir_takes() {
        let long = "m".repeat(64);
        let step = |from: &str, to: &str| {
            format!(
                "step {{ model_name: \"{long}\" input_map {{ key: \"x\" value: \"{from}\" }} output_map {{ key: \"y\" value: \"{to}\" }} }}"
            )
        };
        let ensemble =
            format!("input {{ name: \"a\" }} ensemble_scheduling {{ {} {} }}", step("a", "b"), step("b", "c"));
        let (_, endpoints) = read_back(&import(&[folder(&long, "", &[1]), folder("all", &ensemble, &[])]));
        let stages: Vec<&str> = endpoints[1].stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(stages, [format!("s1-{}", "m".repeat(61)), format!("s2-{}", "m".repeat(61))]);
        assert_eq!(endpoints[1].stages[1].inputs[0].stage, Some(0));
    }

    #[test]
    fn ensembles_that_no_weir_file_can_say_are_left_out_with_a_reason() {
        for (step, why) in [
            ("", "no steps"),
            ("step { model_name: \"body\" input_map { key: \"x\" } }", "input_map lacks a name"),
            ("step { model_name: \"body\" input_map { key: \"x\" value: \"a[]\" } }", "cannot name"),
            ("step { model_name: \"body\" output_map { key: \"y[]\" value: \"b\" } }", "cannot name"),
            (
                "step { model_name: \"body\" input_map [ { key: \"x\" value: \"a\" }, { key: \"x\" value: \"a\" } ] }",
                "twice",
            ),
            ("step { model_name: \"body\" input_map { key: \"x\" value: \"b\" } }", "none gives"),
        ] {
            let config = format!("input {{ name: \"a\" }} ensemble_scheduling {{ {step} }}");
            let imported = import(&[folder("body", "", &[1]), folder("all", &config, &[])]);
            let (file, _) = read_back(&imported);
            assert_eq!((file.endpoints.len(), imported.endpoints), (1, 1));
            let told = &imported.notes.last().unwrap().why;
            assert!(told.contains(why) && told.ends_with("it is left out"), "{told}");
        }
    }

    #[test]
    fn a_model_file_of_another_name_says_its_engine() {
        let mut odd = folder("m", "default_model_filename: \"weights.bin\"", &[1]);
        odd.versions[0].1 = PathBuf::from("m/1/weights.bin");
        let (file, _) = read_back(&import(&[odd]));
        assert_eq!(file.models[0].path, Path::new("m/1/weights.bin"));
    }

    #[test]
    #[cfg(unix)]
    fn a_path_that_is_no_text_is_left_out() {
        use std::os::unix::ffi::OsStringExt;
        let mut odd = folder("m", "", &[1]);
        odd.versions[0].1 = PathBuf::from(std::ffi::OsString::from_vec(b"/models/\xff/model.onnx".to_vec()));
        assert_eq!(fields(&import(&[odd, folder("n", "", &[1])])), ["m/versions"]);
    }
}
