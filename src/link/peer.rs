//! One peer: dialling it, choosing among connections, keeping one of them, saying how it ended.
//!
//! Where both nodes dial at once, the dial of the smaller session wins, once it is confirmed. A
//! confirmed connection never meets one that was given up before it: dials are numbered, and accepting
//! or confirming one tells the other end which numbers are void.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Sleep, error::Elapsed, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::connection::{Broken, Connection};
use super::handshake::{self, Candidate, DialError};
use super::outbox::Outbox;
use super::report::Reports;
use super::room::Room;
use super::{LinkEvent, Shared};
use crate::core::ids::SessionId;

/// Connections of one peer that wait to be decided about.
const CANDIDATES: usize = 4;
/// A link that lasted this long does not count as flapping.
const LASTING: Duration = Duration::from_secs(1);
/// A dying process's listener still accepts: ask it again soon.
const HUNG_UP_PAUSE: Duration = Duration::from_millis(1);
/// How often a peer may prefer a connection of its own that never comes.
const MAX_REJECTIONS: u32 = 5;

/// What the rest of the process holds of a peer. Dropping it cuts the link.
#[derive(Debug)]
pub(super) struct Peer {
    outbox: Arc<Outbox>,
    up: Arc<AtomicBool>,
    want: watch::Sender<Option<SocketAddr>>,
    candidates: mpsc::Sender<Candidate>,
    cut: Arc<Notify>,
    task: AbortOnDropHandle<()>,
}

impl Peer {
    /// Starts its task; `want` is where to dial it, if it is to be dialled.
    pub(super) fn spawn(
        shared: &Arc<Shared>,
        session: SessionId,
        want: Option<SocketAddr>,
    ) -> Self {
        let outbox = Arc::new(Outbox::new(&shared.limits));
        let up = Arc::new(AtomicBool::new(false));
        let (want, wanted) = watch::channel(want);
        let (candidates, arriving) = mpsc::channel(CANDIDATES);
        let cut = Arc::new(Notify::new());
        let keeper = Keeper {
            shared: shared.clone(),
            session,
            outbox: outbox.clone(),
            up: up.clone(),
            wanted,
            candidates: arriving,
            cut: cut.clone(),
            room: Room::new(shared.limits.waiting),
            reports: Reports::new(shared.events.clone()),
            void: 0,
            advertised: None,
            failures: 0,
            verdict: None,
        };
        let task = AbortOnDropHandle::new(shared.runtime.spawn(keeper.run()));
        Self { outbox, up, want, candidates, cut, task }
    }

    pub(super) const fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Where it is to be dialled.
    pub(super) fn wanted(&self) -> Option<SocketAddr> {
        *self.want.borrow()
    }

    /// Keeps a link by dialling `address`.
    pub(super) fn want(&self, address: SocketAddr) {
        let changed = self.want.send_if_modified(|wanted| {
            let changed = *wanted != Some(address);
            *wanted = Some(address);
            changed
        });
        if changed {
            self.outbox.open();
        }
    }

    /// Dials again now, if it is to be dialled, rather than when the pause after the last failure is
    /// over, or the present attempt: what that sent may have been lost.
    pub(super) fn hasten(&self) {
        if !self.is_up() {
            self.want.send_if_modified(|wanted| wanted.is_some());
        }
    }

    /// Hands over a connection that the peer has made. One too many is dropped: the peer dials again.
    pub(super) fn deliver(&self, candidate: Candidate) {
        let _ = self.candidates.try_send(candidate);
    }

    /// Breaks the connection that stands.
    pub(super) fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Takes nothing more, and ends when what is queued is sent.
    pub(super) fn finish(&self) {
        self.outbox.finish();
    }

    /// Returns when a finishing peer has ended.
    pub(super) async fn finished(self) {
        if self.is_up() {
            let _ = self.task.await;
        }
    }
}

/// How a wait ended.
enum Turn<T> {
    /// By what was waited for.
    Done(T),
    /// The peer has made a connection, not void.
    Candidate(Candidate),
    /// The address has changed.
    Address,
}

/// The task that owns a peer's link.
struct Keeper {
    shared: Arc<Shared>,
    session: SessionId,
    outbox: Arc<Outbox>,
    up: Arc<AtomicBool>,
    wanted: watch::Receiver<Option<SocketAddr>>,
    candidates: mpsc::Receiver<Candidate>,
    cut: Arc<Notify>,
    /// For what has come from it and waits for the node.
    room: Room,
    reports: Reports,
    /// The peer's dials up to this number are void.
    void: u64,
    /// Where the peer says it listens.
    advertised: Option<SocketAddr>,
    /// Dials that have failed in a row.
    failures: u32,
    /// A break is not reported yet: runs until it must be.
    verdict: Option<Pin<Box<Sleep>>>,
}

