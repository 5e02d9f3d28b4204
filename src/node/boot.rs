//! Starting: from checked settings to a control loop that runs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::board::Board;
use super::builder::Config;
use super::command::Command;
use super::control::{Control, Inputs};
use super::error::StartError;
use super::executor::Running;
use super::memory::{self, Memory};
use super::{Inner, Node, fresh_uuid, metrics, revision};
use crate::checkpoint::StoreWorker;
use crate::clock::{self, SharedClock};
use crate::core::claim::Mode;
use crate::core::ids::SessionId;
use crate::core::machine::{Machine, MachineConfig};
use crate::core::record::NodeRecord;
use crate::gossip::{Gossip, GossipConfig, GossipError, GossipEvent, GossipLimits};
use crate::link::{LinkConfig, LinkError, LinkEvent, LinkLimits, Links};
use crate::net::Network;
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
    let (call_timeout, executor) = (settings.call_timeout, settings.executor);

    let (ready, started) = oneshot::channel();
    let parts = Parts {
        config,
        tasks,
        kinds: kinds.clone(),
        board: board.clone(),
        commands: queue,
    };
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
            let up = Up {
                session: control.me.clone(),
                address: control.address,
            };
            // Whoever wanted the node may have stopped waiting: then it ends before it began.
            if ready.send(Ok(up)).is_ok() {
                Box::pin(control.run(inputs)).await;
            }
        }
        Err(error) => drop(ready.send(Err(error))),
    }
}

async fn assemble(parts: Parts) -> Result<(Control, Inputs), StartError> {
    let Parts {
        config,
        tasks,
        kinds,
        board,
        commands,
    } = parts;
    let settings = config.settings;
    let (clock, network) = (settings.clock.clone(), settings.network.clone());
    let wall_ms = clock.wall_ms();
    let me = SessionId::new(config.node_id.clone(), fresh_uuid(wall_ms));
    let revision = match &settings.revision {
        Some(label) => label.clone(),
        // Reads the whole executable.
        None => spawn_blocking(revision::detect)
            .await
            .unwrap_or_else(|_| "unknown".into()),
    };
    let memory = memory::open(settings.data_dir.as_deref(), &settings.cluster, &me, wall_ms).await?;
    let seeds = settings.seeds.resolve(&*network).await?;
    let advertise = advertised(config.listen, config.advertise, seeds.first())?;

    let (gossip_events, gossip_inputs) = mpsc::channel(EVENTS);
    let (link_events, link_inputs) = mpsc::channel(EVENTS);
    let sockets = Sockets {
        network: network.clone(),
        clock: clock.clone(),
        gossip_events,
        link_events,
    };
    todo!()
}
