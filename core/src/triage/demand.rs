//! What is asked of one device of late, by what it is worth, and the price at which it can do what is asked.
//!
//! Each row that is weighed adds its cost at its density, whether it is sent on or not: else a high price would make the demand
//! look small, and the price fall. The price is where the work of that density and above is as much as the slots can do: the
//! dual variable of the fractional knapsack that the device is (`scheduling.md` section 16). It is advice: gates upstream send
//! nothing that would be pushed out anyway, and value a stage by what it can still lead to; what comes all the same is weighed by
//! [`super::Buffer`]. What homes of other nodes ask is told now and then ([`super::Market`]): the price is the higher one of
//! what its own homes ask and of its part of what all ask. A device with room is cheap, whatever was asked before: price · clamp((fill − ¼)/½), but not where it
//! has computed all the time of late: between two batches one that is asked for too much looks empty for a moment.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Tenant;
use super::curve::{Asked, Curve, MEMORY, STEPS, Steps, density_at, memories, seconds};
use super::market::TTL;
use crate::units::{Instant, ServiceTime};

/// How long it counts that a device computed, in seconds: as long as it takes to see that nothing more comes.
const BUSY_FOR: f64 = 0.05;
/// Over how long it counts how much of a device is left over, in seconds: many batches, and less than a replica takes to come.
const SPARE_FOR: f64 = 0.3;
/// Share of its slots that a device uses at most of which it is said that it has little to do.
const CALM: f64 = 0.25;
/// Share of the slots' time that the price clears: the rest is for what batches waste.
const UTILISATION: f64 = 0.95;
/// How much of what is weighed gates let through, as a share of that time: somewhat more than there is room for, so that chance leaves no
/// slot idle. What is too much is pushed out.
const LET_THROUGH: f64 = 1.15;

/// Work that was asked for of late.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// Slot time in seconds of what must run, or be refused; decayed, and since when.
    firm: (f64, Instant),
    /// Of what has been weighed.
    soft: Curve,
    /// Which share of its slots the device has used of late, and until when that is known.
    busy: (f64, Instant),
    /// The same over [`SPARE_FOR`].
    used: f64,
    /// What others ask of it, and when that was told.
    others: Option<(Others, Instant)>,
    /// What tenants with a share have weighed.
    tenants: BTreeMap<u64, Curve>,
}

/// What homes of other nodes ask of a device.
#[derive(Clone, Debug)]
pub struct Others {
    /// Of what homes of its own node ask, the share that falls to this device: others have its models too.
    own: f64,
    /// In slot seconds a second.
    steps: Steps,
}

impl Others {
    /// By model of the device: what its own homes ask, what others ask, and the share of that which falls to it.
    pub fn of<'a>(models: impl Iterator<Item = (Asked, &'a Asked, f64)>) -> Others {
        let (mut steps, mut own, mut mine) = ([0.0; STEPS], 0.0, 0.0);
        for (asked, others, share) in models {
            own += asked.total();
            mine += share * asked.total();
            steps.iter_mut().zip(others.steps()).for_each(|(step, work)| *step += share * f64::from(work));
        }
        Others { own: if own > 0.0 { mine / own } else { 1.0 }, steps: Steps::new(steps) }
    }
}

impl Demand {
    /// None yet.
    pub fn new() -> Demand {
        Demand::default()
    }

    /// A row asks that has no answer in hand.
    pub fn firm(&mut self, now: Instant, cost: ServiceTime) {
        self.firm = (self.firm.0 * (-memories(self.firm.1, now)).exp() + seconds(cost), now);
    }

    /// A row was weighed whose running is worth `value`; 0 and less asks for nothing.
    pub fn weighed(&mut self, now: Instant, cost: ServiceTime, value: f64, tenant: Tenant) {
        self.soft.add(now, cost, value);
        if tenant.share > 0.0 {
            if !self.tenants.contains_key(&tenant.id) {
                // Endpoints come and go.
                self.tenants.retain(|_, curve| !curve.is_forgotten(now));
            }
            self.tenants.entry(tenant.id).or_default().add(now, cost, value);
        }
    }

