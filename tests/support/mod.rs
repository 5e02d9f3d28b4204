//! Clusters of real processes that keep ledgers, and what can be said of the ledgers afterwards.

#[path = "../../examples/ledger_node/ledger.rs"]
pub mod ledger;
#[path = "../../examples/rolling_deploy/meter.rs"]
pub mod meter;
#[path = "../../examples/rolling_deploy/process.rs"]
pub mod process;
#[path = "../../examples/ledger_node/protocol.rs"]
pub mod protocol;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use self::ledger::Ledger;
use self::meter::{Cause, Measured, ProcessEnd, Step};
use self::process::Process;
use self::protocol::{Command, Event};

/// Generous: the machine may be busy with other tests.
const SOON: Duration = Duration::from_secs(30);

/// Runs a test with a limit on its time.
pub async fn bounded(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(58), test).await.expect("the test is stuck");
}

/// What a node process is started with, beyond its id.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Whether it keeps its checkpoints on disk.
    pub durable: bool,
    /// Its drain budget.
    pub budget: Option<Duration>,
    /// How long it lets a step go on that is to stop.
    pub stop_grace: Option<Duration>,
    /// Its silence floor.
    pub silence_floor: Option<Duration>,
    /// Whether it can be left without room on its disk ([`Cluster::fill_disk`]).
    pub may_lack_room: bool,
}

/// No file of a node whose disk is full may grow beyond that: short logs can, and no database.
const FULL: u64 = 24 * 1024;

/// A place where a ledger is, as some node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The node; none if the name is unknown.
    pub node: Option<String>,
    /// What it does with the ledger.
    pub state: Option<String>,
    /// Lines written, as of the last progress.
    pub done: u64,
}

/// The processes of a cluster, and its ledgers.
#[derive(Debug)]
pub struct Cluster {
    directory: TempDir,
    setup: Setup,
    nodes: BTreeMap<String, Member>,
    ledgers: BTreeMap<String, Ledger>,
    ends: Vec<ProcessEnd>,
}

#[derive(Debug)]
struct Member {
    process: Process<Event>,
    address: SocketAddr,
}

/// How a node process ended that was told to.
#[derive(Debug)]
pub struct Stopped {
    /// With this status.
    pub status: ExitStatus,
    /// The library's report.
    pub report: Option<Value>,
    /// After the signal.
    pub after: Duration,
}

impl Stopped {
    /// A count of the library's report: a number, or the length of a list.
    pub fn reported(&self, what: &str) -> u64 {
        let value = self.report.as_ref().and_then(|report| report.get(what));
        let list = value.and_then(Value::as_array).map(|list| list.len() as u64);
        list.or_else(|| value.and_then(Value::as_u64)).expect("a count in the report")
    }
}

impl Cluster {
    /// Without any process yet.
    pub fn empty(setup: Setup) -> Self {
        let directory = tempfile::Builder::new().prefix("ledgers-").tempdir();
        let directory = directory.expect("a temporary directory");
        for below in ["logs", "ledgers", "data"] {
            fs::create_dir(directory.path().join(below)).expect("a directory");
        }
        Self {
            directory,
            setup,
            nodes: BTreeMap::new(),
            ledgers: BTreeMap::new(),
            ends: Vec::new(),
        }
    }

    /// Of these nodes, all of them up.
    pub async fn of(ids: &[&str], setup: Setup) -> Self {
        let mut cluster = Self::empty(setup);
        cluster.start_all(ids).await;
        cluster
    }

    /// Starts nodes, each knowing those before it, and waits until all are up.
    pub async fn start_all(&mut self, ids: &[&str]) {
        for id in ids {
            self.launch(id).await;
        }
        for id in ids {
            self.ready(id).await;
        }
    }

    /// Starts one node and waits until it is up.
    pub async fn start(&mut self, id: &str) {
        self.start_all(&[id]).await;
    }

