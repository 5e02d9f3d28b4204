//! Turning what the outside says into events for the machine.

use bytes::Bytes;

use super::conflicts::Conflict;
use super::control::Control;
use super::event::NodeEvent;
use super::metrics;
use super::pending::{Pending, Whom, Written};
use super::queries::Asker;
use super::records::{self, Named};
use super::wire::{Answer, Wire};
use crate::checkpoint::{self as store, Damage, QueueFull, Reply, Request, StoreError};
use crate::core::branch::Header;
use crate::core::ids::{Name, SessionId};
use crate::core::io::Event;
use crate::gossip::{GossipEvent, Table};
use crate::link::LinkEvent;

/// Reads that wait for the store: a node that takes over all names there can be has one for each.
pub(super) const MAX_WAITING: usize = 1_000_000;

impl Control {
    pub(super) fn on_gossip(&mut self, event: GossipEvent) {
        match event {
            GossipEvent::Heard {
                from,
                address,
                state,
                version,
                watermark,
                released,
                echoed,
                returned,
            } => {
                self.peers.heard(&from, (state, version), address, self.clock.boot());
                let heard = Event::Heard {
                    from: from.clone(),
                    state,
                    version,
                    watermark,
                    released,
                    echoed,
                };
                self.feed(heard);
                self.want(&from);
                if returned {
                    self.links.hasten(&from);
                }
            }
            GossipEvent::Located { of, address } => {
                self.peers.located(&of, address);
                self.want(&of);
            }
            GossipEvent::Stranger { from, why } => {
                tracing::warn!(target: "handover::gossip", %from, why, "datagrams that cannot be opened");
                self.board.tell(NodeEvent::Stranger { from, why: why.to_owned() });
            }
            GossipEvent::Heartbeat { of } => self.feed(Event::Heartbeat { of }),
            GossipEvent::Suspicion { of, suspected } => {
                self.feed(Event::Suspicion { of, suspected });
            }
            GossipEvent::Static { of, record } => {
                self.peers.record(&of, record.clone());
                self.feed(Event::Record { of: of.clone(), record });
                self.want(&of);
            }
            GossipEvent::Load { of, load } => {
                self.peers.load(&of, load);
                self.feed(Event::Load { of, load });
            }
            GossipEvent::Records { of, table, changes } => self.on_records(of, table, changes),
            GossipEvent::CaughtUp { of } => self.feed(Event::CaughtUp { of }),
            GossipEvent::Forgotten { of } => {
                self.unwant(&of);
                self.peers.remove(&of);
                self.conflicts.forget(&of);
            }
            GossipEvent::Ended { reason, restarted } => self.on_gossip_ended(reason, restarted),
        }
    }

    fn on_records(&mut self, of: SessionId, table: Table, changes: Vec<(Name, Option<Bytes>)>) {
        match table {
            Table::Claims => {
                let changes = self.read(&of, changes).collect();
                self.feed(Event::Claims { of, changes });
            }
            Table::Specs => {
                let specs = self.read(&of, changes).filter_map(|(_, spec)| spec).collect();
                self.feed(Event::Specs { specs });
            }
            Table::Desires => {
                let desires = self.read(&of, changes).filter_map(|(_, desired)| desired).collect();
                self.feed(Event::Desires { desires });
            }
        }
    }

    /// Those of the records that may be taken; the others are dropped, with a warning (R6).
    fn read<R: Named>(
        &mut self,
        of: &SessionId,
        changes: Vec<(Name, Option<Bytes>)>,
    ) -> impl Iterator<Item = (Name, Option<R>)> {
        let (now, seldom) = (self.clock.boot(), &mut self.bad_records);
        changes.into_iter().filter_map(move |(name, bytes)| {
            let Some(bytes) = bytes else {
                return Some((name, None));
            };
            match records::read(of, &name, &bytes) {
                Ok(record) => Some((name, Some(record))),
                Err(error) => {
                    metrics::record_rejected();
                    if let Some(unsaid) = seldom.speak(now) {
                        tracing::warn!(target: "handover::gossip", peer = %of, %name, %error, unsaid, "a record was dropped");
                    }
                    None
                }
            }
        })
    }

    pub(super) fn on_gossip_ended(&mut self, reason: String, restarted: bool) {
        if restarted {
            self.board.tell(NodeEvent::GossipRestarted { why: reason });
        } else if !std::mem::replace(&mut self.mute, true) && self.ending.is_none() {
            self.warn(format!(
                "gossip has ended for good ({reason}): this node will be taken for dead; restart it"
            ));
        }
    }

