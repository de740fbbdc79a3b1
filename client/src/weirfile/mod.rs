//! Weir files: what `weir apply -f` reads. TOML with `[[model]]` and `[[endpoint]]` tables.
//!
//! A mistake is reported with file, line and column and, where it can be guessed, with what was meant. Gain tables are read
//! with the file. Nothing here touches a cluster or opens a model: the caller resolves `path`, digests and signatures.

mod graph;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use weir_core::endpoint::{AUDIT_MAX, Combine, Condition, Endpoint, Feed, GainTable, Gate, Run, Split, Stage};
use weir_core::ids::{EndpointName, ModelName, ModelRef, StageName, Version};
use weir_core::outcome::Class;
use weir_core::replicated::{EngineKind, ReplicaRange};
use weir_core::shapes::{Padding, Shapes};
use weir_core::tensor::{DType, Tensor};
use weir_schema::convert::predict::span_to_us;

/// A checked weir file.
#[derive(Clone, Debug, PartialEq)]
pub struct WeirFile {
    /// In the file's order.
    pub models: Vec<ModelDeclaration>,
    /// In the file's order; a stage may name a model that this file does not declare.
    pub endpoints: Vec<EndpointDeclaration>,
}

/// A `[[model]]` table.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDeclaration {
    /// Its name.
    pub name: ModelName,
    /// The first 12 hex digits of the artifact's digest where absent.
    pub version: Option<Version>,
    /// The artifact, resolved against the file's folder.
    pub path: PathBuf,
    /// Told by the artifact's ending unless given.
    pub engine: EngineKind,
    /// Measured where absent.
    pub max_batch: Option<u32>,
    /// Sizes of batches and lengths of rows; to be checked against what the artifact takes and gives.
    pub shapes: Shapes,
    /// Where they are declared.
    pub shapes_at: Option<Position>,
    /// 1 to as many as there is room for, unless given.
    pub replicas: ReplicaRange,
}

/// The attainment that `attainment>=0.99` says.
pub fn objective(text: &str) -> Option<f64> {
    let number = text.trim().strip_prefix("attainment")?.trim_start().strip_prefix(">=")?.trim().parse().ok()?;
    (number > 0.0 && number <= 1.0).then_some(number)
}

/// An `[[endpoint]]` table; a stage's model may leave out the version where the file declares one version of it.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointDeclaration {
    /// Everything but the stages' models.
    name: EndpointName,
    deadline: Duration,
    weight: f64,
    share: f64,
    audit: f64,
    /// Where it is declared that some are.
    audit_at: Option<Position>,
    objective: f64,
    class: Class,
    label_output: Option<String>,
    confidence_output: Option<String>,
    default_outputs: Vec<(String, Tensor)>,
    stages: Vec<StageDeclaration>,
    versions: Vec<(ModelMention, u32)>,
    shadow: Option<ModelMention>,
}

/// An `[[endpoint.stage]]` table: its model, where it has one, stands apart until versions are known.
#[derive(Clone, Debug, PartialEq)]
struct StageDeclaration {
    name: StageName,
    does: Does,
    gate: Option<Gate>,
    inputs: Vec<Feed>,
    when: Option<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
enum Does {
    Model(ModelMention),
    Combine(Combine),
}

#[derive(Clone, Debug, PartialEq)]
struct ModelMention {
    name: ModelName,
    version: Option<Version>,
    at: Position,
}

impl EndpointDeclaration {
    /// Its name.
    pub fn name(&self) -> &EndpointName {
        &self.name
    }

