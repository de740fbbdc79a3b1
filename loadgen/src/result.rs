//! What a run measured: counts, latencies, accuracy, and the text that shows them.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use weir_core::endpoint::audit::Labelled;
use weir_core::triage::ByModel;

use crate::machine::Machine;

/// Everything about one run. Written as JSON in this order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RunResult {
    pub target: String,
    /// Several are parted by commas.
    #[serde(default)]
    pub endpoint: String,
    /// As on the command line; `closed:N` where N callers wait for their answers.
    pub arrivals: String,
    pub seed: u64,
    /// Queries per second that the process was asked for; null for a closed loop, and where nobody asked.
    pub rate: Option<f64>,
    /// As asked for; of a run that was interrupted, until then.
    pub duration_s: f64,
    pub deadline_us: u64,
    /// Queries that the process meant to send. Their outcomes follow, and add up to them.
    pub offered: u64,
    pub answered: u64,
    pub rejected: u64,
    pub expired: u64,
    pub failed: u64,
    pub unknown: u64,
    /// Of the unknown: what fell due and was never sent, since the generator was too late or was interrupted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unsent: u64,
    pub degraded: u64,
    pub within_deadline: u64,
    /// Answered within the deadline over offered.
    pub attainment: f64,
    pub goodput_per_s: f64,
    /// Right answers over answered rows; null without labels, and where nothing was answered.
    pub accuracy: Option<f64>,
    /// Of the answered rows, the share that the target's calibration expects to be right; absent where it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_accuracy: Option<f64>,
    /// What labels that somebody told the target during the run say of its answers, whoever asked; absent where nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labelled: Option<ByLabels>,
    /// What load is expected to have cost those that were answered, in units of value: what deeper stages would have gained that were worth
    /// running and did not run.
    #[serde(default)]
    pub expected_loss: f64,
    /// By model of a deeper stage, on average over the run; absent where the target does not tell.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub demand: BTreeMap<String, Vec<Demanded>>,
    /// Rows; null without labels.
    pub correct_within_deadline: Option<u64>,
    /// Rows that whoever had known all queries beforehand could have got right in time, at most; of simulations of cascades.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct_at_best: Option<f64>,
    /// Over answered queries, late ones included, from the intended instant.
    pub latency_us: Latency,
    /// How long rejected queries waited for the word, in microseconds; absent where none was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_after_us: Option<Latency>,
    /// Answered rows by the stage that answered.
    pub stages: BTreeMap<String, u64>,
    pub send_lag_us: SendLag,
    /// False where the generator itself fell behind, or nothing was offered.
    #[serde(default = "yes")]
    pub valid: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid_because: Option<String>,
    /// Nothing that fell due after this second was answered, though many were asked until the end: the target died, or hangs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_from_s: Option<f64>,
    /// Ctrl-C ended it.
    #[serde(default)]
    pub interrupted: bool,
    #[serde(default = "one")]
    pub rows_per_query: u64,
    /// As asked for, also where the run was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_asked_s: Option<f64>,
    /// What it had to reach, as on the command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// What was asked of whom: at least one, but for results of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// Connections in all, and threads that send.
    #[serde(default)]
    pub connections: u64,
    #[serde(default)]
    pub threads: u64,
    /// What the scenario asks, where the run was made from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// Messages of queries that were not answered, the most frequent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<(String, u64)>,
    /// Each endpoint of a mix.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, PerEndpoint>,
    pub per_second: Vec<PerSecond>,
    /// All latencies: an HdrHistogram of nanoseconds, V2 compressed, base64.
    #[serde(default)]
    pub histogram: String,
    /// Where the generator ran.
    #[serde(default)]
    pub machine: Machine,
    /// Seconds since 1970 at which the first query could be due.
    #[serde(default)]
    pub started_unix_s: f64,
}

fn yes() -> bool {
    true
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn one() -> u64 {
    1
}

/// One part of what was asked: enough to ask it again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Part {
    /// In [`RunResult::endpoints`].
    pub name: String,
    /// As the target calls it.
    pub endpoint: String,
    /// As on the command line, or joined to the folder of the scenario.
    pub data: String,
    /// Rows in it.
    pub rows: u64,
    pub labels: Option<String>,
    pub label_output: Option<String>,
    /// That was in force, whoever said so.
    pub deadline_us: u64,
    /// Its own, or what it shares with the others that have a weight; null in a closed loop.
    pub arrivals: Option<String>,
    /// Per second, of its own or of all that share the arrivals; null where these have one.
    pub rate: Option<f64>,
    /// Its share of common arrivals; null where they are its own, and in a closed loop.
    pub weight: Option<f64>,
}