    /// Since this was told last, until `now`, the device has used this share of its slots.
    pub fn was_busy(&mut self, now: Instant, share: f64) {
        self.used = self.used_at(now, share);
        self.busy = (self.busy_at(now, share), now);
    }

    /// Whether the device has used little of its slots of late, and uses this share of them since it was told last.
    pub fn is_calm(&self, now: Instant, share: f64) -> bool {
        self.busy_at(now, share) < CALM
    }

    fn busy_at(&self, now: Instant, share: f64) -> f64 {
        averaged(self.busy.0, now.since(self.busy.1), BUSY_FOR, share)
    }

    /// Which share of its slots the device has had nothing for of late, where it uses this share of them since it was told last.
    pub fn spare(&self, now: Instant, share: f64) -> f64 {
        1.0 - self.used_at(now, share)
    }

    fn used_at(&self, now: Instant, share: f64) -> f64 {
        averaged(self.used, now.since(self.busy.1), SPARE_FOR, share)
    }

    /// What homes of other nodes ask of this device.
    pub fn on_others(&mut self, now: Instant, others: Others) {
        self.others = Some((others, now));
    }

    /// The price in value a second of slot time, on a device with `slots` that is filled to `fill` of what it can do before the
    /// deadlines. A tenant with a share pays no more than what clears its own demand in that.
    pub fn price(&self, now: Instant, slots: u32, fill: f64, tenant: Tenant) -> f64 {
        let scale = ((fill - 0.25) / 0.5).max((self.busy.0 - 0.5) / 0.4).clamp(0.0, 1.0);
        if scale == 0.0 {
            return 0.0;
        }
        let firm = self.firm.0 * (-memories(self.firm.1, now)).exp() / MEMORY;
        let room = (f64::from(slots) * UTILISATION - firm) * LET_THROUGH;
        let alone = (tenant.share > 0.0).then(|| {
            let room = f64::from(slots) * UTILISATION * LET_THROUGH * tenant.share;
            self.tenants.get(&tenant.id).map_or(FOR_ALL, |curve| clears(room, curve, now, None))
        });
        // Nothing that all ask can make it dearer than that.
        let most = alone.unwrap_or(f64::INFINITY);
        let own = if most > FOR_ALL { clears(room, &self.soft, now, None) } else { FOR_ALL };
        let others = self.others.as_ref().filter(|(_, told)| own < most && now.since(*told) < TTL);
        let all = others.map_or(FOR_ALL, |(others, _)| clears(room, &self.soft, now, Some(others)));
        let place = own.max(all).min(most);
        if place == FOR_ALL { 0.0 } else { scale * density_at(place) }
    }
}

/// The place on the scale of densities, some 600,000 a second, above which there is time where there is none for anything that is asked. It is forgotten as what was asked
/// is, which from a place where nobody asks would take the longer for nothing.
const DEAR: f64 = 128.0;
/// The place on the scale of densities where there is room for all that is asked.
const FOR_ALL: f64 = f64::NEG_INFINITY;

/// What is left of a price that another device told a while ago: what was asked of it is forgotten as fast. Of one as where there is no time for anything, however
/// much those are worth that ask, no more than of the least such after one memory: to forget it would take seconds where a single endpoint is worth a
/// million times as much as the others.
pub fn faded(price: f64, told: Instant, now: Instant) -> f64 {
    let (since, dear) = (memories(told, now), density_at(DEAR));
    let beyond = if price > dear { (dear / price).powf(since.min(1.0)) } else { 1.0 };
    price * beyond * (-since).exp()
}

