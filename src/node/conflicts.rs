//! Conflicts, told once to everybody: the node that lost one tells all others until they have heard of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::control::Control;
use super::event::NodeEvent;
use super::metrics;
use super::queries::Asker;
use super::wire::{Query, Wire};
use crate::core::ids::{Name, SessionId};
use crate::core::time::Time;
use crate::registry::TaskEvent;

/// A conflict that was lost here is told again to who has not confirmed it, after this long.
const AGAIN: Duration = Duration::from_secs(1);
/// Who is away for longer does not hear of it any more.
const FORGET: Duration = Duration::from_secs(60);
/// Bound on what is remembered; beyond it, the oldest is told no more.
const MAX: usize = 65_536;
/// The same for those who tell; one that is not remembered may be heard twice.
const MAX_TELLERS: usize = 1_024;

impl Control {
    /// Two nodes held a task, and the claim of one has ended the other. For how long both ran is known once this
    /// one has stopped; where nothing ran, it is now.
    pub(super) fn on_conflict(&mut self, name: Name, kept: SessionId, stopped: SessionId) {
        tracing::warn!(target: "handover::conflict", %name, %kept, %stopped, "two nodes held the task");
        if stopped == self.me && !self.tally.losing(self.clock.boot(), &name, &kept) {
            self.tell_conflict(name, kept, Duration::ZERO);
        }
    }

    /// Asks the nodes for whose copies some have stopped here since when they have been running.
    pub(super) fn measure_overlaps(&mut self, now: Time) {
        for (name, kept) in self.tally.ask_now(now) {
            let asker = Asker::Overlap { name: name.clone(), asked: now };
            self.ask_of(&kept, Query::Yielded { name }, asker);
        }
    }

    /// This node's copy has stopped, and it is known, or will never be, since when the other has been running.
    pub(super) fn on_overlap(&mut self, name: Name, theirs: Option<(Time, Duration)>) {
        if let Some((kept, overlap)) = self.tally.overlapped(&name, theirs) {
            tracing::warn!(target: "handover::conflict", %name, %kept, ?overlap, "ran twice for so long");
            self.tell_conflict(name, kept, overlap);
        }
    }

    fn tell_conflict(&mut self, name: Name, kept: SessionId, overlap: Duration) {
        let conflict = Conflict { name, kept, overlap };
        let now = self.clock.boot();
        self.conflicts.lost(now, conflict.clone(), self.peers.not_left().cloned());
        self.tell_conflicts(now);
        self.show_conflict(conflict, self.me.clone());
    }

    /// Tells the others of what was lost here, as far as there are links to them.
    pub(super) fn tell_conflicts(&mut self, now: Time) {
        let oldest = self.conflicts.oldest();
        for (to, number, conflict) in self.conflicts.due(now, |peer| self.peers.is_linked(peer)) {
            let Conflict { name, kept, overlap } = conflict;
            self.send(&to, &Wire::Conflict { number, oldest, name, kept, overlap });
        }
    }

    /// Another node has lost a conflict.
    pub(super) fn on_told_conflict(
        &mut self,
        from: SessionId,
        (number, oldest): (u64, u64),
        conflict: Conflict,
    ) {
        if self.conflicts.heard(&from, number, oldest) {
            self.show_conflict(conflict, from.clone());
        }
        self.send(&from, &Wire::ConflictHeard { number });
    }

    /// Shows it to users here; those whose copy it was hear it from the node as well.
    fn show_conflict(&mut self, conflict: Conflict, stopped: SessionId) {
        let Conflict { name, kept, overlap } = conflict;
        let event = TaskEvent::Conflict {
            name: name.clone(),
            kept: kept.node.clone(),
            stopped: stopped.node.clone(),
            overlap,
        };
        let ours = kept == self.me || stopped == self.me;
        if ours {
            metrics::conflict(kept == self.me);
        }
        self.board.registry.report(&name, event);
        if ours {
            self.board.tell(NodeEvent::Conflict { name, kept, stopped, overlap });
        }
    }
}

/// A copy of a task has stopped for another one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Conflict {
    pub(super) name: Name,
    /// Who goes on.
    pub(super) kept: SessionId,
    /// For how long both ran.
    pub(super) overlap: Duration,
}

/// What others are still to be told, and what they have told.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    last: u64,
    untold: BTreeMap<u64, Untold>,
    /// Of every peer, what may be told again.
    heard: BTreeMap<SessionId, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Untold {
    conflict: Conflict,
    until: Time,
    /// Who has not confirmed it, and when it was sent to them last.
    left: BTreeMap<SessionId, Option<Time>>,
}

impl Conflicts {
    /// A conflict was lost here, and these are to be told.
    fn lost(&mut self, now: Time, conflict: Conflict, others: impl Iterator<Item = SessionId>) {
        if self.untold.len() >= MAX {
            self.untold.pop_first();
        }
        self.last += 1;
        let left = others.map(|peer| (peer, None)).collect();
        self.untold.insert(self.last, Untold { conflict, until: now + FORGET, left });
    }

