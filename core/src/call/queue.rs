//! Calls of a client that wait until their connection carries fewer: which of them would wait in vain.
//!
//! A node reads so many calls of a connection at once; what is beyond waits at the client, first come, first sent. Where more comes than
//! the node does, each would wait until hardly any time is left, be sent, and be late: all of them, though the node does as much as
//! it can. So a call that would be late behind those that wait is refused at once, on the word of how fast they went of late
//! (`decisions.md` 13); those that are sent have time. Whoever finds nobody waiting always goes, so that it is noticed when a node is
//! faster again.
//!
//! A burst may fill the queue. One that has stood for as long as a call has time is no burst: nothing is gained by its length, and all that
//! is sent comes to the node with little time left, where one that cannot be done any more costs as much as one that can. Then it is kept
//! short (as routers do: Nichols and Jacobson, "Controlling Queue Delay", 2012).

use std::time::Duration;

use crate::units::Instant;

/// How much longer a wait may be than it looks: a queue that is filled to the last instant makes all late where those that wait go somewhat
/// slower than they went.
const LONGER: f64 = 1.5;
/// Likewise where some have waited for longer than a call has time.
const LONGER_STANDING: f64 = 4.0;
/// Weight of the newest in moving averages.
const NEWEST: f64 = 0.1;

/// What waits for one connection.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    waiting: u32,
    /// Since when some have waited without a pause.
    stands: Option<Instant>,
    /// Between one that could go and the next, while some waited, in seconds.
    every: f64,
    /// Since when the next has been waiting to go.
    since: Option<Instant>,
    /// From being sent to the answer, in seconds.
    takes: f64,
}

impl Queue {
    /// Whether a call with so much time left would be answered in it behind those that wait.
    pub fn fits(&self, now: Instant, left: Duration) -> bool {
        let Some(stands) = self.stands else { return true };
        let longer = if now.since(stands) < left { LONGER } else { LONGER_STANDING };
        longer * f64::from(self.waiting + 1) * self.every + self.takes <= left.as_secs_f64()
    }

    /// A call waits from now on.
    pub fn comes(&mut self, now: Instant) {
        self.waiting += 1;
        self.since.get_or_insert(now);
        self.stands.get_or_insert(now);
    }

    /// One that waited is sent.
    pub fn goes(&mut self, now: Instant) {
        if let Some(since) = self.since {
            self.every += NEWEST * (now.since(since).as_secs_f64() - self.every);
        }
        self.since = Some(now);
        self.gives_up();
    }

    /// One that waited does not wait any more.
    pub fn gives_up(&mut self) {
        self.waiting -= 1;
        if self.waiting == 0 {
            (self.since, self.stands) = (None, None);
        }
    }

    /// One that was sent was answered after so long.
    pub fn answered(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.takes = if self.takes == 0.0 { took } else { self.takes + NEWEST * (took - self.takes) };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const DEADLINE: u64 = 50_000;

    /// Calls that come every `every` microseconds to a node that takes 4 at once and is done with one each millisecond (where `pace` says
    /// so, each `pace(now)`), for a second: how many are answered in time, late, and refused.
    fn second(every: u64, refuses: bool, pace: impl Fn(u64) -> u64) -> (u32, u32, u32) {
        let at = |us: u64| Instant::from_micros(us);
        let (mut queue, mut waiting, mut running) = (Queue::default(), VecDeque::new(), VecDeque::new());
        let (mut in_time, mut late, mut refused, mut done) = (0, 0, 0, pace(0));
        for now in (0..1_000_000).step_by(10) {
            if now % every == 0 {
                if running.len() < 4 {
                    running.push_back((now, now));
                } else if !refuses || queue.fits(at(now), Duration::from_micros(DEADLINE)) {
                    queue.comes(at(now));
                    waiting.push_back(now);
                } else {
                    refused += 1;
                }
            }
            if now >= done {
                done = now + pace(now);
                if let Some((came, sent)) = running.pop_front() {
                    queue.answered(Duration::from_micros(now - sent));
                    if now - came <= DEADLINE { in_time += 1 } else { late += 1 }
                }
                while waiting.front().is_some_and(|came| now - came >= DEADLINE) {
                    waiting.pop_front();
                    queue.gives_up();
                    late += 1;
                }
                if running.len() < 4
                    && let Some(came) = waiting.pop_front()
                {
                    queue.goes(at(now));
                    running.push_back((came, now));
                }
            }
        }
        (in_time, late, refused)
    }

    #[test]
    fn what_is_sent_is_in_time_however_much_comes() {
        for every in [500, 300, 100] {
            let ((bare, ..), (in_time, late, refused)) =
                (second(every, false, |_| 1000), second(every, true, |_| 1000));
            assert!(bare < 120, "all but the first wait until it is too late: {bare}");
            assert!(in_time > 900 && late < 60 && refused > 0, "{every}: {in_time} in time, {late} late, {refused}");
        }
    }

    #[test]
    fn nor_where_the_node_is_slower_at_times() {
        // In ten milliseconds of each fifty every call takes it two and a half times as long.
        let pace = |now: u64| if now / 10_000 % 5 == 1 { 2500 } else { 1000 };
        let (in_time, late, _) = second(300, true, pace);
        assert!(in_time > 750 && late < 60, "of 840 that it does: {in_time} in time, {late} late");
    }

    #[test]
    fn nothing_is_refused_where_there_is_room() {
        assert_eq!(second(1100, true, |_| 1000).2, 0);
        // A burst that fits behind what waits.
        let mut queue = Queue::default();
        queue.answered(Duration::from_millis(4));
        for i in 0..40 {
            assert!(queue.fits(Instant::from_millis(1), Duration::from_millis(50)), "{i}");
            queue.comes(Instant::from_millis(0));
        }
    }

    #[test]
    fn a_burst_may_fill_the_queue_and_what_stands_is_kept_short() {
        let (mut queue, left) = (Queue::default(), Duration::from_millis(DEADLINE / 1000));
        let fill = |queue: &mut Queue, now: u64| {
            let mut more = 0;
            while queue.fits(Instant::from_millis(now), left) && more < 1000 {
                queue.comes(Instant::from_millis(now));
                more += 1;
            }
        };
        // One goes each millisecond, and there is always another.
        queue.comes(Instant::from_millis(0));
        for now in 0..30 {
            queue.comes(Instant::from_millis(now));
            queue.goes(Instant::from_millis(now));
        }
        fill(&mut queue, 30);
        assert!((30..36).contains(&queue.waiting), "two thirds of the time: {}", queue.waiting);
        for now in 31..200 {
            queue.goes(Instant::from_millis(now));
            if now >= 50 {
                fill(&mut queue, now);
            }
        }
        assert!((9..14).contains(&queue.waiting), "a quarter: {}", queue.waiting);
        while queue.waiting > 0 {
            queue.goes(Instant::from_millis(200));
        }
        fill(&mut queue, 201);
        assert!(queue.waiting > 30, "the next burst: {}", queue.waiting);
    }

    #[test]
    fn a_node_that_is_faster_again_is_noticed() {
        // It stands still for 200 ms, then does one each millisecond.
        let pace = |now: u64| if now < 200_000 { 200_000 } else { 1000 };
        let (in_time, _, _) = second(500, true, pace);
        assert!(in_time > 650, "of 800 that it could do: {in_time}");
    }
}
