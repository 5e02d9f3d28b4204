//! Task loops that count: a step is a number, a checkpoint the number reached.

use std::time::Duration;

use bytes::Bytes;

use super::time::Due;
use super::{MS, Stretch, World, name};
use crate::core::branch::{Ancestor, Header, Position, Progress};
use crate::core::claim::Spec;
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Event, From, Outcome, Stop, Stuck};
use crate::core::lease::{Epoch, Lease};

/// Transfers at once from one node.
const SLOTS: usize = 8;

#[derive(Clone, Debug)]
pub(super) struct Loop {
    pub spec: Spec,
    pub lease: Lease,
    pub lineage: Vec<Ancestor>,
    pub seq: u64,
    pub goal: u64,
    pub step: Duration,
    pub stop: Option<Stop>,
    pub generation: u64,
    pub stretch: usize,
    pub stuck: bool,
    pub resumed_at: u64,
    /// The last commit, as an interrupted step would leave it.
    pub committed: Option<(Header, Bytes)>,
}

impl World {
    pub(super) fn start_loop(
        &mut self,
        session: &SessionId,
        spec: Spec,
        lease: Lease,
        from: From,
        lineage: Vec<Ancestor>,
        seq: u64,
    ) {
        if let From::Checkpoint { header, state } = &from {
            let before = header.position.epoch;
            let last = lease.epoch == Epoch(u64::MAX);
            assert!(before < lease.epoch || last, "L3: {lease:?} goes on from {before}");
            let state = state.get(..8);
            assert_eq!(
                state,
                Some(&seq.to_le_bytes()[..]),
                "the state is the one its header names"
            );
            let setup = &self.nodes[session].setup;
            let newest =
                setup.kinds.iter().find(|(kind, _)| *kind == spec.kind.as_str()).unwrap().1;
            let reads = setup.oldest..=newest;
            assert!(reads.contains(&header.state_version), "{session} reads {reads:?}: {header:?}");
        }
        if self.unreadable.contains(&spec.name) {
            *self.refused.entry(spec.name.clone()).or_default() += 1;
            let why = Stuck::Unreadable("it does not fit".to_owned());
            let event = Event::Stuck { name: spec.name, epoch: lease.epoch, sealed: None, why };
            return self.at(MS, Due::Deliver { to: session.clone(), event });
        }
        let started_before = self.stretches.iter().any(|s| {
            s.name == spec.name
                && s.run == spec.run
                && s.epoch == lease.epoch
                && s.session == *session
        });
        assert!(!started_before, "{} {} starts twice on {session}", spec.name, lease.epoch);
        let stretch = self.stretches.len();
        self.stretches.push(Stretch {
            name: spec.name.clone(),
            run: spec.run,
            epoch: lease.epoch,
            session: session.clone(),
            from_seq: seq,
            start: self.now,
            end: None,
            to_seq: seq,
        });
        let name = spec.name.clone();
        let generation = self.order;
        let task = Loop {
            stuck: self.stuck.contains(&name),
            spec,
            lease,
            lineage,
            seq,
            goal: self.goal,
            step: self.steps.get(&name).copied().unwrap_or(self.step),
            stop: None,
            generation,
            stretch,
            resumed_at: seq,
            committed: None,
        };
        if let Some(node) = self.nodes.get_mut(session) {
            let claim = node.gossip[session].claims.get(&name);
            assert!(claim.is_some_and(|c| c.epoch == task.lease.epoch), "L6: {name}");
            let replaced = node.loops.insert(name.clone(), task);
            assert!(replaced.is_none(), "{name} runs twice on {session}");
        }
        let step = self.steps.get(&name).copied().unwrap_or(self.step);
        self.at(step, Due::Step { node: session.clone(), name, generation });
    }

