//! What going deeper is worth at each gate of a cascade, at one price of computing time: backward induction over the tables.
//!
//! Value is counted in correct answers, each worth the endpoint's weight. Running the stage behind a gate adds the gain of
//! that stage and, as it may lead further, what the gates after it are worth on average, where they would go on:
//! `V(c) = w·g(c) + E[max(0, V′(c′) − price·cost′) | c]` (`scheduling.md` section 16).

use std::sync::Arc;

use super::gate::Gate;
use super::{Endpoint, deeper_costs};
use crate::triage::{STEP, STEPS, step_of};

/// Values by gate, for one endpoint and one price.
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    endpoint: Arc<Endpoint>,
    /// By stage: what its gate's table says, in bins; `None` where it has no table.
    values: Values,
    /// Likewise where nothing is dear.
    free: Arc<Values>,
    /// By stage: what running it costs at this price.
    costs: Vec<f64>,
    price: f64,
}

/// By stage and bin.
type Values = Vec<Option<Vec<f64>>>;

/// Ladders of one endpoint for all prices, in steps: made once, looked up for each row.
#[derive(Clone, Debug, PartialEq)]
pub struct Ladders {
    /// For no price, and then for prices that rise by [`STEP`] each from `least` on.
    steps: Vec<Ladder>,
    least: f64,
    /// By stage: slot time of a row.
    seconds: Vec<f64>,
}

/// Steps from a hundred-thousandth of a price to it.
const BELOW: usize = 83;

impl Ladders {
    /// Of an endpoint whose stages cost `seconds` of slot time a row: from a hundred-thousandth of the price at which the dearest of them is worth
    /// its time to nobody to that at which none is.
    pub fn new(endpoint: &Arc<Endpoint>, seconds: &[f64]) -> Ladders {
        let weighs = endpoint.stages.iter().any(|stage| matches!(stage.gate, Some(Gate::Gain { .. })));
        // On the steps that demand is counted by: what is asked at one step is what one of these prices lets pass.
        let (cheapest, dearest) = deeper_costs(seconds);
        let between = ((dearest / cheapest).ln() / STEP.ln()).ceil() as usize;
        let last = (BELOW + between).min(STEPS);
        let (_, least) = step_of(endpoint.too_dear(seconds) / STEP.powi(last as i32));
        let free = Ladder::new(Arc::clone(endpoint), 0.0, seconds);
        let priced = |step: usize| free.dearer(least * STEP.powi(step as i32), seconds);
        let mut steps = vec![free.clone()];
        if weighs {
            steps.extend((0..=last).map(priced));
        }
        Ladders { steps, least, seconds: seconds.to_vec() }
    }

    /// Slot time of a row in seconds, by stage; empty where it is not known.
    pub fn seconds(&self) -> &[f64] {
        &self.seconds
    }

    /// Where a price of a second of slot time, in units of value, stands among the steps.
    pub fn rungs(&self, price: f64) -> Rungs<'_> {
        // The first step is no price at all.
        let place = if price > 0.0 { (price / self.least).ln() / STEP.ln() + 1.0 } else { 0.0 };
        Rungs { ladders: self, place }
    }

    /// By how loaded a device is instead of by its price: freely up to a quarter, nothing deeper at 1, in between dearer by the
    /// same factor for each eighth, from a hundred-thousandth of what is too dear for all on.
    pub fn indexed(&self, load: f64) -> Rungs<'_> {
        let share = ((load - 0.25) / 0.75).clamp(0.0, 1.0);
        let eighth = (8.0 * share).floor() / 8.0;
        let last = (self.steps.len() - 1) as f64;
        let below = (1.0 - eighth) * (BELOW + 1) as f64;
        Rungs { ladders: self, place: if eighth > 0.0 { (last - below).max(0.0) } else { 0.0 } }
    }

    /// What it is of.
    pub fn endpoint(&self) -> &Endpoint {
        self.steps[0].endpoint()
    }

    /// The same, to keep.
    pub fn shared_endpoint(&self) -> Arc<Endpoint> {
        self.steps[0].shared_endpoint()
    }

    /// Whether any gate asks for the price.
    pub fn weighs(&self) -> bool {
        self.steps.len() > 1
    }

    /// At a price a second of slot time, in units of value: see [`Rungs::at`].
    pub fn at(&self, price: f64, chance: f64) -> &Ladder {
        self.rungs(price).at(chance)
    }
}

