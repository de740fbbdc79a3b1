//! Chance for ids and secrets. Decisions draw from a seeded `weir_core::prng::Prng` instead.

use std::cell::RefCell;

/// A source of random bytes.
pub trait Random: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);

    /// 64 random bits.
    fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// 128 random bits.
    fn u128(&self) -> u128 {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        u128::from_le_bytes(bytes)
    }
}

/// The operating system's generator. For numbers, one of which each query takes, a thread asks it for many at once.
pub struct OsRandom;

/// Bytes that a thread has in stock.
const STOCK: usize = 512;

thread_local! {
    static IN_STOCK: RefCell<Stock> = const { RefCell::new(Stock { bytes: [0; STOCK], used: STOCK }) };
}

struct Stock {
    bytes: [u8; STOCK],
    used: usize,
}

impl Stock {
    /// The next ones, which nobody gets again.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.used + N > STOCK {
            OsRandom.fill(&mut self.bytes);
            self.used = 0;
        }
        let (taken, mut bytes) = (&mut self.bytes[self.used..self.used + N], [0; N]);
        bytes.swap_with_slice(taken);
        self.used += N;
        bytes
    }
}

impl Random for OsRandom {
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system gives random bytes");
    }

    fn u64(&self) -> u64 {
        u64::from_le_bytes(IN_STOCK.with_borrow_mut(Stock::take))
    }

    fn u128(&self) -> u128 {
        u128::from_le_bytes(IN_STOCK.with_borrow_mut(Stock::take))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_number_comes_twice_on_any_thread() {
        let draw = || (0..1000).flat_map(|_| [OsRandom.u128(), u128::from(OsRandom.u64())]).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(draw)).collect();
        let all: BTreeSet<u128> = threads.into_iter().flat_map(|thread| thread.join().expect("drawn")).collect();
        assert_eq!(all.len(), 8000);
        assert!(all.iter().filter(|number| **number > u128::from(u64::MAX)).count() >= 3999, "16 bytes, not 8");
    }
}
