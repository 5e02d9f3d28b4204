//! Checkpoints on their way to their replicas, and as a replica's keeper (Rules 19 and 20).

use bytes::Bytes;

use super::Machine;
use super::task::{Doing, Task};
use crate::core::branch::{Admission, Ancestor, Header, Position, higher};
use crate::core::claim::{Claim, Phase, Spec};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::{Action, Notice};
use crate::core::limits;
use crate::core::members::Peer;
use crate::core::message::{Message, Rejection};
use crate::core::placement;
use crate::core::time::Time;

/// Bound on runs of a name of which checkpoints are held.
pub(super) const MAX_RUNS: usize = 4;

impl Machine {
    pub(super) fn on_committed(&mut self, header: Header, state: Bytes, forced: bool) {
        let name = header.name.clone();
        let targets = self.replica_targets(&name);
        let Some(task) = self.tasks.get_mut(&name) else {
            return;
        };
        if !task.runs() || header.run != task.claim.run {
            return;
        }
        task.latest = Some(header.clone());
        if forced {
            task.forced = Some(header.position);
        }
        let spec = task.spec.clone();
        self.keep(&spec, header.clone(), state.clone(), None);
        self.replicate_now(&name, targets, &header, &state);
    }

    /// The newest commit of a task goes to those that are to keep it.
    pub(super) fn replicate_now(
        &mut self,
        name: &Name,
        targets: Vec<SessionId>,
        header: &Header,
        state: &Bytes,
    ) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.sent = self.now.at;
        // Without replicas the disk alone counts, and what it refuses is tried again; so is what is waited for.
        let alone = targets.is_empty() && self.config.durable;
        let waited_for = task.forced == Some(header.position);
        task.bytes = (alone || waited_for).then(|| state.clone());
        task.replicas.clone_from(&targets);
        let (claim, spec) = (task.claim.clone(), task.spec.clone());
        for to in &targets {
            self.send_checkpoint(to, &claim, &spec, header, state);
        }
        if targets.is_empty() && !alone {
            self.replicated(name, header.position);
        }
        self.alarm_in(name, self.config.timing.silence_floor);
    }

    pub(super) fn send_checkpoint(
        &mut self,
        to: &SessionId,
        claim: &Claim,
        spec: &Spec,
        header: &Header,
        state: &Bytes,
    ) {
        let message = Message::Checkpoint {
            claim: claim.clone(),
            spec: spec.clone(),
            header: header.clone(),
            state: state.clone(),
        };
        self.send(to, message);
    }

    /// The next `replicas` nodes of the name's rendezvous order. Cordoned ones, which may be the next to
    /// go, come after those that are up, then for a draining node those that are joining, and those that may be
    /// dead for all that it has heard. Whose store has failed comes last.
    pub(super) fn replica_targets(&self, name: &Name) -> Vec<SessionId> {
        let keeps = self.members.iter().filter(|(_, peer)| self.may_keep(peer));
        let mut order = placement::rendezvous(name, keeps.map(|(session, _)| session));
        let refused = self.tasks.get(name).map(|task| &task.refused);
        order.sort_by_key(|session| {
            let peer = self.members.get(session);
            let (up, keeps) = (peer.is_some_and(Peer::is_up), peer.is_some_and(Peer::keeps));
            let refused = refused.is_some_and(|refused| refused.contains(*session));
            (refused, self.is_doubted(session), !up, !keeps)
        });
        order.into_iter().take(self.config.replicas.min(limits::OF_ONE)).cloned().collect()
    }

    /// A link has come up: what may have been lost with the last one goes out again.
    pub(super) fn replicate_again(&mut self, session: &SessionId) {
        let lost: Vec<Header> = self
            .tasks
            .values()
            .filter(|task| task.replicas.contains(session))
            .filter_map(|task| {
                let latest = task.latest.as_ref()?;
                let held = task.acked.get(session);
                held.is_none_or(|held| *held < latest.position).then(|| latest.clone())
            })
            .collect();
        for header in lost {
            self.push(Action::Load { header });
        }
    }

    pub(super) fn on_checkpoint_reply(
        &mut self,
        from: &SessionId,
        name: &Name,
        run: RunId,
        position: Position,
        result: Result<(), Rejection>,
    ) {
        self.drain_answered(from);
        if result.is_ok() {
            self.owed_acked(from, name, position);
        }
        self.relief_answered(from, name, run, position, &result);
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        if task.claim.run != run {
            return;
        }
        match result {
            Ok(()) => {
                // One that is neither may have been told meanwhile that it need not keep it.
                let target = task.hand.as_ref().is_some_and(|hand| hand.to == *from);
                if target || task.replicas.contains(from) {
                    let newest = task.acked.entry(from.clone()).or_default();
                    *newest = (*newest).max(position);
                }
                self.replicated(name, position);
                self.sealed_at(from, name, position);
                self.parted(name);
            }
            Err(Rejection::Superseded(claim)) => {
                if claim.name == *name {
                    self.learn_claim(*claim);
                }
            }
            Err(Rejection::Unavailable(why)) => {
                task.refused.insert(from.clone());
                let text = format!("{from} keeps no checkpoint of {name}: {why}");
                self.tell(Notice::Unstored { text, elsewhere: true });
                self.seal_refused(from, name);
                self.parted(name);
                self.nobody_keeps(name);
                self.dirty.insert(name.clone());
            }
        }
    }

    /// Every node that could keep the newest commit has refused: as where there is no other node, this one's
    /// own store has to do.
    fn nobody_keeps(&mut self, name: &Name) {
        let targets = self.replica_targets(name);
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Some(latest) = &task.latest else { return };
        let refused = targets.iter().all(|target| task.refused.contains(target));
        if refused && self.is_stored(latest) && task.forced.is_some() {
            let position = latest.position;
            self.replicated(name, position);
        }
    }

    /// Whether this node's own store has a checkpoint.
    fn is_stored(&self, header: &Header) -> bool {
        // One that could not be written is not held.
        let branches = self.held.get(&header.name).and_then(|runs| runs.get(&header.run));
        branches.is_some_and(|branches| branches.iter().any(|kept| kept == header))
            && !self.writing.contains_key(&writing(header))
    }

    /// Whether the newest state of a task that this node has, or has let go of, outlasts it on its disk. Of one that
    /// has committed nothing yet that is the record of its run, which was given to the disk when it began.
    pub fn is_on_disk(&self, name: &Name) -> bool {
        let Some(task) = self.tasks.get(name).filter(|_| self.config.durable) else {
            return false;
        };
        let recorded = || {
            let runs = self.held.get(name);
            !task.claim.checkpointed && runs.is_some_and(|runs| runs.contains_key(&task.claim.run))
        };
        self.newest_here(task).map_or_else(recorded, |newest| self.is_stored(newest))
    }

    /// Whether that is still being written, and nobody else has it.
    pub(super) fn is_being_stored(&self, task: &Task) -> bool {
        let mine = task.claim.phase.is_held() || task.claim.phase == Phase::Released;
        let newest = self.newest_here(task);
        self.config.durable
            && mine
            && newest.is_some_and(|newest| self.writing.contains_key(&writing(newest)))
            && self.holders(task) == 0
    }

    /// The last commit of a task; or what is held here, where it has made none on this node.
    pub(super) fn newest_here<'a>(&'a self, task: &'a Task) -> Option<&'a Header> {
        let held = || {
            let runs = self.held.get(&task.claim.name)?;
            runs.get(&task.claim.run)?.best_from(task.prior.floor.as_ref())
        };
        task.latest.as_ref().or_else(held)
    }

    /// A commit has reached a replica (or there is none to reach): the claim says so before the
    /// task is told.
    fn replicated(&mut self, name: &Name, position: Position) {
        let durable = self.config.durable;
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let have = |task: &Task, s: &SessionId| task.acked.get(s).is_some_and(|p| *p >= position);
        let holders: Vec<SessionId> =
            task.replicas.iter().filter(|s| have(task, s)).cloned().collect();
        // Who keeps nothing cannot be waited for.
        let wanted = task.replicas.iter().filter(|s| !task.refused.contains(*s)).count();
        let (replicas, mut changed) = (holders.len(), false);
        let mut obsolete: Vec<SessionId> = Vec::new();
        let latest = task.latest.clone();
        if replicas > 0 || (wanted == 0 && durable) {
            changed |= !std::mem::replace(&mut task.claim.checkpointed, true);
        }
        if replicas == wanted {
            let nodes: Vec<_> = holders.iter().map(|session| session.node.clone()).collect();
            if wanted > 0 && task.claim.replicas != nodes {
                for old in std::mem::replace(&mut task.claim.replicas, nodes) {
                    obsolete.extend(self.members.session_of(&old).cloned());
                }
                changed = true;
            }
        }
        if let Some(forced) = task.forced
            && position >= forced
            && (replicas > 0 || wanted == 0)
        {
            task.forced = None;
            let is_latest = latest.as_ref().is_some_and(|latest| latest.position == position);
            let held_for_it = is_latest && matches!(task.doing, Doing::Running);
            task.bytes.take_if(|_| held_for_it);
            if replicas > 0 || durable {
                let point = Ancestor {
                    epoch: forced.epoch,
                    writer: self.config.me.clone(),
                    seq: forced.seq,
                };
                task.claim.floor = higher(task.claim.floor.take(), Some(point));
                changed = true;
            }
        }
        if changed && task.claim.phase.is_held() {
            self.publish(name);
        }
        self.push(Action::Replicated { name: name.clone(), position, replicas, wanted });
        if let Some(header) = latest.filter(|latest| latest.position == position) {
            obsolete.retain(|old| !holders.contains(old));
            self.tell_obsolete(obsolete, &header);
            if replicas > 0 || wanted == 0 {
                self.tell_reconciled(&header);
            }
        }
    }

    /// These need keep no copy any more of what this checkpoint contains, itself included: none of them counts as a
    /// holder from now on.
    pub(super) fn tell_obsolete(&mut self, old: Vec<SessionId>, header: &Header) {
        for old in old {
            if let Some(task) = self.tasks.get_mut(&header.name) {
                task.acked.remove(&old);
            }
            self.send(&old, Message::Obsolete { header: header.clone() });
        }
    }

    /// Membership changed: commits go to other nodes from now on, the newest at once.
    pub(super) fn look_replicas(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        if !matches!(task.doing, Doing::Running | Doing::Kept | Doing::Stopping(_)) {
            return;
        }
        // What is about to go has a target; until that has the state, somebody who stays must.
        let leaving = task.hand.is_some() || matches!(task.doing, Doing::Stopping(_));
        if leaving && self.holders(task) > 0 {
            return;
        }
        let targets = self.replica_targets(name);
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        if task.replicas == targets && task.latest.is_some() {
            return self.look_unacknowledged(name);
        }
        let Some(latest) = task.latest.clone() else {
            return;
        };
        let missing = targets
            .iter()
            .any(|new| task.acked.get(new).is_none_or(|held| *held < latest.position));
        task.replicas = targets;
        let waits = task.replicas.is_empty() && task.forced.is_some();
        if missing {
            self.push(Action::Load { header: latest.clone() });
            self.load_pins(name);
        } else if waits {
            self.nobody_keeps(name);
        } else {
            self.replicated(name, latest.position);
        }
    }

    /// A commit that nobody has acknowledged for long was lost on its way, or refused: once more.
    fn look_unacknowledged(&mut self, name: &Name) {
        let (now, patience) = (self.now.at, self.config.timing.silence_floor);
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let Some(latest) = task.latest.clone() else {
            return;
        };
        let lacks = |to| task.acked.get(to).is_none_or(|held| *held < latest.position);
        if !task.replicas.iter().any(lacks) && task.bytes.is_none() {
            return;
        }
        let due = task.sent + patience;
        if now < due {
            return self.alarm(name, due);
        }
        task.sent = now;
        task.refused.clear();
        match task.bytes.clone() {
            Some(state) => {
                let spec = task.spec.clone();
                self.keep(&spec, latest.clone(), state.clone(), None);
                self.replicate_loaded(&latest, &state);
            }
            None => self.push(Action::Load { header: latest }),
        }
        self.alarm_in(name, patience);
    }

    /// My newest commit is on the disk, and there is no replica to wait for.
    fn stored_alone(&mut self, header: &Header) {
        let Some(task) = self.tasks.get_mut(&header.name) else {
            return;
        };
        if task.latest.as_ref() == Some(header)
            && task.replicas.is_empty()
            && matches!(task.doing, Doing::Running | Doing::Kept)
            && task.bytes.take().is_some()
        {
            self.replicated(&header.name, header.position);
        }
    }

    /// The bytes of my newest commit, for replicas that lack it.
    pub(super) fn replicate_loaded(&mut self, header: &Header, state: &Bytes) {
        let Some(task) = self.tasks.get(&header.name) else {
            return;
        };
        if task.latest.as_ref() != Some(header)
            || !matches!(
                task.doing,
                Doing::Running | Doing::Kept | Doing::Stopping(_) | Doing::Parting { .. }
            )
        {
            return;
        }
        let (claim, spec) = (task.claim.clone(), task.spec.clone());
        let lacking: Vec<SessionId> = task
            .replicas
            .iter()
            .filter(|s| task.acked.get(*s).is_none_or(|held| *held < header.position))
            .cloned()
            .collect();
        for to in lacking {
            self.send_checkpoint(&to, &claim, &spec, header, state);
        }
    }

    /// A replica is gone: its acknowledgements count no more, and what is being handed over needs
    /// those of another.
    pub(super) fn replicas_gone(&mut self, session: &SessionId) {
        for (name, task) in &mut self.tasks {
            task.acked.remove(session);
            task.refused.clear();
            if task.hand.is_some() && task.replicas.contains(session) {
                self.dirty.insert(name.clone());
            }
        }
    }

    pub(super) fn on_checkpoint(
        &mut self,
        from: &SessionId,
        claim: Claim,
        spec: Spec,
        header: Header,
        state: Bytes,
    ) {
        let (name, run, position) = (header.name.clone(), header.run, header.position);
        if spec.name != name || claim.name != name || spec.run != run || header.kind != spec.kind {
            return;
        }
        if claim.session == *from {
            self.learn_claim(claim.clone());
        }
        self.revoke_failure(&name);
        let reply = |result| Message::CheckpointReply { name: name.clone(), run, position, result };
        if !self.admits(&name) {
            let why = "as many names as allowed are known here".to_owned();
            return self.send(from, reply(Err(Rejection::Unavailable(why))));
        }
        if let Some(over) = self.over_run(&claim) {
            return self.send(from, reply(Err(Rejection::Superseded(Box::new(over)))));
        }
        self.learn(spec.clone());
        // A zombie is told who has the name now; what it wrote is kept all the same, as a branch.
        let zombie = self
            .view
            .owner(&name)
            .filter(|owner| {
                owner.run == run
                    && owner.epoch > position.epoch
                    && owner.session != *from
                    && owner.phase.is_held()
                    // What it hands over is not a zombie's.
                    && !matches!(&owner.phase, Phase::Incoming { from: source } if source == from)
                    && !self.is_void(owner)
            })
            .cloned();
        let written = writing(&header);
        match self.keep(&spec, header, state, Some(from.clone())) {
            // One that is still being written is answered when it is.
            Admission::Known if self.writing.contains_key(&written) => {}
            Admission::Known => self.send(from, reply(Ok(()))),
            Admission::Full => {
                let why = "too many unreconciled branches of this run are kept here".to_owned();
                self.send(from, reply(Err(Rejection::Unavailable(why))));
            }
            _ => {}
        }
        if let Some(zombie) = zombie {
            self.send(from, reply(Err(Rejection::Superseded(Box::new(zombie)))));
        }
    }

    /// The claim that shows that a run is over: its end, or a newer run that has won.
    fn over_run(&self, writer: &Claim) -> Option<Claim> {
        if let Some((end, _)) = self.ends.get(&writer.name)
            && end.ends(writer)
        {
            return Some(end.clone());
        }
        self.view
            .claims(&writer.name)
            .find(|claim| claim.ends(writer) || (claim.run > writer.run && claim.has_won()))
            .cloned()
    }

    /// Admits a checkpoint to its run's branches and stores it.
    pub(super) fn keep(
        &mut self,
        spec: &Spec,
        header: Header,
        state: Bytes,
        from: Option<SessionId>,
    ) -> Admission {
        // A copy may run on for a step after its node has heard of the end, which no store gives up for it.
        let over = |(end, _): &(Claim, Time)| {
            let above = end.phase == Phase::Failed && header.position.epoch > end.epoch;
            end.run == header.run && !above
        };
        if self.ends.get(&header.name).is_some_and(over) {
            return Admission::Known;
        }
        if !self.has_room_for_run(&header.name, header.run) {
            return Admission::Full;
        }
        self.view.raise(&header.name, header.position.epoch);
        let runs = self.held.entry(header.name.clone()).or_default();
        let branches = runs.entry(header.run).or_default();
        let admission = branches.admit(header.clone());
        let header_writer = header.writer.clone();
        if let Admission::Kept { superseded } = &admission {
            let (name, run) = (header.name.clone(), header.run);
            self.writing.insert(writing(&header), superseded.clone());
            // What it contains goes with its being stored.
            self.push(Action::Store { spec: spec.clone(), header, state, from });
            self.note_pins(&name, run);
            if header_writer != self.config.me {
                self.note_branches(&name);
            }
        }
        admission
    }

    /// Makes room for the checkpoints of one more run of a name, where that needs be: the lowest run
    /// gives way that does not stand.
    fn has_room_for_run(&mut self, name: &Name, run: RunId) -> bool {
        let Some(runs) = self.held.get(name) else {
            return true;
        };
        if runs.contains_key(&run) || runs.len() < MAX_RUNS {
            return true;
        }
        // Where none stands, what is held may be all that is left of the name.
        let Some(stands) = self.standing_run(name) else {
            return false;
        };
        let least = runs.keys().copied().find(|held| *held != stands);
        let Some(least) = least.filter(|least| *least < run || run == stands) else {
            return false;
        };
        if let Some(runs) = self.held.get_mut(name) {
            runs.remove(&least);
        }
        self.outdated.remove(&(name.clone(), least));
        self.push(Action::Discard { name: name.clone(), run: least, headers: Vec::new() });
        true
    }

    pub(super) fn on_stored(
        &mut self,
        header: Header,
        from: Option<SessionId>,
        error: Option<String>,
    ) {
        let (name, run, position) = (header.name.clone(), header.run, header.position);
        let superseded = self.writing.remove(&writing(&header)).unwrap_or_default();
        if error.is_none() && from.is_none() {
            self.stored_alone(&header);
            self.nobody_keeps(&name);
        }
        if let Some(why) = &error {
            self.not_stored(&header, superseded);
            let text = format!("a checkpoint of {name} could not be stored: {why}");
            self.tell(Notice::Unstored { text, elsewhere: false });
        }
        if from.is_some() && self.forked.contains_key(&name) {
            self.dirty.insert(name.clone());
        }
        if let Some(from) = from {
            let unavailable = |why| Err(Rejection::Unavailable(limits::clipped(why, limits::TEXT)));
            let result = error.map_or(Ok(()), unavailable);
            self.send(&from, Message::CheckpointReply { name, run, position, result });
        }
    }

    /// Not stored is not held, nobody must rely on it; and what it took the place of still is.
    fn not_stored(&mut self, header: &Header, superseded: Vec<Header>) {
        let run = (&header.name, header.run);
        let mut later = self.writing.iter_mut().filter(|((name, of, ..), _)| (name, *of) == run);
        if let Some((_, before)) = later.find(|(_, before)| before.contains(header)) {
            before.retain(|old| old != header);
            return before.extend(superseded);
        }
        let runs = self.held.get_mut(&header.name);
        if let Some(branches) = runs.and_then(|runs| runs.get_mut(&header.run)) {
            branches.drop_exact(header);
            superseded.into_iter().for_each(|old| drop(branches.admit(old)));
        }
    }

    /// The newest checkpoint of a branch cannot be read: the one before it stands for the branch.
    pub(super) fn on_fell_back(&mut self, damaged: &Header, to: Header) {
        self.view.raise(&to.name, to.position.epoch);
        let runs = self.held.entry(to.name.clone()).or_default();
        let branches = runs.entry(to.run).or_default();
        branches.drop_exact(damaged);
        branches.admit(to);
    }

    /// Others hold what I hold, and more.
    pub(super) fn on_obsolete(&mut self, header: &Header) {
        let Some(runs) = self.held.get_mut(&header.name) else {
            return;
        };
        let Some(branches) = runs.get_mut(&header.run) else {
            return;
        };
        let mut headers = branches.drop_replaced(header);
        let replaced = !headers.is_empty();
        if branches.is_empty() {
            runs.remove(&header.run);
            // With the last one goes the run, and with it a revoked failure that lies beside them.
            if self.ends.get(&header.name).is_none_or(|(end, _)| end.run != header.run) {
                headers.clear();
            }
        }
        if runs.is_empty() {
            self.held.remove(&header.name);
        }
        if replaced {
            let (name, run) = (header.name.clone(), header.run);
            self.push(Action::Discard { name, run, headers });
        }
    }
}

/// Tells one checkpoint from any other.
fn writing(header: &Header) -> (Name, RunId, Position, SessionId) {
    (header.name.clone(), header.run, header.position, header.writer.clone())
}
