//! Cordon, drain, goodbye (DEPLOYS 2).

use std::collections::BTreeSet;
use std::time::Duration;

use super::Machine;
use super::relief::Relief;
use super::task::{Doing, Task, Why};
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Action, Gone, Notice};
use crate::core::members::Peer;
use crate::core::message::{Message, Refusal};
use crate::core::record::NodeState;
use crate::core::time::Time;

#[derive(Clone, Debug)]
pub(super) struct Drain {
    began: Time,
    deadline: Time,
    /// Until then, tasks of kinds that are to be finished here may end by themselves.
    finish_until: Time,
    /// Since when no step boundary is waited for any more.
    hurried: Option<Time>,
    told: bool,
    /// A name that was still here when last looked at.
    left: Option<Name>,
    /// A name of which others still relied on a copy kept here when last looked at.
    relied_on: Option<Name>,
    /// Peers that have answered since it began.
    answered: BTreeSet<SessionId>,
    /// Have not answered in time: they may be dead without being known to be.
    pub(super) silent: BTreeSet<SessionId>,
    pub(super) relief: Relief,
}

#[derive(Clone, Debug)]
pub(super) struct Goodbye {
    told: usize,
    waiting: BTreeSet<SessionId>,
    until: Time,
    done: bool,
}

/// How long an answer is waited for once the budget is spent, while there is still time to ask another.
const LAST_WAIT: Duration = Duration::from_millis(400);
/// How long a step may still take once the budget is spent.
const LAST_GRACE: Duration = Duration::from_millis(100);
/// How long a goodbye waits for its acknowledgements.
const GOODBYE: Duration = Duration::from_secs(1);

impl Drain {
    /// Whether a step that is told to stop later still has its time to end.
    pub fn has_time(&self, now: Time) -> bool {
        !self.is_hurried() && now < self.finish_until
    }

    /// How long it has lasted.
    pub fn lasts(&self, now: Time) -> Duration {
        now.since(self.began)
    }

    /// Whether nothing is waited for any more: so it was told, or the budget is spent.
    pub fn is_hurried(&self) -> bool {
        self.hurried.is_some()
    }
}

