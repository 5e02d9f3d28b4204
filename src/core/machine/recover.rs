//! Finding the state a taker goes on from (Rule 20), and starting.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::task::{Doing, Finding};
use super::{Machine, Needs, OnLostState};
use crate::core::branch::{Branches, Header, Position};
use crate::core::claim::{Phase, Want};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::{self, Action, Notice};
use crate::core::lease::Epoch;
use crate::core::message::Message;
use crate::core::timing::Timing;

/// Takeovers in a row without progress after which a task is quarantined (Rule 26).
const MAX_STRIKES: u8 = 3;
/// Between two questions to peers that had no answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long a checkpoint may be on its way from a peer that lives, others before it: a link that is
/// slower than a mebibyte per second is of no use.
pub(super) fn transfer_time(len: u64) -> Duration {
    ASK_AGAIN * 2 + Duration::from_secs(len >> 20)
}

impl Machine {
    /// The name is mine: from where does it go on?
    pub(super) fn recover(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let own = self.held.get(name).and_then(|runs| runs.get(&task.claim.run));
        // A run that somebody held before may have been acknowledged after its claim was last seen:
        // only of a new one is it known that nothing ever was.
        let new = task.prior.session.is_none() && !task.prior.checkpointed;
        if new && own.is_none_or(Branches::is_empty) {
            return self.start(name, io::From::Initial, None);
        }
        let me = &self.config.me;
        let replicas = task.prior.replicas.iter().filter(|node| **node != me.node);
        let replicas = replicas.filter_map(|node| self.members.session_of(node));
        // Of branches the one of the lower epoch may be the longer one.
        let mine = || own.into_iter().flat_map(Branches::iter).map(|header| header.position);
        let is_more =
            |held: &Position| mine().all(|mine| held.epoch > mine.epoch || held.seq > mine.seq);
        let holders = task.prior.holders.iter().filter(|(_, held)| is_more(held));
        let holders = holders.map(|(session, _)| session).filter(|s| !self.members.is_gone(s));
        let replicas: BTreeSet<SessionId> = replicas.chain(holders).cloned().collect();
        let held_here =
            task.prior.replicas.contains(&me.node) && own.is_some_and(|b| !b.is_empty());
        let everyone = !held_here && replicas.is_empty();
        let waiting: BTreeSet<SessionId> =
            if everyone { self.members.live().cloned().collect() } else { replicas };
        let run = task.claim.run;
        let now = self.now.at;
        let finding = Finding {
            waiting: waiting.clone(),
            found: Vec::new(),
            until: now + ASK_AGAIN,
            give_up: now + self.config.timing.state_wait,
            everyone,
            failed: match &task.doing {
                Doing::Fetching { failed, .. } => failed.clone(),
                _ => BTreeSet::new(),
            },
        };
        if let Some(task) = self.tasks.get_mut(name) {
            task.doing = Doing::Finding(finding);
        }
        for to in waiting {
            self.send(&to, Message::FindState { name: name.clone(), run });
        }
        self.look_finding(name);
    }

    pub(super) fn on_find_state(&mut self, from: &SessionId, name: &Name, run: RunId) {
        let held = self.held.get(name).and_then(|runs| runs.get(&run));
        let headers = held.map(|branches| branches.iter().cloned().collect()).unwrap_or_default();
        self.send(from, Message::States { name: name.clone(), run, headers });
    }

