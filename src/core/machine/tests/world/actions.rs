//! Events into a machine, and its actions carried out.

use bytes::Bytes;

use super::time::Due;
use super::{MS, Stored, Stretch, World};
use crate::core::branch::{Ancestor, Header};
use crate::core::claim::Spec;
use crate::core::ids::SessionId;
use crate::core::io::{Action, Event, Notice, Stop};
use crate::core::reconcile::reconcile;

impl World {
    pub(in super::super) fn give(&mut self, to: &SessionId, event: Event) {
        let clock = self.clock();
        if self.is_paused(to) {
            if let Some(node) = self.nodes.get_mut(to) {
                node.inbox.push_back(event);
            }
            return;
        }
        if let Some(node) = self.nodes.get_mut(to)
            && node.alive
        {
            node.machine.handle(clock, event);
            self.perform(to);
            self.wake_in_time(to);
        }
    }

    pub(super) fn perform(&mut self, session: &SessionId) {
        loop {
            let node = self.nodes.get_mut(session).filter(|node| node.alive);
            let Some(action) = node.and_then(|node| node.machine.poll()) else { break };
            self.trip(session, &action);
            if self.is_alive(session) {
                self.act(session, action);
            }
        }
        self.check_own_claims(session);
    }

    fn act(&mut self, session: &SessionId, action: Action) {
        let now = self.now;
        match action {
            Action::Send { to, message } => {
                if let Some(at) = self.lose.iter().position(|rule| rule(&message)) {
                    self.lose.remove(at);
                    return;
                }
                if self.record_messages {
                    self.sent.push((now, session.clone(), to.clone(), message.clone()));
                }
                self.transmit(session, to, message);
            }
            Action::Probe(of) => {
                self.datagram(session, &of, true);
            }
            Action::Publish(claim) => {
                self.changed(session, &claim.name);
                self.check_epoch(session, &claim);
                self.publish(session, |mine| {
                    mine.claims.insert(claim.name.clone(), claim);
                });
            }
            Action::Retract(name) => {
                self.changed(session, &name);
                self.publish(session, |mine| {
                    mine.claims.remove(&name);
                });
            }
            Action::PublishSpec(spec) => self.publish(session, |mine| {
                mine.specs.insert(spec.name.clone(), spec);
            }),
            Action::RetractSpec(name) => self.publish(session, |mine| {
                mine.specs.remove(&name);
            }),
            Action::PublishDesired(desired) => self.publish(session, |mine| {
                mine.desires.insert(desired.name.clone(), desired);
            }),
            Action::RetractDesired(name) => self.publish(session, |mine| {
                mine.desires.remove(&name);
            }),
            Action::PublishLoad(load) => self.publish(session, |mine| mine.load = load),
            Action::Start { spec, lease, from, lineage, seq } => {
                self.changed(session, &spec.name);
                self.start_loop(session, spec, lease, from, lineage, seq);
            }
            Action::Store { spec, header, state, from } => {
                self.store(session, spec, header, state, from);
            }
            Action::StoreRun { spec, desired } => {
                if let Some(node) = self.nodes.get_mut(session).filter(|node| !node.disk_full) {
                    let new = Stored {
                        spec,
                        desired: None,
                        checkpoints: Vec::new(),
                        damaged: false,
                        end: None,
                    };
                    let key = (new.spec.name.clone(), new.spec.run);
                    let stored = node.disk.runs.entry(key).or_insert(new);
                    if stored.end.is_none() {
                        stored.desired = desired;
                    }
                }
            }
            Action::StoreEnd { end, spec, output, from } => {
                let (name, run) = (spec.name.clone(), spec.run);
                let full = self.nodes[session].disk_full;
                let error = full.then(|| "no space left".to_owned());
                if let Some(node) = self.nodes.get_mut(session).filter(|_| !full) {
                    // As the store does: the better end, and what any of its phase brought.
                    let known = node.disk.runs.remove(&(name.clone(), run));
                    let known = known.and_then(|run| run.end).filter(|(known, _)| {
                        known.claim.phase == end.claim.phase || known.claim.beats(&end.claim)
                    });
                    let end = match known {
                        Some((known, had)) if known.claim.beats(&end.claim) => {
                            let same = known.claim.phase == end.claim.phase;
                            (known, had.or(output.filter(|_| same)))
                        }
                        Some((_, had)) => (end, output.or(had)),
                        None => (end, output),
                    };
                    let stored = Stored {
                        spec,
                        desired: None,
                        checkpoints: Vec::new(),
                        damaged: false,
                        end: Some(end),
                    };
                    node.disk.runs.insert((name.clone(), run), stored);
                }
                let event = Event::StoredEnd { name, run, from, error };
                self.at(MS / 10, Due::Deliver { to: session.clone(), event });
            }
            other => self.act_here(session, other),
        }
    }

