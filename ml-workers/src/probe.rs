//! What a freshly loaded model shows about itself: may its rows be batched, and how long do batches take?
//!
//! A first dimension need not be a batch: it may be time, or the model may normalise over it. So batching is proved for
//! each model at load: a few made-up rows are run alone and together, with other companions and at other positions, and
//! every row must come out as it did alone up to rounding. Otherwise the model is served one query at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_core::placement::ReplicaProfile;
use weir_core::prng::Prng;
use weir_core::shapes::{PadPlan, Shapes};
use weir_core::tensor::{DType, Row, Signature, Tensor, TensorSpec};
use weir_core::units::{Bytes, ServiceTime};

use crate::engine::Session;
use crate::model_actor::stack;

/// How queries of a model may share a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batching {
    /// Rows are stacked along the first dimension, any number of them.
    Rows,
    /// Likewise, but the model takes exactly `size` rows: fewer are filled up.
    Fixed {
        /// Its first dimension.
        size: u32,
    },
    /// One query a run.
    Unbatched {
        /// For `weir describe`.
        because: String,
    },
}

/// What probing has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// How queries may share a run.
    pub batching: Batching,
    /// Largest batch that worked within the time; 1 where nothing is batched.
    pub max_batch: u32,
    /// Latency by batch size, ascending, at least one point.
    pub points: Vec<(u32, ServiceTime)>,
    /// Whether the points are those that were known, and not measured here.
    pub informed: bool,
    /// Why rows cannot be filled up as their owner says, where they cannot.
    pub unpaddable: Option<String>,
}

impl Probed {
    /// As it is reported, of a replica that takes so much memory.
    pub fn profile(&self, memory: Bytes) -> ReplicaProfile {
        ReplicaProfile {
            points: self.points.clone(),
            max_batch: self.max_batch,
            unbatched: match &self.batching {
                Batching::Unbatched { because } => because.clone(),
                Batching::Rows | Batching::Fixed { .. } => String::new(),
            },
            memory,
            informed: self.informed,
        }
    }
}

/// Time given to probing: long enough for three runs of each size of a model that takes 5 ms, short enough to wait for.
pub const BUDGET: Duration = Duration::from_millis(500);
/// Batches beyond this gain nothing on any model that was measured, and block others longer.
const BATCH_MAX: u32 = 64;
/// Runs may take so many times what is known, or what is known so many times theirs, before it is measured anew. What is known
/// is a high quantile under load, and a first run is slow: less than this says nothing.
const TRUST: f64 = 2.0;
/// Differences below this say nothing either: between threads a batch takes longer than alone.
const TRUST_WITHIN: ServiceTime = ServiceTime::from_micros(300);
/// Assumed of a model that no made-up input could run: corrected by its first real batches.
const UNKNOWN: ServiceTime = ServiceTime::from_micros(1_000);
/// Larger than rounding in any order of summation that was seen, smaller than any other cause.
const RELATIVE: f64 = 1e-4;
/// All sizes run again until their runs together took so long, which is as long as a processor is away now and then, or until each ran so often.
const AGAIN_FOR: ServiceTime = ServiceTime::from_micros(50_000);
const RUNS_MAX: usize = 16;
/// Elements of a made-up input at most: 64 MiB of f32, more than any model takes at a batch that is worth trying.
const ELEMENTS_MAX: u64 = 1 << 24;
/// Made-up rows for the comparison; five do not fit any even or power-of-two grouping.
const ROWS: usize = 5;
/// Sizes tried for dimensions that a model leaves open, other than the first. Small ones run fast, large ones satisfy
/// models that shrink their input.
const OPEN_SIZES: [u64; 6] = [8, 1, 16, 32, 64, 224];

/// Elements of a made-up input, saturating.
fn elements_of(spec: &TensorSpec, open: u64, rows: usize) -> u64 {
    let rest = spec.shape.iter().skip(1).map(|dim| dim.unwrap_or(open));
    rest.fold(rows.max(1) as u64, u64::saturating_mul)
}

/// A session under trial, and how long the trial may go on.
struct Trial<'a> {
    session: &'a mut dyn Session,
    signature: Signature,
    /// The input that is 1 everywhere: a mask that hides nothing.
    mask: Option<usize>,
    /// Size of the dimensions that the model leaves open, other than the first.
    open: u64,
    since: Instant,
    budget: Duration,
    /// Pauses that nobody waited for.
    paused: Duration,
}

