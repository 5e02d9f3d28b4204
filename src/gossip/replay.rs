//! A sliding window over a session's counters: each is taken at most once.

const WORDS: u64 = 16;
/// How far a datagram may be overtaken and still be taken.
const WIDTH: u64 = WORDS * 64;

/// The counters of one session that have been taken. Counters start at 1.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    highest: u64,
    /// Bit `counter % WIDTH`, for the counters in `(highest - WIDTH, highest]`.
    taken: [u64; WORDS as usize],
}

impl Window {
    /// The highest counter taken, 0 for none.
    pub(super) const fn highest(&self) -> u64 {
        self.highest
    }

    /// Whether `counter` is new; it is taken from now on.
    pub(super) fn take(&mut self, counter: u64) -> bool {
        if counter == 0 || self.highest.saturating_sub(counter) >= WIDTH {
            return false;
        }
        if counter > self.highest {
            if counter - self.highest >= WIDTH {
                self.taken = [0; WORDS as usize];
            } else {
                for skipped in self.highest + 1..=counter {
                    let (word, bit) = Self::place(skipped);
                    if let Some(word) = self.taken.get_mut(word) {
                        *word &= !bit;
                    }
                }
            }
            self.highest = counter;
        }
        let (word, bit) = Self::place(counter);
        match self.taken.get_mut(word) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }

    const fn place(counter: u64) -> (usize, u64) {
        ((counter / 64 % WORDS) as usize, 1 << (counter % 64))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_replay_is_dropped() {
        let mut window = Window::default();
        assert!(window.take(1));
        assert!(!window.take(1));
        assert!(window.take(2));
        assert!(!window.take(1));
        assert!(!window.take(2));
    }

    #[test]
    fn reordering_within_the_window_is_accepted_and_beyond_it_dropped() {
        let mut window = Window::default();
        assert!(window.take(5000));
        assert!(window.take(5000 - WIDTH + 1));
        assert!(!window.take(5000 - WIDTH));
        assert!(window.take(4999));
        assert!(!window.take(4999));
    }

    #[test]
    fn counter_zero_and_the_highest_number_are_handled() {
        let mut window = Window::default();
        assert!(!window.take(0));
        assert!(window.take(u64::MAX));
        assert!(!window.take(u64::MAX));
        assert!(window.take(u64::MAX - 1));
        assert!(!window.take(7));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(counters in proptest::collection::vec(1u64..5000, 0..400)) {
            let mut window = Window::default();
            let mut model = BTreeSet::new();
            let mut highest = 0;
            for counter in counters {
                let fresh = counter + WIDTH > highest && !model.contains(&counter);
                prop_assert_eq!(window.take(counter), fresh);
                if fresh {
                    model.insert(counter);
                    highest = highest.max(counter);
                }
            }
        }
    }
}
