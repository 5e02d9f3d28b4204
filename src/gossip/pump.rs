//! The task that owns the datagram socket: seals and opens, answers probes, sends probes, puts
//! fragments together and asks for lost ones.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::core::ids::SessionId;
use crate::core::time::Time;
use crate::net::{Datagrams, Network};
use crate::rate::Seldom;

use super::fragments::{Reassembly, split};
use super::header::{self, Fragment, Header, Payload};
use super::kept::Kept;
use super::rejected::Rejected;
use super::seal::{self, Sealer};
use super::shared::{Shared, lock};
use super::transport::{Inbound, Inbox, Note, Outbound};
use super::watch::{Part, Watch, outcome};
use super::{GossipEvent, GossipLimits};

impl GossipLimits {
    fn reassembly(&self) -> Reassembly {
        Reassembly::new(self.max_partial_bytes, self.max_partial_bytes_total)
    }

    fn kept(&self) -> Kept {
        Kept::new(self.max_kept_bytes)
    }
}

/// The longest datagram UDP knows.
const RECEIVE_BUFFER: usize = 65_535;

/// How often silent peers and old messages are looked through.
const TICK: Duration = Duration::from_millis(50);

/// Every how many ticks sessions that are no longer known lose their fragments.
const SWEEP: u32 = 64;

/// How large a datagram's header may be, and its plaintext must be.
#[derive(Clone, Copy)]
struct Size {
    /// Released claim numbers listed.
    released: usize,
    /// Padded to so many bytes.
    least: usize,
}

/// Beside a fragment; probes list the rest of what is released.
const BESIDE: Size = Size { released: 16, least: 0 };

/// Receive errors in a row after which the socket counts as broken.
const MAX_FAILURES: u32 = 100;

pub(super) struct Pump {
    shared: Arc<Shared>,
    session: SessionId,
    port: Port,
    sealer: Sealer,
    outbound: mpsc::Receiver<Outbound>,
    inbox: Inbox,
    notes: mpsc::Sender<Note>,
    events: mpsc::Sender<GossipEvent>,
    cancel: CancellationToken,
    limits: GossipLimits,
    reassembly: Reassembly,
    kept: Kept,
    sent: SentLog,
    next_message: u64,
    /// Room for a fragment's bytes in a datagram.
    fragment_room: usize,
    /// The longest datagram sent.
    room: usize,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    ticks: u32,
    /// By reason: who has the wrong key does not hide who has the wrong cluster.
    strange: BTreeMap<&'static str, Seldom>,
}

/// Where datagrams come and go.
pub(super) struct Port {
    pub(super) network: Arc<dyn Network>,
    pub(super) local: SocketAddr,
    /// None once it is broken.
    pub(super) socket: Option<Arc<dyn Datagrams>>,
}

impl Port {
    /// The socket, bound again if it was broken.
    async fn open(&mut self) -> Result<Arc<dyn Datagrams>, String> {
        if let Some(socket) = &self.socket {
            return Ok(Arc::clone(socket));
        }
        let bound = self.network.bind(self.local).await;
        let socket = bound.map_err(|error| {
            format!("the datagram socket cannot be bound to {} again: {error}", self.local)
        })?;
        Ok(Arc::clone(self.socket.insert(socket)))
    }
}

/// The pump's ends of the channels.
pub(super) struct Ends {
    pub(super) outbound: mpsc::Receiver<Outbound>,
    pub(super) inbox: Inbox,
    pub(super) notes: mpsc::Sender<Note>,
    pub(super) events: mpsc::Sender<GossipEvent>,
}

