//! Scenario files: a load as TOML, named by the question that it answers.
//!
//! Endpoints without arrivals of their own share those at the top by weight; the others each bring a process, and all are
//! superposed. The same file is meant for the simulator too: it says what is asked, not of whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use weir_client::weirfile::{Position, parse_duration};
use weir_core::workload::{Arrivals, Rate};

use crate::goal::Goal;
use crate::result::{self, RunResult};
use crate::schedule::Flow;
use crate::target::Stream;
use crate::trace::{self, TraceError};

/// A load.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    /// What it is to answer.
    pub question: Option<String>,
    /// How long; to the end of the traces, or 10 s, without.
    pub duration: Option<Duration>,
    /// Decides instants and rows.
    pub seed: Option<u64>,
    /// Rows of one query.
    pub rows: Option<usize>,
    /// Connections in all.
    pub connections: Option<usize>,
    /// Threads that send.
    pub threads: Option<usize>,
    /// A closed loop of so many callers instead of any arrivals.
    pub closed: Option<usize>,
    /// What endpoints without arrivals share.
    pub arrivals: Option<Arrivals>,
    /// Likewise, per second.
    pub rate: Option<f64>,
    /// What the result has to reach.
    pub goals: Vec<Goal>,
    /// At least one.
    pub parts: Vec<Part>,
}

/// One endpoint of a load.
#[derive(Clone, Debug)]
pub struct Part {
    /// As the target calls it.
    pub endpoint: String,
    /// In results.
    pub name: String,
    /// What it is asked.
    pub data: PathBuf,
    /// The right answers.
    pub labels: Option<PathBuf>,
    /// What they are compared with.
    pub label_output: Option<String>,
    /// Of each query; the endpoint's own without.
    pub deadline: Option<Duration>,
    /// Its own process.
    pub arrivals: Option<Arrivals>,
    /// Of its own, per second.
    pub rate: Option<f64>,
    /// Its share of the arrivals at the top.
    pub weight: f64,
}

