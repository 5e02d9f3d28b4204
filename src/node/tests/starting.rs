//! Starting, and what keeps a node from it.

use futures_util::FutureExt;

use super::*;
#[cfg(feature = "redb")]
use crate::checkpoint::directory::DirectoryError;
use crate::key::Key;
use crate::net::NetworkLimits;

fn plain() -> NodeBuilder {
    builder("a", Seeds::None, Arc::default())
}

async fn refused(builder: NodeBuilder) -> StartError {
    match timeout(SOON, builder.start()).await.unwrap() {
        Ok(node) => panic!("{node:?} started"),
        Err(error) => {
            // What happened, and what to do.
            assert!(error.to_string().len() > 40, "{error}");
            error
        }
    }
}

#[tokio::test]
async fn a_node_that_others_could_reach_wants_a_key() {
    let error = refused(plain().listen("0.0.0.0:0")).await;
    assert!(matches!(error, StartError::ListenWithoutKey(_)), "{error}");
    let error = refused(plain().listen("0.0.0.0:0").key(Key::new([1; 32]))).await;
    assert!(matches!(error, StartError::NoAdvertisedAddress(_)), "{error}");
    let reachable = plain().listen("0.0.0.0:0").key(Key::new([1; 32]));
    let node = reachable.advertise("127.0.0.1:0").start().await.unwrap();
    assert_ne!(node.address().port(), 0);
    node.close().await;
}

/// Whoever has the wrong key or the wrong cluster's address is not answered; both sides say so.
#[tokio::test]
async fn a_node_of_another_key_or_cluster_is_told_of_on_both_sides() {
    let key = Key::new([1; 32]);
    let quick = || Timing { silence_floor: Duration::from_secs(1), ..timing() };
    let a = plain().key(key.clone()).timing(quick()).start().await.unwrap();
    for (cluster, key, why) in
        [("test", Key::new([2; 32]), "the same keys"), ("another", key, "the same cluster name")]
    {
        let mut told = a.events();
        let stranger = Node::builder(cluster).node_id("stranger").seeds(a.address());
        let stranger = stranger.key(key).timing(quick()).start().await.unwrap();
        let mut tried = stranger.events();
        let told = async {
            loop {
                match told.next().await.expect("it goes on") {
                    NodeEvent::Stranger { from, why: text } if from == stranger.address() => {
                        break assert!(text.contains(why), "{text}");
                    }
                    _ => {}
                }
            }
        };
        timeout(SOON, told).await.expect("it is told of");
        let unreachable = async {
            while !matches!(tried.next().await, Some(NodeEvent::SeedsUnreachable { .. })) {}
        };
        timeout(SOON, unreachable).await.expect("it notices");
        assert!(a.peers().is_empty() && stranger.peers().is_empty());
        stranger.close().await;
    }
    a.close().await;
}

/// Orchestrators kill after 30 s: a drain and what winds it up come before.
#[test]
fn a_drain_has_25_seconds_unless_told_otherwise() {
    assert_eq!(Node::builder("test").0.drain_budget, Duration::from_secs(25));
}

#[tokio::test]
async fn settings_that_cannot_hold_are_refused_with_the_reason() {
    assert!(matches!(refused(plain().node_id("")).await, StartError::InvalidName(_)));
    assert!(matches!(
        refused(plain().listen("nowhere")).await,
        StartError::InvalidAddress { what: "listen", .. }
    ));
    let hasty = Timing { silence_floor: Duration::from_millis(1), ..timing() };
    assert!(matches!(refused(plain().timing(hasty)).await, StartError::Timing(_)));
    let deaf = NetworkLimits { stranger_datagrams: 0, ..NetworkLimits::default() };
    assert!(matches!(refused(plain().network_limits(deaf)).await, StartError::Limit(_)));
    let nowhere = plain().advertised_within(["10.0.0.0/8", "10.0.0.1", "10.0.0.0/99"]);
    assert!(matches!(
        refused(nowhere).await,
        StartError::InvalidNetwork { text, .. } if text == "10.0.0.0/99"
    ));
    let twice = plain().task(Count { may_end: Arc::default() });
    assert!(matches!(refused(twice).await, StartError::Task(_)));
    for name in ["no such host:1", "shop-headless", "shop-headless:x", ":7946", "shop:0"] {
        let error = refused(plain().seeds(Seeds::Dns(name.into()))).await;
        assert!(matches!(&error, StartError::InvalidSeed { name: n, .. } if n == name), "{error}");
    }
    assert!(matches!(
        refused(Node::builder("two\nlines").node_id("a")).await,
        StartError::InvalidName(_)
    ));
}

