//! What a run measured: counts, latencies, accuracy, and the text that shows them.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

/// Everything about one run. Written as JSON in this order.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct RunResult {
    pub target: String,
    pub endpoint: String,
    /// As on the command line; `closed:N` where N callers wait for their answers.
    pub arrivals: String,
    pub seed: u64,
    /// Queries per second that the process was asked for; null for a closed loop.
    pub rate: Option<f64>,
    pub duration_s: f64,
    pub deadline_us: u64,
    pub offered: u64,
    pub answered: u64,
    pub rejected: u64,
    pub expired: u64,
    pub failed: u64,
    pub unknown: u64,
    pub degraded: u64,
    pub within_deadline: u64,
    /// Answered within the deadline over offered.
    pub attainment: f64,
    pub goodput_per_s: f64,
    /// Right answers over answered queries; null without labels.
    pub accuracy: Option<f64>,
    pub correct_within_deadline: Option<u64>,
    /// Over answered queries, late ones included, from the intended instant.
    pub latency_us: Latency,
    /// Answered queries by the stage that answered.
    pub stages: BTreeMap<String, u64>,
    pub send_lag_us: SendLag,
    /// False where the generator itself fell behind.
    pub valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid_because: Option<String>,
    /// Messages of queries that were not answered, the most frequent first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<(String, u64)>,
    pub per_second: Vec<PerSecond>,
}

/// Latency percentiles in microseconds; zero where nothing was answered.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// How late queries were sent, in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct SendLag {
    pub p99: u64,
    pub max: u64,
}

/// One second of a run, by intended instants.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct PerSecond {
    pub t: u64,
    pub offered: u64,
    pub answered: u64,
    pub within_deadline: u64,
    pub degraded: u64,
    pub p99_us: u64,
    /// Highest price of computing time in this second; zero while every gate is free.
    pub price: f64,
}

impl RunResult {
    /// The table that `weir load run` prints.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let ms = |us: u64| format!("{:.1} ms", us as f64 / 1e3);
        let rate = self.rate.map_or("as fast as answers come".into(), |rate| format!("{rate} a second"));
        let mut line = |name: &str, value: String| writeln!(text, "{name:<16}{value}").expect("writing to a string");
        line("endpoint", format!("{} at {}", self.endpoint, self.target));
        line("load", format!("{} {rate}, for {:.0} s, seed {}", self.arrivals, self.duration_s, self.seed));
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
        if let Some(accuracy) = self.accuracy {
            line("accuracy", format!("{:.2} %", 100.0 * accuracy));
        }
        let share = |count: u64| 100.0 * count as f64 / self.answered.max(1) as f64;
        let stages =
            self.stages.iter().map(|(stage, count)| format!("{stage} {:.1} %", share(*count))).collect::<Vec<_>>();
        if !stages.is_empty() {
            line("answered by", format!("{} ({} degraded)", stages.join(", "), self.degraded));
        }
        for (message, count) in self.errors.iter().take(3) {
            line("", format!("{count} x {message}"));
        }
        if let Some(because) = &self.invalid_because {
            line("INVALID", because.clone());
        }
        text
    }
}
