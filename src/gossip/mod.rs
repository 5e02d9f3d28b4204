//! Gossip: who is there, and what every node publishes, over chitchat.
//!
//! Nothing outside this module knows chitchat. Data flows one way: the *pump* owns the socket,
//! seals and opens datagrams, answers probes and puts fragments together; the *runner* owns the
//! engine, writes this node's pages into it and reads everybody else's out of it; both tell the
//! node what they learn as [`GossipEvent`]s.

mod catchup;
mod digest;
mod exchange;
mod fragments;
mod header;
mod kept;
mod pace;
mod pages;
mod peers;
mod places;
mod pump;
mod reader;
mod rejected;
mod replay;
mod runner;
mod seal;
mod shared;
mod transport;
mod view;
mod watch;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::SharedClock;
use crate::core::ids::{Name, SessionId};
use crate::core::record::{Load, NodeRecord, NodeState};
use crate::core::time::Time;
use crate::core::timing::Timing;
use crate::key::Keyring;
use crate::net::{Network, NetworkLimits};

use self::pages::Pages;
use self::shared::Shared;

/// How gossip is set up.
pub(crate) struct GossipConfig {
    /// Nodes of different clusters cannot open each other's datagrams.
    pub(crate) cluster: String,
    /// The first key seals, all of them open.
    pub(crate) keyring: Keyring,
    /// Of this process.
    pub(crate) session: SessionId,
    /// Higher than any this node has used: max(persisted + 1, Unix milliseconds).
    pub(crate) generation: u64,
    /// Told of each later generation, before it is used, to persist it.
    pub(crate) on_generation: Box<dyn Fn(u64) + Send + Sync>,
    /// Where to bind; port 0 for any.
    pub(crate) listen: SocketAddr,
    /// What peers are told; with port 0, the bound port is taken.
    pub(crate) advertise: SocketAddr,
    /// Whom to greet first.
    pub(crate) seeds: Vec<SocketAddr>,
    /// The timing model, checked already.
    pub(crate) timing: Timing,
    /// Bounds on everything that peers can make this node keep.
    pub(crate) limits: GossipLimits,
    /// What strangers and silent peers may cost.
    pub(crate) network_limits: NetworkLimits,
    /// Networks that peers may advertise addresses of; empty for any.
    pub(crate) advertised_within: Vec<IpNet>,
    /// Time.
    pub(crate) clock: SharedClock,
    /// Sockets.
    pub(crate) network: Arc<dyn Network>,
    /// The persisted address book.
    pub(crate) known: Vec<(SessionId, SocketAddr)>,
}

/// Bounds on everything that peers can make this node keep.
#[derive(Clone, Debug)]
pub(crate) struct GossipLimits {
    /// Longest datagram sent, in bytes. Below the usual MTU, so that IP never fragments.
    pub(crate) max_datagram: usize,
    /// Incomplete messages of one session, in bytes.
    pub(crate) max_partial_bytes: usize,
    /// Incomplete messages of all sessions, in bytes.
    pub(crate) max_partial_bytes_total: usize,
    /// Sent messages kept for peers that miss fragments, in bytes.
    pub(crate) max_kept_bytes: usize,
    /// Sessions told apart.
    pub(crate) max_peers: usize,
    /// All ids known to the engine, dead ones included, as bytes of a digest. The engine panics
    /// when a digest exceeds its message of 65,507 bytes.
    pub(crate) max_digest_bytes: usize,
    /// A page of records in bytes, before base64; also the longest record.
    pub(crate) page_bytes: usize,
    /// Pages per table to begin with: 16 to the power of this.
    pub(crate) page_digits: u8,
    /// Messages waiting between the pump and the engine, in each direction.
    pub(crate) queue: usize,
}

impl Default for GossipLimits {
    fn default() -> Self {
        Self {
            max_datagram: 1400,
            max_partial_bytes: 512 << 10,
            max_partial_bytes_total: 16 << 20,
            max_kept_bytes: 8 << 20,
            max_peers: 1000,
            max_digest_bytes: 48 << 10,
            page_bytes: 8 << 10,
            page_digits: 3,
            queue: 256,
        }
    }
}

