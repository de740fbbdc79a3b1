//! Goals: what a result has to reach, as `attainment>=0.99` or `p99<=50ms`.

use weir_client::weirfile::parse_duration;
use weir_core::planning::Margin;

use crate::result::RunResult;

/// One goal.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    figure: Figure,
    at_least: bool,
    bound: f64,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Figure {
    Attainment,
    Accuracy,
    Goodput,
    P50,
    P90,
    P99,
    P999,
    Max,
}

const FIGURES: [(&str, Figure); 8] = [
    ("attainment", Figure::Attainment),
    ("accuracy", Figure::Accuracy),
    ("goodput", Figure::Goodput),
    ("p50", Figure::P50),
    ("p90", Figure::P90),
    ("p99", Figure::P99),
    ("p999", Figure::P999),
    ("max", Figure::Max),
];

/// A goal that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no goal; write attainment>=0.99, accuracy>=0.9, goodput>=300 (a second), or p99<=50ms (also p50, p90, p999, max), several with commas"
)]
pub struct BadGoal {
    text: String,
}

impl Goal {
    /// Parses one goal.
    pub fn parse(text: &str) -> Result<Goal, BadGoal> {
        let bad = || BadGoal { text: text.to_owned() };
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (name, bound, at_least) = match (compact.split_once(">="), compact.split_once("<=")) {
            (Some((name, bound)), None) => (name, bound, true),
            (None, Some((name, bound))) => (name, bound, false),
            _ => return Err(bad()),
        };
        let (_, figure) = *FIGURES.iter().find(|(known, _)| *known == name).ok_or_else(bad)?;
        let number = || bound.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
        let (bound, fits) = match figure {
            Figure::Attainment | Figure::Accuracy => (number().filter(|n| *n <= 1.0), at_least),
            Figure::Goodput => (number(), at_least),
            _ => (parse_duration(bound).map(|d| d.as_micros() as f64), !at_least),
        };
        // More attainment and less latency is what can be wished for.
        let bound = bound.filter(|_| fits).ok_or_else(bad)?;
        Ok(Goal { figure, at_least, bound, text: compact })
    }

    /// Parses some, with commas between them.
    pub fn parse_all(text: &str) -> Result<Vec<Goal>, BadGoal> {
        text.split(',').map(Goal::parse).collect()
    }

    /// The text that parses to this.
    pub fn to_text(&self) -> &str {
        &self.text
    }

    /// What a run reached: a share, a rate, or microseconds. Nothing where it was not measured.
    pub fn value(&self, result: &RunResult) -> Option<f64> {
        let latency = |us: u64| (result.answered > 0).then_some(us as f64);
        match self.figure {
            Figure::Attainment => Some(result.attainment),
            Figure::Accuracy => result.accuracy,
            Figure::Goodput => Some(result.goodput_per_s),
            Figure::P50 => latency(result.latency_us.p50),
            Figure::P90 => latency(result.latency_us.p90),
            Figure::P99 => latency(result.latency_us.p99),
            Figure::P999 => latency(result.latency_us.p999),
            Figure::Max => latency(result.latency_us.max),
        }
    }

    /// Whether a run reached it. A percentile of which only a lower bound is known did not.
    pub fn is_met(&self, result: &RunResult) -> bool {
        let reached = |value: f64| if self.at_least { value >= self.bound } else { value <= self.bound };
        !self.is_lower_bound(result) && self.value(result).is_some_and(reached)
    }

    /// What some runs reached and how far they differ; nothing where one of them did not measure it.
    pub fn margin(&self, results: &[RunResult]) -> Option<Margin> {
        let reached: Option<Vec<f64>> = results.iter().map(|result| self.value(result)).collect();
        reached.filter(|reached| !reached.is_empty()).map(|reached| Margin::of(&reached))
    }

    /// What a further run reaches in 19 of 20 cases.
    pub fn bound(&self, margin: Margin) -> f64 {
        if self.at_least { margin.least() } else { margin.most() }
    }

