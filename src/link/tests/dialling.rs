//! Who dials whom, and which connection stays.

use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::proxy::Proxy;
use super::*;
use crate::link::handshake::DialError;
use crate::net::{Datagrams, Listener, Stream};

/// Counts open streams, and takes its time to connect.
#[derive(Clone, Debug)]
struct Counting {
    open: Arc<AtomicUsize>,
    delay: Duration,
}

struct Counted {
    stream: Box<dyn Stream>,
    open: Arc<AtomicUsize>,
}

impl Counting {
    fn count(&self, stream: Box<dyn Stream>) -> Box<dyn Stream> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Box::new(Counted { stream, open: self.open.clone() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Network for Counting {
    async fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        SystemNetwork.bind(address).await
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(CountingListener {
            listener: SystemNetwork.listen(address).await?,
            network: self.clone(),
        }))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Stream>> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        SystemNetwork.connect(address).await.map(|stream| self.count(stream))
    }

    async fn refuses_datagrams(&self, address: SocketAddr) -> Option<bool> {
        SystemNetwork.refuses_datagrams(address).await
    }
}

#[derive(Debug)]
struct CountingListener {
    listener: Box<dyn Listener>,
    network: Counting,
}

#[async_trait]
impl Listener for CountingListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let (stream, from) = self.listener.accept().await?;
        Ok((self.network.count(stream), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

async fn counted(node: &str, delay_ms: u64) -> (Node, Arc<AtomicUsize>) {
    let open = Arc::new(AtomicUsize::new(0));
    let network = Counting { open: open.clone(), delay: Duration::from_millis(delay_ms) };
    let node = Node::with(node, |config| config.network = Arc::new(network)).await;
    (node, open)
}

#[tokio::test]
async fn two_nodes_that_dial_each_other_end_with_one_connection_and_lose_nothing() {
    for round in 0..50_u64 {
        let (mut a, open_a) = counted("a", [0, 0, 1, 2, 3][round as usize % 5]).await;
        let (mut b, open_b) = counted("b", [0, 1, 2][round as usize % 3]).await;
        a.want(&b);
        b.want(&a);
        let message = |number: u8| Bytes::from(vec![number; 1 + 2000 * usize::from(number)]);
        for number in 0..20 {
            let class = Class::ALL[usize::from(number) % 2];
            a.links.send(&b.session, class, message(number)).unwrap();
            b.links.send(&a.session, class, message(number)).unwrap();
        }
        a.expect_up(&b.session).await;
        b.expect_up(&a.session).await;
        let (session_a, session_b) = (a.session.clone(), b.session.clone());
        for (node, other) in [(&mut a, &session_b), (&mut b, &session_a)] {
            let mut seen = [false; 20];
            for _ in 0..20 {
                let frame = node.expect_frame(other).await;
                assert!(frame == message(frame[0]));
                let again = std::mem::replace(&mut seen[usize::from(frame[0])], true);
                assert!(!again, "message {} came twice", frame[0]);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(open_a.load(Ordering::Relaxed), 1);
        assert_eq!(open_b.load(Ordering::Relaxed), 1);
        a.expect_nothing_for(Duration::from_millis(1)).await;
        b.expect_nothing_for(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn two_nodes_that_both_dial_again_after_a_cut_end_with_one_connection() {
    let (mut a, open_a) = counted("a", 0).await;
    let (mut b, open_b) = counted("b", 1).await;
    let (to_a, to_b) = (Proxy::to(a.address()).await, Proxy::to(b.address()).await);
    a.links.want(&b.session, to_b.address());
    b.links.want(&a.session, to_a.address());
    a.expect_up(&b.session).await;
    b.expect_up(&a.session).await;
    for _ in 0..20 {
        to_a.cut();
        to_b.cut();
        a.expect_down(&b.session, false).await;
        a.expect_up(&b.session).await;
        b.expect_down(&a.session, false).await;
        b.expect_up(&a.session).await;
        expect_exchange(&mut a, &mut b).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(open_a.load(Ordering::Relaxed), 1);
        assert_eq!(open_b.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn a_connection_that_was_given_up_does_not_displace_a_later_one() {
    let mut a = Node::start("a").await;
    let b = session("b");
    let dial = async |number: u64| {
        let stream = tokio::net::TcpStream::connect(a.links.local_addr()).await.unwrap();
        let dialled = handshake::dial(Box::new(stream), &local(&b), &a.session).await.ok().unwrap();
        dialled.confirm(number, ([127, 0, 0, 1], 1).into()).await
    };
    let second = dial(2).await.ok().unwrap();
    let late = dial(1).await.err().unwrap();
    assert!(matches!(late, DialError::Rejected), "{late}");
    let again = dial(2).await.err().unwrap();
    assert!(matches!(again, DialError::Rejected), "{again}");
    let third = dial(3).await.ok().unwrap();
    a.expect_up(&b).await;
    a.expect_down(&b, false).await;
    a.expect_up(&b).await;
    a.expect_nothing_for(Duration::from_millis(20)).await;
    drop((second, third));
}

#[tokio::test]
async fn a_dial_that_began_before_the_peer_accepted_ours_is_void() {
    let mut a = Node::start("a").await;
    let scripted = Scripted::listen("b").await;
    a.links.want(&scripted.session, scripted.address());
    let connection = scripted.accept(5).await;
    a.expect_up(&scripted.session).await;
    let stream = tokio::net::TcpStream::connect(a.address()).await.unwrap();
    let dialled = handshake::dial(Box::new(stream), &local(&scripted.session), &a.session)
        .await
        .ok()
        .unwrap();
    let late = dialled.confirm(5, ([127, 0, 0, 1], 1).into()).await.err().unwrap();
    assert!(matches!(late, DialError::Rejected), "{late}");
    a.expect_nothing_for(Duration::from_millis(20)).await;
    drop(connection);
}

#[tokio::test]
async fn many_nodes_that_all_want_each_other_are_all_linked_once() {
    let mut nodes = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        nodes.push(counted(name, 0).await);
    }
    for (a, _) in &nodes {
        for (b, _) in &nodes {
            a.want(b);
        }
    }
    let others = nodes.len() - 1;
    for (node, open) in &mut nodes {
        for _ in 0..others {
            assert!(matches!(node.next().await, LinkEvent::Up { .. }));
        }
        node.expect_nothing_for(Duration::from_millis(20)).await;
        assert_eq!(open.load(Ordering::Relaxed), others);
    }
}

#[tokio::test]
async fn a_changed_address_is_dialled_at_once() {
    // Longer than the test waits: the dial that gets no answer has to be given up.
    let mut a = Node::with("a", |config| config.limits.handshake = LONG * 2).await;
    let b = Node::start("b").await;
    let place = TcpListener::bind(loopback()).await.unwrap();
    // Accepts, and says nothing.
    a.links.want(&b.session, place.local_addr().unwrap());
    place.accept().await.unwrap();
    a.want(&b);
    a.links.send(&b.session, Class::Control, Bytes::new()).unwrap();
    a.expect_up(&b.session).await;
}

#[tokio::test]
async fn keys_are_rotated_without_losing_touch() {
    let (old, new) = (Key::new([1; 32]), Key::new([2; 32]));
    let mut a = Node::with("a", |config| {
        config.keyring = Keyring::new(old.clone(), vec![new.clone()]);
    })
    .await;
    let mut b = Node::with("b", |config| {
        config.keyring = Keyring::new(new.clone(), vec![old.clone()]);
    })
    .await;
    let mut c = Node::with("c", |config| {
        config.keyring = Keyring::new(new.clone(), vec![old.clone()]);
    })
    .await;
    linked(&mut a, &mut b).await;
    linked(&mut c, &mut a).await;
    expect_exchange(&mut a, &mut b).await;
    expect_exchange(&mut a, &mut c).await;
}

#[tokio::test]
async fn the_bound_on_peers_holds_for_strangers() {
    let mut a = Node::with("a", |config| config.limits.peers = 2).await;
    let (mut b, mut c) = (Node::start("b").await, Node::start("c").await);
    let mut d = Node::start("d").await;
    linked(&mut b, &mut a).await;
    linked(&mut c, &mut a).await;
    d.want(&a);
    d.expect_nothing_for(Duration::from_millis(200)).await;
    a.expect_nothing_for(Duration::from_millis(1)).await;
    expect_exchange(&mut a, &mut b).await;
}

/// A cut has healed: nobody waits for a pause that was meant for it.
#[tokio::test]
async fn a_peer_that_is_heard_again_is_dialled_at_once() {
    let mut a = Node::with("a", |config| {
        config.limits.backoff_min = Duration::from_secs(60);
        config.limits.backoff_max = Duration::from_secs(60);
    })
    .await;
    let mut config = config(&session("b"));
    let free = TcpListener::bind(loopback()).await.unwrap();
    config.listen = free.local_addr().unwrap();
    drop(free);
    let session = config.session.clone();
    a.links.hasten(&session);
    a.links.want(&session, config.listen);
    assert_eq!(a.next().await, LinkEvent::Refused { session: session.clone() });
    let (sender, _events) = mpsc::channel(16);
    let _links = Links::start(config, sender).await.unwrap();
    a.expect_nothing_for(Duration::from_millis(300)).await;
    a.links.hasten(&session);
    a.expect_up(&session).await;
    // Where there is a link nothing is dialled.
    a.links.hasten(&session);
    a.expect_nothing_for(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn an_address_in_use_is_a_typed_error() {
    let a = Node::start("a").await;
    let mut config = config(&session("b"));
    config.listen = a.address();
    let (events, _heard) = mpsc::channel(1);
    let error = Links::start(config, events).await.unwrap_err();
    assert!(error.to_string().contains("choose a free address"));
}
