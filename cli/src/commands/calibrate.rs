//! `weir calibrate`: what the deeper stages of a cascade gain, from rows that all of its stages answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use weir_client::admin::Status;
use weir_client::weirfile::parse_duration;
use weir_client::{Answer, LocalClient, Request};
use weir_core::endpoint::frontier::{Known, Point, at_gates, calibrate, frontier, with_tables};
use weir_core::endpoint::gain::Bin;
use weir_core::endpoint::gate::label;
use weir_core::endpoint::thresholds::{FixedFrontier, FixedGate, FixedPoint, Goal};
use weir_core::endpoint::{Endpoint, GainTable};
use weir_core::ids::{EndpointName, ModelRef, StageName};
use weir_core::outcome::{Class, Outcome};
use weir_core::placement::ReplicaState;
use weir_core::profile::Profile;
use weir_loadgen::data::Data;
use weir_loadgen::report::{Calibration, calibration};

use super::load::asked::read_rows;
use crate::connect::Common;
use crate::failure::Failure;
use crate::show::table;

/// Rows of one call: enough for a good batch, and few enough to leave room for others.
const ROWS: usize = 32;
/// Bins of a gain table that are told in one line: as many as fit beside each other.
const BINS_A_LINE: usize = 4;
/// For a call of the deepest stage on a slow device; calibration is in no hurry.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures what deeper stages gain, and writes the gain tables.
#[derive(Args)]
pub struct Calibrate {
    /// A cascade that is served
    endpoint: String,
    /// Rows to ask all stages for: .npy, .npz, a folder of images, or JSON lines; not those that accuracy is judged by later
    #[arg(long, env = "WEIR_DATA", value_name = "PATH")]
    data: PathBuf,
    /// The classes of the rows, as .npy; without them what the deepest stage says counts as right
    #[arg(long, env = "WEIR_LABELS", value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Also tell the fixed thresholds that reach this accuracy at the least cost, as 0.92
    #[arg(long, env = "WEIR_ACCURACY", conflicts_with = "cost")]
    accuracy: Option<f64>,
    /// Also tell the fixed thresholds that get most right for at most this slot time a row, as 60us
    #[arg(long, env = "WEIR_COST", value_name = "TIME")]
    cost: Option<String>,
    /// Also draw it into this file, as a page that stands alone
    #[arg(long, env = "WEIR_REPORT", value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Where to write the tables
    #[arg(long, env = "WEIR_OUT", value_name = "FOLDER", default_value = ".")]
    out: PathBuf,
}

