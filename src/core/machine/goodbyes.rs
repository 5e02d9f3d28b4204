//! Who is gone, told to nodes that were not there to see it: gossip goes on speaking of the dead.

use super::{MAX_BURIED, Machine};
use crate::core::ids::SessionId;
use crate::core::io::{Action, Gone};
use crate::core::limits;
use crate::core::message::Message;
use crate::core::time::Time;

/// Goodbyes told when a link comes up, the latest: those of an hour of the busiest deploys.
const MAX_TOLD: usize = 1024;

impl Machine {
    /// Tells a peer whose link has come up which sessions have left, were superseded, died before this
    /// node's eyes, or are buried (Rule 24).
    pub(super) fn tell_gone(&mut self, to: &SessionId) {
        let mut gone: Vec<(Time, SessionId, Gone)> = Vec::new();
        for (session, peer) in self.members.iter() {
            if let Some((why @ (Gone::Left | Gone::Superseded), at)) = peer.gone {
                gone.push((at, session.clone(), why));
            }
        }
        gone.sort_unstable_by(|a, b| (b.0, &b.1).cmp(&(a.0, &a.1)));
        let gone: Vec<(SessionId, Gone)> = gone
            .into_iter()
            .map(|(_, session, why)| (session, why))
            .filter(|(session, _)| session != to)
            .take(MAX_TOLD)
            .collect();
        for sessions in gone.chunks(limits::LISTED) {
            self.tell_peer(to, Message::Gone { sessions: sessions.to_vec() });
        }
        // A verdict needs two observers, and this is one.
        let refused: Vec<SessionId> = self.refused.iter().cloned().collect();
        for session in refused.into_iter().filter(|session| session != to).take(MAX_TOLD) {
            self.tell_peer(to, Message::Dead { session });
        }
        let buried: Vec<SessionId> = self.buried.keys().cloned().collect();
        for sessions in buried.chunks(limits::LISTED) {
            self.tell_peer(to, Message::Buried { sessions: sessions.to_vec() });
        }
    }

    /// Not by relay: whoever is not linked is told when it is.
    fn tell_peer(&mut self, to: &SessionId, message: Message) {
        self.push(Action::Send { to: to.clone(), message });
    }

    /// What is known here of the end of a session that somebody does not hear.
    pub(super) fn end_of(&self, session: &SessionId) -> Option<Message> {
        if self.buried.contains_key(session) {
            return Some(Message::Buried { sessions: vec![session.clone()] });
        }
        match self.members.get(session)?.gone? {
            (why @ (Gone::Left | Gone::Superseded), _) => {
                Some(Message::Gone { sessions: vec![(session.clone(), why)] })
            }
            _ => None,
        }
    }

    pub(super) fn on_told_gone(&mut self, sessions: Vec<(SessionId, Gone)>) {
        for (session, why) in sessions.into_iter().take(limits::LISTED) {
            // Silence and death are for every node to see for itself.
            if matches!(why, Gone::Left | Gone::Superseded)
                && !self.buried.contains_key(&session)
                && self.members.told_gone(self.now.at, &session, why)
            {
                self.on_gone(&session, why);
            }
        }
    }

    pub(super) fn on_buried(&mut self, sessions: Vec<SessionId>) {
        for session in sessions.into_iter().take(MAX_BURIED) {
            if session != self.config.me
                // Half of the graves are for those that this node has seen die.
                && self.buried.len() < MAX_BURIED / 2
                && self.members.may_be_buried(self.now.at, &session)
            {
                self.bury(&session);
            }
        }
    }
}
