//! The task that owns the engine: starts it, feeds it, reads it, and starts it afresh when it ends.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat,
};
use rand::seq::IndexedRandom;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::record::{Load, NodeRecord};
use crate::net::Datagrams;

use super::catchup::{self, CatchUp};
use super::digest::{Screen, Shown, Step};
use super::exchange::Exchanges;
use super::pages::{PageKey, Pages};
use super::peers::Peers;
use super::pump::{Ends, Port, Pump};
use super::seal::Sealer;
use super::shared::{Shared, lock};
use super::transport::{ChannelTransport, LARGE, Note};
use super::view::{self, View};
use super::watch::{Part, Watch, outcome};
use super::{GossipConfig, GossipEvent};

/// Changes within this time travel together.
const COALESCE: Duration = Duration::from_millis(1);

/// Pushes are at least this far apart: each costs an exchange with every peer.
const PUSH_EVERY: Duration = Duration::from_millis(20);

/// A flood of changes travels in bulk: just then the node has more urgent things to do.
const COALESCE_FLOOD: Duration = Duration::from_millis(100);

/// So many changes at once are a flood.
const FLOOD: usize = 64;

/// How many peers a change is pushed to; rounds bring it to the others.
const PUSH_TO: usize = 8;

/// phi over which the engine's detector suspects; here it is elapsed time over mean interval.
const PHI: f64 = 8.0;

/// Starts both tasks.
pub(super) fn start(
    config: GossipConfig,
    socket: Arc<dyn Datagrams>,
    local: SocketAddr,
    events: mpsc::Sender<GossipEvent>,
    cancel: CancellationToken,
) -> (Arc<Shared>, JoinHandle<()>) {
    let now = config.clock.boot();
    let mut advertise = config.advertise;
    if advertise.port() == 0 {
        advertise.set_port(local.port());
    }
    let limits = &config.limits;
    let mut peers = Peers::new(
        config.session.clone(),
        &config.timing,
        limits.max_peers,
        &config.network_limits,
        config.advertised_within.clone(),
        now,
    );
    peers.add_own_address(local);
    peers.add_own_address(advertise);
    for seed in &config.seeds {
        peers.add_seed(*seed, now);
    }
    for (session, address) in &config.known {
        peers.remember(session, *address, now);
    }
    let unix_ms = config.clock.wall_ms().max(config.generation);
    let screen = Screen::new(limits.max_digest_bytes, unix_ms, now);
    let exchanges = Exchanges::new((config.timing.gossip_interval / 2).min(catchup::PATIENCE));
    let clock = Arc::clone(&config.clock);
    let shared = Arc::new(Shared::new(clock, peers, screen, exchanges));

    let (outbound, outbound_end) = mpsc::channel(limits.queue);
    let (notes, notes_end) = mpsc::channel(limits.queue * 4);
    let transport = ChannelTransport {
        shared: Arc::clone(&shared),
        outbound,
        inbox: Arc::default(),
        notes: notes.clone(),
        queue: limits.queue,
    };
    let ends = Ends {
        outbound: outbound_end,
        inbox: Arc::clone(&transport.inbox),
        notes,
        events: events.clone(),
    };
    let port = Port { network: Arc::clone(&config.network), local, socket: Some(socket) };
    let pump = Pump::new(
        Arc::clone(&shared),
        config.session.clone(),
        port,
        Sealer::new(&config.keyring, &config.cluster),
        limits,
        ends,
        cancel.clone(),
    );
    let runner = Runner {
        shared: Arc::clone(&shared),
        pages: Pages::new(limits.page_digits, limits.page_bytes),
        view: View::new(
            config.session.clone(),
            config.timing.gossip_interval,
            config.timing.dead_node_grace,
        ),
        record: None,
        load: None,
        generation: config.generation,
        advertise,
        config,
        transport,
        notes: notes_end,
        events,
        cancel,
        expected_version: 0,
        catch_up: CatchUp::default(),
    };
    (shared, tokio::spawn(runner.run(pump)))
}

