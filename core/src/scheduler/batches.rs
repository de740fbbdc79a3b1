//! A count of batches, by why they closed.

use super::Closed;

/// Batches of one replica or device, by why they closed, and their rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batches {
    closed: [u64; Closed::ALL.len()],
    rows: u64,
    sizes: [u64; SIZES],
}

/// Sizes told apart: up to 1, 2, 4, … rows, and more than all of those.
const SIZES: usize = 12;

impl Batches {
    /// Counts as they travel: by reason in the order of [`Closed::ALL`], and the rows. Reasons that are missing have none.
    pub fn of(closed: impl IntoIterator<Item = u64>, rows: u64) -> Batches {
        let mut batches = Batches { rows, ..Batches::default() };
        batches.closed.iter_mut().zip(closed).for_each(|(count, told)| *count = told);
        batches
    }

    /// A batch of `rows` rows closed.
    pub fn add(&mut self, closed: Closed, rows: usize) {
        let reason = Closed::ALL.iter().position(|known| *known == closed).expect("all reasons are listed");
        self.closed[reason] += 1;
        self.rows += rows as u64;
        let power = rows.max(1).next_power_of_two().trailing_zeros() as usize;
        self.sizes[power.min(SIZES - 1)] += 1;
    }

    /// By size, of those that were counted here and not told by others: up to how many rows (without a bound for the last), and how
    /// many there were.
    pub fn by_size(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        let bound = |power: usize| (power + 1 < SIZES).then(|| 1 << power);
        self.sizes.iter().enumerate().map(move |(power, count)| (bound(power), *count))
    }

    /// Those of another too.
    pub fn merge(&mut self, other: &Batches) {
        self.closed.iter_mut().zip(other.closed).for_each(|(mine, more)| *mine += more);
        self.rows += other.rows;
        self.sizes.iter_mut().zip(other.sizes).for_each(|(mine, more)| *mine += more);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.closed.iter().sum()
    }

    /// Rows of all of them.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// By reason.
    pub fn by_reason(&self) -> impl Iterator<Item = (Closed, u64)> + '_ {
        Closed::ALL.into_iter().zip(self.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_counted_by_itself_and_travels() {
        let mut batches = Batches::default();
        for (i, reason) in Closed::ALL.into_iter().enumerate() {
            (0..=i).for_each(|_| batches.add(reason, 3));
        }
        assert_eq!(batches.by_reason().map(|(_, count)| count).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!((batches.count(), batches.rows()), (15, 45));
        let travelled = Batches::of(batches.by_reason().map(|(_, count)| count), 45);
        assert_eq!(travelled, Batches { sizes: [0; SIZES], ..batches }, "all but the sizes");
        batches.merge(&Batches::of([1, 0, 2], 5));
        assert_eq!(batches.by_reason().map(|(_, count)| count).collect::<Vec<_>>(), [2, 2, 5, 4, 5]);
        assert_eq!(batches.rows(), 50);
        assert_eq!(Batches::of([7], 9).by_reason().next(), Some((Closed::Full, 7)));
    }

    #[test]
    fn a_size_is_counted_below_the_power_of_two_that_it_fits() {
        let mut batches = Batches::default();
        [1, 2, 3, 4, 5, 1024, 1025, 5000].into_iter().for_each(|rows| batches.add(Closed::Idle, rows));
        let counted: Vec<(Option<u64>, u64)> = batches.by_size().filter(|(_, count)| *count > 0).collect();
        let wanted = [(Some(1), 1), (Some(2), 1), (Some(4), 2), (Some(8), 1), (Some(1024), 1), (None, 2)];
        assert_eq!(counted, wanted);
    }
}
