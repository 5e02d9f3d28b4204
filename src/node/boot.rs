//! Starting: from checked settings to a control loop that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::backlog::Backlog;
use super::board::Board;
use super::builder::Config;
use super::command::Command;
use super::conflicts::Conflicts;
use super::control::{Closing, Control, Inputs, Unanswered};
use super::disk::{self, Disk};
use super::error::StartError;
use super::executor::Running;
use super::intake::MAX_WAITING;
use super::peers::Peers;
use super::queries::Queries;
use super::seeds::Seeds;
use super::tally::Tally;
use super::{Inner, Node, fresh_uuid, metrics, revision};
use crate::clock;
use crate::core::claim::Mode;
use crate::core::ids::SessionId;
use crate::core::limits;
use crate::core::machine::{Machine, MachineConfig};
use crate::core::record::NodeRecord;
use crate::gossip::{Gossip, GossipConfig, GossipError, GossipEvent, GossipLimits};
use crate::link::{LinkConfig, LinkError, LinkEvent, LinkLimits, Links};
use crate::rate::Seldom;
use crate::task::{Kinds, Runner, RunnerConfig, Throttle};

/// Requests of handles that wait for the control loop; a handle waits beyond that.
const COMMANDS: usize = 1024;
/// Events of each source that wait for the control loop; the source waits beyond that.
const EVENTS: usize = 4096;
/// How often a free port is looked for: another process can take it between its two sockets.
const PORT_ATTEMPTS: usize = 16;

/// What a started control loop tells its node.
struct Up {
    session: SessionId,
    address: SocketAddr,
}

/// Starts a node.
pub(super) async fn start(mut config: Config) -> Result<Node, StartError> {
    let tasks = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
    metrics::describe();
    let settings = &mut config.settings;
    let kinds = Arc::new(std::mem::take(&mut settings.kinds));
    let board = Arc::new(Board::new(settings.event_backlog));
    let (commands, queue) = mpsc::channel(COMMANDS);
    let (cluster, clock) = (settings.cluster.clone(), settings.clock.clone());
    let (drain_budget, accept_delay) = (settings.drain_budget, settings.accept_delay);
    let booting = match settings.data_dir {
        Some(_) => settings.timing.solo_after + settings.timing.boot_wait,
        None => Duration::ZERO,
    };
    let convergence = settings.timing.convergence();
    let (call_timeout, executor) = (settings.call_timeout, settings.executor);

    let (ready, started) = oneshot::channel();
    let parts =
        Parts { config, tasks, kinds: kinds.clone(), board: board.clone(), commands: queue };
    let running = Running::spawn(executor, launch(parts, ready)).map_err(StartError::Thread)?;
    let up = match started.await {
        Ok(Ok(up)) => up,
        Ok(Err(error)) => {
            running.join().await;
            return Err(error);
        }
        Err(_) => {
            return Err(StartError::Thread(io::Error::other(
                "it ended before the node had started",
            )));
        }
    };
    Ok(Node(Arc::new(Inner {
        cluster,
        session: up.session,
        address: up.address,
        clock,
        commands,
        board,
        drain_budget,
        accept_delay,
        call_timeout,
        started: Instant::now(),
        booting,
        convergence,
        kinds,
        running,
    })))
}

/// Everything a control loop is made of that exists before it.
struct Parts {
    config: Config,
    tasks: Handle,
    kinds: Arc<Kinds>,
    board: Arc<Board>,
    commands: mpsc::Receiver<Command>,
}

/// Starts and runs the control loop.
async fn launch(parts: Parts, ready: oneshot::Sender<Result<Up, StartError>>) {
    match assemble(parts).await {
        Ok((control, inputs)) => {
            let up = Up { session: control.me.clone(), address: control.address };
            // Whoever wanted the node may have stopped waiting: then it ends before it began.
            if ready.send(Ok(up)).is_ok() {
                Box::pin(control.run(inputs)).await;
            }
        }
        Err(error) => drop(ready.send(Err(error))),
    }
}