struct Runner {
    shared: Arc<Shared>,
    config: GossipConfig,
    transport: ChannelTransport,
    notes: mpsc::Receiver<Note>,
    events: mpsc::Sender<GossipEvent>,
    cancel: CancellationToken,
    view: View,
    generation: u64,
    advertise: SocketAddr,
    /// This node's own truth.
    pages: Pages,
    record: Option<NodeRecord>,
    load: Option<Load>,
    /// The version of the engine's own state after the last write: a higher one is not mine.
    expected_version: u64,
    catch_up: CatchUp,
}

/// Why the engine is no longer driven.
enum End {
    Told,
    /// A part has ended, and is started again.
    Of(Part, String),
    /// What cannot be started again.
    Lost(String),
}

type Termination = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

impl Runner {
    async fn run(mut self, pump: Pump) {
        // However this task ends, the pump ends with it, and with both the stream of events.
        let _stop = self.cancel.clone().drop_guard();
        let mut pump = tokio::spawn(pump.keep(self.watch()));
        let mut watch = self.watch();
        loop {
            watch.begin();
            match self.run_engine(&mut pump).await {
                End::Told => {
                    // Polled to its end already, it must not be awaited again.
                    if !pump.is_finished() {
                        let _ = pump.await;
                    }
                    return;
                }
                End::Lost(reason) => {
                    tracing::error!(target: "handover::gossip", reason, "gossip has ended");
                    watch.tell(GossipEvent::Ended { reason, restarted: false }).await;
                    return;
                }
                End::Of(part, reason) => {
                    watch.ended(part, &reason).await;
                    let now = self.shared.clock.boot();
                    let next = self.generation.saturating_add(1);
                    self.generation = next.max(self.shared.clock.wall_ms());
                    (self.config.on_generation)(self.generation);
                    self.view.engine_restarted(now);
                    self.catch_up.clear();
                }
            }
        }
    }

    fn watch(&self) -> Watch {
        Watch::new(Arc::clone(&self.shared.clock), self.cancel.clone(), self.events.clone())
    }

    /// One life of the engine.
    async fn run_engine(&mut self, pump: &mut JoinHandle<()>) -> End {
        let handle = match outcome(self.spawn_engine()).await {
            Ok(Ok(handle)) => handle,
            Ok(Err(error)) => return End::Of(Part::Engine, error.to_string()),
            Err(panic) => return End::Of(Part::Runner, panic),
        };
        let end = outcome(self.drive(&handle, pump)).await;
        handle.abort();
        end.unwrap_or_else(|panic| End::Of(Part::Runner, panic))
    }

    /// Starts the engine with everything this node publishes already in it (Rule 1).
    async fn spawn_engine(&mut self) -> anyhow::Result<ChitchatHandle> {
        self.take_pending();
        let timing = &self.config.timing;
        let id = view::engine_id(&self.config.session, self.generation, self.advertise);
        let config = ChitchatConfig {
            chitchat_id: id,
            cluster_id: self.config.cluster.clone(),
            gossip_interval: timing.gossip_interval,
            listen_addr: self.config.listen,
            seed_nodes: self.config.seeds.iter().map(ToString::to_string).collect(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: PHI,
                initial_interval: timing.gossip_interval,
                dead_node_grace_period: timing.dead_node_grace,
                ..FailureDetectorConfig::default()
            },
            // Nothing is ever deleted; longer than the dead are remembered, in case a peer does.
            marked_for_deletion_grace_period: timing.dead_node_grace * 2,
            catchup_callback: None,
            // The engine's watcher clones every state it lists at every change; it lists none.
            // Who lives is read from the engine itself, which this predicate leaves alone.
            extra_liveness_predicate: Some(Box::new(|_| false)),
        };
        let mut values: Vec<(String, String)> = Vec::new();
        if let Some(record) = &self.record {
            values.push((view::RECORD.into(), view::to_text(record)));
        }
        if let Some(load) = &self.load {
            values.push((view::LOAD.into(), view::to_text(load)));
        }
        for key in self.pages.keys() {
            values.push((key.to_string(), self.pages.value(key)));
        }
        self.expected_version = values.len() as u64;
        spawn_chitchat(config, values, &self.transport).await
    }

