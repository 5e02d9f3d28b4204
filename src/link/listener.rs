//! Who connects is nobody until the handshake is complete, and there are never many of them, from
//! one source or together.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::Shared;
use super::handshake;
use crate::net::{Listener, Stream};
use crate::rate::{Rate, Seldom, Sources, network};

/// Out of file descriptors, say: accepting again at once would spin.
const PAUSE: Duration = Duration::from_millis(10);

/// Accepts until dropped, which also ends handshakes under way.
pub(super) async fn listen(mut listener: Box<dyn Listener>, shared: Arc<Shared>) {
    let mut door = Door::new(shared);
    let mut failing = Seldom::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = door.handshakes.join_next_with_id() => {
                door.ended(ended);
                continue;
            }
        };
        match accepted {
            Ok((stream, from)) => match door.check(from) {
                Ok(()) => door.begin(stream, from),
                Err(reason) => {
                    metrics::counter!("handover_link_rejected_total", "reason" => reason)
                        .increment(1);
                    tracing::debug!(target: "handover::link", %from, reason, "turned away");
                }
            },
            Err(error) => {
                metrics::counter!("handover_link_rejected_total", "reason" => "accept")
                    .increment(1);
                if let Some(unsaid) = failing.speak(door.shared.clock.boot()) {
                    tracing::warn!(target: "handover::link", %error, unsaid, "cannot accept a connection");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// Who stands at the door, and who may come up to it.
struct Door {
    shared: Arc<Shared>,
    handshakes: JoinSet<()>,
    /// Where each of them comes from.
    sources: HashMap<Id, IpAddr>,
    rates: Sources,
}

impl Door {
    fn new(shared: Arc<Shared>) -> Self {
        let each = Rate { count: shared.limits.connections_of_source, bytes: 0 };
        // All together are bounded by the handshakes that may be under way.
        let all = Rate { count: u32::MAX, bytes: 0 };
        let rates = Sources::new(each, all, shared.clock.boot());
        Self { shared, handshakes: JoinSet::new(), sources: HashMap::new(), rates }
    }

    /// Whether one more may come from there; if not, why.
    fn check(&mut self, from: SocketAddr) -> Result<(), &'static str> {
        while let Some(ended) = self.handshakes.try_join_next_with_id() {
            self.ended(ended);
        }
        let limits = &self.shared.limits;
        if !self.rates.admit(from.ip(), 0, self.shared.clock.boot()) {
            return Err("rate");
        }
        let source = network(from.ip());
        let of_source = self.sources.values().filter(|open| network(**open) == source).count();
        let (many, full) = (
            of_source >= limits.unauthenticated_of_source,
            self.sources.len() >= limits.unauthenticated,
        );
        // Strangers, and neighbours in its network, cannot keep a peer out.
        if (many || full) && self.has_place_of_its_own(from.ip()) {
            return Ok(());
        }
        match (many, full) {
            (true, _) => Err("source"),
            (_, true) => Err("full"),
            _ => Ok(()),
        }
    }

    /// Whether a peer that is to be linked listens on this host, and few have come from there.
    fn has_place_of_its_own(&self, host: IpAddr) -> bool {
        let open = self.sources.values().filter(|open| **open == host).count();
        open < self.shared.limits.unauthenticated_of_source && self.shared.knows(host)
    }

    fn begin(&mut self, stream: Box<dyn Stream>, from: SocketAddr) {
        let shared = self.shared.clone();
        let handshake = self.handshakes.spawn(async move {
            let answer = handshake::answer(stream, &shared.local);
            match timeout(shared.limits.handshake, answer).await {
                Ok(Ok(mut candidate)) => {
                    candidate.locate(from, &shared.within);
                    shared.deliver(candidate);
                }
                Ok(Err(why)) => {
                    tracing::debug!(target: "handover::link", %from, %why, "turned away");
                }
                Err(_) => {
                    tracing::debug!(target: "handover::link", %from, "no handshake in time");
                }
            }
        });
        self.sources.insert(handshake.id(), from.ip());
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        self.sources.remove(&id);
    }
}
