//! What runs on a simulated host: a process with the shipped node in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use handover::{Executor, Key, Node, NodeEvent, TaskState, Timing};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::clock::SimClock;
use crate::fabric::{Fabric, SimNetwork};
use crate::observer::{Life, Observer};
use crate::planted::Planted;
use crate::task::{Count, Errand};

/// Every node listens here, for datagrams and streams.
const PORT: u16 = 7946;
/// How often a process tells what its node knows.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What someone at the console can ask of a process.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Start a task, or join it.
    Run { task: String, errand: Errand },
    /// Tell what a finished task brought.
    Output { task: String },
    /// Hand everything over and exit.
    Drain,
}

/// What the processes have told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Which processes take part.
    pub(crate) ready: BTreeSet<Life>,
    /// Which processes have ended by themselves.
    pub(crate) exited: BTreeSet<Life>,
    /// Which tasks were taken on.
    pub(crate) taken_on: BTreeSet<String>,
    /// Why `run` failed, and how often.
    pub(crate) refusals: BTreeMap<String, u32>,
    /// What each process's node knows of the tasks.
    pub(crate) known: BTreeMap<Life, BTreeMap<String, TaskState>>,
    /// What tasks brought, or why that cannot be had.
    pub(crate) outputs: BTreeMap<String, Result<u64, String>>,
    /// What nodes said happened, by kind.
    pub(crate) events: BTreeMap<String, u64>,
    /// Drains that left nothing behind.
    pub(crate) clean: u64,
    /// Drains that left something behind.
    pub(crate) unclean: Vec<String>,
    /// How many nodes started.
    pub(crate) started: u64,
    /// Nodes that did not start.
    pub(crate) failures: Vec<String>,
}

/// What all processes of a world share.
pub(crate) struct Site {
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) observer: Arc<Observer>,
    pub(crate) timing: Timing,
    /// Addresses of the nodes that are there at the start.
    pub(crate) seeds: Vec<Ipv4Addr>,
    pub(crate) planted: Option<Planted>,
    lives: Mutex<BTreeMap<String, (Life, mpsc::UnboundedSender<Order>)>>,
    told: Mutex<Told>,
}