impl Pump {
    pub(super) fn new(
        shared: Arc<Shared>,
        session: SessionId,
        port: Port,
        sealer: Sealer,
        limits: &GossipLimits,
        ends: Ends,
        cancel: CancellationToken,
    ) -> Self {
        let node = session.node.as_str().len();
        let room = limits.max_datagram - seal::OVERHEAD;
        let beside = header::max_len(node, BESIDE.released) + header::FRAGMENT_FIELDS;
        Self {
            shared,
            session,
            port,
            sealer,
            outbound: ends.outbound,
            inbox: ends.inbox,
            notes: ends.notes,
            events: ends.events,
            cancel,
            reassembly: limits.reassembly(),
            kept: limits.kept(),
            limits: limits.clone(),
            sent: SentLog::default(),
            next_message: 0,
            fragment_room: room - beside,
            room: limits.max_datagram,
            plain: Vec::new(),
            sealed: Vec::new(),
            ticks: 0,
            strange: BTreeMap::new(),
        }
    }

    /// Runs until it is cancelled, whatever happens to it. Its counters go on: peers take none twice.
    pub(super) async fn keep(mut self, mut watch: Watch) {
        loop {
            watch.begin();
            let end = outcome(self.run()).await;
            if self.cancel.is_cancelled() {
                return;
            }
            let reason = end.unwrap_or_else(|panic| {
                // It may have stood in the middle of them.
                self.reassembly = self.limits.reassembly();
                self.kept = self.limits.kept();
                panic
            });
            watch.ended(Part::Pump, &reason).await;
        }
    }

