//! A node on a thread of its own, with a recorder of its own.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use handover::{Executor, Node, NodeState, Seeds, TaskState, Timing};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::cut::Cut;
use super::recorder::Recorded;
use super::task::{Collect, Grow, Journal, Long, Rare, Tick};

pub(super) const SOON: Duration = Duration::from_secs(30);

/// What a node can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    revision: &'static str,
    rare: bool,
    /// Which version of the growing kind.
    grow: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self { revision: "r1", rare: false, grow: 1 }
    }
}

impl Setup {
    /// With the rare kind.
    pub(super) fn rare() -> Self {
        Self { rare: true, ..Self::default() }
    }

    /// A build after the default one: it reads what that one writes, and not the other way round.
    pub(super) fn newer() -> Self {
        Self { revision: "r2", grow: 2, ..Self::default() }
    }
}

pub(super) struct Host {
    pub(super) id: String,
    pub(super) node: Node,
    pub(super) cut: Arc<Cut>,
    pub(super) metrics: Recorded,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Host {
    /// Starts a node and waits until it is ready and linked with the others.
    pub(super) async fn start(id: &str, others: &[&Self], journal: &Journal, setup: Setup) -> Self {
        let cut = Arc::new(Cut::default());
        let seeds: Vec<_> = others.iter().map(|host| host.node.address()).collect();
        let builder = Node::builder("metrics")
            .node_id(id)
            .seeds(Seeds::Addresses(seeds))
            .revision(setup.revision)
            .timing(timing())
            .checkpoint_every(Duration::from_millis(100), 1 << 20)
            .network(cut.clone())
            .executor(Executor::Current)
            .task(Long)
            .task(Collect { node: id.to_owned() })
            .task(Tick { journal: journal.clone(), node: id.to_owned() });
        let builder = if setup.rare { builder.task(Rare) } else { builder };
        let builder = match setup.grow {
            1 => builder.task(Grow::<1>),
            _ => builder.task(Grow::<2>),
        };
        let metrics = Recorded::default();
        let recorder = metrics.clone();
        let (started, node) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            ::metrics::with_local_recorder(&recorder, || {
                runtime.block_on(async {
                    started.send(builder.start().await.unwrap()).unwrap();
                    let _ = ended.await;
                });
            });
        });
        let node = node.await.unwrap();
        timeout(SOON, node.wait_ready()).await.expect("it becomes ready").unwrap();
        let host =
            Self { id: id.to_owned(), node, cut, metrics, end: Some(end), thread: Some(thread) };
        until("it is linked", || {
            let knows = |from: &Self, to: &Self| {
                let linked = |peer: &handover::PeerStatus| {
                    peer.session == *to.node.session()
                        && peer.state == NodeState::Up
                        && peer.linked
                        && !peer.kinds.is_empty()
                };
                from.node.peers().iter().any(linked)
            };
            others.iter().all(|other| knows(&host, other) && knows(other, &host))
        })
        .await;
        host
    }

    /// Whether this node sees the task run, on a given node if one is given.
    pub(super) fn sees(&self, name: &str, on: Option<&Self>) -> bool {
        self.node.whereis(name).is_some_and(|entry| {
            entry.state == TaskState::Running
                && on.is_none_or(|on| entry.session == *on.node.session())
        })
    }
}

/// Nodes that leave one after the other.
pub(super) struct Hosts(pub(super) Vec<Host>);

impl Hosts {
    pub(super) async fn leave(self) {
        for mut host in self.0 {
            // Whoever has been left alone by then has nobody to say goodbye to.
            let _ = timeout(SOON, host.node.leave()).await.expect("it leaves");
            drop(host.end.take());
            host.thread.take().unwrap().join().unwrap();
        }
    }
}

fn timing() -> Timing {
    let mut timing = Timing::default();
    timing.gossip_interval = Duration::from_millis(100);
    timing.silence_floor = Duration::from_secs(2);
    timing.takeover_delay = Duration::from_millis(100);
    timing.stop_grace = Duration::from_secs(1);
    timing.alone_after = Duration::from_secs(60);
    timing.solo_after = Duration::from_millis(200);
    timing.state_wait = Duration::from_secs(1);
    timing
}

pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("did not come to pass: {what}");
}

#[track_caller]
pub(super) fn close_to(measured: f64, truly: f64, by: f64) {
    assert!((measured - truly).abs() <= by, "measured {measured}, truly {truly}");
}
