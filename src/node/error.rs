//! What can go wrong, operation by operation.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::checkpoint::directory::DirectoryError;
use crate::core::ids::{InvalidName, Kind, Name};
use crate::core::timing::InvalidTiming;
use crate::net::InvalidLimit;
use crate::task::{EncodeError, RegisterError};

/// Why a node did not start. Nothing is left running or listening.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The cluster's or the node's name cannot be used.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// No node id was given and the host has no usable name.
    #[error("the host's name cannot serve as node id ({0}): give one with `node_id`")]
    NoHostName(String),
    /// A task cannot be registered: two of one kind, or a kind that cannot be.
    #[error(transparent)]
    Task(#[from] RegisterError),
    /// The durations contradict each other.
    #[error("the timing cannot hold: {0}")]
    Timing(#[from] InvalidTiming),
    /// A network limit is too low.
    #[error(transparent)]
    Limit(#[from] InvalidLimit),
    /// A network is no network.
    #[error("`advertised_within` cannot use {text:?} ({why}): give it like 10.0.0.0/8")]
    InvalidNetwork {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// An address is no address.
    #[error("`{what}` cannot use {text:?} ({why}): give it as IP:PORT, like 10.0.0.7:7946")]
    InvalidAddress {
        /// The setting.
        what: &'static str,
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The address to advertise is none that anybody could send to.
    #[error(
        "`advertise` cannot use {address}, which is {why}: give the IP:PORT that other nodes reach this \
         one by, like 10.0.0.7:7946"
    )]
    UnreachableAdvertised {
        /// What was given.
        address: SocketAddr,
        /// What it is instead.
        why: &'static str,
    },
    /// The node would be reachable from other machines and has no key.
    #[error(
        "refusing to listen on {0} without a key, since anybody who reaches it could take part: \
         give every node the same `key`, or listen on loopback"
    )]
    ListenWithoutKey(SocketAddr),
    /// It listens on every interface, and which of its addresses others reach is not known: there is
    /// neither a seed nor a route to any.
    #[error(
        "listening on {0} does not say which address others reach this node by: set `advertise`"
    )]
    NoAdvertisedAddress(SocketAddr),
    /// Another process uses the address.
    #[error(
        "the address {0} is in use: is a node running already? stop it, or choose another port"
    )]
    AddressInUse(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address} ({source}): {}", instead(.source))]
    CannotListen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The environment's number of the deploy is no number.
    #[error("HANDOVER_ROLLOUT is {0:?}, which is no whole number: set it to one, or unset it")]
    InvalidRollout(String),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDirectory(#[from] DirectoryError),
    /// The checkpoints in the data directory cannot be read.
    #[error("the checkpoints in {path} cannot be used: {why}")]
    Checkpoints {
        /// Their file.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// A seed is an address that nobody can be reached by, or a name that could never be resolved.
    #[error(
        "`seeds` cannot use {name:?} ({why}): give an IP:PORT that another node is reached by, like \
         10.0.0.7:7946, or a name as HOST:PORT, like shop-headless:7946"
    )]
    InvalidSeed {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// It was started outside of a tokio runtime.
    #[error(
        "a node starts inside a tokio runtime, where its tasks will run: call `start` from async code"
    )]
    NoRuntime,
    /// The control thread could not be made, or ended while starting.
    #[error("the node's own thread did not start: {0}")]
    Thread(io::Error),
}

