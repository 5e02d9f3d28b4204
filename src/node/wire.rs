//! What travels over a link: the machine's messages, and questions that only the edge can answer.

use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::core::branch::Progress;
use crate::core::ids::{Kind, Name, RunId, SessionId};
use crate::core::limits;
use crate::core::message::{Message, Unfit};

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
    /// The sender has stopped its copy of a task for another one, and knows for how long both ran.
    #[serde(rename = "x")]
    Conflict {
        /// Matches the confirmation.
        number: u64,
        /// What the sender has numbered lower it does not tell again.
        oldest: u64,
        /// The task.
        name: Name,
        /// Who goes on.
        kept: SessionId,
        /// For how long both ran.
        overlap: Duration,
    },
    /// The sender has heard of a [`Wire::Conflict`].
    #[serde(rename = "h")]
    ConflictHeard {
        /// Of what it was told.
        number: u64,
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
    /// Of which kind is it?
    Kind {
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
            Self::Progress { name }
            | Self::Output { name, .. }
            | Self::Kind { name, .. }
            | Self::Yielded { name } => name,
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
    Output(#[serde(deserialize_with = "limits::bytes::<_, { limits::OUTPUT }>")] Bytes),
    /// Its kind.
    Kind(Kind),
    /// It has been running for this long.
    RunsFor(Duration),
}

/// Why a peer's frame was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadFrame {
    /// Perhaps of a later build: its other frames may well be good.
    #[error("it cannot be decoded: {0}")]
    Undecodable(String),
    /// No build sends as much.
    #[error("{0}")]
    OverLimit(String),
    /// No build says that.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

impl BadFrame {
    /// Whether whoever sends it is not to be listened to any longer.
    pub(crate) const fn is_foul(&self) -> bool {
        matches!(self, Self::OverLimit(_) | Self::Unfit(_))
    }

    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "undecodable",
            Self::OverLimit(_) => "limit",
            Self::Unfit(_) => "unfit",
        }
    }
}