    /// The endpoint with every model's version filled in from `declared`, the models of the same file. Its default outputs are as they are
    /// written: [`Endpoint::type_defaults`] makes them what models give.
    pub fn resolve(&self, declared: &[ModelRef]) -> Result<Endpoint, BadWeirFile> {
        let stages = self.stages.iter().map(|stage| {
            Ok(Stage {
                name: stage.name.clone(),
                run: match &stage.does {
                    Does::Model(mention) => Run::Model(mention.resolve(declared)?),
                    Does::Combine(combine) => Run::Combine(combine.clone()),
                },
                gate: stage.gate.clone(),
                inputs: stage.inputs.clone(),
                when: stage.when.clone(),
            })
        });
        let endpoint = Endpoint {
            name: self.name.clone(),
            deadline: self.deadline,
            weight: self.weight,
            share: self.share,
            audit: self.audit,
            objective: self.objective,
            undone: String::new(),
            class: self.class,
            label_output: self.label_output.clone(),
            confidence_output: self.confidence_output.clone(),
            default_outputs: self.default_outputs.clone(),
            stages: stages.collect::<Result<_, _>>()?,
            versions: self
                .versions
                .iter()
                .map(|(mention, share)| Ok(Split { model: mention.resolve(declared)?, share: *share }))
                .collect::<Result<_, _>>()?,
            before: Vec::new(),
            shadow: self.shadow.as_ref().map(|mention| mention.resolve(declared)).transpose()?,
            named: None,
            beside: Vec::new(),
        };
        match endpoint.unauditable().zip(self.audit_at.clone()) {
            Some((why, at)) => Err(BadWeirFile { at: Some(at), what: why.to_owned() }),
            None => Ok(endpoint),
        }
    }
}

impl ModelMention {
    fn resolve(&self, declared: &[ModelRef]) -> Result<ModelRef, BadWeirFile> {
        if let Some(version) = &self.version {
            return Ok(ModelRef { name: self.name.clone(), version: version.clone() });
        }
        let mut versions = declared.iter().filter(|model| model.name == self.name);
        match (versions.next(), versions.next()) {
            (Some(only), None) => Ok(only.clone()),
            _ => Err(BadWeirFile {
                at: Some(self.at.clone()),
                what: format!(
                    "model `{0}` needs its version here, as `{0}@1`, since this file does not declare exactly one",
                    self.name
                ),
            }),
        }
    }
}

/// A place in a file; line and column count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Position {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
}

