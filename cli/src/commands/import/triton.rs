//! A Triton model repository as a weir file: what can be said in it, and what cannot, field by field.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

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
}

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

/// Everything of a repository, its folders in order.
pub fn import(folders: &[Folder]) -> Imported {
    let mut imported = Imported::default();
    imported.text.push_str("# Imported from a Triton model repository by `weir import triton`.\n");
    // Ensembles name models, which stand before them.
    let (ensembles, plain): (Vec<&Folder>, Vec<&Folder>) = folders.iter().partition(|folder| is_ensemble(folder));
    let mut known = Vec::new();
    for folder in plain {
        if let Some(model) = import_model(folder, &mut imported) {
            known.push((folder.name.clone(), model));
        }
    }
    for folder in ensembles {
        import_ensemble(folder, &known, &mut imported);
    }
    imported
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
        let config = folder.config.clone().unwrap_or_default();
        let policy = config.message("dynamic_batching").and_then(|batching| batching.message("default_queue_policy"));
        let timeout = policy.and_then(|policy| policy.number("default_timeout_microseconds")).filter(|us| *us > 0);
        let deadline = match timeout {
            Some(us) => format!("deadline = \"{us}us\"               # default_timeout_microseconds"),
            None => {
                "deadline = \"1s\"                  # Triton has none: say when an answer is worth nothing any more"
                    .into()
            }
        };
        let _ = write!(self.text, "\n[[endpoint]]\nname = \"{name}\"\n{deadline}\n");
    }
}

/// A name that weir takes; told where it is another.
fn name_of(folder: &Folder, imported: &mut Imported) -> Option<String> {
    let name: String = folder.name.to_ascii_lowercase().chars().map(|c| if is_of_name(c) { c } else { '-' }).collect();
    let name = name.trim_start_matches(['-', '.', '_']).to_owned();
    if name.is_empty() || name.len() > 64 {
        imported.note(folder, "name", "weir has no name like it: [a-z0-9][a-z0-9._-]{0,63}; the model is left out");
        return None;
    }
    if name != folder.name {
        imported.note(folder, "name", format!("weir writes names small: it is {name:?}"));
    }
    Some(name)
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c)
}

