//! Carrying out what the machine decides.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::command::Goodbye;
use super::control::{Control, Ending};
use super::metrics;
use super::pending::{Pending, Written};
use super::wire::{self, Wire};
use crate::checkpoint::{Request, Write};
use crate::core::branch::Header;
use crate::core::claim::Claim;
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Action, From};
use crate::core::message::Message;
use crate::gossip::Table;
use crate::link::Class;
use crate::registry::{Entry, TaskEvent};

/// Frames up to this size may overtake bulk transfers.
const SMALL: usize = 16 << 10;

impl Control {
    /// Carries out everything that has been decided.
    pub(super) fn act(&mut self) {
        while let Some(action) = self.machine.poll() {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Send { to, message } => self.send_core(&to, message),
            Action::Probe(session) => {
                if let Some(address) = self.peers.address(&session) {
                    self.gossip.probe(address);
                }
            }
            Action::Publish(claim) => self.publish(claim),
            Action::Retract(name) => {
                self.own.remove(&name);
                self.put(Table::Claims, &name, None::<&Claim>);
            }
            Action::PublishSpec(spec) => self.put(Table::Specs, &spec.name, Some(&spec)),
            Action::RetractSpec(name) => self.put(Table::Specs, &name, None::<&()>),
            Action::PublishDesired(desired) => {
                self.put(Table::Desires, &desired.name, Some(&desired));
            }
            Action::RetractDesired(name) => self.put(Table::Desires, &name, None::<&()>),
            Action::Header { state, version, watermark, released } => {
                self.gossip.set_header(state, version, watermark, released);
                self.show_state(state);
            }
            Action::PublishLoad(load) => self.gossip.set_load(load),
            Action::Start { spec, lease, from, lineage, seq } => {
                if let From::Checkpoint { header, .. } = &from {
                    self.note_progress(header);
                    let now_ms = self.clock.wall_ms();
                    let age = now_ms.saturating_sub(header.wall_ms);
                    metrics::checkpoint_age(&header.kind, Duration::from_millis(age));
                }
                self.tally.begun(self.clock.boot(), &spec.name, spec.run, &from);
                self.runner.start(spec, lease, from, lineage, seq);
            }
            Action::Reepoch { name, lease } => self.runner.reepoch(&name, lease),
            Action::Reconcile { spec, epoch, branches } => {
                self.tally.reconciling(&spec.name);
                self.runner.reconcile(spec, epoch, branches);
            }
            Action::Stop { name, how } => self.runner.stop(&name, how),
            Action::CommitAll => self.runner.commit_all(),
            Action::FreeSlot(name) => self.runner.free_slot(&name),
            Action::Replicated { name, position, replicas, wanted } => {
                self.runner.replicated(&name, position, replicas, wanted);
            }
            Action::Permit { until } => self.runner.permit(until),
            Action::WriteVersion { kind, version } => {
                tracing::info!(target: "handover::task", %kind, version, "states are written in this version from now on");
                self.runner.write_version(&kind, version);
            }
            Action::Store { spec, header, state, from } => {
                self.note_progress(&header);
                let answer = Written::Checkpoint { header: header.clone(), from };
                let write = Write::Put { spec, header, state };
                self.ask_store(Pending::Write(answer), Request::Write(Box::new(write)));
            }
            Action::StoreRun { spec, desired } => {
                let answer = Written::Run { name: spec.name.clone() };
                let write = Write::Run { spec, desired };
                self.ask_store(Pending::Write(answer), Request::Write(Box::new(write)));
            }
            Action::StoreEnd { end, spec, output, from } => {
                let answer = Written::End { name: spec.name.clone(), run: spec.run, from };
                let write = Write::End { end, spec, output };
                self.ask_store(Pending::Write(answer), Request::Write(Box::new(write)));
            }
            Action::Load { header } => {
                let request = Request::Load {
                    name: header.name.clone(),
                    run: header.run,
                    position: header.position,
                    writer: header.writer.clone(),
                };
                self.ask_store(Pending::Load(header), request);
            }
            Action::LoadEnd { name, run } => {
                let pending = Pending::End { name: name.clone(), run };
                self.ask_store(pending, Request::Output { name, run });
            }
            Action::Discard { name, run, headers } => {
                let headers =
                    headers.into_iter().map(|header| (header.position, header.writer)).collect();
                let answer = Written::Deletion { name: name.clone() };
                let write = Write::Discard { name, run, headers };
                self.ask_store(Pending::Write(answer), Request::Write(Box::new(write)));
            }
            Action::DropOutput { name, run } => {
                let answer = Written::Deletion { name: name.clone() };
                let write = Write::DropOutput { name, run };
                self.ask_store(Pending::Write(answer), Request::Write(Box::new(write)));
            }
            Action::Found { name, run, best } => {
                let epoch = best.as_ref().map(|header| header.position.epoch);
                let found = Entry::found(&self.me, &self.revision, name, run, epoch);
                self.board.registry.found(found);
                if let Some(header) = best {
                    self.note_progress(&header);
                }
            }
            Action::Owner { name, claim } => self.show_owner(&name, claim.as_ref()),
            Action::Reply { call, result } => {
                if let Some(caller) = self.calls.remove(&call) {
                    // Whoever called may have stopped waiting.
                    let _ = caller.send(result);
                }
            }
            Action::Drained => self.finish_drain(None),
            Action::Stays { running } => {
                for reply in self.goodbye.drain(..) {
                    // Whoever asked may have stopped waiting.
                    let _ = reply.send(Err(running.clone()));
                }
            }
            Action::Left { heard, told } => {
                let goodbye = Goodbye { heard, told };
                self.board.left(goodbye);
                for reply in self.goodbye.drain(..) {
                    let _ = reply.send(Ok(goodbye));
                }
                self.ending = Some(Ending::Left);
            }
            Action::Tell(notice) => self.tell(notice),
        }
    }

