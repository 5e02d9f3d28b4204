//! The winner of a conflict makes one state of the branches it holds (Rule 22): it stops at a boundary, has the
//! task's code choose, and goes on under a new epoch from what contains them all.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::Machine;
use super::recover::transfer_time;
use super::task::{Doing, Task, Why};
use crate::core::branch::{Header, Position};
use crate::core::ids::{Name, SessionId};
use crate::core::io::{self, Action, Notice};
use crate::core::lease::Epoch;
use crate::core::reconcile::{Choice, Side, lineage_of, reconcile};
use crate::core::time::Time;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Reconciling {
    /// The winner's own, if it has committed anything, then the others.
    wanted: Vec<Header>,
    loaded: Vec<(Header, Bytes)>,
    /// When to go on with what is here, or without what the code says.
    until: Time,
    /// The code was asked.
    asked: bool,
}

impl Reconciling {
    /// Those whose bytes are here, in the order in which they are wanted.
    fn branches(&self) -> Vec<(Header, Bytes)> {
        let loaded = |header: &Header| self.loaded.iter().find(|(of, _)| of == header).cloned();
        self.wanted.iter().filter_map(loaded).collect()
    }
}

impl Machine {
    /// Checkpoints of a task that runs here which its own line does not contain, and whose writers no
    /// longer go on: it is stopped to take them in.
    pub(super) fn look_branches(&mut self, name: &Name) {
        let Some(from) = self.forked.get(name).copied() else {
            return;
        };
        let task = self.tasks.get(name).filter(|task| !matches!(task.doing, Doing::Over { .. }));
        let Some(task) = task else {
            self.forked.remove(name);
            self.reconciled.remove(name);
            return;
        };
        let busy = task.hand.is_some() || !task.rivals.is_empty() || self.drain.is_some();
        if !matches!(task.doing, Doing::Running) || busy {
            return;
        }
        if self.now.at < from {
            return self.alarm(name, from);
        }
        let mut strays = self.strays(name);
        let unread = strays.extract_if(.., |h| !self.reads(&h.kind, h.state_version));
        let unread = unread.filter(|stray| !self.goes_on(stray)).map(|stray| stray.state_version);
        let unread = unread.max();
        // It takes an epoch to write what comes of it, and one to go on.
        let next = self.next_epoch(name);
        let has_epochs = next > task.claim.epoch && next.next() > next;
        if let Some(version) = unread.filter(|_| has_epochs) {
            let later = self.now.at + self.config.timing.silence_floor;
            self.forked.insert(name.clone(), later);
            if self.offer_to_reader(name, version) {
                return;
            }
            self.alarm(name, later);
        } else if strays.is_empty() || !has_epochs {
            self.forked.remove(name);
        }
        if has_epochs && !strays.is_empty() && !strays.iter().any(|stray| self.goes_on(stray)) {
            let grace = self.config.timing.stop_grace;
            self.stop_for(name, Why::Reconcile, grace);
        }
    }

    /// This build cannot read a branch: the task moves to a node that can, and reads its own state too. False if
    /// there is none.
    fn offer_to_reader(&mut self, name: &Name, version: u32) -> bool {
        let Some(task) = self.tasks.get(name) else {
            return false;
        };
        let (spec, mine) = (task.spec.clone(), self.state_version(task));
        let mut tried = BTreeSet::from([self.config.me.clone()]);
        let able = self.candidates(&spec, Some(version), &tried);
        let unable = able.iter().filter(|candidate| !candidate.can_run(&spec.kind, mine));
        let unable: Vec<SessionId> = unable.map(|candidate| candidate.session.clone()).collect();
        tried.extend(unable);
        let Some(to) = self.choose(&spec, Some(version), &tried) else {
            return false;
        };
        tried.insert(to.clone());
        self.offer_to(name, to, tried)
    }