    pub(super) fn on_states(
        &mut self,
        from: &SessionId,
        name: &Name,
        run: RunId,
        headers: Vec<Header>,
    ) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        if task.claim.run != run {
            return;
        }
        let Doing::Finding(finding) = &mut task.doing else {
            return;
        };
        finding.waiting.remove(from);
        let sane = headers.into_iter().filter(|h| h.name == *name && h.run == run);
        finding.found.extend(sane.take(Branches::MAX).map(|header| (from.clone(), header)));
        self.dirty.insert(name.clone());
    }

    /// Have all answered who could? Is the best at or above the floor?
    pub(super) fn look_finding(&mut self, name: &Name) {
        if self.yields_before_it_starts(name) {
            return;
        }
        let now = self.now.at;
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Doing::Finding(finding) = &task.doing else {
            return;
        };
        if !finding.waiting.is_empty() && now < finding.until {
            return self.alarm(name, finding.until);
        }
        if !finding.waiting.is_empty() && self.is_unheard(task.cause) {
            return self.wait_to_be_heard(name);
        }
        let (floor, run) = (task.prior.floor.clone(), task.claim.run);
        let mut branches =
            self.held.get(name).and_then(|runs| runs.get(&run)).cloned().unwrap_or_default();
        for (_, header) in &finding.found {
            branches.admit(header.clone());
        }
        if let Some(best) = branches.best_from(floor.as_ref()) {
            let (best, kind, older) = (best.clone(), task.spec.kind.clone(), task.older);
            let readable = branches.best_of(floor.as_ref(), |v| self.reads(&kind, v)).cloned();
            if let Some(task) =
                self.tasks.get_mut(name).filter(|_| readable.as_ref() != Some(&best))
            {
                task.parking.get_or_insert_default().found = branches;
            }
            // What cannot be read here is fetched all the same, and kept for somebody who can.
            return match readable {
                Some(readable) if older && readable != best => {
                    self.tell_older(name, best.state_version, &readable);
                    self.fetch(name, readable);
                }
                _ => self.fetch(name, best),
            };
        }
        if !finding.everyone {
            return self.ask_everyone(name);
        }
        // Who has said to hold one may only be slow.
        let is_held = task.prior.holders.keys().any(|holder| finding.waiting.contains(holder));
        if !task.prior.checkpointed && !is_held && branches.is_empty() {
            return self.start(name, io::From::Initial, None);
        }
        if now < finding.until {
            return self.alarm(name, finding.until);
        }
        if now < finding.give_up {
            return self.ask_everyone(name);
        }
        let kind = &task.spec.kind;
        let older = branches.best_of(None, |version| self.reads(kind, version)).cloned();
        self.state_lost(name, older);
    }

    fn ask_everyone(&mut self, name: &Name) {
        let live: BTreeSet<SessionId> = self.members.live().cloned().collect();
        let now = self.now.at;
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let run = task.claim.run;
        let Doing::Finding(finding) = &mut task.doing else {
            return;
        };
        finding.everyone = true;
        finding.waiting.clone_from(&live);
        finding.until = now + ASK_AGAIN;
        let until = finding.until;
        if task.claim.phase != Phase::Recovering {
            task.claim.phase = Phase::Recovering;
            self.publish(name);
        }
        for to in live {
            self.send(&to, Message::FindState { name: name.clone(), run });
        }
        self.alarm(name, until);
    }

    /// No state at or above the floor is to be had.
    fn state_lost(&mut self, name: &Name, older: Option<Header>) {
        let (what, then) = match (self.config.on_lost_state, older) {
            (OnLostState::Restart, _) => ("restarted from the initial state", Some(None)),
            (OnLostState::UseOlder, Some(older)) => {
                ("continued from an older checkpoint", Some(Some(older)))
            }
            _ => ("parked until somebody resumes it", None),
        };
        self.tell(Notice::StateLost { name: name.clone(), what: what.to_owned() });
        match then {
            Some(None) => self.start(name, io::From::Initial, None),
            Some(Some(older)) => self.fetch(name, older),
            None => self.park(
                name,
                true,
                "no checkpoint at or above the floor could be found: bring back \
                a node that holds one, then resume it",
            ),
        }
    }

    /// Keeps the name without running it.
    pub(super) fn park(&mut self, name: &Name, until_resumed: bool, why: &str) {
        self.heed(name);
        self.keep_as(name, Phase::Parked { until_resumed }, why.to_owned());
    }

    /// Gets one checkpoint's bytes, from here or from who has it.
    pub(super) fn fetch(&mut self, name: &Name, header: Header) {
        let here = self
            .held
            .get(name)
            .and_then(|runs| runs.get(&header.run))
            .is_some_and(|branches| branches.iter().any(|held| *held == header));
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let (from, failed) = match &task.doing {
            Doing::Finding(Finding { found, failed, .. }) => {
                let holders = found.iter().filter(|(_, found)| *found == header);
                let holders = holders.map(|(session, _)| session);
                (holders.min_by_key(|s| failed.contains(*s)).cloned(), failed.clone())
            }
            _ => (task.from.clone(), BTreeSet::new()),
        };
        let from = if here { None } else { from };
        // The store answers in any case, however long its disk takes.
        let patience = from.as_ref().map_or(Timing::LONGEST, |_| transfer_time(header.len));
        let until = self.now.at + patience;
        task.doing = Doing::Fetching { header: header.clone(), from: from.clone(), until, failed };
        if from.is_some() {
            self.alarm(name, until);
        }
        match from {
            None => self.push(Action::Load { header }),
            Some(from) => {
                let message = Message::GetState {
                    name: name.clone(),
                    run: header.run,
                    position: header.position,
                    writer: header.writer,
                };
                self.send(&from, message);
            }
        }
    }

    pub(super) fn on_get_state(
        &mut self,
        from: &SessionId,
        name: &Name,
        run: RunId,
        position: Position,
        writer: &SessionId,
    ) {
        let held = self.held.get(name).and_then(|runs| runs.get(&run));
        let header = held.and_then(|branches| {
            branches.iter().find(|h| h.position == position && h.writer == *writer).cloned()
        });
        // Silence makes the asker look elsewhere after its deadline; a bounded list of readers.
        if let Some(header) = header {
            self.boot.readers(&header, from);
            self.push(Action::Load { header });
        }
    }

    /// A checkpoint could not be read, and is still there for all that is known: peers look elsewhere when
    /// their patience ends, and what waits for it here asks again.
    pub(super) fn on_load_failed(&mut self, header: &Header) {
        drop(self.boot.take_readers(header));
        let due = self.now.at + ASK_AGAIN;
        let doing = self.tasks.get_mut(&header.name).map(|task| &mut task.doing);
        if let Some(Doing::Fetching { header: wanted, from: None, until, .. }) = doing
            && wanted == header
        {
            *until = due;
            self.alarm(&header.name, due);
        }
    }

    /// A checkpoint's bytes have come from the store.
    pub(super) fn on_loaded(&mut self, header: Header, state: Option<Bytes>) {
        for reader in self.boot.take_readers(&header) {
            let message = Message::StateData { header: header.clone(), state: state.clone() };
            self.send(&reader, message);
        }
        self.branch_loaded(&header, state.as_ref());
        if state.is_none()
            && let Some(branches) =
                self.held.get_mut(&header.name).and_then(|runs| runs.get_mut(&header.run))
        {
            branches.drop_exact(&header);
        }
        if let Some(state) = &state {
            self.replicate_loaded(&header, state);
            self.owed_loaded(&header, state);
            self.relief_loaded(&header, state);
            self.seal_loaded(&header, state);
            self.pin_loaded(&header, state);
        }
        self.on_state_data(header, state);
    }

    /// The bytes a taker waits for, from the store or from a peer.
    pub(super) fn on_state_data(&mut self, header: Header, state: Option<Bytes>) {
        let name = header.name.clone();
        let Some(task) = self.tasks.get(&name) else {
            return;
        };
        let Doing::Fetching { header: wanted, .. } = &task.doing else {
            return;
        };
        if *wanted != header {
            return;
        }
        match state {
            Some(state) => {
                let from = io::From::Checkpoint { header: header.clone(), state: state.clone() };
                let spec = task.spec.clone();
                self.keep(&spec, header.clone(), state, None);
                if self.reads(&spec.kind, header.state_version) {
                    return self.start(&name, from, Some(header));
                }
                let why = Needs::Node(spec.kind, Some(header.state_version)).why();
                if let Some(task) = self.tasks.get_mut(&name) {
                    task.latest = Some(header);
                }
                self.park(&name, false, &why);
            }
            None => self.fetch_failed(&name),
        }
    }

    /// The chosen checkpoint did not come: from another holder of it, or the next best.
    fn fetch_failed(&mut self, name: &Name) {
        let doing = self.tasks.get_mut(name).map(|task| &mut task.doing);
        if let Some(Doing::Fetching { from: Some(from), failed, .. }) = doing {
            failed.insert(from.clone());
            let text = format!(
                "{from} holds a checkpoint of {name} and did not deliver it: it is looked for elsewhere, \
                 and asked for there again"
            );
            self.tell(Notice::Warning(text));
        }
        self.recover(name);
    }

    /// A fetch that nobody answered.
    pub(super) fn look_fetching(&mut self, name: &Name) {
        if self.yields_before_it_starts(name) {
            return;
        }
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Doing::Fetching { header, until, from, .. } = &task.doing else {
            return;
        };
        let late = self.now.at >= *until;
        let Some(from) = from else {
            if late {
                let header = header.clone();
                self.fetch(name, header);
            }
            return;
        };
        if late || self.members.is_gone(from) {
            self.fetch_failed(name);
        } else {
            let until = *until;
            self.alarm(name, until);
        }
    }

    /// Runs it: the claim says so first (L6).
    pub(super) fn start(&mut self, name: &Name, from: io::From, header: Option<Header>) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        // Others may know of later owners than I did when I claimed it: what is written from now on must
        // be above what they have (L3).
        if header.as_ref().is_some_and(|header| header.position.epoch >= task.claim.epoch) {
            self.remint(name);
        }
        // The order came while its state was looked for.
        if self.wanted(name) == Want::Pause {
            if let Some(task) = self.tasks.get_mut(name) {
                task.latest = header;
            }
            return self.keep_as(name, Phase::Paused, String::new());
        }
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let progress = header
            .as_ref()
            .is_some_and(|header| task.prior.epoch.is_some_and(|ran| header.position.epoch >= ran));
        if progress {
            task.claim.strikes = 0;
        } else if task.claim.strikes >= MAX_STRIKES {
            task.latest = header;
            let why = Needs::Quarantine.why();
            self.heed(name);
            return self.keep_as(name, Phase::Quarantined, why);
        }
        task.claim.phase = Phase::Running;
        task.claim.resting = false;
        task.claim.note.clear();
        task.doing = Doing::Running;
        let ran_here = std::mem::replace(&mut task.began, task.claim.epoch) > Epoch(0);
        task.unstoppable = false;
        task.hand = None;
        task.latest.clone_from(&header);
        let lease = task.claim.lease();
        let (spec, cause, source) = (task.spec.clone(), task.cause, task.from.clone());
        let freed = task.freed.take();
        let lineage = header.as_ref().map(Header::lineage_after).unwrap_or_default();
        let seq = header.as_ref().map_or(0, |header| header.position.seq);
        if seq == 0 {
            self.keep_run(name);
        }
        self.note_branches(name);
        self.publish(name);
        let epoch = lease.epoch;
        self.push(Action::Start { spec, lease, from, lineage, seq });
        // It only stood still, to be reconciled: it has not moved.
        if !ran_here {
            self.tell(Notice::Started { name: name.clone(), epoch, cause, from: source, freed });
        }
    }
}