async fn assemble(parts: Parts) -> Result<(Control, Inputs), StartError> {
    let Parts { config, tasks, kinds, board, commands } = parts;
    let settings = &config.settings;
    let (clock, network) = (settings.clock.clone(), settings.network.clone());
    let wall_ms = clock.wall_ms();
    let me = SessionId::new(config.node_id.clone(), fresh_uuid(wall_ms));
    let revision = match &settings.revision {
        Some(label) => label.clone(),
        // Reads the whole executable.
        None => spawn_blocking(revision::detect).await.unwrap_or_else(|_| "unknown".into()),
    };
    let revision = limits::clipped(revision, limits::TEXT);
    let rollout = match settings.rollout {
        Some(rollout) => Some(rollout),
        None => revision::rollout()?,
    };
    let disk = disk::open(settings.data_dir.as_deref(), &settings.cluster, &me, wall_ms).await?;
    let since_ms = disk.has_had(&revision, wall_ms).await?;
    let seeds = settings.seeds.resolve(&*network).await?;
    let (found_seeds, seed_inputs) = mpsc::channel(1);
    let resolving = settings.seeds.keep_resolving(network.clone(), found_seeds);
    let towards = match settings.seeds {
        // The first node's name stands for nothing yet: which of its addresses the route out has.
        Seeds::Dns(_) => seeds.first().copied().or_else(|| Some(somewhere(config.listen))),
        _ => seeds.first().copied(),
    };
    let advertise = advertised(config.listen, config.advertise, towards)?;

    let (gossip_events, gossip_inputs) = mpsc::channel(EVENTS);
    let (link_events, link_inputs) = mpsc::channel(EVENTS);
    let events = (gossip_events, link_events);
    let sockets = open_sockets(&config, &me, &disk, &seeds, advertise, events).await?;
    let address = SocketAddr::new(advertise.ip(), advertised_port(advertise, &sockets.links));

    let record = NodeRecord {
        address,
        revision: revision.clone(),
        since_ms,
        rollout,
        kinds: kinds.versions(),
        max_running: settings.max_running,
        succeeds: disk.succeeds,
    };
    sockets.gossip.set_record(&record);
    let (kind_limits, finish_here) = (kinds.limits_by_kind(), kinds.finished_here());
    let machine = Machine::new(
        clock::now(&*clock),
        MachineConfig {
            me: me.clone(),
            record,
            timing: settings.timing.clone(),
            mode: Mode::Available,
            replicas: settings.replicas,
            seeds: settings.seeds.any(),
            members: disk.members.iter().map(|(session, _)| session.clone()).collect(),
            boot: disk.offers,
            durable: disk.keep.is_durable(),
            known_dead: settings.known_dead,
            kind_limits,
            finish_here,
            max_names: settings.max_names,
            on_lost_state: settings.on_lost_state,
        },
    );
    let (runner_events, runner_inputs) = mpsc::channel(EVENTS);
    let runner = Runner::new(
        RunnerConfig {
            handle: tasks,
            clock: clock.clone(),
            revision: revision.clone(),
            kinds,
            throttle: Throttle {
                interval: settings.checkpoint_interval,
                bytes: settings.checkpoint_bytes,
            },
            slots: settings.transfer_slots,
            drain_budget: settings.drain_budget,
            closure_grace: settings.timing.stop_grace,
        },
        runner_events,
    );
    tracing::info!(target: "handover::node", session = %me, %address, revision, "listening");
    let now = clock.boot();
    let control = Control {
        cluster: settings.cluster.clone(),
        me,
        address,
        revision,
        clock,
        _closing: Closing(board.clone()),
        board,
        machine,
        gossip: sockets.gossip,
        links: sockets.links,
        runner,
        store: disk.worker,
        backlog: Backlog::new(MAX_WAITING),
        disk: disk.keep,
        peers: Peers::default(),
        own: BTreeMap::new(),
        progress: BTreeMap::new(),
        calls: BTreeMap::new(),
        next_call: 0,
        queries: Queries::default(),
        conflicts: Conflicts::default(),
        tally: Tally::default(),
        draining: None,
        goodbye: Vec::new(),
        ending: None,
        gauged: now,
        lost: false,
        unanswered: settings.seeds.any().then(|| Unanswered {
            tried: settings.seeds.tried(&seeds),
            until: now + settings.timing.silence_floor,
        }),
        silence_floor: settings.timing.silence_floor,
        mute: false,
        bad_frames: Seldom::default(),
        bad_records: Seldom::default(),
        unlinked: Seldom::default(),
        unstored: Seldom::default(),
        unstored_elsewhere: Seldom::default(),
        undeleted: Seldom::default(),
        unrecorded: BTreeSet::new(),
        _resolving: resolving,
    };
    let inputs = Inputs {
        commands,
        gossip: gossip_inputs,
        links: link_inputs,
        runner: runner_inputs,
        store: disk.replies,
        seeds: seed_inputs,
    };
    Ok((control, inputs))
}