impl Site {
    pub(crate) fn new(
        fabric: Arc<Fabric>,
        observer: Arc<Observer>,
        timing: Timing,
        seeds: Vec<Ipv4Addr>,
        planted: Option<Planted>,
    ) -> Self {
        Self {
            fabric,
            observer,
            timing,
            seeds,
            planted,
            lives: Mutex::default(),
            told: Mutex::default(),
        }
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life that a host is in, or was in last.
    pub(crate) fn life(&self, host: &str) -> Option<Life> {
        self.lives().get(host).map(|(life, _)| life.clone())
    }

    /// Gives a process an order, if there is one.
    pub(crate) fn order(&self, host: &str, order: Order) -> bool {
        self.lives().get(host).is_some_and(|(_, orders)| orders.send(order).is_ok())
    }

    fn begin(&self, host: &str) -> (Life, mpsc::UnboundedReceiver<Order>) {
        let mut lives = self.lives();
        let number = lives.get(host).map_or(0, |(life, _)| life.number + 1);
        let life = Life { host: host.to_owned(), number };
        let (orders, queue) = mpsc::unbounded_channel();
        lives.insert(host.to_owned(), (life.clone(), orders));
        (life, queue)
    }

    fn lives(&self) -> MutexGuard<'_, BTreeMap<String, (Life, mpsc::UnboundedSender<Order>)>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process, from its start to its end.
pub(crate) async fn process(site: Arc<Site>, host: String, address: Ipv4Addr) {
    let (life, mut orders) = site.begin(&host);
    let seeds: Vec<SocketAddr> =
        site.seeds.iter().map(|seed| SocketAddr::new((*seed).into(), PORT)).collect();
    let shared = site.seeds.first().filter(|_| site.planted == Some(Planted::SharedAddress));
    let address = shared.copied().unwrap_or(address);
    let started = Node::builder("simulated")
        .node_id(&host)
        .listen(SocketAddr::new(address.into(), PORT))
        .seeds(seeds)
        .key(Key::new([7; 32]))
        .revision("simulated")
        .timing(site.timing.clone())
        .task(Count { observer: site.observer.clone(), life: life.clone(), planted: site.planted })
        .network(Arc::new(SimNetwork::new(site.fabric.clone(), address)))
        .clock(Arc::new(SimClock(site.fabric.clone())))
        .executor(Executor::Current)
        .start()
        .await;
    let node = match started {
        Ok(node) => node,
        Err(error) => {
            site.told().failures.push(format!("{life}: {error}"));
            return;
        }
    };
    site.told().started += 1;
    tokio::spawn(listen(site.clone(), node.clone()));
    tokio::spawn(tell(site.clone(), node.clone(), life.clone()));
    while let Some(order) = orders.recv().await {
        match order {
            Order::Run { .. } if site.planted == Some(Planted::DeafNodes) => {}
            Order::Run { task, errand } => {
                tokio::spawn(run(site.clone(), node.clone(), task, errand));
            }
            Order::Output { task } => {
                tokio::spawn(fetch(site.clone(), node.clone(), task));
            }
            Order::Drain => {
                tokio::spawn(drain(site.clone(), node.clone(), life.clone()));
            }
        }
    }
}

async fn run(site: Arc<Site>, node: Node, task: String, errand: Errand) {
    let outcome = node.run::<Count>(&task, errand).await;
    let mut told = site.told();
    match outcome {
        Ok(_) => drop(told.taken_on.insert(task)),
        Err(error) => *told.refusals.entry(error.to_string()).or_default() += 1,
    }
}

async fn fetch(site: Arc<Site>, node: Node, task: String) {
    let output = node.get::<Count>(&task).output().await.map_err(|error| error.to_string());
    let mut told = site.told();
    // One good answer is enough, whoever gives it.
    if !matches!(told.outputs.get(&task), Some(Ok(_))) {
        told.outputs.insert(task, output);
    }
}

async fn drain(site: Arc<Site>, node: Node, life: Life) {
    let report = node.drain().await;
    if report.is_clean() {
        site.told().clean += 1;
    } else {
        site.told().unclean.push(format!("{life}: {report:?}"));
    }
    // Peers that did not hear the goodbye find out by themselves.
    if let Err(error) = node.leave().await {
        tracing::info!(target: "simulations", %life, %error, "left");
    }
    site.told().exited.insert(life);
}

/// Tells what the node knows, now and then.
async fn tell(site: Arc<Site>, node: Node, life: Life) {
    if node.wait_ready().await.is_err() {
        return;
    }
    site.told().ready.insert(life.clone());
    loop {
        let known = node.list("").into_iter().map(|entry| (entry.name.to_string(), entry.state));
        site.told().known.insert(life.clone(), known.collect());
        sleep(TELL_EVERY).await;
    }
}

/// Counts what the node says happened.
async fn listen(site: Arc<Site>, node: Node) {
    let mut events = node.events();
    while let Some(event) = events.next().await {
        let kind = match event {
            NodeEvent::Started { cause, .. } => format!("started: {cause:?}").to_lowercase(),
            NodeEvent::Conflict { .. } => "conflict".into(),
            NodeEvent::Parked { .. } => "parked".into(),
            NodeEvent::Quarantined { .. } => "quarantined".into(),
            NodeEvent::Unstoppable { .. } => "unstoppable".into(),
            NodeEvent::StateLost { .. } => "state lost".into(),
            NodeEvent::PeerGone { why, .. } => format!("peer gone: {why:?}").to_lowercase(),
            _ => continue,
        };
        *site.told().events.entry(kind).or_default() += 1;
    }
}
