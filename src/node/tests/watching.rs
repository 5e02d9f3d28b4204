//! What a watch tells of the names under a prefix.

use super::failing::Tick;
use super::using::next;
use super::*;
use crate::registry::{TaskEvent, Watch};

async fn next_but_progress(watch: &mut Watch) -> TaskEvent {
    let other = async {
        loop {
            match next(watch).await {
                TaskEvent::Progress { progress, .. } => assert!(progress.done > 0),
                event => return event,
            }
        }
    };
    timeout(SOON, other).await.expect("something else in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_of_start_move_and_end() {
    let may_end = Arc::new(AtomicBool::new(false));
    let a = start_with("a", None, may_end.clone()).await;
    let b = start_with("b", Some(&a), may_end.clone()).await;
    let mut watch = b.watch("w/");
    let handle = a.run::<Count>("w/1", CountTo { end: 5, pause_ms: 5 }).await.unwrap();
    let TaskEvent::Started { node, .. } = next_but_progress(&mut watch).await else {
        panic!("it starts first");
    };
    let home = if node.as_str() == "a" { &a } else { &b };
    assert!(home.drain().await.is_clean());
    match next_but_progress(&mut watch).await {
        TaskEvent::Moved { from, to, .. } => assert!(from == node && to != node),
        other => panic!("{other:?}"),
    }
    may_end.store(true, Ordering::Relaxed);
    match next_but_progress(&mut watch).await {
        TaskEvent::Finished { name, state } => {
            assert_eq!((name.as_str(), state), ("w/1", TaskState::Finished));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(timeout(SOON, handle.output()).await.unwrap().unwrap().by.len(), 2);
    a.leave().await.unwrap();
    b.leave().await.unwrap();
    assert_eq!(timeout(SOON, watch.next()).await.unwrap(), None, "the node has closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_of_a_pause_of_the_start_after_it_and_of_a_cancel() {
    let a = start_with("a", None, Arc::default()).await;
    let b = start_with("b", Some(&a), Arc::default()).await;
    let mut watch = b.watch("w/");
    a.run::<Count>("w/1", CountTo { end: 5, pause_ms: 5 }).await.unwrap();
    let TaskEvent::Started { node: home, .. } = next_but_progress(&mut watch).await else {
        panic!("it starts first");
    };
    let handle = b.get::<Count>("w/1");
    handle.pause().await.unwrap();
    let name = Name::new("w/1").unwrap();
    assert_eq!(next_but_progress(&mut watch).await, TaskEvent::Paused { name: name.clone() });
    handle.resume().await.unwrap();
    match next_but_progress(&mut watch).await {
        TaskEvent::Started { node, .. } => assert_eq!(node, home),
        other => panic!("{other:?}"),
    }
    handle.cancel().await.unwrap();
    let cancelled = TaskEvent::Finished { name, state: TaskState::Cancelled };
    assert_eq!(next_but_progress(&mut watch).await, cancelled);
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_how_far_a_task_that_moves_has_come() {
    let a = start_with("a", None, Arc::default()).await;
    let b = start_with("b", Some(&a), Arc::default()).await;
    a.run::<Count>("w/1", CountTo { end: 5, pause_ms: 5 }).await.unwrap();
    until("both know", || {
        [&a, &b].iter().all(|n| n.whereis("w/1").is_some_and(|e| e.state == TaskState::Running))
    })
    .await;
    let home = a.whereis("w/1").unwrap().node;
    let (home, other) = if home.as_str() == "a" { (&a, &b) } else { (&b, &a) };
    let mut watch = other.watch("w/");
    let before = home.get::<Count>("w/1").progress().await.unwrap().done;
    assert_eq!(timeout(SOON, home.drain()).await.unwrap().moved, 1);
    let far = async {
        loop {
            match next(&mut watch).await {
                TaskEvent::Progress { name, progress } if progress.done >= before => {
                    return (name, progress.total);
                }
                TaskEvent::Progress { .. } | TaskEvent::Moved { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(timeout(SOON, far).await.unwrap(), (Name::new("w/1").unwrap(), 5));
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_what_a_parked_task_waits_for_and_when_it_runs_again() {
    let steps = Arc::default();
    let runs_it = |id: &str, seeds: Seeds| {
        builder(id, seeds, Arc::default()).task(Tick { steps: Arc::clone(&steps) }).start()
    };
    let a = runs_it("a", Seeds::None).await.unwrap();
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    let b = start("b", Some(&a)).await;
    let mut watch = b.watch("tick");
    a.run::<Tick>("tick", ()).await.unwrap();
    match next_but_progress(&mut watch).await {
        TaskEvent::Started { node, .. } => assert_eq!(node.as_str(), "a"),
        other => panic!("{other:?}"),
    }
    assert!(timeout(SOON, a.drain()).await.unwrap().is_clean());
    match next_but_progress(&mut watch).await {
        TaskEvent::Parked { name, needs } => {
            assert_eq!(name.as_str(), "tick");
            assert!(needs.contains("the kind tick"), "{needs}");
        }
        other => panic!("{other:?}"),
    }
    let c = runs_it("c", b.address().into()).await.unwrap();
    match next_but_progress(&mut watch).await {
        TaskEvent::Started { node, .. } => assert_eq!(node.as_str(), "c"),
        other => panic!("{other:?}"),
    }
    for node in [a, b, c] {
        node.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_when_nothing_is_left_of_a_name() {
    let brief = Timing {
        silence_floor: Duration::from_millis(800),
        dead_node_grace: Duration::from_millis(3200),
        retention: Duration::from_millis(200),
        tombstone_retention: Duration::from_millis(6400),
        ..timing()
    };
    let may_end = Arc::new(AtomicBool::new(true));
    let node = builder("a", Seeds::None, may_end).timing(brief.clone()).start().await.unwrap();
    timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    let mut watch = node.watch("w/");
    node.run::<Count>("w/1", CountTo { end: 1, pause_ms: 5 }).await.unwrap();
    let name = Name::new("w/1").unwrap();
    let begun = Instant::now();
    loop {
        match next_but_progress(&mut watch).await {
            TaskEvent::Forgotten { name: forgotten } => break assert_eq!(forgotten, name),
            TaskEvent::Started { .. } | TaskEvent::Finished { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(begun.elapsed() >= brief.tombstone_retention, "{:?}", begun.elapsed());
    assert_eq!(node.whereis("w/1"), None);
    node.close().await;
}