/// Addresses that nobody is reached by.
const NOBODY: [&str; 6] = [
    "0.0.0.0:7946",
    "[::]:7946",
    "[::ffff:0.0.0.0]:7946",
    "224.0.0.251:7946",
    "[ff02::1]:7946",
    "255.255.255.255:7946",
];

#[tokio::test]
async fn a_seed_that_nobody_is_reached_by_is_refused() {
    for text in NOBODY.into_iter().chain(["10.0.0.7:0"]) {
        let seeds: Vec<SocketAddr> = vec!["127.0.0.1:7946".parse().unwrap(), text.parse().unwrap()];
        let error = refused(plain().seeds(seeds)).await;
        assert!(matches!(error, StartError::InvalidSeed { .. }), "{text}: {error}");
        assert!(error.to_string().contains("like 10.0.0.7:7946"), "{error}");
    }
}

#[tokio::test]
async fn an_address_that_nobody_could_send_to_cannot_be_advertised() {
    for text in NOBODY {
        let error = refused(plain().advertise(text)).await;
        let told = matches!(error, StartError::UnreachableAdvertised { address, .. }
            if address == text.parse().unwrap());
        assert!(told, "{text}: {error}");
        assert!(error.to_string().contains("like 10.0.0.7:7946"), "{error}");
    }
    // Port 0 is the one listened on.
    let node = plain().advertise("127.0.0.2:0").start().await.unwrap();
    assert_eq!(node.address().ip().to_string(), "127.0.0.2");
    assert_ne!(node.address().port(), 0);
    node.close().await;
}

#[tokio::test]
async fn a_backlog_without_bounds_is_cut_to_what_can_be_kept() {
    for events in [0, usize::MAX] {
        let node = plain().event_backlog(events).start().await.unwrap();
        node.close().await;
    }
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let node = plain().start().await.unwrap();
    let error = refused(plain().listen(node.address())).await;
    assert!(
        matches!(error, StartError::AddressInUse(address) if address == node.address()),
        "{error}"
    );
    let address = node.address();
    node.close().await;
    // Free as soon as `close` has returned.
    let again = plain().listen(address).start().await.unwrap();
    again.close().await;
}

#[tokio::test]
async fn an_address_that_this_host_does_not_have_is_told_with_what_to_do() {
    // Of a network that is there for documentation.
    let absent: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let error = refused(plain().listen(absent).key(Key::new([1; 32]))).await;
    let told = matches!(error, StartError::CannotListen { address, .. } if address == absent);
    assert!(told, "{error}");
    let text = error.to_string();
    assert!(text.contains("0.0.0.0") && text.contains("`advertise`"), "{text}");
}

#[test]
fn a_node_wants_a_runtime() {
    let mut start = Box::pin(plain().start());
    let waker = std::task::Waker::noop();
    let polled = start.as_mut().poll(&mut std::task::Context::from_waker(waker));
    assert!(matches!(polled, std::task::Poll::Ready(Err(StartError::NoRuntime))));
}

#[tokio::test]
async fn seeds_that_do_not_answer_are_an_event_and_no_error() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let seeds = Seeds::from(silent.local_addr().unwrap());
    let node = builder("a", seeds, Arc::default()).start().await.unwrap();
    let mut events = node.events();
    let unreachable = async {
        while let Some(event) = events.next().await {
            if let NodeEvent::SeedsUnreachable { tried } = event {
                return tried;
            }
        }
        panic!("the node ended");
    };
    let tried = timeout(SOON, unreachable).await.unwrap();
    assert_eq!(tried, silent.local_addr().unwrap().to_string());
    node.close().await;
    assert!(timeout(SOON, node.wait_ready()).await.unwrap().is_err());
}

#[cfg(feature = "redb")]
#[tokio::test]
async fn a_data_directory_is_one_nodes_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = plain().data_dir(dir.path()).start().await.unwrap();
    let error = refused(plain().data_dir(dir.path())).await;
    assert!(matches!(error, StartError::DataDirectory(DirectoryError::Locked { .. })), "{error}");
    node.close().await;
    let error = refused(plain().node_id("b").data_dir(dir.path())).await;
    assert!(
        matches!(error, StartError::DataDirectory(DirectoryError::OtherNode { .. })),
        "{error}"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = refused(plain().data_dir(file.path())).await;
    assert!(matches!(error, StartError::DataDirectory(DirectoryError::Unusable { .. })), "{error}");
}