impl Calibrate {
    pub async fn run(self, common: Common) -> Result<(), Failure> {
        let usage = |text: String| Failure::Usage(text);
        let name = EndpointName::parse(&self.endpoint).map_err(|bad| usage(bad.to_string()))?;
        let goal = self.goal()?;
        let client = common.client().await?;
        let info = client.describe(&name).await.map_err(|error| Failure::NotFound(error.to_string()))?;
        let Some(label_output) = info.label_output.clone() else {
            return Err(usage(format!("endpoint {name} has no label_output, so nobody knows which answers are right")));
        };
        let (data, labels) = read_rows(&self.data, self.labels.as_deref())?;
        let data = data.fit(&info.inputs).map_err(|bad| usage(bad.to_string()))?;
        let status = common.admin()?.status().await?;
        let endpoint = cascade(&status, &name)?;
        let asked = Asked { client: &client, endpoint: &name, data: &data, label_output: &label_output };
        let mut said = Vec::with_capacity(endpoint.stages.len());
        let (last, others) = endpoint.stages.split_last().expect("a cascade has stages");
        for stage in others {
            said.push(asked.stage(&stage.name, endpoint.confidence_output.as_deref()).await?);
        }
        // No gate looks at how sure the deepest is, and it need not tell.
        said.push(asked.stage(&last.name, None).await?);
        let rows = known(&said, labels.as_deref());
        let tables = calibrate(&rows)
            .ok_or_else(|| usage(format!("{} rows are too few to say anything; give some hundreds", rows.len())))?;
        let calibrated = with_tables(endpoint, &tables);
        let seconds = costs(&status, endpoint)?;
        let wiring = endpoint.wire(&status.state.signatures()).map_err(|bad| usage(bad.to_string()))?;
        let alone: Vec<bool> = (0..endpoint.stages.len()).map(|stage| wiring.flow.is_alone(stage)).collect();
        let fixed = FixedFrontier::of(&rows, &seconds, &alone);
        let target = goal.map(|goal| reach(goal, endpoint, &fixed, &seconds, &rows)).transpose()?;
        let files = self.write(endpoint, &tables)?;
        let told = Told {
            endpoint,
            right: right(&rows),
            seconds: &seconds,
            tables: &tables,
            files: &files,
            frontier: frontier(&calibrated, &seconds, &rows),
            fixed: &fixed,
            target,
            rows: rows.len(),
            hollow: said.iter().map(|stage| stage.iter().filter(|said| said.class.is_none()).count()).collect(),
            left_out: data.rows() - rows.len(),
            distilled: labels.is_none(),
        };
        if let Some(path) = &self.report {
            std::fs::write(path, told.page()).map_err(|cause| unwritable(path, &cause))?;
        }
        if common.json() {
            println!("{}", told.json())
        } else {
            println!("{}", told.text())
        }
        Ok(())
    }

    /// What is asked of fixed thresholds.
    fn goal(&self) -> Result<Option<Goal>, Failure> {
        if let Some(accuracy) = self.accuracy {
            if !(accuracy > 0.0 && accuracy <= 1.0) {
                let what = format!("--accuracy {accuracy}: a share of right answers, above 0 and at most 1");
                return Err(Failure::Usage(what));
            }
            return Ok(Some(Goal::Accuracy(accuracy)));
        }
        let Some(cost) = &self.cost else { return Ok(None) };
        match parse_duration(cost).filter(|cost| !cost.is_zero()) {
            Some(cost) => Ok(Some(Goal::Seconds(cost.as_secs_f64()))),
            None => Err(Failure::Usage(format!("--cost {cost}: slot time a row, as 60us or 1.5ms"))),
        }
    }

    fn write(&self, endpoint: &Endpoint, tables: &[GainTable]) -> Result<Vec<PathBuf>, Failure> {
        std::fs::create_dir_all(&self.out).map_err(|cause| unwritable(&self.out, &cause))?;
        let mut files = Vec::new();
        for (pair, table) in endpoint.stages.windows(2).zip(tables) {
            let (from, to) = (&pair[0].name, &pair[1].name);
            let path = self.out.join(format!("{from}-{to}.csv"));
            let remark =
                format!("# what {to} gains after {from}, by the confidence of {from}; endpoint {}\n", endpoint.name);
            std::fs::write(&path, remark + &table.to_csv()).map_err(|cause| unwritable(&path, &cause))?;
            files.push(path);
        }
        Ok(files)
    }
}

fn unwritable(path: &Path, cause: &std::io::Error) -> Failure {
    Failure::No(format!("cannot write {}: {cause}", path.display()))
}

/// The endpoint, where it is a cascade.
fn cascade<'a>(status: &'a Status, name: &EndpointName) -> Result<&'a Endpoint, Failure> {
    let endpoint = status.state.endpoints.get(name).ok_or_else(|| {
        Failure::NotFound(format!("endpoint {name} not found; `weir get endpoints` lists what there is"))
    })?;
    if endpoint.stages.len() < 2 || !endpoint.is_chain() {
        return Err(Failure::Usage(format!("endpoint {name} is no cascade; only cascades have gates to calibrate")));
    }
    Ok(endpoint)
}

