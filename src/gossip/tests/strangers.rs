//! What strangers get, and what peers that lie about themselves can bring about.

use super::super::digest::tests::syn_in;
use super::super::header::{Echo, Fragment, Header, Payload};
use super::super::seal::{OVERHEAD, Sealer};
use super::super::view::engine_id;
use super::*;

/// Somebody who says what a test tells it to.
struct Stranger {
    socket: Arc<dyn Datagrams>,
    sealer: Sealer,
    session: SessionId,
    counter: u64,
    message: u64,
    sent: usize,
}

impl Stranger {
    async fn with_key(key: u8, cluster: &str) -> Self {
        Self {
            socket: SystemNetwork.bind(([127, 0, 0, 1], 0).into()).await.unwrap(),
            sealer: Sealer::new(&Key::new([key; 32]).into(), cluster),
            session: session(66),
            counter: 0,
            message: 0,
            sent: 0,
        }
    }

    /// It holds the cluster's key.
    async fn inside() -> Self {
        Self::with_key(7, "test").await
    }

    fn seal(&mut self, payload: Payload<'_>, echo: Option<Echo>, padding: usize) -> Vec<u8> {
        self.counter += 1;
        let header = Header {
            session: self.session.clone(),
            counter: self.counter,
            echo,
            state: NodeState::Up,
            version: 1,
            watermark: 0,
            released: Vec::new(),
        };
        let mut plain = Vec::new();
        header::encode(&header, payload, &mut plain);
        plain.resize(plain.len() + padding, 0);
        let mut sealed = Vec::new();
        self.sealer.seal(&plain, &mut sealed).unwrap();
        sealed
    }

    async fn send(&mut self, to: &Node, datagram: &[u8]) {
        self.sent += datagram.len();
        self.socket.send_to(datagram, to.gossip.local_addr()).await.unwrap();
    }

    async fn probe(&mut self, to: &Node) {
        let datagram = self.seal(Payload::Probe, None, 150);
        self.send(to, &datagram).await;
    }

    async fn syn(&mut self, to: &Node, echo: Option<Echo>, message: &[u8]) {
        self.message += 1;
        let whole = Fragment {
            message: self.message,
            index: 0,
            count: 1,
            total: message.len() as u32,
            bytes: message,
        };
        let datagram = self.seal(Payload::Fragment(whole), echo, 0);
        self.send(to, &datagram).await;
    }

    /// The next datagram, and what it says.
    async fn hear(&self, patience: Duration) -> Option<(usize, Header, bool)> {
        let mut buffer = [0; 2000];
        let received = self.socket.recv_from(&mut buffer);
        let (len, _) = tokio::time::timeout(patience, received).await.ok()?.unwrap();
        let (header, payload) =
            header::decode(self.sealer.open(&mut buffer[..len]).unwrap()).unwrap();
        Some((len, header, payload == Payload::Answer))
    }

    /// The bytes that come until nothing has for a while.
    async fn drain(&self) -> usize {
        let mut bytes = 0;
        while let Some((len, ..)) = self.hear(Duration::from_millis(300)).await {
            bytes += len;
        }
        bytes
    }
}

const SHORTLY: Duration = Duration::from_millis(300);

#[tokio::test]
async fn strangers_are_not_answered_and_change_nothing() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    b.until_caught_up(&a).await;
    for (key, cluster) in [(8, "test"), (7, "other")] {
        let mut stranger = Stranger::with_key(key, cluster).await;
        stranger.probe(&a).await;
        for len in [0, 1, 45, 500] {
            let noise: Vec<u8> = (0..len).map(|_| rand::random()).collect();
            stranger.send(&a, &noise).await;
        }
        assert!(stranger.hear(SHORTLY).await.is_none(), "a stranger was answered");
        assert_eq!(a.count(heard_of(&stranger.session)), 0);
    }

    // The same probe under the right key is answered, once.
    let mut right = Stranger::inside().await;
    let probe = right.seal(Payload::Probe, None, 150);
    right.send(&a, &probe).await;
    right.send(&a, &probe).await;
    let (len, answer, is_answer) = right.hear(PATIENCE).await.unwrap();
    assert!(is_answer);
    assert_eq!(answer.session, a.session);
    assert_eq!(answer.echo, Some(Echo { nonce: right.session.nonce, counter: 1 }));
    assert!(len <= probe.len());
    assert!(right.hear(Duration::from_millis(50)).await.is_none(), "a replayed probe was answered");
}

