//! The control loop: it alone holds a node's state, takes events in order, and carries out what the
//! machine decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::backlog::Backlog;
use super::board::Board;
use super::command::{Command, Farewell};
use super::conflicts::Conflicts;
use super::disk::Keep;
use super::draining::Draining;
use super::event::NodeEvent;
use super::metrics;
use super::peers::Peers;
use super::pending::Pending;
use super::queries::Queries;
use super::tally::Tally;
use crate::checkpoint::{Answer, QueueFull, StoreWorker};
use crate::clock::{self, SharedClock};
use crate::core::branch::Progress;
use crate::core::claim::Claim;
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::{CallError, Event};
use crate::core::machine::Machine;
use crate::core::record::NodeState;
use crate::core::time::Time;
use crate::gossip::{Gossip, GossipEvent};
use crate::link::{LinkEvent, Links};
use crate::rate::Seldom;
use crate::task::Runner;

/// Events taken from one source before the others have their turn.
const BATCH: usize = 1024;
/// The clock is looked at that often, whatever the timers say: they may stand still in suspend.
const LOOK: Duration = Duration::from_millis(50);
/// How long a node that leaves waits for its disk.
const FLUSH: Duration = Duration::from_secs(5);
/// How often the gauges are set, and the address book is saved if it has changed.
const GAUGES: Duration = Duration::from_secs(1);

/// Where events come from.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) gossip: mpsc::Receiver<GossipEvent>,
    pub(super) links: mpsc::Receiver<LinkEvent>,
    pub(super) runner: mpsc::Receiver<Event>,
    pub(super) store: mpsc::Receiver<Answer<Pending>>,
    /// What the seeds' name stands for now.
    pub(super) seeds: mpsc::Receiver<Vec<SocketAddr>>,
}

/// One event, from wherever.
#[derive(Debug)]
enum Input {
    Command(Command),
    Gossip(GossipEvent),
    /// No gossip is left that could say anything.
    Mute,
    Link(LinkEvent),
    Runner(Event),
    Store(Answer<Pending>),
    Seeds(Vec<SocketAddr>),
    /// All handles are gone.
    Deserted,
    /// The runtime is gone that tasks ran on.
    Lost,
    Time,
}

/// A caller that waits for the machine.
pub(super) type Caller = oneshot::Sender<Result<RunId, CallError>>;

/// See the module.
pub(super) struct Control {
    pub(super) cluster: String,
    pub(super) me: SessionId,
    pub(super) address: SocketAddr,
    pub(super) revision: String,
    pub(super) clock: SharedClock,
    pub(super) board: Arc<Board>,
    pub(super) _closing: Closing,
    pub(super) machine: Machine,
    pub(super) gossip: Gossip,
    pub(super) links: Links,
    pub(super) runner: Runner,
    pub(super) store: StoreWorker<Pending>,
    /// What the store was too busy to be asked for.
    pub(super) backlog: Backlog<QueueFull<Pending>>,
    pub(super) disk: Keep,
    pub(super) peers: Peers,
    /// What this node publishes.
    pub(super) own: BTreeMap<Name, Claim>,
    /// The newest committed progress of what is run or kept here, and the last of what ended here.
    pub(super) progress: BTreeMap<Name, (RunId, Progress)>,
    pub(super) calls: BTreeMap<u64, Caller>,
    pub(super) next_call: u64,
    pub(super) queries: Queries,
    pub(super) tally: Tally,
    pub(super) conflicts: Conflicts,
    pub(super) draining: Option<Draining>,
    /// Who waits for the goodbye.
    pub(super) goodbye: Vec<oneshot::Sender<Farewell>>,
    pub(super) ending: Option<Ending>,
    pub(super) gauged: Time,
    /// The tasks' runtime is gone.
    pub(super) lost: bool,
    pub(super) unanswered: Option<Unanswered>,
    /// How long a peer may be heard without a link before that is worth a word.
    pub(super) silence_floor: Duration,
    /// Gossip has ended for good.
    pub(super) mute: bool,
    /// About frames and records that were dropped.
    pub(super) bad_frames: Seldom,
    pub(super) bad_records: Seldom,
    /// About peers that no link to comes about.
    pub(super) unlinked: Seldom,
    /// About what could not be stored, or not be deleted.
    pub(super) unstored: Seldom,
    pub(super) unstored_elsewhere: Seldom,
    pub(super) undeleted: Seldom,
    /// Names whose run the disk did not take.
    pub(super) unrecorded: BTreeSet<Name>,
    pub(super) _resolving: Option<AbortOnDropHandle<()>>,
}