    async fn launch(&mut self, id: &str) {
        let mut command = tokio::process::Command::new(node_program());
        if self.setup.may_lack_room {
            // A file that is too long is an error then, and no signal that kills.
            command = tokio::process::Command::new("sh");
            command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]).arg(node_program());
        }
        command.args(["--id", id, "--logs"]).arg(self.directory.path().join("logs"));
        for peer in self.nodes.values() {
            command.args(["--seed", &peer.address.to_string()]);
        }
        if self.setup.durable {
            command.arg("--data-dir").arg(self.data_dir(id));
        }
        if let Some(budget) = self.setup.budget {
            command.args(["--budget-ms", &budget.as_millis().to_string()]);
        }
        if let Some(grace) = self.setup.stop_grace {
            command.args(["--stop-grace-ms", &grace.as_millis().to_string()]);
        }
        if let Some(floor) = self.setup.silence_floor {
            command.args(["--silence-floor-ms", &floor.as_millis().to_string()]);
        }
        let mut process = Process::spawn(id, command).expect("a process");
        let address = process
            .expect(SOON, "where it listens", |event| match event {
                Event::Listening { address } => Some(address),
                _ => None,
            })
            .await
            .expect("a node that listens");
        self.nodes.insert(id.to_owned(), Member { process, address });
    }

    async fn ready(&mut self, id: &str) {
        let ready = |event| matches!(event, Event::Ready).then_some(());
        self.hear(id, "that it is up", ready).await;
    }

    /// Where a node keeps its checkpoints.
    pub fn data_dir(&self, id: &str) -> PathBuf {
        self.directory.path().join("data").join(id)
    }

    /// Describes a ledger of this cluster.
    pub fn ledger(&self, name: &str, last: u64, delay_ms: u64) -> Ledger {
        Ledger {
            path: self.directory.path().join("ledgers").join(name),
            last,
            delay_ms,
            pad: 0,
            force_every: 0,
        }
    }

    /// Starts ledgers, through each node in turn.
    pub async fn run(&mut self, ledgers: BTreeMap<String, Ledger>) {
        let nodes: Vec<String> = self.nodes.keys().cloned().collect();
        for (turn, (name, ledger)) in ledgers.into_iter().enumerate() {
            let node = nodes[turn % nodes.len()].clone();
            self.run_on(&node, &name, ledger).await;
        }
    }

    /// Starts `count` ledgers that are alike.
    pub async fn run_alike(&mut self, count: usize, like: impl Fn(&Self, &str) -> Ledger) {
        let name = |number| format!("l{number:02}");
        let ledgers = (0..count).map(|number| (name(number), like(self, &name(number))));
        let ledgers = ledgers.collect();
        self.run(ledgers).await;
    }

    /// Starts one ledger through one node; its run.
    pub async fn run_on(&mut self, node: &str, name: &str, ledger: Ledger) -> String {
        self.ledgers.insert(name.to_owned(), ledger.clone());
        self.tell(node, &run(name, ledger)).await;
        self.accepted(node, name).await
    }

    /// Starts one ledger through all nodes at once; the run that each of them was given.
    pub async fn run_everywhere(&mut self, name: &str, ledger: Ledger) -> Vec<String> {
        self.ledgers.insert(name.to_owned(), ledger.clone());
        let nodes: Vec<String> = self.nodes.keys().cloned().collect();
        for node in &nodes {
            self.tell(node, &run(name, ledger.clone())).await;
        }
        let mut runs = Vec::new();
        for node in &nodes {
            runs.push(self.accepted(node, name).await);
        }
        runs
    }

    async fn accepted(&mut self, node: &str, wanted: &str) -> String {
        let answer = self
            .hear(node, "that it took the ledger", |event| match event {
                Event::Accepted { name, run } if name == wanted => Some(Ok(run)),
                Event::Refused { name, why } if name == wanted => Some(Err(why)),
                _ => None,
            })
            .await;
        answer.unwrap_or_else(|why| panic!("{node} did not take {wanted}: {why}"))
    }

    /// Where a ledger is, as one node sees it.
    pub async fn place(&mut self, node: &str, wanted: &str) -> Place {
        let name = wanted.to_owned();
        self.tell(node, &Command::Whereis { name }).await;
        self.hear(node, "where the ledger is", |event| match event {
            Event::Place { name, node, state, done } if name == wanted => {
                Some(Place { node, state, done })
            }
            _ => None,
        })
        .await
    }

    /// How many ledgers run on `id`, as `via` sees it.
    pub async fn runs_on(&mut self, via: &str, id: &str) -> usize {
        running_on(&self.places(via).await, id)
    }

    /// The same of a node that should run some, once `via` has heard that whatever runs has begun.
    pub async fn must_run_on(&mut self, via: &str, id: &str) -> usize {
        let begun = Instant::now();
        loop {
            let places = self.places(via).await;
            let starting = |place: &Place| place.state.as_deref() == Some("starting");
            let count = running_on(&places, id);
            if count > 0 && !places.values().any(starting) {
                return count;
            }
            assert!(begun.elapsed() < SOON, "{id} should run some, but {via} sees {places:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where every ledger is, as one node sees it.
    async fn places(&mut self, via: &str) -> BTreeMap<String, Place> {
        let mut places = BTreeMap::new();
        for name in self.ledgers.clone().into_keys() {
            let place = self.place(via, &name).await;
            places.insert(name, place);
        }
        places
    }

    /// Waits until every ledger has at least so many lines, so that there is something to lose.
    pub async fn written(&self, lines: usize) {
        let begun = Instant::now();
        while self.ledgers.keys().any(|name| self.lines(name).len() < lines) {
            assert!(begun.elapsed() < SOON, "the ledgers do not grow");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Says something to a node.
    pub async fn tell(&mut self, node: &str, command: &Command) {
        let node = self.nodes.get_mut(node).expect("a node that runs");
        node.process.send(command).await.expect("a node that listens");
    }

    /// Waits for a node to say something; what it says before is lost.
    pub async fn hear<T>(
        &mut self,
        node: &str,
        what: &str,
        wanted: impl FnMut(Event) -> Option<T>,
    ) -> T {
        let node = self.nodes.get_mut(node).expect("a node that runs");
        let heard = node.process.expect(SOON, what, wanted).await;
        heard.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Everything that a node has said up to now and that nobody has waited for.
    pub fn heard(&mut self, node: &str) -> Vec<Event> {
        let node = self.nodes.get_mut(node).expect("a node that runs");
        std::iter::from_fn(|| node.process.try_event()).collect()
    }

    /// Waits until all ledgers have finished, asking one node.
    pub async fn finish(&mut self, via: &str) {
        for (name, ledger) in self.ledgers.clone() {
            let output = self.output(via, &name).await;
            assert_eq!(output, Ok(ledger.last), "{name}");
        }
    }

    /// Waits for the end of one ledger.
    pub async fn output(&mut self, via: &str, wanted: &str) -> Result<u64, String> {
        let name = wanted.to_owned();
        self.tell(via, &Command::Await { name }).await;
        let node = self.nodes.get_mut(via).expect("a node that runs");
        let ended = |event| match event {
            Event::Ended { name, output } if name == wanted => Some(output),
            _ => None,
        };
        let within = Duration::from_secs(50);
        let ended = node.process.expect(within, "how the ledger ended", ended).await;
        ended.unwrap_or_else(|error| panic!("{wanted}: {error}"))
    }

    /// Sends a signal to one process.
    pub fn signal(&self, id: &str, signal: Signal) -> u64 {
        let node = self.nodes.get(id).expect("a node that runs");
        node.process.signal(signal).expect("a process to signal")
    }

    /// Leaves a node without room for any checkpoint.
    #[cfg(target_os = "linux")]
    pub fn fill_disk(&self, id: &str) {
        use rustix::process::{Resource, Rlimit, prlimit};
        let node = self.nodes.get(id).expect("a node that runs");
        let full = Rlimit { current: Some(FULL), maximum: Some(FULL) };
        let pid = node.process.pid().and_then(|pid| rustix::process::Pid::from_raw(pid as i32));
        prlimit(Some(pid.expect("a process")), Resource::Fsize, full).expect("a limit");
    }

    /// Kills a process.
    pub async fn kill(&mut self, id: &str) {
        let mut node = self.nodes.remove(id).expect("a node that runs");
        let end = node.process.kill().await.expect("a process to kill");
        self.ends.push(end);
    }

    /// Tells a process to stop, and waits until it has.
    pub async fn stop(&mut self, id: &str) -> Stopped {
        let signalled = self.signal(id, Signal::TERM);
        self.stopped(id, signalled).await
    }

    /// Waits until a process has stopped that was told to.
    pub async fn stopped(&mut self, id: &str, signalled: u64) -> Stopped {
        let mut node = self.nodes.remove(id).expect("a node that runs");
        let status = node.process.exited(Duration::from_secs(40)).await;
        let status = status.unwrap_or_else(|error| panic!("{error}"));
        let exited = meter::now();
        self.ends.push(ProcessEnd {
            node: id.to_owned(),
            cause: Cause::Sigterm,
            signalled,
            exited,
        });
        let mut report = None;
        while let Some(event) = node.process.event().await {
            if let Event::Drained { report: said } = event {
                report = Some(said);
            }
        }
        Stopped { status, report, after: Duration::from_nanos(exited - signalled) }
    }

    /// The lines of a ledger.
    pub fn lines(&self, name: &str) -> Vec<u64> {
        let Some(ledger) = self.ledgers.get(name) else {
            return Vec::new();
        };
        let text = fs::read_to_string(&ledger.path).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| line.trim_end().parse().expect("a number")).collect()
    }

    /// Every ledger is `seq 1 LAST`, line by line.
    pub fn assert_exact(&self) {
        for (name, ledger) in &self.ledgers {
            let lines = self.lines(name);
            assert!(
                lines.iter().copied().eq(1..=ledger.last),
                "{name} should be 1 to {}: {}",
                ledger.last,
                flaws(&lines)
            );
        }
    }

    /// Every ledger has all lines, and each time it went back it went back by at most `most` lines
    /// and not to the beginning; how often one did.
    pub fn assert_complete(&self, most: u64) -> usize {
        let mut times = 0;
        for (name, ledger) in &self.ledgers {
            let lines = self.lines(name);
            let mut highest = 0;
            for line in &lines {
                assert!(*line <= highest + 1, "{name} left lines out: {}", flaws(&lines));
                if *line + most <= highest {
                    panic!("{name} went back by more than {most}: {}", flaws(&lines));
                }
                highest = highest.max(*line);
            }
            assert_eq!(highest, ledger.last, "{name}: {}", flaws(&lines));
            times += lines.windows(2).filter(|pair| pair[1] <= pair[0]).count();
        }
        times
    }

    /// What the meter makes of the step logs. Fails if anything ever ran twice at once.
    pub fn measure(&self) -> Measured {
        let measured = Measured::new(&self.steps(), &self.ends, meter::now());
        let together: Vec<_> = measured.moves.iter().filter(|m| m.overlap > 0).collect();
        assert_eq!(measured.overlap, 0, "ran twice at once: {together:?}");
        measured
    }

    /// The merged step logs.
    pub fn steps(&self) -> Vec<Step> {
        meter::read(&self.directory.path().join("logs")).expect("the step logs")
    }
}

fn running_on(places: &BTreeMap<String, Place>, id: &str) -> usize {
    let here = |place: &&Place| place.node.as_deref() == Some(id);
    let running = |place: &&Place| place.state.as_deref() == Some("running");
    places.values().filter(here).filter(running).count()
}

fn run(name: &str, ledger: Ledger) -> Command {
    Command::Run { name: name.to_owned(), ledger }
}

/// Where a ledger departs from counting, for people.
fn flaws(lines: &[u64]) -> String {
    let mut flaws: Vec<String> = Vec::new();
    let mut before = 0;
    for line in lines {
        if *line != before + 1 {
            flaws.push(format!("{line} after {before}"));
        }
        before = *line;
    }
    format!("{} lines up to {before}; {}", lines.len(), flaws.join(", "))
}

/// The node program: built beside this test, as all examples are.
fn node_program() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let profile = test.ancestors().find(|path| path.ends_with("deps"));
    let profile = profile.and_then(Path::parent).expect("target/PROFILE");
    let name = format!("ledger_node{}", std::env::consts::EXE_SUFFIX);
    let program = profile.join("examples").join(name);
    assert!(
        program.exists(),
        "{} is not built: `cargo test` builds it, or `cargo build --example ledger_node`",
        program.display()
    );
    program
}