/// X7. A spoofed source could be anybody: it must not be worth while.
#[tokio::test]
async fn who_has_not_proved_to_be_there_draws_no_more_bytes_than_it_sends() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    b.until_caught_up(&a).await;
    for number in 0..200 {
        a.put(&name(number), Some(&noise(300)));
    }
    a.gossip.set_header(NodeState::Up, 2, 0, (1..=100).map(|number| number * 2).collect());
    let mut spoof = Stranger::inside().await;
    let empty = syn_in("test", &[]);
    let mut answers = 0;
    for padding in [0, 1, 40, 150, 500, 1200] {
        let (sent, before) = (spoof.sent, answers);
        let probe = spoof.seal(Payload::Probe, None, padding);
        spoof.send(&a, &probe).await;
        while let Some((len, ..)) = spoof.hear(SHORTLY).await {
            assert!(len <= probe.len(), "{len} bytes to {}", probe.len());
            answers += 1;
        }
        // Of a question to which the answer would be longer there is none.
        assert_eq!(answers - before, usize::from(padding > 24), "{padding}");
        spoof.syn(&a, None, &empty).await;
        spoof.syn(&a, Some(Echo { nonce: a.session.nonce, counter: 1 }), &empty).await;
        let missing = spoof.seal(Payload::Missing { message: 1, bitmap: &[255; 60] }, None, 0);
        spoof.send(&a, &missing).await;
        let drawn = spoof.drain().await;
        assert!(drawn <= spoof.sent - sent, "{drawn} bytes");
    }
    assert_eq!(answers, 4);
    assert!(a.gossip.address_book().iter().all(|(session, _)| *session != spoof.session));
}

