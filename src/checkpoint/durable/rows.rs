//! The tables: how keys are built, and what a row must look like to be believed.
//!
//! Every value is a checksummed record that contains what its key is built of, so a row can be
//! checked, and carried over into another file, whatever has become of its key.

use redb::TableDefinition;
use serde::{Deserialize, Serialize};

use crate::checkpoint::catalog::{CheckpointKey, RunKey};
use crate::checkpoint::envelope;
use crate::checkpoint::frame::{Format, FrameError};
use crate::core::branch::{Header, Position};
use crate::core::claim::{Desired, Spec};
use crate::core::ids::{Name, NodeId, RunId, SessionId};
use crate::core::lease::Epoch;
use crate::core::limits;
use crate::core::stored::StoredEnd;
use uuid::Uuid;

pub(super) type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// The tables of rows, by [`Table`].
pub(super) const TABLES: [Definition; 3] = [
    TableDefinition::new("runs"),
    TableDefinition::new("outputs"),
    TableDefinition::new("checkpoints"),
];

/// Counts commits, to tell after a failed one whether it was applied.
pub(super) const COMMITS: TableDefinition<'static, (), u64> = TableDefinition::new("commits");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Runs = 0,
    Outputs = 1,
    Checkpoints = 2,
}

impl Table {
    pub(super) const ALL: [Self; 3] = [Self::Runs, Self::Outputs, Self::Checkpoints];

    pub(super) const fn definition(self) -> Definition {
        TABLES[self as usize]
    }
}

const RUN: Format = Format { magic: *b"HORN", version: 1, max_header: 0, max_body: 1 << 20 };

const OUTPUT: Format =
    Format { magic: *b"HOUT", version: 1, max_header: 1 << 10, max_body: limits::STATE };

/// A run's row.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) spec: Spec,
    pub(super) desired: Option<Desired>,
    pub(super) end: Option<StoredEnd>,
}

impl Record {
    pub(super) fn key(&self) -> RunKey {
        (self.spec.name.clone(), self.spec.run)
    }

    pub(super) fn seal(&self) -> Result<Vec<u8>, FrameError> {
        let body = rmp_serde::to_vec_named(self)
            .map_err(|_| FrameError::Corrupt("the record of the run cannot be encoded"))?;
        RUN.seal(&[], &body)
    }
}

pub(super) fn seal_output(run: &RunKey, output: &[u8]) -> Result<Vec<u8>, FrameError> {
    OUTPUT.seal(&run_key(run), output)
}

pub(super) fn open_output(bytes: &[u8]) -> Result<&[u8], FrameError> {
    OUTPUT.open(bytes).map(|(_, output)| output)
}

/// A row that can be believed.
#[derive(Debug)]
pub(super) enum Row {
    Run(Box<Record>),
    /// Its key.
    Output(Vec<u8>),
    Checkpoint(Box<Header>),
}

impl Row {
    pub(super) fn open(table: Table, value: &[u8]) -> Result<Self, FrameError> {
        Ok(match table {
            Table::Runs => Self::Run(
                rmp_serde::from_slice(RUN.open(value)?.1)
                    .map_err(|_| FrameError::Corrupt("the record of the run is unreadable"))?,
            ),
            Table::Outputs => Self::Output(OUTPUT.open(value)?.0.to_vec()),
            Table::Checkpoints => Self::Checkpoint(Box::new(envelope::inspect(value)?.0)),
        })
    }

    /// The key that it belongs under.
    pub(super) fn key(&self) -> Vec<u8> {
        match self {
            Self::Run(record) => run_key(&record.key()),
            Self::Output(key) => key.clone(),
            Self::Checkpoint(header) => checkpoint_key(
                &(header.name.clone(), header.run),
                &(header.position, header.writer.clone()),
            ),
        }
    }
}

/// Name, NUL (no name holds one), number, uuid: the prefix of all keys of a run.
pub(super) fn run_key((name, run): &RunKey) -> Vec<u8> {
    let mut key = Vec::with_capacity(128);
    key.extend_from_slice(name.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(&run.number.to_be_bytes());
    key.extend_from_slice(run.uuid.as_bytes());
    key
}

/// The run's prefix, epoch, sequence number, the writer's nonce and node.
pub(super) fn checkpoint_key(run: &RunKey, (position, writer): &CheckpointKey) -> Vec<u8> {
    let mut key = run_key(run);
    key.extend_from_slice(&position.epoch.0.to_be_bytes());
    key.extend_from_slice(&position.seq.to_be_bytes());
    key.extend_from_slice(writer.nonce.as_bytes());
    key.extend_from_slice(writer.node.as_str().as_bytes());
    key
}

/// What a key says, for a report: its row may be unreadable, and it may be damaged itself.
pub(super) fn parse_key(key: &[u8]) -> Option<(RunKey, Option<CheckpointKey>)> {
    let nul = key.iter().position(|byte| *byte == 0)?;
    let (name, rest) = key.split_at(nul);
    let name = Name::new(std::str::from_utf8(name).ok()?).ok()?;
    let (number, rest) = rest.get(1..)?.split_first_chunk()?;
    let (uuid, rest) = rest.split_first_chunk()?;
    let run = RunId { number: u64::from_be_bytes(*number), uuid: Uuid::from_bytes(*uuid) };
    Some(((name, run), parse_checkpoint_key(rest)))
}

fn parse_checkpoint_key(rest: &[u8]) -> Option<CheckpointKey> {
    let (epoch, rest) = rest.split_first_chunk()?;
    let (seq, rest) = rest.split_first_chunk()?;
    let (nonce, node) = rest.split_first_chunk()?;
    let node = NodeId::new(std::str::from_utf8(node).ok()?).ok()?;
    Some((
        Position { epoch: Epoch(u64::from_be_bytes(*epoch)), seq: u64::from_be_bytes(*seq) },
        SessionId::new(node, Uuid::from_bytes(*nonce)),
    ))
}