impl Keeper {
    async fn run(mut self) {
        let mut next = None;
        loop {
            let connection = match next.take() {
                Some(connection) => Some(connection),
                None => self.connect().await,
            };
            match connection {
                Some(connection) => match self.keep(connection).await {
                    Ok(replacement) => next = replacement,
                    Err(Broken::Finished | Broken::Unheard) => return,
                    Err(_) if self.outbox.is_finishing() => return,
                    Err(_) => {}
                },
                None => {
                    if !self.reports.drain().await || self.retire() {
                        return;
                    }
                }
            }
        }
    }

    /// Makes a connection, or takes one. None if the peer is not wanted and does not come.
    async fn connect(&mut self) -> Option<Connection> {
        let mut hung_up_pause = HUNG_UP_PAUSE;
        let mut rejections = 0;
        // The first break is looked into at once; a link that keeps breaking is not.
        let pause = self.backoff();
        if self.verdict.is_some() {
            self.failures = self.failures.max(1);
        }
        if let Some(connection) = self.pause(pause).await {
            return Some(connection);
        }
        loop {
            if self.wanted.has_changed().unwrap_or(false) {
                self.outbox.open();
            }
            let wanted = *self.wanted.borrow_and_update();
            // Without being wanted it is dialled once, to learn whether the process is gone.
            let broken = self.verdict.as_ref().and(self.advertised);
            let Some(address) = wanted.or(broken) else {
                self.outbox.close();
                let arrived = self.arrived();
                if arrived.is_none() {
                    // Where to ask is not known.
                    self.report_down(false);
                }
                return arrived;
            };
            let error = match self.dial(address).await {
                Turn::Done(Ok(connection)) => return Some(connection),
                Turn::Done(Err(error)) => error,
                Turn::Candidate(candidate) => match candidate.accept(self.shared.last_dial()) {
                    Some(connection) => return Some(connection),
                    None => continue,
                },
                Turn::Address => continue,
            };
            tracing::debug!(target: "handover::link", peer = %self.session, %address, %error, "no link");
            let pause = match error {
                DialError::HungUp if self.verdict.is_some() => {
                    let pause = hung_up_pause;
                    hung_up_pause *= 2;
                    pause
                }
                DialError::Rejected if rejections < MAX_REJECTIONS => {
                    // Its own dial is on the way: what is queued goes out over that.
                    rejections += 1;
                    self.shared.limits.backoff_min
                }
                error => {
                    self.fail(error, address).await;
                    if wanted.is_none() {
                        continue;
                    }
                    self.backoff()
                }
            };
            if let Some(connection) = self.pause(pause).await {
                return Some(connection);
            }
        }
    }

    /// One dial. Until it is confirmed a connection that the peer made is as good; then the dial of the
    /// smaller session wins.
    async fn dial(&mut self, address: SocketAddr) -> Turn<Result<Connection, DialError>> {
        let shared = self.shared.clone();
        let session = self.session.clone();
        let number = shared.next_dial();
        let limit = shared.limits.handshake;
        let dial = pin!(timeout(limit, async {
            let stream = shared.network.connect(address).await?;
            handshake::dial(stream, &shared.local, &session).await
        }));
        let dialled = match self.turn(dial).await {
            Turn::Done(result) => match in_time(result) {
                Ok(dialled) => dialled,
                Err(error) => return Turn::Done(Err(error)),
            },
            Turn::Candidate(candidate) => return Turn::Candidate(candidate),
            Turn::Address => return Turn::Address,
        };
        let mut confirm = pin!(timeout(limit, dialled.confirm(number, address)));
        loop {
            match self.turn(confirm.as_mut()).await {
                Turn::Done(result) => {
                    return Turn::Done(in_time(result).map(|(connection, void)| {
                        self.void = self.void.max(void);
                        connection
                    }));
                }
                Turn::Candidate(candidate) if shared.local.session < session => candidate.reject(),
                Turn::Candidate(candidate) => return Turn::Candidate(candidate),
                Turn::Address => {}
            }
        }
    }

    /// A dial has failed for good: drops what was queued for it and says what is known.
    async fn fail(&mut self, error: DialError, address: SocketAddr) {
        self.failures = self.failures.saturating_add(1);
        self.outbox.close();
        let refused = matches!(error, DialError::Refused)
            && self.shared.network.refuses_datagrams(address).await != Some(false);
        if !self.report_down(refused) && refused {
            self.reports.push(LinkEvent::Refused { session: self.session.clone() });
        }
        if let DialError::WrongPeer { found } = error {
            self.reports.push(LinkEvent::WrongPeer {
                expected: self.session.clone(),
                found,
                address,
            });
        }
    }