/// The model's reference, where it can be served.
fn import_model(folder: &Folder, imported: &mut Imported) -> Option<String> {
    let config = folder.config.clone().unwrap_or_default();
    let name = name_of(folder, imported)?;
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
            |message: &Message| field != "model_transaction_policy" || message.text("decoupled") == Some("true");
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
    let mut lines =
        format!("\n[[model]]\nname = \"{name}\"\nversion = \"{version}\"\npath = {:?}\n", path.display().to_string());
    // A configuration without it batches nothing; without a configuration Triton finds it out, and so does weir.
    match config.number("max_batch_size").unwrap_or(0) {
        batch @ 1.. => lines.push_str(&format!("max_batch = {batch}\n")),
        _ if folder.config.is_some() => lines.push_str("max_batch = 1\n"),
        _ => {}
    }
    let instances: i64 = config.messages("instance_group").map(|group| group.number("count").unwrap_or(1)).sum();
    if instances > 0 {
        lines.push_str(&format!("replicas = {{ min = {instances} }}\n"));
    }
    imported.text.push_str(&lines);
    imported.endpoint(folder, &name);
    let model = format!("{name}@{version}");
    let _ = writeln!(imported.text, "model = \"{model}\"");
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
    if let Some(Value::Message(policy)) = config.all("version_policy").next()
        && policy.message("latest").is_none()
    {
        imported.note(folder, "version_policy", "the newest version is served");
    }
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
    for group in config.messages("instance_group") {
        for (field, value) in group.0.iter().filter(|(field, _)| !["count", "name"].contains(&field.as_str())) {
            if field == "kind" && ["KIND_CPU", "KIND_AUTO", "KIND_MODEL"].contains(&value.to_string().as_str()) {
                continue;
            }
            imported.note(
                folder,
                format!("instance_group.{field}"),
                format!("{value}: weir chooses nodes and devices itself"),
            );
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
    for (field, value) in config.0.iter().filter(|(field, _)| !SAID.contains(&field.as_str())) {
        let why = match field.as_str() {
            "version_policy" => continue,
            "model_warmup" => "every replica is probed before it serves",
            "response_cache" => "weir has no cache",
            "optimization" => "ONNX Runtime is used as weir sets it",
            "parameters" => "there are no parameters of backends",
            "model_transaction_policy" => continue,
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
            "default_timeout_microseconds" | "allow_timeout_override" => continue,
            "timeout_action" if value.scalar() == Some("REJECT") => continue,
            "timeout_action" => "what cannot be in time is refused, not delayed",
            "max_queue_size" => "the queue is as long as deadlines allow",
            _ => "weir has nothing like it",
        };
        imported.note(folder, format!("dynamic_batching.default_queue_policy.{field}"), format!("{value}: {why}"));
    }
}

/// One step of an ensemble.
struct Step<'a> {
    model: &'a str,
    /// The model's input, and the ensemble's tensor that it takes.
    inputs: Vec<(&'a str, &'a str)>,
    /// The ensemble's tensor, and the model's output that it is.
    outputs: Vec<(&'a str, &'a str)>,
}

fn import_ensemble(folder: &Folder, known: &[(String, String)], imported: &mut Imported) {
    let config = folder.config.clone().unwrap_or_default();
    let Some(name) = name_of(folder, imported) else { return };
    let scheduling = config.message("ensemble_scheduling").cloned().unwrap_or_default();
    let mut steps = Vec::new();
    for step in scheduling.messages("step") {
        let model = step.text("model_name").unwrap_or("");
        if !known.iter().any(|(known, _)| known == model) {
            imported.note(
                folder,
                "ensemble_scheduling",
                format!("its model {model:?} is not imported; it is left out"),
            );
            return;
        }
        if step.number("model_version").is_some_and(|version| version > 0) {
            imported.note(folder, "ensemble_scheduling.step.model_version", "the newest version is served");
        }
        let pairs = |field: &str| -> Vec<(&str, &str)> {
            step.messages(field).filter_map(|pair| Some((pair.text("key")?, pair.text("value")?))).collect()
        };
        let outputs = pairs("output_map").into_iter().map(|(output, tensor)| (tensor, output)).collect();
        steps.push(Step { model, inputs: pairs("input_map"), outputs });
    }
    let of_request: BTreeSet<&str> = config.messages("input").filter_map(|input| input.text("name")).collect();
    let Some(order) = in_order(&steps, &of_request) else {
        imported.note(
            folder,
            "ensemble_scheduling",
            "its steps need each other, or a tensor that none gives; it is left out",
        );
        return;
    };
    imported.endpoint(folder, &name);
    let stage = |i: usize| {
        format!("s{}-{}", i + 1, known.iter().find(|(k, _)| k == steps[i].model).map_or("", |(_, m)| m))
            .split('@')
            .next()
            .unwrap_or("")
            .to_owned()
    };
    for i in order.iter().copied() {
        let (_, model) = known.iter().find(|(known, _)| known == steps[i].model).expect("it was looked up");
        let feeds: Vec<String> = steps[i]
            .inputs
            .iter()
            .map(|(input, tensor)| {
                let from = (0..steps.len()).find_map(|j| {
                    let (_, output) = steps[j].outputs.iter().find(|(given, _)| given == tensor)?;
                    Some(format!("{}.{output}", stage(j)))
                });
                format!("{input:?} = {:?}", from.unwrap_or_else(|| format!("request.{tensor}")))
            })
            .collect();
        let _ = write!(
            imported.text,
            "[[endpoint.stage]]\nname = {:?}\nmodel = {model:?}\ninputs = {{ {} }}\n",
            stage(i),
            feeds.join(", ")
        );
    }
    // The last stage's answer is the endpoint's.
    let last = order.last().copied();
    for output in config.messages("output").filter_map(|output| output.text("name")) {
        let given = last.and_then(|last| steps[last].outputs.iter().find(|(tensor, _)| *tensor == output));
        match given {
            Some((_, own)) if *own == output => {}
            Some((_, own)) => {
                imported.note(folder, format!("output[{output}]"), format!("it keeps the model's name: {own:?}"))
            }
            None => {
                let why = "the last step does not give it, and the endpoint's answer is that of its last stage";
                imported.note(folder, format!("output[{output}]"), why);
            }
        }
    }
    let rest =
        Message(config.0.iter().filter(|(field, _)| !["input", "output"].contains(&field.as_str())).cloned().collect());
    note_fields(folder, &rest, imported);
}

/// Steps behind those that they need.
fn in_order(steps: &[Step<'_>], of_request: &BTreeSet<&str>) -> Option<Vec<usize>> {
    let mut given = of_request.clone();
    let mut order: Vec<usize> = Vec::new();
    while order.len() < steps.len() {
        let ready = |i: &usize| !order.contains(i) && steps[*i].inputs.iter().all(|(_, tensor)| given.contains(tensor));
        let next = (0..steps.len()).find(ready)?;
        given.extend(steps[next].outputs.iter().map(|(tensor, _)| *tensor));
        order.push(next);
    }
    Some(order)
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
    use weir_client::weirfile;

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
        assert!(imported.text.contains("inputs = { \"x\" = \"request.RAW\" }"), "{}", imported.text);
        assert!(imported.text.contains("inputs = { \"f\" = \"s2-body.h\" }"), "{}", imported.text);
        let told = fields(&imported);
        let wanted = [
            "all/ensemble_scheduling.step.model_version",
            "all/output[SCORES]",
            "knot/ensemble_scheduling",
            "orphan/ensemble_scheduling",
        ];
        assert_eq!(told, wanted);
    }
}
