//! Every part of gossip is watched: one that ends without being told to, or panics, is reported and
//! goes on. What this node has published, and the counters that its peers check, outlive that.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::core::time::Time;

use super::GossipEvent;

/// Waits between ends that follow each other closely.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// chitchat.
    Engine,
    /// What feeds the engine and reads it.
    Runner,
    /// What owns the socket.
    Pump,
}

impl Part {
    const fn label(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Runner => "runner",
            Self::Pump => "pump",
        }
    }
}

/// What a future comes to, or what it says when it panics.
pub(super) async fn outcome<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| text_of(&*panic))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("it did not say why"))
}

/// Reports the ends of one task's work, and paces its beginnings.
pub(super) struct Watch {
    clock: SharedClock,
    cancel: CancellationToken,
    events: mpsc::Sender<GossipEvent>,
    begun: Time,
    backoff: Duration,
}

impl Watch {
    pub(super) fn new(
        clock: SharedClock,
        cancel: CancellationToken,
        events: mpsc::Sender<GossipEvent>,
    ) -> Self {
        let begun = clock.boot();
        Self { clock, cancel, events, begun, backoff: BACKOFF_MIN }
    }

    /// The work begins (again).
    pub(super) fn begin(&mut self) {
        self.begun = self.clock.boot();
    }

    /// It has ended: returns when it may begin again, or when gossip is told to end.
    pub(super) async fn ended(&mut self, part: Part, reason: &str) {
        let part = part.label();
        metrics::counter!("handover_gossip_restarts_total", "part" => part).increment(1);
        tracing::error!(target: "handover::gossip", part, reason, "a part of gossip has ended and is started again");
        self.tell(GossipEvent::Ended { reason: format!("{part}: {reason}"), restarted: true })
            .await;
        if self.clock.boot().since(self.begun) > BACKOFF_MAX {
            self.backoff = BACKOFF_MIN;
            return;
        }
        let _ = self.cancel.run_until_cancelled(tokio::time::sleep(self.backoff)).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    /// Waits for the node to take an event, unless gossip is told to end.
    pub(super) async fn tell(&self, event: GossipEvent) {
        tokio::select! {
            () = self.cancel.cancelled() => {}
            _ = self.events.send(event) => {}
        }
    }
}