    /// Runs until it is cancelled or the socket is broken; returns why.
    async fn run(&mut self) -> String {
        let socket = match self.port.open().await {
            Ok(socket) => socket,
            Err(reason) => return reason,
        };
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut failures = 0;
        let mut sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
        let cancel = self.cancel.clone();
        let shared = Arc::clone(&self.shared);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return "it was told to".into(),
                received = socket.recv_from(&mut buffer) => match received {
                    Ok((len, from)) => {
                        failures = 0;
                        let datagram = buffer.get_mut(..len).unwrap_or_default();
                        if let Err(reason) = self.receive(datagram, from).await {
                            reason.count();
                            self.tell_strange(reason, from);
                        }
                        self.hasten(sleep.as_mut());
                    }
                    Err(error) => {
                        failures += 1;
                        if failures == MAX_FAILURES {
                            self.port.socket = None;
                            return format!("the datagram socket failed: {error}");
                        }
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                },
                Some(Outbound { to, message }) = self.outbound.recv() => {
                    self.send_message(to, message).await;
                }
                () = shared.nudge.notified() => self.probe_silent().await,
                () = sleep.as_mut() => {
                    self.tick().await;
                    sleep.as_mut().reset(Instant::now() + self.pause());
                }
            }
            #[cfg(test)]
            shared.trip(Part::Pump);
        }
    }

    /// Somebody may have the wrong key, or the wrong cluster's address.
    fn tell_strange(&mut self, reason: Rejected, from: SocketAddr) {
        if let Some(why) = reason.is_strange()
            && self.strange.entry(why).or_default().speak(self.shared.clock.boot()).is_some()
        {
            // One that is dropped is not missed: it is told again.
            let _ = self.events.try_send(GossipEvent::Stranger { from, why });
        }
    }

    async fn receive(&mut self, datagram: &mut [u8], from: SocketAddr) -> Result<(), Rejected> {
        let now = self.shared.clock.boot();
        let received = datagram.len();
        if !lock(&self.shared.peers).admit(from, received, now) {
            return Err(Rejected::Rate);
        }
        let (header, payload) = header::decode(self.sealer.open(datagram)?)?;
        let accepted =
            lock(&self.shared.peers).accept(&header, (from, received), self.sent.last(), now)?;
        let session = header.session;
        if accepted.news {
            let heard = GossipEvent::Heard {
                from: session.clone(),
                address: from,
                state: header.state,
                version: header.version,
                watermark: header.watermark,
                released: header.released,
                echoed: accepted.echoed.and_then(|counter| self.sent.time_of(counter)),
                returned: accepted.returned,
            };
            if self.events.try_send(heard).is_err() {
                metrics::counter!("handover_gossip_dropped_total", "what" => "event").increment(1);
            }
        }
        if accepted.returned {
            lock(&self.shared.exchanges).forget(from);
            let _ = self.notes.try_send(Note::Returned(from));
            // Others that were lost may be back too.
            self.probe_silent().await;
        }
        // Who may be a spoof draws no more bytes than it sent (X7).
        let room = if accepted.verified { self.room } else { received.min(self.room) };
        match payload {
            Payload::Probe => self.send_within(from, Payload::Answer, room).await,
            Payload::Answer => {}
            Payload::Fragment(_) | Payload::Missing { .. } if !accepted.verified => {
                if accepted.challenge {
                    self.send_within(from, Payload::Probe, room).await;
                }
                return Err(Rejected::Unverified);
            }
            Payload::Fragment(fragment) => {
                if let Some(message) = self.reassembly.take(&session, from, fragment, now)? {
                    self.deliver(session, from, message, now)?;
                }
            }
            Payload::Missing { message, bitmap } => self.send_again(from, message, bitmap).await,
        }
        Ok(())
    }

    fn deliver(
        &self,
        session: SessionId,
        from: SocketAddr,
        mut message: Vec<u8>,
        now: Time,
    ) -> Result<(), Rejected> {
        let shown = lock(&self.shared.screen).check(&mut message, now)?;
        let inbound = Inbound { from, session, message, shown };
        match &*lock(&self.inbox) {
            Some(inbox) => inbox.try_send(inbound).map_err(|_| Rejected::Busy),
            None => Err(Rejected::Busy),
        }
    }

    async fn send_message(&mut self, to: SocketAddr, message: Bytes) {
        // Fenced while it waited: the heartbeat in it must not go out (Rule 2).
        if self.shared.is_fenced() {
            return;
        }
        self.next_message += 1;
        let number = self.next_message;
        let total = message.len();
        let (chunk, count) = split(total, self.fragment_room);
        for (index, bytes) in message.chunks(chunk).enumerate() {
            let fragment = Fragment {
                message: number,
                index: index as u16,
                count: count as u16,
                total: total as u32,
                bytes,
            };
            self.send(to, Payload::Fragment(fragment), BESIDE).await;
        }
        let now = self.shared.clock.boot();
        self.kept.keep(to, number, message, (chunk, count), now);
    }

    async fn send_again(&mut self, to: SocketAddr, message: u64, bitmap: &[u8]) {
        if self.shared.is_fenced() {
            return;
        }
        for resend in self.kept.missing(to, message, bitmap) {
            let fragment = Fragment {
                message,
                index: resend.index,
                count: resend.count,
                total: resend.total,
                bytes: &resend.bytes,
            };
            self.send(to, Payload::Fragment(fragment), BESIDE).await;
        }
    }

    /// Sends a probe or an answer of at most so many bytes, with as many released numbers as fit;
    /// none at all if not even the header does.
    async fn send_within(&mut self, to: SocketAddr, payload: Payload<'_>, room: usize) {
        let bare = seal::OVERHEAD + header::max_len(self.session.node.as_str().len(), 0) + 1;
        let Some(spare) = room.checked_sub(bare) else {
            return;
        };
        let least = match payload {
            // The answer may be no longer than the question.
            Payload::Probe => header::PROBE_LEN.min(room - seal::OVERHEAD),
            _ => 0,
        };
        self.send(to, payload, Size { released: spare / size_of::<u64>(), least }).await;
    }

    async fn send(&mut self, to: SocketAddr, payload: Payload<'_>, size: Size) {
        let now = self.shared.clock.boot();
        let counter = self.sent.next(now);
        let echo = lock(&self.shared.peers).sending(to, counter, now);
        let own = self.shared.own(size.released.min(header::MAX_RELEASED));
        let header = Header {
            session: self.session.clone(),
            counter,
            echo,
            state: own.state,
            version: own.version,
            watermark: own.watermark,
            released: own.released,
        };
        header::encode(&header, payload, &mut self.plain);
        if self.plain.len() < size.least {
            self.plain.resize(size.least, 0);
        }
        if self.sealer.seal(&self.plain, &mut self.sealed).is_err() {
            return;
        }
        // Unreachable peers are everyday life; who stays silent is probed.
        let sent = match &self.port.socket {
            Some(socket) => socket.send_to(&self.sealed, to).await.is_ok(),
            None => false,
        };
        if !sent {
            metrics::counter!("handover_gossip_send_errors_total").increment(1);
        }
    }

    async fn probe_silent(&mut self) {
        let due = lock(&self.shared.peers).due(self.shared.clock.boot());
        for address in due {
            self.send_within(address, Payload::Probe, self.room).await;
        }
    }

    async fn tick(&mut self) {
        self.probe_silent().await;
        let now = self.shared.clock.boot();
        for ask in self.reassembly.due(now) {
            let missing = Payload::Missing { message: ask.message, bitmap: &ask.bitmap };
            self.send(ask.to, missing, BESIDE).await;
        }
        self.kept.expire(now);
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(SWEEP) {
            let peers = lock(&self.shared.peers);
            self.reassembly.retain(|session| peers.knows(session));
        }
    }

    /// How long until the next tick.
    fn pause(&self) -> Duration {
        let now = self.shared.clock.boot();
        let asks = self.reassembly.next_due().map(|due| due.since(now));
        // Timers have a resolution of a millisecond.
        asks.map_or(TICK, |due| due.clamp(Duration::from_millis(1), TICK))
    }

    /// A new partial message may be due before the next tick.
    fn hasten(&self, mut sleep: Pin<&mut Sleep>) {
        if self.reassembly.is_empty() {
            return;
        }
        let at = Instant::now() + self.pause();
        if at < sleep.deadline() {
            sleep.as_mut().reset(at);
        }
    }
}

