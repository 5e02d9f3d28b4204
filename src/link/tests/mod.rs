//! Links over loopback, through the system's sockets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod breaks;
mod dialling;
mod hostile;
mod messages;
mod proxy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;

use super::connection::Connection;
use super::*;
use crate::clock::SystemClock;
use crate::core::ids::NodeId;
use crate::key::Key;
use crate::net::SystemNetwork;

const LONG: Duration = Duration::from_secs(20);

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn session(node: &str) -> SessionId {
    SessionId::new(NodeId::new(node).unwrap(), Uuid::now_v7())
}

fn config(session: &SessionId) -> LinkConfig {
    LinkConfig {
        cluster: "test".into(),
        keyring: Key::new([7; 32]).into(),
        session: session.clone(),
        listen: loopback(),
        advertise: loopback(),
        limits: LinkLimits::default(),
        advertised_within: Vec::new(),
        clock: Arc::new(SystemClock),
        network: Arc::new(SystemNetwork),
    }
}

fn local(session: &SessionId) -> Local {
    Local {
        cluster: "test".into(),
        keyring: Key::new([7; 32]).into(),
        session: session.clone(),
        // A port that refuses.
        address: ([127, 0, 0, 1], 1).into(),
    }
}

/// A peer that holds the key and does what a test tells it.
struct Scripted {
    session: SessionId,
    listener: TcpListener,
}

impl Scripted {
    async fn listen(node: &str) -> Self {
        Self { session: session(node), listener: TcpListener::bind(loopback()).await.unwrap() }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Accepts the next dial, and declares its own up to `void` void.
    async fn accept(&self, void: u64) -> Connection {
        let (stream, _) = self.listener.accept().await.unwrap();
        let local = Local { address: self.address(), ..local(&self.session) };
        let candidate = handshake::answer(Box::new(stream), &local).await.unwrap();
        let mut connection = candidate.accept(void).unwrap();
        connection.stream.write_all(&connection.opening).await.unwrap();
        connection
    }
}

/// A node as far as its links go.
struct Node {
    session: SessionId,
    links: Links,
    events: mpsc::Receiver<LinkEvent>,
}

impl Node {
    async fn start(node: &str) -> Self {
        Self::with(node, |_| {}).await
    }

    async fn with(node: &str, change: impl FnOnce(&mut LinkConfig)) -> Self {
        let session = session(node);
        let mut config = config(&session);
        change(&mut config);
        let (sender, events) = mpsc::channel(16);
        let links = Links::start(config, sender).await.unwrap();
        Self { session, links, events }
    }

    fn address(&self) -> SocketAddr {
        self.links.local_addr()
    }

    fn want(&self, other: &Self) {
        self.links.want(&other.session, other.address());
    }

    async fn next(&mut self) -> LinkEvent {
        timeout(LONG, self.events.recv())
            .await
            .expect("an event within reason")
            .expect("links that run")
    }

    async fn expect_up(&mut self, with: &SessionId) {
        match self.next().await {
            LinkEvent::Up { session, .. } if session == *with => {}
            other => panic!("expected {with} up, got {}", brief(&other)),
        }
    }

    async fn expect_down(&mut self, with: &SessionId, refused: bool) {
        let down = LinkEvent::Down { session: with.clone(), refused };
        let event = self.next().await;
        assert!(event == down, "expected {down:?}, got {}", brief(&event));
    }

    async fn expect_frame(&mut self, from: &SessionId) -> Bytes {
        match self.next().await {
            LinkEvent::Frame { from: found, payload } if found == *from => payload.into_bytes(),
            other => panic!("expected a frame from {from}, got {}", brief(&other)),
        }
    }

    async fn expect_nothing_for(&mut self, time: Duration) {
        if let Ok(event) = timeout(time, self.events.recv()).await {
            panic!("expected nothing, got {:?}", event.as_ref().map(brief));
        }
    }
}

/// The event without the whole of a large message.
fn brief(event: &LinkEvent) -> String {
    match event {
        LinkEvent::Frame { from, payload } => format!("{payload:?} from {from}"),
        other => format!("{other:?}"),
    }
}

async fn linked(a: &mut Node, b: &mut Node) {
    a.want(b);
    a.expect_up(&b.session).await;
    b.expect_up(&a.session).await;
}

/// A message goes and another comes back.
async fn expect_exchange(a: &mut Node, b: &mut Node) {
    a.links.send(&b.session, Class::Control, Bytes::from_static(b"ping")).unwrap();
    assert_eq!(b.expect_frame(&a.session).await, "ping");
    b.links.send(&a.session, Class::Control, Bytes::from_static(b"pong")).unwrap();
    assert_eq!(a.expect_frame(&b.session).await, "pong");
}