/// Slot time of a row in seconds, by stage: in the batch that costs least, as ready replicas report it.
fn costs(status: &Status, endpoint: &Endpoint) -> Result<Vec<f64>, Failure> {
    let cost = |model: &ModelRef| {
        let assigned = status.state.plan.assignments.iter().filter(|(_, assignment)| assignment.model == *model);
        let reports = assigned.filter_map(|(id, assignment)| {
            let node = status.nodes.iter().find(|node| node.name == assignment.node.as_str())?;
            match &node.report.as_ref()?.replicas.get(id)?.state {
                ReplicaState::Ready(profile) => Some(profile),
                _ => None,
            }
        });
        reports.map(|profile| Profile::new(&profile.points).row_seconds()).min_by(f64::total_cmp)
    };
    let stages = endpoint.answering().map(|model| {
        cost(model).ok_or_else(|| Failure::NotFound(format!("no replica of {model} is ready; see `weir status`")))
    });
    stages.collect()
}

/// The thresholds for a goal, and what a cascade with them does with the rows.
fn reach(
    goal: Goal,
    endpoint: &Endpoint,
    fixed: &FixedFrontier,
    seconds: &[f64],
    rows: &[Known],
) -> Result<Target, Failure> {
    let Some(best) = fixed.best(goal) else {
        return Err(Failure::No(match goal {
            Goal::Accuracy(accuracy) => {
                format!("no fixed thresholds get {accuracy} of these rows right, at whatever cost")
            }
            Goal::Seconds(most) => format!(
                "no row can be had for {:.1} us: the cheapest stage alone takes {:.1} us",
                most * 1e6,
                fixed.points()[0].seconds * 1e6
            ),
        }));
    };
    Ok(Target { goal, fixed: best.clone(), point: at_gates(endpoint, best, seconds, rows) })
}

/// Who is asked about what.
struct Asked<'a> {
    client: &'a LocalClient,
    endpoint: &'a EndpointName,
    data: &'a Data,
    label_output: &'a str,
}

impl Asked<'_> {
    /// What one stage says about each row. `learned`: the output with the confidence; the largest probability
    /// where there is none.
    async fn stage(&self, stage: &StageName, learned: Option<&str>) -> Result<Vec<Said>, Failure> {
        let numbers: Vec<u32> = (0..self.data.rows() as u32).collect();
        let mut said = Vec::with_capacity(numbers.len());
        for rows in numbers.chunks(if self.data.whole() { 1 } else { ROWS }) {
            let request = Request {
                endpoint: self.endpoint.clone(),
                inputs: self.data.take(rows),
                whole: self.data.whole(),
                deadline: Some(PATIENCE),
                class: Some(Class::Sheddable),
                outputs: std::iter::once(self.label_output).chain(learned).map(str::to_owned).collect(),
                min_stage: Some(stage.clone()),
                max_stage: Some(stage.clone()),
                trace: false,
            };
            for answer in self.client.predict(&request).await {
                said.push(self.read(&answer, learned).map_err(|what| {
                    Failure::No(format!("stage {stage} does not answer row {}: {what}", said.len()))
                })?);
            }
        }
        Ok(said)
    }

    fn read(&self, answer: &Answer, learned: Option<&str>) -> Result<Said, String> {
        if answer.outcome != Outcome::Answered {
            return Err(answer.message.clone());
        }
        let numbers = |output: &str| {
            let output = answer.outputs.iter().find(|(name, _)| name == output);
            output.and_then(|(_, tensor)| tensor.as_f32()).ok_or("it gives no f32 numbers")
        };
        let (class, largest) = label(&numbers(self.label_output)?).ok_or("it gives no class probabilities")?;
        let class = (!largest.is_nan()).then_some(class);
        let Some(learned) = learned else { return Ok(Said { class, confidence: largest }) };
        let confidence = numbers(learned)?.first().copied().ok_or("it gives no confidence")?;
        Ok(Said::learned(class, confidence))
    }
}