    /// A branch of a task that runs here may have come that is not of its line.
    pub(super) fn note_branches(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name).filter(|task| {
            matches!(task.doing, Doing::Running | Doing::Stopping(_) | Doing::Reconciling(_))
        }) else {
            return;
        };
        if self.besides(task).next().is_some() {
            self.forked.entry(name.clone()).or_insert(self.now.at);
        }
    }

    /// What is held here of a task that its own line does not contain.
    fn besides<'a>(&'a self, task: &'a Task) -> impl Iterator<Item = &'a Header> {
        let held = self.held.get(&task.claim.name).and_then(|runs| runs.get(&task.claim.run));
        let is_mine = |h: &&Header| task.latest.as_ref().is_some_and(|mine| mine.descends_from(h));
        held.into_iter().flat_map(|branches| branches.iter()).filter(move |h| !is_mine(h))
    }

    /// The newest of each branch held here that a task's own line does not contain.
    pub(super) fn strays(&self, name: &Name) -> Vec<Header> {
        let Some(task) = self.tasks.get(name) else {
            return Vec::new();
        };
        let all: Vec<&Header> = self.besides(task).collect();
        let newest = |h: &Header| !all.iter().any(|other| *other != h && other.descends_from(h));
        all.iter().filter(|h| newest(h)).map(|h| (*h).clone()).collect()
    }

    /// Whether the writer of a branch may write more of it: it has not stopped, for all that is known.
    fn goes_on(&self, stray: &Header) -> bool {
        self.view.get(&stray.name, &stray.writer).is_some_and(|claim| {
            let other = claim.session != self.config.me && claim.run == stray.run;
            other && claim.phase.is_held() && !self.is_void(claim)
        })
    }

    /// It has stopped for that: the states are read.
    pub(super) fn gather_branches(&mut self, name: &Name) {
        let mut strays = self.strays(name);
        strays.retain(|stray| self.reads(&stray.kind, stray.state_version));
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let wanted: Vec<Header> = task.latest.iter().cloned().chain(strays).collect();
        let longest = wanted.iter().map(|header| header.len).max().unwrap_or_default();
        let until = self.now.at + transfer_time(longest);
        let loaded = Vec::new();
        task.bytes = None;
        task.doing =
            Doing::Reconciling(Reconciling { wanted: wanted.clone(), loaded, until, asked: false });
        self.alarm(name, until);
        for header in wanted {
            self.push(Action::Load { header });
        }
        self.ask_code(name);
    }

    /// One of them is here, or cannot be had.
    pub(super) fn branch_loaded(&mut self, header: &Header, state: Option<&Bytes>) {
        let Some(task) = self.tasks.get_mut(&header.name) else {
            return;
        };
        let Doing::Reconciling(reconciling) = &mut task.doing else {
            return;
        };
        if !reconciling.wanted.contains(header) || reconciling.asked {
            return;
        }
        match state {
            Some(state) => reconciling.loaded.push((header.clone(), state.clone())),
            None => reconciling.wanted.retain(|wanted| wanted != header),
        }
        self.ask_code(&header.name.clone());
    }

    /// Has the task's code choose, once all states are here.
    fn ask_code(&mut self, name: &Name) {
        let until = self.now.at + self.config.timing.stop_grace;
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let Doing::Reconciling(reconciling) = &mut task.doing else {
            return;
        };
        let branches = reconciling.branches();
        if reconciling.asked || branches.len() < reconciling.wanted.len() {
            return;
        }
        (reconciling.asked, reconciling.until) = (true, until);
        let (spec, epoch) = (task.spec.clone(), task.claim.epoch);
        self.alarm(name, until);
        self.push(Action::Reconcile { spec, epoch, branches });
    }

    pub(super) fn look_reconciling(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Doing::Reconciling(reconciling) = &task.doing else {
            return;
        };
        if self.now.at < reconciling.until {
            return self.alarm(name, reconciling.until);
        }
        // A store that does not answer, or code that does not return, keeps nobody's work standing still.
        let chosen = reconcile(reconciling.branches(), |_, _| Choice::MoreProgress);
        self.go_on_from(name, chosen);
    }

    /// The code has chosen.
    pub(super) fn on_reconciled(&mut self, name: &Name, epoch: Epoch, chosen: Option<Side>) {
        let Some(task) = self.tasks.get(name).filter(|task| task.claim.epoch == epoch) else {
            return;
        };
        let Doing::Reconciling(reconciling) = &task.doing else {
            return;
        };
        let of_these = |side: &Side| reconciling.wanted.contains(&side.header);
        let default = || reconcile(reconciling.branches(), |_, _| Choice::MoreProgress);
        let chosen = chosen.filter(of_these).or_else(default);
        self.go_on_from(name, chosen);
    }

    /// Writes what was chosen as a checkpoint that contains all branches, and starts from it.
    fn go_on_from(&mut self, name: &Name, chosen: Option<Side>) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Doing::Reconciling(reconciling) = &task.doing else {
            return;
        };
        let branches: Vec<Header> =
            reconciling.branches().into_iter().map(|(header, _)| header).collect();
        let latest = task.latest.clone();
        // Without the bytes of its own line it looks for them as a taker does, and asks again later.
        let own = latest.as_ref().is_none_or(|own| branches.contains(own));
        let (Some(chosen), true) = (chosen, own) else {
            match latest {
                Some(latest) => self.fetch(name, latest),
                None => self.start(name, io::From::Initial, None),
            }
            let later = self.now.at + self.config.timing.silence_floor;
            self.forked.insert(name.clone(), later);
            return;
        };
        // Its effects from now on are above those of all branches.
        self.remint(name);
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let (spec, state) = (task.spec.clone(), chosen.state);
        let header = Header {
            position: Position { epoch: task.claim.epoch, seq: chosen.seq },
            writer: self.config.me.clone(),
            lineage: lineage_of(&branches),
            state_version: chosen.version,
            revision: self.config.record.revision.clone(),
            wall_ms: self.now.unix.saturating_mul(1000),
            len: state.len() as u64,
            hash: Header::hash_of(&state),
            progress: chosen.progress,
            ..chosen.header
        };
        let me = &self.config.me;
        let others = branches.iter().map(|branch| &branch.writer).filter(|writer| *writer != me);
        let losers: BTreeSet<SessionId> = others.cloned().collect();
        self.keep(&spec, header.clone(), state.clone(), None);
        let of = branches.len();
        let from = io::From::Checkpoint { header: header.clone(), state: state.clone() };
        self.start(name, from, Some(header.clone()));
        // What this build cannot read is left.
        match self.strays(name).is_empty() {
            true => self.forked.remove(name),
            false => self.forked.insert(name.clone(), self.now.at),
        };
        self.reconciled.insert(name.clone(), losers);
        self.tell(Notice::Reconciled {
            name: name.clone(),
            branches: of,
            seq: header.position.seq,
        });
        let targets = self.replica_targets(name);
        self.replicate_now(name, targets, &header, &state);
    }

    /// What was reconciled is in other hands: those that lost keep their branches no longer.
    pub(super) fn tell_reconciled(&mut self, header: &Header) {
        let losers = self.reconciled.remove(&header.name).unwrap_or_default();
        // A replica has it, or is getting it, in place of its branch.
        let replicas = self.tasks.get(&header.name).map(|task| task.replicas.clone());
        let replicas = replicas.unwrap_or_default();
        let others = losers.into_iter().filter(|loser| !replicas.contains(loser)).collect();
        self.tell_obsolete(others, header);
    }
}