impl GossipLimits {
    fn check(&self) -> Result<(), GossipError> {
        let ranges = [
            ("max_datagram", self.max_datagram, 600, 9000),
            // In base64 and beside the longest digest, it still fits into one message.
            ("page_bytes", self.page_bytes, 256, 11 << 10),
            ("page_digits", usize::from(self.page_digits), 1, 4),
            ("max_digest_bytes", self.max_digest_bytes, 1024, 48 << 10),
            ("max_partial_bytes", self.max_partial_bytes, 128 << 10, usize::MAX),
            (
                "max_partial_bytes_total",
                self.max_partial_bytes_total,
                self.max_partial_bytes,
                usize::MAX,
            ),
            ("max_kept_bytes", self.max_kept_bytes, 128 << 10, usize::MAX),
            ("max_peers", self.max_peers, 2, 100_000),
            ("queue", self.queue, 16, 1 << 16),
        ];
        for (what, value, least, most) in ranges {
            if value < least || value > most {
                return Err(GossipError::Limit { what, value, least, most });
            }
        }
        Ok(())
    }
}

/// The kinds of records a node publishes by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Table {
    /// What it holds.
    Claims,
    /// What is to be run.
    Specs,
    /// What users want of it.
    Desires,
}

impl Table {
    const ALL: [Self; 3] = [Self::Claims, Self::Specs, Self::Desires];

    const fn letter(self) -> &'static str {
        match self {
            Self::Claims => "c",
            Self::Specs => "s",
            Self::Desires => "d",
        }
    }
}

/// What gossip has learned.
#[derive(Clone, Debug)]
pub(crate) enum GossipEvent {
    /// An authentic, fresh datagram arrived. Those within a millisecond that say nothing new make
    /// one event. May be dropped while the node is behind: the next one says it again.
    Heard {
        /// Its sender.
        from: SessionId,
        /// Where it came from.
        address: SocketAddr,
        /// The sender's state.
        state: NodeState,
        /// Ascends with every change of what the header says.
        version: u64,
        /// Claims numbered at most this have stopped.
        watermark: u64,
        /// Later ones that have stopped too, as many as the datagram had room for.
        released: Vec<u64>,
        /// When the newest of my datagrams was sent that this one is the first to echo; never
        /// later than it really was.
        echoed: Option<Time>,
        /// It is the first echo after silence.
        returned: bool,
    },
    /// An echo has come from the address that a session advertises: it is reached there.
    Located {
        /// Which.
        of: SessionId,
        /// Where.
        address: SocketAddr,
    },
    /// Datagrams come that this node cannot open. Told from time to time.
    Stranger {
        /// Where they seem to come from.
        from: SocketAddr,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// A newer heartbeat of a session, by whatever path.
    Heartbeat {
        /// Whose.
        of: SessionId,
    },
    /// The failure detector changed its mind.
    Suspicion {
        /// About whom.
        of: SessionId,
        /// Whether it takes the session for dead.
        suspected: bool,
    },
    /// A session's static record is new.
    Static {
        /// Whose.
        of: SessionId,
        /// The record.
        record: NodeRecord,
    },
    /// A session's load changed.
    Load {
        /// Whose.
        of: SessionId,
        /// The load.
        load: Load,
    },
    /// Records of a session changed.
    Records {
        /// Whose: the owner of the namespace they stand in.
        of: SessionId,
        /// Which kind.
        table: Table,
        /// Name by name; none where the record is gone.
        changes: Vec<(Name, Option<Bytes>)>,
    },
    /// All that a session had published when its first reply arrived is here (Rule 14).
    CaughtUp {
        /// Whose.
        of: SessionId,
    },
    /// The engine has forgotten a session.
    Forgotten {
        /// Which.
        of: SessionId,
    },
    /// The engine, or all of gossip, ended without being told to.
    Ended {
        /// Why, for people.
        reason: String,
        /// Whether it goes on under a new generation; otherwise nothing more will come.
        restarted: bool,
    },
}

/// Why gossip did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GossipError {
    /// Somebody else listens there.
    #[error(
        "the datagram address {address} is in use: stop the process that listens there, or choose another port"
    )]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The system refused the socket.
    #[error(
        "cannot bind datagrams to {address}: {source}; choose an address of this machine that the process may use"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// As the system says.
        source: io::Error,
    },
    /// A limit makes no sense.
    #[error("the limit {what} is {value}: choose one from {least} to {most}")]
    Limit {
        /// Which.
        what: &'static str,
        /// What was given.
        value: usize,
        /// The least allowed.
        least: usize,
        /// The most allowed.
        most: usize,
    },
}

