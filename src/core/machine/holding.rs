//! The claims of this node that hold a name: their numbers, and how many of each kind run.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::Kind;

#[derive(Clone, Debug, Default)]
pub(super) struct Holding {
    /// With their kinds, and whether they run, or are about to.
    by_number: BTreeMap<u64, (Kind, bool)>,
    running: usize,
    of_kind: BTreeMap<Kind, usize>,
    /// Transferred and not known to be taken, or ended and not known to others: not held, nor released.
    decided: BTreeSet<u64>,
}

impl Holding {
    /// What is only kept takes no room from what runs.
    pub(super) fn insert(&mut self, number: u64, kind: &Kind, runs: bool) {
        let before = self.by_number.insert(number, (kind.clone(), runs));
        let ran = before.is_some_and(|(_, ran)| ran);
        if runs && !ran {
            self.running += 1;
            *self.of_kind.entry(kind.clone()).or_default() += 1;
        } else if ran && !runs {
            self.ends(kind);
        }
    }

    fn ends(&mut self, kind: &Kind) {
        self.running -= 1;
        if let Some(count) = self.of_kind.get_mut(kind) {
            *count -= 1;
        }
    }

    /// Another session is to have the name. Until it knows, this claim does not count as released: what a
    /// header says of it would overtake the decision.
    pub(super) fn decide(&mut self, number: u64) {
        self.remove(number);
        self.decided.insert(number);
    }

    /// The run has ended and nobody else has its end: until somebody does, the claim does not count as released
    /// either, or what has been done would be done again.
    pub(super) fn end(&mut self, number: u64) {
        if self.remove(number) {
            self.decided.insert(number);
        }
    }

    /// Whether the claim held its name until now.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        let decided = self.decided.remove(&number);
        let Some((kind, runs)) = self.by_number.remove(&number) else {
            return decided;
        };
        if runs {
            self.ends(&kind);
        }
        true
    }

    /// The lowest number: all claims below it have stopped.
    pub(super) fn first(&self) -> Option<u64> {
        let held = self.by_number.keys().next();
        held.into_iter().chain(self.decided.first()).min().copied()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// How many run, or are about to.
    pub(super) const fn running(&self) -> usize {
        self.running
    }

    pub(super) fn of(&self, kind: &Kind) -> usize {
        self.of_kind.get(kind).copied().unwrap_or_default()
    }
}
