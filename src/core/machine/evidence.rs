//! What is heard of sessions, and what follows when one comes or goes (Rules 2 to 6).

use super::{MAX_REVISIONS, Machine};
use crate::core::claim::Claim;
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Action, Gone, Notice};
use crate::core::message::Message;
use crate::core::record::{NodeRecord, NodeState};
use crate::core::time::Time;

impl Machine {
    pub(super) fn on_heard(
        &mut self,
        from: &SessionId,
        said: (NodeState, u64),
        watermark: u64,
        released: &[u64],
        echoed: Option<Time>,
    ) {
        if self.buried.remove(from).is_some() {
            self.touch_all_of(from);
        }
        self.refused.remove(from);
        let before = self.members.get(from).filter(|peer| peer.met).map(|peer| peer.state);
        let back = self.members.heard(self.now.at, from, said, echoed);
        if back {
            self.on_back(from);
        }
        self.announce(from);
        if echoed.is_some() && from.node == self.config.me.node {
            self.meet_namesake(from);
        }
        let freed = self.view.release(from, watermark, released);
        self.dirty.extend(freed);
        if self.members.get(from).map(|peer| peer.state) != before {
            self.on_state(from);
        }
        self.conflict_evidence(from);
    }

    /// Two processes of one name cannot be told apart by people, nor by what names a node, such as the
    /// list of replicas.
    fn meet_namesake(&mut self, session: &SessionId) {
        if self.namesake.as_ref() != Some(session) && !self.members.is_gone(session) {
            self.namesake = Some(session.clone());
            self.tell(Notice::Warning(format!(
                "another process that lives, {session}, is also node {}: give every node an id of its \
                 own, or end one of the two",
                session.node
            )));
        }
    }

    /// A session's state has changed: what it held is looked at, and what waits for a node.
    pub(super) fn on_state(&mut self, of: &SessionId) {
        self.touch_all_of(of);
        self.review_later();
    }

    pub(super) fn on_record(&mut self, of: &SessionId, record: NodeRecord) {
        if let Some(old) = record.succeeds {
            let old = SessionId::new(of.node.clone(), old);
            if old == self.config.me {
                self.fence("a newer process of this node holds its data directory");
                return;
            }
            // Also one that is not known yet: its claims may come later, by another path.
            if !self.buried.contains_key(&old) {
                self.gone(&old, Gone::Superseded);
            }
        }
        let record = self.dated(of, record);
        if let Some(peer) = self.members.gossiped(of, self.now.at) {
            peer.record = Some(record);
        }
        self.look_readers();
        self.review_later();
    }

    /// A record with the time at which its node was first seen with its revision: a process that
    /// was only restarted is no newer than the one before it.
    pub(super) fn dated(&mut self, of: &SessionId, mut record: NodeRecord) -> NodeRecord {
        let before = self.members.iter().filter(|(session, _)| session.node == of.node);
        let same = before
            .filter_map(|(_, peer)| peer.record.as_ref())
            .filter(|before| before.revision == record.revision);
        let first = same.map(|before| before.since_ms).min();
        record.since_ms = first.map_or(record.since_ms, |first| first.min(record.since_ms));
        let own = &mut self.config.record;
        if of.node == self.config.me.node && own.revision == record.revision {
            own.since_ms = own.since_ms.min(record.since_ms);
        }
        if let Some(first) = self.revisions.get_mut(&record.revision) {
            *first = (*first).min(record.since_ms);
        } else if self.revisions.len() < MAX_REVISIONS {
            self.revisions.insert(record.revision.clone(), record.since_ms);
        }
        record
    }

    /// Whether a revision was there before mine: a node of it that takes over from me undoes a deploy.
    pub(super) fn is_older(&self, revision: &str) -> bool {
        let own = &self.config.record;
        let first = |revision: &str| self.revisions.get(revision).copied();
        let mine = first(&own.revision).map_or(own.since_ms, |first| first.min(own.since_ms));
        revision != own.revision && first(revision).is_some_and(|first| first < mine)
    }

    pub(super) fn on_claims(&mut self, of: &SessionId, changes: Vec<(Name, Option<Claim>)>) {
        if *of == self.config.me {
            return;
        }
        // Of one that is buried here nothing is known any more but that.
        if !self.buried.contains_key(of) {
            self.members.gossiped(of, self.now.at);
        }
        for (name, claim) in changes {
            match claim {
                Some(claim) => self.learn_claim(claim),
                None => {
                    self.view.remove(&name, of);
                    self.dirty.insert(name);
                }
            }
        }
    }

    pub(super) fn on_link_up(&mut self, with: &SessionId) {
        // Its handshake is as fresh as an echoed datagram.
        if self.buried.remove(with).is_some() {
            self.touch_all_of(with);
        }
        self.refused.remove(with);
        if self.members.link_up(self.now.at, with) {
            self.on_back(with);
        }
        if self.state != NodeState::Joining {
            let (state, version) = (self.state, self.version);
            self.push(Action::Send {
                to: with.clone(),
                message: Message::State { state, version },
            });
        }
        self.tell_gone(with);
        self.found_to(with);
        self.resend_to(with);
    }

    pub(super) fn on_link_down(&mut self, with: &SessionId, refused: bool) {
        let mut dead = self.members.link_broke(self.now.at, with);
        if !refused {
            if dead {
                self.on_gone(with, Gone::Dead);
            }
            return;
        }
        // Who says that it leaves has stopped all that it ran: its goodbye was lost.
        if self.members.get(with).is_some_and(|peer| peer.state == NodeState::Leaving) {
            return self.gone(with, Gone::Left);
        }
        dead |= self.members.observed_dead(self.now.at, with, &self.config.me.clone());
        // Redialling goes on, and is refused each time.
        if self.members.can_tell_death(with) && self.refused.insert(with.clone()) {
            let others: Vec<SessionId> =
                self.members.live().filter(|session| *session != with).cloned().collect();
            for other in others {
                self.send(&other, Message::Dead { session: with.clone() });
            }
        }
        if dead {
            self.on_gone(with, Gone::Dead);
        }
        self.starts_lost(with);
    }

    /// Marks a session gone and looks at everything it held.
    pub(super) fn gone(&mut self, session: &SessionId, why: Gone) {
        if self.members.mark_gone(self.now.at, session, why) {
            self.on_gone(session, why);
        }
    }

    pub(super) fn on_gone(&mut self, session: &SessionId, why: Gone) {
        self.tell(Notice::PeerGone(session.clone(), why));
        self.askers.retain(|_, askers| {
            askers.remove(session);
            !askers.is_empty()
        });
        self.rivalries.remove(session);
        self.touch_all_of(session);
        self.settle_gone(session);
        self.replicas_gone(session);
        self.copies_gone(session);
        self.hands_gone(session);
        self.starts_lost(session);
        self.review_later();
    }

    pub(super) fn on_back(&mut self, session: &SessionId) {
        if let Some(peer) = self.members.entry(session, self.now.at) {
            peer.announced = false;
        }
        self.announce(session);
        self.touch_all_of(session);
    }

    /// Says that a session is there, once.
    pub(super) fn announce(&mut self, session: &SessionId) {
        if let Some(peer) = self.members.entry(session, self.now.at)
            && !std::mem::replace(&mut peer.announced, true)
        {
            self.tell(Notice::PeerUp(session.clone()));
        }
    }
}
