//! What waits to be sent to one peer: two queues, bounded in bytes and in messages.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::frame::{self, Class};
use super::{LinkLimits, QueueLimits};

/// Why a message was not taken. Nothing of it was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SendError {
    /// There is no link and none is being made.
    #[error("there is no link to this session: wait until it is up")]
    NotLinked,
    /// The peer reads more slowly than it is sent to.
    #[error(
        "the queue to this session is full ({messages} messages, {bytes} bytes): wait, or send less"
    )]
    Full {
        /// Messages that wait.
        messages: usize,
        /// Bytes that wait.
        bytes: usize,
    },
    /// Longer than the peer would accept.
    #[error("a message of {len} bytes is over the limit of {limit} bytes: split it")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
}

#[derive(Debug)]
struct Queue {
    limits: QueueLimits,
    messages: VecDeque<Bytes>,
    bytes: usize,
    /// How much of the first message is packed.
    packed: usize,
}

impl Queue {
    const fn new(limits: QueueLimits) -> Self {
        Self { limits, messages: VecDeque::new(), bytes: 0, packed: 0 }
    }

    /// An empty queue takes any message, or one near the limit could never be sent.
    fn has_room(&self, len: usize) -> bool {
        self.messages.is_empty()
            || (self.messages.len() < self.limits.messages
                && self.bytes.saturating_add(len) <= self.limits.bytes)
    }

    /// Appends what fits; false when the frame is full.
    fn pack(&mut self, class: Class, frame: &mut Vec<u8>) -> bool {
        while let Some(message) = self.messages.front() {
            let Some(packed) = frame::put_piece(frame, class, message, self.packed) else {
                return false;
            };
            if packed < message.len() {
                self.packed = packed;
                return false;
            }
            self.bytes -= message.len();
            self.packed = 0;
            self.messages.pop_front();
        }
        true
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
        self.packed = 0;
    }
}

#[derive(Debug)]
struct State {
    open: bool,
    finishing: bool,
    control: Queue,
    bulk: Queue,
}

impl State {
    fn queue(&mut self, class: Class) -> &mut Queue {
        match class {
            Class::Control => &mut self.control,
            Class::Bulk => &mut self.bulk,
        }
    }
}

/// The two queues of a peer. Starts open.
#[derive(Debug)]
pub(super) struct Outbox {
    max_control: usize,
    max_bulk: usize,
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
}

