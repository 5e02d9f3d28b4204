//! Describing a node.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Node;
use super::boot;
use super::error::StartError;
use super::executor::Executor;
use super::seeds::Seeds;
use crate::clock::{SharedClock, SystemClock};
use crate::core::ids::{InvalidName, NodeId};
use crate::core::machine::OnLostState;
use crate::core::timing::Timing;
use crate::key::{Key, Keyring};
use crate::net::{Network, NetworkLimits, SystemNetwork};
use crate::task::{Job, Kinds, RegisterError};

/// What a user says of a node, unchecked.
pub(super) struct Settings {
    pub(super) cluster: String,
    pub(super) node_id: Option<String>,
    pub(super) listen: String,
    pub(super) advertise: Option<String>,
    pub(super) seeds: Seeds,
    pub(super) keyring: Option<Keyring>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) kinds: Kinds,
    pub(super) bad_task: Option<RegisterError>,
    pub(super) revision: Option<String>,
    pub(super) rollout: Option<u64>,
    pub(super) timing: Timing,
    pub(super) replicas: usize,
    pub(super) drain_budget: Duration,
    pub(super) accept_delay: Duration,
    pub(super) call_timeout: Duration,
    pub(super) max_running: u32,
    pub(super) transfer_slots: usize,
    pub(super) checkpoint_interval: Duration,
    pub(super) checkpoint_bytes: usize,
    pub(super) max_names: usize,
    pub(super) known_dead: bool,
    pub(super) event_backlog: usize,
    pub(super) on_lost_state: OnLostState,
    pub(super) network_limits: NetworkLimits,
    pub(super) advertised_within: Vec<String>,
    pub(super) network: Arc<dyn Network>,
    pub(super) clock: SharedClock,
    pub(super) executor: Executor,
}

/// Describes a node; [`NodeBuilder::start`] starts it.
#[must_use = "a node starts with `start().await`"]
pub struct NodeBuilder(pub(super) Settings);

impl std::fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("cluster", &self.0.cluster)
            .field("listen", &self.0.listen)
            .finish_non_exhaustive()
    }
}

impl NodeBuilder {
    pub(super) fn new(cluster: String) -> Self {
        Self(Settings {
            cluster,
            node_id: None,
            listen: "127.0.0.1:0".into(),
            advertise: None,
            seeds: Seeds::None,
            keyring: None,
            data_dir: None,
            kinds: Kinds::default(),
            bad_task: None,
            revision: None,
            rollout: None,
            timing: Timing::default(),
            replicas: 1,
            drain_budget: Duration::from_secs(25),
            accept_delay: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            max_running: 10_000,
            transfer_slots: 8,
            checkpoint_interval: Duration::from_secs(1),
            checkpoint_bytes: 1 << 20,
            max_names: 100_000,
            known_dead: true,
            event_backlog: 4096,
            on_lost_state: OnLostState::default(),
            network_limits: NetworkLimits::default(),
            advertised_within: Vec::new(),
            network: Arc::new(SystemNetwork),
            clock: Arc::new(SystemClock),
            executor: Executor::default(),
        })
    }

    /// The node's stable name, the same after a restart: at most 64 bytes, no control characters. Default:
    /// the host's name. Two processes should not share one at a time: they are two sessions, told
    /// apart wherever it matters, but no person can tell which is which.
    pub fn node_id(mut self, id: impl Into<String>) -> Self {
        self.0.node_id = Some(id.into());
        self
    }

    /// Where to listen, as `IP:PORT`, for datagrams and streams alike. Default: a free port of
    /// loopback. Anything but loopback needs a [`NodeBuilder::key`].
    pub fn listen(mut self, address: impl ToString) -> Self {
        self.0.listen = address.to_string();
        self
    }

    /// The `IP:PORT` that others reach this node by. Default: the address listened on; when that is
    /// `0.0.0.0` or `[::]`, the address this host uses to reach the first seed.
    ///
    /// Port 0 stands for the port listened on. An address of no single host, like `0.0.0.0` or a
    /// multicast group's, is refused at the start.
    ///
    /// Peers use it once a datagram of this node has come from there, in answer to one sent there; until
    /// then they answer to where its datagrams come from. Forwarded ports of containers and NAT satisfy
    /// that. On a host with several addresses, listen on the one that is advertised.
    pub fn advertise(mut self, address: impl ToString) -> Self {
        self.0.advertise = Some(address.to_string());
        self
    }

    /// Networks (`10.0.0.0/8`) that peers may advertise addresses of. Default: any.
    ///
    /// Whatever a peer advertises is used only once an echo has come from there, so that nobody can
    /// direct this node's traffic at a third party. With networks given, an address outside of them is
    /// not even probed, unless the peer's own datagrams come from there. Give the networks of published
    /// addresses too where containers or NAT stand in between.
    pub fn advertised_within<N: ToString>(mut self, networks: impl IntoIterator<Item = N>) -> Self {
        self.0.advertised_within = networks.into_iter().map(|n| n.to_string()).collect();
        self
    }

