#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use uuid::Uuid;

use super::*;
use crate::core::claim::{Mode, Phase, Terms};
use crate::core::ids::{NodeId, RunId, SessionId};
use crate::core::lease::Epoch;

fn claim(name: &str, node: &str, epoch: u64, phase: Phase) -> Claim {
    Claim {
        name: Name::new(name).unwrap(),
        session: SessionId::new(NodeId::new(node).unwrap(), Uuid::nil()),
        number: 1,
        version: 0,
        run: RunId { number: 1, uuid: Uuid::nil() },
        epoch: Epoch(epoch),
        phase,
        terms: Terms { mode: Mode::Available, silence_floor: Duration::from_secs(10) },
        replicas: Vec::new(),
        floor: None,
        checkpointed: false,
        strikes: 0,
        note: String::new(),
        heeded: 0,
        expired: false,
        resting: false,
    }
}

fn set(registry: &Registry, claim: &Claim) {
    registry.set(&claim.name, Some(claim), None);
}

/// Whoever takes over what it kept itself is its holder, and no replica of its own.
#[test]
fn a_holder_is_not_among_its_replicas() {
    let registry = Registry::new(16);
    let mut taken = claim("jobs/1", "b", 2, Phase::Running);
    taken.replicas = vec![NodeId::new("b").unwrap(), NodeId::new("c").unwrap()];
    set(&registry, &taken);
    let entry = registry.get(&taken.name).unwrap();
    assert_eq!(entry.replicas, [NodeId::new("c").unwrap()]);
}

#[tokio::test]
async fn a_task_that_changes_nodes_is_told_once_as_a_move_from_where_it_ran() {
    let registry = Arc::new(Registry::new(16));
    let mut watch = Watch::new(registry.clone(), "jobs/".into());
    set(&registry, &claim("jobs/1", "a", 1, Phase::Claimed));
    set(&registry, &claim("jobs/1", "a", 1, Phase::Running));
    set(&registry, &claim("jobs/1", "a", 1, Phase::Released));
    set(&registry, &claim("jobs/1", "b", 2, Phase::Claimed));
    set(&registry, &claim("jobs/1", "b", 2, Phase::Running));
    set(&registry, &claim("jobs/1", "b", 2, Phase::Finished));
    let name = Name::new("jobs/1").unwrap();
    let (a, b) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
    assert_eq!(
        watch.next().await,
        Some(TaskEvent::Started { name: name.clone(), node: a.clone(), epoch: Epoch(1) })
    );
    assert_eq!(
        watch.next().await,
        Some(TaskEvent::Moved { name: name.clone(), from: a, to: b, epoch: Epoch(2) })
    );
    assert_eq!(watch.next().await, Some(TaskEvent::Finished { name, state: TaskState::Finished }));
}

#[tokio::test]
async fn a_watcher_hears_only_of_its_prefix() {
    let registry = Arc::new(Registry::new(16));
    let mut watch = Watch::new(registry.clone(), "b/".into());
    set(&registry, &claim("a/1", "n", 1, Phase::Running));
    set(&registry, &claim("b/1", "n", 1, Phase::Running));
    match watch.next().await {
        Some(TaskEvent::Started { name, .. }) => assert_eq!(name.as_str(), "b/1"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_slow_watcher_gets_a_fresh_snapshot_instead_of_a_growing_queue() {
    let registry = Arc::new(Registry::new(4));
    let mut watch = Watch::new(registry.clone(), "t/".into());
    for i in 0..20 {
        set(&registry, &claim(&format!("t/{i:02}"), "n", 1, Phase::Running));
    }
    match watch.next().await {
        Some(TaskEvent::Lagged { missed, entries }) => {
            assert_eq!(missed, 16);
            assert_eq!(entries.len(), 20);
            assert!(entries.is_sorted_by(|x, y| x.name.as_str() < y.name.as_str()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_unchanged_claim_is_no_event() {
    let registry = Registry::new(4);
    let mut changes = registry.subscribe();
    set(&registry, &claim("t", "n", 1, Phase::Running));
    set(&registry, &claim("t", "n", 1, Phase::Running));
    assert!(changes.try_recv().is_ok());
    assert!(changes.try_recv().is_err());
}
