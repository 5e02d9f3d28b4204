//! What parent and node processes say to each other, one line of JSON each.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::compress::Job;

/// From the parent to a node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Start a task, or join its run.
    Run {
        /// Its name.
        name: String,
        /// Its arguments.
        job: Job,
    },
    /// Say where these tasks run and how far they are.
    Status {
        /// Their names.
        names: Vec<String>,
    },
    /// Say the output of each of these tasks once it is there.
    Await {
        /// Their names.
        names: Vec<String>,
    },
}

/// From a node to the parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The node's sockets are open.
    Listening {
        /// Where.
        address: SocketAddr,
    },
    /// The node takes part.
    Ready,
    /// A task was started.
    Accepted {
        /// Its name.
        name: String,
    },
    /// A task was not started.
    Refused {
        /// Its name.
        name: String,
        /// What the library said.
        why: String,
    },
    /// The answer to [`Command::Status`].
    Status {
        /// One for each task that the node knows.
        tasks: Vec<TaskStatus>,
    },
    /// A task has finished.
    Output {
        /// Its name.
        name: String,
        /// The length of what it wrote, in bytes.
        written: u64,
    },
    /// A task has failed for good.
    Failed {
        /// Its name.
        name: String,
        /// What the library said.
        why: String,
    },
    /// The node has handed over what it ran.
    Drained {
        /// The library's report.
        report: serde_json::Value,
    },
}

/// A task as a node sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Its name.
    pub name: String,
    /// Who runs it; none if nobody does.
    pub node: Option<String>,
    /// Bytes of input done.
    pub done: u64,
    /// Bytes of input in all.
    pub total: u64,
}
