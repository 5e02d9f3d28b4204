//! What travels over a link: the machine's messages, and questions that only the edge can answer.

use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::core::branch::Progress;
use crate::core::ids::{Name, RunId};
use crate::core::message::Message;

/// One frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub(crate) enum Wire {
    /// For the machine.
    #[serde(rename = "c")]
    Core(Box<Message>),
    /// A question about a task that the sender does not run.
    #[serde(rename = "q")]
    Query {
        /// Matches the answer.
        id: u64,
        /// The question.
        query: Query,
    },
    /// The answer to a [`Wire::Query`].
    #[serde(rename = "a")]
    Answer {
        /// Of the question.
        id: u64,
        /// None: this node does not have it (any more).
        answer: Option<Answer>,
    },
}

/// What one node asks another about a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub(crate) enum Query {
    /// How far is it?
    Progress {
        /// The task.
        name: Name,
    },
    /// What did it bring?
    Output {
        /// The task.
        name: Name,
        /// Which run.
        run: RunId,
    },
    /// "My copy of it has stopped for yours: for how long has yours been running?"
    Yielded {
        /// The task.
        name: Name,
    },
}

impl Query {
    /// Which task is asked about.
    pub(crate) const fn name(&self) -> &Name {
        match self {
            Self::Progress { name } | Self::Output { name, .. } | Self::Yielded { name } => name,
        }
    }
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub(crate) enum Answer {
    /// How far it is.
    Progress(Progress),
    /// What it brought (MessagePack with field names).
    Output(Bytes),
    /// It has been running for this long.
    RunsFor(Duration),
}

/// Nothing we send nests deeper; a hostile frame must not be able to exhaust the stack.
const MAX_DEPTH: usize = 32;

/// Encodes with field names, so that fields can be added (unknown ones are skipped, absent ones default).
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, rmp_serde::encode::Error> {
    rmp_serde::to_vec_named(value).map(Bytes::from)
}

/// Decodes one value. Trailing bytes are an error.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut rest = bytes;
    let mut decoder = rmp_serde::Deserializer::new(&mut rest);
    decoder.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut decoder)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(rmp_serde::decode::Error::Uncategorized(format!(
            "{} bytes after the value",
            rest.len()
        )))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::core::ids::{NodeId, SessionId};
    use crate::core::record::NodeState;
    use uuid::Uuid;

    #[test]
    fn every_frame_comes_back_as_it_was_sent() {
        let name = Name::new("t").unwrap();
        for wire in [
            Wire::Core(Box::new(Message::State { state: NodeState::Draining, version: 2 })),
            Wire::Query { id: 7, query: Query::Progress { name } },
            Wire::Answer { id: 7, answer: Some(Answer::Output(Bytes::from_static(b"x"))) },
            Wire::Answer { id: 8, answer: None },
        ] {
            assert_eq!(decode::<Wire>(&encode(&wire).unwrap()).unwrap(), wire);
        }
    }

    #[test]
    fn a_field_of_a_later_version_is_skipped() {
        #[derive(Serialize)]
        enum Later {
            #[serde(rename = "a")]
            Answer { id: u64, answer: Option<()>, since: u64 },
        }
        let bytes = encode(&Later::Answer { id: 3, answer: None, since: 9 }).unwrap();
        assert_eq!(decode::<Wire>(&bytes).unwrap(), Wire::Answer { id: 3, answer: None });
    }

    #[test]
    fn deep_nesting_is_refused_rather_than_followed() {
        let session = SessionId::new(NodeId::new("n").unwrap(), Uuid::nil());
        let mut message = Message::Leave;
        for _ in 0..200 {
            message = Message::Relay {
                from: session.clone(),
                to: session.clone(),
                message: Box::new(message),
            };
        }
        let bytes = encode(&Wire::Core(Box::new(message))).unwrap();
        assert!(decode::<Wire>(&bytes).is_err());
    }

    #[test]
    fn no_truncation_of_a_frame_decodes_or_panics() {
        let wire =
            Wire::Query { id: 1, query: Query::Progress { name: Name::new("a/b").unwrap() } };
        let bytes = encode(&wire).unwrap();
        for end in 0..bytes.len() {
            assert!(decode::<Wire>(&bytes[..end]).is_err());
        }
        let mut longer = bytes.to_vec();
        longer.push(0xc0);
        assert!(decode::<Wire>(&longer).is_err());
    }
}
