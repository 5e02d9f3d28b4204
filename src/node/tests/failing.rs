//! What fails around a node: its disk, its thread, its name, its users' patience.

use std::sync::atomic::AtomicU64;

use futures_util::FutureExt;

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::core::io::Gone;
use crate::core::time::Time;

/// Counts its steps where a test can see them.
pub(super) struct Tick {
    pub(super) steps: Arc<AtomicU64>,
}

impl Task for Tick {
    const KIND: &'static str = "tick";
    type Args = ();
    type State = u64;
    type Output = ();

    async fn step(&self, _: &mut Cx, (): &(), at: &mut u64) -> crate::error::Result<Step<()>> {
        sleep(Duration::from_millis(5)).await;
        *at += 1;
        self.steps.fetch_add(1, Ordering::Relaxed);
        Ok(Step::More)
    }
}

/// A step that nothing stops before the test ends it.
struct Deaf {
    ended: Arc<AtomicBool>,
}

impl Task for Deaf {
    const KIND: &'static str = "deaf";
    type Args = ();
    type State = ();
    type Output = ();

    async fn step(&self, cx: &mut Cx, (): &(), (): &mut ()) -> crate::error::Result<Step<()>> {
        let ended = self.ended.clone();
        cx.blocking(move || {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
        })
        .await?;
        Ok(Step::More)
    }
}

async fn runs(nodes: &[&Node], name: &str) {
    until("it runs, and all know", || {
        nodes.iter().all(|n| n.whereis(name).is_some_and(|e| e.state == TaskState::Running))
    })
    .await;
}