/// Both ways to the outside, on one address.
struct Sockets {
    gossip: Gossip,
    links: Links,
}

/// Opens the stream listener first: whoever hears our datagrams may connect at once, and a refusal
/// would look like a death.
async fn open_sockets(
    config: &Config,
    me: &SessionId,
    disk: &Disk,
    seeds: &[SocketAddr],
    advertise: SocketAddr,
    (gossip_events, link_events): (mpsc::Sender<GossipEvent>, mpsc::Sender<LinkEvent>),
) -> Result<Sockets, StartError> {
    let settings = &config.settings;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let links = Links::start(
            LinkConfig {
                cluster: settings.cluster.clone(),
                keyring: config.keyring.clone(),
                session: me.clone(),
                listen: config.listen,
                advertise,
                limits: LinkLimits {
                    dead_after: settings.timing.silence_floor / 2,
                    unauthenticated: settings.network_limits.handshakes,
                    unauthenticated_of_source: settings.network_limits.source_handshakes,
                    connections_of_source: settings.network_limits.source_connections,
                    ..LinkLimits::default()
                },
                advertised_within: config.advertised_within.clone(),
                clock: settings.clock.clone(),
                network: settings.network.clone(),
            },
            link_events.clone(),
        )
        .await
        .map_err(|error| {
            let LinkError::Listen { address, source } = error;
            cannot_listen(address, source)
        })?;
        let listen = links.local_addr();
        let port = advertised_port(advertise, &links);
        let gossip = Gossip::start(
            GossipConfig {
                cluster: settings.cluster.clone(),
                keyring: config.keyring.clone(),
                session: me.clone(),
                generation: disk.generation,
                on_generation: disk.on_generation(),
                listen,
                advertise: SocketAddr::new(advertise.ip(), port),
                seeds: seeds.to_vec(),
                timing: settings.timing.clone(),
                limits: GossipLimits::default(),
                network_limits: settings.network_limits.clone(),
                advertised_within: config.advertised_within.clone(),
                clock: settings.clock.clone(),
                network: settings.network.clone(),
                known: disk.members.clone(),
            },
            gossip_events.clone(),
        )
        .await;
        match gossip {
            Ok(gossip) => return Ok(Sockets { gossip, links }),
            // The port was free for streams only: any other will do.
            Err(GossipError::AddressInUse { .. })
                if config.listen.port() == 0 && attempt < PORT_ATTEMPTS =>
            {
                links.shutdown().await;
            }
            Err(GossipError::AddressInUse { address }) => {
                return Err(StartError::AddressInUse(address));
            }
            Err(GossipError::Bind { address, source }) => {
                return Err(cannot_listen(address, source));
            }
            Err(error) => return Err(cannot_listen(listen, io::Error::other(error))),
        }
    }
}

fn cannot_listen(address: SocketAddr, source: io::Error) -> StartError {
    match source.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressInUse(address),
        _ => StartError::CannotListen { address, source },
    }
}

