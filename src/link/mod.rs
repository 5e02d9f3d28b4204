//! Links: one authenticated, encrypted stream between each two sessions, for everything that gossip is
//! too slow or too small for.
//!
//! A link is between sessions, not nodes: the process that was restarted on the same address is another
//! peer. Messages are lost with the connection that carried them; what was still queued goes out over
//! the next one.

mod connection;
mod frame;
mod handshake;
mod listener;
mod outbox;
mod peer;
mod report;
mod room;
mod seal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::frame::Class;
pub(crate) use self::outbox::SendError;
pub(crate) use self::room::Payload;

use self::handshake::{Candidate, Local};
use self::peer::Peer;
use self::room::Room;
use crate::clock::SharedClock;
use crate::core::ids::SessionId;
use crate::key::Keyring;
use crate::net::Network;

/// How long [`Links::shutdown`] waits for queued messages to go out.
const LAST_WRITE: Duration = Duration::from_millis(250);

/// What links are made of.
#[derive(Clone, Debug)]
pub(crate) struct LinkConfig {
    /// The cluster's name: others do not get in.
    pub(crate) cluster: String,
    /// The cluster's keys.
    pub(crate) keyring: Keyring,
    /// Who this process is.
    pub(crate) session: SessionId,
    /// Where to listen; port 0 for any.
    pub(crate) listen: SocketAddr,
    /// Where peers reach this process; port 0 for the one listened on.
    pub(crate) advertise: SocketAddr,
    /// Bounds and times.
    pub(crate) limits: LinkLimits,
    /// Networks whose addresses peers may advertise from elsewhere.
    pub(crate) advertised_within: Vec<IpNet>,
    /// Time.
    pub(crate) clock: SharedClock,
    /// The network.
    pub(crate) network: Arc<dyn Network>,
}

/// How much one peer's queue of one class holds. An empty queue takes any message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueLimits {
    /// Messages.
    pub(crate) messages: usize,
    /// Bytes.
    pub(crate) bytes: usize,
}

/// Bounds and times of links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkLimits {
    /// How long each end gives a handshake. Default 2 s.
    pub(crate) handshake: Duration,
    /// Accepted connections whose handshake is not complete; more are closed at once, unless they come from the
    /// host of a wanted peer. Default 128.
    pub(crate) unauthenticated: usize,
    /// As many of one source, and of the host of a wanted peer in any case. Default 32.
    pub(crate) unauthenticated_of_source: usize,
    /// Connections a second of one source; more are closed at once. Default 100.
    pub(crate) connections_of_source: u32,
    /// Peers, linked or wanted; strangers beyond are turned away. Default 2,048.
    pub(crate) peers: usize,
    /// The longest message, sent or received, in bytes. Default 64 MiB + 64 KiB.
    pub(crate) max_message: usize,
    /// The longest control message, sent or received, in bytes. Default 1 MiB.
    pub(crate) max_control: usize,
    /// Bytes of one peer's messages that wait for the node to take them; it is not read beyond. One
    /// message is always taken. Default 64 MiB + 64 KiB.
    pub(crate) waiting: usize,
    /// As many of all peers. Default 256 MiB.
    pub(crate) waiting_total: usize,
    /// The queue of control messages. Default 8,192 messages, 16 MiB.
    pub(crate) control: QueueLimits,
    /// The queue of bulk messages. Default 8,192 messages, 64 MiB.
    pub(crate) bulk: QueueLimits,
    /// How often a link looks whether anything was sent since it last looked, and sends a ping if not:
    /// the peer hears something at least every other time. Default 500 ms, which has to be far below
    /// half of the peer's `dead_after`.
    pub(crate) ping_every: Duration,
    /// A link on which nothing was heard for this long is broken. Default 5 s (T/2).
    pub(crate) dead_after: Duration,
    /// A link whose peer takes not a byte of what waits for so long is broken, and what waited is
    /// dropped: it would be kept for ever. Default 60 s, since a busy node may be slow.
    pub(crate) stalled_after: Duration,
    /// How long a broken link's [`LinkEvent::Down`] waits for the outcome of dialling again.
    /// Default 250 ms.
    pub(crate) verdict: Duration,
    /// The pause after a first failed dial; doubled after each. Default 50 ms.
    pub(crate) backoff_min: Duration,
    /// The longest pause between dials. Default 2 s.
    pub(crate) backoff_max: Duration,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(2),
            unauthenticated: 128,
            unauthenticated_of_source: 32,
            connections_of_source: 100,
            peers: 2048,
            max_message: (64 << 20) + (64 << 10),
            max_control: 1 << 20,
            waiting: (64 << 20) + (64 << 10),
            waiting_total: 256 << 20,
            control: QueueLimits { messages: 8192, bytes: 16 << 20 },
            bulk: QueueLimits { messages: 8192, bytes: 64 << 20 },
            ping_every: Duration::from_millis(500),
            dead_after: Duration::from_secs(5),
            stalled_after: Duration::from_secs(60),
            verdict: Duration::from_millis(250),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
        }
    }
}

