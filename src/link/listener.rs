//! Who connects is nobody until the handshake is complete, and there are never many of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::handshake;
use crate::net::Listener;

/// Out of file descriptors, say: accepting again at once would spin.
const PAUSE: Duration = Duration::from_millis(10);

/// Accepts until dropped, which also ends handshakes under way.
pub(super) async fn listen(mut listener: Box<dyn Listener>, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(shared.limits.unauthenticated));
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(target: "handover::link", %error, "cannot accept a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::debug!(target: "handover::link", %from, "too many handshakes: turned away");
            continue;
        };
        let shared = shared.clone();
        handshakes.spawn(async move {
            let _place = place;
            let answer = handshake::answer(stream, &shared.local);
            match timeout(shared.limits.handshake, answer).await {
                Ok(Ok(candidate)) => shared.deliver(candidate),
                Ok(Err(why)) => {
                    tracing::debug!(target: "handover::link", %from, %why, "turned away");
                }
                Err(_) => {
                    tracing::debug!(target: "handover::link", %from, "no handshake in time");
                }
            }
        });
    }
}