/// What a stage says about a row.
struct Said {
    /// `None` where its probabilities, or how sure it is, are not numbers: the answer before it goes out then.
    class: Option<usize>,
    confidence: f32,
}

impl Said {
    /// With a confidence of its own.
    fn learned(class: Option<usize>, confidence: f32) -> Said {
        Said { class: class.filter(|_| !confidence.is_nan()), confidence }
    }
}

/// Which answers are right: by the labels, or else those that agree with the deepest stage. Where a stage gives what is not a number, the answer
/// is that of the stage before it, as it is where a query goes that deep. A row of which nothing is known to be right is left out.
fn known(said: &[Vec<Said>], labels: Option<&[i64]>) -> Vec<Known> {
    let deepest = said.last().expect("a cascade has stages");
    let row = |row: usize| {
        let truth = labels.map_or(deepest[row].class.map(|class| class as i64), |labels| Some(labels[row]))?;
        let mut answer = None;
        let right = said.iter().map(|stage| {
            answer = stage[row].class.or(answer);
            answer.is_some_and(|class| class as i64 == truth)
        });
        let right = right.collect();
        Some(Known { confidences: said.iter().map(|stage| stage[row].confidence).collect(), right })
    };
    (0..deepest.len()).filter_map(row).collect()
}

/// A price, in three figures: prices next to each other differ.
fn figures(price: f64) -> String {
    let decimals = if price > 0.0 { (2.0 - price.log10().floor()).clamp(0.0, 9.0) as usize } else { 0 };
    format!("{price:.decimals$}")
}

/// By stage: the share of rows that it gets right.
fn right(rows: &[Known]) -> Vec<f64> {
    let share = |stage: usize| rows.iter().filter(|row| row.right[stage]).count() as f64 / rows.len() as f64;
    (0..rows[0].right.len()).map(share).collect()
}

/// What there is to tell.
struct Told<'a> {
    endpoint: &'a Endpoint,
    right: Vec<f64>,
    seconds: &'a [f64],
    tables: &'a [GainTable],
    files: &'a [PathBuf],
    frontier: Vec<Point>,
    /// What fixed thresholds do at best.
    fixed: &'a FixedFrontier,
    target: Option<Target>,
    rows: usize,
    /// By stage: rows for which it gives what is not a number.
    hollow: Vec<usize>,
    /// Rows of which nobody knows what is right.
    left_out: usize,
    distilled: bool,
}

/// Fixed thresholds for a goal.
struct Target {
    goal: Goal,
    fixed: FixedPoint,
    /// What they do with the rows.
    point: Point,
}

impl Target {
    /// Every stage with the gate before it, which of the first one kept always goes on; nothing where the stage is to be left out.
    fn stages(&self) -> impl Iterator<Item = (usize, Option<FixedGate>)> {
        let gates = || std::iter::once(&FixedGate::Always).chain(&self.fixed.gates);
        let gate = move |stage: usize| self.fixed.stages.iter().zip(gates()).find(|(kept, _)| **kept == stage);
        (0..self.point.shares.len()).map(move |stage| (stage, gate(stage).map(|(_, gate)| *gate)))
    }
}