impl Trial<'_> {
    /// Runs the made-up rows of these numbers together; their outputs, and the time it took.
    fn run(&mut self, rows: &[u64]) -> Result<(Vec<Tensor>, ServiceTime), String> {
        if self.signature.inputs.iter().any(|spec| elements_of(spec, self.open, rows.len()) > ELEMENTS_MAX) {
            return Err("a made-up input of that size would need too much memory".into());
        }
        let inputs = batch(&self.signature, self.mask, self.open, rows);
        self.time(&inputs, rows.len())
    }

    fn time(&mut self, inputs: &[Tensor], rows: usize) -> Result<(Vec<Tensor>, ServiceTime), String> {
        let started = Instant::now();
        let outputs = self.session.run(inputs).map_err(|error| error.to_string())?;
        // Nobody need wait for a pause that is known, but it counts.
        let pause = self.session.pause(rows as u64);
        self.paused = self.paused.saturating_add(pause);
        Ok((outputs, ServiceTime::from(started.elapsed().saturating_add(pause))))
    }

    fn is_over(&self) -> bool {
        self.since.elapsed().saturating_add(self.paused) >= self.budget
    }
}

/// Probes a session within `budget` and one run. `declared` bounds the batch where its owner said so, `shapes` is what they said of
/// sizes and lengths. `known` is what batches took on other devices like this one, ascending, or empty: if a few runs agree, it
/// stands for a measurement. Times are those of the longest rows that are filled up.
pub fn probe(
    session: &mut dyn Session,
    declared: Option<u32>,
    shapes: &Shapes,
    budget: Duration,
    known: &[(u32, ServiceTime)],
) -> Probed {
    let signature = session.signature().clone();
    let unbatched = |because: &str, points: Vec<(u32, ServiceTime)>| Probed {
        batching: Batching::Unbatched { because: because.into() },
        max_batch: 1,
        points: or_unknown(points),
        informed: false,
        unpaddable: shapes.pad.as_ref().map(|_| format!("its rows cannot share a batch at all: {because}")),
    };
    let leading = leading(&signature);
    let plan = shapes.pad.as_ref().map(|pad| pad.plan(&signature));
    let mask = shapes.pad.as_ref().and_then(|pad| signature.inputs.iter().position(|spec| spec.name == pad.mask));
    let open_sizes: Vec<u64> = plan.iter().map(PadPlan::longest).chain(OPEN_SIZES).collect();
    let (open, since) = (open_sizes[0], Instant::now());
    let mut trial = Trial { session, signature, mask, open, since, budget, paused: Duration::ZERO };
    let fixed = match leading {
        Leading::Free => None,
        Leading::Fixed(size) => Some(size),
        Leading::None(because) => return unbatched(because, time(&mut trial, &[1])),
    };
    let single = fixed.unwrap_or(1);
    let runs = open_sizes.into_iter().any(|open| {
        trial.open = open;
        !trial.is_over() && trial.run(&(0..single).collect::<Vec<_>>()).is_ok()
    });
    if !runs {
        return unbatched("no made-up input could be made to run it", Vec::new());
    }
    if single == 1 && fixed.is_some() {
        return unbatched("its first dimension is 1", time(&mut trial, &[1]));
    }
    let compared = match fixed {
        Some(size) => compare_fixed(&mut trial, size),
        None => compare(&mut trial),
    };
    if let Err(because) = compared {
        return unbatched(&because, time(&mut trial, &[single]));
    }
    match fixed {
        Some(size) => {
            let points = or_unknown(time(&mut trial, &[size]));
            Probed {
                batching: Batching::Fixed { size: size as u32 },
                max_batch: size as u32,
                points,
                informed: false,
                unpaddable: None,
            }
        }
        None => {
            let unpaddable = plan.and_then(|plan| compare_padded(&mut trial, &plan).err());
            let sizes = sizes(declared, shapes);
            let informed = bound_by(&sizes, known).filter(|points| agree(&mut trial, points));
            let is_informed = informed.is_some();
            let points = informed.unwrap_or_else(|| time(&mut trial, &sizes));
            let max_batch = points.last().map_or(1, |(size, _)| *size);
            Probed {
                batching: Batching::Rows,
                max_batch,
                points: or_unknown(points),
                informed: is_informed,
                unpaddable,
            }
        }
    }
}

/// Sizes to measure: the allowed ones, or powers of two up to the bound.
fn sizes(declared: Option<u32>, shapes: &Shapes) -> Vec<u64> {
    if !shapes.batch_sizes.is_empty() {
        let bound = declared.unwrap_or(u32::MAX);
        return shapes.batch_sizes.iter().filter(|size| **size <= bound).map(|size| u64::from(*size)).collect();
    }
    let bound = declared.unwrap_or(BATCH_MAX);
    let mut sizes: Vec<u64> = (0..).map(|i| 1u64 << i).take_while(|size| *size <= u64::from(bound)).collect();
    if !bound.is_power_of_two() {
        sizes.push(u64::from(bound));
    }
    sizes
}