/// The place on the scale of densities down to which there is `room`, in slot seconds a second, for what was asked and for what others ask, where they
/// do; of what was asked at home, only a part falls to this device then.
fn clears(room: f64, asked: &Curve, now: Instant, others: Option<&Others>) -> f64 {
    if room <= 0.0 {
        // There is time for nothing but what must run.
        // Less is what was asked long ago.
        let least = f64::from(Asked::LEAST);
        let others = others.map_or(0.0, |others| others.steps.top(least));
        return asked.steps().map_or(0.0, |own| own.top(least / asked.rate(now))).max(others).max(DEAR);
    }
    let rate = asked.rate(now);
    let place = match (asked.steps(), others) {
        (Some(own), None) => own.clears(room / rate, None),
        (Some(own), Some(others)) => others.steps.clears(room, Some((own, rate * others.own))),
        (None, others) => others.and_then(|others| others.steps.clears(room, None)),
    };
    place.unwrap_or(FOR_ALL)
}

/// A share that was `before` on average, after `span` at `share`; what is `memory` seconds old counts by 1/e.
fn averaged(before: f64, span: Duration, memory: f64, share: f64) -> f64 {
    let left = (-span.as_secs_f64() / memory).exp();
    left * before + (1.0 - left) * share
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
            demand.weighed(now, us(soft), density * soft as f64 / 1e6, Tenant::NOBODY);
        }
        (demand, Instant::from_millis(1999))
    }

    #[test]
    fn the_price_is_where_the_demand_is_what_the_slots_can_do() {
        let (demand, now) = asked(0, 1800);
        assert!(
            (demand.price(now, 1, 1.0, Tenant::NOBODY) - 393.0).abs() < 40.0,
            "{}",
            demand.price(now, 1, 1.0, Tenant::NOBODY)
        );
        assert_eq!(demand.price(now, 2, 1.0, Tenant::NOBODY), 0.0, "two slots can do all of it, and a little more");
        let (demand, now) = asked(475, 1800);
        assert!(
            (demand.price(now, 1, 1.0, Tenant::NOBODY) - 697.0).abs() < 50.0,
            "{}",
            demand.price(now, 1, 1.0, Tenant::NOBODY)
        );
        let (demand, now) = asked(2000, 1800);
        assert!(demand.price(now, 1, 1.0, Tenant::NOBODY) > 900.0, "nothing but what must run");
    }

    #[test]
    fn what_others_ask_counts_as_far_as_it_falls_to_this_device_and_is_forgotten() {
        let (mut demand, now) = asked(0, 900);
        assert_eq!(demand.price(now, 1, 1.0, Tenant::NOBODY), 0.0, "its own homes ask for little");
        let others = Asked::of(&demand.soft.asked(now).steps());
        let of = |share| Others::of([(others.clone(), &others, share)].into_iter());
        demand.on_others(now, of(1.0));
        let all = demand.price(now, 1, 1.0, Tenant::NOBODY);
        assert!((all - 393.0).abs() < 40.0, "as if one home asked for both: {all}");
        demand.on_others(now, of(0.5));
        assert_eq!(demand.price(now, 1, 1.0, Tenant::NOBODY), 0.0, "another device does half of it");
        demand.on_others(now, of(1.0));
        let mut later = now;
        for i in 0..3000u64 {
            later = Instant::from_millis(2000 + i);
            demand.weighed(later, us(900), (i * 611 % 1000) as f64 * 900e-6, Tenant::NOBODY);
        }
        assert_eq!(demand.price(later, 1, 1.0, Tenant::NOBODY), 0.0, "nobody has told anything for long");
    }

    #[test]
    fn what_is_worth_very_much_is_told_from_what_is_worth_less() {
        // Rows of 31 us, of endpoints with weights of 1,000 and 10,000, and twice as much as there is time for.
        let mut demand = Demand::new();
        for i in 0..64_000u64 {
            let weight = if i % 2 == 0 { 1_000.0 } else { 10_000.0 };
            demand.weighed(Instant::from_nanos(i * 31_250 / 2), us(31), 0.5 * weight, Tenant::NOBODY);
        }
        let price = demand.price(Instant::from_millis(1000), 1, 1.0, Tenant::NOBODY);
        assert!((0.5 * 1_000.0 / 31e-6..0.5 * 10_000.0 / 31e-6).contains(&price), "{price}");
        demand.firm(Instant::from_millis(1000), us(10_000_000));
        let nothing = demand.price(Instant::from_millis(1000), 1, 1.0, Tenant::NOBODY);
        assert!(nothing > 0.5 * 10_000.0 / 31e-6, "there is time for nothing but what must run: {nothing}");
        demand.firm(Instant::from_millis(6000), us(10_000_000));
        let later = demand.price(Instant::from_millis(6000), 1, 1.0, Tenant::NOBODY);
        assert_eq!(later, density_at(DEAR), "that was long ago");
    }

    #[test]
    fn what_others_told_is_forgotten_as_soon_however_dear_it_was() {
        let at = Instant::from_millis;
        let dear = density_at(DEAR);
        for price in [1.0, 1000.0, dear] {
            assert!((faded(price, at(0), at(500)) - price * (-2.0f64).exp()).abs() < 1e-9 * price);
        }
        for much in [2.0, 1e3, 1e6] {
            let told = |ms| faded(much * dear, at(0), at(ms));
            assert_eq!(told(0), much * dear);
            assert!((told(125) / dear - much.sqrt() * (-0.5f64).exp()).abs() < 1e-6 * much, "half of the way");
            assert!(
                (told(1000) / dear - (-4.0f64).exp()).abs() < 1e-9,
                "by then it says that there was no time, and no more"
            );
        }
    }

    #[test]
    fn tenants_that_ask_no_more_are_forgotten() {
        let mut demand = Demand::new();
        for id in 0..1000 {
            demand.weighed(Instant::from_millis(1000 * id), us(100), 1.0, Tenant { id, share: 0.5 });
        }
        assert!(demand.tenants.len() < 20, "{}", demand.tenants.len());
    }

    #[test]
    fn a_device_with_room_is_cheap_whatever_was_asked_unless_it_has_just_begun() {
        let (mut demand, now) = asked(0, 1800);
        let full = demand.price(now, 1, 1.0, Tenant::NOBODY);
        assert_eq!(demand.price(now, 1, 0.2, Tenant::NOBODY), 0.0);
        assert!((demand.price(now, 1, 0.5, Tenant::NOBODY) - full / 2.0).abs() < 1e-6);
        let later = |ms: u64| Instant::from_nanos(now.as_nanos() + ms * 1_000_000);
        demand.was_busy(now, 0.0);
        demand.was_busy(later(80), 1.0);
        let between_batches = demand.price(later(80), 1, 0.0, Tenant::NOBODY);
        assert!(between_batches > 0.2 * full, "{between_batches} of {full}");
        demand.was_busy(later(160), 0.0);
        assert_eq!(demand.price(later(160), 1, 0.0, Tenant::NOBODY), 0.0);
    }

    #[test]
    fn what_is_left_over_is_known_over_many_batches() {
        let mut demand = Demand::new();
        let at = Instant::from_millis;
        assert_eq!(demand.spare(at(0), 1.0), 1.0);
        for ms in (0..2000).step_by(20) {
            demand.was_busy(at(ms + 15), 1.0);
            demand.was_busy(at(ms + 20), 0.0);
        }
        let spare = demand.spare(at(2000), 1.0);
        assert!((0.2..0.3).contains(&spare), "five of twenty milliseconds: {spare}");
        assert!(demand.spare(at(2050), 1.0) > 0.15, "a burst is no load");
        assert!(demand.spare(at(3500), 1.0) < 0.01, "a second and a half without a gap is");
    }

    #[test]
    fn what_was_asked_is_forgotten() {
        let (mut demand, now) = asked(0, 1800);
        let later = Instant::from_millis(now.as_nanos() / 1_000_000 + 500);
        assert_eq!(demand.price(later, 1, 1.0, Tenant::NOBODY), 0.0);
        demand.weighed(later, us(1), f64::NAN, Tenant::NOBODY);
        demand.weighed(later, us(1), -1.0, Tenant::NOBODY);
        demand.weighed(later, us(0), f64::INFINITY, Tenant::NOBODY);
        assert_eq!(demand.price(later, 1, 1.0, Tenant::NOBODY), 0.0);
    }
}
