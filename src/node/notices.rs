//! Telling the user: events, log, metrics.

use super::control::Control;
use super::event::NodeEvent;
use super::metrics;
use crate::core::claim::Phase;
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Cause, Gone, Notice};
use crate::core::lease::Epoch;
use crate::core::record::NodeState;
use crate::core::time::Time;
use crate::registry::TaskState;

impl Control {
    /// Passes on what the machine wants to be known.
    pub(super) fn tell(&mut self, notice: Notice) {
        let event = match notice {
            Notice::State(state) => self.on_state(state),
            Notice::PeerUp(peer) => self.on_peer_up(peer),
            Notice::PeerGone(peer, why) => match self.on_peer_gone(peer, why) {
                Some(event) => event,
                None => return,
            },
            Notice::Started { name, epoch, cause, from, freed } => {
                self.on_started(name, epoch, cause, from, freed)
            }
            Notice::Moved { name, to, epoch } => self.on_moved(name, to, epoch),
            Notice::Released { name, replicas } => {
                tracing::info!(target: "handover::move", %name, replicas, "released");
                self.tally.released(&name);
                if let Some(draining) = &mut self.draining {
                    draining.released(&name, replicas);
                }
                NodeEvent::Released { name, replicas }
            }
            Notice::Parked { name, why } => {
                tracing::warn!(target: "handover::task", %name, why, "parked");
                if let Some(draining) = &mut self.draining {
                    draining.parked(&name);
                }
                NodeEvent::Parked { name, why }
            }
            Notice::Quarantined { name } => {
                tracing::error!(target: "handover::task", %name, "quarantined: three takeovers in a row brought no progress; `resume` tries again");
                NodeEvent::Quarantined { name }
            }
            Notice::Unstoppable { name } => {
                tracing::error!(target: "handover::task", %name, "does not stop: it is released only when this process is gone");
                metrics::unstoppable();
                if let Some(draining) = &mut self.draining {
                    draining.unstoppable(&name);
                }
                NodeEvent::Unstoppable { name }
            }
            Notice::Ended { name, phase } => self.on_task_ended(name, &phase),
            Notice::Conflict { name, kept, stopped } => {
                return self.on_conflict(name, kept, stopped);
            }
            Notice::Reconciled { name, branches, seq } => {
                tracing::warn!(target: "handover::conflict", %name, branches, seq, "branches were reconciled");
                NodeEvent::Reconciled { name, branches }
            }
            Notice::StateLost { name, what } => {
                tracing::error!(target: "handover::takeover", %name, what, "the newest state could not be had");
                NodeEvent::StateLost { name, what }
            }
            Notice::Reborn { name } => {
                tracing::warn!(target: "handover::conflict", %name, "a finished run had been born again and was ended");
                NodeEvent::Reborn { name }
            }
            Notice::Brake { until } => {
                let pause = until.since(self.clock.boot());
                tracing::warn!(target: "handover::takeover", ?pause, "too many nodes fell silent at once: takeover pauses");
                NodeEvent::Brake { pause }
            }
            Notice::Unstored { text, elsewhere } => return self.warn_unstored(text, elsewhere),
            Notice::Warning(text) => return self.warn(text),
        };
        self.board.tell(event);
    }

    /// Something a person should look at.
    pub(super) fn warn(&self, text: String) {
        tracing::warn!(target: "handover::node", "{text}");
        self.board.tell(NodeEvent::Warning { text });
    }

    /// A disk that takes nothing more fails every write of every task: all are counted, and people are
    /// told now and then.
    pub(super) fn warn_unstored(&mut self, text: String, elsewhere: bool) {
        metrics::unstored(elsewhere);
        let seldom = if elsewhere { &mut self.unstored_elsewhere } else { &mut self.unstored };
        match seldom.speak(self.clock.boot()) {
            None => {}
            Some(0) => self.warn(text),
            Some(unsaid) => {
                self.warn(format!(
                    "{text} ({unsaid} more could not be stored since this was last told)"
                ));
            }
        }
    }

    fn on_state(&self, state: NodeState) -> NodeEvent {
        tracing::info!(target: "handover::node", session = %self.me, ?state, "state");
        self.show_state(state);
        NodeEvent::State { state }
    }

    fn on_peer_up(&mut self, peer: SessionId) -> NodeEvent {
        tracing::info!(target: "handover::node", %peer, "peer up");
        self.peers.is_there(&peer);
        self.want(&peer);
        NodeEvent::PeerUp { peer }
    }

    /// Nothing to tell of one that was gone before this node ever met it.
    fn on_peer_gone(&mut self, peer: SessionId, why: Gone) -> Option<NodeEvent> {
        let listed = self.peers.is_listed(&peer);
        if listed {
            tracing::info!(target: "handover::node", %peer, ?why, "peer gone");
        }
        match why {
            // Its own end of the link closes it; cutting it now would cut off our answer.
            Gone::Left => {
                self.gossip.retire(&peer);
                self.peers.left(&peer);
            }
            // Nothing of it is ever heard again, so nothing asks for the link again.
            Gone::Superseded => {
                self.gossip.retire(&peer);
                self.unwant(&peer);
                self.peers.left(&peer);
            }
            // If it is heard again after all, it is dialled again.
            Gone::Dead => self.unwant(&peer),
            // Perhaps only cut off: its address goes on being tried until gossip forgets it.
            Gone::Silent => {}
        }
        self.peers.gone(&peer, why);
        listed.then_some(NodeEvent::PeerGone { peer, why })
    }

    fn on_started(
        &mut self,
        name: Name,
        epoch: Epoch,
        cause: Cause,
        from: Option<SessionId>,
        freed: Option<Time>,
    ) -> NodeEvent {
        let before = from.as_ref().map(ToString::to_string);
        if cause == Cause::Crash {
            tracing::info!(target: "handover::takeover", %name, %epoch, from = before, "taken over");
        } else {
            tracing::info!(target: "handover::move", %name, %epoch, from = before, reason = metrics::reason(cause), "started");
        }
        if let Some(from) = from.as_ref().filter(|from| **from != self.me) {
            let from_revision = self.peers.revision(from);
            let now = (self.clock.boot(), self.clock.wall_ms());
            let idle_since = match cause {
                Cause::Crash => self.peers.last_sign_of(from),
                // Where it stopped for a drain is where that is measured.
                _ => freed,
            };
            let arrival = self.tally.moved_here(now, &name, cause, idle_since);
            metrics::moved_here(
                cause,
                from_revision.unwrap_or_else(|| "unknown".into()),
                self.revision.clone(),
                arrival,
            );
        }
        NodeEvent::Started { name, epoch, cause, from }
    }

    fn on_moved(&mut self, name: Name, to: SessionId, epoch: Epoch) -> NodeEvent {
        tracing::info!(target: "handover::move", %name, %to, %epoch, "moved");
        self.tally.moved_away(self.clock.boot(), &name);
        if let Some(draining) = &mut self.draining {
            draining.moved(&name);
        }
        NodeEvent::Moved { name, to, epoch }
    }

    fn on_task_ended(&mut self, name: Name, phase: &Phase) -> NodeEvent {
        let state = TaskState::of(phase);
        tracing::info!(target: "handover::task", %name, %state, "ended");
        if let Some(draining) = &mut self.draining {
            draining.ended(&name);
        }
        NodeEvent::Ended { name, state }
    }
}
