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
use crate::net::{Datagrams, Listener, Network, Stream, SystemNetwork};

use super::seal::Sealer;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// The system's network, with faults.
#[derive(Clone, Debug, Default)]
struct Faulty {
    /// In parts per hundred, of what is sent.
    loss: u64,
    /// While set, nothing is sent nor received.
    cut: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
}

#[derive(Debug)]
struct FaultyDatagrams {
    inner: Arc<dyn Datagrams>,
    faults: Faulty,
    random: Mutex<StdRng>,
}

#[async_trait]
impl Network for Faulty {
    async fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        Ok(Arc::new(FaultyDatagrams {
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
            let received = self.inner.recv_from(buffer).await?;
            if !self.faults.cut.load(Ordering::Relaxed) {
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
        gossip.set_header(NodeState::Up, 0, Vec::new());
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

#[tokio::test]
async fn two_nodes_exchange_records_updates_and_removals() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    a.put(&name(1), Some("one"));
    b.until_record(&a, &name(1), Some("one")).await;
    b.put(&name(1), Some("other"));
    a.until_record(&b, &name(1), Some("other")).await;
    a.put(&name(1), Some("two"));
    b.until_record(&a, &name(1), Some("two")).await;
    a.put(&name(1), None);
    b.until_record(&a, &name(1), None).await;
    a.until_record(&b, &name(1), Some("other")).await;
}

#[tokio::test]
async fn a_change_is_pushed_long_before_the_next_round() {
    let slow = |seeds| {
        let faults = Faulty::default();
        let mut config = config(session(9), seeds, faults.clone());
        config.timing.gossip_interval = Duration::from_secs(5);
        Node::with(config, faults)
    };
    let a = slow(Vec::new()).await;
    let b = slow(vec![a.gossip.local_addr()]).await;
    b.until_caught_up(&a).await;
    a.until_caught_up(&b).await;
    let start = SystemClock.boot();
    for round in 0..10 {
        a.put(&name(1), Some(&format!("{round}")));
        b.until_record(&a, &name(1), Some(&format!("{round}"))).await;
    }
    let took = SystemClock.boot().since(start);
    assert!(took < Duration::from_secs(4), "ten updates took {took:?}");
}

#[tokio::test]
async fn three_nodes_learn_of_each_other_through_one_seed() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    let c = Node::start(3, &[&a]).await;
    let record = NodeRecord {
        address: b.gossip.local_addr(),
        revision: "r1".into(),
        since_ms: 5,
        kinds: [(Kind::new("zip").unwrap(), Versions { oldest: 1, newest: 2 })].into(),
        max_running: 9,
        succeeds: None,
    };
    b.gossip.set_record(&record);
    b.gossip.set_load(Load { running: 3, full: true });
    b.put(&name(1), Some("one"));
    c.until_record(&b, &name(1), Some("one")).await;
    c.until_event(
        "the record arrives",
        |event| matches!(event, GossipEvent::Static { of, record: read } if *of == b.session && *read == record),
    )
    .await;
    c.until_event(
        "the load arrives",
        |event| matches!(event, GossipEvent::Load { of, load } if *of == b.session && load.running == 3 && load.full),
    )
    .await;
    c.until_event(
        "b is heard directly, with an echo",
        |event| matches!(event, GossipEvent::Heard { from, echoed: Some(_), .. } if *from == b.session),
    )
    .await;
    let book: BTreeSet<SessionId> =
        c.gossip.address_book().into_iter().map(|(session, _)| session).collect();
    assert_eq!(book, [a.session.clone(), b.session.clone()].into_iter().collect());
}

async fn converges(count: usize, loss: u64) {
    let faults = |loss| Faulty { loss, ..Faulty::default() };
    let a = Node::start_with(1, &[], faults(loss)).await;
    for number in 0..count {
        a.put(&name(number), Some(&noise(300)));
    }
    let b = Node::start_with(2, &[&a], faults(loss)).await;
    let c = Node::start_with(3, &[&a], faults(loss)).await;
    for node in [&b, &c] {
        node.until("all records are there", |told| told.records.len() == count).await;
        node.until_caught_up(&a).await;
    }
    for number in (0..count).step_by(2) {
        a.put(&name(number), None);
    }
    for node in [&b, &c] {
        node.until("every other record is gone", |told| told.records.len() == count / 2).await;
    }
}

#[tokio::test]
async fn two_thousand_records_of_300_bytes_converge() {
    converges(2000, 0).await;
}

#[tokio::test]
async fn records_converge_at_20_percent_loss() {
    converges(600, 20).await;
}

#[tokio::test]
async fn pages_that_split_lose_nothing_on_the_way() {
    let small = |seeds| {
        let faults = Faulty::default();
        let mut config = config(session(1), seeds, faults.clone());
        config.limits.page_digits = 1;
        config.limits.page_bytes = 1000;
        Node::with(config, faults)
    };
    let a = small(Vec::new()).await;
    let b = small(vec![a.gossip.local_addr()]).await;
    for number in 0..400 {
        a.put(&name(number), Some(&noise(80)));
        if number % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    b.until("all records are there", |told| told.records.len() == 400).await;
    let gone = b.count(|event| match event {
        GossipEvent::Records { changes, .. } => changes.iter().any(|(_, record)| record.is_none()),
        _ => false,
    });
    assert_eq!(gone, 0, "a record was missing while its page was split");
}

#[tokio::test]
async fn a_record_longer_than_a_page_is_refused() {
    let a = Node::start(1, &[]).await;
    let long = Bytes::from(vec![0; 9000]);
    let error = a.gossip.put(Table::Specs, &name(1), Some(long)).unwrap_err();
    assert_eq!(error.limit, GossipLimits::default().page_bytes);
}

#[tokio::test]
async fn state_and_watermark_reach_a_peer() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    a.gossip.set_header(NodeState::Draining, 17, vec![21, 19, 3]);
    b.until_event("the header arrives", |event| match event {
        GossipEvent::Heard {
            from, state: NodeState::Draining, watermark: 17, released, ..
        } => *from == a.session && *released == [19, 21],
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn a_fenced_node_is_heard_but_its_heartbeat_stops() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    let c = Node::start(3, &[&a]).await;
    b.until_caught_up(&a).await;
    c.until_caught_up(&a).await;
    a.gossip.set_header(NodeState::Fenced, 0, Vec::new());
    // What was under way, also from b to c, arrives.
    tokio::time::sleep(Duration::from_millis(500)).await;
    b.drain();
    c.drain();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    for node in [&b, &c] {
        assert_eq!(node.count(beats_of(&a.session)), 0, "a heartbeat went out");
        let fenced = node.count(|event| {
            matches!(event, GossipEvent::Heard { from, state: NodeState::Fenced, .. } if *from == a.session)
        });
        assert!(fenced >= 3, "heard {fenced} times");
    }
    assert!(b.count(beats_of(&c.session)) > 5);
}

#[tokio::test]
async fn a_node_that_comes_back_is_heard_and_gossiped_with_at_once() {
    let slow = |seeds, faults: Faulty| {
        let mut config = config(session(9), seeds, faults.clone());
        // Rounds alone would take seconds.
        config.timing.gossip_interval = Duration::from_millis(400);
        Node::with(config, faults)
    };
    let a = slow(Vec::new(), Faulty::default()).await;
    let b = slow(vec![a.gossip.local_addr()], Faulty::default()).await;
    b.until_caught_up(&a).await;
    a.until_caught_up(&b).await;
    b.faults.cut.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    a.put(&name(1), Some("meanwhile"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    a.drain();
    b.drain();
    let start = SystemClock.boot();
    b.faults.cut.store(false, Ordering::Relaxed);
    a.until_event("b is heard", heard_of(&b.session)).await;
    b.until_record(&a, &name(1), Some("meanwhile")).await;
    let took = SystemClock.boot().since(start);
    assert!(took < Duration::from_millis(700), "{took:?}");
}

#[tokio::test]
async fn silence_is_suspected_and_life_clears_it() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    b.until_caught_up(&a).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    a.faults.cut.store(true, Ordering::Relaxed);
    let suspicion = |of: SessionId, wanted| move |event: &GossipEvent| matches!(event, GossipEvent::Suspicion { of: about, suspected } if *about == of && *suspected == wanted);
    b.until_event("a is suspected", suspicion(a.session.clone(), true)).await;
    a.faults.cut.store(false, Ordering::Relaxed);
    b.until_event("a is cleared", suspicion(a.session.clone(), false)).await;
}

#[tokio::test]
async fn gossip_restarted_inside_a_process_continues_the_session() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    for number in 0..300 {
        a.put(&name(number), Some(&noise(400)));
    }
    b.put(&name(1), Some("of b"));
    b.until("all records are there", |told| told.records.len() == 300).await;
    a.until_record(&b, &name(1), Some("of b")).await;
    a.drain();
    b.drain();

    a.gossip.shared.renew.notify_one();
    a.until_event("the end is reported", |event| {
        matches!(event, GossipEvent::Ended { restarted: true, .. })
    })
    .await;
    a.put(&name(0), None);
    a.put(&name(1), Some("after"));
    b.until_record(&a, &name(1), Some("after")).await;
    b.until_record(&a, &name(0), None).await;
    b.put(&name(1), Some("of b, after"));
    a.until_record(&b, &name(1), Some("of b, after")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;

    let generations = a.generations.lock().unwrap().clone();
    assert_eq!(generations.len(), 2);
    assert!(generations.is_sorted_by(|before, after| before < after));
    assert_eq!(b.told.lock().unwrap().records.len(), 299);
    let mut removed = Vec::new();
    for event in b.drain() {
        match event {
            GossipEvent::Forgotten { of } => panic!("{of} was forgotten"),
            GossipEvent::Records { changes, .. } => removed.extend(
                changes.into_iter().filter(|(_, record)| record.is_none()).map(|(name, _)| name),
            ),
            _ => {}
        }
    }
    assert_eq!(removed, [name(0)]);
    let told = a.told.lock().unwrap();
    assert!(!told.events.iter().any(|event| matches!(event, GossipEvent::Forgotten { .. })));
}

#[tokio::test]
async fn a_late_joiner_catches_up_with_everybody_and_holds_all_by_then() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    for number in 0..500 {
        a.put(&name(number), Some(&noise(300)));
        b.put(&name(number), Some(&noise(300)));
    }
    b.until("a's records are there", |told| told.records.len() == 500).await;
    let c = Node::start(3, &[&a]).await;
    for peer in [&a, &b] {
        c.until_caught_up(peer).await;
        let told = c.told.lock().unwrap();
        let before = told
            .events
            .iter()
            .take_while(
                |event| !matches!(event, GossipEvent::CaughtUp { of } if *of == peer.session),
            )
            .map(|event| match event {
                GossipEvent::Records { of, changes, .. } if *of == peer.session => changes.len(),
                _ => 0,
            })
            .sum::<usize>();
        assert_eq!(before, 500);
    }
}

#[tokio::test]
async fn strangers_are_not_answered_and_change_nothing() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    b.until_caught_up(&a).await;
    let stranger = SystemNetwork.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let to = a.gossip.local_addr();
    let foreign = [
        Sealer::new(&Key::new([8; 32]).into(), "test"),
        Sealer::new(&Key::new([7; 32]).into(), "other"),
    ];
    let mut plain = Vec::new();
    let header = header::Header {
        session: session(66),
        counter: 1,
        echo: None,
        state: NodeState::Up,
        watermark: 0,
        released: Vec::new(),
    };
    header::encode(&header, header::Payload::Probe, &mut plain);
    for sealer in foreign {
        let mut datagram = Vec::new();
        sealer.seal(&plain, &mut datagram).unwrap();
        stranger.send_to(&datagram, to).await.unwrap();
    }
    for len in [0, 1, 45, 500] {
        let noise: Vec<u8> = (0..len).map(|_| rand::random()).collect();
        stranger.send_to(&noise, to).await.unwrap();
    }
    let mut buffer = [0; 2000];
    let answer = stranger.recv_from(&mut buffer);
    let answer = tokio::time::timeout(Duration::from_millis(300), answer).await;
    assert!(answer.is_err(), "a stranger was answered");
    assert_eq!(a.count(heard_of(&header.session)), 0);

    // The same probe under the right key is answered, once, and the answer is small.
    let right = Sealer::new(&Key::new([7; 32]).into(), "test");
    let mut datagram = Vec::new();
    right.seal(&plain, &mut datagram).unwrap();
    stranger.send_to(&datagram, to).await.unwrap();
    stranger.send_to(&datagram, to).await.unwrap();
    let (len, _) =
        tokio::time::timeout(PATIENCE, stranger.recv_from(&mut buffer)).await.unwrap().unwrap();
    let (answer, payload) = header::decode(right.open(&mut buffer[..len]).unwrap()).unwrap();
    assert_eq!(payload, header::Payload::Answer);
    assert_eq!(answer.session, a.session);
    assert_eq!(answer.echo, Some(header::Echo { nonce: header.session.nonce, counter: 1 }));
    assert!(len <= datagram.len() + 32);
    let again = stranger.recv_from(&mut buffer);
    let again = tokio::time::timeout(Duration::from_millis(50), again).await;
    assert!(again.is_err(), "a replayed probe was answered");
}

#[tokio::test]
async fn an_address_in_use_is_a_typed_error() {
    let a = Node::start(1, &[]).await;
    let mut config = config(session(2), Vec::new(), Faulty::default());
    config.listen = a.gossip.local_addr();
    let (sender, _receiver) = mpsc::channel(16);
    match Gossip::start(config, sender).await {
        Err(GossipError::AddressInUse { address }) => assert_eq!(address, a.gossip.local_addr()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_senseless_limit_is_a_typed_error() {
    let mut config = config(session(2), Vec::new(), Faulty::default());
    config.limits.page_bytes = 1 << 20;
    let (sender, _receiver) = mpsc::channel(16);
    let error = Gossip::start(config, sender).await.unwrap_err();
    assert!(matches!(error, GossipError::Limit { what: "page_bytes", .. }));
}

#[tokio::test]
async fn shutdown_frees_the_address_and_ends_the_events() {
    let (sender, mut receiver) = mpsc::channel(16);
    let first = config(session(1), Vec::new(), Faulty::default());
    let gossip = Gossip::start(first, sender).await.unwrap();
    let address = gossip.local_addr();
    gossip.shutdown().await;
    let drained = async { while receiver.recv().await.is_some() {} };
    tokio::time::timeout(PATIENCE, drained).await.unwrap();
    assert!(SystemNetwork.bind(address).await.is_ok());
}

#[tokio::test]
async fn the_persisted_address_book_finds_the_others_without_a_seed() {
    let a = Node::start(1, &[]).await;
    let faults = Faulty::default();
    let mut config = config(session(2), Vec::new(), faults.clone());
    config.known = vec![(a.session.clone(), a.gossip.local_addr())];
    let b = Node::with(config, faults).await;
    a.put(&name(1), Some("one"));
    b.until_record(&a, &name(1), Some("one")).await;
    b.gossip.retire(&a.session);
    assert_eq!(b.gossip.address_book(), []);
}

#[tokio::test]
async fn an_echo_never_claims_to_be_sent_later_than_it_was() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    b.until_caught_up(&a).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let now = SystemClock.boot();
    let mut echoes: Vec<Time> = Vec::new();
    for event in b.drain() {
        if let GossipEvent::Heard { echoed, .. } = event {
            echoes.extend(echoed);
        }
    }
    assert!(echoes.len() > 5);
    assert!(echoes.iter().all(|sent| *sent < now));
    assert!(echoes.is_sorted());
    assert!(now.since(*echoes.last().unwrap()) < Duration::from_millis(300));
}

#[tokio::test]
async fn an_idle_pair_sends_little() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    b.until_caught_up(&a).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = a.faults.sent.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sent = a.faults.sent.load(Ordering::Relaxed) - before;
    // 20 rounds a second each; of a handshake's three datagrams a sends one or two.
    assert!((20..=100).contains(&sent), "{sent} datagrams in a second");
}
