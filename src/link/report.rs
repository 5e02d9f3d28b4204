//! What is to be told to the node, in order, however slow it listens.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::LinkEvent;

/// Events of one peer on their way to the node.
#[derive(Debug)]
pub(super) struct Reports {
    events: mpsc::Sender<LinkEvent>,
    waiting: VecDeque<LinkEvent>,
}

impl Reports {
    pub(super) const fn new(events: mpsc::Sender<LinkEvent>) -> Self {
        Self { events, waiting: VecDeque::new() }
    }

    /// Adds one. What waits stays bounded, since repetitions and the middle of a flapping link tell
    /// nothing new.
    pub(super) fn push(&mut self, event: LinkEvent) {
        if let LinkEvent::Down { refused, .. } = event {
            if matches!(self.waiting.back(), Some(LinkEvent::Up { .. })) {
                self.waiting.pop_back();
            }
            if let Some(LinkEvent::Down { refused: before, .. }) = self.waiting.back_mut() {
                *before |= refused;
                return;
            }
        }
        let said = self.waiting.iter().any(|waiting| {
            matches!(
                (waiting, &event),
                (LinkEvent::Refused { .. }, LinkEvent::Refused { .. })
                    | (LinkEvent::WrongPeer { .. }, LinkEvent::WrongPeer { .. })
            )
        });
        if !said {
            self.waiting.push_back(event);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Hands over what waits. Cancel-safe. False when nobody listens any more.
    pub(super) async fn drain(&mut self) -> bool {
        while !self.waiting.is_empty() {
            let Ok(permit) = self.events.reserve().await else {
                self.waiting.clear();
                return false;
            };
            if let Some(event) = self.waiting.pop_front() {
                permit.send(event);
            }
        }
        !self.events.is_closed()
    }

    /// Hands over what waits, then `event`. Not cancel-safe.
    pub(super) async fn send(&mut self, event: LinkEvent) -> bool {
        self.drain().await && self.events.send(event).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use uuid::Uuid;

    use super::*;
    use crate::core::ids::{NodeId, SessionId};

    #[tokio::test]
    async fn a_flapping_link_does_not_pile_up_while_nobody_listens() {
        let (events, mut heard) = mpsc::channel(16);
        let mut reports = Reports::new(events);
        let session = SessionId::new(NodeId::new("a").unwrap(), Uuid::nil());
        let address = Some(([127, 0, 0, 1], 1).into());
        for round in 0..1000 {
            reports.push(LinkEvent::Down { session: session.clone(), refused: round == 500 });
            reports.push(LinkEvent::Refused { session: session.clone() });
            reports.push(LinkEvent::Up { session: session.clone(), address });
        }
        assert!(reports.waiting.len() < 8);
        assert!(reports.drain().await);
        drop(reports);
        let mut last = None;
        let mut refused = false;
        while let Some(event) = heard.recv().await {
            refused |= matches!(event, LinkEvent::Down { refused: true, .. });
            last = Some(event);
        }
        assert!(refused);
        assert!(matches!(last, Some(LinkEvent::Up { .. })));
    }
}
