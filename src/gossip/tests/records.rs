//! What nodes publish arrives.

use chitchat::{DeletionStatus, VersionedValue};

use super::super::pages::Pages;
use super::super::shared::lock;
use super::super::view;
use super::*;

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
        rollout: None,
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

/// Makes `liar` hold, and pass on, a state of `owner` that the owner never wrote.
async fn forge(liar: &Node, owner: &Node, version: u64, values: &[(&str, &str)]) {
    let engine = lock(&liar.gossip.shared.engine).clone().unwrap();
    let mut engine = engine.lock().await;
    let id = engine
        .node_states()
        .keys()
        .find(|id| view::session_of(id).as_ref() == Some(&owner.session))
        .cloned()
        .unwrap();
    let first = version + 1 - values.len() as u64;
    let values = (first..).zip(values).map(|(version, (key, value))| {
        let value =
            VersionedValue { value: (*value).to_owned(), version, status: DeletionStatus::Set };
        ((*key).to_owned(), value)
    });
    engine.reset_node_state_if_update(&id, values, version, 0);
}

#[tokio::test]
async fn what_a_peer_writes_into_ones_own_state_is_overwritten() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    let c = Node::start(3, &[&a]).await;
    a.put(&name(1), Some("true"));
    for node in [&b, &c] {
        node.until_record(&a, &name(1), Some("true")).await;
    }
    let mut forged = Pages::new(3, 8000);
    let mut keys = BTreeSet::new();
    let lie = Some(Bytes::from_static(b"forged"));
    forged.put(Table::Claims, &name(1), lie.clone(), &mut keys);
    forged.put(Table::Claims, &name(2), lie, &mut keys);
    let values: Vec<_> = keys.iter().map(|key| (key.to_string(), forged.value(key))).collect();
    let values: Vec<_> = values.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    forge(&b, &a, 1000, &values).await;
    b.until_record(&a, &name(1), Some("forged")).await;
    for node in [&b, &c] {
        node.until_record(&a, &name(1), Some("true")).await;
        node.until_record(&a, &name(2), None).await;
    }
    a.put(&name(1), Some("still true"));
    b.until_record(&a, &name(1), Some("still true")).await;
}

#[tokio::test]
async fn a_forged_version_near_the_end_of_numbers_only_costs_a_generation() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    a.put(&name(1), Some("one"));
    b.until_record(&a, &name(1), Some("one")).await;
    forge(&b, &a, u64::MAX - 100, &[("node", "")]).await;
    a.until_event("gossip is restarted", |event| {
        matches!(event, GossipEvent::Ended { restarted: true, .. })
    })
    .await;
    a.put(&name(1), Some("two"));
    b.until_record(&a, &name(1), Some("two")).await;
}

/// A heal does not wait for rounds: what either side has published meanwhile, many messages long, is
/// exchanged until both are equal.
#[tokio::test]
async fn what_both_sides_of_a_cut_published_is_exchanged_at_once_when_it_heals() {
    let slow = |number, seeds, faults: Faulty| {
        let mut config = config(session(number), seeds, faults.clone());
        config.timing.gossip_interval = Duration::from_secs(6);
        Node::with(config, faults)
    };
    const RECORDS: usize = 400;
    let a = slow(1, Vec::new(), Faulty::default()).await;
    for number in 0..RECORDS {
        a.put(&name(number), Some(&noise(300)));
    }
    // How long this machine takes, now, for half as much.
    let start = SystemClock.boot();
    let b = slow(2, vec![a.gossip.local_addr()], Faulty { loss: 5, ..Faulty::default() }).await;
    b.until("all is there", |told| told.records.len() == RECORDS).await;
    let usual = SystemClock.boot().since(start);
    b.until_caught_up(&a).await;
    a.until_caught_up(&b).await;
    b.faults.cut.store(true, Ordering::Relaxed);
    for number in 0..RECORDS {
        a.put(&name(number), Some(&format!("2 {}", noise(300))));
        b.put(&name(number), Some(&format!("2 {}", noise(300))));
    }
    // Silent is who was not heard for two rounds.
    tokio::time::sleep(Duration::from_millis(12_500)).await;
    let start = SystemClock.boot();
    b.faults.cut.store(false, Ordering::Relaxed);
    for (node, other) in [(&a, &b), (&b, &a)] {
        node.until("all is there", |told| {
            let new = |(key, record): (&(SessionId, Table, Name), &Bytes)| {
                key.0 == other.session && record.starts_with(b"2")
            };
            told.records.iter().filter(|record| new(*record)).count() == RECORDS
        })
        .await;
    }
    let took = SystemClock.boot().since(start);
    let bound = usual * 4 + Duration::from_secs(1);
    assert!(took < bound.min(Duration::from_secs(12)), "{took:?}, usually {usual:?}");
}
