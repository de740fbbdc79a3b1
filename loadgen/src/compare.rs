//! Two results side by side, and whether they differ by more than chance.
//!
//! The intuition: seconds of one run differ among themselves; a difference between two runs that is no larger is noise. The
//! method: a circular block bootstrap over seconds, in blocks of the cube root of their number, since a burst spans several.
//! Where both runs had the same arrivals and seed, the same seconds are drawn from both: what the arrivals did then cancels.
//! Where they were not offered the same load, that is said: no interval can tell the load's share from the server's.

use serde::Serialize;
use weir_core::prng::Prng;

use crate::hdr;
use crate::result::{Part, PerSecond, RunResult};

/// Times that seconds are drawn anew.
const RESAMPLES: usize = 2000;
/// Fewer seconds say nothing about how seconds differ.
const SECONDS_MIN: usize = 8;

/// One figure of both.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Difference {
    pub figure: &'static str,
    pub a: Option<f64>,
    pub b: Option<f64>,
    /// b − a.
    pub change: Option<f64>,
    /// Holds the resampled changes of all figures at once with 95 % confidence; null where it cannot be told.
    pub interval: Option<(f64, f64)>,
    pub verdict: Verdict,
}

/// What a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// b is better by more than chance.
    Better,
    /// b is worse by more than chance.
    Worse,
    /// The interval holds 0.
    Noise,
    /// Too few seconds, or nothing measured.
    CannotTell,
}

/// Both results.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Comparison {
    pub figures: Vec<Difference>,
    /// Settings in which the runs differ.
    pub settings: Vec<String>,
    /// What is wrong with either run, so that its figures are not to be believed as they stand.
    pub warnings: Vec<String>,
    /// The same process of arrivals, in every part, with the same data and deadlines; drawn anew where the seeds differ.
    pub same_load: bool,
    /// The same seconds were drawn from both.
    pub paired: bool,
}

struct Figure {
    name: &'static str,
    more_is_better: bool,
    of: fn(&Sums) -> Option<f64>,
}

const FIGURES: [Figure; 6] = [
    Figure { name: "attainment", more_is_better: true, of: |s| s.ratio(s.within, s.offered) },
    Figure { name: "goodput_per_s", more_is_better: true, of: |s| s.ratio(s.within, s.seconds) },
    Figure { name: "accuracy", more_is_better: true, of: |s| s.ratio(s.correct, s.rows).filter(|_| s.labelled) },
    Figure { name: "p50_us", more_is_better: false, of: |s| s.quantile(0.5) },
    Figure { name: "p90_us", more_is_better: false, of: |s| s.quantile(0.9) },
    Figure { name: "p99_us", more_is_better: false, of: |s| s.quantile(0.99) },
];

/// What some seconds add up to.
struct Sums<'a> {
    run: &'a Run,
    labelled: bool,
    seconds: f64,
    offered: f64,
    within: f64,
    correct: f64,
    rows: f64,
    /// By index into the run's values.
    latencies: Vec<u64>,
}

/// A run, by seconds.
struct Run {
    labelled: bool,
    seconds: Vec<Second>,
    /// Latencies in microseconds that occur, ascending.
    values: Vec<f64>,
}

struct Second {
    counts: PerSecond,
    /// Index into the run's values, and how often.
    latencies: Vec<(usize, u64)>,
}

impl Run {
    fn new(result: &RunResult) -> Run {
        // The last second may be cut short.
        let whole = (result.duration_s.max(0.0) as usize).min(result.per_second.len());
        let read = |second: &PerSecond| -> Vec<(u64, u64)> {
            let histogram = hdr::decode(&second.histogram);
            let recorded = |h: hdrhistogram::Histogram<u64>| {
                h.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect()
            };
            histogram.map(recorded).unwrap_or_default()
        };
        let latencies: Vec<_> = result.per_second[..whole].iter().map(read).collect();
        let mut values: Vec<u64> = latencies.iter().flatten().map(|(value, _)| *value).collect();
        values.sort_unstable();
        values.dedup();
        let index = |value: u64| values.binary_search(&value).expect("it was put there");
        let seconds = result.per_second[..whole].iter().zip(latencies).map(|(counts, latencies)| Second {
            counts: counts.clone(),
            latencies: latencies.into_iter().map(|(value, count)| (index(value), count)).collect(),
        });
        Run {
            labelled: result.accuracy.is_some(),
            seconds: seconds.collect(),
            values: values.iter().map(|ns| *ns as f64 / 1e3).collect(),
        }
    }

