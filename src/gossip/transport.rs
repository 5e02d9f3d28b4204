//! chitchat's view of the network: two bounded channels to the pump.
//!
//! The engine awaits `send` inside its gossip loop and drops `recv` whenever something else happens
//! first; channels make the one never wait and the other safe to drop.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use tokio::sync::mpsc;

use crate::core::ids::SessionId;

use super::digest::{Shown, Step, step};
use super::exchange::versions;
use super::rejected::Rejected;
use super::shared::{Shared, lock};

/// A whole message from a verified session.
pub(super) struct Inbound {
    pub(super) from: SocketAddr,
    pub(super) session: SessionId,
    pub(super) message: Vec<u8>,
    pub(super) shown: Vec<Shown>,
}

/// A message to be split and sealed.
pub(super) struct Outbound {
    pub(super) to: SocketAddr,
    pub(super) message: Bytes,
}

/// What the runner has to know of the traffic. Lost while it is behind: rounds make up for it.
pub(super) enum Note {
    /// The engine has taken a message in.
    Processed(Processed),
    /// A peer is heard again: gossip with it at once.
    Returned(SocketAddr),
}

pub(super) struct Processed {
    pub(super) from: SocketAddr,
    pub(super) session: SessionId,
    pub(super) step: Step,
    pub(super) len: usize,
    pub(super) shown: Vec<Shown>,
}

/// A message over this length probably leaves something behind.
pub(super) const LARGE: usize = 32 << 10;

/// Where the pump delivers: replaced when the engine starts afresh.
pub(super) type Inbox = Arc<Mutex<Option<mpsc::Sender<Inbound>>>>;

/// Opens the engine's end of the channels.
pub(super) struct ChannelTransport {
    pub(super) shared: Arc<Shared>,
    pub(super) outbound: mpsc::Sender<Outbound>,
    pub(super) inbox: Inbox,
    pub(super) notes: mpsc::Sender<Note>,
    pub(super) queue: usize,
}

#[async_trait]
impl Transport for ChannelTransport {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let (sender, inbound) = mpsc::channel(self.queue);
        *lock(&self.inbox) = Some(sender);
        lock(&self.shared.exchanges).clear();
        Ok(Box::new(ChannelSocket {
            shared: Arc::clone(&self.shared),
            outbound: self.outbound.clone(),
            inbound,
            notes: self.notes.clone(),
            processing: None,
        }))
    }
}

struct ChannelSocket {
    shared: Arc<Shared>,
    outbound: mpsc::Sender<Outbound>,
    inbound: mpsc::Receiver<Inbound>,
    notes: mpsc::Sender<Note>,
    /// What the engine is taking in: it answers before it asks for the next message.
    processing: Option<Processed>,
}

#[async_trait]
impl Socket for ChannelSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if self.shared.is_fenced() {
            return Ok(());
        }
        // Where nobody has proved to be, nothing is sent but the pump's probes.
        let Some(to) = lock(&self.shared.peers).route(to) else {
            return Ok(());
        };
        let now = self.shared.clock.boot();
        if matches!(message, ChitchatMessage::Syn { .. }) {
            if !lock(&self.shared.exchanges).may_ask(to, now) {
                return Ok(());
            }
        } else if let Some(answered) = &self.processing {
            let len = message.serialized_len();
            let versions = versions(&answered.shown);
            if len > LARGE && !lock(&self.shared.exchanges).may_answer(to, versions, now) {
                return Ok(());
            }
        }
        let message = message.serialize_to_vec().into();
        if self.outbound.try_send(Outbound { to, message }).is_err() {
            metrics::counter!("handover_gossip_dropped_total", "what" => "outgoing").increment(1);
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        if let Some(processed) = self.processing.take() {
            let _ = self.notes.try_send(Note::Processed(processed));
        }
        loop {
            let Some(inbound) = self.inbound.recv().await else {
                anyhow::bail!("the datagram pump has ended");
            };
            let step = step(&inbound.message);
            let now = self.shared.clock.boot();
            match step {
                Step::Syn => {
                    let versions = versions(&inbound.shown);
                    if lock(&self.shared.exchanges).is_answered(inbound.from, versions, now) {
                        continue;
                    }
                }
                Step::SynAck => lock(&self.shared.exchanges).answered(inbound.from, now),
                Step::Ack | Step::Other => {}
            }
            match ChitchatMessage::deserialize(&mut &inbound.message[..]) {
                Ok(message) => {
                    self.processing = Some(Processed {
                        from: inbound.from,
                        session: inbound.session,
                        step,
                        len: inbound.message.len(),
                        shown: inbound.shown,
                    });
                    return Ok((inbound.from, message));
                }
                Err(_) => Rejected::Malformed.count(),
            }
        }
    }
}
