//! What the store was asked: goes with the request, comes back with the answer.

use super::queries::Handle;
use crate::core::branch::Header;
use crate::core::ids::{Name, RunId, SessionId};

/// What an answer of the store is to be used for.
#[derive(Debug)]
pub(super) enum Pending {
    /// A write.
    Write(Written),
    /// A checkpoint for the machine.
    Load(Header),
    /// What an end brought, for the machine.
    End { name: Name, run: RunId },
    /// An output for somebody who asked.
    Output(Whom),
}

/// What was written, and who waits for it.
#[derive(Debug)]
pub(super) enum Written {
    Checkpoint {
        header: Header,
        from: Option<SessionId>,
    },
    End {
        name: Name,
        run: RunId,
        from: Option<SessionId>,
    },
    /// A run without a checkpoint, or an order: nobody waits.
    Run {
        name: Name,
    },
    /// A deletion: nobody waits.
    Deletion {
        name: Name,
    },
}

/// Who asked a question.
#[derive(Debug)]
pub(super) enum Whom {
    /// A handle of this node.
    Here(Handle),
    /// Another node.
    There { to: SessionId, id: u64 },
}
