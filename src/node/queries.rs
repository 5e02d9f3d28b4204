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

impl Asker {
    /// A handle that is dropped without a word would take the node for closed.
    fn nobody_knows(self) {
        if let Self::Handle(handle) = self {
            // Whoever asked may have stopped waiting.
            let _ = handle.send(None);
        }
    }
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

    /// Remembers who asked; the number goes with the question. None, and the asker told so, when too many
    /// are open.
    pub(super) fn open(&mut self, now: Time, to: SessionId, asker: Asker) -> Option<u64> {
        if self.open.len() >= Self::MAX {
            asker.nobody_knows();
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

    /// What waited too long is answered with "nobody knows".
    pub(super) fn expire(&mut self, now: Time) {
        // Numbers ascend with time.
        while self.open.first_key_value().is_some_and(|(_, open)| open.until <= now) {
            if let Some((_, open)) = self.open.pop_first() {
                open.asker.nobody_knows();
            }
        }
    }

    /// Nobody answers for a session whose link broke.
    pub(super) fn lost(&mut self, session: &SessionId) {
        let theirs = |open: &Open| open.to == *session;
        let lost: Vec<u64> =
            self.open.iter().filter(|(_, open)| theirs(open)).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(open) = self.open.remove(&id) {
                open.asker.nobody_knows();
            }
        }
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
    fn an_unanswered_question_is_answered_with_nobody_knows() {
        let mut queries = Queries::default();
        let (asker, mut answer) = oneshot::channel();
        queries.open(Time::ZERO, session("a"), Asker::Handle(asker)).unwrap();
        queries.expire(Time::ZERO + OPEN / 2);
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        queries.expire(Time::ZERO + OPEN);
        assert_eq!(answer.try_recv(), Ok(None));
    }

    #[test]
    fn a_broken_link_answers_what_was_asked_over_it_and_nothing_else() {
        let mut queries = Queries::default();
        let (asker, mut of_a) = oneshot::channel();
        queries.open(Time::ZERO, session("a"), Asker::Handle(asker)).unwrap();
        let (asker, mut of_b) = oneshot::channel();
        let id = queries.open(Time::ZERO, session("b"), Asker::Handle(asker)).unwrap();
        queries.lost(&session("a"));
        assert_eq!(of_a.try_recv(), Ok(None));
        assert_eq!(of_b.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert!(queries.take(&session("b"), id).is_some());
    }

    #[test]
    fn a_question_too_many_is_answered_at_once() {
        let mut queries = Queries::default();
        let mut waiting = Vec::new();
        for _ in 0..Queries::MAX {
            let (asker, answer) = oneshot::channel();
            assert!(queries.open(Time::ZERO, session("a"), Asker::Handle(asker)).is_some());
            waiting.push(answer);
        }
        let (asker, mut answer) = oneshot::channel();
        assert!(queries.open(Time::ZERO, session("a"), Asker::Handle(asker)).is_none());
        assert_eq!(answer.try_recv(), Ok(None));
    }
}