/// Why `run` or `rerun` brought no handle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The task's name cannot be used. Nothing was started.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// The arguments cannot be encoded, or are too large to be gossiped. Nothing was started.
    #[error(transparent)]
    Args(#[from] EncodeError),
    /// No known node registers the kind. Nothing was started.
    #[error("no known node can run tasks of kind {0}: start one that registers it with `task`")]
    UnknownKind(Kind),
    /// Those nodes that can, or of which it is not known yet, take no tasks now: they are joining,
    /// cordoned or draining. Nothing was started.
    #[error(
        "no node that can run tasks of kind {0} takes any now: wait until one is ready, or uncordon one"
    )]
    NotUp(Kind),
    /// Every node that could run it is full. Nothing was started.
    #[error(
        "every node that can run the task is full: raise `max_running`, add a node, or try again later"
    )]
    Full,
    /// The last node asked knows as many names as it may. Nothing was started.
    #[error(
        "the nodes know as many names as they may: raise `max_names` on each of them, or let ended tasks be forgotten sooner (`retention`, `tombstone_retention`)"
    )]
    TooManyNames,
    /// No node took it. Nothing was started.
    #[error("no node took the task ({0}): try again")]
    Refused(String),
    /// The name has a run of a task of another kind, which goes on or is retained. Nothing was started.
    #[error(
        "the name {name} has a run of a task of kind {running} and cannot be joined as {asked}: choose another \
         name, or `rerun` it once that run has ended"
    )]
    OtherKind {
        /// The name.
        name: Name,
        /// The kind of the run that the name has.
        running: Kind,
        /// The kind that was asked for.
        asked: Kind,
    },
    /// This node cannot answer for its cluster yet. Nothing was started.
    #[error("this node has not joined its cluster yet: wait with `wait_ready`")]
    NotReady,
    /// Another run of the name won while this one was starting.
    #[error("another run of the name was started at the same time and won: get it by name")]
    Superseded,
    /// No answer came in time. Another call with the same name joins whatever was started.
    #[error(
        "no answer came in time: the task may have been started; call again, the same name joins it"
    )]
    TimedOut,
    /// The node has been closed. If that was during the call, the task may have been started.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// Why `pause`, `resume` or `cancel` had no effect.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HandleError {
    /// The handle was made with a name that cannot exist.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// The name is unknown here.
    #[error("no task of this name is known here: check the name, or wait for gossip")]
    Unknown,
    /// The name has a run of a task of another kind. Nothing was changed.
    #[error(
        "{name} is a task of kind {running}, and the handle is for {asked}: get it as what it is"
    )]
    OtherKind {
        /// The name.
        name: Name,
        /// The kind of the run that the name has.
        running: Kind,
        /// The kind that the handle is for.
        asked: Kind,
    },
    /// The run has ended.
    #[error("the task has ended already")]
    Ended,
    /// The name has a newer run than the one that the handle speaks of. Nothing was changed.
    #[error("the name has a newer run than this handle's: get it by name")]
    Superseded,
    /// The run has been cancelled, perhaps without having stopped yet.
    #[error(
        "the task has been cancelled, which nothing takes back: once it has ended, `rerun` starts it anew"
    )]
    Cancelled,
    /// This node cannot answer for its cluster yet.
    #[error("this node has not joined its cluster yet: wait with `wait_ready`")]
    NotReady,
    /// Anything else, for people.
    #[error("{0}")]
    Refused(String),
    /// No answer came in time. The request may still take effect; it is safe to repeat.
    #[error("no answer came in time: the request may still take effect; it is safe to repeat")]
    TimedOut,
    /// The node has been closed.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// Why there is no output.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The handle was made with a name that cannot exist.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// The name is unknown here.
    #[error("no task of this name is known here: check the name, or wait for gossip")]
    Unknown,
    /// The task failed.
    #[error("the task failed: {0}")]
    Failed(String),
    /// The task was cancelled.
    #[error("the task was cancelled")]
    Cancelled,
    /// Another run of the name has replaced the one asked about.
    #[error("another run of this name has replaced this one")]
    Superseded,
    /// It finished, and its output is kept no longer, or nowhere that can be reached.
    #[error(
        "the task finished, but its output is gone or out of reach: raise `retention`, or read it earlier"
    )]
    Gone,
    /// The name has a run of a task of another kind.
    #[error(
        "{name} is a task of kind {running}, and the handle is for {asked}: get it as what it is"
    )]
    OtherKind {
        /// The name.
        name: Name,
        /// The kind of the run that the name has.
        running: Kind,
        /// The kind that the handle is for.
        asked: Kind,
    },
    /// The output is not of this type.
    #[error("the output cannot be read as this task's output: {0}")]
    Unreadable(String),
    /// The node has been closed.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// Why `leave` did not end as it should. Except for `Unstoppable`, the node is closed all the same.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaveError {
    /// Code of these tasks still runs and cannot be stopped: a closure that does not return. The node
    /// stays a member, so that nobody runs them a second time. Once the process is gone, others take
    /// them over from their last checkpoints.
    #[error(
        "{} still running and cannot be stopped: end the process with `std::process::exit`, or let \
         their closures return and leave again",
        listed(.0)
    )]
    Unstoppable(Vec<Name>),
    /// Some peers did not acknowledge the goodbye.
    #[error(
        "only {heard} of {told} peers acknowledged the goodbye: the others will notice the node's \
         absence after the silence floor"
    )]
    Unheard {
        /// Peers that acknowledged.
        heard: usize,
        /// Peers that were told.
        told: usize,
    },
    /// The node had been closed before.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// The node has been closed: start another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has been closed: start another one")]
pub struct NodeClosed;

/// What to do where an address cannot be listened on.
fn instead(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            "this host has no such address now: listen on one that it has, or on 0.0.0.0 or [::], and \
             give the address that others reach it by with `advertise`"
        }
        io::ErrorKind::PermissionDenied => {
            "this process may not use it: choose a port from 1024 up, or let it bind lower ones"
        }
        _ => "listen on another address or port of this host",
    }
}

/// The first few of many.
fn listed(names: &[Name]) -> String {
    const MOST: usize = 5;
    let shown: Vec<&str> = names.iter().take(MOST).map(Name::as_str).collect();
    let (shown, more) = (shown.join(", "), names.len().saturating_sub(MOST));
    match (names.len(), more) {
        (1, _) => format!("{shown} is"),
        (_, 0) => format!("{shown} are"),
        _ => format!("{shown} and {more} more are"),
    }
}
