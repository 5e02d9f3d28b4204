//! What the tests of this folder share: made-up checkpoints, and what every store must do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::Write;
use crate::core::branch::{Header, Position};
use crate::core::claim::{Claim, Mode, Phase, Spec, Terms};
use crate::core::ids::{Kind, Name, NodeId, RunId, SessionId};
use crate::core::lease::Epoch;
use crate::core::stored::StoredEnd;

pub(crate) fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

pub(crate) fn run(number: u64) -> RunId {
    RunId { number, uuid: Uuid::from_u128(u128::from(number)) }
}

pub(crate) fn session(node: &str) -> SessionId {
    SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(7))
}

pub(crate) fn position(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch), seq }
}

/// Of run 1.
pub(crate) fn header(task: &str, epoch: u64, seq: u64, writer: &str, state: &[u8]) -> Header {
    Header {
        name: name(task),
        run: run(1),
        kind: Kind::new("kind").unwrap(),
        position: position(epoch, seq),
        writer: session(writer),
        lineage: Vec::new(),
        state_version: 1,
        revision: "rev".into(),
        wall_ms: 0,
        len: state.len() as u64,
        hash: Header::hash_of(state),
        progress: None,
    }
}

/// `parent` continued under another lease.
pub(crate) fn forked(parent: &Header, epoch: u64, seq: u64, writer: &str, state: &[u8]) -> Header {
    Header {
        lineage: parent.lineage_after(),
        ..header(parent.name.as_str(), epoch, seq, writer, state)
    }
}

pub(crate) fn spec(task: &str, number: u64) -> Spec {
    Spec {
        name: name(task),
        run: run(number),
        kind: Kind::new("kind").unwrap(),
        args: Bytes::from_static(b"\x90"),
    }
}

pub(crate) fn end(task: &str, epoch: u64, phase: Phase) -> StoredEnd {
    StoredEnd { claim: claim(task, epoch, phase), at: 1_700_000_000 }
}

fn claim(task: &str, epoch: u64, phase: Phase) -> Claim {
    Claim {
        name: name(task),
        session: session("owner"),
        number: 1,
        version: 1,
        run: run(1),
        epoch: Epoch(epoch),
        phase,
        terms: Terms { mode: Mode::Available, silence_floor: Duration::from_secs(10) },
        replicas: Vec::new(),
        floor: None,
        checkpointed: true,
        strikes: 0,
        note: String::new(),
        heeded: 0,
        expired: false,
        resting: false,
    }
}

/// A state that says which one it is, `len` bytes long.
pub(crate) fn state(of: u64, len: usize) -> Bytes {
    of.to_be_bytes().into_iter().cycle().take(len).collect()
}

/// A commit of run 1 by writer `w`.
pub(crate) fn put(task: &str, epoch: u64, seq: u64, state: &Bytes) -> Write {
    put_as(header(task, epoch, seq, "w", state), state)
}

pub(crate) fn put_as(header: Header, state: &Bytes) -> Write {
    Write::Put {
        spec: Spec { run: header.run, ..spec(header.name.as_str(), 1) },
        header,
        state: state.clone(),
    }
}
