//! Who and what is spoken of: nodes, sessions, names, kinds, runs.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::de::{self, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

/// Why a text was refused as an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// Nothing was given.
    #[error("a {what} must not be empty: give it at least one character")]
    Empty {
        /// What was being named.
        what: &'static str,
    },
    /// Longer than the limit.
    #[error(
        "a {what} of {len} bytes is over the limit of {limit} bytes: shorten it, or hash the variable part"
    )]
    TooLong {
        /// What was being named.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A control character would corrupt logs and terminals.
    #[error(
        "a {what} must not contain control characters (one stands at byte {at}): remove or escape it"
    )]
    Control {
        /// What was being named.
        what: &'static str,
        /// Byte offset of the first one.
        at: usize,
    },
}

fn checked(text: &str, what: &'static str, limit: usize) -> Result<Arc<str>, InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty { what });
    }
    if text.len() > limit {
        return Err(InvalidName::TooLong { what, len: text.len(), limit });
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, _)) => Err(InvalidName::Control { what, at }),
        None => Ok(text.into()),
    }
}

/// What all identifiers that are texts have in common; each has a field `text`.
macro_rules! text_id {
    ($name:ident, $what:literal, $limit:literal) => {
        impl $name {
            /// Longest allowed, in bytes.
            pub const MAX_LEN: usize = $limit;

            /// Checks and takes the text.
            ///
            /// # Errors
            /// Empty, longer than [`Self::MAX_LEN`], or holding control characters.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                checked(text.as_ref(), $what, $limit).map(Self::of)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.text
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().into()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                /// Takes the text where it stands in the input: no copy before it is checked.
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a ", $what))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::new(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }
    };
}

/// The name of a task, unique in the cluster.
///
/// Names are ordered by a digest of their text, the same on every node: maps of names are searched
/// all the time, and names tend to begin alike. Sort by [`Name::as_str`] what people read.
#[derive(Clone)]
pub struct Name {
    digest: u64,
    text: Arc<str>,
}

text_id!(Name, "task name", 255);

impl Name {
    fn of(text: Arc<str>) -> Self {
        Self { digest: xxh3_64(text.as_bytes()), text }
    }

    /// The 64-bit XXH3 of the text. Not secret: names that collide can be made.
    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.text == other.text
    }
}

impl Eq for Name {}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.digest.cmp(&other.digest).then_with(|| self.text.cmp(&other.text))
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

macro_rules! short_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub struct $name {
            text: Arc<str>,
        }

        text_id!($name, $what, $limit);

        impl $name {
            const fn of(text: Arc<str>) -> Self {
                Self { text }
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                self.text.cmp(&other.text)
            }
        }
    };
}

short_id! {
    /// The stable name of a node, the same after a restart (a host name, a StatefulSet pod name).
    NodeId, "node id", 64
}
short_id! {
    /// The kind of a task: which code runs it.
    Kind, "task kind", 64
}

/// One life of one process of a node: what a lease is held by (Rule 1).
#[derive(Clone, Eq, Deserialize)]
pub struct SessionId {
    /// The node.
    #[serde(rename = "n", alias = "node")]
    pub node: NodeId,
    /// Drawn once per process; survives a restart of gossip inside it.
    #[serde(rename = "p", alias = "nonce")]
    pub nonce: Uuid,
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        pair(serializer, ("n", "node", &self.node), ("p", "nonce", &self.nonce))
    }
}

/// Two fields, whose names are short where nobody reads them: they are in every claim.
fn pair<S: Serializer>(
    serializer: S,
    (short, long, first): (&'static str, &'static str, &impl Serialize),
    (second_short, second_long, second): (&'static str, &'static str, &impl Serialize),
) -> Result<S::Ok, S::Error> {
    let named = serializer.is_human_readable();
    let mut fields = serializer.serialize_struct("", 2)?;
    fields.serialize_field(if named { long } else { short }, first)?;
    fields.serialize_field(if named { second_long } else { second_short }, second)?;
    fields.end()
}

impl SessionId {
    /// Of a node's process.
    pub(crate) const fn new(node: NodeId, nonce: Uuid) -> Self {
        Self { node, nonce }
    }
}

impl PartialEq for SessionId {
    /// The nonce alone tells nearly all sessions apart.
    fn eq(&self, other: &Self) -> bool {
        self.nonce == other.nonce && self.node == other.node
    }
}

impl Ord for SessionId {
    /// Any order will do that is the same on all nodes (Rule 9): this one seldom reads a text.
    fn cmp(&self, other: &Self) -> Ordering {
        self.nonce.cmp(&other.nonce).then_with(|| self.node.cmp(&other.node))
    }
}

impl PartialOrd for SessionId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for SessionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nonce.hash(state);
        self.node.hash(state);
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The tail of a v7 uuid is its random part; its head is the same for neighbours in time.
        let low = self.nonce.as_u128() as u32;
        write!(f, "{}#{low:08x}", self.node)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One run of a name (Rule 8): another uuid is another job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct RunId {
    /// Ascending per name.
    #[serde(rename = "n", alias = "number")]
    pub number: u64,
    /// Version 7, so that the lower one is the older run.
    #[serde(rename = "u", alias = "uuid")]
    pub uuid: Uuid,
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        pair(serializer, ("n", "number", &self.number), ("u", "uuid", &self.uuid))
    }
}

impl Ord for RunId {
    /// The higher number wins, then the lower (older) uuid (Rule 9).
    fn cmp(&self, other: &Self) -> Ordering {
        self.number.cmp(&other.number).then_with(|| other.uuid.cmp(&self.uuid))
    }
}

impl PartialOrd for RunId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.uuid)
    }
}