/// The ladders of an endpoint at one price, which as a rule stands between two of them.
#[derive(Clone, Copy, Debug)]
pub struct Rungs<'a> {
    ladders: &'a Ladders,
    /// Among the steps; the part of one says how many rows of all see the next one.
    place: f64,
}

impl<'a> Rungs<'a> {
    /// See [`Ladders::weighs`].
    pub fn weighs(self) -> bool {
        self.ladders.weighs()
    }

    /// For one row: between two steps `chance`, evenly from 0 to 1, decides for one of them, so that of rows that are alike just as many pass as
    /// there is room for.
    pub fn at(self, chance: f64) -> &'a Ladder {
        // Casts saturate.
        let step = (self.place + chance) as usize;
        &self.ladders.steps[step.min(self.ladders.steps.len() - 1)]
    }
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Run the next stage. Its value, where the gate weighs: it may give way to what is worth more.
    Deeper(Option<f64>),
    /// The answer in hand is good enough, or more would be too dear. What the next stage would be worth, where the gate weighs.
    Stop(Option<f64>),
}

impl Verdict {
    /// What the gate found that the next stage is worth, where it weighs.
    pub fn value(self) -> Option<f64> {
        let (Verdict::Deeper(value) | Verdict::Stop(value)) = self;
        value
    }

    /// Whether the next stage runs.
    pub fn is_deeper(self) -> bool {
        matches!(self, Verdict::Deeper(_))
    }
}

/// What a gate was asked, and what it said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// What it looks at: a confidence, a margin or an entropy; not a number where the stage gave none.
    pub signal: f32,
    /// What the deeper stage gains, in units of value; `None` where the gate is a fixed threshold.
    pub value: Option<f64>,
    /// What it gains where nothing is dear: all that stages after it would then add. What is lost where it does not run is that, whatever the price.
    pub free: Option<f64>,
    /// What running it costs at the price that held, in the same units.
    pub cost: f64,
    /// That price: of a second of slot time, in units of value. 0 where nothing is dear, or the gate does not weigh.
    pub price: f64,
    /// Whether it goes deeper.
    pub deeper: bool,
    /// Whether it would go deeper where nothing is dear.
    pub wanted: bool,
}

impl Ladder {
    /// Of an endpoint whose stages cost `seconds` of slot time a row, at `price` a second, in units of value.
    pub fn new(endpoint: Arc<Endpoint>, price: f64, seconds: &[f64]) -> Ladder {
        let free = Ladder::values(&endpoint, &vec![0.0; endpoint.stages.len()]);
        let costs = vec![0.0; endpoint.stages.len()];
        Ladder { values: free.clone(), free: Arc::new(free), costs, price: 0.0, endpoint }.dearer(price, seconds)
    }

    /// The same at another price.
    fn dearer(&self, price: f64, seconds: &[f64]) -> Ladder {
        let (endpoint, free) = (Arc::clone(&self.endpoint), Arc::clone(&self.free));
        let costs: Vec<f64> =
            endpoint.stages.iter().enumerate().map(|(i, _)| price * seconds.get(i).unwrap_or(&0.0)).collect();
        Ladder { values: Ladder::values(&endpoint, &costs), free, costs, price, endpoint }
    }

    /// What going on is worth at each gate, where running each stage costs so much.
    fn values(endpoint: &Endpoint, costs: &[f64]) -> Values {
        let mut values: Values = vec![None; endpoint.stages.len()];
        for stage in (1..endpoint.stages.len()).rev() {
            let Some(Gate::Gain { table, .. }) = &endpoint.stages[stage].gate else { continue };
            let later = values.get(stage + 1).and_then(Option::as_ref).map(|later| (later, costs[stage + 1]));
            let value = |bin: &super::gain::Bin| {
                let further = later.map_or(0.0, |(later, cost)| {
                    bin.next.iter().zip(later).map(|(share, value)| f64::from(*share) * (value - cost).max(0.0)).sum()
                });
                endpoint.weight * bin.gain + further
            };
            values[stage] = Some(table.bins().iter().map(value).collect());
        }
        values
    }

    /// Where nobody asks for a price: whatever gains is worth running.
    pub fn free(endpoint: Arc<Endpoint>) -> Ladder {
        Ladder::new(endpoint, 0.0, &[])
    }