    /// What the node takes from strangers and spends on silent peers. Default:
    /// [`NetworkLimits::default`].
    pub fn network_limits(mut self, limits: NetworkLimits) -> Self {
        self.0.network_limits = limits;
        self
    }

    /// Where the first peers are found. Default: none.
    pub fn seeds(mut self, seeds: impl Into<Seeds>) -> Self {
        self.0.seeds = seeds.into();
        self
    }

    /// The cluster's key. Without one, the node refuses to listen on anything but loopback, where
    /// any local process can take part.
    pub fn key(self, key: Key) -> Self {
        self.keyring(key.into())
    }

    /// The cluster's keys, while one replaces another.
    pub fn keyring(mut self, keyring: Keyring) -> Self {
        self.0.keyring = Some(keyring);
        self
    }

    /// A directory of this node's own, kept across restarts: checkpoints survive the loss of the
    /// whole cluster, and a restarted node replaces its former self at once. Default: none, all in memory.
    #[cfg(feature = "redb")]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.data_dir = Some(path.into());
        self
    }

    /// Registers a task: this node can run its kind.
    pub fn task<J: Job>(mut self, task: J) -> Self {
        if let Err(error) = self.0.kinds.register(task) {
            self.0.bad_task.get_or_insert(error);
        }
        self
    }

    /// The label of this build, cut to 1 KiB; only equality matters. Default: `HANDOVER_REVISION` from the
    /// environment, or else a hash of the executable.
    pub fn revision(mut self, label: impl Into<String>) -> Self {
        self.0.revision = Some(label.into());
        self
    }

    /// The number of the deploy that this process is part of: tasks go to the nodes with the highest.
    /// Default: `HANDOVER_ROLLOUT` from the environment. Without numbers they go to the revision that
    /// came last, as far as the nodes' clocks tell, which also gets a rollback right.
    pub fn rollout(mut self, number: u64) -> Self {
        self.0.rollout = Some(number);
        self
    }

    /// The durations the node lives by; all nodes should have the same. Default: [`Timing::default`].
    pub fn timing(mut self, timing: Timing) -> Self {
        self.0.timing = timing;
        self
    }

    /// How many other nodes keep each checkpoint, as far as there are so many. With 0 this node alone
    /// has them, in memory or in its data directory. Default: 1.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.0.replicas = replicas;
        self
    }

    /// How long a drain may take before what is left is released, which takes up to three seconds
    /// more. Keep it at least that much under the time until the process is killed. Zero is allowed:
    /// tasks are then released from their last commits. Default: 25 s.
    pub fn drain_budget(mut self, budget: Duration) -> Self {
        self.0.drain_budget = budget;
        self
    }

    /// How long after the start of a drain [`Node::stop_accepting`] completes. Default: 5 s.
    pub fn accept_delay(mut self, delay: Duration) -> Self {
        self.0.accept_delay = delay;
        self
    }

    /// How long `run`, `pause`, `resume` and `cancel` wait for other nodes; at least 1 ms. Default: 30 s.
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.0.call_timeout = limit.max(Duration::from_millis(1));
        self
    }

    /// How many tasks run here at most; what is paused or parked here takes no room. Default: 10,000.
    pub fn max_running(mut self, limit: u32) -> Self {
        self.0.max_running = limit;
        self
    }

    /// How many tasks are handed over at once while draining; at least 1. Default: 8.
    pub fn transfer_slots(mut self, slots: usize) -> Self {
        self.0.transfer_slots = slots;
        self
    }

    /// How much work may go unsaved: a task is checkpointed after a step when `interval` has passed
    /// since its last checkpoint. At most `bytes` of a task's state are written per interval: a state
    /// that is n times as long waits n intervals. Default: 1 s and 1 MiB.
    pub fn checkpoint_every(mut self, interval: Duration, bytes: usize) -> Self {
        self.0.checkpoint_interval = interval;
        self.0.checkpoint_bytes = bytes;
        self
    }

    /// How many names the node remembers at most, about 2 KB each; beyond that it starts none and
    /// refuses to keep those of others. Default: 100,000.
    pub fn max_names(mut self, limit: usize) -> Self {
        self.0.max_names = limit;
        self
    }

    /// Whether a peer whose links break and whose address refuses connections counts as dead at once,
    /// rather than after the silence floor. Switch it off where a firewall, or a proxy that dies
    /// before the process, can refuse in a living node's name. Default: on.
    pub fn known_dead(mut self, on: bool) -> Self {
        self.0.known_dead = on;
        self
    }

    /// How many events a reader of [`Node::events`] or [`Node::watch`] may be behind, from 1 to
    /// 1,048,576; room for them is made at the start. Default: 4,096.
    pub fn event_backlog(mut self, events: usize) -> Self {
        self.0.event_backlog = events.clamp(1, 1 << 20);
        self
    }

    /// What to do with a task whose newest acknowledged state is lost. Default: park it.
    pub fn on_lost_state(mut self, choice: OnLostState) -> Self {
        self.0.on_lost_state = choice;
        self
    }

    /// Another network than the system's: for simulations.
    pub fn network(mut self, network: Arc<dyn Network>) -> Self {
        self.0.network = network;
        self
    }

    /// Another clock than the system's: for simulations.
    pub fn clock(mut self, clock: SharedClock) -> Self {
        self.0.clock = clock;
        self
    }

    /// Where the node's own work runs. Default: [`Executor::OwnThread`].
    pub fn executor(mut self, executor: Executor) -> Self {
        self.0.executor = executor;
        self
    }

    /// Opens sockets and data directory and starts to look for peers. Returns as soon as the node
    /// listens; [`Node::wait_ready`] waits until it takes part. Tasks run on the runtime this is called on.
    ///
    /// Seeds that do not answer are no error: the node goes on trying, with an event.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left behind. If the future is dropped, what had been started ends
    /// by itself.
    pub async fn start(self) -> Result<Node, StartError> {
        let checked = self.0.check()?;
        boot::start(checked).await
    }
}