    pub(super) fn step_done(&mut self, session: &SessionId, name: &Name, generation: u64) {
        let (now, paused) = (self.now, self.is_paused(session));
        let poisoned = self.poison.contains(name);
        let failing = self.failing.contains(&(name.clone(), session.clone()));
        let from_now_on = self.steps.get(name).copied();
        let Some(node) = self.nodes.get_mut(session) else { return };
        let (permit, setup, writes) = (node.permit, &node.setup, &node.writes);
        let Some(task) = node.loops.get_mut(name).filter(|t| t.generation == generation) else {
            return;
        };
        let again = Due::Step { node: session.clone(), name: name.clone(), generation };
        let (step, kind) = (from_now_on.unwrap_or(task.step), &task.spec.kind);
        let newest = setup.kinds.iter().find(|(known, _)| *known == kind.as_str()).unwrap().1;
        let wanted = writes.get(kind).filter(|_| setup.downgrades);
        let state_version = wanted.copied().unwrap_or(newest);
        if paused || task.stuck {
            return self.at(step, again);
        }
        if poisoned {
            let session = session.clone();
            return self.crash(&session);
        }
        // A step that began under a permit that has lapsed must not commit; none starts.
        let mut stopping = task.stop.is_some();
        // A slot is taken at the boundary, not while waiting for it: without one, another step.
        if task.stop == Some(Stop::WithSlot) && !node.slots.contains(name) {
            stopping = node.slots.len() < SLOTS;
            if stopping {
                node.slots.insert(name.clone());
            }
        }
        if now > permit && !stopping {
            return self.at(step, again);
        }
        if !stopping || task.seq == task.resumed_at {
            task.seq += 1;
            *self.steps_done.entry(name.clone()).or_default() += 1;
        }
        let mut state = task.seq.to_le_bytes().to_vec();
        state.resize(self.state_len, 0);
        let state = Bytes::from(state);
        let header = Header {
            name: name.clone(),
            run: task.spec.run,
            kind: task.spec.kind.clone(),
            position: Position { epoch: task.lease.epoch, seq: task.seq },
            writer: session.clone(),
            lineage: task.lineage.clone(),
            state_version,
            revision: "r1".to_owned(),
            wall_ms: 0,
            len: state.len() as u64,
            hash: Header::hash_of(&state),
            progress: Some(Progress { done: task.seq, total: task.goal, note: String::new() }),
        };
        if task.seq.is_multiple_of(self.commit_every) {
            task.committed = Some((header.clone(), state.clone()));
        }
        let epoch = task.lease.epoch;
        let (done, seq, run) = (task.seq >= task.goal, task.seq, task.spec.run);
        let event = if failing {
            let outcome = Outcome::Failed("the database is away".to_owned());
            Event::Ended { name: name.clone(), epoch, outcome }
        } else if done {
            self.finished.entry(name.clone()).or_default().push((run, seq));
            Event::Ended {
                name: name.clone(),
                epoch,
                outcome: Outcome::Done(Bytes::from_static(b"out")),
            }
        } else if stopping {
            let sealed = Some((header, state));
            Event::Stopped { name: name.clone(), epoch, sealed, dropped: false }
        } else {
            self.at(step, again);
            let forced = self.forced;
            if seq % self.commit_every == 0 {
                self.give(session, Event::Committed { header, state, forced });
            }
            return;
        };
        if let Some(task) = self.nodes.get_mut(session).and_then(|n| n.loops.remove(name)) {
            self.stretches[task.stretch].end = Some(now);
            self.stretches[task.stretch].to_seq = task.seq;
        }
        if self.ends_late > Duration::ZERO {
            let late = self.ends_late;
            return self.at(late, Due::Deliver { to: session.clone(), event });
        }
        self.give(session, event);
    }

    /// The step did not end in its grace: it is dropped, and the last commit stands.
    pub(super) fn grace_over(&mut self, session: &SessionId, name: &Name, generation: u64) {
        if self.is_paused(session) {
            let again = Due::Grace { node: session.clone(), name: name.clone(), generation };
            return self.at(MS * 50, again);
        }
        let Some(node) = self.nodes.get_mut(session) else { return };
        if node.loops.get(name).is_none_or(|task| task.generation != generation || task.stuck) {
            return;
        }
        let Some(task) = node.loops.remove(name) else { return };
        self.stretches[task.stretch].end = Some(self.now);
        self.stretches[task.stretch].to_seq = task.seq;
        let (name, epoch) = (name.clone(), task.lease.epoch);
        self.give(session, Event::Stopped { name, epoch, sealed: task.committed, dropped: true });
    }

    /// A task's loop is dropped where it stands, with the runtime it ran on.
    pub(in super::super) fn end_loop(&mut self, at: &SessionId, task: &str) {
        let node = self.nodes.get_mut(at).unwrap();
        let task = node.loops.remove(&name(task)).unwrap();
        self.stretches[task.stretch].end = Some(self.now);
        self.stretches[task.stretch].to_seq = task.seq;
    }
}