impl Wire {
    /// Reads a frame of a peer's, held to every limit.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, BadFrame> {
        let wire = decode(bytes).map_err(|error| match error.to_string() {
            error if error.contains(limits::REFUSED) => BadFrame::OverLimit(error),
            error => BadFrame::Undecodable(error),
        })?;
        if let Self::Core(message) = &wire {
            message.check()?;
        }
        Ok(wire)
    }
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

    use uuid::Uuid;

    use super::*;
    use crate::core::branch::{Ancestor, Header, Position};
    use crate::core::claim::{Claim, Mode, Phase, Spec, Terms};
    use crate::core::ids::{Kind, NodeId, SessionId};
    use crate::core::io::Gone;
    use crate::core::lease::Epoch;
    use crate::core::message::{Answer as Reply, Question, Rejection, Said, Verdict};
    use crate::core::record::NodeState;

    #[test]
    fn every_frame_comes_back_as_it_was_sent() {
        let name = Name::new("t").unwrap();
        for wire in [
            Wire::Core(Box::new(Message::State { state: NodeState::Draining, version: 2 })),
            Wire::Query { id: 7, query: Query::Progress { name } },
            Wire::Answer { id: 7, answer: Some(Answer::Output(Bytes::from_static(b"x"))) },
            Wire::Answer { id: 8, answer: None },
            Wire::Conflict {
                number: 3,
                oldest: 2,
                name: Name::new("t").unwrap(),
                kept: SessionId::new(NodeId::new("n").unwrap(), Uuid::nil()),
                overlap: Duration::from_millis(1_500),
            },
            Wire::ConflictHeard { number: 3 },
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

    fn session(node: &str) -> SessionId {
        SessionId::new(NodeId::new(node).unwrap(), Uuid::nil())
    }

    fn read(message: Message) -> Result<Wire, BadFrame> {
        Wire::read(&encode(&Wire::Core(Box::new(message))).unwrap())
    }

    fn relayed(message: Message) -> Message {
        let message = Box::new(message);
        Message::Relay { from: session("a"), to: session("b"), message }
    }

    /// The longest that a build sends, and one more of each.
    #[test]
    fn every_list_text_and_blob_of_a_message_has_a_limit() {
        let name = Name::new("t").unwrap();
        let run = RunId { number: 1, uuid: Uuid::nil() };
        let kind = Kind::new("k").unwrap();
        let text = |len| "x".repeat(len);
        let blob = |len: usize| Bytes::from(vec![0; len]);
        let spec = |len| Spec { name: name.clone(), run, kind: kind.clone(), args: blob(len) };
        let claim = |replicas, note| Claim {
            name: name.clone(),
            session: session("a"),
            number: 1,
            version: 0,
            run,
            epoch: Epoch(1),
            phase: Phase::Running,
            terms: Terms { mode: Mode::Available, silence_floor: Duration::from_secs(10) },
            replicas: vec![NodeId::new("c").unwrap(); replicas],
            floor: None,
            checkpointed: true,
            strikes: 0,
            note: text(note),
            heeded: 0,
            expired: false,
            resting: false,
        };
        let header = |lineage, revision, note, len| Header {
            name: name.clone(),
            run,
            kind: kind.clone(),
            position: Position { epoch: Epoch(1), seq: 1 },
            writer: session("a"),
            lineage: vec![Ancestor { epoch: Epoch(1), writer: session("a"), seq: 1 }; lineage],
            state_version: 1,
            revision: text(revision),
            wall_ms: 0,
            len,
            hash: 0,
            progress: Some(Progress { done: 1, total: 2, note: text(note) }),
        };
        let plain = || header(32, 1024, 1024, 0);
        let sessions = |count| vec![session("a"); count];
        let ended = |claim, spec, len| {
            let output = Some(blob(len));
            Message::Ended { claim, spec, output, age: Duration::ZERO }
        };
        let reply = |why| Message::CheckpointReply {
            name: name.clone(),
            run,
            position: Position::default(),
            result: Err(Rejection::Unavailable(text(why))),
        };
        let said = |released| Message::Hearsay {
            said: vec![Said {
                session: session("a"),
                version: 1,
                state: NodeState::Up,
                watermark: 0,
                released: vec![1; released],
                linked: true,
            }],
        };
        let answers = |count, askers, known| Message::Answers {
            answers: vec![
                Reply {
                    held: None,
                    name: name.clone(),
                    epoch: Epoch(1),
                    verdict: Verdict::Ok,
                    askers: sessions(askers),
                    known: vec![claim(0, 0); known],
                };
                count
            ],
        };
        let asks = |count| Message::Ask {
            asks: vec![Question { claim: claim(0, 0), spec: spec(0), from: None }; count],
        };
        let state = |header: Header, len: usize| Message::StateData {
            header: Header { len: len as u64, ..header },
            state: Some(blob(len)),
        };
        let found = |count| Message::Found { offers: vec![(name.clone(), run, None); count] };
        let gone = |count| Message::Gone { sessions: vec![(session("a"), Gone::Left); count] };
        let states =
            |count| Message::States { name: name.clone(), run, headers: vec![plain(); count] };
        let cases: Vec<(Message, Message)> = vec![
            (
                Message::Unheard { sessions: sessions(256) },
                Message::Unheard { sessions: sessions(257) },
            ),
            (
                Message::Buried { sessions: sessions(256) },
                Message::Buried { sessions: sessions(257) },
            ),
            (gone(256), gone(257)),
            (said(64), said(65)),
            (asks(256), asks(257)),
            (answers(256, 0, 0), answers(257, 0, 0)),
            (answers(1, 64, 64), answers(1, 65, 0)),
            (answers(1, 64, 64), answers(1, 0, 65)),
            (found(1000), found(1001)),
            (states(64), states(65)),
            (ended(claim(64, 512), spec(4096), 64 << 10), ended(claim(65, 0), spec(0), 0)),
            (ended(claim(64, 512), spec(4096), 64 << 10), ended(claim(0, 513), spec(0), 0)),
            (ended(claim(64, 512), spec(4096), 64 << 10), ended(claim(0, 0), spec(4097), 0)),
            (
                ended(claim(64, 512), spec(4096), 64 << 10),
                ended(claim(0, 0), spec(0), (64 << 10) + 1),
            ),
            (state(plain(), 64 << 20), state(plain(), (64 << 20) + 1)),
            (state(plain(), 1), state(header(33, 0, 0, 0), 1)),
            (state(plain(), 1), state(header(0, 1025, 0, 0), 1)),
            (state(plain(), 1), state(header(0, 0, 1025, 0), 1)),
            (reply(1024), reply(1025)),
        ];
        for (longest, over) in cases {
            let read_back = read(longest.clone());
            assert!(read_back.is_ok(), "{:?}", read_back.unwrap_err());
            // What is relayed is held to the same.
            let may_be = longest.may_be_relayed();
            for refused in [over.clone(), relayed(over)] {
                let error = read(refused).unwrap_err();
                assert!(matches!(error, BadFrame::OverLimit(_)), "{error}");
                assert!(error.is_foul());
            }
            assert_eq!(read(relayed(longest)).is_ok(), may_be);
        }
    }

    #[test]
    fn what_nobody_says_is_refused_and_what_a_later_build_may_say_is_not_held_against_it() {
        let twice = relayed(relayed(Message::Leave));
        let dead = relayed(Message::Dead { session: session("c") });
        for message in [twice, dead] {
            assert!(matches!(read(message), Err(BadFrame::Unfit(Unfit::Relayed))));
        }
        assert!(read(relayed(Message::Leave)).is_ok());
        #[derive(Serialize)]
        enum Later {
            #[serde(rename = "c")]
            Core(Said),
        }
        #[derive(Serialize)]
        enum Said {
            Anew { list: Vec<u8> },
        }
        let later = encode(&Later::Core(Said::Anew { list: vec![0; 1000] })).unwrap();
        let error = Wire::read(&later).unwrap_err();
        assert!(matches!(error, BadFrame::Undecodable(_)) && !error.is_foul(), "{error}");
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