    fn publish(&mut self, claim: Claim) {
        self.put(Table::Claims, &claim.name, Some(&claim));
        self.own.insert(claim.name.clone(), claim);
    }

    fn put<R: Serialize>(&mut self, table: Table, name: &Name, record: Option<&R>) {
        let bytes = match record.map(wire::encode).transpose() {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(target: "handover::gossip", %name, %error, "a record cannot be encoded");
                return;
            }
        };
        if let Err(error) = self.gossip.put(table, name, bytes) {
            self.warn(format!("a record of {name} cannot be published: {error}"));
        }
    }

    fn send_core(&mut self, to: &SessionId, message: Message) {
        self.send(to, &Wire::Core(Box::new(message)));
    }

    /// Sends a frame. One that no link takes is lost, as it would be with the link.
    pub(super) fn send(&mut self, to: &SessionId, frame: &Wire) {
        let bytes = match wire::encode(frame) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(target: "handover::link", peer = %to, %error, "a message cannot be encoded");
                return;
            }
        };
        self.want(to);
        if let Err(error) = self.links.send(to, class(&bytes), bytes) {
            metrics::message_dropped();
            tracing::debug!(target: "handover::link", peer = %to, %error, "a message was not sent");
        }
    }

    fn show_owner(&mut self, name: &Name, claim: Option<&Claim>) {
        let revision = claim.and_then(|claim| {
            if claim.session == self.me {
                Some(self.revision.clone())
            } else {
                self.peers.revision(&claim.session)
            }
        });
        if claim.is_none() {
            self.progress.remove(name);
            self.unrecorded.remove(name);
        }
        if claim.is_none_or(|claim| claim.session != self.me) {
            let before = self.board.registry.get(name).and_then(|entry| entry.ran_on);
            self.tally.owned(self.clock.boot(), name, claim, before.as_ref());
        }
        self.board.registry.set(name, claim, revision);
    }

    /// Remembers how far a task is, for those who ask while it does not run.
    pub(super) fn note_progress(&mut self, header: &Header) {
        let Some(progress) = &header.progress else {
            return;
        };
        let known = self.progress.get(&header.name);
        if known.is_none_or(|(run, known)| *run < header.run || known.done <= progress.done) {
            self.progress.insert(header.name.clone(), (header.run, progress.clone()));
            let (name, progress) = (header.name.clone(), progress.clone());
            self.board.registry.report(&header.name, TaskEvent::Progress { name, progress });
        }
    }
}

fn class(bytes: &Bytes) -> Class {
    if bytes.len() <= SMALL { Class::Control } else { Class::Bulk }
}
