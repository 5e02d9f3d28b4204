//! Breaks: how fast they are known, and what they are taken for.

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::Instant;

use super::proxy::Proxy;
use super::*;

#[tokio::test]
async fn a_process_that_is_gone_is_known_to_refuse_at_once() {
    let mut fastest = LONG;
    for round in 0..6 {
        let (mut a, mut b) = (patient("a").await, Node::start("b").await);
        // Whoever wanted the link.
        if round % 2 == 0 {
            linked(&mut a, &mut b).await;
        } else {
            linked(&mut b, &mut a).await;
        }
        let gone = b.session.clone();
        let since = Instant::now();
        drop(b);
        a.expect_down(&gone, true).await;
        fastest = fastest.min(since.elapsed());
        assert!(!a.links.is_up(&gone));
        assert_eq!(a.links.send(&gone, Class::Control, Bytes::new()), Err(SendError::NotLinked));
    }
    // A busy machine may slow some down, not all.
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

/// Rule 5: a firewall that begins to reject streams, and lets datagrams pass, kills nobody.
#[tokio::test]
async fn a_process_that_takes_datagrams_is_not_held_for_dead_because_streams_are_refused() {
    let mut a = patient("a").await;
    let scripted = Scripted::listen("b").await;
    let datagrams = UdpSocket::bind(scripted.address()).await.unwrap();
    a.links.want(&scripted.session, scripted.address());
    let connection = scripted.accept(0).await;
    a.expect_up(&scripted.session).await;
    let lives = scripted.session.clone();
    drop((connection, scripted));
    a.expect_down(&lives, false).await;
    a.expect_nothing_for(Duration::from_millis(500)).await;
    drop(datagrams);
    assert_eq!(a.next().await, LinkEvent::Refused { session: lives });
}

/// Waits for what dialling again comes to, however busy the machine is.
async fn patient(node: &str) -> Node {
    Node::with(node, |config| config.limits.verdict = LONG).await
}

#[tokio::test]
async fn a_dying_listener_that_still_accepts_does_not_hide_the_death() {
    let mut a = patient("a").await;
    let scripted = Scripted::listen("b").await;
    a.links.want(&scripted.session, scripted.address());
    let connection = scripted.accept(0).await;
    a.expect_up(&scripted.session).await;
    drop(connection);
    for _ in 0..3 {
        let (stream, _) = scripted.listener.accept().await.unwrap();
        drop(stream);
    }
    let dead = scripted.session.clone();
    drop(scripted);
    a.expect_down(&dead, true).await;
}

#[tokio::test]
async fn a_wanted_peer_that_is_gone_is_dialled_on_and_found_when_it_listens() {
    let mut a = Node::start("a").await;
    let b = session("b");
    let place = TcpListener::bind(loopback()).await.unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    a.links.want(&b, address);
    a.links.send(&b, Class::Control, Bytes::from_static(b"lost")).unwrap();
    for _ in 0..2 {
        assert_eq!(a.next().await, LinkEvent::Refused { session: b.clone() });
    }
    let (events, _heard) = mpsc::channel(16);
    let mut late = config(&b);
    late.listen = address;
    let _b = Links::start(late, events).await.unwrap();
    loop {
        match a.next().await {
            LinkEvent::Refused { .. } => {}
            LinkEvent::Up { session, .. } => break assert_eq!(session, b),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(a.links.queued_bytes(&b), 0);
}

#[tokio::test]
async fn a_cut_link_to_a_living_process_comes_back() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    let proxy = Proxy::to(b.address()).await;
    a.links.want(&b.session, proxy.address());
    a.expect_up(&b.session).await;
    b.expect_up(&a.session).await;
    proxy.cut();
    a.expect_down(&b.session, false).await;
    a.expect_up(&b.session).await;
    b.expect_down(&a.session, false).await;
    b.expect_up(&a.session).await;
    expect_exchange(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_message_that_was_cut_short_arrives_once_over_the_next_connection() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    let proxy = Proxy::to(b.address()).await;
    a.links.want(&b.session, proxy.address());
    a.expect_up(&b.session).await;
    b.expect_up(&a.session).await;
    // Too large for the sockets on its way: some of it is still queued when the link is cut.
    let large = Bytes::from(vec![5; 60 << 20]);
    a.links.send(&b.session, Class::Bulk, large.clone()).unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(a.links.queued_bytes(&b.session) > 0);
    proxy.cut();
    b.expect_down(&a.session, false).await;
    b.expect_up(&a.session).await;
    assert!(b.expect_frame(&a.session).await == large);
    expect_nothing_but_the_reconnect(&mut a, &b.session).await;
    expect_exchange(&mut a, &mut b).await;
}

async fn expect_nothing_but_the_reconnect(a: &mut Node, b: &SessionId) {
    a.expect_down(b, false).await;
    a.expect_up(b).await;
    a.expect_nothing_for(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_down_within_the_limit() {
    let dead_after = Duration::from_secs(1);
    let verdict = Duration::from_millis(50);
    let impatient = |config: &mut LinkConfig| {
        config.limits.ping_every = Duration::from_millis(50);
        config.limits.dead_after = dead_after;
        config.limits.verdict = verdict;
    };
    let mut a = Node::with("a", impatient).await;
    let mut b = Node::with("b", impatient).await;
    let proxy = Proxy::to(b.address()).await;
    a.links.want(&b.session, proxy.address());
    a.expect_up(&b.session).await;
    b.expect_up(&a.session).await;
    // An idle link lives by its pings.
    a.expect_nothing_for(dead_after * 2).await;
    let since = Instant::now();
    proxy.stall();
    a.expect_down(&b.session, false).await;
    let took = since.elapsed();
    assert!(took > dead_after / 2, "{took:?}");
    assert!(took < dead_after * 2, "{took:?}");
}

#[tokio::test]
async fn another_process_on_the_same_address_is_not_taken_for_the_old_one() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    let (old, address) = (b.session.clone(), b.address());
    drop(b);
    // Its own links are cut when the runtime comes round to it, and so is its listener.
    let b = loop {
        tokio::task::yield_now().await;
        let session = session("b");
        let mut config = config(&session);
        config.listen = address;
        let (sender, events) = mpsc::channel(16);
        if let Ok(links) = Links::start(config, sender).await {
            break Node { session, links, events };
        }
    };
    let wrong = loop {
        match a.next().await {
            LinkEvent::Down { session, .. } | LinkEvent::Refused { session } => {
                assert_eq!(session, old);
            }
            other => break other,
        }
    };
    assert_eq!(wrong, LinkEvent::WrongPeer { expected: old, found: b.session.clone(), address });
}

#[tokio::test]
async fn a_newer_session_of_a_node_leaves_the_link_to_the_older_one_alone() {
    let mut a = Node::start("a").await;
    let (mut old, mut new) = (Node::start("b").await, Node::start("b").await);
    linked(&mut old, &mut a).await;
    linked(&mut new, &mut a).await;
    expect_exchange(&mut a, &mut old).await;
    expect_exchange(&mut a, &mut new).await;
}

#[tokio::test]
async fn what_is_no_longer_wanted_is_reported_no_more() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    a.links.unwant(&b.session);
    assert!(!a.links.is_up(&b.session));
    assert_eq!(a.links.send(&b.session, Class::Control, Bytes::new()), Err(SendError::NotLinked));
    // b looks whether a still lives, once, and so is a new link to a.
    b.expect_down(&a.session, false).await;
    b.expect_up(&a.session).await;
    a.expect_up(&b.session).await;
}

#[tokio::test]
async fn a_node_that_no_longer_listens_refuses_and_keeps_its_links() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    b.links.stop_listening();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let refused = TcpStream::connect(b.address()).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    expect_exchange(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_connection_accepted_without_a_handshake_is_no_life() {
    let mut a = Node::with("a", |config| {
        config.limits.handshake = Duration::from_millis(200);
    })
    .await;
    let mute = TcpListener::bind(loopback()).await.unwrap();
    let b = session("b");
    a.links.want(&b, mute.local_addr().unwrap());
    let (mut first, _) = mute.accept().await.unwrap();
    // The handshake is given up, and tried again.
    let mut said = Vec::new();
    timeout(LONG, first.read_to_end(&mut said)).await.unwrap().unwrap();
    assert!(!said.is_empty());
    timeout(LONG, mute.accept()).await.unwrap().unwrap();
    assert!(!a.links.is_up(&b));
    a.expect_nothing_for(Duration::from_millis(10)).await;
}