    async fn drive(&mut self, handle: &ChitchatHandle, pump: &mut JoinHandle<()>) -> End {
        let shared = Arc::clone(&self.shared);
        #[cfg(test)]
        lock(&shared.engine).replace(handle.chitchat());
        let cancel = self.cancel.clone();
        let mut termination: Termination = Box::pin(handle.termination_watcher());
        let mut tick = tokio::time::interval(self.config.timing.gossip_interval / 2);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut push_at: Option<Instant> = None;
        let mut pushed = Instant::now();
        let mut retry_at = Instant::now();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return End::Told,
                ended = &mut *pump => return match ended {
                    _ if cancel.is_cancelled() => End::Told,
                    Ok(()) => End::Lost("what keeps the socket has ended".into()),
                    Err(error) => End::Lost(error.to_string()),
                },
                ended = &mut termination => return End::Of(Part::Engine, match ended {
                    Ok(()) => "the engine stopped".into(),
                    Err(error) => error.to_string(),
                }),
                () = shared.renew.notified() => handle.abort(),
                () = shared.changed.notified(), if push_at.is_none() => {
                    let flood = shared.pending_records() >= FLOOD;
                    let wait = if flood { COALESCE_FLOOD } else { COALESCE };
                    push_at = Some((Instant::now() + wait).max(pushed + PUSH_EVERY));
                }
                () = tokio::time::sleep_until(push_at.unwrap_or_else(Instant::now)),
                    if push_at.is_some() =>
                {
                    push_at = None;
                    pushed = Instant::now();
                    self.write(handle).await;
                    self.push(handle);
                }
                Some(note) = self.notes.recv() => self.note(handle, note).await,
                () = tokio::time::sleep_until(retry_at), if self.catch_up.is_waiting() => {
                    retry_at = Instant::now() + catchup::PATIENCE;
                    self.catch_up.retry(self.shared.clock.boot());
                    self.pull(handle);
                }
                _ = tick.tick() => self.tick(handle).await,
            }
            #[cfg(test)]
            shared.trip(Part::Runner);
        }
    }

    /// Takes what is to be published into the own truth; returns the pages that changed.
    fn take_pending(&mut self) -> BTreeSet<PageKey> {
        let pending = self.shared.take_pending();
        if pending.record.is_some() {
            self.record = pending.record;
        }
        if pending.load.is_some() {
            self.load = pending.load;
        }
        let mut changed = BTreeSet::new();
        for ((table, name), record) in pending.records {
            self.pages.put(table, &name, record, &mut changed);
        }
        changed
    }

    async fn write(&mut self, handle: &ChitchatHandle) {
        let changed = self.take_pending();
        let chitchat = handle.chitchat();
        let mut chitchat = chitchat.lock().await;
        if self.is_foreign(&mut chitchat) {
            self.overwrite(&mut chitchat);
            return;
        }
        let state = chitchat.self_node_state();
        if let Some(record) = &self.record {
            state.set(view::RECORD, view::to_text(record));
        }
        if let Some(load) = &self.load {
            state.set(view::LOAD, view::to_text(load));
        }
        for key in &changed {
            state.set(key, self.pages.value(key));
        }
        self.expected_version = state.max_version();
    }

    /// Whether somebody else's delta has written this node's state: every write raises its version.
    fn is_foreign(&self, chitchat: &mut Chitchat) -> bool {
        chitchat.self_node_state().max_version() != self.expected_version
    }

    /// Puts the own truth over whatever stands in the engine.
    fn overwrite(&mut self, chitchat: &mut Chitchat) {
        let state = chitchat.self_node_state();
        metrics::counter!("handover_gossip_foreign_writes_total").increment(1);
        tracing::warn!(
            target: "handover::gossip",
            "a peer had written what only this node may write: it was overwritten"
        );
        if state.max_version() > u64::MAX / 2 {
            // The engine would overflow; a new generation starts from 1.
            self.shared.renew.notify_one();
            return;
        }
        let keys: Vec<String> =
            state.key_values_including_deleted().map(|(key, _)| key.to_owned()).collect();
        // Emptied first, so that even an equal value gets a version of this node's own.
        for key in keys {
            state.set(key, "");
        }
        if let Some(record) = &self.record {
            state.set(view::RECORD, view::to_text(record));
        }
        if let Some(load) = &self.load {
            state.set(view::LOAD, view::to_text(load));
        }
        for key in self.pages.keys() {
            state.set(key, self.pages.value(key));
        }
        self.expected_version = state.max_version();
    }

    /// Gossips at once with all peers, or with some where there are many.
    fn push(&self, handle: &ChitchatHandle) {
        let peers = lock(&self.shared.peers).reachable(self.shared.clock.boot());
        for address in peers.choose_multiple(&mut rand::rng(), PUSH_TO) {
            self.gossip(handle, *address);
        }
    }

    fn gossip(&self, handle: &ChitchatHandle, address: SocketAddr) {
        // It fails only when the engine has ended, which is noticed elsewhere.
        if !self.shared.is_fenced() {
            let _ = handle.gossip(address);
        }
    }

    /// Takes in this note and those that wait behind it.
    async fn note(&mut self, handle: &ChitchatHandle, first: Note) {
        let now = self.shared.clock.boot();
        let mut processed = Vec::new();
        let mut next = Some(first);
        while let Some(note) = next {
            match note {
                Note::Returned(address) => {
                    if self.catch_up.returned(address, now) {
                        self.gossip(handle, address);
                    }
                }
                Note::Processed(message) => processed.push(message),
            }
            next = self.notes.try_recv().ok();
        }
        self.poll(handle).await;
        for message in processed {
            if message.step == Step::SynAck {
                let missing = missing(handle, &message.shown).await;
                self.catch_up.replied(message.from, missing);
                for event in self.view.shown(&message.session, &message.shown, now) {
                    self.tell(event).await;
                }
            } else if message.len > LARGE {
                self.catch_up.large(message.from);
            }
        }
        self.pull(handle);
    }

    /// Gossips out of turn with whom there is more to be had from.
    fn pull(&mut self, handle: &ChitchatHandle) {
        if let Some(next) = self.catch_up.next(self.shared.clock.boot()) {
            self.gossip(handle, next);
        }
    }

    async fn tick(&mut self, handle: &ChitchatHandle) {
        let known: BTreeSet<ChitchatId> = {
            let chitchat = handle.chitchat();
            let mut chitchat = chitchat.lock().await;
            if self.is_foreign(&mut chitchat) {
                self.overwrite(&mut chitchat);
            }
            chitchat.node_states().keys().cloned().collect()
        };
        let now = self.shared.clock.boot();
        let one_way = lock(&self.shared.peers).one_way(now);
        for (direction, count) in [("unechoed", one_way.unechoed), ("unheard", one_way.unheard)] {
            metrics::gauge!("handover_gossip_one_way", "direction" => direction).set(count as f64);
        }
        let lately = now.back(self.config.timing.silence_floor);
        lock(&self.shared.screen).retain(&known, lately);
        let incomplete = self.poll(handle).await;
        for address in incomplete.choose_multiple(&mut rand::rng(), PUSH_TO) {
            self.gossip(handle, *address);
        }
    }

    /// Tells what is new; returns the addresses of peers that have published more than is here.
    async fn poll(&mut self, handle: &ChitchatHandle) -> Vec<SocketAddr> {
        let now = self.shared.clock.boot();
        let found = {
            let chitchat = handle.chitchat();
            let chitchat = chitchat.lock().await;
            self.view.poll(&chitchat, now)
        };
        let located = {
            let mut peers = lock(&self.shared.peers);
            for (session, address) in &found.alive {
                peers.advertised(session, *address, now);
            }
            for event in &found.events {
                if let GossipEvent::Forgotten { of } = event {
                    peers.mislay(of);
                }
            }
            peers.take_located()
        };
        for (of, address) in located {
            self.tell(GossipEvent::Located { of, address }).await;
        }
        for event in found.events {
            self.tell(event).await;
        }
        found.incomplete
    }

    /// Waits for the node to take an event, unless it is told to end.
    async fn tell(&self, event: GossipEvent) {
        tokio::select! {
            () = self.cancel.cancelled() => {}
            _ = self.events.send(event) => {}
        }
    }
}

/// How many versions a peer has shown that the engine does not hold, of nodes that it would take: it
/// refuses corpses that it has forgotten.
async fn missing(handle: &ChitchatHandle, shown: &[Shown]) -> u64 {
    let chitchat = handle.chitchat();
    let chitchat = chitchat.lock().await;
    let states = chitchat.node_states();
    shown.iter().fold(0, |missing, Shown { id, version }| {
        let held = states.get(id).map_or(*version, |state| state.max_version());
        missing.saturating_add(version.saturating_sub(held))
    })
}