    /// What it is of.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What it is of, to keep.
    pub fn shared_endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(&self.endpoint)
    }

    /// What the price is per second of slot time, in units of value.
    pub fn price(&self) -> f64 {
        self.price
    }

    /// Whether an answer with this signal goes on to `stage`, and whether the signal is not a number. A fixed gate stops then; one
    /// by gain takes the mean.
    pub fn verdict(&self, stage: usize, signal: Option<f32>) -> (Verdict, bool) {
        match self.judge(stage, signal) {
            None => (Verdict::Deeper(None), false),
            Some(judged) => (judged.verdict(), judged.signal.is_nan()),
        }
    }

    /// What the gate before `stage` says of an answer with this signal, and why; `None` where there is no gate.
    pub fn judge(&self, stage: usize, signal: Option<f32>) -> Option<Judged> {
        let gate = self.endpoint.stages[stage].gate.as_ref()?;
        let signal = signal.unwrap_or(f32::NAN);
        let (cost, price) = (self.costs[stage], self.price);
        let fixed = |deeper: bool| Judged { signal, value: None, free: None, cost, price, deeper, wanted: deeper };
        Some(match gate {
            Gate::ConfidenceBelow(threshold) | Gate::MarginBelow(threshold) => fixed(signal < *threshold),
            Gate::EntropyAbove(threshold) => fixed(signal > *threshold),
            Gate::Gain { table, min_gain } => {
                let read = |values: &Values| {
                    let values = values[stage].as_ref().expect("a gate with a table has values");
                    table.read(signal, |bin| values[bin])
                };
                let (value, least) = (read(&self.values), min_gain * self.endpoint.weight);
                let free = if price > 0.0 { read(&self.free) } else { value };
                let deeper = value >= least && value >= cost;
                Judged { signal, value: Some(value), free: Some(free), cost, price, deeper, wanted: free >= least }
            }
        })
    }
}

impl Judged {
    /// Whether it goes no deeper for no other reason than what computing time costs.
    pub fn is_dear(&self) -> bool {
        self.wanted && !self.deeper
    }

