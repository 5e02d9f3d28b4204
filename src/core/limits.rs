//! What anything of a peer's may be at most (Rule 26), held to while it is decoded: what is over a
//! limit is refused before it is allocated.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Args, in bytes.
pub const ARGS: usize = 4 << 10;
/// A state, in bytes.
pub const STATE: usize = 64 << 20;
/// An output, in bytes.
pub const OUTPUT: usize = 64 << 10;
/// A line for people, or a label, in bytes.
pub const TEXT: usize = 1 << 10;
/// Names or sessions spoken of in one message.
pub const LISTED: usize = 256;
/// Names offered by who has found them on its disk, in one message.
pub const FOUND: usize = 1000;
/// What is listed of one name or session: releases, askers, claims.
pub const OF_ONE: usize = 64;

/// What the message of every error begins with that a limit causes.
pub const REFUSED: &str = "over the limit: ";

/// A list of at most `MAX`.
pub fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            if let Some(count) = items.size_hint().filter(|count| *count > MAX) {
                return Err(over(count, MAX));
            }
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() >= MAX {
                    return Err(over(list.len() + 1, MAX));
                }
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(List::<T, MAX>(PhantomData))
}

/// A text of at most `MAX` bytes.
pub fn text<'de, D: Deserializer<'de>, const MAX: usize>(
    deserializer: D,
) -> Result<String, D::Error> {
    struct Text<const MAX: usize>;

    impl<const MAX: usize> Visitor<'_> for Text<MAX> {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a text of at most {MAX} bytes")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
            if text.len() > MAX { Err(over(text.len(), MAX)) } else { Ok(text.to_owned()) }
        }
    }

    deserializer.deserialize_str(Text::<MAX>)
}

/// At most `MAX` bytes.
pub fn bytes<'de, D: Deserializer<'de>, const MAX: usize>(
    deserializer: D,
) -> Result<Bytes, D::Error> {
    Short::<MAX>::deserialize(deserializer).map(|short| short.0)
}

/// At most `MAX` bytes, or none.
pub fn optional_bytes<'de, D: Deserializer<'de>, const MAX: usize>(
    deserializer: D,
) -> Result<Option<Bytes>, D::Error> {
    Ok(Option::<Short<MAX>>::deserialize(deserializer)?.map(|short| short.0))
}

struct Short<const MAX: usize>(Bytes);

impl<'de, const MAX: usize> Deserialize<'de> for Short<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Blob<const MAX: usize>;

        impl<'de, const MAX: usize> Visitor<'de> for Blob<MAX> {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                if bytes.len() > MAX {
                    return Err(over(bytes.len(), MAX));
                }
                Ok(Bytes::copy_from_slice(bytes))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Bytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = items.next_element()? {
                    if bytes.len() >= MAX {
                        return Err(over(bytes.len() + 1, MAX));
                    }
                    bytes.push(byte);
                }
                Ok(bytes.into())
            }
        }

        deserializer.deserialize_bytes(Blob::<MAX>).map(Self)
    }
}

fn over<E: Error>(found: usize, most: usize) -> E {
    E::custom(format_args!("{REFUSED}{found} where {most} are allowed"))
}

/// The longest beginning of a text that is no longer than so many bytes.
pub fn clipped(mut text: String, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
