//! What a test breaks: the network, particular messages, a process at a particular moment.

use std::time::Duration;

use super::time::Due;
use super::{MS, World};
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Action, Event};
use crate::core::message::Message;

/// What happens to a message that a rule of [`World::faults`] matches.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Fate {
    Lost,
    Twice,
    Late(Duration),
}

/// A fault of the links that a test orders: the next `times` messages that match.
#[derive(Clone, Debug)]
pub(in super::super) struct Fault {
    pub hits: fn(&Message) -> bool,
    pub fate: Fate,
    pub times: usize,
}

/// Faults of all links, by chance.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Noise {
    pub lose: f64,
    pub twice: f64,
    pub late: f64,
}

/// Kills a process just before it carries out an action that matches.
#[derive(Clone, Debug)]
pub(in super::super) struct Trip {
    pub task: &'static str,
    /// The acting session, whether it runs the action's task at that moment, and the action.
    pub at: fn(&SessionId, bool, &Action) -> bool,
    /// None: whoever acts.
    pub victim: Option<SessionId>,
}

impl World {
    /// Cuts datagrams and streams from one node to another.
    pub(in super::super) fn cut(&mut self, from: &SessionId, to: &SessionId) {
        self.cuts.insert((from.node.clone(), to.node.clone()));
        self.at(Duration::from_secs(5), Due::LinkCheck { a: from.clone(), b: to.clone() });
    }

    pub(in super::super) fn cut_both(&mut self, a: &SessionId, b: &SessionId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Cuts every path between two groups.
    pub(in super::super) fn split(&mut self, a: &[SessionId], b: &[SessionId]) {
        for x in a {
            for y in b {
                self.cut_both(x, y);
            }
        }
    }

    pub(in super::super) fn heal(&mut self) {
        self.cuts.clear();
        let nodes: Vec<SessionId> = self.nodes.keys().cloned().collect();
        for a in &nodes {
            for b in &nodes {
                if a < b {
                    self.at(MS * 100, Due::LinkCheck { a: a.clone(), b: b.clone() });
                }
            }
        }
    }

    /// Cuts one node off from all others.
    pub(in super::super) fn isolate(&mut self, node: &SessionId) {
        for other in self.nodes.keys().cloned().collect::<Vec<_>>() {
            if other.node != node.node {
                self.cut_both(node, &other);
            }
        }
    }

    /// A firewall between two nodes begins to REJECT: links break, connecting is refused, datagrams
    /// are lost, and both processes live.
    pub(in super::super) fn reject(&mut self, a: &SessionId, b: &SessionId) {
        self.cuts.insert((a.node.clone(), b.node.clone()));
        self.cuts.insert((b.node.clone(), a.node.clone()));
        self.unlink(a, b);
        for (to, with) in [(a, b), (b, a)] {
            let event = Event::LinkDown { with: with.clone(), refused: true };
            self.at(MS, Due::Deliver { to: to.clone(), event });
        }
    }

    /// Undoes the cuts between two nodes.
    pub(in super::super) fn mend(&mut self, a: &SessionId, b: &SessionId) {
        self.cuts.remove(&(a.node.clone(), b.node.clone()));
        self.cuts.remove(&(b.node.clone(), a.node.clone()));
        self.at(MS * 100, Due::LinkCheck { a: a.clone(), b: b.clone() });
    }

    /// Everybody's gossip has forgotten a dead session; only the machines remember it.
    pub(in super::super) fn gossip_forgets(&mut self, session: &SessionId) {
        for node in self.nodes.values_mut().filter(|node| node.session != *session) {
            node.gossip.remove(session);
            node.beaten.remove(session);
        }
    }

    pub(in super::super) fn is_cut(&self, from: &SessionId, to: &SessionId) -> bool {
        self.cuts.contains(&(from.node.clone(), to.node.clone()))
    }

    pub(super) fn trip(&mut self, session: &SessionId, action: &Action) {
        let Some(trip) = &self.trip else { return };
        let name = match action {
            Action::Send { message, .. } => subject(message),
            Action::Publish(claim) => Some(&claim.name),
            Action::Start { spec, .. } => Some(&spec.name),
            Action::Stop { name, .. } => Some(name),
            _ => None,
        };
        let Some(name) = name.filter(|name| name.as_str() == trip.task) else { return };
        let runs = self.nodes[session].loops.contains_key(name);
        if (trip.at)(session, runs, action) {
            let victim = trip.victim.clone().unwrap_or_else(|| session.clone());
            self.trip = None;
            self.crash(&victim);
        }
    }
}

/// The task a message is about.
fn subject(message: &Message) -> Option<&Name> {
    match message {
        Message::Relay { message, .. } => subject(message),
        Message::Offer { claim, .. } | Message::Checkpoint { claim, .. } => Some(&claim.name),
        Message::OfferReply { name, .. }
        | Message::CheckpointReply { name, .. }
        | Message::Transferred { name, .. }
        | Message::Taken { name, .. } => Some(name),
        _ => None,
    }
}
