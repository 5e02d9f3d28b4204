//! Who could reach whom, and when not.

use std::collections::{BTreeMap, BTreeSet};

use crate::fabric::Nanos;

/// A time in which two hosts could not reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) cut: Nanos,
    /// None if it still was at the end.
    pub(crate) healed: Option<Nanos>,
    /// After that they could only through others.
    pub(crate) relayed: bool,
}

/// A time in which what one host sent arrived at another one, if need be through others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) from: Nanos,
    pub(crate) until: Nanos,
    /// At times only through others.
    pub(crate) relayed: bool,
}

/// What could be reached, from each change on.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    at: Nanos,
    /// Who hears whom in both directions, if need be through others, is in one component. Hosts that are down are
    /// in none.
    component: BTreeMap<String, usize>,
    /// Directions in which nothing passes.
    cuts: BTreeSet<(String, String)>,
}

impl Change {
    fn passes(&self, one: &str, other: &str) -> bool {
        let cut = |from: &str, to: &str| self.cuts.contains(&(from.to_owned(), to.to_owned()));
        !cut(one, other) && !cut(other, one)
    }

    /// Whether what `from` sends arrives at `to`, and whether it does without others.
    fn carries(&self, from: &str, to: &str) -> Option<bool> {
        let direct = |from: &str, to: &str| !self.cuts.contains(&(from.to_owned(), to.to_owned()));
        let mut next = vec![self.component.get_key_value(from)?.0.as_str()];
        let mut seen = BTreeSet::from([from]);
        while let Some(host) = next.pop() {
            if host == to {
                return Some(direct(from, to));
            }
            let ups = self.component.keys().map(String::as_str);
            next.extend(ups.filter(|up| direct(host, up) && seen.insert(*up)));
        }
        None
    }

    fn apart(&self, one: &str, other: &str) -> bool {
        let components = self.component.get(one).zip(self.component.get(other));
        components.is_some_and(|(one, other)| one != other)
    }
}

impl Reach {
    /// From now on these hosts are up, and nothing passes in these directions.
    pub(crate) fn note(&mut self, at: Nanos, up: &[String], cuts: BTreeSet<(String, String)>) {
        let mut change = Change { at, component: BTreeMap::new(), cuts };
        for (number, first) in up.iter().enumerate() {
            let mut next = vec![first];
            while let Some(host) = next.pop() {
                if change.component.contains_key(host) {
                    continue;
                }
                change.component.insert(host.clone(), number);
                next.extend(up.iter().filter(|to| change.passes(host, to)));
            }
        }
        self.changes.push(change);
    }

    /// Whether all could ever reach all.
    pub(crate) fn is_whole(&self) -> bool {
        self.changes.iter().all(|change| change.component.values().all(|number| *number == 0))
    }

    /// When what `from` sent arrived at `to`, as far as `end`.
    pub(crate) fn heard(&self, from: &str, to: &str, end: Nanos) -> Vec<Heard> {
        let mut heard: Vec<Heard> = Vec::new();
        let mut is_heard = false;
        for (index, change) in self.changes.iter().enumerate().take_while(|(_, c)| c.at < end) {
            let until = self.changes.get(index + 1).map_or(end, |next| next.at.min(end));
            let direct = change.carries(from, to);
            match (direct, heard.last_mut().filter(|_| is_heard)) {
                (Some(direct), Some(last)) => {
                    last.until = until;
                    last.relayed |= !direct;
                }
                (Some(direct), None) => {
                    heard.push(Heard { from: change.at, until, relayed: !direct });
                }
                (None, _) => {}
            }
            is_heard = direct.is_some();
        }
        heard
    }

    /// Whether something that this host sent was stopped on its way between these times.
    pub(crate) fn obstructed(&self, host: &str, start: Nanos, end: Nanos) -> bool {
        let nexts = self.changes.iter().skip(1).map(|next| next.at).chain([Nanos::MAX]);
        let during = self.changes.iter().zip(nexts).filter(|(c, next)| c.at < end && start < *next);
        let mut cuts = during.flat_map(|(change, _)| &change.cuts);
        cuts.any(|(from, _)| from == host)
    }

    /// When two hosts that were up could not reach each other.
    pub(crate) fn windows(&self, one: &str, other: &str) -> Vec<Window> {
        let mut windows: Vec<Window> = Vec::new();
        for change in &self.changes {
            let apart = change.apart(one, other);
            match windows.last_mut().filter(|window| window.healed.is_none()) {
                Some(window) if !apart => {
                    window.healed = Some(change.at);
                    window.relayed = !change.passes(one, other);
                }
                None if apart => {
                    windows.push(Window { cut: change.at, healed: None, relayed: false });
                }
                _ => {}
            }
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(pairs: &[(&str, &str)]) -> BTreeSet<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn who_hears_each_other_through_a_third_is_not_apart() {
        let all = ["a", "b", "c"].map(str::to_owned);
        let mut reach = Reach::default();
        reach.note(0, &all, cuts(&[]));
        reach.note(1, &all, cuts(&[("a", "b"), ("b", "a")]));
        assert!(reach.is_whole());
        // Who carried it is gone.
        reach.note(2, &all[..2], cuts(&[("a", "b"), ("b", "a")]));
        reach.note(3, &all, cuts(&[("a", "b"), ("a", "c")]));
        reach.note(4, &all, cuts(&[]));
        reach.note(5, &all[..2], cuts(&[("a", "b")]));
        reach.note(6, &all, cuts(&[("a", "b")]));
        assert!(!reach.is_whole());
        let direct = Window { cut: 2, healed: Some(4), relayed: false };
        let relayed = Window { cut: 5, healed: Some(6), relayed: true };
        assert_eq!(reach.windows("a", "b"), [direct, relayed]);
        assert_eq!(reach.windows("c", "a"), [Window { cut: 3, healed: Some(4), relayed: false }]);
        assert_eq!(reach.windows("b", "c"), []);
    }

    #[test]
    fn what_one_sends_is_heard_through_others_in_its_direction() {
        let all = ["a", "b", "c"].map(str::to_owned);
        let mut reach = Reach::default();
        reach.note(0, &all, cuts(&[("b", "a"), ("c", "a")]));
        reach.note(2, &all, cuts(&[("b", "a"), ("c", "a"), ("a", "b")]));
        reach.note(4, &all[..2], cuts(&[("b", "a"), ("a", "b")]));
        reach.note(6, &all, cuts(&[("b", "a")]));
        let first = Heard { from: 0, until: 4, relayed: true };
        assert_eq!(reach.heard("a", "b", 6), [first]);
        assert_eq!(reach.heard("a", "b", 9), [first, Heard { from: 6, until: 9, relayed: false }]);
        assert_eq!(reach.heard("b", "a", 6), [], "they hear it, and it hears nobody");
        assert_eq!(reach.heard("b", "a", 9), [Heard { from: 6, until: 9, relayed: true }]);
        assert!(reach.obstructed("a", 3, 5) && reach.obstructed("b", 7, 8));
        assert!(!reach.obstructed("a", 0, 2) && !reach.obstructed("a", 6, 8));
    }
}
