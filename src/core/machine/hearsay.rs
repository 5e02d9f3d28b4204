//! Peers republish what they hear (Rule 2): a session whose datagrams do not come here is asked for
//! among those who hear it.
//!
//! Asking costs nothing while everybody hears everybody, whereas publishing what one hears would cost
//! every node a message for each change of each header. While a path is cut, the node behind it asks
//! once per gossip interval: whoever relays to the session, or else [`ASKED`] peers in turn.

use std::collections::{BTreeMap, BTreeSet};

use super::Machine;
use crate::core::ids::SessionId;
use crate::core::limits;
use crate::core::members::Peer;
use crate::core::message::{Message, Said};
use crate::core::time::Time;

/// Peers asked at a time about a session that nobody is known to hear.
const ASKED: usize = 3;
/// Sessions asked about, or told of, in one message.
const MAX_SESSIONS: usize = 64;
/// Released numbers listed of each.
const MAX_RELEASED: usize = limits::OF_ONE;

/// Whom to ask next, and when.
#[derive(Clone, Debug, Default)]
pub(super) struct Inquiry {
    asked: Time,
    /// The last peer that was asked.
    last: Option<SessionId>,
    /// The last session asked about, where there are more than a message holds.
    about: Option<SessionId>,
}

impl Machine {
    /// Asks about the sessions that are not heard.
    pub(super) fn tick_inquiry(&mut self) {
        let now = self.now.at;
        if now.since(self.inquiry.asked) < self.config.timing.gossip_interval {
            return;
        }
        self.inquiry.asked = now;
        let unheard: Vec<&SessionId> = self.members.unheard(now).collect();
        let unheard = turn(&unheard, self.inquiry.about.as_ref(), MAX_SESSIONS);
        if unheard.is_empty() {
            return;
        }
        let may_ask: Vec<&SessionId> =
            self.members.live().filter(|peer| self.is_linked(peer)).collect();
        let next = turn(&may_ask, self.inquiry.last.as_ref(), ASKED);
        let mut asks: BTreeMap<SessionId, Vec<SessionId>> = BTreeMap::new();
        for session in &unheard {
            let via = self.members.get(session).and_then(|peer| peer.via.as_ref());
            // Who does not confirm it any more has lost the session too.
            let via = via.filter(|(_, at)| now.since(*at) <= self.config.timing.unheard_after());
            let asked: BTreeSet<&SessionId> = match via.filter(|(via, _)| may_ask.contains(&via)) {
                Some((via, _)) => BTreeSet::from([via]),
                None => next.iter().copied().filter(|peer| peer != session).collect(),
            };
            for peer in asked {
                asks.entry(peer.clone()).or_default().push((*session).clone());
            }
        }
        let about = unheard.last().map(|session| (*session).clone());
        let last = next.last().map(|session| (*session).clone());
        (self.inquiry.about, self.inquiry.last) = (about, last);
        for (to, sessions) in asks {
            self.send(&to, Message::Unheard { sessions });
        }
    }

    /// Passes on what is known of sessions that a peer does not hear.
    pub(super) fn on_unheard(&mut self, from: &SessionId, sessions: &[SessionId]) {
        let lately = self.now.at.back(self.config.timing.silence_floor);
        let known = |peer: &&Peer| peer.version > 0 && peer.gone.is_none() && peer.said >= lately;
        let mut said = Vec::new();
        for session in sessions.iter().take(MAX_SESSIONS) {
            if let Some(end) = self.end_of(session) {
                self.send(from, end);
                continue;
            }
            let Some(peer) = self.members.get(session).filter(known) else {
                continue;
            };
            let (watermark, mut released) = self.view.released(session);
            released.truncate(MAX_RELEASED);
            said.push(Said {
                session: session.clone(),
                version: peer.version,
                state: peer.state,
                watermark,
                released,
                linked: peer.linked,
            });
        }
        if !said.is_empty() {
            self.send(from, Message::Hearsay { said });
        }
    }

    /// Takes in what somebody else hears of sessions that are known here. It says nothing of whether
    /// they live.
    pub(super) fn on_hearsay(&mut self, from: &SessionId, said: Vec<Said>) {
        for mut said in said.into_iter().take(MAX_SESSIONS) {
            let session = said.session;
            if self.members.get(&session).is_none() {
                continue;
            }
            let (now, state) = (self.now.at, (said.state, said.version));
            let changed = self.members.hearsay(now, &session, state, from, said.linked);
            said.released.truncate(MAX_RELEASED);
            let freed = self.view.release(&session, said.watermark, &said.released);
            self.dirty.extend(freed);
            if changed {
                self.on_state(&session);
            }
            if self.members.get(&session).is_some_and(Peer::is_live) {
                self.announce(&session);
            }
        }
    }

    pub(super) fn is_linked(&self, session: &SessionId) -> bool {
        self.members.get(session).is_some_and(|peer| peer.linked)
    }
}

/// Up to `most` of an ordered list, those after `last` first.
fn turn<'a>(all: &[&'a SessionId], last: Option<&SessionId>, most: usize) -> Vec<&'a SessionId> {
    let start = all.partition_point(|session| last.is_some_and(|last| *session <= last));
    all.iter().cycle().skip(start).take(most.min(all.len())).copied().collect()
}