impl Machine {
    pub(super) fn on_cordon(&mut self, on: bool) {
        match (self.state, on) {
            (NodeState::Up, true) => {
                self.set_state(NodeState::Cordoned);
                let accepted = self.tasks.iter().filter(|(_, task)| {
                    matches!(task.doing, Doing::Incoming { transferred: None, .. })
                });
                for name in accepted.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                    self.let_go(&name);
                }
            }
            (NodeState::Cordoned, false) => self.set_state(NodeState::Up),
            _ => {}
        }
    }

    pub(super) fn on_drain(&mut self, deadline: Time) {
        if self.drain.is_some() {
            return;
        }
        // A step has to end, and the task to move, in what is left of the budget then.
        let budget = deadline.since(self.now.at);
        let finish_until = deadline.back(self.config.timing.stop_grace.min(budget / 2));
        self.drain = Some(Drain {
            began: self.now.at,
            deadline,
            finish_until,
            hurried: None,
            told: false,
            left: None,
            relied_on: None,
            answered: BTreeSet::new(),
            silent: BTreeSet::new(),
            relief: Relief::default(),
        });
        // Everything is being stopped already, and nobody takes anything from here.
        if self.state.is_fenced() {
            return;
        }
        // The gate first: nothing new may land here while the rest is told (DEPLOYS 2).
        self.set_state(NodeState::Draining);
        self.push(Action::CommitAll);
        self.review_copies();
        for name in self.tasks.keys().cloned().collect::<Vec<_>>() {
            self.drain_one(&name);
        }
    }

    /// Begins to move one name; also whatever comes to rest here while the node drains.
    pub(super) fn drain_one(&mut self, name: &Name) {
        let grace = self.config.timing.stop_grace;
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        match &task.doing {
            Doing::Running | Doing::Kept if self.drain.as_ref().is_some_and(Drain::is_hurried) => {
                self.stop_for(name, Why::Release, LAST_GRACE);
            }
            Doing::Running if self.finishes_here(task) => {
                if let Some(until) = self.drain.as_ref().map(|drain| drain.finish_until) {
                    self.alarm(name, until);
                }
            }
            Doing::Running | Doing::Kept => {
                if task.hand.is_none() && !self.offer(name) && !self.expects_taker(name) {
                    self.stop_for(name, Why::Release, grace);
                }
            }
            Doing::Settling(_) | Doing::Finding(_) | Doing::Fetching { .. } => self.part(name),
            Doing::Incoming { transferred: None, .. } => self.let_go(name),
            _ => {}
        }
    }

    /// What was accepted, and not decided, is for another node after all (Rule 18).
    fn let_go(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let (source, epoch) = (task.from.clone(), task.claim.epoch);
        self.release(name);
        if let Some(source) = source {
            let result = Err(Refusal::NotUp);
            self.send(&source, Message::OfferReply { name: name.clone(), epoch, result });
        }
    }

    /// Whether a task that runs here is to end here, rather than to move, as long as there is time.
    pub(super) fn finishes_here(&self, task: &Task) -> bool {
        matches!(task.doing, Doing::Running)
            && self.config.finish_here.contains(&task.spec.kind)
            && self.has_time_to_drain()
    }

    /// Whether this node drains, and what is stopped later still has the time to move.
    pub(super) fn has_time_to_drain(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| drain.has_time(self.now.at))
    }

    /// Whether others drain as well, and their replacements, if there are any, may not have been heard of yet.
    pub(super) fn expects_joiners(&self) -> bool {
        let patience = self.config.timing.convergence();
        self.drain.as_ref().is_some_and(|drain| {
            let drains = |peer: &Peer| match peer.gone {
                None => peer.state == NodeState::Draining,
                Some((gone, at)) => gone == Gone::Left && at >= drain.began,
            };
            drain.has_time(self.now.at)
                && self.now.at.since(drain.began) < patience
                && self.members.iter().any(|(_, peer)| drains(peer))
        })
    }

    /// How long an answer is waited for that should come within `wait`.
    pub(super) fn patience(&self, wait: Duration) -> Duration {
        let hurried = self.drain.as_ref().is_some_and(Drain::is_hurried);
        if hurried { wait.min(LAST_WAIT) } else { wait }
    }

    pub(super) fn drain_answered(&mut self, from: &SessionId) {
        if let Some(drain) = &mut self.drain {
            drain.silent.remove(from);
            drain.answered.insert(from.clone());
        }
    }

    /// Whether a peer may be given what others are to keep. For a node that drains, one that is joining will do:
    /// there may be nobody else when it goes.
    pub(super) fn may_keep(&self, peer: &Peer) -> bool {
        peer.keeps() || (self.drain.is_some() && peer.joins() && peer.linked)
    }

    /// Whether a peer is known to have lived after this node began to drain: what it acknowledged before, it may
    /// have taken with it. Always, while this node does not drain.
    pub(super) fn is_answered_by(&self, peer: &SessionId) -> bool {
        self.drain.as_ref().is_none_or(|drain| {
            drain.answered.contains(peer) || self.members.has_echoed_since(peer, drain.began)
        })
    }

    /// Whether a peer may be dead for all that this node has heard while it drains.
    pub(super) fn is_doubted(&self, peer: &SessionId) -> bool {
        self.drain.as_ref().is_some_and(|drain| {
            drain.silent.contains(peer) || !self.members.is_heard(self.now.at, peer)
        })
    }

    /// Stops waiting for step boundaries: what runs is told to stop now, what has stopped is
    /// released.
    pub(super) fn on_drain_now(&mut self) {
        let now = self.now.at;
        let Some(drain) = &mut self.drain else { return };
        if drain.is_hurried() {
            return;
        }
        drain.hurried = Some(now);
        for name in self.tasks.keys().cloned().collect::<Vec<_>>() {
            let Some(task) = self.tasks.get(&name) else {
                continue;
            };
            match &task.doing {
                Doing::Running | Doing::Stopping(_) => {
                    self.withdraw_offer(&name);
                    self.stop_now(&name);
                }
                Doing::Kept | Doing::Reconciling(_) | Doing::Sealing { .. } => {
                    self.withdraw_offer(&name);
                    self.part(&name);
                }
                Doing::Settling(_) | Doing::Finding(_) | Doing::Fetching { .. } => self.part(&name),
                // Nobody has it.
                Doing::Moving { .. } if !self.is_given(task) => {
                    self.withdraw_offer(&name);
                    self.part(&name);
                }
                _ => {}
            }
        }
    }

    /// Whether a decided task has a target that is there to take it.
    fn is_given(&self, task: &Task) -> bool {
        let to = task.hand.as_ref().filter(|hand| hand.accepted).map(|hand| &hand.to);
        to.is_some_and(|to| !self.members.is_gone(to))
    }

    fn stop_now(&mut self, name: &Name) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        if let Doing::Stopping(why) = &mut task.doing {
            if *why == Why::Transfer {
                *why = Why::Release;
            }
            let how = crate::core::io::Stop::Boundary { grace: LAST_GRACE };
            self.push(Action::Stop { name: name.clone(), how });
        } else {
            self.stop_for(name, Why::Release, LAST_GRACE);
        }
    }

    pub(super) fn tick_drain(&mut self) {
        let now = self.now.at;
        if self.drain.as_ref().is_some_and(|drain| drain.hurried.is_none() && now >= drain.deadline)
        {
            self.on_drain_now();
        }
        if let Some(goodbye) = &self.leave
            && !goodbye.done
            && now >= goodbye.until
        {
            self.left();
        }
    }

    /// Has the drain come to its end?
    pub(super) fn drain_progress(&mut self) {
        let Some(drain) = &self.drain else { return };
        if drain.told {
            return;
        }
        // A decision that a target which is there has not acknowledged is safe: it has the state.
        let late = drain.hurried.is_some_and(|at| self.now.at.since(at) >= GOODBYE);
        let is_left = |task: &Task| match &task.doing {
            Doing::Moving { .. } | Doing::Ending { .. } | Doing::Parting { .. } => !late,
            Doing::Stopping(_) => !task.unstoppable,
            // What only this node's disk will have is written before it is said to be there.
            Doing::Over { .. } => !late && self.is_being_stored(task),
            _ => true,
        };
        // As long as the one last found is left there is no need to look for another.
        if drain
            .left
            .as_ref()
            .and_then(|name| self.tasks.get(name))
            .is_some_and(|task| is_left(task))
        {
            return;
        }
        let left = self.tasks.iter().find(|(_, task)| is_left(task)).map(|(name, _)| name.clone());
        let orphans = if left.is_none() && !late { self.orphans() } else { Vec::new() };
        if !orphans.is_empty() {
            orphans.iter().for_each(|name| self.take_up(name));
            return;
        }
        let relied_on = left.is_none().then(|| self.relied_on(drain.relied_on.as_ref())).flatten();
        let told = left.is_none() && (relied_on.is_none() || late);
        if told && let Some(name) = &relied_on {
            self.tell(Notice::Warning(format!(
                "too few other nodes hold a copy of {name}, and perhaps of others, that is kept here: \
                 start this node again on its data directory, if it has one, should their owner die"
            )));
        }
        if let Some(drain) = &mut self.drain {
            (drain.told, drain.left, drain.relied_on) = (told, left, relied_on);
        }
        let open = self.drain.as_ref().and_then(|drain| drain.relied_on.clone());
        match open {
            _ if told => self.push(Action::Drained),
            Some(name) if self.is_released(&name) => self.take_up(&name),
            _ => {}
        }
    }

    /// Explicit leave, acknowledged: a deploy never enters failure detection.
    pub(super) fn on_leave(&mut self) {
        if self.leave.is_some() {
            return;
        }
        self.on_drain(self.now.at);
        // What cannot be stopped is not released, and a goodbye would say that it has stopped.
        let running = self.tasks.iter().filter(|(_, task)| task.runs());
        let running: Vec<Name> = running.map(|(name, _)| name.clone()).collect();
        if !running.is_empty() {
            return self.push(Action::Stays { running });
        }
        // Its peers hold it for gone; it has nothing to say to them.
        if self.state.is_fenced() {
            return self.push(Action::Left { heard: 0, told: 0 });
        }
        let peers: BTreeSet<SessionId> = self
            .members
            .iter()
            .filter(|(_, peer)| peer.gone.is_none() && peer.was_met())
            .map(|(session, _)| session.clone())
            .collect();
        self.set_state(NodeState::Leaving);
        for peer in &peers {
            self.send(peer, Message::Leave);
        }
        let until = self.now.at + GOODBYE;
        self.leave = Some(Goodbye { told: peers.len(), waiting: peers, until, done: false });
        self.check_left();
    }

    pub(super) fn on_leave_heard(&mut self, from: &SessionId) {
        if let Some(goodbye) = &mut self.leave {
            goodbye.waiting.remove(from);
        }
        self.check_left();
    }

    fn check_left(&mut self) {
        if self.leave.as_ref().is_some_and(|g| !g.done && g.waiting.is_empty()) {
            self.left();
        }
    }

    fn left(&mut self) {
        if let Some(goodbye) = &mut self.leave {
            goodbye.done = true;
            let (heard, told) = (goodbye.told - goodbye.waiting.len(), goodbye.told);
            self.push(Action::Left { heard, told });
        }
    }
}
