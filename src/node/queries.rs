//! Questions about tasks that other nodes know the answer to.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;

use super::wire::Answer;
use crate::core::ids::{Name, SessionId};
use crate::core::time::Time;

/// A handle of this node that waits for an answer.
pub(super) type Handle = oneshot::Sender<Option<Answer>>;

/// Somebody here who waits for an answer.
#[derive(Debug)]
pub(super) enum Asker {
    /// A handle.
    Handle(Handle),
    /// The measurement of how long this node and another ran a task at once. It asks again.
    Overlap {
        /// The task.
        name: Name,
        /// When it was asked.
        asked: Time,
    },
}

/// How long a question stays open: a little longer than its asker waits.
const OPEN: Duration = Duration::from_secs(2);

/// Questions that were sent and not answered yet.
#[derive(Debug, Default)]
pub(super) struct Queries {
    next: u64,
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    to: SessionId,
    until: Time,
    asker: Asker,
}

impl Queries {
    /// Beyond that, a question is answered with "nobody knows" and asked again by its asker.
    const MAX: usize = 65_536;

    /// Remembers who asked; the number goes with the question. None when too many are open.
    pub(super) fn open(&mut self, now: Time, to: SessionId, asker: Asker) -> Option<u64> {
        if self.open.len() >= Self::MAX {
            return None;
        }
        self.next += 1;
        let until = now + OPEN;
        self.open.insert(self.next, Open { to, until, asker });
        Some(self.next)
    }

    /// Who asked a question that is answered now. An answer from somebody who was not asked has none.
    pub(super) fn take(&mut self, from: &SessionId, id: u64) -> Option<Asker> {
        self.open.get(&id).filter(|open| open.to == *from)?;
        Some(self.open.remove(&id)?.asker)
    }

    /// Drops what waited too long; its askers see it at once.
    pub(super) fn expire(&mut self, now: Time) {
        // Numbers ascend with time.
        while self.open.first_key_value().is_some_and(|(_, open)| open.until <= now) {
            self.open.pop_first();
        }
    }

    /// Nobody answers for a session whose link broke.
    pub(super) fn lost(&mut self, session: &SessionId) {
        self.open.retain(|_, open| open.to != *session);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use uuid::Uuid;

    use super::*;
    use crate::core::ids::NodeId;

    fn session(node: &str) -> SessionId {
        SessionId::new(NodeId::new(node).unwrap(), Uuid::nil())
    }

    #[test]
    fn only_the_asked_can_answer() {
        let mut queries = Queries::default();
        let (asker, _answer) = oneshot::channel();
        let id = queries.open(Time::ZERO, session("a"), Asker::Handle(asker)).unwrap();
        assert!(queries.take(&session("b"), id).is_none());
        assert!(matches!(queries.take(&session("a"), id), Some(Asker::Handle(_))));
        assert!(queries.take(&session("a"), id).is_none(), "once");
    }

    #[test]
    fn an_unanswered_question_ends() {
        let mut queries = Queries::default();
        let (asker, mut answer) = oneshot::channel();
        queries.open(Time::ZERO, session("a"), Asker::Handle(asker)).unwrap();
        queries.expire(Time::ZERO + OPEN / 2);
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        queries.expire(Time::ZERO + OPEN);
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