/// A record that fits into no page. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the record of {name} takes {len} bytes, over the limit of {limit}: store large data elsewhere and publish a reference"
)]
pub(crate) struct RecordTooLarge {
    /// Of the record.
    pub(crate) name: Name,
    /// What it takes, with its name.
    pub(crate) len: usize,
    /// The limit.
    pub(crate) limit: usize,
}

/// A running gossip layer. Dropping it stops it; use [`Gossip::shutdown`] to wait for the end.
pub(crate) struct Gossip {
    shared: Arc<Shared>,
    local: SocketAddr,
    page_bytes: usize,
    runner: JoinHandle<()>,
    _stop: DropGuard,
    cancel: CancellationToken,
}

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Gossip {
    /// Binds the socket and starts to gossip on the current runtime. `events` is awaited for
    /// everything but [`GossipEvent::Heard`], so a receiver that is behind slows gossip down; it
    /// closes when gossip has ended.
    ///
    /// # Errors
    /// The address cannot be bound, or a limit makes no sense. Nothing has been started.
    pub(crate) async fn start(
        config: GossipConfig,
        events: mpsc::Sender<GossipEvent>,
    ) -> Result<Self, GossipError> {
        config.limits.check()?;
        let socket = config.network.bind(config.listen).await.map_err(|source| {
            let address = config.listen;
            match source.kind() {
                io::ErrorKind::AddrInUse => GossipError::AddressInUse { address },
                _ => GossipError::Bind { address, source },
            }
        })?;
        let local = socket
            .local_addr()
            .map_err(|source| GossipError::Bind { address: config.listen, source })?;
        let page_bytes = config.limits.page_bytes;
        let cancel = CancellationToken::new();
        let (shared, runner) = runner::start(config, socket, local, events, cancel.clone());
        Ok(Self { shared, local, page_bytes, runner, _stop: cancel.clone().drop_guard(), cancel })
    }

    /// Publishes the static record.
    pub(crate) fn set_record(&self, record: &NodeRecord) {
        self.shared.publish(|pending| {
            pending.record = Some(record.clone());
        });
    }

    /// Publishes the load.
    pub(crate) fn set_load(&self, load: Load) {
        self.shared.publish(|pending| {
            pending.load = Some(load);
        });
    }

    /// Publishes a record, or removes it. Changes within a millisecond travel together; then peers
    /// are gossiped with at once.
    ///
    /// # Errors
    /// The record is longer than a page. Nothing has changed.
    pub(crate) fn put(
        &self,
        table: Table,
        name: &Name,
        record: Option<Bytes>,
    ) -> Result<(), RecordTooLarge> {
        if let Some(record) = &record {
            Pages::check(self.page_bytes, name, record)?;
        }
        self.shared.publish(|pending| {
            pending.records.insert((table, name.clone()), record);
        });
        Ok(())
    }

    /// What every datagram says from now on (Rule 2), under an ascending version. In a fenced state nothing but probes goes
    /// out, so that the heartbeat stops.
    pub(crate) fn set_header(
        &self,
        state: NodeState,
        version: u64,
        watermark: u64,
        released: Vec<u64>,
    ) {
        self.shared.set_header(state, version, watermark, released);
    }

    /// Probes an address now, and for a minute while it is silent.
    pub(crate) fn probe(&self, address: SocketAddr) {
        self.shared.probe(address);
    }

    /// The session left or was superseded: it is no longer remembered nor probed.
    pub(crate) fn retire(&self, session: &SessionId) {
        self.shared.retire(session);
    }

    /// Every session seen lately that neither left nor was superseded, with its address.
    pub(crate) fn address_book(&self) -> Vec<(SessionId, SocketAddr)> {
        self.shared.address_book()
    }

    /// Where datagrams are received.
    #[cfg(test)]
    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What drives the engine panics at its next turn.
    #[cfg(test)]
    pub(crate) fn doom(&self) {
        shared::lock(&self.shared.doomed).replace(watch::Part::Runner);
    }

    /// Stops and waits until everything has ended. To peers this is silence: say goodbye before.
    pub(crate) async fn shutdown(self) {
        self.cancel.cancel();
        // It fails only if the runner panicked, and then there is nothing left to wait for.
        let _ = self.runner.await;
    }
}