    /// What follows.
    pub fn verdict(&self) -> Verdict {
        if self.deeper { Verdict::Deeper(self.value) } else { Verdict::Stop(self.value) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gain::{Bin, GainTable};
    use super::super::tests::endpoint;
    use super::*;

    fn table(bins: &[(f32, f64, &[f32])]) -> Gate {
        let bin = |(confidence, gain, next): &(f32, f64, &[f32])| Bin {
            confidence: *confidence,
            rows: 100,
            right: 0.5,
            gain: *gain,
            error: 0.01,
            next: next.to_vec(),
        };
        let table = GainTable::new(bins.iter().map(bin).collect()).expect("a table");
        Gate::Gain { table: Arc::new(table), min_gain: 0.01 }
    }

    fn priced() -> Endpoint {
        let second = table(&[(0.2, 0.4, &[]), (0.8, 0.0, &[])]);
        let first = table(&[(0.2, 0.3, &[1.0, 0.0]), (0.8, 0.05, &[0.0, 1.0])]);
        endpoint(&[("a", None), ("b", Some(first)), ("c", Some(second))])
    }

    #[test]
    fn a_fixed_gate_escalates_on_its_side_of_the_threshold_and_never_on_nan() {
        for (gate, deeper, stops) in [
            (Gate::ConfidenceBelow(0.9), 0.89, 0.9),
            (Gate::MarginBelow(0.3), 0.29, 0.3),
            (Gate::EntropyAbove(0.5), 0.51, 0.5),
        ] {
            let ladder = Ladder::free(Arc::new(endpoint(&[("a", None), ("b", Some(gate))])));
            assert_eq!(ladder.verdict(1, Some(deeper)), (Verdict::Deeper(None), false));
            assert_eq!(ladder.verdict(1, Some(stops)), (Verdict::Stop(None), false));
            assert_eq!(ladder.verdict(1, Some(f32::NAN)), (Verdict::Stop(None), true));
            assert_eq!(ladder.verdict(1, None), (Verdict::Stop(None), true));
        }
        let always = endpoint(&[("a", None), ("b", None)]);
        assert_eq!(Ladder::free(Arc::new(always)).verdict(1, None), (Verdict::Deeper(None), false));
    }

    #[test]
    fn a_stage_is_worth_what_it_leads_to() {
        let ladder = Ladder::free(Arc::new(priced()));
        // 0.3 by itself, and 0.4 more since all of them come out unsure again.
        let (verdict, _) = ladder.verdict(1, Some(0.2));
        assert!(matches!(verdict, Verdict::Deeper(Some(value)) if (value - 0.7).abs() < 1e-9), "{verdict:?}");
        let (verdict, _) = ladder.verdict(1, Some(0.8));
        assert!(matches!(verdict, Verdict::Deeper(Some(value)) if (value - 0.05).abs() < 1e-9), "{verdict:?}");
        assert!(!ladder.verdict(2, Some(0.8)).0.is_deeper(), "no gain");
    }

    #[test]
    fn at_a_price_what_gains_less_than_it_costs_stops() {
        let seconds = [0.001, 0.002, 0.01];
        let ladder = Ladder::new(Arc::new(priced()), 30.0, &seconds);
        // The last stage costs 0.3 and gains 0.4, so the first gate is worth 0.3 + 0.1.
        let (verdict, _) = ladder.verdict(1, Some(0.2));
        assert!(matches!(verdict, Verdict::Deeper(Some(value)) if (value - 0.4).abs() < 1e-9), "{verdict:?}");
        assert!(!ladder.verdict(1, Some(0.8)).0.is_deeper(), "0.05 for 0.06");
        assert!(!Ladder::new(Arc::new(priced()), 1e9, &seconds).verdict(1, Some(0.2)).0.is_deeper());
        let worth_more = Endpoint { weight: 2.0, ..priced() };
        let ladder = Ladder::new(Arc::new(worth_more), 30.0, &seconds);
        assert!(matches!(ladder.verdict(1, Some(0.8)).0, Verdict::Deeper(_)), "0.1 for 0.06");
    }

    #[test]
    fn prices_are_looked_up_in_steps() {
        let seconds = [0.001, 0.002, 0.01];
        let ladders = Ladders::new(&Arc::new(priced()), &seconds);
        for price in [0.1, 3.0, 30.0, 100.0] {
            let exact = Ladder::new(Arc::new(priced()), price, &seconds);
            for (near, exact) in ladders.at(price, 0.0).costs.iter().zip(&exact.costs) {
                assert!((near / exact - 1.0).abs() < STEP - 1.0, "{near} for {exact}");
            }
        }
        assert_eq!(ladders.at(0.0, 0.5), &Ladder::new(Arc::new(priced()), 0.0, &seconds));
        assert_eq!(ladders.at(f64::NAN, 0.5), ladders.at(0.0, 0.5));
        assert!(!ladders.at(f64::INFINITY, 0.5).verdict(1, Some(0.2)).0.is_deeper());
        // Two thirds of the way from one step to the next, one in three decides for the one.
        let price = ladders.at(30.0, 0.0).price() * STEP.powf(2.0 / 3.0);
        let lower = (0..999).filter(|i| ladders.at(price, f64::from(*i) / 999.0).price() < price).count();
        assert!((330..=336).contains(&lower), "{lower}");
        assert_eq!(ladders.indexed(0.2).at(0.9), ladders.at(0.0, 0.5));
        assert!(!ladders.indexed(1.0).at(0.0).verdict(1, Some(0.2)).0.is_deeper());
        let eighth =
            |eighths: f64, chance| ladders.indexed(0.25 + 0.75 / 8.0 * (eighths + 0.5)).at(chance).price().ln();
        let mean = |eighths| (eighth(eighths, 0.25) + eighth(eighths, 0.75)) / 2.0;
        (1..7).map(f64::from).for_each(|eighths| {
            let factor = mean(eighths + 1.0) - mean(eighths);
            assert!((factor - 10.5 * STEP.ln()).abs() < 1e-6, "{eighths} eighths: {factor}");
        });
        let fixed = endpoint(&[("a", None), ("b", Some(Gate::ConfidenceBelow(0.9)))]);
        assert_eq!(Ladders::new(&Arc::new(fixed), &seconds).steps.len(), 1, "it is never repriced");
    }

    #[test]
    fn stages_whose_costs_lie_far_apart_are_each_priced_in_steps() {
        // 30 us and 0.3 s: at a price of 0.1 a second the gain of 0.4 is worth the second, one of 0.02 is not.
        let little = table(&[(0.2, 0.4, &[]), (0.8, 0.02, &[])]);
        let first = table(&[(0.2, 0.3, &[1.0, 0.0]), (0.8, 0.05, &[0.0, 1.0])]);
        let apart = Arc::new(endpoint(&[("a", None), ("b", Some(first)), ("c", Some(little))]));
        let seconds = [1e-5, 3e-5, 0.3];
        let ladders = Ladders::new(&apart, &seconds);
        assert!(ladders.at(0.1, 0.5).verdict(2, Some(0.2)).0.is_deeper());
        assert!(!ladders.at(0.1, 0.5).verdict(2, Some(0.8)).0.is_deeper());
        for price in [0.01, 1.0, 1000.0, 10_000.0] {
            let near = ladders.at(price, 0.5).price();
            assert!((near / price - 1.0).abs() < STEP - 1.0, "{near} for {price}");
        }
    }

    #[test]
    fn a_gate_tells_what_it_weighed_also_where_it_stops() {
        let ladder = Ladder::new(Arc::new(priced()), 30.0, &[0.001, 0.002, 0.01]);
        let judged = ladder.judge(1, Some(0.8)).expect("there is a gate");
        assert_eq!((judged.signal, judged.price, judged.deeper), (0.8, 30.0, false));
        assert!((judged.value.unwrap() - 0.05).abs() < 1e-9 && (judged.cost - 0.06).abs() < 1e-9, "{judged:?}");
        assert_eq!(ladder.price(), 30.0);
        let fixed =
            Ladder::free(Arc::new(endpoint(&[("a", None), ("b", Some(Gate::ConfidenceBelow(0.9))), ("c", None)])));
        assert_eq!(
            fixed.judge(1, Some(0.5)),
            Some(Judged { signal: 0.5, value: None, free: None, cost: 0.0, price: 0.0, deeper: true, wanted: true })
        );
        assert_eq!(fixed.judge(2, Some(0.5)), None);
    }

    #[test]
    fn what_stops_for_the_price_alone_is_dear() {
        let seconds = [0.001, 0.002, 0.01];
        // Unsure after the first: 0.3 by the second stage, and 0.4 more by the third.
        let at = |price: f64, confidence: f32| {
            let judged = Ladder::new(Arc::new(priced()), price, &seconds).judge(1, Some(confidence)).unwrap();
            (judged.deeper, judged.is_dear())
        };
        assert_eq!((at(0.0, 0.2), at(30.0, 0.2), at(1e9, 0.2)), ((true, false), (true, false), (false, true)));
        // 0.05 is worth the caller's time, until 25 a second.
        assert_eq!((at(24.0, 0.8), at(26.0, 0.8)), ((true, false), (false, true)));
        // All of a gain of 0.012 is what the third stage adds, and a price makes that too dear before it does the second itself.
        let second = table(&[(0.2, 0.024, &[]), (0.8, 0.0, &[])]);
        let first = table(&[(0.2, 0.0, &[0.5, 0.5]), (0.8, 0.0, &[0.0, 1.0])]);
        let later = Arc::new(endpoint(&[("a", None), ("b", Some(first)), ("c", Some(second))]));
        let judged = |price: f64, confidence: f32| {
            Ladder::new(Arc::clone(&later), price, &[0.001, 1e-6, 0.01]).judge(1, Some(confidence)).unwrap()
        };
        assert!(judged(0.0, 0.2).deeper && judged(2.0, 0.2).is_dear());
        assert!(!judged(0.0, 0.8).wanted && !judged(2.0, 0.8).is_dear(), "nothing is to be gained");
    }

    #[test]
    fn what_is_lost_does_not_fall_as_the_price_rises() {
        let endpoint = Arc::new(priced());
        let lost = |price: f64| {
            let judged = Ladder::new(Arc::clone(&endpoint), price, &[0.001, 0.002, 0.01]).judge(1, Some(0.2)).unwrap();
            if judged.deeper { 0.0 } else { endpoint.expected_loss(0, judged.free) }
        };
        let by_price: Vec<f64> = (0..40).map(|step| lost(1.5f64.powi(step))).collect();
        assert!(by_price.is_sorted() && by_price[0] == 0.0, "{by_price:?}");
        assert!((by_price[39] - 0.7).abs() < 1e-9, "what it leads to is lost with it: {by_price:?}");
    }

    #[test]
    fn what_is_not_a_number_takes_the_mean_and_is_told() {
        let (verdict, nan) = Ladder::free(Arc::new(priced())).verdict(2, Some(f32::NAN));
        assert!(nan && matches!(verdict, Verdict::Deeper(Some(value)) if (value - 0.2).abs() < 1e-9), "{verdict:?}");
    }
}
