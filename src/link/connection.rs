//! One authenticated connection while it lasts: reading, writing, and noticing that it is dead.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::frame::{self, Assembler, FrameError};
use super::outbox::Outbox;
use super::report::Reports;
use super::room::Room;
use super::seal::{MAX_SEALED, Opener, SealError, Sealer};
use super::{LinkEvent, LinkLimits, Payload};
use crate::core::ids::SessionId;
use crate::net::Stream;

/// How much is sealed before it is written: what a control message waits for at most, in this process.
const BATCH: usize = 128 * 1024;
/// How much is read at a time.
const READ: usize = 64 * 1024;
/// How long what the peer sent last is still read when nothing can be written any more.
const LAST_READ: Duration = Duration::from_millis(50);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the peer closed it")]
    Closed,
    #[error("nothing was heard for too long")]
    Silent,
    #[error("it takes nothing of what it is sent")]
    Stalled,
    #[error("what it sends is not to be listened to")]
    Foul,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("all is sent and the node is closing")]
    Finished,
    #[error("nobody listens for events")]
    Unheard,
}

/// A connection whose handshake is complete.
pub(super) struct Connection {
    pub(super) stream: Box<dyn Stream>,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    /// Goes out first.
    pub(super) opening: Vec<u8>,
    /// Where the peer listens, if that is known.
    pub(super) address: Option<SocketAddr>,
}

impl Connection {
    /// Carries messages until it breaks. `rooms` are the peer's own for what comes, and that of all.
    pub(super) async fn run(
        self,
        session: &SessionId,
        outbox: &Outbox,
        reports: &mut Reports,
        rooms: (&Room, &Room),
        limits: &LinkLimits,
    ) -> Broken {
        let pulse = Pulse::default();
        let (reader, writer) = tokio::io::split(self.stream);
        let assembler = Assembler::new(limits.max_control, limits.max_message);
        let mut receiving =
            pin!(ended(receive((reader, self.opener, assembler), session, reports, rooms, &pulse)));
        let sending = ended(transmit(writer, self.sealer, self.opening, outbox, limits));
        tokio::select! {
            broken = &mut receiving => broken,
            broken = sending => match broken {
                Broken::Io(_) => timeout(LAST_READ, receiving).await.unwrap_or(broken),
                Broken::Finished => {
                    // Closing with something unread would reset what the peer has not read yet.
                    receiving.await;
                    broken
                }
                broken => broken,
            },
            () = pulse.stops(limits.dead_after) => Broken::Silent,
        }
    }
}

async fn ended(work: impl Future<Output = Result<Broken, Broken>>) -> Broken {
    match work.await {
        Ok(broken) | Err(broken) => broken,
    }
}

/// Whether the peer was heard.
#[derive(Debug, Default)]
struct Pulse {
    heard: AtomicBool,
    /// A message waits for the node to take it, so the socket is not read.
    delivering: AtomicBool,
}