    fn sums(&self, drawn: impl Iterator<Item = usize>) -> Sums<'_> {
        let mut sums = Sums {
            run: self,
            labelled: self.labelled,
            seconds: 0.0,
            offered: 0.0,
            within: 0.0,
            correct: 0.0,
            rows: 0.0,
            latencies: vec![0; self.values.len()],
        };
        for second in drawn.map(|i| &self.seconds[i]) {
            sums.seconds += 1.0;
            sums.offered += second.counts.offered as f64;
            sums.within += second.counts.within_deadline as f64;
            sums.correct += second.counts.correct as f64;
            sums.rows += second.counts.rows_labelled as f64;
            second.latencies.iter().for_each(|(value, count)| sums.latencies[*value] += count);
        }
        sums
    }
}

impl Sums<'_> {
    fn ratio(&self, part: f64, whole: f64) -> Option<f64> {
        (whole > 0.0).then(|| part / whole)
    }

    fn quantile(&self, q: f64) -> Option<f64> {
        let all: u64 = self.latencies.iter().sum();
        let wanted = ((all as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = self.latencies.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        reached.map(|i| self.run.values[i])
    }
}

/// Seconds in blocks, so many as there are.
fn draw(seconds: usize, prng: &mut Prng) -> Vec<usize> {
    let block = (seconds as f64).cbrt().ceil() as usize;
    let mut drawn = Vec::with_capacity(seconds + block);
    while drawn.len() < seconds {
        let first = prng.below(seconds as u64) as usize;
        drawn.extend((first..first + block).map(|i| i % seconds));
    }
    drawn.truncate(seconds);
    drawn
}

/// In what two runs differ by intention.
struct Settings {
    found: Vec<String>,
    /// The same processes with the same rates, hence the same instants from the same seed.
    same_arrivals: bool,
    same_load: bool,
}

/// Of each run what makes its figures doubtful.
fn warnings(a: &RunResult, b: &RunResult) -> Vec<String> {
    let of = |(name, result): (&str, &RunResult)| {
        let because = result.invalid_because.clone().unwrap_or_else(|| "it says so".into());
        let invalid = (!result.valid).then(|| format!("is invalid: {because}"));
        let interrupted = result.interrupted.then(|| format!("was interrupted after {:.1} s", result.duration_s));
        let doubts = [invalid, interrupted, result.silence(), result.lower_bounds()];
        doubts.into_iter().flatten().map(|doubt| format!("{name}: {doubt}")).collect::<Vec<_>>()
    };
    [("a", a), ("b", b)].into_iter().flat_map(of).collect()
}

/// What a setting decides.
#[derive(Clone, Copy, PartialEq)]
enum Decides {
    /// When queries fall due.
    Arrivals,
    /// What they ask.
    Load,
    /// Who answers.
    Else,
}

impl Settings {
    fn new(a: &RunResult, b: &RunResult) -> Settings {
        let mut settings = Settings { found: Vec::new(), same_arrivals: true, same_load: true };
        let rate = |result: &RunResult| result.rate.map_or("its own".into(), |rate| rate.to_string());
        let seconds = |result: &RunResult| format!("{} s", result.duration_s);
        let us = |us: u64| format!("{us} us");
        settings.look(Decides::Else, "target", &a.target, &b.target);
        settings.look(Decides::Else, "endpoint", &a.endpoint, &b.endpoint);
        settings.look(Decides::Arrivals, "arrivals", &a.arrivals, &b.arrivals);
        settings.look(Decides::Arrivals, "rate", &rate(a), &rate(b));
        settings.look(Decides::Arrivals, "duration", &seconds(a), &seconds(b));
        settings.look(Decides::Else, "seed", &a.seed.to_string(), &b.seed.to_string());
        settings.look(Decides::Load, "deadline", &us(a.deadline_us), &us(b.deadline_us));
        settings.look(Decides::Load, "rows a query", &a.rows_per_query.to_string(), &b.rows_per_query.to_string());
        settings.parts(a, b);
        settings.look(Decides::Else, "processor", &a.machine.cpu, &b.machine.cpu);
        settings
    }

    fn look(&mut self, decides: Decides, what: &str, a: &str, b: &str) {
        if a != b {
            self.found.push(format!("{what}: {a} and {b}"));
            self.same_arrivals &= decides != Decides::Arrivals;
            self.same_load &= decides == Decides::Else;
        }
    }

    /// Older results do not tell their parts.
    fn parts(&mut self, a: &RunResult, b: &RunResult) {
        let (many_a, many_b) = (a.parts.len(), b.parts.len());
        if many_a == 0 || many_b == 0 {
            return;
        }
        self.look(Decides::Arrivals, "the number of parts", &many_a.to_string(), &many_b.to_string());
        let words = |text: &Option<String>| text.clone().unwrap_or("none".into());
        for (a, b) in a.parts.iter().zip(&b.parts) {
            let of = |what: &str| format!("{what} of {}", a.name);
            if many_a.max(many_b) > 1 {
                self.look(Decides::Arrivals, &of("load"), &a.load(), &b.load());
                let us = |us: u64| format!("{us} us");
                self.look(Decides::Load, &of("deadline"), &us(a.deadline_us), &us(b.deadline_us));
            }
            let rows = |part: &Part| format!("{} ({} rows)", part.data, part.rows);
            self.look(Decides::Load, &of("data"), &rows(a), &rows(b));
            self.look(Decides::Else, &of("labels"), &words(&a.labels), &words(&b.labels));
        }
    }
}

/// Compares b with a.
pub fn compare(a: &RunResult, b: &RunResult) -> Comparison {
    let (runs, closed) = ([Run::new(a), Run::new(b)], a.arrivals.starts_with("closed:"));
    let settings = Settings::new(a, b);
    let counts = runs.each_ref().map(|run| run.seconds.iter().map(|second| second.counts.offered).collect::<Vec<_>>());
    let drawn_alike = a.seed == b.seed && settings.same_arrivals && !closed;
    let paired = drawn_alike && counts[0] == counts[1];
    let mut same_load = settings.same_load;
    let mut settings = settings.found;
    if drawn_alike && !paired {
        same_load = false;
        settings.push("what fell due: the seed is the same and the counts of seconds are not (another trace under the same name, or a generator that stopped)".into());
    }
    let lengths = [runs[0].seconds.len(), runs[1].seconds.len()];
    let enough = lengths.iter().all(|seconds| *seconds >= SECONDS_MIN);
    let mut prng = Prng::new(1);
    let mut changes: Vec<Vec<f64>> = FIGURES.iter().map(|_| Vec::new()).collect();
    for _ in 0..if enough { RESAMPLES } else { 0 } {
        let drawn_a = draw(lengths[0], &mut prng);
        let drawn_b = if paired { drawn_a.clone() } else { draw(lengths[1], &mut prng) };
        let (of_a, of_b) = (runs[0].sums(drawn_a.into_iter()), runs[1].sums(drawn_b.into_iter()));
        for (figure, changes) in FIGURES.iter().zip(&mut changes) {
            if let (Some(a), Some(b)) = ((figure.of)(&of_a), (figure.of)(&of_b)) {
                changes.push(b - a);
            }
        }
    }
    let whole = |run: &Run, figure: &Figure| (figure.of)(&run.sums(0..run.seconds.len()));
    let figures = FIGURES.iter().zip(changes).map(|(figure, mut changes)| {
        let (a, b) = (whole(&runs[0], figure), whole(&runs[1], figure));
        let change = a.zip(b).map(|(a, b)| b - a);
        changes.sort_by(f64::total_cmp);
        // Two equal servers must differ in no figure in 95 of 100 comparisons, so each figure has its share of the 5 (Bonferroni).
        let tail = changes.len() / (40 * FIGURES.len());
        let interval = (changes.len() >= RESAMPLES / 2).then(|| (changes[tail], changes[changes.len() - 1 - tail]));
        let verdict = match interval {
            _ if change.is_none() => Verdict::CannotTell,
            None => Verdict::CannotTell,
            Some((low, high)) if low <= 0.0 && high >= 0.0 => Verdict::Noise,
            Some((low, _)) if (low > 0.0) == figure.more_is_better => Verdict::Better,
            Some(_) => Verdict::Worse,
        };
        Difference { figure: figure.name, a, b, change, interval, verdict }
    });
    Comparison { figures: figures.collect(), settings, warnings: warnings(a, b), same_load, paired }
}

impl Comparison {
    /// Whether anything differs by more than chance.
    pub fn differs(&self) -> bool {
        self.figures.iter().any(|figure| matches!(figure.verdict, Verdict::Better | Verdict::Worse))
    }

    /// The table that `weir load compare` prints.
    pub fn table(&self) -> String {
        let mut text = format!("{:<14}{:>12}{:>12}{:>12}{:>26}  {}\n", "", "a", "b", "change", "95 % interval", "");
        for figure in &self.figures {
            let digits = if ["attainment", "accuracy"].contains(&figure.figure) { 4 } else { 1 };
            let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.digits$}"));
            let interval =
                figure.interval.map_or("-".into(), |(low, high)| format!("{low:+.digits$} to {high:+.digits$}"));
            let verdict = match figure.verdict {
                Verdict::Better => "b is better",
                Verdict::Worse => "b is worse",
                Verdict::Noise => "noise",
                Verdict::CannotTell if figure.change.is_none() => "not measured",
                Verdict::CannotTell => "too short to tell: 8 seconds of each are needed",
            };
            text += &format!(
                "{:<14}{:>12}{:>12}{:>12}{interval:>26}  {verdict}\n",
                figure.figure,
                number(figure.a),
                number(figure.b),
                figure.change.map_or("-".into(), |change| format!("{change:+.digits$}")),
            );
        }
        for warning in &self.warnings {
            text += &format!("{warning}\n");
        }
        for setting in &self.settings {
            text += &format!("the runs differ in {setting}\n");
        }
        if !self.same_load {
            text += "the runs were not offered the same load: what changed may be the load's doing, not the server's\n";
        }
        if self.paired {
            text += "the runs had the same arrivals, so the same seconds are compared\n";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::result::tests::sample;

    /// A run of `seconds` with 100 queries each; latency around `ms`, and every second other by chance.
    fn run(seed: u64, seconds: u64, ms: f64) -> RunResult {
        let mut prng = Prng::new(seed);
        let per_second = (0..seconds).map(|t| {
            let mut histogram = hdr::histogram();
            let slow = 1.0 + 0.3 * prng.uniform();
            (0..100).for_each(|_| {
                hdr::record(&mut histogram, Duration::from_secs_f64(ms / 1e3 * slow * prng.exponential()))
            });
            let late = prng.below(10);
            PerSecond {
                t,
                offered: 100,
                answered: 100,
                within_deadline: 100 - late,
                correct: 90,
                rows_labelled: 100,
                histogram: hdr::encode(&histogram),
                ..PerSecond::default()
            }
        });
        let per_second = per_second.collect();
        RunResult { seed, duration_s: seconds as f64, per_second, ..sample() }
    }

    fn verdict(comparison: &Comparison, name: &str) -> Verdict {
        comparison.figures.iter().find(|figure| figure.figure == name).unwrap().verdict
    }

    #[test]
    fn a_difference_by_chance_is_called_noise_as_often_as_it_should_be() {
        let mut wrong = 0;
        for seed in 0..20 {
            let compared = compare(&run(2 * seed, 60, 10.0), &run(2 * seed + 1, 60, 10.0));
            assert!(!compared.paired);
            wrong += usize::from(verdict(&compared, "p99_us") != Verdict::Noise);
            wrong += usize::from(verdict(&compared, "attainment") != Verdict::Noise);
        }
        // 5 % over six figures: 0.33 of these 40; 4 have a chance of less than one in a thousand.
        assert!(wrong < 4, "{wrong}");
    }

    #[test]
    fn a_difference_beyond_chance_is_told_with_its_direction() {
        let compared = compare(&run(1, 60, 10.0), &run(2, 60, 15.0));
        assert_eq!(verdict(&compared, "p50_us"), Verdict::Worse);
        assert_eq!(verdict(&compare(&run(1, 60, 15.0), &run(2, 60, 10.0)), "p50_us"), Verdict::Better);
        let p50 = compared.figures.iter().find(|figure| figure.figure == "p50_us").unwrap();
        let (low, high) = p50.interval.unwrap();
        // Median of an exponential: ln 2 of the mean, times 1.15 for the slow seconds.
        assert!(low < 3986.0 && high > 3986.0 && low > 2000.0, "{low} {high}");
        assert!(compared.differs() && compared.table().contains("b is worse"));
    }

    #[test]
    fn what_cannot_be_told_is_not_guessed() {
        let short = compare(&run(1, 5, 10.0), &run(2, 5, 20.0));
        assert!(!short.differs() && short.table().contains("too short to tell"));
        let unlabelled = RunResult { accuracy: None, ..run(1, 60, 10.0) };
        assert_eq!(verdict(&compare(&unlabelled, &run(2, 60, 10.0)), "accuracy"), Verdict::CannotTell);
    }

    #[test]
    fn a_run_compared_with_itself_differs_in_nothing_and_settings_that_differ_are_named() {
        let a = run(1, 60, 10.0);
        let same = compare(&a, &a);
        assert!(same.paired && same.same_load && !same.differs() && same.settings.is_empty());
        let other = RunResult { deadline_us: 20_000, valid: false, ..run(1, 60, 10.0) };
        let table = compare(&a, &other).table();
        assert!(table.contains("deadline: 50000 us and 20000 us") && !table.contains("lower bound"), "{table}");
        assert!(table.contains("b: is invalid") && !table.contains("differ in b"), "{table}");
    }

    #[test]
    fn what_makes_a_run_doubtful_is_told() {
        let doubtful = RunResult { unknown: 500, silent_from_s: Some(20.0), interrupted: true, ..run(2, 60, 10.0) };
        let compared = compare(&run(1, 60, 10.0), &doubtful);
        let said =
            |word: &str| compared.warnings.iter().any(|warning| warning.starts_with("b: ") && warning.contains(word));
        assert!(said("interrupted") && said("stopped answering at t=20.0 s") && said("max are only lower bounds"));
        assert!(compared.warnings.len() == 3 && compared.warnings.iter().all(|w| compared.table().contains(w)));
    }

    /// Two parts of which nothing at the top tells how much each was asked.
    #[test]
    fn runs_that_were_not_offered_the_same_load_are_told_apart() {
        let part = |name: &str, rate: f64| Part { name: name.into(), rate: Some(rate), ..sample().parts[0].clone() };
        let with = |change: &dyn Fn(&mut RunResult)| {
            let mut result =
                RunResult { parts: vec![part("steady", 50.0), part("bursty", 100.0)], rate: None, ..run(1, 60, 10.0) };
            change(&mut result);
            result
        };
        let a = with(&|_| ());
        let told = |change: &dyn Fn(&mut RunResult)| {
            let compared = compare(&a, &with(change));
            (compared.same_load, compared.paired, compared.table())
        };
        let (same, paired, table) = told(&|_| ());
        assert!(same && paired && !table.contains("not offered"), "{table}");
        // Whose server it is, or by what draw, does not change what it was asked.
        let (same, paired, table) = told(&|b| b.seed = 9);
        assert!(same && !paired && table.contains("seed: 1 and 9") && !table.contains("not offered"), "{table}");
        let (same, paired, _) = told(&|b| b.target = "oip-http://x:1".into());
        assert!(same && paired);
        for (change, says) in [
            (&(|b: &mut RunResult| b.parts[1].rate = Some(200.0)) as &dyn Fn(&mut RunResult), "load of bursty"),
            (&|b| b.parts[0].weight = Some(3.0), "load of steady"),
            (&|b| b.parts[0].arrivals = Some("poisson".into()), "load of steady"),
            (&|b| drop(b.parts.pop()), "the number of parts: 2 and 1"),
            (&|b| b.rate = Some(500.0), "rate: its own and 500"),
            // The same trace by name, with other queries in it.
            (&|b| b.per_second[3].offered += 1, "counts of seconds"),
        ] {
            let (same, paired, table) = told(change);
            assert!(!same && !paired, "{table}");
            assert!(table.contains(says) && table.contains("not offered the same load"), "{says}: {table}");
        }
        // The same instants with another question.
        for (change, says) in [
            (
                &(|b: &mut RunResult| b.parts[1].deadline_us = 9) as &dyn Fn(&mut RunResult),
                "deadline of bursty: 50000 us and 9 us",
            ),
            (&|b| b.parts[0].data = "other.npy".into(), "data of steady: demo/images.npy (500 rows) and other.npy"),
            (&|b| b.rows_per_query = 8, "rows a query"),
        ] {
            let (same, paired, table) = told(change);
            assert!(!same && paired, "{table}");
            assert!(table.contains(says) && table.contains("not offered the same load"), "{says}: {table}");
        }
        let older = compare(&a, &with(&|b| b.parts.clear()));
        assert!(older.same_load && older.paired, "{:?}", older.settings);
    }
}
