//! What this node says of itself and of its names: claims, the header, what lookups answer from.

use std::mem::{Discriminant, discriminant};

use super::Machine;
use super::task::Doing;
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Action, Notice};
use crate::core::message::Message;
use crate::core::record::NodeState;

/// Bound on the list of single releases in the header.
const MAX_RELEASED: usize = 32;

/// Tells a claim from any other: whoever writes one counts its changes, and a release can be counted
/// here before it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    session: SessionId,
    number: u64,
    version: u32,
    phase: Discriminant<Phase>,
}

impl Shown {
    fn of(claim: &Claim) -> Self {
        Self {
            session: claim.session.clone(),
            number: claim.number,
            version: claim.version,
            phase: discriminant(&claim.phase),
        }
    }
}

impl Machine {
    /// Publishes my claim of a name as the task has it now.
    pub(super) fn publish(&mut self, name: &Name) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.claim.version = task.claim.version.saturating_add(1);
        let (claim, ran) = (task.claim.clone(), self.holding.running());
        if claim.phase.is_held() {
            self.holding.insert(claim.number, &task.spec.kind, !claim.phase.is_kept());
        } else if matches!(claim.phase, Phase::Transferred { .. }) {
            self.holding.decide(claim.number);
        } else if claim.phase.is_terminal() && claim.replicas.is_empty() {
            self.holding.end(claim.number);
        } else if self.holding.remove(claim.number) && claim.phase.is_free() {
            self.recently_released.push_back(claim.number);
            if self.recently_released.len() > MAX_RELEASED {
                self.recently_released.pop_front();
            }
        }
        if self.holding.running() < ran {
            // There may be room for one more.
            self.dirty.append(&mut self.passed_over);
        }
        self.view.merge(claim.clone());
        self.push(Action::Publish(claim));
        self.dirty.insert(name.clone());
    }

    /// Ends a claim of mine that never ran: others act on its record alone.
    pub(super) fn release_claim(&mut self, name: &Name) {
        if let Some(task) = self.tasks.get_mut(name) {
            task.claim.phase = Phase::Released;
            task.doing = Doing::Over { dominated: None };
            self.publish(name);
        }
    }

    /// Keeps what lookups answer from.
    pub(super) fn show(&mut self, name: &Name) {
        let owner = self.view.holder(name);
        let show = owner.map(Shown::of);
        if self.shown.get(name) == show.as_ref() {
            return;
        }
        let owner = owner.cloned();
        match show {
            Some(show) => self.shown.insert(name.clone(), show),
            None => self.shown.remove(name),
        };
        self.push(Action::Owner { name: name.clone(), claim: owner });
    }

    /// The state, watermark and releases that every datagram carries (Rule 2).
    pub(super) fn publish_header(&mut self) {
        let watermark = self.holding.first().unwrap_or(self.next_number).saturating_sub(1);
        self.recently_released.retain(|number| *number > watermark);
        let header =
            (self.state, watermark, self.recently_released.iter().copied().collect::<Vec<_>>());
        if self.header.as_ref() != Some(&header) {
            let (state, watermark, released) = header.clone();
            self.version += 1;
            let version = self.version;
            self.push(Action::Header { state, version, watermark, released });
            self.header = Some(header);
        }
        let load = self.load_now();
        if load != self.load {
            self.load = load;
            self.push(Action::PublishLoad(load));
        }
    }

    pub(super) fn set_state(&mut self, state: NodeState) {
        if self.state == state {
            return;
        }
        self.state = state;
        self.tell(Notice::State(state));
        self.publish_header();
        let version = self.version;
        let peers: Vec<SessionId> =
            self.members.iter().filter(|(_, p)| p.linked).map(|(s, _)| s.clone()).collect();
        for peer in peers {
            self.push(Action::Send { to: peer, message: Message::State { state, version } });
        }
        self.later.extend(self.view.names().cloned());
    }
}
