//! The last messages sent to each peer, for those that miss fragments of them.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::core::time::Time;

use super::fragments::ASKS;

/// Messages kept per peer, how long, and how often each is answered for.
const KEPT: usize = 4;
const KEPT_FOR: Duration = Duration::from_secs(2);
const RESENDS: u32 = 2 * ASKS;

/// The last messages sent to each peer, for those that miss fragments of them.
pub(super) struct Kept {
    peers: BTreeMap<SocketAddr, VecDeque<Message>>,
    held: usize,
    limit: usize,
}

struct Message {
    number: u64,
    bytes: Bytes,
    chunk: usize,
    count: usize,
    sent: Time,
    resends: u32,
}

/// One fragment to send again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resend {
    pub(super) index: u16,
    pub(super) count: u16,
    pub(super) total: u32,
    pub(super) bytes: Bytes,
}

impl Kept {
    pub(super) fn new(limit: usize) -> Self {
        Self { peers: BTreeMap::new(), held: 0, limit }
    }

    /// Keeps a message that was sent in `count` fragments of `chunk` bytes, unless there is no room.
    pub(super) fn keep(
        &mut self,
        to: SocketAddr,
        number: u64,
        bytes: Bytes,
        (chunk, count): (usize, usize),
        now: Time,
    ) {
        if count < 2 {
            return;
        }
        if self.held + bytes.len() > self.limit {
            self.expire(now);
        }
        let queue = self.peers.entry(to).or_default();
        if queue.len() >= KEPT {
            self.held -= queue.pop_front().map_or(0, |oldest| oldest.bytes.len());
        }
        if self.held + bytes.len() > self.limit {
            return;
        }
        self.held += bytes.len();
        queue.push_back(Message { number, bytes, chunk, count, sent: now, resends: 0 });
    }

    /// The fragments of a message that a peer misses; none if it is no longer kept, or was asked
    /// for too often.
    pub(super) fn missing(&mut self, to: SocketAddr, number: u64, bitmap: &[u8]) -> Vec<Resend> {
        let Some(message) = self
            .peers
            .get_mut(&to)
            .and_then(|queue| queue.iter_mut().find(|message| message.number == number))
        else {
            return Vec::new();
        };
        if message.resends == RESENDS {
            return Vec::new();
        }
        message.resends += 1;
        let message = &*message;
        named(bitmap)
            .take_while(|index| *index < message.count)
            .map(|index| {
                let start = index * message.chunk;
                let end = (start + message.chunk).min(message.bytes.len());
                Resend {
                    index: index as u16,
                    count: message.count as u16,
                    total: message.bytes.len() as u32,
                    bytes: message.bytes.slice(start..end),
                }
            })
            .collect()
    }

    /// Lets go of what is too old to be asked for.
    pub(super) fn expire(&mut self, now: Time) {
        let held = &mut self.held;
        self.peers.retain(|_, queue| {
            queue.retain(|message| {
                let keep = now.since(message.sent) <= KEPT_FOR;
                if !keep {
                    *held -= message.bytes.len();
                }
                keep
            });
            !queue.is_empty()
        });
    }
}

/// The fragments a bitmap names, ascending.
fn named(bitmap: &[u8]) -> impl Iterator<Item = usize> + '_ {
    bitmap.iter().enumerate().flat_map(|(byte, bits)| {
        (0..8).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| byte * 8 + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::super::fragments::split;
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    fn address() -> SocketAddr {
        ([127, 0, 0, 1], 4000).into()
    }

    #[test]
    fn a_sender_answers_only_for_what_it_keeps_and_not_for_ever() {
        let mut kept = Kept::new(100_000);
        let bytes = Bytes::from(vec![1; 40_000]);
        let plan = split(bytes.len(), 1300);
        kept.keep(address(), 1, bytes.clone(), plan, at(0));
        kept.keep(address(), 2, bytes.clone(), plan, at(0));
        kept.keep(address(), 3, bytes.clone(), plan, at(0));
        assert!(kept.held <= 100_000);
        assert_eq!(kept.missing(address(), 3, &[1]), []);
        assert_eq!(kept.missing(([127, 0, 0, 1], 1).into(), 1, &[1]), []);
        let answers = (0..100).filter(|_| kept.missing(address(), 1, &[1]).len() == 1).count();
        assert_eq!(answers as u32, RESENDS);
        kept.expire(at(3000));
        assert_eq!(kept.held, 0);
        assert_eq!(kept.missing(address(), 2, &[1]), []);
    }
}