impl Outbox {
    pub(super) fn new(limits: &LinkLimits) -> Self {
        Self {
            max_control: limits.max_control,
            max_bulk: limits.max_message,
            state: Mutex::new(State {
                open: true,
                finishing: false,
                control: Queue::new(limits.control),
                bulk: Queue::new(limits.bulk),
            }),
            filled: Notify::new(),
            emptied: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message; never waits.
    pub(super) fn push(&self, class: Class, message: Bytes) -> Result<(), SendError> {
        let limit = match class {
            Class::Control => self.max_control,
            Class::Bulk => self.max_bulk,
        };
        if message.len() > limit {
            return Err(SendError::TooLarge { len: message.len(), limit });
        }
        let mut state = self.state();
        if !state.open {
            return Err(SendError::NotLinked);
        }
        let queue = state.queue(class);
        if !queue.has_room(message.len()) {
            return Err(SendError::Full { messages: queue.messages.len(), bytes: queue.bytes });
        }
        queue.bytes += message.len();
        queue.messages.push_back(message);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Bytes that wait, of both classes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let state = self.state();
        state.control.bytes + state.bulk.bytes
    }

    /// Moves what is most urgent into an empty frame; false if nothing waits.
    pub(super) fn pack(&self, frame: &mut Vec<u8>) -> bool {
        let mut state = self.state();
        for class in Class::ALL {
            if !state.queue(class).pack(class, frame) {
                break;
            }
        }
        drop(state);
        if frame.is_empty() {
            return false;
        }
        self.emptied.notify_waiters();
        true
    }

    /// Returns when something may have been queued, or [`Self::finish`] was called. Cancel-safe; for
    /// one waiter.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Takes messages (again).
    pub(super) fn open(&self) {
        let mut state = self.state();
        state.open = !state.finishing;
    }

    /// For a new connection: a message that went out in part goes out whole.
    pub(super) fn rewind(&self) {
        let mut state = self.state();
        for class in Class::ALL {
            state.queue(class).packed = 0;
        }
    }

    /// Drops what waits and takes nothing more.
    pub(super) fn close(&self) {
        self.state().open = false;
        self.drop_waiting();
    }

    /// Drops what waits: the peer would not have it.
    pub(super) fn drop_waiting(&self) {
        let mut state = self.state();
        for class in Class::ALL {
            state.queue(class).clear();
        }
        drop(state);
        self.emptied.notify_waiters();
    }

    /// Takes nothing more; the connection ends when all is sent.
    pub(super) fn finish(&self) {
        let mut state = self.state();
        state.open = false;
        state.finishing = true;
        drop(state);
        self.emptied.notify_waiters();
        self.filled.notify_one();
    }

    /// Whether [`Self::finish`] was called.
    pub(super) fn is_finishing(&self) -> bool {
        self.state().finishing
    }

    /// Whether [`Self::finish`] was called and nothing waits.
    pub(super) fn is_finished(&self) -> bool {
        let state = self.state();
        state.finishing && state.control.messages.is_empty() && state.bulk.messages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn outbox(messages: usize, bytes: usize) -> Outbox {
        let queue = QueueLimits { messages, bytes };
        Outbox::new(&LinkLimits {
            max_message: 1 << 20,
            control: queue,
            bulk: queue,
            ..LinkLimits::default()
        })
    }

    fn message(len: usize) -> Bytes {
        vec![7; len].into()
    }

    #[test]
    fn a_queue_is_bounded_in_messages_and_in_bytes() {
        let outbox = outbox(2, 100);
        outbox.push(Class::Control, message(10)).unwrap();
        outbox.push(Class::Control, message(10)).unwrap();
        assert_eq!(
            outbox.push(Class::Control, message(10)),
            Err(SendError::Full { messages: 2, bytes: 20 })
        );
        outbox.push(Class::Bulk, message(100)).unwrap();
        assert_eq!(
            outbox.push(Class::Bulk, message(1)),
            Err(SendError::Full { messages: 1, bytes: 100 })
        );
        assert_eq!(outbox.bytes(), 120);
    }

    #[test]
    fn an_empty_queue_takes_what_no_queue_would() {
        let outbox = outbox(2, 100);
        outbox.push(Class::Bulk, message(1000)).unwrap();
        assert_eq!(
            outbox.push(Class::Bulk, message((1 << 20) + 1)),
            Err(SendError::TooLarge { len: (1 << 20) + 1, limit: 1 << 20 })
        );
    }

    #[test]
    fn control_is_packed_before_the_rest_of_bulk() {
        let outbox = outbox(10, 1 << 20);
        let mut assembler = frame::Assembler::new(1 << 20, 1 << 20);
        let mut complete = Vec::new();
        let mut frame = Vec::new();
        outbox.push(Class::Bulk, message(3 * frame::FRAME)).unwrap();
        assert!(outbox.pack(&mut frame));
        assembler.feed(&frame, &mut complete).unwrap();
        outbox.push(Class::Control, message(5)).unwrap();
        frame.clear();
        assert!(outbox.pack(&mut frame));
        assembler.feed(&frame, &mut complete).unwrap();
        assert_eq!(complete, [message(5)]);
    }

    #[test]
    fn after_a_break_a_message_is_packed_from_its_beginning() {
        let outbox = outbox(10, 1 << 20);
        let whole = message(2 * frame::FRAME);
        outbox.push(Class::Bulk, whole.clone()).unwrap();
        let mut frame = Vec::new();
        assert!(outbox.pack(&mut frame));
        outbox.rewind();
        let mut assembler = frame::Assembler::new(1 << 20, 1 << 20);
        let mut complete = Vec::new();
        frame.clear();
        while outbox.pack(&mut frame) {
            assembler.feed(&frame, &mut complete).unwrap();
            frame.clear();
        }
        assert_eq!(complete, [whole]);
        assert_eq!(outbox.bytes(), 0);
    }
}