/// Rows as they are against the same rows filled up, beside each other: one as long as the largest bucket, and one that is only just
/// too long for the bucket before.
fn compare_padded(trial: &mut Trial<'_>, plan: &PadPlan) -> Result<(), String> {
    let lengths = [plan.shortest_of_longest(), plan.longest()];
    let rows = [0, 1].map(|number: u64| Row {
        tensors: Arc::new(batch(&trial.signature, trial.mask, lengths[number as usize], &[number])),
        row: Some(0),
    });
    if rows.iter().zip(lengths).any(|(row, length)| plan.length(row) != Some(length)) {
        return Err("its inputs are not as long as each other".into());
    }
    let (outputs, _) = trial.time(&stack(&rows, rows.len(), Some(plan)), rows.len())?;
    for (number, (row, length)) in rows.iter().zip(lengths).enumerate() {
        let (alone, _) = trial.time(&row.tensors, 1)?;
        same_cut(plan, &outputs, number, length, &alone)?;
    }
    Ok(())
}

fn same_cut(plan: &PadPlan, outputs: &[Tensor], number: usize, length: u64, alone: &[Tensor]) -> Result<(), String> {
    let cut = plan.cut(outputs, number, length);
    let cut = cut.map_err(|output| format!("its output {} is not as long as its inputs", output + 1))?;
    if same(&cut, 0, alone) {
        Ok(())
    } else {
        Err("a row that is filled up has another answer: the model does not heed its mask".into())
    }
}

/// Those of the `known` points that are to be believed of a session whose `sizes` would be measured otherwise: up to the largest
/// of them. `None` where there is none, or where they begin above 1.
fn bound_by(sizes: &[u64], known: &[(u32, ServiceTime)]) -> Option<Vec<(u32, ServiceTime)>> {
    let most = *sizes.last()?;
    let points: Vec<_> = known.iter().filter(|(size, _)| u64::from(*size) <= most).copied().collect();
    // Where fewer rows a batch are allowed than were measured, nobody has measured that number.
    let ends_there = points.last()?.0 == known.last()?.0 || u64::from(points.last()?.0) == most;
    (points.first()?.0 == 1 && ends_there).then_some(points)
}

/// Whether runs of the smallest and of the largest size, which has to work here too, take about what the points say.
fn agree(trial: &mut Trial<'_>, points: &[(u32, ServiceTime)]) -> bool {
    let ends = [points[0], points[points.len() - 1]];
    ends.into_iter().all(|(size, known)| {
        let rows: Vec<u64> = (0..u64::from(size)).collect();
        // The first run of a size finds its memory; the better of two counts.
        let runs = [trial.run(&rows), trial.run(&rows)].into_iter().flatten().map(|(_, took)| took);
        runs.min().is_some_and(|took| {
            let (less, more) = (took.min(known), took.max(known));
            more.saturating_sub(less) <= TRUST_WITHIN || more <= less.scaled(TRUST)
        })
    })
}

/// Something to begin with, where no run succeeded.
fn or_unknown(points: Vec<(u32, ServiceTime)>) -> Vec<(u32, ServiceTime)> {
    if points.is_empty() { vec![(1, UNKNOWN)] } else { points }
}