/// Seeds that nobody has answered at so far.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// For people.
    pub(super) tried: String,
    /// When that is worth a word.
    pub(super) until: Time,
}

/// How the loop ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// After a goodbye.
    Left,
    /// Abruptly.
    Closed,
    /// As abruptly, but not before what runs here has ended: nobody has asked for it.
    Deserted,
}

impl Control {
    /// Runs until told to leave or close, or until nobody holds the node any more.
    pub(super) async fn run(mut self, mut inputs: Inputs) {
        let worked = AssertUnwindSafe(self.work(&mut inputs)).catch_unwind().await;
        if worked.is_err() {
            tracing::error!(target: "handover::node", session = %self.me, "the control loop has panicked: the node ends as if it had crashed");
            self.ending = Some(Ending::Deserted);
        }
        // Nobody is to wait for an answer that will not come.
        let Inputs { commands, gossip, links, runner, store, seeds } = inputs;
        drop((commands, gossip, links, runner, seeds));
        self.end(store).await;
        if let Err(panic) = worked {
            resume_unwind(panic);
        }
    }

    async fn work(&mut self, inputs: &mut Inputs) {
        self.report_damage(self.disk.store.take_damage());
        self.act();
        while self.ending.is_none() {
            let first = self.next(inputs).await;
            self.take(first);
            // What is ready is taken together, so that the machine can answer it together.
            for input in ready(inputs) {
                self.take(input);
            }
            self.keep_time();
            self.ask_waiting();
            self.act();
        }
    }

    async fn next(&self, inputs: &mut Inputs) -> Input {
        let now = self.clock.boot();
        let wait = self.machine.next_timeout().since(now).min(LOOK);
        tokio::select! {
            biased;
            command = inputs.commands.recv() => command.map_or(Input::Deserted, Input::Command),
            Some(event) = inputs.links.recv() => Input::Link(event),
            Some(answer) = inputs.store.recv() => Input::Store(answer),
            Some(event) = inputs.runner.recv() => Input::Runner(event),
            event = inputs.gossip.recv(), if !self.mute => {
                event.map_or(Input::Mute, Input::Gossip)
            }
            Some(addresses) = inputs.seeds.recv() => Input::Seeds(addresses),
            () = self.runner.lost(), if !self.lost => Input::Lost,
            // A timer that is due already still waits for the next tick of the wheel.
            () = std::future::ready(()), if wait.is_zero() => Input::Time,
            () = sleep(wait) => Input::Time,
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Command(command) => self.on_command(command),
            Input::Gossip(event) => self.on_gossip(event),
            Input::Mute => self.on_gossip_ended("all of its tasks have ended".into(), false),
            Input::Link(event) => self.on_link(event),
            Input::Runner(event) => self.on_runner(event),
            Input::Store(answer) => self.on_store(answer),
            Input::Seeds(addresses) => self.on_seeds(&addresses),
            Input::Deserted => {
                tracing::warn!(target: "handover::node", "the last handle was dropped without `leave`: the node ends as if it had crashed");
                self.ending = Some(Ending::Deserted);
            }
            Input::Lost => self.on_runtime_lost(),
            Input::Time => {}
        }
    }

    /// Tells the machine.
    pub(super) fn feed(&mut self, event: Event) {
        self.machine.handle(clock::now(&*self.clock), event);
    }

    /// What is due by the clock alone.
    fn keep_time(&mut self) {
        let now = self.clock.boot();
        if now >= self.machine.next_timeout() {
            self.feed(Event::Tick);
        }
        self.queries.expire(now);
        for name in self.tally.expire(now) {
            self.on_overlap(name, None);
        }
        self.measure_overlaps(now);
        self.tell_conflicts(now);
        if self.draining.as_mut().is_some_and(|draining| draining.is_overdue(now)) {
            tracing::warn!(target: "handover::drain", "the drain budget is spent: steps are dropped, what is left is released");
            self.feed(Event::DrainNow);
        }
        if self.draining.as_ref().is_some_and(|draining| draining.is_hopeless(now)) {
            self.finish_drain(None);
        }
        if let Some(peers) = self.peers.changed() {
            metrics::peers(peers.iter().filter(|peer| peer.gone.is_none()).count());
            self.board.update(|view| {
                view.peers = peers;
                true
            });
        }
        if self.unanswered.as_ref().is_some_and(|seeds| now >= seeds.until) {
            self.report_seeds();
        }
        if now.since(self.gauged) >= GAUGES {
            self.gauged = now;
            self.set_gauges();
            self.report_unlinked(now);
            self.disk.save_members(self.gossip.address_book(), now, self.clock.wall_ms());
        }
    }

