//! Links between two sessions, and the messages on them.

use rand::Rng;

use super::time::Due;
use super::{Fate, MS, Noise, World};
use crate::core::ids::SessionId;
use crate::core::io::Event;
use crate::core::message::Message;

impl World {
    fn pair(a: &SessionId, b: &SessionId) -> (SessionId, SessionId) {
        if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
    }

    pub(super) fn linked(&self, a: &SessionId, b: &SessionId) -> bool {
        self.links.contains(&Self::pair(a, b))
    }

    pub(super) fn unlink(&mut self, a: &SessionId, b: &SessionId) -> bool {
        self.links.remove(&Self::pair(a, b))
    }

    pub(super) fn link_check(&mut self, a: &SessionId, b: &SessionId) {
        if !self.is_alive(a) || !self.is_alive(b) {
            return;
        }
        let open = !self.is_cut(a, b) && !self.is_cut(b, a);
        match (open, self.linked(a, b)) {
            (true, false) => {
                self.links.insert(Self::pair(a, b));
                self.at(
                    MS,
                    Due::Deliver { to: a.clone(), event: Event::LinkUp { with: b.clone() } },
                );
                self.at(
                    MS,
                    Due::Deliver { to: b.clone(), event: Event::LinkUp { with: a.clone() } },
                );
            }
            (false, true) => {
                self.unlink(a, b);
                for (to, with) in [(a, b), (b, a)] {
                    let event = Event::LinkDown { with: with.clone(), refused: false };
                    self.at(MS, Due::Deliver { to: to.clone(), event });
                }
            }
            _ => {}
        }
    }

    pub(super) fn transmit(&mut self, session: &SessionId, to: SessionId, message: Message) {
        let inner = match &message {
            Message::Relay { message, .. } => message,
            other => other,
        };
        if self.blocked.is_some_and(|blocked| blocked(session, &to, inner)) {
            return;
        }
        let sending = self.sending.entry((session.clone(), to.clone())).or_default();
        *sending = if sending.0 == self.now { (self.now, sending.1 + 1) } else { (self.now, 1) };
        if sending.1 > self.outbox {
            self.overflowed += 1;
            return;
        }
        let mut delays = vec![MS / 5];
        if let Some(at) = self.faults.iter().position(|fault| (fault.hits)(inner)) {
            match self.faults[at].fate {
                Fate::Lost => delays.clear(),
                Fate::Twice => delays.push(MS * 300),
                Fate::Late(by) => delays = vec![by],
            }
            self.faults[at].times -= 1;
            if self.faults[at].times == 0 {
                self.faults.remove(at);
            }
        }
        let Noise { lose, twice, late } = self.noise;
        if lose > 0.0 && self.rng.random_bool(lose) {
            delays.clear();
        }
        if twice > 0.0 && self.rng.random_bool(twice) {
            delays.push(MS * self.rng.random_range(1..1_000));
        }
        if late > 0.0 && self.rng.random_bool(late) {
            let by = MS * self.rng.random_range(1..1_500);
            delays.iter_mut().for_each(|delay| *delay += by);
        }
        for delay in delays {
            let (from, to, message) = (session.clone(), to.clone(), message.clone());
            self.at(delay, Due::Frame { from, to, message });
        }
    }
}