impl Position {
    /// Of the byte `offset` in `text`, the contents of `file`.
    pub fn find(file: &Path, text: &str, offset: usize) -> Position {
        let before = &text[..offset.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Position { file: file.to_owned(), line, column }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// A mistake in a weir file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}", at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default())]
pub struct BadWeirFile {
    /// Where; absent only where the file as a whole is meant.
    pub at: Option<Position>,
    /// What is wrong and what to write instead.
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<ModelTable>,
    #[serde(default)]
    endpoint: Vec<Spanned<EndpointTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelTable {
    name: Spanned<String>,
    version: Option<Spanned<String>>,
    path: Spanned<String>,
    engine: Option<Spanned<String>>,
    max_batch: Option<Spanned<u32>>,
    allowed_batch_sizes: Option<Spanned<Vec<u32>>>,
    pad: Option<Spanned<PadTable>>,
    replicas: Option<Spanned<ReplicasTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PadTable {
    mask: String,
    #[serde(default)]
    inputs: BTreeMap<String, f64>,
    #[serde(default = "after_rows")]
    dimension: u32,
    buckets: Vec<u64>,
    #[serde(default)]
    outputs: Vec<String>,
}

/// The dimension after that of rows.
fn after_rows() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplicasTable {
    min: Option<u32>,
    max: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointTable {
    name: Spanned<String>,
    deadline: Option<Spanned<String>>,
    weight: Option<Spanned<f64>>,
    share: Option<Spanned<f64>>,
    audit: Option<Spanned<f64>>,
    objective: Option<Spanned<String>>,
    class: Option<Spanned<String>>,
    label_output: Option<String>,
    confidence_output: Option<String>,
    #[serde(default)]
    default_output: BTreeMap<String, Spanned<Written>>,
    model: Option<Spanned<String>>,
    versions: Option<Spanned<Vec<VersionTable>>>,
    shadow: Option<Spanned<String>>,
    #[serde(default)]
    stage: Vec<Spanned<StageTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionTable {
    model: Spanned<String>,
    share: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StageTable {
    name: Spanned<String>,
    model: Option<Spanned<String>>,
    gate: Option<Spanned<GateTable>>,
    #[serde(default)]
    inputs: BTreeMap<String, Spanned<String>>,
    when: Option<Spanned<String>>,
    combine: Option<Spanned<String>>,
    weights: Option<Spanned<BTreeMap<String, f64>>>,
    at_least: Option<Spanned<u32>>,
}

/// One value a row, or several, to any depth.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Truth(bool),
    Whole(i64),
    Fraction(f64),
    Text(String),
    Several(Vec<Written>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GateTable {
    confidence_below: Option<Spanned<f64>>,
    entropy_above: Option<Spanned<f64>>,
    margin_below: Option<Spanned<f64>>,
    gain: Option<Spanned<String>>,
    min_gain: Option<Spanned<f64>>,
}

/// A query without a deadline of its own, at an endpoint that declares none: long enough for any model that answers
/// people, short enough that a stuck one is noticed.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(1);

/// Reads and checks the weir file at `path`.
pub fn read(path: &Path) -> Result<WeirFile, BadWeirFile> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| BadWeirFile { at: None, what: format!("cannot read {}: {cause}", path.display()) })?;
    parse(&text, path)
}

/// Checks `text` as the contents of the weir file `path`; relative paths in it start from that file's folder.
pub fn parse(text: &str, path: &Path) -> Result<WeirFile, BadWeirFile> {
    let source = Source { text, path };
    let file: File = toml::from_str(text).map_err(|error| {
        let what = explain(error.message());
        match error.span() {
            Some(span) => source.wrong(&span, what),
            None => BadWeirFile { at: None, what: format!("{}: {what}", path.display()) },
        }
    })?;
    if file.model.is_empty() && file.endpoint.is_empty() {
        let what = format!("{}: declares nothing; write a [[model]] or an [[endpoint]] table", path.display());
        return Err(BadWeirFile { at: None, what });
    }
    let models = file.model.iter().map(|table| source.model(table)).collect::<Result<Vec<_>, _>>()?;
    for (i, model) in models.iter().enumerate() {
        if models[..i].iter().any(|other| other.name == model.name && other.version == model.version) {
            return Err(source.wrong(
                &file.model[i].name.span(),
                format!("model `{}` is declared twice with the same version", model.name),
            ));
        }
    }
    let endpoints = file.endpoint.iter().map(|table| source.endpoint(table)).collect::<Result<Vec<_>, _>>()?;
    for (i, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..i].iter().any(|other| other.name == endpoint.name) {
            return Err(source.wrong(
                &file.endpoint[i].get_ref().name.span(),
                format!("endpoint `{}` is declared twice", endpoint.name),
            ));
        }
    }
    Ok(WeirFile { models, endpoints })
}

fn shapes(table: &ModelTable) -> Shapes {
    let pad = table.pad.as_ref().map(|pad| pad.get_ref()).map(|pad| Padding {
        mask: pad.mask.clone(),
        inputs: pad.inputs.clone(),
        dimension: pad.dimension,
        buckets: pad.buckets.clone(),
        outputs: pad.outputs.clone(),
    });
    let batch_sizes = table.allowed_batch_sizes.as_ref().map(|sizes| sizes.get_ref().clone()).unwrap_or_default();
    Shapes { batch_sizes, pad }
}

impl Written {
    /// One row of it, as it is written: whole numbers are i64, others f64. What a model gives instead is not known here.
    fn row(&self) -> Result<Tensor, &'static str> {
        let (mut shape, mut level) = (vec![1], vec![self]);
        while let Some(Written::Several(first)) = level.first() {
            let lists = level.iter().map(|written| match written {
                Written::Several(list) if list.len() == first.len() => Ok(list),
                _ => Err("is no tensor: its lists differ in length or depth"),
            });
            let lists = lists.collect::<Result<Vec<_>, _>>()?;
            shape.push(first.len() as u64);
            level = lists.into_iter().flatten().collect();
        }
        let mixed = "is neither of numbers, nor of true and false, nor of texts";
        let (dtype, data) = match level.first() {
            Some(Written::Truth(_)) => {
                let truth = |written: &&Written| matches!(written, Written::Truth(_)).then_some(()).ok_or(mixed);
                level.iter().try_for_each(truth)?;
                (DType::Bool, level.iter().map(|written| u8::from(matches!(written, Written::Truth(true)))).collect())
            }
            Some(Written::Text(_)) => {
                let text = |written: &&Written| match written {
                    Written::Text(text) => Ok(text.clone()),
                    _ => Err(mixed),
                };
                let texts = level.iter().map(text).collect::<Result<Vec<_>, _>>()?;
                return Ok(Tensor::strings(&shape, &texts));
            }
            _ if level.iter().all(|written| matches!(written, Written::Whole(_))) => {
                let whole = |written: &&Written| if let Written::Whole(number) = written { *number } else { 0 };
                (DType::I64, level.iter().flat_map(|written| whole(written).to_le_bytes()).collect())
            }
            _ => {
                let number = |written: &&Written| match written {
                    Written::Whole(number) => Ok(*number as f64),
                    Written::Fraction(number) => Ok(*number),
                    _ => Err(mixed),
                };
                let numbers = level.iter().map(number).collect::<Result<Vec<f64>, _>>()?;
                (DType::F64, numbers.into_iter().flat_map(f64::to_le_bytes).collect())
            }
        };
        Tensor::new(dtype, shape, data).map_err(|_| "is too large")
    }
}

/// A span of time as `50ms`, `1.5s`, `200us` or `2m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit.trim() {
        "us" | "µs" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return None,
    };
    // A century: beyond it the arithmetic on deadlines would have to saturate.
    (seconds.is_finite() && seconds <= 3.2e9).then(|| Duration::from_secs_f64(seconds))
}

/// An amount of memory as `512MiB`, `8GiB`, `1000000` or `2GB`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let factor: f64 = match unit.trim() {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    let bytes = number * factor;
    (bytes.is_finite() && bytes < u64::MAX as f64).then_some(bytes as u64)
}

/// The known word nearest to `word`, where it is near enough to have been meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Adds a guess to the parser's "unknown field" message.
fn explain(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.to_owned() };
    let Some((field, expected)) = rest.split_once('`') else { return message.to_owned() };
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    match nearest(field, known.iter().copied()) {
        Some(meant) => format!("unknown field `{field}`; did you mean `{meant}`?"),
        None => format!("unknown field `{field}`; known here: {}", known.join(", ")),
    }
}

struct Source<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Source<'_> {
    fn position(&self, span: &Range<usize>) -> Position {
        Position::find(self.path, self.text, span.start)
    }

