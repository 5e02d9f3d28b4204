//! A peer that holds the key and errs.

use tokio::sync::mpsc;

use super::*;
use crate::clock::SystemClock;
use crate::core::ids::{NodeId, SessionId};
use crate::core::message::Message;
use crate::key::Key;
use crate::link::{Class, LinkConfig, LinkEvent, LinkLimits, Links};
use crate::net::SystemNetwork;
use crate::node::wire::{self, Wire};

async fn event(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    loop {
        match timeout(SOON, events.recv()).await.unwrap().unwrap() {
            // What the node has to say.
            LinkEvent::Frame { .. } => {}
            event => return event,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_what_no_build_sends_loses_its_link_and_who_sends_what_a_later_one_may_does_not()
{
    let node = start("a", None).await;
    let loopback = ([127, 0, 0, 1], 0).into();
    let errs = SessionId::new(NodeId::new("errs").unwrap(), Uuid::now_v7());
    let (sender, mut events) = mpsc::channel(64);
    let config = LinkConfig {
        cluster: "test".into(),
        keyring: Key::derived("loopback test").into(),
        session: errs.clone(),
        listen: loopback,
        advertise: loopback,
        limits: LinkLimits::default(),
        advertised_within: Vec::new(),
        clock: Arc::new(SystemClock),
        network: Arc::new(SystemNetwork),
    };
    let links = Links::start(config, sender).await.unwrap();
    links.want(node.session(), node.address());
    assert!(matches!(event(&mut events).await, LinkEvent::Up { .. }));

    links.send(node.session(), Class::Control, b"of a later build"[..].into()).unwrap();
    if let Ok(event) = timeout(Duration::from_millis(300), event(&mut events)).await {
        panic!("{event:?}");
    }
    let many = Message::Buried { sessions: vec![errs; 257] };
    let many = wire::encode(&Wire::Core(Box::new(many))).unwrap();
    links.send(node.session(), Class::Control, many).unwrap();
    assert!(matches!(event(&mut events).await, LinkEvent::Down { refused: false, .. }));
    // It may do better next time.
    assert!(matches!(event(&mut events).await, LinkEvent::Up { .. }));
    links.shutdown().await;
    node.close().await;
}