impl Told<'_> {
    fn json(&self) -> Value {
        let stages = self.endpoint.stages.iter().enumerate().map(|(i, stage)| {
            json!({
                "stage": stage.name.as_str(), "accuracy": self.right[i], "row_us": self.seconds[i] * 1e6,
                "not_numbers": self.hollow[i],
            })
        });
        let point = |point: &Point| json!({"price": point.price, "accuracy": point.accuracy, "row_us": point.seconds * 1e6, "shares": point.shares});
        let fixed = |point: &FixedPoint| json!({"accuracy": point.accuracy, "row_us": point.seconds * 1e6});
        let gates = self.files.iter().zip(self.tables).map(|(file, table)| {
            let bin = |bin: &Bin| json!({"confidence": bin.confidence, "rows": bin.rows, "gain": bin.gain, "error": bin.error});
            let bins: Vec<Value> = table.bins().iter().map(bin).collect();
            json!({"gain": file.display().to_string(), "bins": bins})
        });
        let target = self.target.as_ref().map(|target| {
            let name = |stage: usize| self.endpoint.stages[stage].name.as_str();
            let gates = target.stages().skip(1).map(|(stage, gate)| {
                let (runs, below) = match gate {
                    None => ("never", None),
                    Some(FixedGate::Below(threshold)) => ("below", threshold.to_string().parse::<f64>().ok()),
                    Some(FixedGate::Always) => ("always", None),
                };
                json!({"stage": name(stage), "runs": runs, "confidence_below": below})
            });
            let left_out = target.stages().filter(|(_, gate)| gate.is_none()).map(|(stage, _)| name(stage));
            let Point { accuracy, seconds, shares, .. } = &target.point;
            json!({
                "accuracy": accuracy, "row_us": seconds * 1e6, "shares": shares, "gates": gates.collect::<Vec<_>>(),
                "left_out": left_out.collect::<Vec<_>>(), "off_by": self.fixed.off_by(),
            })
        });
        json!({
            "endpoint": self.endpoint.name.as_str(), "rows": self.rows, "left_out": self.left_out, "distilled": self.distilled,
            "stages": stages.collect::<Vec<_>>(), "gates": gates.collect::<Vec<_>>(),
            "frontier": self.frontier.iter().map(point).collect::<Vec<_>>(),
            "fixed": self.fixed.points().iter().map(fixed).collect::<Vec<_>>(), "target": target,
        })
    }

    /// What is measured.
    fn judge(&self) -> &'static str {
        if self.distilled { "agreement with the deepest stage" } else { "accuracy" }
    }

    /// All of it as a page, with the best fixed thresholds beside what gates by gain do.
    fn page(&self) -> String {
        let names: Vec<String> = self.endpoint.stages.iter().map(|stage| stage.name.to_string()).collect();
        let stages = names.iter().cloned().zip(&self.right).zip(self.seconds);
        let stages: Vec<(String, f64, f64)> = stages.map(|((name, right), seconds)| (name, *right, *seconds)).collect();
        let gates = names.windows(2).zip(self.tables);
        let gates: Vec<_> = gates.map(|(pair, table)| (pair[0].clone(), pair[1].clone(), table)).collect();
        calibration(&Calibration {
            endpoint: self.endpoint.name.as_str(),
            says: &self.text(),
            judge: self.judge(),
            stages: &stages,
            priced: &self.frontier,
            fixed: self.fixed.points(),
            target: self.target.as_ref().map(|target| (target.goal, target.point.accuracy, target.point.seconds)),
            gates: &gates,
        })
    }

    fn text(&self) -> String {
        let judge = self.judge();
        let stages = self.endpoint.stages.iter().enumerate().map(|(i, stage)| {
            vec![
                stage.name.to_string(),
                format!("{:.2} %", self.right[i] * 100.0),
                format!("{:.1} us", self.seconds[i] * 1e6),
            ]
        });
        let mut text = format!("{} rows\n{}\n", self.rows, table(&["stage", judge, "a row"], stages.collect()));
        let last = self.hollow.len() - 1;
        for (number, (stage, rows)) in self.endpoint.stages.iter().zip(&self.hollow).enumerate() {
            let then = match (*rows, self.distilled && number == last) {
                (0, _) => continue,
                (_, true) => "nobody knows what is right there, and they are left out; labels would tell",
                (_, false) => "there the answer of the stage before it counts, or none",
            };
            text += &format!("stage {} gives no numbers for {rows} rows: {then}\n", stage.name);
        }
        let mut heading = vec!["price, 1/s".to_owned(), judge.to_owned(), "a row".to_owned()];
        heading.extend(self.endpoint.stages.iter().map(|stage| format!("at {}", stage.name)));
        let line = |point: &Point| {
            let mut line = vec![
                figures(point.price),
                format!("{:.2} %", point.accuracy * 100.0),
                format!("{:.1} us", point.seconds * 1e6),
            ];
            line.extend(point.shares.iter().map(|share| format!("{:.1} %", share * 100.0)));
            line
        };
        let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
        text += &format!(
            "\nthe cascade at rising prices of computing time\n{}\n",
            table(&heading, self.frontier.iter().map(line).collect())
        );
        if let Some(target) = &self.target {
            text += &self.thresholds(target, judge);
        }
        for ((file, table), stage) in self.files.iter().zip(self.tables).zip(self.endpoint.stages.iter().skip(1)) {
            let name = file.file_name().unwrap_or_default();
            text += &format!(
                "\n{}: use it as  gate = {{ gain = {name:?} }}  in stage {}; gain by confidence, and its standard error:\n",
                file.display(),
                stage.name
            );
            for bins in table.bins().chunks(BINS_A_LINE) {
                let bin = |bin: &Bin| format!("  {:.3}: {:+.3} ± {:.3}", bin.confidence, bin.gain, bin.error);
                text += &(bins.iter().map(bin).collect::<String>() + "\n");
            }
        }
        text
    }

    /// The gates of the target, as a weir file has them.
    fn thresholds(&self, target: &Target, judge: &str) -> String {
        let Point { accuracy, seconds, .. } = &target.point;
        let best = match target.goal {
            Goal::Accuracy(asked) => format!("the least cost of fixed thresholds that reach {:.2} %", asked * 100.0),
            Goal::Seconds(most) => format!("the most that fixed thresholds get for {:.1} us", most * 1e6),
        };
        let mut text = format!("\n{judge} {:.2} % for {:.1} us a row, {best}:\n", accuracy * 100.0, seconds * 1e6);
        for (i, gate) in target.stages() {
            let stage = &self.endpoint.stages[i].name;
            text += &match gate {
                None => format!("  leave stage {stage} out\n"),
                Some(FixedGate::Below(below)) => format!("  {stage}: gate = {{ confidence_below = {below} }}\n"),
                Some(FixedGate::Always) if i == 0 => continue,
                Some(FixedGate::Always) => format!("  {stage}: no gate; it always runs\n"),
            };
        }
        if self.fixed.off_by() > 0.0 {
            text += &format!(
                "so many rows that not all thresholds were tried: others get at most {:.2} % more right for no more\n",
                self.fixed.off_by() * 100.0
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_that_differ_are_told_apart() {
        let of = [0.0, 0.000_123_4, 0.933, 1.178, 1.483, 93.3, 117.4, 12_345.6].map(figures);
        assert_eq!(of, ["0", "0.000123", "0.933", "1.18", "1.48", "93.3", "117", "12346"]);
    }

    #[test]
    fn what_is_not_a_number_is_no_class() {
        let said = |classes: &[Option<usize>]| -> Vec<Said> {
            classes.iter().map(|class| Said { class: *class, confidence: class.map_or(f32::NAN, |_| 0.5) }).collect()
        };
        let said = [said(&[Some(0), None, Some(1), None]), said(&[None, Some(0), None, None])];
        let right = |labels| known(&said, labels).into_iter().map(|row| row.right).collect::<Vec<_>>();
        let by_labels = [[true, true], [false, true], [false, false], [false, false]];
        assert_eq!(right(Some(&[0, 0, 0, 0])), by_labels, "the answer before stays, as where it is served");
        assert_eq!(right(None), [[false, true]], "where the deepest says nothing, nothing is known");
        let class = |confidence| Said::learned(Some(3), confidence).class;
        assert_eq!(
            (class(0.5), class(f32::NAN)),
            (Some(3), None),
            "nobody is answered by who does not say how sure it is"
        );
    }
}
