//! A task's line of states: which are kept, which are committed, and under which headers.

use std::time::Duration;

use bytes::Bytes;

use crate::core::branch::{Ancestor, Header, Position, Progress};
use crate::core::claim::Spec;
use crate::core::io::From;
use crate::core::lease::Lease;
use crate::core::time::Time;

/// How often a state is committed when nobody asks for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throttle {
    /// At least this lies between two commits of a task.
    pub(crate) interval: Duration,
    /// And so many bytes at most are committed per interval: a state that is longer waits longer.
    pub(crate) bytes: usize,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), bytes: 1 << 20 }
    }
}

/// A state this short is kept after every step: encoding it costs about nothing.
const SMALL: usize = 4 << 10;

/// The states of one task, from the one it started with to its newest. A state becomes *kept* when
/// it is encoded (a failure falls back to it), and *committed* when it is sent out.
#[derive(Debug)]
pub(crate) struct Line {
    spec: Spec,
    revision: String,
    throttle: Throttle,
    lease: Lease,
    lineage: Vec<Ancestor>,
    /// Number of the last step that went well.
    seq: u64,
    /// The same at the kept state.
    kept_seq: u64,
    kept: Option<(Header, Bytes)>,
    /// Where the newest committed state stands.
    committed: Option<Position>,
    committed_at: Option<Time>,
}