    /// Whether each of some runs reached it, and in 19 of 20 cases a further one does.
    pub fn is_promised(&self, results: &[RunResult]) -> bool {
        let further =
            |margin: Margin| if self.at_least { margin.is_at_least(self.bound) } else { margin.is_at_most(self.bound) };
        results.iter().all(|result| self.is_met(result)) && self.margin(results).is_some_and(further)
    }

    /// What runs reached and how they differ, in words.
    pub fn promise(&self, results: &[RunResult]) -> String {
        let Some(margin) = self.margin(results) else { return format!("{}: nothing was measured for it", self.text) };
        let (times, unit) = match self.figure {
            Figure::Attainment | Figure::Accuracy => (100.0, " %"),
            Figure::Goodput => (1.0, " a second"),
            _ => (1e-3, " ms"),
        };
        let most = if unit == " %" { 100.0 } else { f64::INFINITY };
        let mean = times * margin.mean;
        if results.len() < 2 {
            return format!("{}: {mean:.2}{unit} in one run, which says nothing about others", self.text);
        }
        let bound = (times * self.bound(margin)).clamp(0.0, most);
        let side = if self.at_least { "at least" } else { "at most" };
        format!(
            "{}: {mean:.2} ± {:.2}{unit} over {} runs; 19 of 20 reach {side} {bound:.2}{unit}",
            self.text,
            times * margin.reach,
            results.len()
        )
    }

    /// How many of the queries offered may have no answer in time, by this goal.
    pub fn late_at_most(&self, offered: u64) -> u64 {
        match self.figure {
            // As many as leave the share where it is met, as it is computed.
            Figure::Attainment => {
                offered - (self.bound * offered as f64 - 1e-6).ceil().clamp(0.0, offered as f64) as u64
            }
            _ => offered,
        }
    }

    /// Whether the true value may be any that is higher: too many latencies are unknown.
    fn is_lower_bound(&self, result: &RunResult) -> bool {
        let percentile = match self.figure {
            Figure::Attainment | Figure::Accuracy | Figure::Goodput => return false,
            Figure::P50 => 500,
            Figure::P90 => 900,
            Figure::P99 => 990,
            Figure::P999 => 999,
            Figure::Max => 1000,
        };
        result.is_lower_bound(percentile)
    }

