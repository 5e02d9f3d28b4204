//! What a ledger node is told on its standard input and says on its standard output, one line of
//! JSON each.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::ledger::Ledger;

/// To the node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Start a ledger, or join its run.
    Run {
        /// Its name.
        name: String,
        /// Its arguments.
        ledger: Ledger,
    },
    /// Say where a ledger is.
    Whereis {
        /// Its name.
        name: String,
    },
    /// Say once a ledger has ended, and how.
    Await {
        /// Its name.
        name: String,
    },
    /// Stop a ledger until it is resumed.
    Pause {
        /// Its name.
        name: String,
    },
    /// Go on with it.
    Resume {
        /// Its name.
        name: String,
    },
    /// End it.
    Cancel {
        /// Its name.
        name: String,
    },
}

/// From the node.
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
    /// A ledger runs, or will.
    Accepted {
        /// Its name.
        name: String,
        /// Its run.
        run: String,
    },
    /// A request had no effect.
    Refused {
        /// The ledger.
        name: String,
        /// What the library said.
        why: String,
    },
    /// Pause, resume or cancel was taken in.
    Noted {
        /// The ledger.
        name: String,
    },
    /// The answer to [`Command::Whereis`].
    Place {
        /// The ledger.
        name: String,
        /// Its node; none if the name is unknown.
        node: Option<String>,
        /// What that node does with it.
        state: Option<String>,
        /// Lines written, as of the last progress.
        done: u64,
    },
    /// A ledger has ended.
    Ended {
        /// The ledger.
        name: String,
        /// The last line, or why there is none.
        output: Result<u64, String>,
    },
    /// Something that the node noticed.
    Noticed {
        /// The library's event, as text.
        what: String,
    },
    /// The node has handed over what it ran.
    Drained {
        /// The library's report.
        report: serde_json::Value,
    },
}
