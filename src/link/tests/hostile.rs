//! Strangers, and peers that hold the key but lie.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::link::connection::Connection;

/// What `node` says to these bytes until it closes the connection.
async fn answer_to(node: &Node, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(node.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // Closing with something unread resets: that is an answer of nothing, too.
    let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
    answer
}

async fn quick(node: &str) -> Node {
    Node::with(node, |config| {
        config.limits.handshake = Duration::from_millis(300);
    })
    .await
}

#[tokio::test]
async fn strangers_get_no_answer_and_no_link() {
    let (mut a, mut b) = (quick("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    let key = Key::new([7; 32]).id();
    let mut named = vec![1];
    named.extend(key);
    named.extend([0, 200]);
    named.extend([0x5a; 200]);
    let mut long = vec![1];
    long.extend(key);
    long.extend([0xff, 0xff]);
    long.extend(vec![0x5a; 66_000]);
    let mut unknown_key = named.clone();
    unknown_key[1] ^= 1;
    let mut other_version = named.clone();
    other_version[0] = 2;
    let garbage: Vec<u8> = (0..5000_u32).map(|at| ((at * at) >> 3) as u8).collect();
    for bytes in [named, long, unknown_key, other_version, garbage, Vec::new()] {
        assert_eq!(answer_to(&a, &bytes).await, b"");
    }
    a.expect_nothing_for(Duration::from_millis(10)).await;
    expect_exchange(&mut a, &mut b).await;
}

#[tokio::test]
async fn another_key_or_another_cluster_gives_no_link() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    let mut wrong_key = Node::with("c", |config| {
        config.keyring = Key::new([8; 32]).into();
    })
    .await;
    let mut wrong_cluster = Node::with("d", |config| config.cluster = "other".into()).await;
    for stranger in [&mut wrong_key, &mut wrong_cluster] {
        stranger.want(&a);
        a.want(stranger);
        stranger.expect_nothing_for(Duration::from_millis(200)).await;
        assert!(!stranger.links.is_up(&a.session));
        assert!(!a.links.is_up(&stranger.session));
    }
    a.expect_nothing_for(Duration::from_millis(1)).await;
    expect_exchange(&mut a, &mut b).await;
}

/// A whole first message, as a recording of one would be.
#[tokio::test]
async fn a_dial_that_is_never_confirmed_is_no_life() {
    let (mut a, mut b) = (quick("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    // In the name of the peer that is linked, too: it displaces nothing.
    for name in [session("c"), b.session.clone()] {
        let stream = TcpStream::connect(a.address()).await.unwrap();
        let dialled =
            handshake::dial(Box::new(stream), &local(&name), &a.session).await.ok().unwrap();
        a.expect_nothing_for(Duration::from_millis(400)).await;
        drop(dialled);
    }
    expect_exchange(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_flood_of_half_open_connections_is_turned_away_and_hurts_no_link() {
    let mut a = Node::with("a", |config| {
        config.limits.handshake = Duration::from_secs(3);
        config.limits.unauthenticated = 8;
        config.limits.unauthenticated_of_source = 8;
        config.limits.connections_of_source = 1000;
    })
    .await;
    let mut b = Node::start("b").await;
    linked(&mut a, &mut b).await;
    let since = Instant::now();
    let mut flood = Vec::new();
    for _ in 0..100 {
        flood.push(TcpStream::connect(a.address()).await.unwrap());
    }
    let mut held = Vec::new();
    for mut stream in flood {
        let closed = timeout(Duration::from_millis(1), stream.read(&mut [0; 8])).await;
        if closed.is_err() {
            held.push(stream);
        }
    }
    assert!(since.elapsed() < Duration::from_millis(2500), "too slow to tell");
    assert_eq!(held.len(), 8);
    expect_exchange(&mut a, &mut b).await;
    for mut stream in held {
        let read = timeout(LONG, stream.read(&mut [0; 8])).await.unwrap();
        assert_eq!(read.unwrap(), 0);
    }
    // And then there is room again.
    let mut c = Node::start("c").await;
    linked(&mut c, &mut a).await;
}

/// What one source leaves half open does not keep another one out.
#[tokio::test]
async fn one_source_takes_no_more_than_its_share_of_the_handshakes() {
    let mut a = Node::with("a", |config| {
        config.limits.handshake = Duration::from_secs(3);
        config.limits.unauthenticated = 8;
        config.limits.unauthenticated_of_source = 3;
    })
    .await;
    let mut flood = Vec::new();
    for _ in 0..20 {
        flood.push(TcpStream::connect(a.address()).await.unwrap());
    }
    let mut held = 0;
    for stream in &mut flood {
        let closed = timeout(Duration::from_millis(5), stream.read(&mut [0; 8])).await;
        held += usize::from(closed.is_err());
    }
    assert_eq!(held, 3);
    drop(flood);
    // The places are free as soon as the connections are.
    let mut c = Node::start("c").await;
    linked(&mut c, &mut a).await;
}

/// Connects from an address of this host's own choice.
async fn connect_from(host: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((host, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether it is still open: whoever is turned away is so at once.
async fn is_held(stream: &mut TcpStream) -> bool {
    timeout(Duration::from_millis(50), stream.read(&mut [0; 8])).await.is_err()
}

/// Everybody can open connections and say nothing; a peer gets in all the same.
#[tokio::test]
async fn strangers_who_hold_every_place_do_not_keep_a_peer_out() {
    let a = Node::with("a", |config| {
        config.limits.handshake = LONG;
        config.limits.unauthenticated = 8;
        config.limits.unauthenticated_of_source = 4;
    })
    .await;
    let peer = [127, 0, 0, 9];
    let mut held = Vec::new();
    for i in 0..8 {
        held.push(connect_from([127, 0, 0, 2 + i / 4], a.address()).await);
    }
    assert!(!is_held(&mut connect_from(peer, a.address()).await).await, "a stranger as well");
    a.links.want(&session("b"), (peer, 1).into());
    assert!(!is_held(&mut connect_from([127, 0, 0, 10], a.address()).await).await);
    for _ in 0..4 {
        let mut stream = connect_from(peer, a.address()).await;
        assert!(is_held(&mut stream).await);
        held.push(stream);
    }
    assert!(!is_held(&mut connect_from(peer, a.address()).await).await, "it has its bounds, too");
}

#[tokio::test]
async fn one_source_connects_no_more_often_than_it_may() {
    let a = Node::with("a", |config| config.limits.connections_of_source = 5).await;
    let since = Instant::now();
    let mut turned_away = 0;
    for _ in 0..40 {
        // Each gives its place up again at once.
        let mut stream = TcpStream::connect(a.address()).await.unwrap();
        let closed = timeout(Duration::from_millis(2), stream.read(&mut [0; 8])).await;
        turned_away += usize::from(closed.is_ok());
    }
    let allowed = 5 + (since.elapsed().as_millis() / 200) as usize + 1;
    assert!(turned_away >= 40 - allowed, "{turned_away} of 40");
    assert!(turned_away <= 35, "{turned_away} of 40");
}

/// Rule 5: a peer could otherwise have somebody else's closed port taken for its own.
#[tokio::test]
async fn an_address_that_a_peer_merely_claims_is_not_tried_in_its_name() {
    // Loopback too, but not the source.
    let elsewhere: SocketAddr = "[::1]:1".parse().unwrap();
    for (within, tried) in [(Vec::new(), false), (vec!["::1/128".parse().unwrap()], true)] {
        let mut a = Node::with("a", |config| config.advertised_within = within).await;
        let name = session("liar");
        let local = Local { address: elsewhere, ..local(&name) };
        let stream = TcpStream::connect(a.address()).await.unwrap();
        let dialled = handshake::dial(Box::new(stream), &local, &a.session).await.ok().unwrap();
        let connection = dialled.confirm(1, a.address()).await.ok().unwrap();
        match a.next().await {
            LinkEvent::Up { address, .. } => assert_eq!(address, tried.then_some(elsewhere)),
            other => panic!("{}", brief(&other)),
        }
        drop(connection);
        if !tried {
            a.expect_down(&name, false).await;
        }
    }
}

async fn authenticated(node: &mut Node, name: &SessionId) -> Connection {
    let stream = TcpStream::connect(node.address()).await.unwrap();
    let dialled =
        handshake::dial(Box::new(stream), &local(name), &node.session).await.ok().unwrap();
    let (connection, _) = dialled.confirm(1, node.address()).await.ok().unwrap();
    node.expect_up(name).await;
    connection
}

#[tokio::test]
async fn a_peer_that_announces_a_tebibyte_is_cut_off() {
    let mut a = Node::start("a").await;
    let liar = session("liar");
    let mut connection = authenticated(&mut a, &liar).await;
    let mut record = vec![2];
    record.extend((1_u64 << 40).to_be_bytes());
    record.extend([0, 1, 0]);
    let mut out = Vec::new();
    connection.sealer.seal(&record, &mut out).unwrap();
    connection.stream.write_all(&out).await.unwrap();
    a.expect_down(&liar, true).await;
    let mut rest = Vec::new();
    timeout(LONG, connection.stream.read_to_end(&mut rest)).await.expect("it is closed").unwrap();
}

#[tokio::test]
async fn frames_repeated_forged_or_cut_close_the_link() {
    let mut a = Node::start("a").await;
    for case in 0..4 {
        let liar = session("liar");
        let mut connection = authenticated(&mut a, &liar).await;
        let mut frame = Vec::new();
        connection.sealer.seal(&[0], &mut frame).unwrap();
        let out = match case {
            // A replay of a frame.
            0 => [frame.clone(), frame].concat(),
            // A bit turned.
            1 => {
                let last = frame.len() - 1;
                frame[last] ^= 1;
                frame
            }
            // Too short to be sealed.
            2 => vec![0, 3, 1, 2, 3],
            // Nothing at all.
            _ => vec![0, 0],
        };
        connection.stream.write_all(&out).await.unwrap();
        a.expect_down(&liar, true).await;
    }
}

/// It shows that it lives, and that is all it does.
#[tokio::test]
async fn a_peer_that_never_reads_is_cut_off_and_nothing_is_kept_for_it() {
    let mut a = Node::with("a", |config| {
        config.limits.stalled_after = Duration::from_millis(500);
    })
    .await;
    let mute = session("mute");
    let mut connection = authenticated(&mut a, &mute).await;
    let pings = async {
        loop {
            let mut ping = Vec::new();
            connection.sealer.seal(&[0], &mut ping).unwrap();
            if connection.stream.write_all(&ping).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let cut_off = async {
        for _ in 0..4 {
            let message = Bytes::from(vec![7; 16 << 20]);
            a.links.send(&mute, Class::Bulk, message).unwrap();
        }
        match a.next().await {
            LinkEvent::Down { session, .. } => assert_eq!(session, mute),
            other => panic!("{}", brief(&other)),
        }
    };
    tokio::select! {
        () = cut_off => {}
        () = async { pings.await; std::future::pending::<()>().await } => {}
    }
    assert_eq!(a.links.queued_bytes(&mute), 0);
}
