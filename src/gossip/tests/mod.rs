//! Whole nodes over loopback datagrams.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use crate::clock::{Clock, SystemClock};
use crate::core::ids::{Kind, Name, NodeId, SessionId};
use crate::core::record::{Load, NodeRecord, NodeState, Versions};
use crate::core::time::Time;
use crate::core::timing::Timing;
use crate::key::Key;
use crate::net::{Datagrams, Listener, Network, NetworkLimits, Stream, SystemNetwork};

use super::*;

mod ends;
mod liveness;
mod records;
mod strangers;

/// Unoptimised ciphers on a busy machine take a millisecond per datagram.
const PATIENCE: Duration = Duration::from_secs(120);

/// The system's network, with faults.
#[derive(Clone, Debug, Default)]
struct Faulty {
    /// In parts per hundred, of what is sent.
    loss: u64,
    /// While set, nothing is sent nor received.
    cut: Arc<AtomicBool>,
    /// What comes from there is lost.
    deaf_to: Arc<Mutex<BTreeSet<SocketAddr>>>,
    sent: Arc<AtomicU64>,
    /// How often a socket was bound; those before the last of `broken` receive nothing but errors.
    bound: Arc<AtomicU64>,
    broken: Arc<AtomicU64>,
    /// Binding fails so often.
    unbindable: Arc<AtomicU64>,
}

#[derive(Debug)]
struct FaultyDatagrams {
    number: u64,
    inner: Arc<dyn Datagrams>,
    faults: Faulty,
    random: Mutex<StdRng>,
}

#[async_trait]
impl Network for Faulty {
    async fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        let fails = |left: u64| left.checked_sub(1);
        if self.unbindable.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fails).is_ok() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        Ok(Arc::new(FaultyDatagrams {
            number: self.bound.fetch_add(1, Ordering::Relaxed) + 1,
            inner: SystemNetwork.bind(address).await?,
            faults: self.clone(),
            random: Mutex::new(StdRng::seed_from_u64(1)),
        }))
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        SystemNetwork.listen(address).await
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Stream>> {
        SystemNetwork.connect(address).await
    }

    async fn refuses_datagrams(&self, _: SocketAddr) -> Option<bool> {
        None
    }
}