impl Part {
    /// Its load in a few words.
    pub fn load(&self) -> String {
        let Some(arrivals) = &self.arrivals else { return "in turn".into() };
        let rate = self.rate.map_or(String::new(), |rate| format!(" at {rate} a second"));
        match self.weight {
            Some(weight) => format!("a share by weight {weight} of {arrivals}{rate}"),
            None => format!("{arrivals}{rate}"),
        }
    }
}

/// Latency percentiles in microseconds; zero where nothing was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// How late queries were sent, in microseconds: from the intended instant until the connection's task has had its turn to write.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SendLag {
    #[serde(default)]
    pub p50: u64,
    pub p99: u64,
    #[serde(default)]
    pub max: u64,
}

/// One endpoint of a mix.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PerEndpoint {
    pub deadline_us: u64,
    pub offered: u64,
    pub answered: u64,
    pub rejected: u64,
    pub expired: u64,
    pub failed: u64,
    pub unknown: u64,
    pub within_deadline: u64,
    pub attainment: f64,
    pub latency_us: Latency,
}

/// One second of a run, by intended instants. Every second of it is there, also one without queries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PerSecond {
    pub t: u64,
    pub offered: u64,
    pub answered: u64,
    pub within_deadline: u64,
    pub degraded: u64,
    #[serde(default)]
    pub p50_us: u64,
    pub p99_us: u64,
    /// Highest price of computing time in this second; zero while every gate is free.
    pub price: f64,
    /// See [`RunResult::expected_loss`].
    #[serde(default)]
    pub expected_loss: f64,
    #[serde(default)]
    pub correct: u64,
    #[serde(default)]
    pub rows_labelled: u64,
    /// Answered rows by stage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<String, u64>,
    /// Latencies of this second, as [`RunResult::histogram`]; empty where nothing was answered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub histogram: String,
}

/// Answers whose label somebody told the target (`weir label`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ByLabels {
    pub answers: u64,
    /// Share of them that is right.
    pub accuracy: f64,
    /// Its standard error.
    pub error: f64,
}

impl ByLabels {
    /// Nothing where there are none.
    pub fn new(labelled: Labelled) -> Option<ByLabels> {
        let (accuracy, error) = labelled.accuracy().zip(labelled.error())?;
        Some(ByLabels { answers: labelled.answers, accuracy, error })
    }
}

/// A point of a demand curve: what is asked of a model that is worth so much for its time, and up to a seventh more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Demanded {
    /// In units of value, a second of slot time.
    pub value_per_s: f64,
    /// In seconds of slot time, a second.
    pub slot_s_per_s: f64,
}

/// Demand curves as results have them.
pub fn demanded(asked: &ByModel) -> BTreeMap<String, Vec<Demanded>> {
    let point = |(value_per_s, slot_s_per_s)| Demanded { value_per_s, slot_s_per_s };
    asked.iter().map(|(model, asked)| (model.to_string(), asked.points().map(point).collect())).collect()
}