    /// A name stands for other addresses than before: nodes that came since may know nobody else.
    fn on_seeds(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            if *address != self.address && !self.peers.is_at(*address) {
                self.gossip.probe(*address);
            }
        }
    }

    /// Says once that nobody answers at the seeds; gossip goes on trying.
    fn report_seeds(&mut self) {
        if let Some(unanswered) = self.unanswered.take()
            && self.peers.is_empty()
        {
            let tried = unanswered.tried;
            tracing::warn!(target: "handover::gossip", tried, "no seed answers: check their addresses, the key and the cluster's name; trying on");
            self.board.tell(NodeEvent::SeedsUnreachable { tried });
        }
    }

    /// Says of each peer that is heard and not linked that it cannot be worked with.
    fn report_unlinked(&mut self, now: Time) {
        for (peer, address) in self.peers.unlinked(now, self.silence_floor) {
            if let Some(unsaid) = self.unlinked.speak(now) {
                tracing::warn!(target: "handover::link", unsaid, "{peer} is heard by datagrams and cannot be reached over TCP at {address}: open the port for TCP too, or mend `advertise`");
            }
            self.board.tell(NodeEvent::Unlinked { peer, address });
        }
    }

    fn set_gauges(&mut self) {
        self.tally.gauge(&self.own, &self.machine);
        metrics::names(self.machine.names());
    }

    /// Shows where the node stands.
    pub(super) fn show_state(&self, state: NodeState) {
        let draining = self.draining.is_some();
        let ready = matches!(state, NodeState::Up | NodeState::Cordoned) && !draining;
        self.board.update(|view| {
            let changed = (view.state, view.ready, view.draining) != (state, ready, draining);
            (view.state, view.ready, view.draining) = (state, ready, draining);
            changed
        });
    }

    /// Ends everything. Links listen to the last, so that nobody takes the node for dead before its
    /// tasks have stopped (Rule 5); a node that nobody controls any more falls silent before that, lest
    /// one closure keep all its tasks from others.
    async fn end(mut self, mut stored: mpsc::Receiver<Answer<Pending>>) {
        let left = self.ending == Some(Ending::Left);
        // Ends the tasks of a node that closes abruptly; one that left has none.
        let closures = self.runner.cancel_all();
        let deserted = self.ending == Some(Ending::Deserted);
        if deserted {
            self.board.close();
        }
        if left {
            // What was submitted, or waits for that, is still stored; then the channel ends.
            let asked = async {
                self.ask_waiting();
                while !self.backlog.is_empty() && stored.recv().await.is_some() {
                    self.ask_waiting();
                }
            };
            let asked = timeout(FLUSH, asked).await;
            drop(self.store);
            let flushed = async { while stored.recv().await.is_some() {} };
            if asked.is_err() || timeout(FLUSH, flushed).await.is_err() {
                tracing::error!(target: "handover::task", "the disk does not keep up: the last checkpoints may be missing on it");
            }
        }
        if !deserted {
            self.links.stop_listening();
        }
        self.gossip.shutdown().await;
        if deserted {
            closures.await;
            self.links.stop_listening();
        }
        self.links.shutdown().await;
        tracing::info!(target: "handover::node", session = %self.me, left, "the node has ended");
    }
}

/// Ends every stream and wait of the handles, however the loop ends.
pub(super) struct Closing(pub(super) Arc<Board>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Takes what is there already, from every source in turn: first what tasks wait for that do not run.
fn ready(inputs: &mut Inputs) -> VecDeque<Input> {
    fn drain<T>(from: &mut mpsc::Receiver<T>, to: &mut VecDeque<Input>, wrap: fn(T) -> Input) {
        to.extend(std::iter::from_fn(|| from.try_recv().ok()).take(BATCH).map(wrap));
    }
    let mut ready = VecDeque::new();
    drain(&mut inputs.commands, &mut ready, Input::Command);
    drain(&mut inputs.links, &mut ready, Input::Link);
    drain(&mut inputs.store, &mut ready, Input::Store);
    drain(&mut inputs.runner, &mut ready, Input::Runner);
    drain(&mut inputs.gossip, &mut ready, Input::Gossip);
    ready
}
