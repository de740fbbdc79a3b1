//! The last so many of something.

/// Keeps the last `kept` items that were pushed; grows to that and no further.
#[derive(Clone, Debug)]
pub struct Ring<T> {
    items: Vec<T>,
    kept: usize,
    /// Where the oldest stands once it is full.
    oldest: usize,
}

impl<T> Ring<T> {
    /// An empty one. At least one item is kept.
    pub fn new(kept: usize) -> Ring<T> {
        Ring { items: Vec::new(), kept: kept.max(1), oldest: 0 }
    }

    /// Adds an item, in the place of the oldest where there is no other.
    pub fn push(&mut self, item: T) {
        if self.items.len() < self.kept {
            self.items.push(item);
            return;
        }
        self.items[self.oldest] = item;
        self.oldest = (self.oldest + 1) % self.kept;
    }

    /// Whether the next item takes the place of another.
    pub fn is_full(&self) -> bool {
        self.items.len() == self.kept
    }

    /// In no order that matters.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut()
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let (newer, older) = self.items.split_at(self.oldest);
        older.iter().chain(newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_stay_in_order() {
        let mut ring = Ring::new(3);
        let all = |ring: &Ring<u32>| ring.iter().copied().collect::<Vec<_>>();
        assert_eq!(all(&ring), []);
        for (pushed, expected) in
            [(1, vec![1]), (2, vec![1, 2]), (3, vec![1, 2, 3]), (4, vec![2, 3, 4]), (5, vec![3, 4, 5])]
        {
            ring.push(pushed);
            assert_eq!(all(&ring), expected);
            assert_eq!(ring.is_full(), pushed >= 3);
        }
        (6..=100).for_each(|item| ring.push(item));
        assert_eq!(all(&ring), [98, 99, 100]);
    }
}