enum Leading {
    Free,
    Fixed(u64),
    None(&'static str),
}

/// What the inputs' first dimensions say.
fn leading(signature: &Signature) -> Leading {
    let mut fixed = None;
    for input in &signature.inputs {
        match input.shape.first() {
            None => return Leading::None("an input has no first dimension"),
            Some(None) => {}
            Some(Some(0)) => return Leading::None("an input has no rows"),
            Some(Some(size)) if fixed.is_none_or(|fixed| fixed == *size) => fixed = Some(*size),
            Some(Some(_)) => return Leading::None("its inputs differ in their first dimension"),
        }
    }
    fixed.map_or(Leading::Free, Leading::Fixed)
}

/// Rows alone against rows together. A model that takes only few rows at once is compared at fewer.
fn compare(trial: &mut Trial<'_>) -> Result<(), String> {
    let mut alone = Vec::new();
    for row in 0..ROWS as u64 {
        let (outputs, _) = trial.run(&[row])?;
        if outputs.iter().any(|output| output.shape.first() != Some(&1)) {
            return Err("an output is not one row for one row".into());
        }
        alone.push(outputs);
        if trial.is_over() && row > 0 {
            return Err("it is too slow to be probed within its time".into());
        }
    }
    let (again, _) = trial.run(&[0])?;
    if !same(&again, 0, &alone[0]) {
        return Err("the same input gives different answers".into());
    }
    let sets: [&[u64]; 3] = [&[0, 1, 2, 3, 4], &[4, 2, 0], &[1, 0]];
    let mut together = 0;
    for set in sets {
        let Ok((outputs, _)) = trial.run(set) else { continue };
        together += 1;
        check_rows(&outputs, set, &alone)?;
    }
    if together == 0 { Err("it takes one row at a time only".into()) } else { Ok(()) }
}

/// For a model of exactly `size` rows: each row between different companions.
fn compare_fixed(trial: &mut Trial<'_>, size: u64) -> Result<(), String> {
    let mut alone = Vec::new();
    for row in 0..size.min(ROWS as u64) {
        // As it will be filled up: the same row again and again.
        alone.push(trial.run(&vec![row; size as usize])?.0);
    }
    let mixed: Vec<u64> = (0..size).map(|i| i % alone.len() as u64).collect();
    let turned: Vec<u64> = mixed.iter().rev().copied().collect();
    for set in [mixed, turned] {
        check_rows(&trial.run(&set)?.0, &set, &alone)?;
    }
    Ok(())
}

fn check_rows(outputs: &[Tensor], set: &[u64], alone: &[Vec<Tensor>]) -> Result<(), String> {
    if outputs.iter().any(|output| output.shape.first() != Some(&(set.len() as u64))) {
        return Err("an output is not one row for each row".into());
    }
    for (at, row) in set.iter().enumerate() {
        if !same(outputs, at, &alone[*row as usize]) {
            return Err("a row's answer depends on the rows beside it".into());
        }
    }
    Ok(())
}

/// Whether row `at` of `outputs` is the first row of `alone`, up to rounding.
fn same(outputs: &[Tensor], at: usize, alone: &[Tensor]) -> bool {
    outputs.len() == alone.len()
        && outputs.iter().zip(alone).all(|(together, alone)| {
            let (Some(rows), Some(first)) = (together.rows(), alone.rows()) else { return false };
            together.dtype == alone.dtype
                && together.shape[1..] == alone.shape[1..]
                && close(together.dtype, &together.data[rows[at].clone()], &alone.data[first[0].clone()])
        })
}

fn close(dtype: DType, a: &[u8], b: &[u8]) -> bool {
    let (Some(x), Some(y)) = (floats(dtype, a), floats(dtype, b)) else { return a == b };
    // Half precision rounds to three digits.
    let relative = if matches!(dtype, DType::F16 | DType::Bf16) { 1e-2 } else { RELATIVE };
    let scale = x.iter().chain(&y).filter(|v| v.is_finite()).fold(0.0f64, |max, v| max.max(v.abs()));
    x.len() == y.len()
        && x.iter().zip(&y).all(|(a, b)| {
            a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= relative * a.abs().max(b.abs()).max(1e-2 * scale)
        })
}

fn floats(dtype: DType, data: &[u8]) -> Option<Vec<f64>> {
    fn of<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f64) -> Option<Vec<f64>> {
        Some(data.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect())
    }
    match dtype {
        DType::F32 => of::<4>(data, |b| f64::from(f32::from_le_bytes(b))),
        DType::F64 => of::<8>(data, f64::from_le_bytes),
        DType::F16 => of::<2>(data, |b| half::f16::from_le_bytes(b).to_f64()),
        DType::Bf16 => of::<2>(data, |b| half::bf16::from_le_bytes(b).to_f64()),
        _ => None,
    }
}

/// Median of a few runs by batch size, until a size fails or the time is over; at least one run if any works. A model that takes next to no time runs
/// again, all sizes by turns: three runs of it are over before somebody else who has the processor is.
fn time(trial: &mut Trial<'_>, sizes: &[u64]) -> Vec<(u32, ServiceTime)> {
    let mut runs: Vec<(u64, Vec<ServiceTime>)> = Vec::new();
    let mut sum = ServiceTime::ZERO;
    for size in sizes {
        let rows: Vec<u64> = (0..*size).collect();
        let mut of_size = Vec::new();
        let mut fails = false;
        while !fails && of_size.len() < 3 && (!trial.is_over() || (runs.is_empty() && of_size.is_empty())) {
            match trial.run(&rows) {
                Ok((_, took)) => of_size.push(took),
                Err(_) => fails = true,
            }
        }
        if fails || of_size.is_empty() {
            break;
        }
        sum = of_size.iter().fold(sum, |sum, took| sum + *took);
        runs.push((*size, of_size));
    }
    for _ in 3..RUNS_MAX {
        for (size, of_size) in &mut runs {
            if trial.is_over() || sum > AGAIN_FOR {
                break;
            }
            let Ok((_, took)) = trial.run(&(0..*size).collect::<Vec<_>>()) else { break };
            sum += took;
            of_size.push(took);
        }
    }
    let median = |(size, mut of_size): (u64, Vec<ServiceTime>)| {
        of_size.sort_unstable();
        (size as u32, of_size[of_size.len() / 2])
    };
    runs.into_iter().map(median).collect()
}

