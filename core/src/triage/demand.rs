//! What is asked of one device of late, by what it is worth, and the price at which it can do what is asked.
//!
//! Each row that is weighed adds its cost at its density, whether it is sent on or not: else a high price would make the demand
//! look small, and the price fall. The price is where the work of that density and above is as much as the slots can do: the
//! dual variable of the fractional knapsack that the device is (`scheduling.md` section 16). It is advice: gates upstream send
//! nothing that would be pushed out anyway, and value a stage by what it can still lead to; what comes all the same is weighed by
//! [`super::Buffer`]. A device with room is cheap, whatever was asked before: price · clamp((fill − ¼)/½), but not where it
//! has computed all the time of late: between two batches one that is asked for too much looks empty for a moment.

use crate::units::{Instant, ServiceTime};

/// How long what was asked counts, in seconds: a few deadlines, so that one burst does not make the next calm dear.
const MEMORY: f64 = 0.25;
/// How long it counts that a device computed, in seconds: as long as it takes to see that nothing more comes.
const BUSY_FOR: f64 = 0.05;
/// Share of the slots' time that the price clears: the rest is for what batches waste.
const UTILISATION: f64 = 0.95;
/// Densities from `LEAST` on, in steps of a factor of `STEP`, 128 of them: some eight decades.
const LEAST: f64 = 1e-2;
const STEP: f64 = 1.15;
const STEPS: usize = 128;
/// What has been asked is aged at most so often, in memories.
const AGED_EVERY: f64 = 1.0 / 64.0;

/// Work that was asked for of late.
#[derive(Clone, Debug)]
pub struct Demand {
    aged: Instant,
    /// Slot time in seconds of what must run, or be refused; decayed.
    firm: f64,
    /// By step of density: of what has been weighed.
    soft: Vec<f64>,
    /// Which share of its slots the device has used of late, and until when that is known.
    busy: (f64, Instant),
}

impl Demand {
    /// None yet.
    pub fn new() -> Demand {
        Demand { aged: Instant::ZERO, firm: 0.0, soft: vec![0.0; STEPS], busy: (0.0, Instant::ZERO) }
    }

    /// A row asks that has no answer in hand.
    pub fn firm(&mut self, now: Instant, cost: ServiceTime) {
        self.age(now);
        self.firm += seconds(cost);
    }

    /// A row was weighed whose running is worth `value`; 0 and less asks for nothing.
    pub fn weighed(&mut self, now: Instant, cost: ServiceTime, value: f64) {
        self.age(now);
        let density = value / seconds(cost).max(1e-9);
        if density >= LEAST {
            let step = ((density / LEAST).ln() / STEP.ln()) as usize;
            self.soft[step.min(STEPS - 1)] += seconds(cost);
        }
    }

    /// Since this was told last, until `now`, the device has used this share of its slots.
    pub fn was_busy(&mut self, now: Instant, share: f64) {
        let (before, since) = self.busy;
        let left = (-now.since(since).as_secs_f64() / BUSY_FOR).exp();
        self.busy = (left * before + (1.0 - left) * share, now);
    }

    /// The price in value a second of slot time, on a device with `slots` that is filled to `fill` of what it can do before the
    /// deadlines.
    pub fn price(&self, now: Instant, slots: u32, fill: f64) -> f64 {
        let scale = ((fill - 0.25) / 0.5).max((self.busy.0 - 0.5) / 0.4).clamp(0.0, 1.0);
        if scale == 0.0 {
            return 0.0;
        }
        let left = (-self.memories(now)).exp();
        let mut room = f64::from(slots) * MEMORY * UTILISATION / left - self.firm;
        let price_at = |steps: f64| scale * LEAST * STEP.powf(steps);
        if room <= 0.0 {
            // There is time for nothing but what must run.
            return price_at(STEPS as f64);
        }
        for (step, work) in self.soft.iter().enumerate().rev() {
            if *work > room {
                // As far down the step as there is room for.
                return price_at(step as f64 + 1.0 - room / work);
            }
            room -= work;
        }
        0.0
    }

    fn age(&mut self, now: Instant) {
        let memories = self.memories(now);
        if memories >= AGED_EVERY {
            let left = (-memories).exp();
            self.firm *= left;
            self.soft.iter_mut().for_each(|work| *work *= left);
            self.aged = now;
        }
    }

    fn memories(&self, now: Instant) -> f64 {
        now.since(self.aged).as_secs_f64() / MEMORY
    }
}

impl Default for Demand {
    fn default() -> Demand {
        Demand::new()
    }
}

fn seconds(cost: ServiceTime) -> f64 {
    cost.as_nanos() as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(n: u64) -> ServiceTime {
        ServiceTime::from_micros(n)
    }

    /// A second of rows of `firm` and of `soft` microseconds of work at each millisecond, their densities spread evenly over 0 to
    /// 1000.
    fn asked(firm: u64, soft: u64) -> (Demand, Instant) {
        let mut demand = Demand::new();
        for i in 0..2000u64 {
            let now = Instant::from_millis(i);
            demand.firm(now, us(firm));
            let density = (i * 611 % 1000) as f64;
            demand.weighed(now, us(soft), density * soft as f64 / 1e6);
        }
        (demand, Instant::from_millis(1999))
    }

    #[test]
    fn the_price_is_where_the_demand_is_what_the_slots_can_do() {
        let (demand, now) = asked(0, 1800);
        assert!((demand.price(now, 1, 1.0) - 472.0).abs() < 40.0, "{}", demand.price(now, 1, 1.0));
        assert_eq!(demand.price(now, 2, 1.0), 0.0, "two slots can do all of it, and a little more");
        let (demand, now) = asked(475, 1800);
        assert!((demand.price(now, 1, 1.0) - 736.0).abs() < 50.0, "{}", demand.price(now, 1, 1.0));
        let (demand, now) = asked(2000, 1800);
        assert!(demand.price(now, 1, 1.0) > 900.0, "nothing but what must run");
    }

    #[test]
    fn a_device_with_room_is_cheap_whatever_was_asked_unless_it_has_just_begun() {
        let (mut demand, now) = asked(0, 1800);
        let full = demand.price(now, 1, 1.0);
        assert_eq!(demand.price(now, 1, 0.2), 0.0);
        assert!((demand.price(now, 1, 0.5) - full / 2.0).abs() < 1e-6);
        let later = |ms: u64| Instant::from_nanos(now.as_nanos() + ms * 1_000_000);
        demand.was_busy(now, 0.0);
        demand.was_busy(later(80), 1.0);
        let between_batches = demand.price(later(80), 1, 0.0);
        assert!(between_batches > 0.2 * full, "{between_batches} of {full}");
        demand.was_busy(later(160), 0.0);
        assert_eq!(demand.price(later(160), 1, 0.0), 0.0);
    }

    #[test]
    fn what_was_asked_is_forgotten() {
        let (mut demand, now) = asked(0, 1800);
        let later = Instant::from_millis(now.as_nanos() / 1_000_000 + 500);
        assert_eq!(demand.price(later, 1, 1.0), 0.0);
        demand.weighed(later, us(1), f64::NAN);
        demand.weighed(later, us(1), -1.0);
        demand.weighed(later, us(0), f64::INFINITY);
        assert_eq!(demand.price(later, 1, 1.0), 0.0);
    }
}