/// A node's settings, checked.
pub(super) struct Config {
    pub(super) settings: Settings,
    pub(super) node_id: NodeId,
    pub(super) listen: SocketAddr,
    pub(super) advertise: Option<SocketAddr>,
    pub(super) advertised_within: Vec<IpNet>,
    pub(super) keyring: Keyring,
}

impl Settings {
    /// Everything that can be told without touching the outside.
    pub(super) fn check(mut self) -> Result<Config, StartError> {
        if let Some(error) = self.bad_task.take() {
            return Err(error.into());
        }
        check_cluster(&self.cluster)?;
        let node_id = match &self.node_id {
            Some(id) => NodeId::new(id)?,
            None => host_name()?,
        };
        self.timing.check()?;
        self.network_limits.check()?;
        let advertised_within = self
            .advertised_within
            .iter()
            .map(|text| parse_network(text))
            .collect::<Result<_, _>>()?;
        let listen = parse("listen", &self.listen)?;
        let advertise = match &self.advertise {
            Some(text) => Some(one_host(parse("advertise", text)?)?),
            None => None,
        };
        if let Seeds::Addresses(seeds) = &self.seeds {
            seeds.iter().try_for_each(|seed| check_seed(*seed))?;
        }
        let keyring = match self.keyring.take() {
            Some(keyring) => keyring,
            // No secret, but it keeps clusters on one machine apart.
            None if listen.ip().is_loopback() => {
                Key::derived(&format!("loopback {}", self.cluster)).into()
            }
            None => return Err(StartError::ListenWithoutKey(listen)),
        };
        Ok(Config { settings: self, node_id, listen, advertise, advertised_within, keyring })
    }
}

/// The same rules as for the other names.
fn check_cluster(cluster: &str) -> Result<(), InvalidName> {
    match NodeId::new(cluster) {
        Ok(_) => Ok(()),
        Err(InvalidName::Empty { .. }) => Err(InvalidName::Empty { what: "cluster" }),
        Err(InvalidName::TooLong { len, limit, .. }) => {
            Err(InvalidName::TooLong { what: "cluster", len, limit })
        }
        Err(InvalidName::Control { at, .. }) => Err(InvalidName::Control { what: "cluster", at }),
    }
}

fn parse(what: &'static str, text: &str) -> Result<SocketAddr, StartError> {
    text.parse().map_err(|error: std::net::AddrParseError| StartError::InvalidAddress {
        what,
        text: text.to_owned(),
        why: error.to_string(),
    })
}

/// Peers that are told of any other address look for this node in vain, and nobody says why.
fn one_host(address: SocketAddr) -> Result<SocketAddr, StartError> {
    match no_host(address.ip().to_canonical()) {
        None => Ok(address),
        Some(why) => Err(StartError::UnreachableAdvertised { address, why }),
    }
}

fn check_seed(seed: SocketAddr) -> Result<(), StartError> {
    let no_port = (seed.port() == 0).then_some("its port is 0");
    match no_host(seed.ip().to_canonical()).or(no_port) {
        None => Ok(()),
        Some(why) => Err(StartError::InvalidSeed { name: seed.to_string(), why: why.to_owned() }),
    }
}

/// What an address is that no single host can be reached by.
fn no_host(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_unspecified() => Some("good to listen on and nothing that others can send to"),
        _ if ip.is_multicast() => Some("a multicast group's address"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("the broadcast address"),
        _ => None,
    }
}

fn parse_network(text: &str) -> Result<IpNet, StartError> {
    let network = text.parse().or_else(|error: ipnet::AddrParseError| {
        // One address is a network of one.
        text.parse::<IpAddr>().map(IpNet::from).map_err(|_| error)
    });
    network.map_err(|error| StartError::InvalidNetwork {
        text: text.to_owned(),
        why: error.to_string(),
    })
}

fn host_name() -> Result<NodeId, StartError> {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    NodeId::new(name.as_ref()).map_err(|error| StartError::NoHostName(error.to_string()))
}