/// What links tell the node. Of one session, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// A handshake is complete: the session lives, and messages go both ways.
    Up {
        /// With whom.
        session: SessionId,
        /// Where it listens, if that is known: where it was dialled, or where it says, if it connected
        /// from that host or the networks allowed contain it.
        address: Option<SocketAddr>,
    },
    /// A link broke, or was replaced by a newer connection, which is then reported up.
    Down {
        /// With whom.
        session: SessionId,
        /// Connecting again was refused at once, and a datagram was not accepted (Rule 5).
        refused: bool,
    },
    /// A message.
    Frame {
        /// From whom.
        from: SessionId,
        /// What it says.
        payload: Payload,
    },
    /// A later dial, or a first one, was refused, and a datagram was not accepted.
    Refused {
        /// Whom it was meant for.
        session: SessionId,
    },
    /// Another session answers at the address of the one that was dialled.
    WrongPeer {
        /// Who was dialled.
        expected: SessionId,
        /// Who answered; it holds the cluster's key.
        found: SessionId,
        /// Where.
        address: SocketAddr,
    },
}

/// Why links could not be started. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LinkError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen for links on {address}: {source}; choose a free address of this machine"
    )]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

#[derive(Debug)]
struct Peers {
    /// False once the links are shut down: nobody is let in any more.
    open: bool,
    map: BTreeMap<SessionId, Peer>,
}