    /// A sentence about how a run missed it.
    pub fn missed(&self, result: &RunResult) -> String {
        let reached = match (self.value(result), self.figure) {
            (None, _) => "nothing was measured for it".to_owned(),
            (Some(value), Figure::Attainment | Figure::Accuracy) => format!("it was {value:.4}"),
            (Some(value), Figure::Goodput) => format!("it was {value:.1} a second"),
            (Some(value), _) if self.is_lower_bound(result) => format!(
                "it was {:.1} ms or more, as it is not known how late {} unknown queries would have been",
                value / 1e3,
                result.unknown
            ),
            (Some(value), _) => format!("it was {:.1} ms", value / 1e3),
        };
        format!("the goal {} was missed: {reached}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::sample;

    #[test]
    fn goals_are_compared_with_what_was_measured() {
        let result = RunResult { attainment: 0.992, ..sample() };
        let met = |text: &str| Goal::parse(text).unwrap().is_met(&result);
        assert!(met("attainment>=0.99") && !met("attainment >= 0.995"));
        assert!(met("p99<=21ms") && !met("p99<=20.9ms") && met("max<=1s"));
        assert!(!Goal::parse("p99<=1s").unwrap().is_met(&RunResult { answered: 0, ..sample() }));
        let missed = Goal::parse("p99<=1ms").unwrap().missed(&result);
        assert_eq!(missed, "the goal p99<=1ms was missed: it was 21.0 ms");
        assert_eq!(Goal::parse_all("attainment>=0.99,p99<=50ms").unwrap().len(), 2);
    }

    #[test]
    fn whoever_stops_early_gives_up_no_sooner_than_the_goal_is_missed() {
        for (text, offered, may) in [
            ("attainment>=0.99", 1000, 10),
            ("attainment>=0.99", 1001, 10),
            ("attainment>=0.99", 99, 0),
            ("attainment>=1", 1000, 0),
            ("attainment>=0", 1000, 1000),
            ("accuracy>=0.9", 1000, 1000),
        ] {
            let goal = Goal::parse(text).unwrap();
            assert_eq!(goal.late_at_most(offered), may, "{text} of {offered}");
            let with = |late: u64| RunResult { attainment: (offered - late) as f64 / offered as f64, ..sample() };
            assert!(goal.figure != Figure::Attainment || goal.is_met(&with(may)), "{text} of {offered}");
            assert!(may == offered || !goal.is_met(&with(may + 1)), "{text} of {offered}");
        }
    }

    #[test]
    fn a_goal_is_promised_where_runs_differ_by_less_than_they_are_better() {
        let runs =
            |reached: &[f64]| reached.iter().map(|a| RunResult { attainment: *a, ..sample() }).collect::<Vec<_>>();
        let goal = Goal::parse("attainment>=0.99").unwrap();
        assert!(goal.is_promised(&runs(&[0.995, 0.996, 0.994, 0.995, 0.995])));
        assert!(!goal.is_promised(&runs(&[0.991, 0.999, 0.992, 0.998, 0.996])), "each meets it, and the next may not");
        assert!(!goal.is_promised(&runs(&[0.9899, 1.0, 1.0, 1.0, 1.0])));
        assert!(goal.is_promised(&runs(&[0.99])) && !goal.is_promised(&runs(&[0.9899])) && !goal.is_promised(&[]));
        assert_eq!(
            goal.promise(&runs(&[0.991, 0.999, 0.992, 0.998, 0.996])),
            "attainment>=0.99: 99.52 ± 0.83 % over 5 runs; 19 of 20 reach at least 98.69 %"
        );
        // Less is better: the bound lies above the mean.
        let with = |p99: &[u64]| {
            let of = |p99: &u64| {
                let mut result = sample();
                result.latency_us.p99 = *p99;
                result
            };
            p99.iter().map(of).collect::<Vec<_>>()
        };
        let goal = Goal::parse("p99<=50ms").unwrap();
        assert!(goal.is_promised(&with(&[40_000, 41_000, 42_000, 41_000, 41_000])));
        assert!(!goal.is_promised(&with(&[40_000, 49_000, 42_000, 48_000, 41_000])));
        assert!(
            goal.promise(&with(&[41_000; 2])).ends_with("41.00 ± 0.00 ms over 2 runs; 19 of 20 reach at most 41.00 ms")
        );
    }

    /// Of 1000 queries whose end is awaited, 10 without a known latency leave the p99 as it is and 11 do not; whatever was refused was
    /// told so, and has no latency to miss.
    #[test]
    fn a_percentile_of_which_only_a_lower_bound_is_known_meets_no_goal() {
        let with = |unknown| RunResult { answered: 1000 - unknown, unknown, rejected: 5000, ..sample() };
        let met = |text: &str, unknown| Goal::parse(text).unwrap().is_met(&with(unknown));
        assert!(met("p99<=1s", 10) && !met("p99<=1s", 11) && met("p90<=1s", 100) && !met("p90<=1s", 101));
        assert!(met("max<=1s", 0) && !met("max<=1s", 1) && met("p999<=1s", 1) && !met("p999<=1s", 2));
        assert!(met("attainment>=0.9", 11), "that counts them as missed already");
        let missed = Goal::parse("p99<=1s").unwrap().missed(&with(11));
        assert!(missed.contains("21.0 ms or more") && missed.contains("11 unknown queries"), "{missed}");
        let bounds = with(11).lower_bounds().unwrap();
        assert!(bounds.starts_with("p99, p99.9, max are only lower bounds"), "{bounds}");
        assert!(with(11).table().contains(&bounds) && crate::report::html(&with(11)).contains(&bounds));
        assert_eq!(with(0).lower_bounds(), None);
    }

    #[test]
    fn nonsense_is_no_goal() {
        for text in
            ["", "attainment", "attainment>0.9", "attainment>=99", "attainment<=0.9", "p99>=1ms", "p99<=50", "speed>=1"]
        {
            assert!(Goal::parse(text).unwrap_err().to_string().contains("attainment>=0.99"), "{text}");
        }
    }
}
