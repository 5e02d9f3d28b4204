//! Which names are to be looked at, and when.

use std::time::Duration;

use super::task::Doing;
use super::{Machine, TICK};
use crate::core::ids::{Name, SessionId};
use crate::core::io::Action;
use crate::core::limits;
use crate::core::message::Message;
use crate::core::time::Time;

/// Names that could wait, looked at in one `handle`.
const AT_LEISURE: usize = 64;

impl Machine {
    /// Looks at every name something was learned about, and sends what was gathered.
    pub(super) fn finish(&mut self) {
        let mut rounds = 0;
        // Looking at a name can make it or another one dirty again; each rule makes progress, so a
        // few rounds are enough, and the bound keeps a mistake from becoming a livelock.
        while !self.dirty.is_empty() && rounds < 8 {
            rounds += 1;
            for name in std::mem::take(&mut self.dirty) {
                self.look(&name);
            }
        }
        if !self.dirty.is_empty() {
            let rest = std::mem::take(&mut self.dirty);
            for name in rest {
                self.alarm_in(&name, TICK);
            }
        }
        for (to, asks) in std::mem::take(&mut self.asks) {
            for chunk in asks.chunks(limits::LISTED) {
                self.send(&to, Message::Ask { asks: chunk.to_vec() });
            }
        }
        self.publish_header();
        self.drain_progress();
        // Whoever has been answered looks the name up.
        for (call, result) in std::mem::take(&mut self.replies) {
            self.push(Action::Reply { call, result });
        }
    }

    /// Everything that may follow from what is known of a name now.
    fn look(&mut self, name: &Name) {
        self.look_conflict(name);
        self.look_task(name);
        self.look_branches(name);
        self.look_desired(name);
        self.look_free(name);
        self.look_takeover(name);
        self.look_end(name);
        self.look_copies(name);
        self.look_owed(name);
        self.look_cleanup(name);
        self.look_idle(name);
        self.look_following(name);
        self.show(name);
    }

    /// Goes on with what this node is doing about a name.
    fn look_task(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        match &task.doing {
            Doing::Settling(_) => self.look_settling(name),
            Doing::Finding(_) => self.look_finding(name),
            Doing::Fetching { .. } => self.look_fetching(name),
            Doing::Incoming { .. } => self.look_incoming(name),
            Doing::Ending { .. } => self.look_ending(name),
            Doing::Parting { .. } => self.look_parting(name),
            Doing::Running | Doing::Kept if self.drain.is_some() && task.hand.is_none() => {
                if self.finishes_here(task) {
                    self.look_replicas(name);
                    self.look_callers(name);
                }
                self.drain_one(name);
            }
            Doing::Running | Doing::Kept => {
                self.look_parked(name);
                self.look_replicas(name);
                self.look_callers(name);
                self.look_hand(name);
            }
            Doing::Stopping(_) => {
                self.look_replicas(name);
                self.look_hand(name);
            }
            Doing::Sealing { .. } | Doing::Moving { .. } => self.look_hand(name),
            Doing::Reconciling(_) => self.look_reconciling(name),
            Doing::Over { .. } => {}
        }
    }

    pub(super) fn ring(&mut self) {
        if let Some((at, latest)) = self.review {
            self.review(at, latest);
        }
        while let Some((at, name)) = self.alarms.first().cloned() {
            if at > self.now.at {
                break;
            }
            self.alarms.pop_first();
            self.alarm_of.remove(&name);
            self.dirty.insert(name);
        }
    }

    /// Rings at `at` for a name, or earlier if it already would: whoever waits rings anew whenever
    /// it is looked at too early.
    pub(super) fn alarm(&mut self, name: &Name, at: Time) {
        match self.alarm_of.get(name) {
            Some(set) if *set <= at => {}
            set => {
                if let Some(set) = set {
                    self.alarms.remove(&(*set, name.clone()));
                }
                self.alarms.insert((at, name.clone()));
                self.alarm_of.insert(name.clone(), at);
            }
        }
    }

    pub(super) fn alarm_in(&mut self, name: &Name, after: Duration) {
        self.alarm(name, self.now.at + after);
    }

    /// Who is there has changed. What runs or is kept here is not in a hurry, and there is much of it:
    /// names that nobody runs now come first.
    pub(super) fn review_later(&mut self) {
        let now = self.now.at;
        self.review.get_or_insert((now + TICK, now + self.config.timing.convergence()));
    }

    fn review(&mut self, at: Time, latest: Time) {
        let now = self.now.at;
        if now < at {
            return;
        }
        let starting = self.tasks.values().any(|task| task.is_starting());
        self.review = (starting && now < latest).then(|| (now + TICK, latest));
        if self.review.is_none() {
            self.touch_kept();
            self.review_copies();
        }
    }

    /// Looks at some of the names that could wait.
    pub(super) fn touch_some(&mut self) {
        for _ in 0..AT_LEISURE {
            let Some(name) = self.later.pop_first() else { return };
            self.dirty.insert(name);
        }
    }

    /// Looks at every name a session has claimed.
    pub(super) fn touch_all_of(&mut self, session: &SessionId) {
        self.dirty.extend(self.view.names_of(session));
    }
}
