//! Args, states and outputs as bytes: MessagePack with field names, so that fields can be added and
//! removed between revisions in both directions.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::core::limits;

/// What is encoded; each has its own limit and its own way out when the limit is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// A task's args: gossiped to every node.
    Args,
    /// A task's state: replicated and handed over.
    State,
    /// A task's output: kept for the retention on several nodes.
    Output,
}

impl Value {
    const fn noun(self) -> &'static str {
        match self {
            Self::Args => "args",
            Self::State => "a state",
            Self::Output => "an output",
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Args => "put the data where every node can read it and pass its address",
            Self::State => "keep bulk data in a file or a store and checkpoint its address",
            Self::Output => {
                "store the result where its readers can reach it and return its address"
            }
        }
    }
}

/// The longest encodings allowed, in bytes (Rule 26).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of args.
    pub args: usize,
    /// Of a state.
    pub state: usize,
    /// Of an output.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { args: limits::ARGS, state: limits::STATE, output: limits::OUTPUT }
    }
}

impl Limits {
    const fn of(&self, value: Value) -> usize {
        match value {
            Value::Args => self.args,
            Value::State => self.state,
            Value::Output => self.output,
        }
    }
}

/// Why a value could not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// It is longer than its limit.
    #[error("{} over the limit of {limit} bytes: {}", what.noun(), what.advice())]
    TooLarge {
        /// What it is.
        what: Value,
        /// The limit in bytes.
        limit: usize,
    },
    /// Its `Serialize` refused, or it is nested too deeply to be read again.
    #[error("{} cannot be encoded: {why}; look at its Serialize implementation", what.noun())]
    Refused {
        /// What it is.
        what: Value,
        /// Why.
        why: String,
    },
}

/// Why bytes could not be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// They are longer than the limit; nothing was decoded.
    #[error("{} of {len} bytes over the limit of {limit} bytes: {}", what.noun(), what.advice())]
    TooLarge {
        /// What they should be.
        what: Value,
        /// Their length.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// They do not fit the type.
    #[error(
        "{} of {len} bytes does not fit the type of this build ({why}): give new fields a default, or raise the state's version",
        what.noun()
    )]
    Mismatch {
        /// What they should be.
        what: Value,
        /// Their length.
        len: usize,
        /// Where they differ.
        why: String,
    },
}

/// Whether an encoding of `len` bytes may be kept.
pub(crate) const fn check_len(len: usize, what: Value, limits: &Limits) -> Result<(), EncodeError> {
    let limit = limits.of(what);
    if len > limit { Err(EncodeError::TooLarge { what, limit }) } else { Ok(()) }
}

/// Encodes a value; never holds more than its limit in memory.
pub(crate) fn encode<T: Serialize>(
    value: &T,
    what: Value,
    limits: &Limits,
) -> Result<Bytes, EncodeError> {
    let limit = limits.of(what);
    codec::encode(value, limit).map_err(|error| match error {
        codec::EncodeError::TooLarge { limit } => EncodeError::TooLarge { what, limit },
        codec::EncodeError::Unencodable(why) => EncodeError::Refused { what, why },
    })
}

/// Decodes a value; bytes over the limit are refused unread.
pub(crate) fn decode<T: DeserializeOwned>(
    bytes: &[u8],
    what: Value,
    limits: &Limits,
) -> Result<T, DecodeError> {
    let (len, limit) = (bytes.len(), limits.of(what));
    if len > limit {
        return Err(DecodeError::TooLarge { what, len, limit });
    }
    codec::decode(bytes).map_err(|error| DecodeError::Mismatch {
        what,
        len,
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        read: u64,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        #[serde(default)]
        written: u64,
        read: u64,
    }

    #[test]
    fn an_added_field_survives_an_upgrade_and_a_rollback() {
        let limits = Limits::default();
        let old = encode(&Old { read: 7 }, Value::State, &limits).unwrap();
        let up: New = decode(&old, Value::State, &limits).unwrap();
        assert_eq!(up, New { written: 0, read: 7 });
        let new = encode(&New { written: 3, read: 8 }, Value::State, &limits).unwrap();
        let down: Old = decode(&new, Value::State, &limits).unwrap();
        assert_eq!(down, Old { read: 8 });
    }

    #[test]
    fn a_value_at_its_limit_passes_and_one_byte_more_says_what_to_do() {
        let limits = Limits::default();
        let fits = "x".repeat(limits.args - 3);
        assert_eq!(encode(&fits, Value::Args, &limits).unwrap().len(), 4096);
        let error = encode(&format!("{fits}x"), Value::Args, &limits).unwrap_err();
        assert_eq!(
            error.to_string(),
            "args over the limit of 4096 bytes: put the data where every node can read it and pass its address"
        );
    }

    #[test]
    fn bytes_over_the_limit_are_refused_unread() {
        let limits = Limits { output: 8, ..Limits::default() };
        let error = decode::<String>(&[0xff; 9], Value::Output, &limits).unwrap_err();
        assert!(matches!(error, DecodeError::TooLarge { len: 9, limit: 8, .. }));
    }

    #[test]
    fn an_unknown_variant_is_an_error_and_no_other_variant() {
        #[derive(Serialize)]
        enum Newer {
            Added,
        }
        #[derive(Debug, Deserialize)]
        enum Older {
            #[allow(dead_code)]
            Known,
        }
        let limits = Limits::default();
        let bytes = encode(&Newer::Added, Value::State, &limits).unwrap();
        let error = decode::<Older>(&bytes, Value::State, &limits).unwrap_err();
        assert!(matches!(error, DecodeError::Mismatch { .. }), "{error}");
    }
}