    /// What comes before this number is never told again.
    fn oldest(&self) -> u64 {
        self.untold.first_key_value().map_or(self.last + 1, |(number, _)| *number)
    }

    /// What is to be sent now, and to whom.
    fn due(
        &mut self,
        now: Time,
        is_linked: impl Fn(&SessionId) -> bool,
    ) -> Vec<(SessionId, u64, Conflict)> {
        self.untold.retain(|_, untold| !untold.left.is_empty() && untold.until > now);
        let mut due = Vec::new();
        for (number, untold) in &mut self.untold {
            for (peer, sent) in untold.left.iter_mut().filter(|(peer, _)| is_linked(peer)) {
                if sent.is_none_or(|sent| now.since(sent) >= AGAIN) {
                    *sent = Some(now);
                    due.push((peer.clone(), *number, untold.conflict.clone()));
                }
            }
        }
        due
    }

    /// A peer has heard of a conflict that was lost here.
    pub(super) fn confirmed(&mut self, by: &SessionId, number: u64) {
        if let Some(untold) = self.untold.get_mut(&number) {
            untold.left.remove(by);
        }
    }

    /// What was sent over a link that broke may not have arrived.
    pub(super) fn link_down(&mut self, with: &SessionId) {
        for untold in self.untold.values_mut() {
            if let Some(sent) = untold.left.get_mut(with) {
                *sent = None;
            }
        }
    }

    /// A peer tells of a conflict: is it news? It tells again of nothing before `oldest`.
    fn heard(&mut self, from: &SessionId, number: u64, oldest: u64) -> bool {
        if self.heard.len() >= MAX_TELLERS && !self.heard.contains_key(from) {
            self.heard.pop_first();
        }
        let heard = self.heard.entry(from.clone()).or_default();
        *heard = heard.split_off(&oldest);
        if heard.len() >= MAX {
            heard.pop_first();
        }
        heard.insert(number)
    }

    /// A session is no more.
    pub(super) fn forget(&mut self, session: &SessionId) {
        self.heard.remove(session);
        for untold in self.untold.values_mut() {
            untold.left.remove(session);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use uuid::Uuid;

    use super::*;
    use crate::core::ids::NodeId;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn session(node: &str) -> SessionId {
        SessionId::new(NodeId::new(node).unwrap(), Uuid::nil())
    }

    fn conflict() -> Conflict {
        Conflict { name: Name::new("t").unwrap(), kept: session("a"), overlap: Duration::ZERO }
    }

    fn told(due: Vec<(SessionId, u64, Conflict)>) -> Vec<(SessionId, u64)> {
        due.into_iter().map(|(to, number, _)| (to, number)).collect()
    }

    #[test]
    fn who_has_no_link_yet_is_told_once_there_is_one_and_again_until_it_confirms() {
        let mut conflicts = Conflicts::default();
        conflicts.lost(at(0), conflict(), [session("a"), session("b")].into_iter());
        assert_eq!(told(conflicts.due(at(0), |peer| *peer == session("b"))), [(session("b"), 1)]);
        conflicts.confirmed(&session("b"), 1);
        assert_eq!(told(conflicts.due(at(3), |_| true)), [(session("a"), 1)]);
        assert!(conflicts.due(at(3), |_| true).is_empty(), "not without end");
        assert_eq!(told(conflicts.due(at(4), |_| true)), [(session("a"), 1)], "but again");
        conflicts.link_down(&session("a"));
        assert_eq!(told(conflicts.due(at(4), |_| true)), [(session("a"), 1)], "at once");
        conflicts.confirmed(&session("a"), 1);
        assert!(conflicts.due(at(9), |_| true).is_empty());
        assert!(conflicts.untold.is_empty());
    }

    #[test]
    fn who_stays_away_or_is_no_more_is_given_up() {
        let mut conflicts = Conflicts::default();
        conflicts.lost(at(0), conflict(), [session("a"), session("b")].into_iter());
        conflicts.forget(&session("b"));
        assert_eq!(told(conflicts.due(at(1), |_| true)), [(session("a"), 1)]);
        assert!(conflicts.due(at(0) + FORGET, |_| true).is_empty());
        assert!(conflicts.untold.is_empty());
    }

    #[test]
    fn what_is_told_again_is_no_news_and_what_cannot_be_is_forgotten() {
        let mut conflicts = Conflicts::default();
        let from = session("b");
        assert!(conflicts.heard(&from, 2, 2));
        assert!(!conflicts.heard(&from, 2, 2));
        assert!(conflicts.heard(&from, 5, 2));
        assert!(conflicts.heard(&from, 4, 2), "in any order");
        assert!(conflicts.heard(&session("c"), 2, 2), "of each sender");
        assert!(conflicts.heard(&from, 6, 6));
        assert_eq!(conflicts.heard[&from].len(), 1);
    }
}