#[cfg(feature = "redb")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_killed_resumes_from_its_data_directory() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let may_end = Arc::new(AtomicBool::new(false));
    let on_disk = || builder("a", Seeds::None, may_end.clone()).data_dir(dir.path());
    let node = on_disk().start().await.unwrap();
    timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    let args = CountTo { end: 10, pause_ms: 10 };
    let handle = node.run::<Count>("disk/1", args).await.unwrap();
    let counted = async {
        while handle.progress().await.unwrap().done < 30 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, counted).await.unwrap();
    node.close().await;

    let node = on_disk().start().await.unwrap();
    until("what is on its disk is known", || node.whereis("disk/1").is_some()).await;
    let stored = node.whereis("disk/1").unwrap();
    assert_eq!((stored.state, stored.node), (TaskState::Stored, node.session().node.clone()));
    assert!(node.get::<Count>("disk/1").progress().await.unwrap().done >= 15);
    timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    until("it runs again", || {
        node.whereis("disk/1").is_some_and(|entry| entry.state == TaskState::Running)
    })
    .await;
    let resumed = node.get::<Count>("disk/1").progress().await.unwrap();
    assert!(resumed.done >= 15, "{resumed:?}");
    may_end.store(true, Ordering::Relaxed);
    timeout(SOON, node.get::<Count>("disk/1").output()).await.unwrap().unwrap();
    node.close().await;

    // Finished is finished, also after a restart.
    let node = on_disk().start().await.unwrap();
    timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    until("it is known", || node.whereis("disk/1").is_some()).await;
    assert_eq!(node.whereis("disk/1").unwrap().state, TaskState::Finished);
    timeout(SOON, node.get::<Count>("disk/1").output()).await.unwrap().unwrap();
    node.leave().await.unwrap();
}

/// Gossip tells a newcomer of sessions that are no more: it is neither shown nor told of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_is_not_told_of_those_who_left_before_it_came() {
    let a = start("a", None).await;
    let b = start("b", Some(&a)).await;
    let left = b.session().clone();
    until("they know each other", || a.peers().iter().any(|peer| peer.linked)).await;
    b.leave().await.unwrap();
    until("it has left", || a.peers().is_empty()).await;

    let c = builder("c", a.address().into(), Arc::default()).start().await.unwrap();
    let mut told = c.events();
    timeout(SOON, c.wait_ready()).await.unwrap().unwrap();
    // Longer than it takes to find that somebody is silent.
    let end = Instant::now() + timing().silence_floor + Duration::from_secs(2);
    while Instant::now() < end {
        assert!(c.peers().iter().all(|peer| peer.session != left), "it is shown");
        while let Some(event) = told.next().now_or_never().flatten() {
            let of_it = match event {
                NodeEvent::PeerUp { peer } | NodeEvent::PeerGone { peer, .. } => peer == left,
                _ => false,
            };
            assert!(!of_it, "it is told of");
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(c.peers().len(), 1);
    a.leave().await.unwrap();
    c.leave().await.unwrap();
}

/// Else a node of the old build that is restarted in the middle of a deploy is taken for the newest.
#[cfg(feature = "redb")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_is_as_old_as_its_data_directory_says() {
    log();
    let dir = tempfile::tempdir().unwrap();
    let may_end = Arc::new(AtomicBool::new(false));
    let old = |seeds: Seeds| builder("a", seeds, may_end.clone()).data_dir(dir.path());
    old(Seeds::None).start().await.unwrap().leave().await.unwrap();
    let new = builder("b", Seeds::None, may_end.clone()).revision("r2").start().await.unwrap();
    timeout(SOON, new.wait_ready()).await.unwrap().unwrap();
    let again = old(new.address().into()).start().await.unwrap();
    timeout(SOON, again.wait_ready()).await.unwrap().unwrap();
    until("they know each other", || {
        let up = |node: &Node| {
            node.peers()
                .iter()
                .any(|p| p.state == NodeState::Up && p.revision.is_some() && p.linked)
        };
        up(&new) && up(&again)
    })
    .await;
    for name in ["one", "two", "three"] {
        again.run::<Count>(name, CountTo { end: 1, pause_ms: 5 }).await.unwrap();
        until("it is known", || again.whereis(name).is_some()).await;
        assert_eq!(again.whereis(name).unwrap().node.as_str(), "b", "the newest revision");
    }
    again.close().await;
    new.close().await;
}
