//! The simulated network: what is on its way, what is cut, who listens.
//!
//! turmoil gives hosts, their runtimes and their time; the network is our own. A cut in turmoil
//! refuses connections, and a crashed host leaves them hanging, while it is the other way round in
//! the world: a kernel refuses in a dead process's name, and what is cut stays silent. Its `hold`
//! stops both directions and all protocols, so nothing in it expresses a one-way cut.

mod datagrams;
mod network;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use self::datagrams::Mailbox;
pub(crate) use self::network::SimNetwork;
use self::streams::{Backlog, Pipe};
use crate::scenario::Weather;
use crate::trace::Fingerprint;

/// All simulated time is counted in nanoseconds since the world began.
pub(crate) type Nanos = u64;

pub(crate) const fn nanos(duration: Duration) -> Nanos {
    duration.as_nanos() as Nanos
}

/// How fast a stream comes to life again after a cut, at most: the sender's kernel tries again only
/// now and then.
const RETRANSMISSION: Duration = Duration::from_secs(1);

/// The network that all hosts of one world share.
pub(crate) struct Fabric {
    state: Mutex<State>,
    fingerprint: Arc<Fingerprint>,
}

/// What went over the network.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) datagrams: u64,
    pub(crate) datagrams_lost: u64,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

struct State {
    /// The time outside of any host.
    now: Nanos,
    rng: SmallRng,
    weather: Weather,
    /// Directions in which nothing passes.
    cuts: BTreeSet<(Ipv4Addr, Ipv4Addr)>,
    /// Hosts without power: nothing answers in their name.
    dark: BTreeSet<Ipv4Addr>,
    mailboxes: BTreeMap<SocketAddr, Mailbox>,
    listeners: BTreeMap<SocketAddr, Backlog>,
    /// One direction of a stream each.
    pipes: BTreeMap<u64, Pipe>,
    next_id: u64,
    traffic: Traffic,
}

impl Fabric {
    pub(crate) fn new(seed: u64, weather: Weather, fingerprint: Arc<Fingerprint>) -> Self {
        let state = State {
            now: 0,
            rng: SmallRng::seed_from_u64(seed),
            weather,
            cuts: BTreeSet::new(),
            dark: BTreeSet::new(),
            mailboxes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            pipes: BTreeMap::new(),
            next_id: 0,
            traffic: Traffic::default(),
        };
        Self { state: Mutex::new(state), fingerprint }
    }

    /// The time: the host's that asks, or else the world's.
    pub(crate) fn now(&self) -> Nanos {
        turmoil::sim_elapsed().map_or_else(|| self.lock().now, nanos)
    }

    /// Tells the time to whoever asks from outside of the hosts.
    pub(crate) fn set_now(&self, now: Nanos) {
        self.lock().now = now;
    }

    /// From now on the network is like that.
    pub(crate) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.lock().traffic
    }

    /// Lets nothing through from one host to another.
    pub(crate) fn cut(&self, from: Ipv4Addr, to: Ipv4Addr) {
        self.lock().cuts.insert((from, to));
    }

    /// Lets it through again. What streams had on the way arrives late; datagrams are lost.
    pub(crate) fn heal(&self, from: Ipv4Addr, to: Ipv4Addr) {
        let mut state = self.lock();
        if state.cuts.remove(&(from, to)) {
            state.resume(from, to);
        }
    }

    /// A process is gone: its kernel closes its sockets and refuses in its name.
    pub(crate) fn exit(&self, host: Ipv4Addr) {
        let mut state = self.lock();
        let listeners = state.unbind_all_of(host);
        state.close_all_of(host);
        drop(state);
        // Streams that wait in them take the lock themselves when they are dropped.
        drop(listeners);
    }

    /// A machine is gone: nothing closes and nothing refuses.
    pub(crate) fn power_off(&self, host: Ipv4Addr) {
        let mut state = self.lock();
        let listeners = state.unbind_all_of(host);
        state.dark.insert(host);
        state.silence_all_of(host);
        drop(state);
        drop(listeners);
    }

    /// A machine is there again. It knows nothing of its former streams and says so.
    pub(crate) fn power_on(&self, host: Ipv4Addr) {
        let mut state = self.lock();
        if state.dark.remove(&host) {
            state.reset_all_of(host);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn unbind_all_of(&mut self, host: Ipv4Addr) -> Vec<Backlog> {
        self.mailboxes.retain(|address, _| host_of(*address) != host);
        let bound: Vec<SocketAddr> =
            self.listeners.keys().copied().filter(|address| host_of(*address) == host).collect();
        bound.iter().filter_map(|address| self.listeners.remove(address)).collect()
    }

    fn latency(&mut self) -> Nanos {
        let (least, most) = self.weather.latency();
        self.rng.random_range(nanos(least)..=nanos(most))
    }

    /// Whether a datagram sent now would arrive.
    fn passes(&self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        !self.cuts.contains(&(from, to)) && !self.dark.contains(&to)
    }

    /// Whether streams advance: they need both directions, since what is not acknowledged stops.
    fn flows(&self, a: Ipv4Addr, b: Ipv4Addr) -> bool {
        self.passes(a, b) && self.passes(b, a)
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random_bool(probability)
    }
}

/// The host of an address; the simulated world has version 4 only.
fn host_of(address: SocketAddr) -> Ipv4Addr {
    match address {
        SocketAddr::V4(address) => *address.ip(),
        SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}
