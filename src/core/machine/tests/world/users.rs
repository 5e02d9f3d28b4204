//! What users and operators ask of a node.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::{World, name};
use crate::core::claim::{Spec, Want};
use crate::core::ids::{Kind, RunId, SessionId};
use crate::core::io::Event;

impl World {
    pub(in super::super) fn start(&mut self, at: &SessionId, task: &str) -> u64 {
        self.start_kind(at, task, "count", false)
    }

    pub(in super::super) fn start_kind(
        &mut self,
        at: &SessionId,
        task: &str,
        kind: &str,
        again: bool,
    ) -> u64 {
        self.calls += 1;
        let uuid = Uuid::from_u128(u128::from(self.now.as_micros()) << 64 | u128::from(self.calls));
        let spec = Spec {
            name: name(task),
            run: RunId { number: 0, uuid },
            kind: Kind::new(kind).unwrap(),
            args: Bytes::from_static(b"args"),
        };
        let call = self.calls;
        self.give(at, Event::Run { call, spec, again });
        call
    }

    pub(in super::super) fn want(&mut self, at: &SessionId, task: &str, want: Want) -> u64 {
        self.calls += 1;
        let call = self.calls;
        self.give(at, Event::Want { call, name: name(task), run: None, want });
        call
    }

    pub(in super::super) fn drain(&mut self, at: &SessionId, budget: Duration) {
        let deadline = self.now + budget;
        self.give(at, Event::Drain { deadline });
    }
}
