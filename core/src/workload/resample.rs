//! Another draw of what was recorded once: the circular block bootstrap (Politis and Romano, 1992).

use std::time::Duration;

use crate::prng::Prng;
use crate::units::Instant;

/// Instants of a recording of this length put together anew: pieces of it, each from a random place on, one after the other; what goes beyond
/// its end goes on at its beginning. With each comes the index of the one that it was. Within a piece everything is as it was, so that
/// bursts, and what queues remember of them, stay where pieces are much longer than they; how many bursts there are, and how large the
/// largest is, becomes chance, as it would be on another day.
pub fn resampled(instants: &[Instant], length: Duration, piece: Duration, mut prng: Prng) -> Vec<(Instant, usize)> {
    let (length, piece) = (length.as_nanos() as u64, piece.as_nanos().max(1) as u64);
    let mut drawn = Vec::with_capacity(instants.len());
    let mut filled = 0;
    while filled < length {
        let from = prng.below(length);
        let wanted = piece.min(length - filled);
        // Up to the end of the recording, and what is left from its beginning on.
        for (from, to, ahead) in
            [(from, (from + wanted).min(length), 0), (0, (from + wanted).saturating_sub(length), length - from)]
        {
            let index = |at: u64| instants.partition_point(|instant| instant.as_nanos() < at);
            let again = |i: usize| (Instant::from_nanos(filled + ahead + instants[i].as_nanos() - from), i);
            drawn.extend((index(from)..index(to)).map(again));
        }
        filled += wanted;
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bursts() -> Vec<Instant> {
        // 20 in the first tenth of a second of every second, 100 in the first of all.
        let burst = |second: u64| {
            let count = if second == 0 { 100 } else { 20 };
            (0..count).map(move |i| Instant::from_nanos(second * 1_000_000_000 + i * (100_000_000 / count)))
        };
        (0..60).flat_map(burst).collect()
    }

    fn drawn(seed: u64) -> Vec<(Instant, usize)> {
        resampled(&bursts(), Duration::from_secs(60), Duration::from_secs(5), Prng::new(seed))
    }

    #[test]
    fn pieces_are_as_they_were_and_as_many_come_on_average() {
        let all = bursts();
        let mut count = 0;
        for seed in 0..200 {
            let drawn = drawn(seed);
            assert!(
                drawn.is_sorted_by_key(|(at, _)| *at) && drawn.last().unwrap().0 < Instant::from_nanos(60_000_000_000)
            );
            count += drawn.len();
            // Twelve pieces, so that at most twelve times (and where the end meets the beginning) something follows another than it did.
            let follows = |pair: &[(Instant, usize)]| {
                let gap = all[(pair[0].1 + 1) % all.len()].as_nanos().wrapping_sub(all[pair[0].1].as_nanos());
                pair[1].1 == pair[0].1 + 1 && pair[1].0.since(pair[0].0).as_nanos() as u64 == gap
            };
            let broken = drawn.windows(2).filter(|pair| !follows(pair)).count();
            assert!(broken <= 24, "{broken}");
        }
        let mean = count as f64 / 200.0;
        assert!((mean / all.len() as f64 - 1.0).abs() < 0.02, "{mean} of {}", all.len());
    }

    #[test]
    fn how_often_the_largest_burst_comes_is_chance() {
        let times = |seed| drawn(seed).iter().filter(|(_, i)| *i == 50).count();
        let times: Vec<usize> = (0..200).map(times).collect();
        assert!(times.contains(&0) && times.iter().any(|times| *times > 1));
        assert!((150..250).contains(&times.iter().sum::<usize>()), "once a draw");
        assert_eq!(drawn(3), drawn(3));
    }

    #[test]
    fn a_piece_as_long_as_all_begins_somewhere_and_leaves_nothing_out() {
        let (all, length) = (bursts(), Duration::from_secs(60));
        let drawn = resampled(&all, length, length, Prng::new(1));
        let mut seen: Vec<usize> = drawn.iter().map(|(_, i)| *i).collect();
        assert_ne!(seen[0], 0);
        seen.sort_unstable();
        assert_eq!(seen, (0..all.len()).collect::<Vec<_>>());
        assert_eq!(resampled(&[], length, length, Prng::new(1)), []);
    }
}
