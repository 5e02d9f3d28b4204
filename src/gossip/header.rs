//! What stands in every datagram once it is opened (Rule 2), and what may follow it.
//!
//! All numbers are big-endian. The header carries its own length, so that a later build can append
//! to it and this one skips what it does not know.

use bytes::{Buf, BufMut};
use uuid::Uuid;

use crate::core::ids::{NodeId, SessionId};
use crate::core::record::NodeState;

use super::rejected::Rejected;

/// Released claim numbers that fit into a probe beside everything else.
pub(super) const MAX_RELEASED: usize = 128;

/// What a datagram says of its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) session: SessionId,
    /// Ascending per session over all its datagrams, from 1.
    pub(super) counter: u64,
    /// What the sender has seen of the receiver.
    pub(super) echo: Option<Echo>,
    pub(super) state: NodeState,
    /// Ascends with each change of state, watermark or releases.
    pub(super) version: u64,
    /// Claims numbered at most this have stopped.
    pub(super) watermark: u64,
    /// Later ones that have stopped too, as many as fit.
    pub(super) released: Vec<u64>,
}

/// The highest counter seen of a session, named by its nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    pub(super) nonce: Uuid,
    pub(super) counter: u64,
}

/// What follows the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload<'a> {
    /// "Are you there?" Whatever follows is padding.
    Probe,
    /// To a probe; it is not answered.
    Answer,
    /// A piece of a chitchat message.
    Fragment(Fragment<'a>),
    /// "These fragments of your message did not arrive."
    Missing {
        message: u64,
        /// Bit `i % 8` of byte `i / 8` stands for fragment `i`.
        bitmap: &'a [u8],
    },
}

/// A piece of a chitchat message. All but the last are of equal length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment<'a> {
    /// Ascending per session.
    pub(super) message: u64,
    pub(super) index: u16,
    pub(super) count: u16,
    /// Length of the whole message.
    pub(super) total: u32,
    pub(super) bytes: &'a [u8],
}

/// What a fragment adds to its bytes.
pub(super) const FRAGMENT_FIELDS: usize = 1 + 8 + 2 + 2 + 4;

/// Longest encoded header, for `released` numbers listed.
pub(super) const fn max_len(node: usize, released: usize) -> usize {
    2 + 1 + node + 16 + 8 + 1 + 24 + 1 + 8 + 1 + released * 8 + 8
}

/// Probes are at least that long, as the longest answer without released numbers is.
pub(super) const PROBE_LEN: usize = max_len(NodeId::MAX_LEN, 0) + 1;

const PROBE: u8 = 0;
const ANSWER: u8 = 1;
const FRAGMENT: u8 = 2;
const MISSING: u8 = 3;

/// Writes a datagram's plaintext into `out`, replacing what is there.
pub(super) fn encode(header: &Header, payload: Payload<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.put_u16(0);
    let node = header.session.node.as_str();
    // An identifier is checked to be at most 64 bytes long.
    out.put_u8(node.len() as u8);
    out.put_slice(node.as_bytes());
    out.put_u128(header.session.nonce.as_u128());
    out.put_u64(header.counter);
    match header.echo {
        None => out.put_u8(0),
        Some(echo) => {
            out.put_u8(1);
            out.put_u128(echo.nonce.as_u128());
            out.put_u64(echo.counter);
        }
    }
    out.put_u8(header.state.code());
    out.put_u64(header.watermark);
    let listed = header.released.len().min(MAX_RELEASED);
    out.put_u8(listed as u8);
    for number in header.released.iter().take(listed) {
        out.put_u64(*number);
    }
    out.put_u64(header.version);
    let len = (out.len() - 2) as u16;
    if let Some(place) = out.first_chunk_mut::<2>() {
        *place = len.to_be_bytes();
    }

    match payload {
        Payload::Probe => out.put_u8(PROBE),
        Payload::Answer => out.put_u8(ANSWER),
        Payload::Fragment(fragment) => {
            out.put_u8(FRAGMENT);
            out.put_u64(fragment.message);
            out.put_u16(fragment.index);
            out.put_u16(fragment.count);
            out.put_u32(fragment.total);
            out.put_slice(fragment.bytes);
        }
        Payload::Missing { message, bitmap } => {
            out.put_u8(MISSING);
            out.put_u64(message);
            out.put_slice(bitmap);
        }
    }
}

/// Reads an opened datagram.
pub(super) fn decode(plaintext: &[u8]) -> Result<(Header, Payload<'_>), Rejected> {
    read(plaintext).ok_or(Rejected::Malformed)
}