impl Line {
    pub(crate) fn new(
        spec: Spec,
        lease: Lease,
        from: From,
        lineage: Vec<Ancestor>,
        seq: u64,
        (revision, throttle): (String, Throttle),
    ) -> Self {
        let kept = match from {
            From::Initial => None,
            From::Checkpoint { header, state } => Some((header, state)),
        };
        Self {
            spec,
            revision,
            throttle,
            lease,
            lineage,
            seq,
            kept_seq: seq,
            committed: kept.as_ref().map(|(header, _)| header.position),
            kept,
            committed_at: None,
        }
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// A step has gone well.
    pub(crate) fn advance(&mut self) {
        self.seq = self.seq.saturating_add(1);
    }

    /// Whether steps have gone well since the kept state.
    pub(crate) fn is_ahead(&self) -> bool {
        self.seq > self.kept_seq
    }

    /// Whether the kept state has not been committed.
    pub(crate) fn is_uncommitted(&self) -> bool {
        self.kept.as_ref().map(|(header, _)| header.position) > self.committed
    }

    /// Whether states are short enough to be kept after every step.
    pub(crate) fn is_small(&self) -> bool {
        self.kept.as_ref().is_none_or(|(_, state)| state.len() <= SMALL)
    }

    /// Keeps the newest state, with its version.
    pub(crate) fn keep(
        &mut self,
        (state_version, state): (u32, Bytes),
        progress: Option<Progress>,
        wall_ms: u64,
    ) {
        let header = Header {
            name: self.spec.name.clone(),
            run: self.spec.run,
            kind: self.spec.kind.clone(),
            position: Position { epoch: self.lease.epoch, seq: self.seq },
            writer: self.lease.session.clone(),
            lineage: self.lineage.clone(),
            state_version,
            revision: self.revision.clone(),
            wall_ms,
            len: state.len() as u64,
            hash: Header::hash_of(&state),
            progress,
        };
        self.kept = Some((header, state));
        self.kept_seq = self.seq;
    }

    /// The kept state with its version; none if that is the initial one.
    pub(crate) fn kept(&self) -> Option<(&Header, &Bytes)> {
        self.kept.as_ref().map(|(header, state)| (header, state))
    }

    /// Gives up what is ahead of the kept state.
    pub(crate) fn fall_back(&mut self) {
        self.seq = self.kept_seq;
    }

    /// When the throttle lets the next commit through. The first passes at once: only from then on
    /// is there anything to take over.
    pub(crate) fn due_at(&self) -> Time {
        let Some(last) = self.committed_at else {
            return Time::ZERO;
        };
        let len = self.kept.as_ref().map_or(0, |(_, state)| state.len());
        let intervals = len.div_ceil(self.throttle.bytes.max(1)).max(1);
        last + self.throttle.interval.saturating_mul(u32::try_from(intervals).unwrap_or(u32::MAX))
    }

    /// Where the newest committed state stands.
    pub(crate) fn committed(&self) -> Option<Position> {
        self.committed
    }

    /// Marks the kept state as committed and returns it, with the age of the commit before.
    pub(crate) fn commit(&mut self, now: Time) -> Option<(Header, Bytes, Option<Duration>)> {
        let (header, state) = self.kept.clone()?;
        let age = self.committed_at.map(|last| now.since(last));
        self.committed = Some(header.position);
        self.committed_at = Some(now);
        Some((header, state, age))
    }

    /// Goes on under a higher epoch.
    pub(crate) fn reepoch(&mut self, lease: &Lease) {
        if lease.epoch <= self.lease.epoch {
            return;
        }
        // A stretch of which nothing was committed is known to nobody.
        if let Some(last) = self.committed.filter(|last| last.epoch == self.lease.epoch) {
            self.lineage.push(Ancestor {
                epoch: last.epoch,
                writer: self.lease.session.clone(),
                seq: last.seq,
            });
            let surplus = self.lineage.len().saturating_sub(Header::MAX_LINEAGE);
            self.lineage.drain(..surplus);
        }
        self.lease = lease.clone();
        if self.is_uncommitted()
            && let Some((header, _)) = &mut self.kept
        {
            header.position.epoch = lease.epoch;
            header.writer = lease.session.clone();
            header.lineage.clone_from(&self.lineage);
        }
    }

    /// What a stopped task leaves behind.
    pub(crate) fn into_sealed(self) -> Option<(Header, Bytes)> {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::tests::{lease, spec};
    use super::*;
    use crate::core::lease::Epoch;

    fn line(epoch: u64, from: From, lineage: Vec<Ancestor>, seq: u64) -> Line {
        let writing = ("r1".into(), Throttle::default());
        Line::new(spec("script", "a"), lease(epoch), from, lineage, seq, writing)
    }

    /// One that has committed its first state.
    fn begun() -> Line {
        let mut line = line(1, From::Initial, vec![], 0);
        line.advance();
        line.keep((1, Bytes::from_static(b"one")), None, 0);
        line.commit(Time::from_micros(1)).unwrap();
        line
    }

    #[test]
    fn a_committed_state_keeps_its_header_under_a_new_epoch() {
        let mut line = begun();
        line.reepoch(&lease(4));
        let (header, _) = line.into_sealed().unwrap();
        assert_eq!(header.position.epoch, Epoch(1), "replicas hold it as that");
    }

    #[test]
    fn an_epoch_under_which_nothing_was_committed_leaves_no_ancestor() {
        let (header, state) = begun().into_sealed().unwrap();
        let lineage = header.lineage_after();
        let from = From::Checkpoint { header, state };
        let mut line = line(2, from, lineage.clone(), 1);
        line.reepoch(&lease(3));
        line.advance();
        line.keep((1, Bytes::from_static(b"two")), None, 0);
        let (header, ..) = line.commit(Time::from_micros(2)).unwrap();
        assert_eq!(header.lineage, lineage);
        assert_eq!(header.position.epoch, Epoch(3));
    }

    #[test]
    fn a_failure_gives_up_what_is_ahead_of_the_kept_state() {
        let mut line = begun();
        line.advance();
        line.advance();
        assert!(line.is_ahead());
        line.fall_back();
        assert!(!line.is_ahead());
        assert_eq!(line.seq(), 1);
    }

    #[test]
    fn a_lease_that_is_not_above_its_own_changes_nothing() {
        let mut line = line(4, From::Initial, vec![], 0);
        for seq in 1..3 {
            line.advance();
            line.keep((1, Bytes::from_static(b"more")), None, 0);
            let (header, ..) = line.commit(Time::from_micros(seq)).unwrap();
            assert_eq!(header.position, Position { epoch: Epoch(4), seq });
            assert_eq!(header.lineage, []);
            line.reepoch(&lease(3));
            line.reepoch(&lease(4));
        }
    }
}