/// The port that others reach: the one listened on, unless another was given.
fn advertised_port(advertise: SocketAddr, links: &Links) -> u16 {
    match advertise.port() {
        0 => links.local_addr().port(),
        port => port,
    }
}

/// The address that others reach; its port may still be open.
fn advertised(
    listen: SocketAddr,
    advertise: Option<SocketAddr>,
    towards: Option<SocketAddr>,
) -> Result<SocketAddr, StartError> {
    if let Some(advertise) = advertise {
        return Ok(advertise);
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    let own = towards.and_then(|peer| own_address_towards(peer).ok());
    match own.filter(|own| !own.is_unspecified()) {
        Some(own) => Ok(SocketAddr::new(own, listen.port())),
        None => Err(StartError::NoAdvertisedAddress(listen)),
    }
}

/// An address that belongs to nobody, and that the default route leads to.
fn somewhere(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(_) => (Ipv4Addr::new(192, 0, 2, 1), 9).into(),
        SocketAddr::V6(_) => (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into(),
    }
}

/// Which of its addresses this host would send from. Nothing is sent.
fn own_address_towards(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use futures_util::StreamExt;
    use tokio::time::timeout;

    use super::*;
    use crate::checkpoint::testing::header;
    use crate::node::NodeEvent;
    use crate::node::pending::Written;

    async fn assembled() -> (Control, Inputs, mpsc::Sender<Command>) {
        let checked = Node::builder("test").node_id("a").seeds(Seeds::None).0.check().unwrap();
        let (commands, queue) = mpsc::channel(COMMANDS);
        let parts = Parts {
            config: checked,
            tasks: Handle::current(),
            kinds: Arc::default(),
            board: Arc::new(Board::new(4096)),
            commands: queue,
        };
        let (control, inputs) = assemble(parts).await.unwrap();
        (control, inputs, commands)
    }

    /// Each task fails at each of its checkpoints, and there may be thousands.
    #[tokio::test]
    async fn a_full_disk_is_told_of_seldom_whatever_it_is_that_cannot_be_stored() {
        let (mut control, _inputs, _commands) = assembled().await;
        let mut events = control.board.events();
        let header = header("task", 1, 1, "a", b"state");
        for _ in 0..500 {
            let written = [
                Written::Checkpoint { header: header.clone(), from: None },
                Written::End { name: header.name.clone(), run: header.run, from: None },
                Written::Run { name: header.name.clone() },
            ];
            for written in written {
                control.on_written(written, Some("no space left".into()));
                control.act();
            }
        }
        drop(control);
        let mut told = Vec::new();
        while let Some(event) = events.next().await {
            if let NodeEvent::Warning { text } = event {
                told.push(text);
            }
        }
        // More than one only where ten seconds have passed meanwhile.
        assert!((1..10).contains(&told.len()), "{}: {:?}", told.len(), told.first());
        assert!(told[0].contains("no space left"), "{told:?}");
    }

    /// Gossip restarts what ends of itself; where even that is gone, the node says so once, and goes on
    /// with what it can: its owner may still drain it.
    #[tokio::test]
    async fn gossip_that_has_ended_for_good_is_told_of_once_and_the_node_still_answers() {
        let (control, mut inputs, commands) = assembled().await;
        let mut events = control.board.events();
        inputs.gossip = mpsc::channel(1).1;
        let running = tokio::spawn(control.run(inputs));
        let soon = Duration::from_secs(10);
        let mut warnings = 0;
        for _ in 0..3 {
            let (reply, answer) = oneshot::channel();
            commands.send(Command::Status { reply }).await.unwrap();
            timeout(soon, answer).await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        commands.send(Command::Close).await.unwrap();
        timeout(soon, running).await.unwrap().unwrap();
        while let Some(event) = timeout(soon, events.next()).await.unwrap() {
            if let NodeEvent::Warning { text } = event {
                assert!(text.contains("gossip") && text.contains("restart it"), "{text}");
                warnings += 1;
            }
        }
        assert_eq!(warnings, 1);
    }
}