/// A load that cannot be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadScenario {
    #[error("cannot read the scenario {path} ({cause}); name a .toml file such as those in benches")]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("{at}: {what}")]
    File { at: Position, what: String },
    #[error("{0}")]
    Trace(#[from] TraceError),
    #[error("{0}")]
    Load(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    question: String,
    duration: Option<Spanned<String>>,
    seed: Option<u64>,
    rows: Option<Spanned<usize>>,
    connections: Option<Spanned<usize>>,
    threads: Option<Spanned<usize>>,
    closed: Option<Spanned<usize>>,
    arrivals: Option<Spanned<String>>,
    rate: Option<Spanned<f64>>,
    goal: Option<Spanned<String>>,
    #[serde(default)]
    endpoint: Vec<FilePart>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FilePart {
    name: String,
    r#as: Option<String>,
    data: PathBuf,
    labels: Option<PathBuf>,
    label_output: Option<String>,
    deadline: Option<Spanned<String>>,
    arrivals: Option<Spanned<String>>,
    rate: Option<Spanned<f64>>,
    weight: Option<Spanned<f64>>,
}

impl Scenario {
    /// Reads a file. Paths in it are relative to it.
    pub fn read(path: &Path) -> Result<Scenario, BadScenario> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|cause| BadScenario::Read { path: path.to_owned(), cause })?;
        Scenario::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Scenario, BadScenario> {
        let wrong = |span: std::ops::Range<usize>, what: String| BadScenario::File {
            at: Position::find(path, text, span.start),
            what,
        };
        let file: File =
            toml::from_str(text).map_err(|e| wrong(e.span().unwrap_or_default(), e.message().to_owned()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let span = |written: Option<Spanned<String>>| {
            let parsed = |written: Spanned<String>| {
                let parsed = parse_duration(written.get_ref()).filter(|span| !span.is_zero());
                parsed.ok_or_else(|| wrong(written.span(), format!("{:?}: write it as 50ms or 10s", written.get_ref())))
            };
            written.map(parsed).transpose()
        };
        let count = |written: Option<Spanned<usize>>| match written {
            Some(zero) if *zero.get_ref() == 0 => Err(wrong(zero.span(), "give at least 1".into())),
            other => Ok(other.map(Spanned::into_inner)),
        };
        let number = |written: Option<Spanned<f64>>| match written {
            Some(bad) if !(bad.get_ref().is_finite() && *bad.get_ref() > 0.0) => {
                Err(wrong(bad.span(), "give a number above 0".into()))
            }
            other => Ok(other.map(Spanned::into_inner)),
        };
        let arrivals = |written: Option<Spanned<String>>| {
            let parsed = |written: Spanned<String>| {
                let parsed = Arrivals::parse(written.get_ref());
                parsed.map(|arrivals| beside(folder, arrivals)).map_err(|bad| wrong(written.span(), bad.to_string()))
            };
            written.map(parsed).transpose()
        };
        let goals = match file.goal {
            None => Vec::new(),
            Some(goal) => Goal::parse_all(goal.get_ref()).map_err(|bad| wrong(goal.span(), bad.to_string()))?,
        };
        if file.endpoint.is_empty() {
            return Err(wrong(0..0, "it asks nothing; add an [[endpoint]] with name and data".into()));
        }
        let mut parts = Vec::new();
        for part in file.endpoint {
            parts.push(Part {
                name: part.r#as.unwrap_or_else(|| part.name.clone()),
                endpoint: part.name,
                data: folder.join(part.data),
                labels: part.labels.map(|labels| folder.join(labels)),
                label_output: part.label_output,
                deadline: span(part.deadline)?,
                arrivals: arrivals(part.arrivals)?,
                rate: number(part.rate)?,
                weight: number(part.weight)?.unwrap_or(1.0),
            });
        }
        Ok(Scenario {
            question: Some(file.question),
            duration: span(file.duration)?,
            seed: file.seed,
            rows: count(file.rows)?,
            connections: count(file.connections)?,
            threads: count(file.threads)?,
            closed: count(file.closed)?,
            arrivals: arrivals(file.arrivals)?,
            rate: number(file.rate)?,
            goals,
            parts,
        })
    }

    /// The processes, traces read, and how long the longest of these is (nothing where a process has no end).
    pub fn flows(&self) -> Result<(Vec<Flow>, Option<Duration>), BadScenario> {
        let mut flows = Vec::new();
        let own = |part: &&(usize, &Part)| part.1.arrivals.is_some() || part.1.rate.is_some();
        let parts: Vec<(usize, &Part)> = self.parts.iter().enumerate().collect();
        let shared: Vec<_> = parts.iter().filter(|p| !own(p)).map(|(i, part)| (*i, part.weight)).collect();
        if !shared.is_empty() {
            flows.push(flow(self.arrivals.as_ref(), self.rate, shared)?);
        }
        for (i, part) in parts.iter().filter(own) {
            flows.push(flow(part.arrivals.as_ref(), part.rate, vec![(*i, 1.0)])?);
        }
        let lengths: Option<Vec<Duration>> = flows.iter().map(|flow| flow.process.length()).collect();
        Ok((flows, lengths.and_then(|lengths| lengths.into_iter().max())))
    }

    /// Its goals as text, as on the command line; nothing without.
    pub fn goal_text(&self) -> Option<String> {
        let texts: Vec<&str> = self.goals.iter().map(Goal::to_text).collect();
        (!texts.is_empty()).then(|| texts.join(","))
    }

    /// What a result keeps of a part: `stream` is what became of it.
    pub fn record(&self, part: &Part, stream: &Stream) -> result::Part {
        let shares = part.arrivals.is_none() && part.rate.is_none();
        let (arrivals, rate) = if shares { (&self.arrivals, self.rate) } else { (&part.arrivals, part.rate) };
        let open = self.closed.is_none();
        result::Part {
            name: part.name.clone(),
            endpoint: part.endpoint.clone(),
            data: part.data.display().to_string(),
            rows: stream.data.rows() as u64,
            labels: part.labels.as_ref().map(|labels| labels.display().to_string()),
            label_output: stream.label_output.clone(),
            deadline_us: stream.deadline.as_micros() as u64,
            arrivals: open.then(|| arrivals.as_ref().unwrap_or(&Arrivals::Poisson).to_text()),
            rate: rate.filter(|_| open),
            weight: (shares && open).then_some(part.weight),
        }
    }

    /// The arrivals as text, for the record.
    pub fn arrivals_text(&self) -> String {
        if let Some(callers) = self.closed {
            return format!("closed:{callers}");
        }
        let text = |arrivals: Option<&Arrivals>| arrivals.map_or("poisson".into(), Arrivals::to_text);
        let own = |part: &&Part| part.arrivals.is_some() || part.rate.is_some();
        let mut texts: Vec<String> = self.parts.iter().filter(own).map(|part| text(part.arrivals.as_ref())).collect();
        if texts.len() < self.parts.len() {
            texts.insert(0, text(self.arrivals.as_ref()));
        }
        texts.join(" + ")
    }
}

/// The scenario file that asks what a result was asked, from the folder in which the run was started. Nothing for a result
/// that lacks its parts.
pub fn repeating(result: &RunResult) -> Option<String> {
    let seconds = |seconds: f64| quoted(&format!("{seconds}s"));
    let first_share = result.parts.iter().find(|part| part.weight.is_some());
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!("{name} = {value}\n");
        }
    };
    line("question", Some(quoted(result.question.as_deref().unwrap_or("does it come out as before?"))));
    line("duration", Some(seconds(result.duration_asked_s.unwrap_or(result.duration_s))));
    line("seed", Some(result.seed.to_string()));
    line("rows", Some(result.rows_per_query.to_string()));
    line("connections", Some(result.connections.to_string()));
    line("threads", Some(result.threads.to_string()));
    line("goal", result.goal.as_deref().map(quoted));
    line("closed", result.arrivals.strip_prefix("closed:").map(str::to_owned));
    line("arrivals", first_share.and_then(|part| part.arrivals.as_deref()).map(quoted));
    line("rate", first_share.and_then(|part| part.rate).map(|rate| rate.to_string()));
    for part in &result.parts {
        line("\n[[endpoint]]\nname", Some(quoted(&part.endpoint)));
        line("as", Some(&part.name).filter(|name| **name != part.endpoint).map(|name| quoted(name)));
        line("data", Some(quoted(&part.data)));
        line("labels", part.labels.as_deref().map(quoted));
        line("label-output", part.label_output.as_deref().map(quoted));
        line("deadline", Some(quoted(&format!("{}us", part.deadline_us))));
        match part.weight {
            Some(weight) => line("weight", Some(weight.to_string())),
            None => {
                line("arrivals", part.arrivals.as_deref().map(quoted));
                line("rate", part.rate.map(|rate| rate.to_string()));
            }
        }
    }
    (!result.parts.is_empty()).then_some(text)
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn flow(arrivals: Option<&Arrivals>, rate: Option<f64>, choices: Vec<(usize, f64)>) -> Result<Flow, BadScenario> {
    let load = |text: String| BadScenario::Load(text);
    let poisson = Arrivals::Poisson;
    let arrivals = arrivals.unwrap_or(&poisson);
    let trace = arrivals.trace_file().map(|file| trace::read(Path::new(file))).transpose()?;
    let rate = rate.map(Rate::per_second).transpose().map_err(|bad| load(bad.to_string()))?;
    let process = arrivals.process(rate, trace.as_ref()).map_err(|bad| load(bad.to_string()))?;
    Ok(Flow { process, choices })
}

fn beside(folder: &Path, arrivals: Arrivals) -> Arrivals {
    match arrivals {
        Arrivals::Trace(mut replay) => {
            replay.file = folder.join(&replay.file).to_string_lossy().into_owned();
            Arrivals::Trace(replay)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "question = 'how late at 80 percent load?'\nduration = '30s'\nseed = 7\ngoal = 'attainment>=0.99'\n\
        arrivals = 'gamma:cv=4'\nrate = 400\n[[endpoint]]\nname = 'a'\ndata = 'x.npy'\nweight = 3.0\n\
        [[endpoint]]\nname = 'b'\ndata = '/y.npz'\nlabels = 'l.npy'\ndeadline = '20ms'\n\
        [[endpoint]]\nname = 'c'\ndata = 'z.jsonl'\narrivals = 'spike:base=200,peak=1200,at=5s,for=2s'\n";

    fn parse(text: &str) -> Result<Scenario, String> {
        Scenario::parse(Path::new("benches/s.toml"), text).map_err(|bad| bad.to_string())
    }

    #[test]
    fn a_scenario_mixes_and_superposes() {
        let scenario = parse(TEXT).unwrap();
        assert_eq!((scenario.duration, scenario.seed), (Some(Duration::from_secs(30)), Some(7)));
        assert_eq!(scenario.parts[0].data, Path::new("benches/x.npy"));
        assert_eq!(scenario.parts[1].data, Path::new("/y.npz"));
        assert_eq!(scenario.parts[1].deadline, Some(Duration::from_millis(20)));
        let (flows, length) = scenario.flows().unwrap();
        assert_eq!(
            flows.iter().map(|flow| flow.choices.clone()).collect::<Vec<_>>(),
            [vec![(0, 3.0), (1, 1.0)], vec![(2, 1.0)]]
        );
        assert_eq!(length, None);
        assert!(scenario.arrivals_text().starts_with("gamma:cv=4 + spike:"));
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let with = |from: &str, to: &str| parse(&TEXT.replace(from, to)).unwrap_err();
        assert_eq!(with("'30s'", "'30'"), "benches/s.toml:2:12: \"30\": write it as 50ms or 10s");
        assert!(with("rate = 400", "rate = -4").starts_with("benches/s.toml:6:8: give a number above 0"));
        assert!(with("gamma:cv=4", "gamma:cv=0").starts_with("benches/s.toml:5:12: "));
        assert!(with("attainment>=0.99", "speed>1").starts_with("benches/s.toml:4:8: \"speed>1\" is no goal"));
        let unknown = with("weight", "wieght");
        assert!(unknown.starts_with("benches/s.toml:10:1: unknown field `wieght`"), "{unknown}");
        assert!(parse("question = 'q'").unwrap_err().contains("add an [[endpoint]]"));
        assert!(parse("[[endpoint]]\nname = 'a'\ndata = 'b'").unwrap_err().contains("missing field `question`"));
        let none = Scenario::read(Path::new("nowhere.toml")).unwrap_err().to_string();
        assert!(none.contains("cannot read the scenario nowhere.toml"), "{none}");
        let no_rate = parse(&TEXT.replace("rate = 400\n", "")).unwrap().flows().err().unwrap().to_string();
        assert!(no_rate.contains("need a rate"), "{no_rate}");
    }

    fn recorded(scenario: &Scenario) -> RunResult {
        let stream = |part: &Part| Stream {
            name: part.name.clone(),
            endpoint: part.endpoint.clone(),
            data: std::sync::Arc::new(crate::data::Data::of(weir_core::tensor::Tensor::f32(&[3, 1], &[0.0; 3]))),
            labels: None,
            label_output: part.label_output.clone(),
            deadline: part.deadline.unwrap_or(Duration::from_micros(50_500)),
        };
        RunResult {
            arrivals: scenario.arrivals_text(),
            rate: scenario.rate.filter(|_| scenario.closed.is_none()),
            duration_asked_s: scenario.duration.map(|duration| duration.as_secs_f64()),
            seed: scenario.seed.unwrap(),
            rows_per_query: scenario.rows.unwrap_or(1) as u64,
            goal: scenario.goal_text(),
            question: scenario.question.clone(),
            parts: scenario.parts.iter().map(|part| scenario.record(part, &stream(part))).collect(),
            ..result::tests::sample()
        }
    }

    /// Its own proof: the file that a result makes asks for the same result again.
    #[test]
    fn a_result_tells_the_scenario_that_repeats_it() {
        let awkward =
            TEXT.replace("'b'", "'b\"\\'").replace("weight = 3.0", "weight = 0.3").replace("'30s'", "'1.25s'");
        let closed = TEXT.replace("seed = 7", "seed = 7\nclosed = 3\nrows = 4");
        let trace = TEXT.replace("spike:base=200,peak=1200,at=5s,for=2s", "trace:t.csv,scale=2,from=3s");
        for text in [TEXT, &awkward, &closed, &trace] {
            let scenario = parse(text).unwrap();
            let recorded_once = recorded(&scenario);
            let written = repeating(&recorded_once).unwrap();
            let again = Scenario::parse(Path::new("s.toml"), &written).unwrap_or_else(|bad| panic!("{bad}\n{written}"));
            let recorded_again = recorded(&again);
            assert_eq!(recorded_again.parts, recorded_once.parts, "{written}");
            assert_eq!(serde_json::to_value(&recorded_again).unwrap(), serde_json::to_value(&recorded_once).unwrap());
        }
        let parts = recorded(&parse(TEXT).unwrap()).parts;
        assert_eq!((parts[0].weight, parts[0].rate, parts[0].deadline_us), (Some(3.0), Some(400.0), 50_500));
        assert_eq!((parts[1].arrivals.as_deref(), parts[1].deadline_us), (Some("gamma:cv=4"), 20_000));
        assert_eq!(
            (parts[2].arrivals.as_deref(), parts[2].weight),
            (Some("spike:base=200,peak=1200,at=5s,for=2s"), None)
        );
        assert_eq!(repeating(&RunResult { parts: Vec::new(), ..result::tests::sample() }), None);
    }

    #[test]
    fn a_trace_lies_beside_the_scenario_and_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("t.csv"), "t_seconds,model\n0,a\n2.5,a\n").unwrap();
        let text = "question = 'q'\narrivals = 'trace:t.csv'\n[[endpoint]]\nname = 'a'\ndata = 'x.npy'\n";
        let path = folder.path().join("s.toml");
        std::fs::write(&path, text).unwrap();
        let (_, length) = Scenario::read(&path).unwrap().flows().unwrap();
        assert!(length.unwrap() >= Duration::from_millis(2500));
        std::fs::write(folder.path().join("t.csv"), "").unwrap();
        assert!(Scenario::read(&path).unwrap().flows().is_err());
    }

    #[test]
    fn the_scenarios_of_the_clone_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches");
        let mut read = 0;
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|kind| kind == "toml") {
                let scenario = Scenario::read(&path).unwrap();
                scenario.flows().unwrap();
                assert!(scenario.parts.iter().all(|part| part.data.exists()), "{}", path.display());
                read += 1;
            }
        }
        assert!(read >= 4);
    }
}