/// Rule 2: who has not shown that it hears this node may be a recording. Nothing that it brings is taken
/// in.
#[tokio::test]
async fn what_somebody_brings_who_has_echoed_nothing_changes_nothing() {
    let a = Node::start(1, &[]).await;
    let mut mute = Stranger::inside().await;
    let other = session(77);
    let id = engine_id(&other, SystemClock.wall_ms(), ([127, 0, 0, 1], 9).into());
    for heartbeat in 1..20 {
        mute.syn(&a, None, &syn_in("test", &[(id.clone(), heartbeat, 0)])).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The same, once it has: the test itself is sound.
    assert_eq!(a.count(beats_of(&other)), 0);
    mute.probe(&a).await;
    let mut echo = None;
    while let Some((_, answer, _)) = mute.hear(SHORTLY).await {
        echo = Some(Echo { nonce: a.session.nonce, counter: answer.counter });
    }
    assert!(echo.is_some());
    mute.syn(&a, echo, &syn_in("test", &[(id.clone(), 20, 0)])).await;
    a.until_event("it is taken in", beats_of(&other)).await;
}

#[tokio::test]
async fn a_flood_is_dropped_unopened_and_peers_do_not_notice() {
    let faults = Faulty::default();
    let mut config = config(session(1), Vec::new(), faults.clone());
    config.network_limits.stranger_datagrams = 30;
    let a = Node::with(config, faults).await;
    let b = Node::start(2, &[&a]).await;
    b.until_caught_up(&a).await;
    a.until_caught_up(&b).await;
    let mut flood = Stranger::inside().await;
    for _ in 0..500 {
        flood.probe(&a).await;
    }
    let mut answered = 0;
    while flood.hear(SHORTLY).await.is_some() {
        answered += 1;
    }
    // Its share of one second, and of the time that sending has taken.
    assert!((10..200).contains(&answered), "{answered} of 500 were opened");
    a.put(&name(1), Some("meanwhile"));
    b.until_record(&a, &name(1), Some("meanwhile")).await;
}

/// Proves to be where it is, and then shows a session that beats at `advertised`. Returns what comes
/// there: the lengths of all datagrams.
async fn direct_at(a: &Node, other: &SessionId, victim: &dyn Datagrams) -> Vec<usize> {
    let mut liar = Stranger::inside().await;
    liar.probe(a).await;
    let (_, answer, _) = liar.hear(PATIENCE).await.unwrap();
    let mut echo = Echo { nonce: a.session.nonce, counter: answer.counter };
    let id = engine_id(other, SystemClock.wall_ms(), victim.local_addr().unwrap());
    let mut drawn = Vec::new();
    let mut buffer = [0; 2000];
    let start = SystemClock.boot();
    let mut heartbeat = 0;
    while SystemClock.boot().since(start) < Duration::from_millis(1500) {
        heartbeat += 1;
        liar.syn(a, Some(echo), &syn_in("test", &[(id.clone(), heartbeat, 0)])).await;
        while let Some((_, header, _)) = liar.hear(Duration::from_millis(20)).await {
            echo.counter = echo.counter.max(header.counter);
        }
        let received = victim.recv_from(&mut buffer);
        if let Ok(received) = tokio::time::timeout(Duration::from_millis(5), received).await {
            drawn.push(received.unwrap().0);
        }
    }
    drawn
}

#[tokio::test]
async fn nobody_can_direct_more_than_probes_at_a_third_party() {
    let a = Node::start(1, &[]).await;
    for number in 0..200 {
        a.put(&name(number), Some(&noise(300)));
    }
    let victim = SystemNetwork.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let other = session(77);
    let drawn = direct_at(&a, &other, &*victim).await;
    // It was taken in, and looked for: in those 1.5 s, all of which it shows the same versions, one SYN in
    // 200 ms is let through to be answered at length (before it has proved where it is, all are).
    let beats = a.count(beats_of(&other));
    assert!((4..=15).contains(&beats), "{beats} beats");
    assert!((3..=30).contains(&drawn.len()), "{} datagrams", drawn.len());
    let longest = OVERHEAD + header::PROBE_LEN;
    assert!(drawn.iter().all(|len| *len <= longest), "{drawn:?}");
    let located =
        |event: &GossipEvent| matches!(event, GossipEvent::Located { of, .. } if *of == other);
    assert_eq!(a.count(located), 0);
    assert!(a.gossip.address_book().iter().all(|(session, _)| *session != other));
}

#[tokio::test]
async fn an_address_outside_of_the_networks_allowed_gets_nothing_at_all() {
    let faults = Faulty::default();
    let mut config = config(session(1), Vec::new(), faults.clone());
    config.advertised_within = vec!["10.0.0.0/8".parse().unwrap()];
    let a = Node::with(config, faults).await;
    let victim = SystemNetwork.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let other = session(77);
    let drawn = direct_at(&a, &other, &*victim).await;
    assert!(a.count(beats_of(&other)) > 5, "{} beats", a.count(beats_of(&other)));
    assert!(drawn.is_empty(), "{drawn:?}");
    // Peers are still found where their own datagrams come from.
    let b = Node::start(2, &[&a]).await;
    a.until_event("b is located", |event| {
        matches!(event, GossipEvent::Located { of, address } if *of == b.session && *address == b.gossip.local_addr())
    })
    .await;
}

/// X6. Every later heartbeat would be below it: the healthy would look dead to everybody.
#[tokio::test]
async fn a_forged_heartbeat_or_incarnation_makes_nobody_look_dead() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    b.until_caught_up(&a).await;
    a.until_caught_up(&b).await;
    let mut liar = Stranger::inside().await;
    liar.probe(&a).await;
    let (_, answer, _) = liar.hear(PATIENCE).await.unwrap();
    let echo = Echo { nonce: a.session.nonce, counter: answer.counter };
    let generation = b.generations.lock().unwrap()[0];
    let id = |generation| engine_id(&b.session, generation, b.gossip.local_addr());
    let two_days = 48 * 3600 * 1000;
    let forged = [(id(generation), u64::MAX, 0), (id(generation + two_days), 7, 0)];
    for _ in 0..5 {
        liar.syn(&a, Some(echo), &syn_in("test", &forged)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    a.drain();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let suspected = |event: &GossipEvent| matches!(event, GossipEvent::Suspicion { of, .. } if *of == b.session);
    assert_eq!(a.count(suspected), 0);
    assert!(a.count(beats_of(&b.session)) > 5);
    b.put(&name(1), Some("still read"));
    a.until_record(&b, &name(1), Some("still read")).await;
}