/// What the tasks of one [`Links`] have in common.
#[derive(Debug)]
struct Shared {
    local: Local,
    limits: LinkLimits,
    within: Vec<IpNet>,
    clock: SharedClock,
    network: Arc<dyn Network>,
    events: mpsc::Sender<LinkEvent>,
    runtime: Handle,
    /// What waits for the node to take it, of all peers.
    room: Room,
    /// Numbers this process's dials.
    dials: AtomicU64,
    peers: Mutex<Peers>,
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_dial(&self) -> u64 {
        self.dials.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// All dials up to this number have begun.
    fn last_dial(&self) -> u64 {
        self.dials.load(Ordering::Relaxed)
    }

    /// Whether a peer that is to be linked listens on this host.
    fn knows(&self, host: IpAddr) -> bool {
        let host = host.to_canonical();
        let peers = self.peers();
        let mut wanted = peers.map.values().filter_map(Peer::wanted);
        wanted.any(|address| address.ip().to_canonical() == host)
    }

    /// Hands somebody authentic to the task that decides about it.
    fn deliver(self: &Arc<Self>, candidate: Candidate) {
        let mut peers = self.peers();
        if !peers.open || candidate.session == self.local.session {
            return;
        }
        let full = peers.map.len() >= self.limits.peers;
        let peer = match peers.map.entry(candidate.session.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if full => {
                tracing::warn!(
                    target: "handover::link",
                    peer = %candidate.session,
                    limit = self.limits.peers,
                    "turned a peer away: there are as many links as are allowed"
                );
                return;
            }
            Entry::Vacant(entry) => {
                let peer = Peer::spawn(self, candidate.session.clone(), None);
                entry.insert(peer)
            }
        };
        peer.deliver(candidate);
    }
}

/// All links of this process. Dropping it cuts them; [`Links::shutdown`] sends first what is queued.
#[derive(Debug)]
pub(crate) struct Links {
    shared: Arc<Shared>,
    listener: AbortOnDropHandle<()>,
    address: SocketAddr,
}

impl Links {
    /// Listens, and tells `events` what happens. While nobody takes events, peers are not read. Must be
    /// called on the runtime that is to run the links.
    pub(crate) async fn start(
        config: LinkConfig,
        events: mpsc::Sender<LinkEvent>,
    ) -> Result<Self, LinkError> {
        let failed = |source| LinkError::Listen { address: config.listen, source };
        let listener = config.network.listen(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut advertise = config.advertise;
        if advertise.port() == 0 {
            advertise.set_port(address.port());
        }
        let runtime = Handle::current();
        let room = Room::new(config.limits.waiting_total);
        let shared = Arc::new(Shared {
            local: Local {
                cluster: config.cluster,
                keyring: config.keyring,
                session: config.session,
                address: advertise,
            },
            limits: config.limits,
            within: config.advertised_within,
            clock: config.clock,
            network: config.network,
            events,
            runtime: runtime.clone(),
            room,
            dials: AtomicU64::new(0),
            peers: Mutex::new(Peers { open: true, map: BTreeMap::new() }),
        });
        let listening = runtime.spawn(listener::listen(listener, shared.clone()));
        Ok(Self { shared, listener: AbortOnDropHandle::new(listening), address })
    }

    /// Keeps a link to this session, dialling `address` whenever there is none, until [`Self::unwant`].
    /// Called again, it changes the address.
    pub(crate) fn want(&self, session: &SessionId, address: SocketAddr) {
        let mut peers = self.shared.peers();
        if !peers.open || *session == self.shared.local.session {
            return;
        }
        match peers.map.entry(session.clone()) {
            Entry::Occupied(entry) => entry.get().want(address),
            Entry::Vacant(entry) => {
                entry.insert(Peer::spawn(&self.shared, session.clone(), Some(address)));
            }
        }
    }

    /// This session was heard again after silence: its link is dialled now, if it is wanted and there is
    /// none.
    pub(crate) fn hasten(&self, session: &SessionId) {
        if let Some(peer) = self.shared.peers().map.get(session) {
            peer.hasten();
        }
    }

    /// Breaks the link, because of what came over it. It is made again as after any other break.
    pub(crate) fn cut(&self, session: &SessionId) {
        if let Some(peer) = self.shared.peers().map.get(session) {
            peer.cut();
        }
    }

    /// Cuts the link, forgets what was queued, and reports nothing more of this session (what is in the
    /// events' channel already stays there), unless it dials again: that is a new link.
    pub(crate) fn unwant(&self, session: &SessionId) {
        let forgotten = self.shared.peers().map.remove(session);
        drop(forgotten);
    }

    /// Queues a message; never waits. It is taken while the link is up, while a wanted session is
    /// dialled for the first time, and while a broken link is dialled again. If that dial fails it is
    /// dropped, and nothing is taken until the link is up.
    pub(crate) fn send(&self, to: &SessionId, class: Class, bytes: Bytes) -> Result<(), SendError> {
        match self.shared.peers().map.get(to) {
            Some(peer) => peer.outbox().push(class, bytes),
            None => Err(SendError::NotLinked),
        }
    }

    /// Bytes queued for this session, not yet handed to the system.
    #[cfg(test)]
    pub(crate) fn queued_bytes(&self, to: &SessionId) -> usize {
        self.shared.peers().map.get(to).map_or(0, |peer| peer.outbox().bytes())
    }

    /// Whether there is a link now.
    #[cfg(test)]
    pub(crate) fn is_up(&self, session: &SessionId) -> bool {
        self.shared.peers().map.get(session).is_some_and(Peer::is_up)
    }

    /// The address listened on.
    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener at the runtime's next turn: every dial is refused from then on. Links stay.
    pub(crate) fn stop_listening(&self) {
        self.listener.abort();
    }

    /// Sends what is queued, for at most a quarter of a second, and closes everything.
    pub(crate) async fn shutdown(self) {
        self.stop_listening();
        let peers = {
            let mut peers = self.shared.peers();
            peers.open = false;
            std::mem::take(&mut peers.map)
        };
        for peer in peers.values() {
            peer.finish();
        }
        let all = async {
            for peer in peers.into_values() {
                peer.finished().await;
            }
        };
        // Whoever is not done is cut by being dropped.
        let _ = timeout(LAST_WRITE, all).await;
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // The tasks hold `shared`, which holds their handles: break the circle.
        let mut peers = self.shared.peers();
        peers.open = false;
        let map = std::mem::take(&mut peers.map);
        drop(peers);
        drop(map);
    }
}
