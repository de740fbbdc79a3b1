//! How long a call is on its way, there and back: an answer that is ready at the deadline is late by that.

use std::time::Duration;

/// Share of a new sample in the mean, and in the mean deviation, as TCP takes them for its round trips (RFC 6298).
const MEAN_SHARE: f64 = 1.0 / 8.0;
const DEVIATION_SHARE: f64 = 1.0 / 4.0;
/// Deviations above the mean that are allowed for.
const DEVIATIONS: f64 = 4.0;
/// Most of the time of a call that is kept back: after a stall the way looks long for a while, and a short deadline must not
/// be refused for that alone.
const SHARE_MAX: u32 = 4;

/// A running estimate of the time that calls spend outside their node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    /// In seconds: mean and mean deviation; nothing before the first call.
    seen: Option<(f64, f64)>,
}

impl Way {
    /// A call took `took` for its caller, `inside` of it at its node.
    pub fn observe(&mut self, took: Duration, inside: Duration) {
        let sample = took.saturating_sub(inside).as_secs_f64();
        self.seen = Some(match self.seen {
            None => (sample, sample / 2.0),
            Some((mean, deviation)) => {
                (mean + MEAN_SHARE * (sample - mean), deviation + DEVIATION_SHARE * ((sample - mean).abs() - deviation))
            }
        });
    }

    /// The time that a node has for a call of which `left` is left.
    pub fn at_node(&self, left: Duration) -> Duration {
        let (mean, deviation) = self.seen.unwrap_or_default();
        let way = Duration::from_secs_f64(mean + DEVIATIONS * deviation);
        left - way.min(left / SHARE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn a_steady_way_is_kept_back_and_no_more() {
        let mut way = Way::default();
        assert_eq!(way.at_node(us(50_000)), us(50_000), "nothing is known yet");
        for _ in 0..100 {
            way.observe(us(1_200), us(1_000));
        }
        let kept = us(50_000) - way.at_node(us(50_000));
        assert!(kept >= us(199) && kept <= us(201), "{kept:?}");
    }

    #[test]
    fn a_stall_takes_a_quarter_at_most_and_is_forgotten() {
        let mut way = Way::default();
        way.observe(us(200), us(0));
        way.observe(us(3_000_000), us(100));
        assert_eq!(way.at_node(us(10_000)), us(7_500));
        for _ in 0..100 {
            way.observe(us(1_200), us(1_000));
        }
        assert!(way.at_node(us(10_000)) > us(9_700));
        // A node whose clock runs faster says more than the call took.
        way.observe(us(100), us(200));
    }
}