impl Pulse {
    /// Returns when nothing was heard for `dead_after`, or up to a fifth less. Counts its own ticks
    /// rather than reading a clock: while this process does not run, its peers are not silent.
    async fn stops(&self, dead_after: Duration) {
        const TICKS: u32 = 10;
        let mut tick = interval((dead_after / TICKS).max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0;
        // What was heard right after a tick is seen a tick late.
        while silent < TICKS - 1 {
            tick.tick().await;
            let heard = self.heard.swap(false, Ordering::Relaxed);
            if heard || self.delivering.load(Ordering::Relaxed) {
                silent = 0;
            } else {
                silent += 1;
            }
        }
    }
}

async fn receive(
    (reader, mut opener, mut assembler): (impl AsyncRead + Unpin, Opener, Assembler),
    session: &SessionId,
    reports: &mut Reports,
    (own, all): (&Room, &Room),
    pulse: &Pulse,
) -> Result<Broken, Broken> {
    let codec = LengthDelimitedCodec::builder()
        .length_field_type::<u16>()
        .max_frame_length(MAX_SEALED)
        .new_codec();
    let mut frames = FramedRead::with_capacity(reader, codec, READ);
    let mut complete = Vec::new();
    pulse.delivering.store(true, Ordering::Relaxed);
    // That the link is up comes before what it brings.
    reports.drain().await;
    pulse.delivering.store(false, Ordering::Relaxed);
    while let Some(sealed) = frames.next().await {
        assembler.feed(opener.open(&sealed?)?, &mut complete)?;
        pulse.heard.store(true, Ordering::Relaxed);
        if complete.is_empty() {
            continue;
        }
        pulse.delivering.store(true, Ordering::Relaxed);
        for bytes in complete.drain(..) {
            let payload = Payload::new(bytes, own, all).await;
            let event = LinkEvent::Frame { from: session.clone(), payload };
            if !reports.send(event).await {
                return Err(Broken::Unheard);
            }
        }
        pulse.delivering.store(false, Ordering::Relaxed);
    }
    Ok(Broken::Closed)
}

async fn transmit(
    mut writer: impl AsyncWrite + Unpin,
    mut sealer: Sealer,
    mut out: Vec<u8>,
    outbox: &Outbox,
    limits: &LinkLimits,
) -> Result<Broken, Broken> {
    let mut plain = Vec::with_capacity(frame::FRAME);
    let mut tick = interval(limits.ping_every.max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Since the last tick.
    let mut idle = true;
    loop {
        while out.len() < BATCH && outbox.pack(&mut plain) {
            sealer.seal(&plain, &mut out)?;
            plain.clear();
            idle = false;
        }
        if !out.is_empty() {
            write(&mut writer, &out, limits.stalled_after).await?;
            out.clear();
            continue;
        }
        if outbox.is_finished() {
            writer.shutdown().await?;
            return Ok(Broken::Finished);
        }
        tokio::select! {
            biased;
            () = outbox.filled() => {}
            _ = tick.tick() => {
                if std::mem::replace(&mut idle, true) {
                    frame::put_ping(&mut plain);
                    sealer.seal(&plain, &mut out)?;
                    plain.clear();
                }
            }
        }
    }
}

/// Writes all of it, however slowly the peer takes it, as long as it takes something.
async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    mut rest: &[u8],
    stalled_after: Duration,
) -> Result<(), Broken> {
    while !rest.is_empty() {
        let written = timeout(stalled_after, writer.write(rest)).await;
        match written.map_err(|_| Broken::Stalled)?? {
            0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            written => rest = rest.get(written..).unwrap_or_default(),
        }
    }
    timeout(stalled_after, writer.flush()).await.map_err(|_| Broken::Stalled)??;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::AsyncReadExt;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::key::Key;
    use crate::link::Class;
    use crate::link::seal::{Role, handshake, split};

    fn sealer() -> Sealer {
        let key = Key::new([7; 32]);
        let mut dialling = handshake(Role::Initiator, &key, "test").unwrap();
        let mut answering = handshake(Role::Responder, &key, "test").unwrap();
        let (mut message, mut plain) = ([0; 256], [0; 256]);
        let len = dialling.write_message(&[], &mut message).unwrap();
        answering.read_message(&message[..len], &mut plain).unwrap();
        let len = answering.write_message(&[], &mut message).unwrap();
        dialling.read_message(&message[..len], &mut plain).unwrap();
        split(dialling).unwrap().0
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_little_keeps_its_link_and_who_takes_nothing_loses_it() {
        const BYTES: usize = 100 << 10;
        let limits = LinkLimits { stalled_after: Duration::from_secs(5), ..LinkLimits::default() };
        let outbox = Outbox::new(&limits);
        outbox.push(Class::Bulk, vec![7; BYTES].into()).unwrap();
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let started = Instant::now();
        let mut sending = pin!(ended(transmit(near, sealer(), Vec::new(), &outbox, &limits)));
        let mut buffer = [0; 512];
        let mut taken = 0;
        while taken < BYTES {
            tokio::select! {
                broken = &mut sending => panic!("{broken} after {:?}", started.elapsed()),
                () = sleep(Duration::from_secs(1)) => taken += far.read(&mut buffer).await.unwrap(),
            }
        }
        assert!(started.elapsed() > Duration::from_secs(100));
        outbox.push(Class::Bulk, vec![7; BYTES].into()).unwrap();
        let stopped = Instant::now();
        assert!(matches!(sending.await, Broken::Stalled));
        assert!(stopped.elapsed() <= Duration::from_secs(6));
    }
}