    fn wrong(&self, span: &Range<usize>, what: impl Into<String>) -> BadWeirFile {
        BadWeirFile { at: Some(self.position(span)), what: what.into() }
    }

    fn model(&self, table: &ModelTable) -> Result<ModelDeclaration, BadWeirFile> {
        let name = ModelName::parse(table.name.get_ref()).map_err(|e| self.wrong(&table.name.span(), e.to_string()))?;
        let version = table
            .version
            .as_ref()
            .map(|text| Version::parse(text.get_ref()).map_err(|e| self.wrong(&text.span(), e.to_string())));
        let path = self.path.parent().unwrap_or(Path::new("")).join(table.path.get_ref());
        let engine = match &table.engine {
            Some(word) => EngineKind::ALL.into_iter().find(|kind| kind.word() == word.get_ref()).ok_or_else(|| {
                let known = EngineKind::ALL.map(EngineKind::word);
                let guess = nearest(word.get_ref(), known).map(|meant| format!("; did you mean `{meant}`?"));
                self.wrong(
                    &word.span(),
                    format!(
                        "unknown engine `{}`{}; known are {}",
                        word.get_ref(),
                        guess.unwrap_or_default(),
                        known.join(", ")
                    ),
                )
            })?,
            None => match path.extension().and_then(|e| e.to_str()) {
                Some("onnx") => EngineKind::Onnx,
                Some("synthetic") => EngineKind::Synthetic,
                Some("kernel") => EngineKind::Kernel,
                _ => {
                    let what = "the ending does not tell the engine; use a .onnx file, or say engine = \"onnx\"";
                    return Err(self.wrong(&table.path.span(), what));
                }
            },
        };
        let max_batch = table.max_batch.as_ref().map(|max| match max.get_ref() {
            0 => Err(self.wrong(&max.span(), "max_batch must be at least 1")),
            max => Ok(*max),
        });
        if let (Some(_), Some(sizes)) = (&table.max_batch, &table.allowed_batch_sizes) {
            return Err(
                self.wrong(&sizes.span(), "allowed_batch_sizes end with the largest batch; leave max_batch out")
            );
        }
        let span = table.pad.as_ref().map(Spanned::span).or(table.allowed_batch_sizes.as_ref().map(Spanned::span));
        Ok(ModelDeclaration {
            name,
            version: version.transpose()?,
            path,
            engine,
            max_batch: max_batch.transpose()?,
            shapes: shapes(table),
            shapes_at: span.map(|span| self.position(&span)),
            replicas: self.replicas(table.replicas.as_ref())?,
        })
    }

