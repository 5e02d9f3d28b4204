//! Users' values as bytes: MessagePack with field names, so that a field can be added on either
//! side of a deploy, and an unknown enum variant is an error rather than another variant.

use std::io;

use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

/// Bound on containers inside containers, the same as serde_json's: deeper values would overflow
/// the stack of whoever decodes them.
const MAX_DEPTH: usize = 128;

/// Why a value could not be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EncodeError {
    /// It is over the limit. Encoding stopped there.
    #[error(
        "the encoded value is over the limit of {limit} bytes: keep bulk data elsewhere and refer to it"
    )]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// Its type cannot be written, or it is nested too deeply to be read again.
    #[error("the value cannot be encoded: {0}")]
    Unencodable(String),
}

/// Why bytes could not be decoded as a value of the expected type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// They are no such value: a missing field without a default, an unknown variant, another type.
    #[error(
        "the bytes are no value of this type: {0}; give added fields a default, and read old variants under their old names"
    )]
    Mismatch(String),
    /// A value, and then something else.
    #[error("{0} bytes follow the value: these are not the bytes that were encoded")]
    Trailing(usize),
}

/// Encodes a value. No more than `limit` bytes are ever written.
///
/// # Errors
/// See [`EncodeError`].
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, limit: usize) -> Result<Bytes, EncodeError> {
    let mut out = Bounded { bytes: Vec::new(), limit, over: false };
    let mut serializer = rmp_serde::Serializer::new(&mut out).with_struct_map();
    let written = value.serialize(&mut serializer);
    if out.over {
        return Err(EncodeError::TooLarge { limit });
    }
    written
        .map_err(|error| error.to_string())
        .and_then(|()| check(&out.bytes).map_err(|error| error.to_string()))
        .map_err(EncodeError::Unencodable)?;
    Ok(out.bytes.into())
}

/// Decodes a value.
///
/// # Errors
/// See [`DecodeError`].
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    check(bytes)?;
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_DEPTH + 1);
    T::deserialize(&mut deserializer).map_err(|error| DecodeError::Mismatch(error.to_string()))
}

/// Checks that the bytes are one value of bounded depth. The typed decoder does not do it: it
/// counts no depth through newtype variants, and ignores what follows.
fn check(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut rest = bytes;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    // The limit is refused when it is reached, hence the one above.
    deserializer.set_max_depth(MAX_DEPTH + 1);
    IgnoredAny::deserialize(&mut deserializer)
        .map_err(|error| DecodeError::Mismatch(error.to_string()))?;
    match rest.len() {
        0 => Ok(()),
        surplus => Err(DecodeError::Trailing(surplus)),
    }
}

struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    over: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // An encoder may swallow an error; from here on nothing is taken.
        self.over |= buf.len() > self.limit - self.bytes.len();
        if self.over {
            return Err(io::Error::other("over the limit"));
        }
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::{Deserialize, Serializer};

    use super::*;

    const LIMIT: usize = 1 << 20;

    fn recoded<A: Serialize, B: DeserializeOwned>(value: &A) -> Result<B, DecodeError> {
        decode(&encode(value, LIMIT).unwrap())
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        done: u64,
        name: String,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        done: u64,
        #[serde(default)]
        inserted: Vec<u32>,
        #[serde(alias = "name")]
        title: String,
        #[serde(default)]
        added: Option<f64>,
    }

    #[test]
    fn an_upgrade_fills_added_fields_with_their_defaults() {
        let old = Old { done: 7, name: "x".into() };
        assert_eq!(
            recoded::<_, New>(&old),
            Ok(New { done: 7, inserted: vec![], title: "x".into(), added: None })
        );
    }

    #[test]
    fn a_rollback_ignores_added_fields() {
        #[derive(Serialize)]
        struct Newer {
            done: u64,
            inserted: Vec<u32>,
            name: String,
            added: BTreeMap<String, (u8, Option<String>)>,
        }
        let newer = Newer {
            done: 7,
            inserted: vec![1, 2],
            name: "x".into(),
            added: BTreeMap::from([("k".into(), (1, None))]),
        };
        assert_eq!(recoded::<_, Old>(&newer), Ok(Old { done: 7, name: "x".into() }));
    }

    #[test]
    fn a_field_that_is_missing_without_a_default_is_an_error() {
        #[derive(Debug, Deserialize)]
        struct Demanding {
            #[allow(dead_code)]
            demanded: u64,
        }
        let old = Old { done: 7, name: "x".into() };
        let error = recoded::<_, Demanding>(&old).unwrap_err();
        assert!(
            matches!(&error, DecodeError::Mismatch(text) if text.contains("demanded")),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_variant_is_an_error_and_an_inserted_one_shifts_nothing() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        enum Before {
            Reading,
            Writing { at: u64 },
        }
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        enum After {
            Reading,
            Checking,
            CheckingAt { at: u64 },
            Writing { at: u64 },
        }
        assert_eq!(recoded::<_, After>(&Before::Writing { at: 3 }), Ok(After::Writing { at: 3 }));
        assert_eq!(recoded::<_, Before>(&After::Writing { at: 3 }), Ok(Before::Writing { at: 3 }));
        for unknown in [After::Checking, After::CheckingAt { at: 3 }] {
            assert!(
                matches!(recoded::<_, Before>(&unknown), Err(DecodeError::Mismatch(_))),
                "{unknown:?}"
            );
        }
    }

    #[test]
    fn the_limit_holds_while_writing() {
        struct Endless<'a>(&'a Cell<u32>);
        impl Serialize for Endless<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeSeq;
                let mut seq = serializer.serialize_seq(Some(1_000_000))?;
                for n in 0..1_000_000u32 {
                    self.0.set(n);
                    seq.serialize_element(&[0u8; 16])?;
                }
                seq.end()
            }
        }
        let reached = Cell::new(0);
        assert_eq!(encode(&Endless(&reached), 1000), Err(EncodeError::TooLarge { limit: 1000 }));
        assert!(reached.get() < 100, "it went on to element {}", reached.get());
    }

    #[test]
    fn the_limit_is_exact() {
        let text = "x".repeat(100);
        let len = encode(&text, LIMIT).unwrap().len();
        assert_eq!(encode(&text, len).unwrap().len(), len);
        assert_eq!(encode(&text, len - 1), Err(EncodeError::TooLarge { limit: len - 1 }));
        assert_eq!(encode(&(), 0), Err(EncodeError::TooLarge { limit: 0 }));
    }

    #[test]
    fn what_follows_a_value_is_an_error() {
        let mut bytes = encode(&7u8, LIMIT).unwrap().to_vec();
        bytes.push(0);
        assert_eq!(decode::<u8>(&bytes), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn hostile_lengths_and_depths_are_errors() {
        // An array of 2^32 - 1 elements, in five bytes.
        assert!(decode::<Vec<u64>>(&[0xdd, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(decode::<String>(&[0xdb, 0xff, 0xff, 0xff, 0xff]).is_err());
        #[derive(Debug, Deserialize)]
        struct Nest(#[allow(dead_code)] Vec<Nest>);
        assert!(decode::<Nest>(&vec![0x91; 1_000_000]).is_err());
        #[derive(Debug, Deserialize)]
        enum Chain {
            W(#[allow(dead_code)] Box<Chain>),
        }
        assert!(decode::<Chain>(&[0x81, 0xa1, b'W'].repeat(1_000_000)).is_err());
    }

    /// A state that could be written and never read again would be lost at the next move.
    #[test]
    fn whatever_depth_can_be_written_can_be_read() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        enum List {
            End,
            Cons { rest: Box<List> },
            Wrap(Box<List>),
            Pair(u8, Box<List>),
            Maybe(Option<Vec<List>>),
        }
        let grow: [fn(List) -> List; 4] = [
            |list| List::Cons { rest: list.into() },
            |list| List::Wrap(list.into()),
            |list| List::Pair(1, list.into()),
            |list| List::Maybe(Some(vec![list])),
        ];
        for grow in grow {
            let mut list = List::End;
            let mut depth = 0;
            while let Ok(bytes) = encode(&list, LIMIT) {
                assert_eq!(decode::<List>(&bytes).as_ref(), Ok(&list), "depth {depth}");
                list = grow(list);
                depth += 1;
                assert!(depth < 10_000, "no bound on the depth");
            }
            assert!(depth >= 60, "only {depth} levels");
        }
    }

    proptest! {
        #[test]
        fn values_survive(
            map in prop::collection::btree_map(any::<(i64, bool)>(), (any::<u128>(), any::<f64>(), ".*"), 0..20),
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            option: Option<char>,
        ) {
            let value = (map, bytes, option);
            type Value = (BTreeMap<(i64, bool), (u128, f64, String)>, Vec<u8>, Option<char>);
            prop_assert_eq!(recoded::<_, Value>(&value), Ok(value));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<New>(&bytes);
            let _ = decode::<Vec<BTreeMap<String, Option<Vec<u8>>>>>(&bytes);
        }
    }
}