/// How many stretches of counters are told apart: at one per millisecond, the last eight seconds,
/// longer than any echo counts as evidence.
const STRETCHES: usize = 8192;

/// When each of my datagrams was sent.
#[derive(Debug, Default)]
struct SentLog {
    last: u64,
    /// First counter of a stretch, and when it was sent.
    stretches: VecDeque<(u64, Time)>,
}

impl SentLog {
    /// The last counter used, 0 for none.
    const fn last(&self) -> u64 {
        self.last
    }

    fn next(&mut self, now: Time) -> u64 {
        self.last += 1;
        let new = self
            .stretches
            .back()
            .is_none_or(|(_, sent)| now.since(*sent) >= Duration::from_millis(1));
        if new {
            if self.stretches.len() == STRETCHES {
                self.stretches.pop_front();
            }
            self.stretches.push_back((self.last, now));
        }
        self.last
    }

    /// When a counter was sent, at most a millisecond early and never late; none if that is long
    /// ago.
    fn time_of(&self, counter: u64) -> Option<Time> {
        let after = self.stretches.partition_point(|(first, _)| *first <= counter);
        let (_, sent) = self.stretches.get(after.checked_sub(1)?)?;
        (counter <= self.last).then_some(*sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn send_times_are_never_late_and_forgotten_in_the_end() {
        let mut log = SentLog::default();
        let at = |micros| Time::from_micros(1_000_000 + micros);
        assert_eq!(log.next(at(0)), 1);
        assert_eq!(log.next(at(900)), 2);
        assert_eq!(log.next(at(1900)), 3);
        assert_eq!(log.time_of(1), Some(at(0)));
        assert_eq!(log.time_of(2), Some(at(0)));
        assert_eq!(log.time_of(3), Some(at(1900)));
        assert_eq!(log.time_of(4), None);
        assert_eq!(log.time_of(0), None);
        for i in 0..STRETCHES as u64 {
            log.next(at(10_000 + i * 1000));
        }
        assert_eq!(log.time_of(3), None);
        assert_eq!(log.time_of(4), Some(at(10_000)));
    }
}
