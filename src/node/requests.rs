//! What handles ask of the control loop.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;

use super::command::Command;
use super::control::{Caller, Control, Ending};
use super::drain::DrainReport;
use super::draining::{Draining, Keepers};
use super::event::NodeEvent;
use super::metrics;
use super::pending::{Pending, Whom};
use super::queries::{Asker, Handle};
use super::status::{KindStatus, RunningTask, Status};
use super::wire::{Answer, Query, Wire};
use crate::checkpoint::Request;
use crate::core::branch::Progress;
use crate::core::ids::{Kind, Name, SessionId};
use crate::core::io::Event;
use crate::core::record::Versions;
use crate::registry::{Entry, TaskState};
use crate::signal::Signal;

/// How long what ran on a runtime that is gone may take to move, before it is released.
const AFTER_LOSS: Duration = Duration::from_secs(5);

impl Control {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Run { spec, again, reply } => {
                let call = self.call(reply);
                self.feed(Event::Run { call, spec, again });
            }
            Command::Want { name, run, want, reply } => {
                let call = self.call(reply);
                self.feed(Event::Want { call, name, run, want });
            }
            Command::Ask { query, attempt, reply } => self.ask(query, attempt, reply),
            Command::Cordon(on) => self.feed(Event::Cordon(on)),
            Command::Drain { budget, reply } => self.drain(budget, reply),
            Command::Hurry { signal } => self.hurry(signal),
            Command::Abort { signal } => self.finish_drain(signal),
            Command::Leave { reply } => {
                self.goodbye.push(reply);
                self.feed(Event::Leave);
            }
            Command::Close => self.ending = Some(Ending::Closed),
            Command::Status { reply } => {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(self.status());
            }
            #[cfg(test)]
            Command::DoomGossip => self.gossip.doom(),
        }
    }

    fn call(&mut self, caller: Caller) -> u64 {
        self.next_call += 1;
        // Callers that stopped waiting must not pile up when the machine has no answer for them.
        if self.next_call.is_multiple_of(1024) {
            self.calls.retain(|_, caller| !caller.is_closed());
        }
        self.calls.insert(self.next_call, caller);
        self.next_call
    }

    /// Answers from here if possible, or else asks the node that should know.
    fn ask(&mut self, query: Query, attempt: usize, asker: Handle) {
        let Some(entry) = self.board.registry.get(query.name()) else {
            let _ = asker.send(None);
            return;
        };
        let whom = self.who_knows(&entry, &query, attempt);
        match whom {
            None => self.answer(query, Whom::Here(asker)),
            Some(to) => self.ask_of(&to, query, Asker::Handle(asker)),
        }
    }

    /// Asks one other node.
    pub(super) fn ask_of(&mut self, to: &SessionId, query: Query, asker: Asker) {
        if let Some(id) = self.queries.open(self.clock.boot(), to.clone(), asker) {
            self.send(to, &Wire::Query { id, query });
        }
    }

    /// Who to ask at the given attempt: the holder, then those that keep a copy. None is this node.
    fn who_knows(&self, entry: &Entry, query: &Query, attempt: usize) -> Option<SessionId> {
        if matches!(query, Query::Kind { .. })
            && self.machine.kind_of(&entry.name, entry.run).is_some()
        {
            return None;
        }
        let mut known = vec![entry.session.clone()];
        // Progress of a task that runs is known to its holder alone.
        let copies = matches!(query, Query::Output { .. } | Query::Kind { .. })
            || entry.state != TaskState::Running;
        if copies || attempt > 1 {
            for node in entry.replicas.iter().chain([&self.me.node]) {
                if *node == self.me.node {
                    known.push(self.me.clone());
                }
                known.extend(self.peers.of_node(node).into_iter().cloned());
            }
        }
        // Whom no link reaches is asked last: the holder may have died with its answer.
        known.sort_by_key(|session| *session != self.me && !self.peers.is_linked(session));
        let whom = known.swap_remove(attempt % known.len());
        (whom != self.me).then_some(whom)
    }

    /// Answers from what is known here.
    pub(super) fn answer(&mut self, query: Query, whom: Whom) {
        match query {
            Query::Progress { name } => {
                let progress = self.progress_of(&name);
                self.reply(whom, progress.map(Answer::Progress));
            }
            Query::Output { name, run } => {
                self.ask_store(Pending::Output(whom), Request::Output { name, run });
            }
            Query::Kind { name, run } => {
                let kind = self.machine.kind_of(&name, run).cloned();
                self.reply(whom, kind.map(Answer::Kind));
            }
            Query::Yielded { name } => {
                let since = self.tally.runs_since(&name);
                let runs_for = since.map(|since| self.clock.boot().since(since));
                self.reply(whom, runs_for.map(Answer::RunsFor));
            }
        }
    }

    fn progress_of(&self, name: &Name) -> Option<Progress> {
        let entry = self.board.registry.get(name)?;
        if let Some(progress) = self.runner.progress(name) {
            return Some(progress);
        }
        match self.progress.get(name) {
            Some((run, progress)) if *run == entry.run => Some(progress.clone()),
            // Held here and nothing was ever said; elsewhere more may be known.
            _ if entry.session == self.me => Some(Progress::default()),
            _ => None,
        }
    }

    pub(super) fn reply(&mut self, whom: Whom, answer: Option<Answer>) {
        match whom {
            Whom::Here(asker) => {
                // Whoever asked may have stopped waiting.
                let _ = asker.send(answer);
            }
            Whom::There { to, id } => self.send(&to, &Wire::Answer { id, answer }),
        }
    }

    fn drain(&mut self, budget: Duration, reply: oneshot::Sender<DrainReport>) {
        if let Some(draining) = &mut self.draining {
            draining.wait(reply);
            return;
        }
        let now = self.clock.boot();
        let mut draining = Draining::new(now, budget);
        draining.wait(reply);
        let deadline = draining.deadline();
        self.draining = Some(draining);
        let holding = self.own.values().filter(|claim| claim.phase.is_held());
        tracing::info!(target: "handover::drain", session = %self.me, tasks = holding.count(), ?budget, "draining");
        self.runner.draining(Some(deadline));
        self.feed(Event::Drain { deadline });
        self.show_state(self.machine.state());
    }

    /// No task can run here any more: they are handed over as they stand, and nothing new may land.
    pub(super) fn on_runtime_lost(&mut self) {
        self.lost = true;
        tracing::error!(target: "handover::node", session = %self.me, "the runtime that tasks ran on has been shut down: they are handed over from their last commits");
        self.board.tell(NodeEvent::RuntimeLost);
        // Nobody waits for this report; whoever drains later gets it.
        self.drain(AFTER_LOSS, oneshot::channel().0);
        self.runner.bury();
    }

    fn hurry(&mut self, signal: Option<Signal>) {
        let now = self.clock.boot();
        if self.draining.as_mut().is_some_and(|draining| draining.hurry(now, signal)) {
            tracing::warn!(target: "handover::drain", "hurried: steps are dropped, last commits are handed over");
            self.feed(Event::DrainNow);
        }
    }

    /// Reports the drain as it stands, if it has not been yet.
    pub(super) fn finish_drain(&mut self, abort: Option<Signal>) {
        let now = self.clock.boot();
        let linked = self.peers.staying().map(|session| session.node.clone()).collect();
        let stored =
            |name: &&Name| self.machine.is_on_disk(name) && !self.unrecorded.contains(*name);
        let stored = self.own.keys().filter(stored);
        let keepers = Keepers { stored: stored.cloned().collect(), linked };
        let Some(draining) = self.draining.as_mut().filter(|drain| !drain.is_over()) else {
            return;
        };
        // In the time there was.
        let running = self.runner.not_stopped();
        running.iter().for_each(|(name, _)| draining.unstoppable(name));
        let report = draining.finish(now, &self.own, &keepers, abort);
        metrics::drained(report);
        tracing::info!(
            target: "handover::drain",
            session = %self.me,
            moved = report.moved,
            parked = report.parked,
            only_on_disk = report.only_on_disk,
            released = report.released,
            ended = report.ended,
            unstoppable = report.unstoppable.len(),
            abandoned = report.abandoned.len(),
            elapsed = ?report.elapsed,
            outcome = report.outcome(),
            "drained"
        );
        self.board.drained(report.clone());
        draining.tell();
        for (name, epoch) in running {
            self.feed(Event::Unstoppable { name, epoch });
        }
    }

    fn status(&self) -> Status {
        let view = self.board.view();
        let mut tasks = BTreeMap::new();
        let mut running = Vec::new();
        for entry in self.board.registry.list("") {
            *tasks.entry(entry.state.as_str()).or_default() += 1;
            if entry.state == TaskState::Running && entry.session == self.me {
                let progress = self.runner.progress(&entry.name);
                running.push(RunningTask { entry, progress });
            }
        }
        Status {
            cluster: self.cluster.clone(),
            session: self.me.clone(),
            address: self.address,
            revision: self.revision.clone(),
            state: view.state,
            ready: view.ready,
            peers: self.peers.shown(),
            running,
            tasks,
            kinds: self.kinds(),
        }
    }

    fn kinds(&self) -> BTreeMap<Kind, KindStatus> {
        let mut kinds: BTreeMap<Kind, KindStatus> = self
            .machine
            .kinds()
            .map(|(kind, Versions { oldest, newest }, writes)| {
                (kind.clone(), KindStatus { oldest, newest, writes, one_way: 0 })
            })
            .collect();
        for name in self.own.keys().filter(|name| self.machine.is_one_way(name)) {
            let kind = self.machine.spec(name).and_then(|spec| kinds.get_mut(&spec.kind));
            if let Some(kind) = kind {
                kind.one_way += 1;
            }
        }
        kinds
    }
}