#[cfg(feature = "redb")]
#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_a_typed_error() {
    use crate::checkpoint::directory::DirectoryError;

    let file = tempfile::NamedTempFile::new().unwrap();
    let below_a_file = file.path().join("data");
    // A directory that is there and in which nobody can make a file, whatever the user.
    let without_room = std::path::PathBuf::from("/proc/self");
    let mut places = vec![below_a_file];
    if cfg!(target_os = "linux") {
        places.push(without_room);
    }
    for place in places {
        let node = builder("a", Seeds::None, Arc::default()).data_dir(&place);
        let error = timeout(SOON, node.start()).await.unwrap().unwrap_err();
        let unusable = matches!(
            &error,
            StartError::DataDirectory(DirectoryError::Unusable { path, .. }) if *path == place
        );
        assert!(unusable, "{error:?}");
        let text = error.to_string();
        assert!(text.contains(place.to_str().unwrap()) && text.contains("write"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_signal_ends_a_drain_at_once_and_says_what_is_left() {
    let ended = Arc::new(AtomicBool::new(false));
    let a = builder("a", Seeds::None, Arc::default()).task(Deaf { ended: ended.clone() });
    let a = a.start().await.unwrap();
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    a.run::<Deaf>("deaf", ()).await.unwrap();
    runs(&[&a], "deaf").await;
    // Its first step has begun.
    sleep(Duration::from_millis(200)).await;
    let script = Script(vec![
        (Duration::ZERO, Signal::Interrupt),
        (Duration::from_millis(1200), Signal::Interrupt),
        (Duration::from_millis(50), Signal::Terminate),
    ]);
    let report = timeout(SOON, a.drain_on(script)).await.unwrap();
    // What the second one alone waits for is longer.
    assert!(report.elapsed < Duration::from_millis(1600), "{report:?}");
    assert_eq!(report.forced, Some(Signal::Terminate), "{report:?}");
    assert_eq!(report.code(), 143);
    assert!(!report.is_clean(), "{report:?}");
    let left: Vec<&str> =
        report.unstoppable.iter().chain(&report.abandoned).map(Name::as_str).collect();
    assert_eq!(left, ["deaf"]);
    ended.store(true, Ordering::Relaxed);
    a.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_share_their_users_runtime_work_as_those_with_a_thread_of_their_own() {
    log();
    let may_end = Arc::new(AtomicBool::new(false));
    let shared = |id: &str, seeds: Seeds| {
        builder(id, seeds, may_end.clone()).executor(Executor::Current).start()
    };
    let a = shared("a", Seeds::None).await.unwrap();
    let b = shared("b", a.address().into()).await.unwrap();
    for node in [&a, &b] {
        timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    }
    for i in 0..6 {
        a.run::<Count>(format!("job/{i}"), CountTo { end: 20, pause_ms: 5 }).await.unwrap();
        runs(&[&a, &b], &format!("job/{i}")).await;
    }
    let here = a.list("job/").iter().filter(|e| e.node == a.session().node).count();
    assert!(here > 0, "placement spreads");
    let report = timeout(SOON, a.drain()).await.unwrap();
    assert!(report.is_clean() && report.moved == here, "{report:?}");
    let address = a.address();
    timeout(SOON, a.leave()).await.unwrap().unwrap();
    std::net::TcpListener::bind(address).expect("nothing listens any more");
    may_end.store(true, Ordering::Relaxed);
    for i in 0..6 {
        let handle = b.get::<Count>(&format!("job/{i}"));
        assert!(timeout(SOON, handle.output()).await.unwrap().unwrap().at >= 20);
    }
    timeout(SOON, b.leave()).await.unwrap().unwrap();
}

/// Lets a closure end, also where a test fails before that.
struct MayEnd(Arc<AtomicBool>);

impl Drop for MayEnd {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills the node's control loop, and nothing else, when told to: links and gossip have their own tasks on that
/// thread, and ask only how much time has passed.
#[derive(Debug, Default)]
struct Deadly {
    kills: AtomicBool,
}

impl Clock for Deadly {
    fn boot(&self) -> Time {
        SystemClock.boot()
    }

    fn wall_ms(&self) -> u64 {
        let here = std::thread::current().name() == Some("handover");
        assert!(!(here && self.kills.load(Ordering::Relaxed)), "the control loop is to die");
        SystemClock.wall_ms()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_stop_at_the_next_boundary_when_the_control_thread_has_died() {
    log();
    let clock = Arc::new(Deadly::default());
    let (here, there) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let a = builder("a", Seeds::None, Arc::default()).clock(clock.clone());
    let a = a.task(Tick { steps: here.clone() }).start().await.unwrap();
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    a.run::<Tick>("tick", ()).await.unwrap();
    let b = builder("b", a.address().into(), Arc::default()).task(Tick { steps: there.clone() });
    let b = b.start().await.unwrap();
    timeout(SOON, b.wait_ready()).await.unwrap().unwrap();
    until("it runs, with a replica", || {
        b.whereis("tick").is_some_and(|e| e.replicas.contains(&b.session().node))
            && here.load(Ordering::Relaxed) > 20
    })
    .await;

    clock.kills.store(true, Ordering::Relaxed);
    let died = Instant::now();
    timeout(SOON, a.0.running.join()).await.expect("the thread has ended");
    // The step that was under way may end; a boundary later nothing runs.
    sleep(Duration::from_millis(50)).await;
    let stopped_at = here.load(Ordering::Relaxed);
    assert!(died.elapsed() < timing().silence_floor, "long before the permit would have lapsed");
    until("the other node has taken it over", || there.load(Ordering::Relaxed) > 20).await;
    assert_eq!(here.load(Ordering::Relaxed), stopped_at, "it ran on without control");
    assert!(a.run::<Tick>("another", ()).await.is_err());
    b.close().await;
}

/// Blocks the thread that its step runs on, until the test ends it.
struct Hog {
    ended: Arc<AtomicBool>,
    blocked: Arc<AtomicU64>,
}

impl Task for Hog {
    const KIND: &'static str = "hog";
    type Args = ();
    type State = ();
    type Output = ();

    async fn step(&self, _: &mut Cx, (): &(), (): &mut ()) -> crate::error::Result<Step<()>> {
        self.blocked.fetch_add(1, Ordering::Relaxed);
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Step::Done(()))
    }
}

/// S5: the heartbeat does not share an executor with task code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_tasks_block_every_thread_of_their_runtime_is_heard_and_keeps_them() {
    const THREADS: usize = 2;
    log();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(THREADS).enable_all().build().unwrap();
    // Where the test fails it must not be dropped here.
    let runtime = std::mem::ManuallyDrop::new(runtime);
    let (here, there, blocked) = <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let ended = Arc::new(AtomicBool::new(false));
    let may_end = MayEnd(ended.clone());
    let a = builder("a", Seeds::None, Arc::default())
        .task(Tick { steps: here.clone() })
        .task(Hog { ended, blocked: blocked.clone() });
    let a = runtime.spawn(a.start()).await.unwrap().unwrap();
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    a.run::<Tick>("tick", ()).await.unwrap();
    let b = builder("b", a.address().into(), Arc::default()).task(Tick { steps: there.clone() });
    let b = b.start().await.unwrap();
    timeout(SOON, b.wait_ready()).await.unwrap().unwrap();
    runs(&[&a, &b], "tick").await;
    until("they are linked", || b.peers().iter().any(|peer| peer.linked)).await;
    let before = b.whereis("tick").unwrap();
    let mut events = b.events();

    for i in 0..THREADS {
        a.run::<Hog>(format!("hog/{i}"), ()).await.unwrap();
    }
    until("no thread is left", || blocked.load(Ordering::Relaxed) == THREADS as u64).await;
    let steps = here.load(Ordering::Relaxed);
    let end = Instant::now() + timing().silence_floor + Duration::from_secs(2);
    while Instant::now() < end {
        let peers = b.peers();
        assert!(peers.iter().all(|p| p.gone.is_none() && p.state == NodeState::Up), "{peers:?}");
        assert_eq!(a.state(), NodeState::Up);
        timeout(SOON, a.status()).await.expect("it answers").unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(here.load(Ordering::Relaxed), steps, "its tasks stand still");
    drop(may_end);
    until("they go on", || here.load(Ordering::Relaxed) > steps + 20).await;
    let after = b.whereis("tick").unwrap();
    assert_eq!((after.session, after.epoch), (before.session, before.epoch));
    assert_eq!(there.load(Ordering::Relaxed), 0);
    while let Some(event) = events.next().now_or_never().flatten() {
        assert!(!matches!(event, NodeEvent::PeerGone { .. }), "{event:?}");
    }
    a.close().await;
    b.close().await;
    std::mem::ManuallyDrop::into_inner(runtime).shutdown_background();
}

/// Rule 5: what cannot be stopped outlives the node's own thread, and others learn no sooner than by silence
/// that its node is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closure_that_outlives_the_control_thread_keeps_its_node_from_being_taken_for_dead() {
    log();
    let clock = Arc::new(Deadly::default());
    let ended = Arc::new(AtomicBool::new(false));
    let may_end = MayEnd(ended.clone());
    let a = builder("a", Seeds::None, Arc::default()).clock(clock.clone());
    let a = a.task(Deaf { ended: ended.clone() }).start().await.unwrap();
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    a.run::<Deaf>("deaf", ()).await.unwrap();
    until("it runs", || a.whereis("deaf").is_some_and(|e| e.state == TaskState::Running)).await;
    let b = builder("b", a.address().into(), Arc::default()).start().await.unwrap();
    timeout(SOON, b.wait_ready()).await.unwrap().unwrap();
    until("they are linked", || b.peers().iter().any(|peer| peer.linked)).await;
    let mut events = b.events();

    clock.kills.store(true, Ordering::Relaxed);
    let gone = async {
        loop {
            if let Some(NodeEvent::PeerGone { why, .. }) = events.next().await {
                return why;
            }
        }
    };
    assert_eq!(timeout(SOON, gone).await.expect("it falls silent"), Gone::Silent);
    assert!(a.run::<Deaf>("another", ()).await.is_err(), "nobody waits for the closure");
    drop(may_end);
    timeout(SOON, a.0.running.join()).await.expect("the thread has ended");
    std::net::TcpListener::bind(a.address()).expect("nothing listens any more");
    b.close().await;
}

/// Without a data directory neither can prove that it replaces the other: they are two nodes, each
/// with its own session, until one falls silent (Rule 6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_of_one_name_are_two_sessions_and_neither_takes_from_the_other() {
    let may_end = Arc::new(AtomicBool::new(false));
    let a = start_with("a", None, may_end.clone()).await;
    let twin = start_with("twin", Some(&a), may_end.clone()).await;
    let again = start_with("twin", Some(&a), may_end.clone()).await;
    assert_eq!(twin.session().node, again.session().node);
    assert_ne!(twin.session(), again.session());
    let all = [&a, &twin, &again];
    until("each is linked with both others", || {
        all.iter()
            .all(|n| n.peers().iter().filter(|p| p.linked && p.state == NodeState::Up).count() == 2)
    })
    .await;
    for i in 0..6 {
        let name = format!("job/{i}");
        again.run::<Count>(&name, CountTo { end: 10, pause_ms: 5 }).await.unwrap();
        runs(&all, &name).await;
    }
    // Nobody is taken for gone, and nothing moves, for longer than a silence would take.
    let before: Vec<_> = a.list("job/").into_iter().map(|e| (e.name, e.session, e.epoch)).collect();
    sleep(timing().silence_floor + Duration::from_secs(1)).await;
    for node in all {
        assert_eq!(node.state(), NodeState::Up);
        assert_eq!(node.peers().iter().filter(|p| p.linked).count(), 2);
        let now: Vec<_> =
            node.list("job/").into_iter().map(|e| (e.name, e.session, e.epoch)).collect();
        assert_eq!(now, before);
    }
    // One leaves: what it ran goes on, and its name's other session stays.
    let report = timeout(SOON, twin.drain()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    timeout(SOON, twin.leave()).await.unwrap().unwrap();
    may_end.store(true, Ordering::Relaxed);
    for i in 0..6 {
        let handle = a.get::<Count>(&format!("job/{i}"));
        let output = timeout(SOON, handle.output()).await.unwrap().unwrap();
        assert!(output.at >= 10);
    }
    assert!(a.peers().iter().any(|p| p.session == *again.session() && p.linked));
    timeout(SOON, again.leave()).await.unwrap().unwrap();
    timeout(SOON, a.leave()).await.unwrap().unwrap();
}

/// Rule 1: gossip that panics is started anew within the same session, and what runs here is given away to
/// nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_on_through_a_panic_of_gossip() {
    log();
    let (here, there) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let a = builder("a", Seeds::None, Arc::default()).task(Tick { steps: here.clone() });
    let a = a.start().await.unwrap();
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    a.run::<Tick>("tick", ()).await.unwrap();
    let b = builder("b", a.address().into(), Arc::default()).task(Tick { steps: there.clone() });
    let b = b.start().await.unwrap();
    timeout(SOON, b.wait_ready()).await.unwrap().unwrap();
    until("it runs, with a replica", || {
        b.whereis("tick").is_some_and(|e| e.replicas.contains(&b.session().node))
            && here.load(Ordering::Relaxed) > 20
    })
    .await;
    let who = |node: &Node| node.whereis("tick").map(|e| (e.session, e.run, e.epoch, e.state));
    let before = who(&a);
    assert_eq!(who(&b), before);
    let (mut by_a, mut by_b) = (a.events(), b.events());
    for early in [&mut by_a, &mut by_b] {
        while early.next().now_or_never().is_some() {}
    }

    a.send(Command::DoomGossip).await.unwrap();
    let restarted = async {
        loop {
            if let Some(NodeEvent::GossipRestarted { why }) = by_a.next().await {
                return why;
            }
        }
    };
    let why = timeout(SOON, restarted).await.expect("it is told");
    assert!(why.starts_with("runner: it panicked"), "{why}");
    let steps = here.load(Ordering::Relaxed);
    // Longer than it takes to find that somebody is silent.
    let end = Instant::now() + timing().silence_floor + Duration::from_secs(1);
    while Instant::now() < end {
        assert_eq!((who(&a), who(&b)), (before.clone(), before.clone()));
        sleep(Duration::from_millis(20)).await;
    }
    until("it goes on", || here.load(Ordering::Relaxed) > steps + 20).await;
    assert_eq!(there.load(Ordering::Relaxed), 0);
    for (node, told) in [(&a, &mut by_a), (&b, &mut by_b)] {
        while let Some(event) = told.next().now_or_never().flatten() {
            let of_peers = matches!(event, NodeEvent::PeerUp { .. } | NodeEvent::PeerGone { .. });
            assert!(!of_peers, "{node:?}: {event:?}");
        }
        assert_eq!(node.state(), NodeState::Up);
    }
    // Gossip carries what is new, and to a newcomer all of it.
    let next = a.run::<Tick>("tock", ()).await.unwrap().run();
    until("it is known to both", || {
        [&a, &b].iter().all(|node| node.whereis("tock").is_some_and(|e| Some(e.run) == next))
    })
    .await;
    let c = start("c", Some(&a)).await;
    until("it knows who runs it", || who(&c) == before).await;
    c.close().await;
    a.close().await;
    b.close().await;
}