#[async_trait]
impl Datagrams for FaultyDatagrams {
    async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        let lost = self.random.lock().unwrap().random_range(0..100) < self.faults.loss;
        if lost || self.faults.cut.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.faults.sent.fetch_add(1, Ordering::Relaxed);
        self.inner.send_to(bytes, to).await
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            if self.number <= self.faults.broken.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let received = self.inner.recv_from(buffer).await?;
            let deaf = self.faults.deaf_to.lock().unwrap().contains(&received.1);
            if !deaf && !self.faults.cut.load(Ordering::Relaxed) {
                return Ok(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// What a node was told, folded.
#[derive(Default)]
struct Told {
    events: Vec<GossipEvent>,
    records: BTreeMap<(SessionId, Table, Name), Bytes>,
}

struct Node {
    gossip: Gossip,
    session: SessionId,
    faults: Faulty,
    told: Arc<Mutex<Told>>,
    news: Arc<Notify>,
    generations: Arc<Mutex<Vec<u64>>>,
}

fn timing() -> Timing {
    Timing {
        gossip_interval: Duration::from_millis(50),
        silence_floor: Duration::from_secs(1),
        ..Timing::default()
    }
}

fn session(number: u16) -> SessionId {
    let nonce = Uuid::from_u128(rand::random());
    SessionId::new(NodeId::new(format!("n{number}")).unwrap(), nonce)
}

fn config(session: SessionId, seeds: Vec<SocketAddr>, network: Faulty) -> GossipConfig {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    GossipConfig {
        cluster: "test".into(),
        keyring: Key::new([7; 32]).into(),
        session,
        generation: SystemClock.wall_ms(),
        on_generation: Box::new(|_| {}),
        listen: any,
        advertise: any,
        seeds,
        timing: timing(),
        limits: GossipLimits::default(),
        network_limits: NetworkLimits::default(),
        advertised_within: Vec::new(),
        clock: Arc::new(SystemClock),
        network: Arc::new(network),
        known: Vec::new(),
    }
}

impl Node {
    async fn start(number: u16, seeds: &[&Self]) -> Self {
        Self::start_with(number, seeds, Faulty::default()).await
    }

    async fn start_with(number: u16, seeds: &[&Self], faults: Faulty) -> Self {
        let seeds = seeds.iter().map(|node| node.gossip.local_addr()).collect();
        Self::with(config(session(number), seeds, faults.clone()), faults).await
    }

    async fn with(mut config: GossipConfig, faults: Faulty) -> Self {
        let (sender, mut receiver) = mpsc::channel(1024);
        let session = config.session.clone();
        let generations = Arc::new(Mutex::new(vec![config.generation]));
        let used = Arc::clone(&generations);
        config.on_generation = Box::new(move |generation| used.lock().unwrap().push(generation));
        let gossip = Gossip::start(config, sender).await.unwrap();
        gossip.set_header(NodeState::Up, 1, 0, Vec::new());
        let told = Arc::new(Mutex::new(Told::default()));
        let news = Arc::new(Notify::new());
        let (teller, notify) = (Arc::clone(&told), Arc::clone(&news));
        tokio::spawn(async move {
            while let Some(event) = receiver.recv().await {
                let mut told = teller.lock().unwrap();
                if let GossipEvent::Records { of, table, changes } = &event {
                    for (name, record) in changes {
                        let key = (of.clone(), *table, name.clone());
                        match record {
                            Some(record) => told.records.insert(key, record.clone()),
                            None => told.records.remove(&key),
                        };
                    }
                }
                told.events.push(event);
                notify.notify_one();
            }
        });
        Self { gossip, session, faults, told, news, generations }
    }

    /// Waits until what was told satisfies `done`.
    async fn until(&self, what: &str, mut done: impl FnMut(&Told) -> bool) {
        let waiting = async {
            while !done(&self.told.lock().unwrap()) {
                self.news.notified().await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{} waited in vain until {what}", self.session);
        }
    }

    async fn until_event(&self, what: &str, mut wanted: impl FnMut(&GossipEvent) -> bool) {
        let mut seen = 0;
        self.until(what, |told| {
            let found = told.events[seen..].iter().any(&mut wanted);
            seen = told.events.len();
            found
        })
        .await;
    }

    async fn until_caught_up(&self, with: &Self) {
        self.until_event(
            "it has caught up",
            |event| matches!(event, GossipEvent::CaughtUp { of } if *of == with.session),
        )
        .await;
    }

    async fn until_record(&self, of: &Self, name: &Name, record: Option<&str>) {
        let key = (of.session.clone(), Table::Claims, name.clone());
        self.until(&format!("{name} is {record:?}"), |told| {
            told.records.get(&key).map(|bytes| &bytes[..]) == record.map(str::as_bytes)
        })
        .await;
    }

    fn put(&self, name: &Name, record: Option<&str>) {
        let record = record.map(|text| Bytes::copy_from_slice(text.as_bytes()));
        self.gossip.put(Table::Claims, name, record).unwrap();
    }

    /// Forgets the events told so far and returns them.
    fn drain(&self) -> Vec<GossipEvent> {
        std::mem::take(&mut self.told.lock().unwrap().events)
    }

    fn count(&self, wanted: impl Fn(&GossipEvent) -> bool) -> usize {
        let told = self.told.lock().unwrap();
        told.events.iter().filter(|event| wanted(event)).count()
    }
}

fn name(number: usize) -> Name {
    Name::new(format!("task-{number}")).unwrap()
}

/// Text that does not compress to nothing.
fn noise(len: usize) -> String {
    let random = rand::rng();
    let text = random.sample_iter(rand::distr::Alphanumeric);
    text.take(len).map(char::from).collect()
}

fn heard_of(session: &SessionId) -> impl Fn(&GossipEvent) -> bool + use<> {
    let session = session.clone();
    move |event| matches!(event, GossipEvent::Heard { from, .. } if *from == session)
}

fn beats_of(session: &SessionId) -> impl Fn(&GossipEvent) -> bool + use<> {
    let session = session.clone();
    move |event| matches!(event, GossipEvent::Heartbeat { of } if *of == session)
}
