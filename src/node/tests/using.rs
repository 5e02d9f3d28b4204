//! What a user does with a task by name.

use futures_util::FutureExt;

use super::*;

/// Registered nowhere but where a test says so.
struct Rare;

impl Task for Rare {
    const KIND: &'static str = "rare";
    type Args = ();
    type State = ();
    type Output = String;

    async fn step(&self, cx: &mut Cx, (): &(), (): &mut ()) -> crate::error::Result<Step<String>> {
        Ok(Step::Done(cx.name().to_owned()))
    }
}

pub(super) async fn next<S: futures_core::Stream + Unpin>(stream: &mut S) -> S::Item {
    timeout(SOON, stream.next()).await.expect("in time").expect("it goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_calls_leave_hears_how_it_went() {
    let a = start_with("a", None, Arc::default()).await;
    let b = start_with("b", Some(&a), Arc::default()).await;
    let again = a.clone();
    let (one, two) = tokio::join!(a.leave(), again.leave());
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    timeout(SOON, again.leave()).await.unwrap().unwrap();
    timeout(SOON, b.leave()).await.unwrap().unwrap();
}

/// What is told before `start` has returned would be heard by nobody.
#[tokio::test]
async fn the_first_who_listens_hears_of_the_start() {
    let a = start_with("a", None, Arc::default()).await;
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    // That it is ready is shown before it is told.
    a.status().await.unwrap();
    let mut first = a.events();
    let mut second = a.events();
    let up =
        |event: Option<NodeEvent>| matches!(event, Some(NodeEvent::State { state: NodeState::Up }));
    assert!(up(timeout(SOON, first.next()).await.unwrap()));
    a.cordon().await.unwrap();
    let cordoned = NodeEvent::State { state: NodeState::Cordoned };
    assert_eq!(timeout(SOON, first.next()).await.unwrap(), Some(cordoned.clone()));
    assert_eq!(timeout(SOON, second.next()).await.unwrap(), Some(cordoned), "and no other");
    a.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_paused_resumed_and_cancelled_from_another_node() {
    let may_end = Arc::new(AtomicBool::new(false));
    let a = start_with("a", None, may_end.clone()).await;
    let b = start_with("b", Some(&a), may_end).await;
    let args = CountTo { end: 10, pause_ms: 5 };
    let handle = a.run::<Count>("job", args).await.unwrap();
    until("both know", || b.whereis("job").is_some_and(|e| e.state == TaskState::Running)).await;
    let elsewhere = b.get::<Count>("job");
    let mut watch = handle.state_changes();
    assert_eq!(next(&mut watch).await, TaskState::Running);

    elsewhere.pause().await.unwrap();
    assert_eq!(next(&mut watch).await, TaskState::Paused);
    let paused_at = handle.progress().await.unwrap();
    sleep(Duration::from_millis(200)).await;
    assert_eq!(handle.progress().await.unwrap(), paused_at);

    elsewhere.resume().await.unwrap();
    until("it runs again", || handle.state() == Some(TaskState::Running)).await;
    elsewhere.cancel().await.unwrap();
    until("it is cancelled", || handle.state() == Some(TaskState::Cancelled)).await;
    assert_eq!(timeout(SOON, handle.output()).await.unwrap().unwrap_err(), OutputError::Cancelled);
    assert_eq!(handle.pause().await, Err(HandleError::Ended));
    a.leave().await.unwrap();
    b.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_progress_stream_tells_each_progress_once_and_the_last_one_when_the_run_has_ended() {
    let may_end = Arc::new(AtomicBool::new(false));
    let a = start_with("a", None, may_end.clone()).await;
    let b = start_with("b", Some(&a), may_end.clone()).await;
    let handle = a.run::<Count>("job", CountTo { end: 7, pause_ms: 5 }).await.unwrap();
    until("the other node knows", || b.whereis("job").is_some()).await;
    let elsewhere = b.get::<Count>("job");
    for handle in [&handle, &elsewhere] {
        let mut told = handle.progress_stream();
        let (first, second) = (next(&mut told).await, next(&mut told).await);
        assert!(first.done < second.done, "{first:?} {second:?}");
        assert_eq!(second.total, 7);
    }
    let mut streams = [handle.progress_stream(), elsewhere.progress_stream()];
    let mut last = Vec::new();
    for told in &mut streams {
        last.push(next(told).await);
    }
    may_end.store(true, Ordering::Relaxed);
    let output = timeout(SOON, handle.output()).await.unwrap().unwrap();
    for (told, mut last) in streams.iter_mut().zip(last) {
        while let Some(progress) = timeout(SOON, told.next()).await.expect("it ends") {
            assert!(progress.done > last.done, "{progress:?} after {last:?}");
            last = progress;
        }
        assert_eq!((last.done, last.total), (output.at, 7));
    }
    a.leave().await.unwrap();
    b.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_runs_where_its_kind_is_registered() {
    let a = start("a", None).await;
    let error = a.run::<Rare>("rare/1", ()).await.unwrap_err();
    assert!(matches!(&error, RunError::UnknownKind(kind) if kind.as_str() == "rare"), "{error}");

    let seeds = Seeds::from(a.address());
    let b = builder("b", seeds, Arc::default()).task(Rare).start().await.unwrap();
    timeout(SOON, b.wait_ready()).await.unwrap().unwrap();
    until("its record is known", || {
        a.peers().iter().any(|peer| peer.state == NodeState::Up && peer.kinds.len() == 2)
    })
    .await;
    b.cordon().await.unwrap();
    let is = |state| a.peers().iter().all(|peer| peer.state == state);
    until("that it is cordoned is known", || is(NodeState::Cordoned)).await;
    let error = a.run::<Rare>("rare/1", ()).await.unwrap_err();
    assert!(matches!(&error, RunError::NotUp(kind) if kind.as_str() == "rare"), "{error}");
    b.uncordon().await.unwrap();
    until("that it is not is known too", || is(NodeState::Up)).await;
    let handle = timeout(SOON, a.run::<Rare>("rare/1", ())).await.unwrap().unwrap();
    assert_eq!(timeout(SOON, handle.output()).await.unwrap().unwrap(), "rare/1");
    assert_eq!(a.whereis("rare/1").unwrap().node.as_str(), "b");
    a.leave().await.unwrap();
    b.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_joined_as_the_kind_of_task_that_it_is_and_whatever_the_arguments() {
    let a = start("a", None).await;
    let b = builder("b", a.address().into(), Arc::default()).task(Rare).start().await.unwrap();
    timeout(SOON, b.wait_ready()).await.unwrap().unwrap();
    let first = a.run::<Count>("job", CountTo { end: 1_000, pause_ms: 5 }).await.unwrap();
    until("both know", || {
        [&a, &b].iter().all(|n| n.whereis("job").is_some_and(|e| e.state == TaskState::Running))
    })
    .await;
    for node in [&a, &b] {
        let error = node.run::<Rare>("job", ()).await.unwrap_err();
        let text = error.to_string();
        assert!(["job", "count", "rare"].iter().all(|part| text.contains(part)), "{text}");
        let RunError::OtherKind { name, running, asked } = error else { panic!("{text}") };
        assert_eq!((name.as_str(), running.as_str(), asked.as_str()), ("job", "count", "rare"));
        let joined = node.run::<Count>("job", CountTo { end: 7, pause_ms: 0 }).await.unwrap();
        assert_eq!(joined.run(), first.run());
    }
    // It says so with its first step.
    let mut told = first.progress_stream();
    let mut progress = next(&mut told).await;
    while progress.total == 0 {
        progress = next(&mut told).await;
    }
    assert_eq!(progress.total, 1_000, "its arguments are the first ones");
    a.close().await;
    b.close().await;
}

/// Otherwise a name mistaken for another's, or a handle kept for too long, ends somebody else's work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_to_a_task_of_another_kind_or_to_a_newer_run_is_refused() {
    let a = start("a", None).await;
    let b = start("b", Some(&a)).await;
    let c = start("c", Some(&a)).await;
    let all = [&a, &b, &c];
    let old = a.run::<Count>("job", CountTo { end: 1, pause_ms: 1 }).await.unwrap();
    timeout(SOON, old.output()).await.unwrap().unwrap();
    for node in [&b, &c] {
        until("it is known to be over", || {
            node.whereis("job").is_some_and(|e| e.state == TaskState::Finished)
        })
        .await;
        let error = timeout(SOON, node.get::<Rare>("job").output()).await.unwrap().unwrap_err();
        assert!(matches!(error, OutputError::OtherKind { .. }), "{error}");
    }
    let new = a.rerun::<Count>("job", CountTo { end: 100_000, pause_ms: 5 }).await.unwrap();
    until("all know that it runs, with a replica", || {
        all.iter().all(|n| {
            n.get::<Count>("job").entry().is_some_and(|e| {
                Some(e.run) == new.run()
                    && e.state == TaskState::Running
                    && e.replicas.iter().any(|replica| *replica != e.node)
            })
        })
    })
    .await;
    for node in all {
        let error = node.get::<Rare>("job").cancel().await.unwrap_err();
        let text = error.to_string();
        let HandleError::OtherKind { name, running, asked } = error else { panic!("{text}") };
        assert_eq!((name.as_str(), running.as_str(), asked.as_str()), ("job", "count", "rare"));
    }
    assert_eq!(old.cancel().await, Err(HandleError::Superseded));
    assert_eq!(old.pause().await, Err(HandleError::Superseded));
    assert_eq!(new.state(), Some(TaskState::Running));
    timeout(SOON, c.get::<Count>("job").cancel()).await.unwrap().unwrap();
    let output = timeout(SOON, new.output()).await.unwrap();
    assert_eq!(output.unwrap_err(), OutputError::Cancelled);
    for node in all {
        node.close().await;
    }
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_with_the_reason() {
    let node = start("a", None).await;
    let args = CountTo { end: 1, pause_ms: 0 };
    let error = node.run::<Count>("", args).await.unwrap_err();
    assert!(matches!(error, RunError::InvalidName(_)), "{error}");
    let error = node.run::<Count>("x".repeat(256), args).await.unwrap_err();
    assert!(matches!(error, RunError::InvalidName(_)), "{error}");
    assert_eq!(node.get::<Count>("nobody").progress().await, None);
    assert_eq!(node.get::<Count>("nobody").output().await.unwrap_err(), OutputError::Unknown);
    assert_eq!(node.get::<Count>("nobody").pause().await, Err(HandleError::Unknown));
    let closed = node.get::<Count>("nobody");
    node.close().await;
    assert_eq!(closed.pause().await, Err(HandleError::Closed(NodeClosed)));
    let error = node.run::<Count>("late", args).await.unwrap_err();
    assert!(matches!(error, RunError::Closed(_)), "{error}");
}

#[tokio::test]
async fn the_last_node_abandons_what_only_it_has() {
    let may_end = Arc::new(AtomicBool::new(false));
    let node = start_with("a", None, may_end).await;
    node.run::<Count>("job", CountTo { end: 5, pause_ms: 5 }).await.unwrap();
    until("it runs", || node.whereis("job").is_some_and(|e| e.state == TaskState::Running)).await;
    let report = timeout(SOON, node.drain()).await.unwrap();
    assert_eq!(report.abandoned.len(), 1, "{report:?}");
    assert_eq!(report.code(), 75);
    assert!(!node.is_ready());
    node.leave().await.unwrap();
}

/// Load balancers go on sending for that long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_stops_accepting_when_the_delay_after_the_start_of_a_drain_is_over_and_no_sooner()
{
    let delay = Duration::from_secs(1);
    let node = builder("a", Seeds::None, Arc::default()).accept_delay(delay).start().await.unwrap();
    timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    let stop = node.stop_accepting();
    let stopped = tokio::spawn(async move {
        stop.await;
        Instant::now()
    });
    sleep(delay * 2).await;
    assert!(!stopped.is_finished(), "nothing drains");
    let begun = Instant::now();
    assert!(timeout(SOON, node.drain()).await.unwrap().is_clean());
    let after = timeout(SOON, stopped).await.unwrap().unwrap() - begun;
    assert!(after >= delay, "{after:?}");
    // It was the delay that ended it.
    assert_eq!(node.state(), NodeState::Draining);
    timeout(SOON, node.stop_accepting()).await.expect("also for who asks later");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_closes_leaves_nothing_to_accept_for_whatever_the_delay() {
    let long = Duration::from_secs(3600);
    let node = builder("a", Seeds::None, Arc::default()).accept_delay(long).start().await.unwrap();
    timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    timeout(SOON, node.drain()).await.unwrap();
    let mut stop = Box::pin(node.stop_accepting());
    assert!((&mut stop).now_or_never().is_none());
    timeout(SOON, node.leave()).await.unwrap().unwrap();
    timeout(SOON, stop).await.expect("it ends with the node");
    timeout(SOON, node.stop_accepting()).await.expect("it has closed before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_waiting_for_a_long_step() {
    let may_end = Arc::new(AtomicBool::new(false));
    let a = start_with("a", None, may_end.clone()).await;
    let b = start_with("b", Some(&a), may_end).await;
    // One step takes longer than the test may.
    a.run::<Count>("long", CountTo { end: 5, pause_ms: 120_000 }).await.unwrap();
    until("both know", || {
        [&a, &b].iter().all(|n| n.whereis("long").is_some_and(|e| e.state == TaskState::Running))
    })
    .await;
    let home = a.whereis("long").unwrap().node;
    let (home, other) = if home.as_str() == "a" { (&a, &b) } else { (&b, &a) };
    let begun = Instant::now();
    let script = Script(vec![
        (Duration::ZERO, Signal::Terminate),
        // The same one, delivered twice.
        (Duration::from_millis(100), Signal::Terminate),
        (Duration::from_millis(1200), Signal::Interrupt),
    ]);
    let report = timeout(SOON, home.drain_on(script)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(1200), "the second one was the first again");
    assert_eq!(report.forced, Some(Signal::Interrupt), "{report:?}");
    assert_eq!(report.code(), 130);
    assert!(report.abandoned.is_empty() && report.unstoppable.is_empty(), "{report:?}");
    until("it runs elsewhere", || {
        other
            .whereis("long")
            .is_some_and(|e| e.state == TaskState::Running && e.node == other.session().node)
    })
    .await;
    a.close().await;
    b.close().await;
}

#[tokio::test]
async fn the_status_is_json() {
    let node = start_with("a", None, Arc::default()).await;
    node.run::<Count>("job", CountTo { end: 5, pause_ms: 5 }).await.unwrap();
    until("it runs", || node.whereis("job").is_some_and(|e| e.state == TaskState::Running)).await;
    let status = serde_json::to_value(node.status().await.unwrap()).unwrap();
    assert_eq!(status["ready"], true);
    assert_eq!(status["tasks"]["running"], 1);
    let job = &status["running"][0];
    assert_eq!(job["name"], "job");
    // In words, not in the abbreviations of the wire.
    let read = |of: &serde_json::Value| serde_json::from_value::<SessionId>(of.clone()).unwrap();
    assert_eq!(
        (&status["session"]["node"], read(&status["session"])),
        (&"a".into(), read(&job["session"]))
    );
    assert_eq!(read(&job["session"]), *node.session());
    assert_eq!((&job["run"]["number"], &job["state"]), (&1.into(), &"running".into()));
    assert_eq!(status["state"], "up");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_is_kept_no_longer_is_gone_on_every_node_and_the_name_is_free() {
    let brief = Timing { retention: Duration::from_secs(2), ..timing() };
    let mut nodes: Vec<Node> = Vec::new();
    for id in ["a", "b", "c"] {
        let seeds = nodes.first().map_or(Seeds::None, |first| first.address().into());
        let builder = builder(id, seeds, Arc::new(AtomicBool::new(true))).timing(brief.clone());
        let node = builder.start().await.unwrap();
        timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
        nodes.push(node);
    }
    let args = CountTo { end: 3, pause_ms: 5 };
    let handle = nodes[0].run::<Count>("brief", args).await.unwrap();
    assert_eq!(timeout(SOON, handle.output()).await.unwrap().unwrap().at, 3);
    until("all know that it is over", || {
        nodes.iter().all(|node| node.whereis("brief").is_some_and(|entry| entry.expired))
    })
    .await;
    for node in &nodes {
        let elsewhere = node.get::<Count>("brief");
        assert_eq!(elsewhere.state(), Some(TaskState::Finished));
        let asked = Instant::now();
        assert_eq!(elsewhere.output().await.unwrap_err(), OutputError::Gone);
        assert!(asked.elapsed() < Duration::from_millis(500), "nobody need be asked");
    }
    let again = nodes[2].run::<Count>("brief", args).await.unwrap();
    assert!(again.run() > handle.run(), "the name is free");
    timeout(SOON, again.output()).await.unwrap().unwrap();
    until("its first node knows", || handle.state() == Some(TaskState::Superseded)).await;
    assert_eq!(handle.output().await.unwrap_err(), OutputError::Superseded);
    for node in nodes {
        node.close().await;
    }
}

/// On a thread of its own the node outlives the runtime that its tasks ran on, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_tasks_have_lost_their_runtime_hands_them_over_and_reports_it() {
    let may_end = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let first = builder("a", Seeds::None, may_end.clone()).start();
    let a = runtime.spawn(first).await.unwrap().unwrap();
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    for name in ["lost/1", "lost/2", "lost/3"] {
        a.run::<Count>(name, CountTo { end: 30, pause_ms: 10 }).await.unwrap();
    }
    let b = start_with("b", Some(&a), may_end.clone()).await;
    until("b knows them, and keeps their states", || {
        let entries = b.list("lost/");
        entries.len() == 3 && entries.iter().all(|e| e.replicas.contains(&b.session().node))
    })
    .await;
    sleep(Duration::from_millis(300)).await;
    let mut events = a.events();
    runtime.shutdown_background();
    let lost = async { while events.next().await != Some(NodeEvent::RuntimeLost) {} };
    timeout(SOON, lost).await.expect("it is told");
    until("b runs them", || {
        let here = |e: &Entry| e.node == b.session().node;
        b.list("lost/").iter().filter(|e| e.state == TaskState::Running && here(e)).count() == 3
    })
    .await;
    assert_eq!(a.state(), NodeState::Draining);
    assert!(!a.is_ready());
    // It still answers for its cluster.
    let again = a.run::<Count>("lost/1", CountTo { end: 1, pause_ms: 0 }).await.unwrap();
    may_end.store(true, Ordering::Relaxed);
    let counted = timeout(SOON, again.output()).await.unwrap().unwrap();
    assert!(counted.at >= 30 && counted.by == ["a", "b"], "{counted:?}");
    let report = timeout(SOON, a.drain()).await.unwrap();
    assert!(report.is_clean() && report.moved + report.released == 3, "{report:?}");
    timeout(SOON, a.leave()).await.unwrap().unwrap();
    timeout(SOON, b.leave()).await.unwrap().unwrap();
}

/// Who held copies once and is gone keeps nothing: the last node says that it takes its tasks along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_peers_have_died_does_not_report_their_copies() {
    let may_end = Arc::new(AtomicBool::new(false));
    let a = start_with("a", None, may_end.clone()).await;
    let b = start_with("b", Some(&a), may_end).await;
    for name in ["left/1", "left/2", "left/3", "left/4"] {
        a.run::<Count>(name, CountTo { end: 5, pause_ms: 10 }).await.unwrap();
    }
    let replicated = |e: &Entry| e.replicas.contains(&b.session().node);
    until("some run on a, with copies on b", || {
        a.list("left/").iter().any(|e| e.node == a.session().node && replicated(e))
    })
    .await;
    b.close().await;
    until("a runs them all", || {
        a.list("left/").iter().all(|e| e.state == TaskState::Running && e.node == a.session().node)
    })
    .await;
    let report = timeout(SOON, a.drain()).await.unwrap();
    assert_eq!((report.abandoned.len(), report.code()), (4, 75), "{report:?}");
    timeout(SOON, a.leave()).await.unwrap().unwrap();
}

/// Whoever kept a copy answers for the node that is no more, at the first call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_nodes_runs_have_brought_is_read_from_any_other() {
    let a = start("a", None).await;
    let b = start("b", Some(&a)).await;
    let c = start("c", Some(&a)).await;
    let nodes = [&a, &b, &c];
    let names: Vec<String> = (0..20).map(|i| format!("over/{i}")).collect();
    for name in &names {
        a.run::<Count>(name.as_str(), CountTo { end: 3, pause_ms: 5 }).await.unwrap();
    }
    until("all have ended, with a copy elsewhere, and everybody knows", || {
        let kept = |e: &Entry| e.state == TaskState::Finished && !e.replicas.is_empty();
        nodes.iter().all(|node| {
            let entries = node.list("over/");
            entries.len() == names.len() && entries.iter().all(kept)
        })
    })
    .await;
    let there = a.list("over/").iter().filter(|e| e.node == c.session().node).count();
    assert!(there > 0, "some have to end on the one that dies");
    c.close().await;
    let read = async |node: &Node, name: &str| {
        let handle = node.get::<Count>(name);
        let output = handle.output().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(output.at, 3);
        // As of the last commit, where the node that ran its last step is no more.
        handle.progress().await.unwrap_or_else(|| panic!("{name}: no progress"));
    };
    let all = |node| {
        let read = &read;
        futures_util::future::join_all(names.iter().map(move |name| read(node, name)))
    };
    timeout(SOON, futures_util::future::join(all(&a), all(&b))).await.unwrap();
    a.leave().await.unwrap();
    b.leave().await.unwrap();
}