    fn replicas(&self, table: Option<&Spanned<ReplicasTable>>) -> Result<ReplicaRange, BadWeirFile> {
        let Some(table) = table else { return Ok(ReplicaRange { min: 1, max: u32::MAX }) };
        let min = table.get_ref().min.unwrap_or(1);
        let max = table.get_ref().max.unwrap_or(u32::MAX);
        if min == 0 || max < min {
            return Err(self.wrong(&table.span(), "replicas needs min of at least 1 and max of at least min"));
        }
        Ok(ReplicaRange { min, max })
    }

    fn endpoint(&self, spanned: &Spanned<EndpointTable>) -> Result<EndpointDeclaration, BadWeirFile> {
        let table = spanned.get_ref();
        let name =
            EndpointName::parse(table.name.get_ref()).map_err(|e| self.wrong(&table.name.span(), e.to_string()))?;
        let deadline = match &table.deadline {
            None => DEFAULT_DEADLINE,
            Some(text) => parse_duration(text.get_ref()).filter(|d| span_to_us(*d) > 0).ok_or_else(|| {
                self.wrong(
                    &text.span(),
                    format!("`{}` is no deadline; write it as \"50ms\" or \"1.5s\"", text.get_ref()),
                )
            })?,
        };
        let weight = match &table.weight {
            None => 1.0,
            Some(weight) if weight.get_ref().is_finite() && *weight.get_ref() > 0.0 => *weight.get_ref(),
            Some(weight) => return Err(self.wrong(&weight.span(), "weight must be a finite number above 0")),
        };
        let share = match &table.share {
            None => 0.0,
            Some(share) if (0.0..=1.0).contains(share.get_ref()) => *share.get_ref(),
            Some(share) => return Err(self.wrong(&share.span(), "share is a part of the devices' time, from 0 to 1")),
        };
        let audit = match &table.audit {
            None => 0.0,
            Some(audit) if (0.0..=AUDIT_MAX).contains(audit.get_ref()) => *audit.get_ref(),
            Some(audit) => {
                return Err(self.wrong(&audit.span(), format!("audit is a part of the rows, from 0 to {AUDIT_MAX}")));
            }
        };
        let objective = match &table.objective {
            None => 0.0,
            Some(text) => objective(text.get_ref()).ok_or_else(|| {
                self.wrong(&text.span(), "objective is what a new version has to keep, as \"attainment>=0.99\"")
            })?,
        };
        let class = match &table.class {
            None => Class::Default,
            Some(word) => Class::parse(word.get_ref()).ok_or_else(|| {
                let known = Class::ALL.map(Class::word).join(", ");
                self.wrong(&word.span(), format!("unknown class `{}`; known are {known}", word.get_ref()))
            })?,
        };
        let versions: Vec<(ModelMention, u32)> = match &table.versions {
            None => Vec::new(),
            Some(versions) if versions.get_ref().iter().all(|version| version.share == 0) => {
                return Err(self.wrong(&versions.span(), "versions need a share above 0 for one of them at least"));
            }
            Some(versions) => {
                if table.model.is_some() || !table.stage.is_empty() {
                    return Err(self.wrong(&versions.span(), "an endpoint has either `versions`, `model` or stages"));
                }
                let split = |table: &VersionTable| Ok((self.mention(&table.model)?, table.share));
                versions.get_ref().iter().map(split).collect::<Result<_, _>>()?
            }
        };
        let first = table.versions.as_ref().and_then(|versions| Some(&versions.get_ref().first()?.model));
        let stages = match (table.model.as_ref().or(first), table.stage.is_empty()) {
            (Some(model), true) => {
                let mention = self.mention(model)?;
                // A single model's stage carries the model's name.
                let stage =
                    StageName::parse(mention.name.as_str()).map_err(|e| self.wrong(&model.span(), e.to_string()))?;
                let does = Does::Model(mention);
                vec![StageDeclaration { name: stage, does, gate: None, inputs: Vec::new(), when: None }]
            }
            (None, false) => self.stages(&table.stage)?,
            (Some(model), false) => {
                return Err(
                    self.wrong(&model.span(), "an endpoint has either `model` or [[endpoint.stage]] tables, not both")
                );
            }
            (None, true) => {
                return Err(self.wrong(
                    &spanned.span(),
                    format!("endpoint `{name}` serves nothing; give it `model` or [[endpoint.stage]] tables"),
                ));
            }
        };
        let gated = table.stage.iter().find(|stage| stage.get_ref().gate.is_some());
        if let (Some(stage), None, None) = (gated, &table.label_output, &table.confidence_output) {
            let what =
                "a gate by confidence needs the endpoint's `label_output` (class probabilities) or `confidence_output`";
            return Err(self.wrong(&stage.span(), what));
        }
        let default = |(name, written): (&String, &Spanned<Written>)| {
            let wrong = |what| self.wrong(&written.span(), format!("default_output {name} {what}"));
            Ok((name.clone(), written.get_ref().row().map_err(wrong)?))
        };
        Ok(EndpointDeclaration {
            name,
            deadline,
            weight,
            share,
            audit,
            audit_at: table.audit.as_ref().filter(|_| audit > 0.0).map(|audit| self.position(&audit.span())),
            objective,
            class,
            label_output: table.label_output.clone(),
            confidence_output: table.confidence_output.clone(),
            default_outputs: table.default_output.iter().map(default).collect::<Result<_, _>>()?,
            stages,
            versions,
            shadow: table.shadow.as_ref().map(|model| self.mention(model)).transpose()?,
        })
    }