/// Percentiles of a [`Latency`], in thousandths.
const PERCENTILES: [(&str, u64); 5] = [("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999), ("max", 1000)];

impl RunResult {
    /// Whether this percentile of the latencies, in thousandths, is only a lower bound: for so many queries no latency is known that
    /// they may hold all that is above it.
    pub fn is_lower_bound(&self, percentile: u64) -> bool {
        1000 * self.unknown > (1000 - percentile) * (self.answered + self.unknown)
    }

    /// What has to be said of percentiles that are only lower bounds; nothing where none is.
    pub fn lower_bounds(&self) -> Option<String> {
        let names: Vec<&str> =
            PERCENTILES.iter().filter(|(_, at)| self.is_lower_bound(*at)).map(|(name, _)| *name).collect();
        let are = if names.len() > 1 { "are only lower bounds" } else { "is only a lower bound" };
        (self.answered > 0 && !names.is_empty()).then(|| {
            format!(
                "{} {are}: how late {} unknown queries would have been is not known",
                names.join(", "),
                self.unknown
            )
        })
    }

    /// That the target stopped answering, and when; nothing where it did not.
    pub fn silence(&self) -> Option<String> {
        let from = self.silent_from_s?;
        let why = self.errors.first().map(|(why, _)| format!(" (most often {why})")).unwrap_or_default();
        Some(format!(
            "the target stopped answering at t={from:.1} s, and answered nothing until the end at {:.1} s{why}",
            self.duration_s
        ))
    }

    /// The table that `weir load run` prints.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let ms = |us: u64| format!("{:.1} ms", us as f64 / 1e3);
        let rate = match self.rate {
            Some(rate) => format!(" {rate} a second"),
            None if self.arrivals.starts_with("closed:") => {
                " as fast as answers come (a closed loop: it hides stalls)".into()
            }
            None => String::new(),
        };
        let mut line = |name: &str, value: String| writeln!(text, "{name:<16}{value}").expect("writing to a string");
        if let Some(question) = &self.question {
            line("question", question.clone());
        }
        line("endpoint", format!("{} at {}", self.endpoint, self.target));
        line("load", format!("{}{rate}, for {:.1} s, seed {}", self.arrivals, self.duration_s, self.seed));
        line("offered", format!("{}", self.offered));
        line(
            "in time",
            format!("{} = {:.2} % within {}", self.within_deadline, 100.0 * self.attainment, ms(self.deadline_us)),
        );
        line(
            "not answered",
            format!(
                "{} rejected, {} expired, {} failed, {} unknown",
                self.rejected, self.expired, self.failed, self.unknown
            ),
        );
        if let Some(after) = &self.rejected_after_us {
            line("rejected after", format!("p50 {}, p99 {}, max {}", ms(after.p50), ms(after.p99), ms(after.max)));
        }
        line(
            "latency",
            format!(
                "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
                ms(self.latency_us.p50),
                ms(self.latency_us.p90),
                ms(self.latency_us.p99),
                ms(self.latency_us.p999),
                ms(self.latency_us.max)
            ),
        );
        line("", format!("of the {} answered, late ones included", self.answered));
        if let Some(bounds) = self.lower_bounds() {
            line("", bounds);
        }
        if let Some(accuracy) = self.accuracy {
            line("accuracy", format!("{:.2} %", 100.0 * accuracy));
        }
        if let (Some(best), Some(right)) = (self.correct_at_best, self.correct_within_deadline) {
            let rows = (self.offered * self.rows_per_query).max(1) as f64;
            let (right, best) = (100.0 * right as f64 / rows, 100.0 * best / rows);
            line(
                "right in time",
                format!("{right:.2} % of all rows; {best:.2} % at best, by whoever knew them beforehand"),
            );
        }
        let rows = self.stages.values().sum::<u64>().max(1);
        let share = |count: u64| 100.0 * count as f64 / rows as f64;
        let stages =
            self.stages.iter().map(|(stage, count)| format!("{stage} {:.1} %", share(*count))).collect::<Vec<_>>();
        if !stages.is_empty() {
            line("answered by", format!("{} ({} degraded)", stages.join(", "), self.degraded));
        }
        if let Some(expected) = self.expected_accuracy {
            line(
                "by calibration",
                format!("{:.2} % right; what load cost is worth {:.1}", 100.0 * expected, self.expected_loss),
            );
        }
        if let Some(ByLabels { answers, accuracy, error }) = self.labelled {
            let (accuracy, error) = (100.0 * accuracy, 100.0 * error);
            line(
                "by labels",
                format!("{accuracy:.2} % ± {error:.2} right of {answers} answers that were labelled meanwhile"),
            );
        }
        for (name, endpoint) in &self.endpoints {
            line(
                name,
                format!(
                    "{} of {} in time = {:.2} % within {}, p99 {}",
                    endpoint.within_deadline,
                    endpoint.offered,
                    100.0 * endpoint.attainment,
                    ms(endpoint.deadline_us),
                    ms(endpoint.latency_us.p99)
                ),
            );
        }
        if self.send_lag_us.max > 0 {
            let fine = |us: u64| format!("{:.2} ms", us as f64 / 1e3);
            let SendLag { p50, p99, max } = self.send_lag_us;
            line("send lag", format!("p50 {}, p99 {}, max {} (the generator's own)", fine(p50), fine(p99), fine(max)));
        }
        for (message, count) in self.errors.iter().take(3) {
            line("", format!("{count} x {message}"));
        }
        if self.interrupted {
            line("interrupted", format!("after {:.1} s; this is what happened until then", self.duration_s));
        }
        if let Some(silence) = self.silence() {
            line("SILENT", silence);
        }
        if let Some(because) = &self.invalid_because {
            line("INVALID", because.clone());
        }
        text
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run as it may have been.
    pub fn sample() -> RunResult {
        RunResult {
            target: "weir://127.0.0.1:7300".into(),
            endpoint: "fashion".into(),
            arrivals: "gamma:cv=4".into(),
            seed: 7,
            rate: Some(400.0),
            duration_s: 30.0,
            deadline_us: 50_000,
            offered: 12_011,
            answered: 11_988,
            rejected: 20,
            expired: 3,
            failed: 0,
            unknown: 0,
            unsent: 0,
            degraded: 210,
            within_deadline: 11_970,
            attainment: 0.9966,
            goodput_per_s: 399.0,
            accuracy: Some(0.921),
            expected_accuracy: Some(0.92),
            labelled: ByLabels::new(Labelled { answers: 100, right: 92 }),
            expected_loss: 1.5,
            demand: [("fashion-mid@1".into(), vec![Demanded { value_per_s: 2.0, slot_s_per_s: 0.25 }])].into(),
            correct_within_deadline: Some(11_020),
            correct_at_best: None,
            latency_us: Latency { p50: 1800, p90: 6100, p99: 21_000, p999: 52_000, max: 61_200 },
            rejected_after_us: Some(Latency { p50: 300, p90: 400, p99: 900, p999: 1000, max: 1100 }),
            stages: [("tiny".into(), 7011), ("mid".into(), 3977), ("big".into(), 1000)].into(),
            send_lag_us: SendLag { p50: 60, p99: 180, max: 300 },
            valid: true,
            invalid_because: None,
            silent_from_s: None,
            interrupted: false,
            rows_per_query: 1,
            duration_asked_s: Some(30.0),
            goal: Some("attainment>=0.99".into()),
            parts: vec![Part {
                name: "fashion".into(),
                endpoint: "fashion".into(),
                data: "demo/images.npy".into(),
                rows: 500,
                labels: Some("demo/labels.npy".into()),
                label_output: Some("probs".into()),
                deadline_us: 50_000,
                arrivals: Some("gamma:cv=4".into()),
                rate: Some(400.0),
                weight: Some(1.0),
            }],
            connections: 8,
            threads: 1,
            question: None,
            errors: Vec::new(),
            endpoints: BTreeMap::new(),
            per_second: vec![PerSecond::default()],
            histogram: String::new(),
            machine: Machine::default(),
            started_unix_s: 0.0,
        }
    }

    #[test]
    fn a_result_comes_back_from_its_json_and_an_older_one_is_read() {
        let json = serde_json::to_value(sample()).unwrap();
        let back: RunResult = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(back).unwrap(), json);
        // As in the documented contract, without a field more.
        let documented = r#"{"target":"…","arrivals":"gamma:cv=4","seed":7,"rate":400.0,"duration_s":30.0,"deadline_us":50000,
            "offered":12011,"answered":11988,"rejected":20,"expired":3,"failed":0,"unknown":0,"degraded":210,
            "within_deadline":11970,"attainment":0.9966,"goodput_per_s":399.0,"accuracy":0.921,"correct_within_deadline":11020,
            "latency_us":{"p50":1800,"p90":6100,"p99":21000,"p999":52000,"max":61200},
            "stages":{"tiny":7011,"mid":3977,"big":1000},"send_lag_us":{"p99":180},
            "per_second":[{"t":0,"offered":391,"answered":391,"within_deadline":390,"degraded":0,"p99_us":9000,"price":0.0}]}"#;
        let read: RunResult = serde_json::from_str(documented).unwrap();
        assert!(read.valid && read.rows_per_query == 1 && read.parts.is_empty());
    }
}