    fn act_here(&mut self, session: &SessionId, action: Action) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(session) else { return };
        match action {
            Action::Header { state, version, watermark, released } => {
                node.header = (state, version, watermark, released);
            }
            Action::Reepoch { name, lease } => {
                node.changed.insert(name.clone());
                if let Some(task) = node.loops.get_mut(&name) {
                    task.lineage.push(Ancestor {
                        epoch: task.lease.epoch,
                        writer: task.lease.session.clone(),
                        seq: task.seq,
                    });
                    let stretch = task.stretch;
                    task.lease = lease.clone();
                    self.stretches[stretch].end = Some(now);
                    let (name, run, from_seq) = (name, task.spec.run, task.seq);
                    task.stretch = self.stretches.len();
                    self.stretches.push(Stretch {
                        name,
                        run,
                        epoch: lease.epoch,
                        session: session.clone(),
                        from_seq,
                        start: now,
                        end: None,
                        to_seq: from_seq,
                    });
                    self.stretches[stretch].to_seq = from_seq;
                }
            }
            Action::Stop { name, how } => {
                if let Some(task) = node.loops.get_mut(&name) {
                    task.stop = Some(how);
                    let generation = task.generation;
                    if let Stop::Boundary { grace } = how
                        && !task.stuck
                    {
                        let node = session.clone();
                        self.at(grace, Due::Grace { node, name, generation });
                    } else if task.stuck {
                        let epoch = task.lease.epoch;
                        let event = Event::Unstoppable { name, epoch };
                        self.at(MS * 100, Due::Deliver { to: session.clone(), event });
                    }
                }
            }
            Action::Reconcile { spec, epoch, branches } => {
                let chosen = reconcile(branches, self.chooses);
                let event = Event::Reconciled { name: spec.name, epoch, chosen };
                let take = self.choosing_takes;
                self.at(take, Due::Deliver { to: session.clone(), event });
            }
            Action::FreeSlot(name) => {
                node.slots.remove(&name);
            }
            Action::Permit { until } => node.permit = until,
            Action::Replicated { name, position, replicas, wanted } => {
                if replicas >= wanted.min(1) {
                    node.goes_on.insert(name.clone(), position.seq);
                }
                if replicas == 0 {
                    return;
                }
                if let Some(task) = node.loops.get(&name) {
                    let run = task.spec.run;
                    let known = self.acknowledged.entry(name).or_insert((run, 0));
                    *known = (*known).max((run, position.seq));
                }
            }
            Action::WriteVersion { kind, version } => {
                node.writes.insert(kind, version);
            }
            Action::Load { header } => {
                let key = (header.name.clone(), header.run);
                let state = node.disk.runs.get(&key).and_then(|run| {
                    run.checkpoints.iter().find(|(h, _)| *h == header).map(|(_, s)| s.clone())
                });
                let event = Event::Loaded { header, state, failed: false };
                let take = self.reads_take;
                self.at(take, Due::Deliver { to: session.clone(), event });
            }
            Action::LoadEnd { name, run } => {
                let stored = node.disk.runs.get(&(name.clone(), run));
                let end = stored.and_then(|stored| stored.end.as_ref());
                let output = end.and_then(|(_, output)| output.clone());
                let event = Event::LoadedEnd { name, run, output };
                self.at(MS / 10, Due::Deliver { to: session.clone(), event });
            }
            Action::Discard { name, run, headers } => {
                if headers.is_empty() {
                    node.disk.runs.remove(&(name, run));
                } else if let Some(stored) = node.disk.runs.get_mut(&(name, run)) {
                    stored.checkpoints.retain(|(h, _)| !headers.contains(h));
                }
            }
            Action::DropOutput { name, run } => {
                if let Some(stored) = node.disk.runs.get_mut(&(name, run))
                    && let Some((_, output)) = &mut stored.end
                {
                    *output = None;
                }
            }
            Action::Found { name, best, .. } => {
                node.found.insert(name, best);
            }
            Action::Owner { name, claim } => {
                if let Some(claim) = claim.as_ref().filter(|claim| claim.phase.is_terminal())
                    && node.ended.get(&name).is_none_or(|(run, _)| *run < claim.run)
                {
                    node.ended.insert(name.clone(), (claim.run, now));
                }
                if let Some(claim) = &claim {
                    let shown = node.shown.entry(name.clone()).or_default();
                    let now = (now, claim.session.clone(), claim.phase.clone());
                    if shown.last().is_none_or(|(_, by, phase)| (by, phase) != (&now.1, &now.2)) {
                        shown.push(now);
                    }
                }
                match claim {
                    Some(claim) => node.owners.insert(name, claim),
                    None => node.owners.remove(&name),
                };
            }
            Action::Reply { call, result } => {
                node.replies.insert(call, result);
            }
            Action::Drained => node.drained = Some(now),
            Action::Left { heard, told } => {
                node.left = Some(now);
                node.goodbye = Some((heard, told));
            }
            Action::Tell(notice) => {
                if let Notice::PeerUp(peer) = &notice {
                    node.disk.members.insert(peer.clone());
                }
                node.notices.push((now, notice));
            }
            _ => {}
        }
    }

    fn store(
        &mut self,
        session: &SessionId,
        spec: Spec,
        header: Header,
        state: Bytes,
        from: Option<SessionId>,
    ) {
        let Some(node) = self.nodes.get_mut(session) else { return };
        let error = node.disk_full.then(|| "no space left".to_owned());
        if error.is_none() {
            let key = (header.name.clone(), header.run);
            let stored = node.disk.runs.entry(key).or_insert(Stored {
                desired: None,
                spec,
                checkpoints: Vec::new(),
                damaged: false,
                end: None,
            });
            stored.checkpoints.retain(|(old, _)| !header.replaces(old));
            stored.checkpoints.push((header.clone(), state));
        }
        let event = Event::Stored { header, from, error };
        self.at(self.writes_take, Due::Deliver { to: session.clone(), event });
    }
}