/// Inputs whose rows are the made-up rows of these numbers; row `n` is the same wherever it stands.
fn batch(signature: &Signature, mask: Option<usize>, open: u64, rows: &[u64]) -> Vec<Tensor> {
    let inputs = signature.inputs.iter().enumerate();
    inputs
        .map(|(i, spec)| {
            let mut shape: Vec<u64> = spec.shape.iter().map(|dim| dim.unwrap_or(open)).collect();
            if let Some(first) = shape.first_mut() {
                *first = rows.len() as u64;
            }
            let per_row: u64 = shape.iter().skip(1).product();
            let mut data = Vec::new();
            for row in if spec.shape.is_empty() { &[0] } else { rows } {
                let mut prng = Prng::new(row.wrapping_mul(1_000_003) ^ i as u64);
                for _ in 0..per_row {
                    match one(spec.dtype).filter(|_| mask == Some(i)) {
                        Some(one) => data.extend(one),
                        None => element(spec, &mut prng, &mut data),
                    }
                }
            }
            Tensor { dtype: spec.dtype, shape, data }
        })
        .collect()
}

/// What a mask is where nothing is hidden.
fn one(dtype: DType) -> Option<Vec<u8>> {
    Some(match dtype {
        DType::F16 => half::f16::ONE.to_le_bytes().to_vec(),
        DType::Bf16 => half::bf16::ONE.to_le_bytes().to_vec(),
        dtype => weir_core::shapes::number(dtype, 1.0)?,
    })
}

/// One made-up element: numbers in [0, 1), or small whole ones, which are valid as indices and lengths more often than others.
fn element(spec: &TensorSpec, prng: &mut Prng, data: &mut Vec<u8>) {
    let number = prng.uniform();
    let whole = prng.below(2) as u8;
    match spec.dtype {
        DType::Bool | DType::U8 | DType::I8 => data.push(whole),
        DType::U16 | DType::I16 => data.extend(u16::from(whole).to_le_bytes()),
        DType::U32 | DType::I32 => data.extend(u32::from(whole).to_le_bytes()),
        DType::U64 | DType::I64 => data.extend(u64::from(whole).to_le_bytes()),
        DType::F16 => data.extend(half::f16::from_f64(number).to_le_bytes()),
        DType::Bf16 => data.extend(half::bf16::from_f64(number).to_le_bytes()),
        DType::F32 => data.extend((number as f32).to_le_bytes()),
        DType::F64 => data.extend(number.to_le_bytes()),
        DType::String => {
            let text = format!("probe {}", prng.below(100));
            data.extend((text.len() as u32).to_le_bytes());
            data.extend(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::engine::{RunError, Terminator};

    /// Gives what it takes. Its runs take 100 us a row, and the first two of four rows some milliseconds more.
    struct Disturbed {
        signature: Signature,
        by_fours: AtomicU64,
    }

    impl Session for Disturbed {
        fn signature(&self) -> &Signature {
            &self.signature
        }
        fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            Ok(inputs.to_vec())
        }
        fn pause(&self, rows: u64) -> Duration {
            let accident = rows == 4 && self.by_fours.fetch_add(1, Ordering::Relaxed) < 2;
            Duration::from_micros(100 * rows + if accident { 4000 } else { 0 })
        }
        fn terminator(&self) -> Terminator {
            Terminator::new(|| {})
        }
        fn memory(&self) -> Bytes {
            Bytes(0)
        }
    }

    #[test]
    fn who_takes_the_processor_for_a_moment_is_not_in_the_profile() {
        let spec = |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, shape: vec![None, Some(2)] };
        let signature = Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] };
        let mut session = Disturbed { signature, by_fours: AtomicU64::new(0) };
        let probed = probe(&mut session, Some(8), &Shapes::default(), BUDGET, &[]);
        let of = |size: u32| probed.points.iter().find(|(known, _)| *known == size).expect("it was measured").1;
        assert!(of(4) < of(8) && of(8) < ServiceTime::from_micros(4000), "{:?}", probed.points);
        assert!(session.by_fours.into_inner() <= RUNS_MAX as u64, "nor is it measured for ever");
    }
}
