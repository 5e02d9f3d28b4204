//! Virtual time: what is due, and when a machine is woken.

use std::time::Duration;

use super::gossip::Says;
use super::{MS, World};
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Event, Now};
use crate::core::message::Message;
use crate::core::time::Time;

#[derive(Clone, Debug)]
pub(super) enum Due {
    Deliver {
        to: SessionId,
        event: Event,
    },
    /// A frame on the link between two sessions: lost if the link is not up when it arrives.
    Frame {
        from: SessionId,
        to: SessionId,
        message: Message,
    },
    Datagram {
        from: SessionId,
        to: SessionId,
        sent: Time,
        echo: Option<Time>,
        header: Says,
        /// It is to be answered at once.
        probe: bool,
    },
    Gossip {
        from: SessionId,
        to: SessionId,
    },
    Step {
        node: SessionId,
        name: Name,
        generation: u64,
    },
    /// A step's grace is over: it is dropped.
    Grace {
        node: SessionId,
        name: Name,
        generation: u64,
    },
    Round {
        node: SessionId,
    },
    Wake {
        node: SessionId,
    },
    LinkCheck {
        a: SessionId,
        b: SessionId,
    },
}

impl World {
    pub(in super::super) fn clock(&self) -> Now {
        Now { at: self.now, unix: self.unix + self.now.as_micros() / 1_000_000 }
    }

    pub(in super::super) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((&key, _)) = self.queue.first_key_value() {
            if key.0 > end {
                break;
            }
            let Some(due) = self.queue.remove(&key) else { break };
            self.now = self.now.max(key.0);
            self.happen(due);
        }
        self.now = end;
    }

    /// Runs until a condition holds; panics after `limit`.
    pub(in super::super) fn run_until(
        &mut self,
        limit: Duration,
        what: &str,
        test: impl Fn(&Self) -> bool,
    ) {
        let end = self.now + limit;
        while !test(self) {
            assert!(self.now < end, "after {limit:?} still not: {what}");
            self.run_for(MS * 10);
        }
    }

    pub(super) fn at(&mut self, after: Duration, due: Due) {
        self.order += 1;
        self.queue.insert((self.now + after, self.order), due);
    }

    fn happen(&mut self, due: Due) {
        let tenth = self.now.as_micros() / 100_000;
        self.busy = if self.busy.0 == tenth { (tenth, self.busy.1 + 1) } else { (tenth, 0) };
        assert!(self.busy.1 < self.max_events, "a livelock at {}: {due:?}", self.now);
        match due {
            Due::Deliver { to, event } => self.give(&to, event),
            Due::Frame { from, to, message } => {
                if self.linked(&from, &to) && !self.is_cut(&from, &to) {
                    self.give(&to, Event::Message { from, message });
                }
            }
            Due::Datagram { from, to, sent, echo, header, probe } => {
                if self.is_cut(&from, &to) || !self.is_alive(&to) || self.is_paused(&to) {
                    return;
                }
                if let Some(node) = self.nodes.get_mut(&to) {
                    let seen = node.seen.entry(from.clone()).or_insert(sent);
                    *seen = (*seen).max(sent);
                }
                let (state, version, watermark, released) = header;
                let sender = from.clone();
                let event =
                    Event::Heard { from, state, version, watermark, released, echoed: echo };
                self.give(&to, event);
                if probe {
                    self.datagram(&to, &sender, false);
                }
            }
            Due::Gossip { from, to } => {
                self.exchange(&from, &to);
                self.pushes.remove(&(from, to));
            }
            Due::Step { node, name, generation } => self.step_done(&node, &name, generation),
            Due::Grace { node, name, generation } => self.grace_over(&node, &name, generation),
            Due::Round { node } => self.round(&node),
            Due::Wake { node } => self.wake(&node),
            Due::LinkCheck { a, b } => self.link_check(&a, &b),
        }
    }

    /// Whatever happens to a machine can make it want to be woken earlier than before.
    pub(super) fn wake_in_time(&mut self, session: &SessionId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(session).filter(|node| node.alive) else { return };
        let next = node.machine.next_timeout().max(now + MS);
        if next < node.wakes {
            node.wakes = next;
            self.at(next.since(now), Due::Wake { node: session.clone() });
        }
    }

    fn wake(&mut self, session: &SessionId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(session) else { return };
        // An earlier one has come before it.
        if !node.alive || now < node.wakes {
            return;
        }
        node.wakes = Time::from_micros(u64::MAX);
        self.give(session, Event::Tick);
        while let Some(event) = self.nodes.get_mut(session).and_then(|node| node.inbox.pop_front())
        {
            self.give(session, event);
        }
    }
}