    /// Keeps a connection until it breaks or another replaces it.
    async fn keep(&mut self, connection: Connection) -> Result<Option<Connection>, Broken> {
        let address = connection.address;
        self.report_down(false);
        self.reports.push(LinkEvent::Up { session: self.session.clone(), address });
        tracing::debug!(target: "handover::link", peer = %self.session, ?address, "link up");
        self.advertised = address;
        self.failures = self.failures.min(1);
        self.outbox.open();
        self.outbox.rewind();
        self.up.store(true, Ordering::Relaxed);
        let since = self.shared.clock.boot();

        let ended = {
            let mut link = pin!(connection.run(
                &self.session,
                &self.outbox,
                &mut self.reports,
                (&self.room, &self.shared.room),
                &self.shared.limits,
            ));
            let mut cut = pin!(self.cut.notified());
            loop {
                tokio::select! {
                    biased;
                    // The peer dials only when it holds its end for broken.
                    Some(candidate) = self.candidates.recv() => {
                        if candidate.attempt <= self.void {
                            candidate.reject();
                            continue;
                        }
                        self.void = candidate.attempt;
                        break Ok(candidate.accept(self.shared.last_dial()));
                    }
                    () = &mut cut => break Err(Broken::Foul),
                    broken = &mut link => break Err(broken),
                }
            }
        };

        self.up.store(false, Ordering::Relaxed);
        if self.shared.clock.boot().since(since) >= LASTING {
            self.failures = 0;
        }
        self.verdict = Some(Box::pin(sleep(self.shared.limits.verdict)));
        match &ended {
            Ok(_) => {
                tracing::debug!(target: "handover::link", peer = %self.session, "link replaced");
            }
            Err(why) => {
                if matches!(why, Broken::Stalled) {
                    self.outbox.drop_waiting();
                }
                tracing::debug!(target: "handover::link", peer = %self.session, %why, "link down");
            }
        }
        ended
    }

    /// Waits for `work`, and meanwhile tells the node what waits to be told.
    async fn turn<T>(&mut self, mut work: Pin<&mut impl Future<Output = T>>) -> Turn<T> {
        loop {
            tokio::select! {
                biased;
                Some(candidate) = self.candidates.recv() => {
                    if candidate.attempt <= self.void {
                        candidate.reject();
                        continue;
                    }
                    self.void = candidate.attempt;
                    return Turn::Candidate(candidate);
                }
                done = &mut work => return Turn::Done(done),
                Ok(()) = self.wanted.changed() => {
                    self.outbox.open();
                    return Turn::Address;
                }
                () = lapse(&mut self.verdict), if self.verdict.is_some() => {
                    self.report_down(false);
                }
                _ = self.reports.drain(), if !self.reports.is_empty() => {}
            }
        }
    }

    /// Waits; cut short by a connection that the peer makes, or by another address.
    async fn pause(&mut self, pause: Duration) -> Option<Connection> {
        if pause.is_zero() {
            return None;
        }
        match self.turn(pin!(sleep(pause))).await {
            Turn::Candidate(candidate) => candidate.accept(self.shared.last_dial()),
            Turn::Done(()) | Turn::Address => None,
        }
    }

    /// A connection that the peer has made already.
    fn arrived(&mut self) -> Option<Connection> {
        while let Ok(candidate) = self.candidates.try_recv() {
            if candidate.attempt > self.void {
                self.void = candidate.attempt;
                return candidate.accept(self.shared.last_dial());
            }
            candidate.reject();
        }
        None
    }

    /// Reports a break if one is not reported yet.
    fn report_down(&mut self, refused: bool) -> bool {
        let unreported = self.verdict.take().is_some();
        if unreported {
            self.reports.push(LinkEvent::Down { session: self.session.clone(), refused });
        }
        unreported
    }

    /// How long to wait before the next dial.
    fn backoff(&self) -> Duration {
        let limits = &self.shared.limits;
        match self.failures {
            0 => Duration::ZERO,
            failures => limits
                .backoff_min
                .saturating_mul(1 << (failures - 1).min(16))
                .min(limits.backoff_max),
        }
    }

    /// Takes the peer off the map, unless it became wanted or has connected meanwhile.
    fn retire(&self) -> bool {
        let mut peers = self.shared.peers();
        if self.wanted.borrow().is_some() || !self.candidates.is_empty() {
            return false;
        }
        let mine = peers
            .map
            .get(&self.session)
            .is_some_and(|peer| Arc::ptr_eq(peer.outbox(), &self.outbox));
        if mine {
            peers.map.remove(&self.session);
        }
        true
    }
}

fn in_time<T>(result: Result<Result<T, DialError>, Elapsed>) -> Result<T, DialError> {
    result.unwrap_or(Err(DialError::TimedOut))
}

async fn lapse(timer: &mut Option<Pin<Box<Sleep>>>) {
    if let Some(timer) = timer {
        timer.await;
    }
}
