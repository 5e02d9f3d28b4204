//! What a node leaves in its user's log.

use std::fs;
use std::sync::Mutex;

use super::*;

#[tokio::test]
async fn a_drain_leaves_one_summary_in_the_log_of_what_became_of_its_tasks() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let log = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(Mutex::new(file.reopen().unwrap()))
        .finish();
    let _every_place = crate::test_log::every_place_is_heard();
    let _on_this_thread = tracing::subscriber::set_default(log);
    let node = builder("a", Seeds::None, Arc::default()).executor(Executor::Current);
    let node = node.start().await.unwrap();
    timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    for name in ["job/1", "job/2"] {
        node.run::<Count>(name, CountTo { end: 5, pause_ms: 5 }).await.unwrap();
        until("it runs", || node.whereis(name).is_some_and(|e| e.state == TaskState::Running))
            .await;
    }
    let report = timeout(SOON, node.drain()).await.unwrap();
    assert_eq!(timeout(SOON, node.drain()).await.unwrap(), report);
    timeout(SOON, node.leave()).await.unwrap().unwrap();

    let text = fs::read_to_string(file.path()).unwrap();
    let summary = |line: &&str| line.contains(" INFO handover::drain: drained ");
    let lines: Vec<&str> = text.lines().filter(summary).collect();
    assert_eq!(lines.len(), 1, "{text}");
    let elapsed = format!("elapsed={:?}", report.elapsed);
    for what in ["moved=0", "released=0", "abandoned=2", "outcome=\"incomplete\"", &elapsed] {
        assert!(lines[0].contains(what), "no {what}: {}", lines[0]);
    }
}