    fn gate(&self, spanned: &Spanned<GateTable>) -> Result<Gate, BadWeirFile> {
        let table = spanned.get_ref();
        let share = |name: &str, number: &Spanned<f64>| match number.get_ref() {
            number if *number > 0.0 && *number <= 1.0 => Ok(*number as f32),
            _ => Err(self.wrong(&number.span(), format!("{name} must be above 0 and at most 1"))),
        };
        let GateTable { confidence_below, entropy_above, margin_below, gain, min_gain } = table;
        if let (None, Some(least)) = (gain, min_gain) {
            return Err(self.wrong(&least.span(), "min_gain goes with `gain`; other gates have thresholds"));
        }
        match (confidence_below, entropy_above, margin_below, gain) {
            (Some(below), None, None, None) => Ok(Gate::ConfidenceBelow(share("confidence_below", below)?)),
            (None, None, Some(below), None) => Ok(Gate::MarginBelow(share("margin_below", below)?)),
            (None, Some(above), None, None) => match above.get_ref() {
                nats if nats.is_finite() && *nats >= 0.0 => Ok(Gate::EntropyAbove(*nats as f32)),
                _ => Err(self.wrong(&above.span(), "entropy_above is in nats, and at least 0")),
            },
            (None, None, None, Some(file)) => self.gain_gate(file, min_gain.as_ref()),
            _ => {
                Err(self
                    .wrong(&spanned.span(), "a gate has one of confidence_below, entropy_above, margin_below and gain"))
            }
        }
    }

    /// A gate by the table in `file`, which is looked for beside this one.
    fn gain_gate(&self, file: &Spanned<String>, least: Option<&Spanned<f64>>) -> Result<Gate, BadWeirFile> {
        let path = self.path.parent().unwrap_or(Path::new("")).join(file.get_ref());
        let wrong = |what: String| {
            self.wrong(&file.span(), format!("gain table {}: {what}; `weir calibrate` writes one", path.display()))
        };
        let text = std::fs::read_to_string(&path).map_err(|cause| wrong(cause.to_string()))?;
        let table = GainTable::from_csv(&text).map_err(|bad| wrong(bad.to_string()))?;
        let min_gain = match least {
            None => Gate::MIN_GAIN,
            Some(least) if (0.0..=1.0).contains(least.get_ref()) => *least.get_ref(),
            Some(least) => return Err(self.wrong(&least.span(), "min_gain must be at least 0 and at most 1")),
        };
        Ok(Gate::Gain { table: Arc::new(table), min_gain })
    }

    fn mention(&self, text: &Spanned<String>) -> Result<ModelMention, BadWeirFile> {
        let wrong = |e: weir_core::ids::BadName| self.wrong(&text.span(), e.to_string());
        let (name, version) = match text.get_ref().split_once('@') {
            Some((name, version)) => (name, Some(Version::parse(version).map_err(wrong)?)),
            None => (text.get_ref().as_str(), None),
        };
        Ok(ModelMention { name: ModelName::parse(name).map_err(wrong)?, version, at: self.position(&text.span()) })
    }
}