fn read(mut bytes: &[u8]) -> Option<(Header, Payload<'_>)> {
    let len = usize::from(bytes.try_get_u16().ok()?);
    let (mut head, mut body) = bytes.split_at_checked(len)?;

    let node_len = usize::from(head.try_get_u8().ok()?);
    let (node, rest) = head.split_at_checked(node_len)?;
    head = rest;
    let node = NodeId::new(std::str::from_utf8(node).ok()?).ok()?;
    let nonce = Uuid::from_u128(head.try_get_u128().ok()?);
    let counter = head.try_get_u64().ok()?;
    let echo = match head.try_get_u8().ok()? {
        0 => None,
        _ => Some(Echo {
            nonce: Uuid::from_u128(head.try_get_u128().ok()?),
            counter: head.try_get_u64().ok()?,
        }),
    };
    // A state of a later build: it lives and keeps what it runs, but is given nothing.
    let state = NodeState::from_code(head.try_get_u8().ok()?).unwrap_or(NodeState::Cordoned);
    let watermark = head.try_get_u64().ok()?;
    let listed = usize::from(head.try_get_u8().ok()?);
    if listed > MAX_RELEASED || head.remaining() < listed * 8 {
        return None;
    }
    let mut released = Vec::with_capacity(listed);
    for _ in 0..listed {
        released.push(head.try_get_u64().ok()?);
    }
    // Of a build that does not number what it says, the later datagram speaks.
    let version = head.try_get_u64().unwrap_or(counter);
    let session = SessionId::new(node, nonce);
    let header = Header { session, counter, echo, state, version, watermark, released };

    let payload = match body.try_get_u8().ok()? {
        PROBE => Payload::Probe,
        ANSWER => Payload::Answer,
        FRAGMENT => Payload::Fragment(Fragment {
            message: body.try_get_u64().ok()?,
            index: body.try_get_u16().ok()?,
            count: body.try_get_u16().ok()?,
            total: body.try_get_u32().ok()?,
            bytes: body,
        }),
        MISSING => Payload::Missing { message: body.try_get_u64().ok()?, bitmap: body },
        _ => return None,
    };
    Some((header, payload))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            session: SessionId::new(NodeId::new("n1").unwrap(), Uuid::from_u128(7)),
            counter: 42,
            echo: Some(Echo { nonce: Uuid::from_u128(9), counter: 41 }),
            state: NodeState::Draining,
            version: 4,
            watermark: 3,
            released: vec![5, 8],
        }
    }

    #[test]
    fn every_payload_survives() {
        let fragment = Fragment { message: 1, index: 2, count: 3, total: 300, bytes: b"abc" };
        for payload in [
            Payload::Probe,
            Payload::Answer,
            Payload::Fragment(fragment),
            Payload::Missing { message: 1, bitmap: &[0xa5] },
        ] {
            let mut out = Vec::new();
            encode(&header(), payload, &mut out);
            assert_eq!(decode(&out).unwrap(), (header(), payload));
        }
    }

    #[test]
    fn a_header_is_never_longer_than_announced() {
        let mut long = header();
        long.session.node = NodeId::new("x".repeat(64)).unwrap();
        long.released = (0..1000).collect();
        let mut out = Vec::new();
        encode(&long, Payload::Probe, &mut out);
        assert_eq!(out.len(), max_len(64, MAX_RELEASED) + 1);
        let (read, _) = decode(&out).unwrap();
        assert_eq!(read.released, (0..MAX_RELEASED as u64).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_later_build_appends_to_the_header_is_skipped() {
        let mut out = Vec::new();
        encode(&header(), Payload::Probe, &mut out);
        let len = usize::from(u16::from_be_bytes([out[0], out[1]]));
        out.splice(2 + len..2 + len, [1, 2, 3]);
        out[..2].copy_from_slice(&(len as u16 + 3).to_be_bytes());
        assert_eq!(decode(&out).unwrap(), (header(), Payload::Probe));
    }

    #[test]
    fn a_state_of_a_later_build_counts_as_cordoned() {
        let mut plain = header();
        plain.echo = None;
        plain.released.clear();
        let mut out = Vec::new();
        encode(&plain, Payload::Probe, &mut out);
        let state = out.len() - 1 - 8 - 1 - 8 - 1;
        assert_eq!(out[state], NodeState::Draining.code());
        out[state] = 200;
        assert_eq!(decode(&out).unwrap().0.state, NodeState::Cordoned);
    }

    #[test]
    fn of_a_build_that_does_not_number_its_headers_the_later_datagram_counts() {
        let mut out = Vec::new();
        encode(&header(), Payload::Probe, &mut out);
        let len = u16::from_be_bytes([out[0], out[1]]) - 8;
        out[..2].copy_from_slice(&len.to_be_bytes());
        out.drain(2 + usize::from(len)..out.len() - 1);
        let (read, payload) = decode(&out).unwrap();
        assert_eq!((read.version, payload), (42, Payload::Probe));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn damaged_headers_never_panic(at in 0usize..100, to in any::<u8>(), len in 0usize..200) {
            let mut out = Vec::new();
            encode(&header(), Payload::Probe, &mut out);
            if let Some(byte) = out.get_mut(at) {
                *byte = to;
            }
            out.truncate(len);
            let _ = decode(&out);
        }
    }
}
