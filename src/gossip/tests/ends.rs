//! Each part of gossip ends or panics: it is reported, goes on, and peers see the same session.

use super::super::watch::Part;
use super::*;

/// A pair that has published and read.
async fn pair() -> (Node, Node) {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    a.put(&name(1), Some("before"));
    a.put(&name(2), Some("kept"));
    b.until_record(&a, &name(1), Some("before")).await;
    b.put(&name(1), Some("of b"));
    a.until_record(&b, &name(1), Some("of b")).await;
    a.drain();
    b.drain();
    (a, b)
}

async fn until_ended(node: &Node, part: &str) {
    node.until_event("the end is reported", |event| {
        matches!(event, GossipEvent::Ended { restarted: true, reason } if reason.starts_with(part))
    })
    .await;
}

/// What was published stands, what is published now arrives, in both directions.
async fn goes_on(a: &Node, b: &Node) {
    let news = noise(20);
    a.put(&name(1), Some(&news));
    b.until_record(a, &name(1), Some(&news)).await;
    b.until_record(a, &name(2), Some("kept")).await;
    b.put(&name(1), Some(&news));
    a.until_record(b, &name(1), Some(&news)).await;
    b.drain();
    b.until_event("it is heard again", heard_of(&a.session)).await;
    for (node, other) in [(a, b), (b, a)] {
        let gone = |event: &GossipEvent| match event {
            GossipEvent::Forgotten { of } => *of == other.session,
            GossipEvent::Ended { restarted, .. } => !restarted,
            _ => false,
        };
        assert_eq!(node.count(gone), 0);
    }
}

#[tokio::test]
async fn a_panic_of_the_pump_is_reported_and_it_goes_on_under_the_same_counters() {
    let (a, b) = pair().await;
    a.gossip.shared.doomed.lock().unwrap().replace(Part::Pump);
    until_ended(&a, "pump: it panicked: a test wants it").await;
    goes_on(&a, &b).await;
    assert_eq!(a.generations.lock().unwrap().len(), 1, "the engine did not notice");
}

#[tokio::test]
async fn a_panic_of_the_runner_is_reported_and_all_that_was_published_is_published_again() {
    let (a, b) = pair().await;
    for generations in 2..=4 {
        a.gossip.shared.doomed.lock().unwrap().replace(Part::Runner);
        until_ended(&a, "runner: it panicked").await;
        a.drain();
        goes_on(&a, &b).await;
        assert_eq!(a.generations.lock().unwrap().len(), generations);
    }
}

#[tokio::test]
async fn an_engine_that_ends_is_reported_and_started_again() {
    let (a, b) = pair().await;
    a.gossip.shared.renew.notify_one();
    until_ended(&a, "engine: ").await;
    goes_on(&a, &b).await;
}

#[tokio::test]
async fn a_broken_socket_is_reported_and_bound_again_as_soon_as_that_is_possible() {
    let (a, b) = pair().await;
    let address = a.gossip.local_addr();
    a.faults.unbindable.store(2, Ordering::Relaxed);
    a.faults.broken.store(1, Ordering::Relaxed);
    // Whatever comes next wakes it up.
    until_ended(&a, "pump: the datagram socket failed").await;
    until_ended(&a, "pump: the datagram socket cannot be bound").await;
    goes_on(&a, &b).await;
    assert_eq!(a.faults.bound.load(Ordering::Relaxed), 2);
    assert_eq!(a.gossip.local_addr(), address);
}

#[tokio::test]
async fn gossip_that_is_told_to_end_while_it_waits_to_go_on_ends() {
    let (a, _b) = pair().await;
    a.faults.unbindable.store(u64::MAX, Ordering::Relaxed);
    a.faults.broken.store(1, Ordering::Relaxed);
    until_ended(&a, "pump: the datagram socket cannot be bound").await;
    tokio::time::timeout(PATIENCE, a.gossip.shutdown()).await.expect("it ends");
}