    /// Keeps a link to a session whose address is known.
    pub(super) fn want(&mut self, session: &SessionId) {
        if let Some(address) = self.peers.wants(session) {
            self.links.want(session, address);
        }
    }

    /// Cuts the link to a session that is no more.
    pub(super) fn unwant(&mut self, session: &SessionId) {
        self.links.unwant(session);
        self.peers.unwanted(session);
        self.queries.lost(session);
    }

    pub(super) fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { session, address } => {
                self.peers.link_up(&session, address);
                self.tell_conflicts(self.clock.boot());
                self.feed(Event::LinkUp { with: session.clone() });
                self.want(&session);
            }
            LinkEvent::Down { session, refused } => self.on_link_down(session, refused),
            LinkEvent::Refused { session } => self.on_link_down(session, true),
            LinkEvent::Frame { from, payload } => self.on_frame(from, &payload),
            LinkEvent::WrongPeer { expected, found, address } => {
                tracing::debug!(target: "handover::link", %expected, %found, %address, "another session answers there");
            }
        }
    }

    fn on_link_down(&mut self, with: SessionId, refused: bool) {
        tracing::debug!(target: "handover::link", peer = %with, refused, "link down");
        self.queries.lost(&with);
        self.conflicts.link_down(&with);
        if self.peers.link_down(&with, self.clock.boot()) {
            self.unwant(&with);
        }
        self.feed(Event::LinkDown { with, refused });
    }

    fn on_frame(&mut self, from: SessionId, bytes: &[u8]) {
        self.peers.lives(&from, self.clock.boot());
        match Wire::read(bytes) {
            Ok(Wire::Core(message)) => {
                self.feed(Event::Message { from, message: *message });
            }
            Ok(Wire::Query { id, query }) => self.answer(query, Whom::There { to: from, id }),
            Ok(Wire::Answer { id, answer }) => self.on_answer(&from, id, answer),
            Ok(Wire::Conflict { number, oldest, name, kept, overlap }) => {
                let conflict = Conflict { name, kept, overlap };
                self.on_told_conflict(from, (number, oldest), conflict);
            }
            Ok(Wire::ConflictHeard { number }) => self.conflicts.confirmed(&from, number),
            Err(error) => {
                metrics::frame_rejected(error.reason());
                let foul = error.is_foul();
                if foul {
                    self.links.cut(&from);
                }
                if let Some(unsaid) = self.bad_frames.speak(self.clock.boot()) {
                    tracing::warn!(target: "handover::link", peer = %from, %error, foul, unsaid, "a frame was dropped");
                }
            }
        }
    }

    fn on_answer(&mut self, from: &SessionId, id: u64, answer: Option<Answer>) {
        match (self.queries.take(from, id), answer) {
            // Whoever asked may have stopped waiting.
            (Some(Asker::Handle(handle)), answer) => drop(handle.send(answer)),
            (Some(Asker::Overlap { name, asked }), Some(Answer::RunsFor(theirs))) => {
                self.on_overlap(name, Some((asked, theirs)));
            }
            // It runs there no more: nobody can tell.
            (Some(Asker::Overlap { name, .. }), _) => self.on_overlap(name, None),
            (None, _) => {}
        }
    }

    pub(super) fn on_runner(&mut self, event: Event) {
        match &event {
            Event::Committed { header, .. } => {
                self.note_progress(header);
                self.tally.committed(&header.name, header.wall_ms);
            }
            Event::Stopped { name, sealed, dropped, .. } => {
                let header = sealed.as_ref().map(|(header, _)| header);
                if let Some(header) = header {
                    self.note_progress(header);
                }
                self.note_stop(name, header, *dropped);
            }
            Event::Ended { name, .. } => {
                // No commit has the progress of the last step.
                let last = self.runner.last_progress(name);
                if let (Some(progress), Some(claim)) = (last, self.own.get(name)) {
                    self.progress.insert(name.clone(), (claim.run, progress));
                }
                self.note_stop(name, None, false);
            }
            Event::Stuck { name, .. } => self.note_stop(name, None, false),
            _ => {}
        }
        self.feed(event);
    }

    /// Nothing of a task runs here any more.
    fn note_stop(&mut self, name: &Name, sealed: Option<&Header>, dropped: bool) {
        let now = (self.clock.boot(), self.clock.wall_ms());
        self.tally.stopped(now, name, sealed, dropped);
    }

    /// Asks the store. A write that it is too busy for has failed, and is tried again by whoever it
    /// matters to; what nobody would ask for again waits, and what is read for the machine, since to be
    /// busy is not to have lost it. Nothing overtakes what waits: it may be about the same run.
    pub(super) fn ask_store(&mut self, pending: Pending, request: Request) {
        // Nobody would ask for those again, or to be busy is not to have lost it.
        let may_wait = matches!(
            pending,
            Pending::Load(_) | Pending::Write(Written::Deletion { .. } | Written::Run { .. })
        );
        let store = &mut self.store;
        let asked = QueueFull(pending, request);
        let submit = |QueueFull(pending, request)| store.submit(pending, request).err();
        if let Some(full) = self.backlog.submit(asked, may_wait, submit) {
            let why = full.to_string();
            match full.0 {
                Pending::Write(written) => self.on_written(written, Some(why)),
                Pending::Load(header) => self.on_loaded(header, Err(why)),
                Pending::End { .. } => {
                    tracing::debug!(target: "handover::task", why, "an end is copied later");
                }
                Pending::Output(whom) => self.reply(whom, None),
            }
        }
    }

    /// Asks for what the store was too busy to be asked for.
    pub(super) fn ask_waiting(&mut self) {
        let store = &mut self.store;
        self.backlog.retry(|QueueFull(pending, request)| store.submit(pending, request).err());
    }

    pub(super) fn on_store(&mut self, answer: store::Answer<Pending>) {
        match (answer.tag, answer.reply) {
            (Pending::Write(written), Reply::Written(result)) => {
                self.on_written(written, result.err().map(|error| error.to_string()));
            }
            (Pending::Load(header), Reply::Loaded(result)) => {
                if let Err(StoreError::Corrupt(damage)) = &result
                    && let Damage::Checkpoint { fell_back_to: Some(to), .. } = &**damage
                {
                    self.feed(Event::FellBack { damaged: header.clone(), to: (**to).clone() });
                }
                let state = match result {
                    Ok(found) => Ok(found.map(|(_, state)| state)),
                    // Told as damage; the store holds it no more.
                    Err(StoreError::Corrupt(_)) => Ok(None),
                    Err(error) => Err(error.to_string()),
                };
                self.on_loaded(header, state);
            }
            (Pending::Output(whom), Reply::Output(result)) => {
                let output = self.read_output(result);
                self.reply(whom, output.map(Answer::Output));
            }
            (Pending::End { name, run }, Reply::Output(result)) => {
                let output = self.read_output(result);
                self.feed(Event::LoadedEnd { name, run, output });
            }
            (pending, reply) => {
                tracing::error!(target: "handover::task", ?pending, ?reply, "the store's answer does not fit the question");
            }
        }
        self.report_damage(answer.damage);
    }

    fn read_output(&self, result: Result<Option<Bytes>, StoreError>) -> Option<Bytes> {
        result.unwrap_or_else(|error| {
            self.warn(format!("an output cannot be read: {error}"));
            None
        })
    }

    /// Says what the store has found damaged.
    pub(super) fn report_damage(&self, damage: Vec<Damage>) {
        for damage in damage {
            let what = damage.to_string();
            tracing::error!(target: "handover::task", what, "damage in the data directory");
            self.board.tell(NodeEvent::Damaged { what });
        }
    }

    fn on_loaded(&mut self, header: Header, state: Result<Option<Bytes>, String>) {
        let failed = state.is_err();
        let state = state.unwrap_or_else(|error| {
            let name = &header.name;
            self.warn(format!("a checkpoint of {name} cannot be read now: {error}"));
            None
        });
        self.feed(Event::Loaded { header, state, failed });
    }

    pub(super) fn on_written(&mut self, written: Written, error: Option<String>) {
        match written {
            Written::Checkpoint { header, from } => {
                if error.is_none() {
                    self.unrecorded.remove(&header.name);
                }
                self.feed(Event::Stored { header, from, error });
            }
            Written::End { name, run, from } => {
                self.feed(Event::StoredEnd { name, run, from, error });
            }
            Written::Run { name } => {
                self.unrecorded.remove(&name);
                if let Some(error) = error {
                    self.unrecorded.insert(name.clone());
                    let text = format!("{name} would not outlive a restart of all nodes: {error}");
                    self.warn_unstored(text, false);
                }
            }
            Written::Deletion { name } => {
                if let Some(error) = error
                    && let Some(unsaid) = self.undeleted.speak(self.clock.boot())
                {
                    tracing::warn!(target: "handover::task", %name, error, unsaid, "old checkpoints could not be deleted");
                }
            }
        }
    }
}
