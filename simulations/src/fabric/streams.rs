//! Streams: in order, stalled by a cut in either direction, ended by the death of a process.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use handover::{Listener, Stream};
use rand::Rng;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

use super::{Fabric, Nanos, RETRANSMISSION, State, host_of, nanos};

/// What one direction holds before the writer waits, in bytes.
const WINDOW: usize = 256 << 10;

/// One direction of a stream.
pub(super) struct Pipe {
    from: Ipv4Addr,
    to: Ipv4Addr,
    segments: VecDeque<(Nanos, Vec<u8>)>,
    buffered: usize,
    /// Nothing arrives before what was sent before it.
    last_due: Nanos,
    /// When the reader sees the end.
    fin: Option<Nanos>,
    /// When the reader sees a reset.
    reset: Option<Nanos>,
    /// The host at the other end lost its power: nothing will come.
    silent: bool,
    writer_gone: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    const fn new(from: Ipv4Addr, to: Ipv4Addr) -> Self {
        Self {
            from,
            to,
            segments: VecDeque::new(),
            buffered: 0,
            last_due: 0,
            fin: None,
            reset: None,
            silent: false,
            writer_gone: false,
            reader_gone: false,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// When something next happens for the reader.
    fn next_due(&self) -> Option<Nanos> {
        let data = self.segments.front().map(|(due, _)| *due);
        [data, self.reset, self.fin].into_iter().flatten().min()
    }
}

impl State {
    /// The writer's process ended: its kernel sends what there is, then the end.
    fn finish(&mut self, id: u64, now: Nanos) {
        let latency = self.latency();
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.writer_gone = true;
            pipe.last_due = pipe.last_due.max(now + latency);
            pipe.fin.get_or_insert(pipe.last_due);
            pipe.wake();
        }
        self.forget(id);
    }

    /// The reader's process ended: nobody will take what is on its way.
    fn abandon(&mut self, id: u64) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.reader_gone = true;
            pipe.segments.clear();
            pipe.buffered = 0;
            pipe.wake();
        }
        self.forget(id);
    }

    fn forget(&mut self, id: u64) {
        if self.pipes.get(&id).is_some_and(|pipe| pipe.writer_gone && pipe.reader_gone) {
            self.pipes.remove(&id);
        }
    }

    pub(super) fn close_all_of(&mut self, host: Ipv4Addr) {
        let now = self.now;
        let ids: Vec<u64> = self.pipes.keys().copied().collect();
        for id in ids {
            let Some(pipe) = self.pipes.get(&id) else { continue };
            let (writes, reads) = (pipe.from == host, pipe.to == host);
            if writes && !pipe.writer_gone {
                self.finish(id, now);
            }
            if reads {
                self.abandon(id);
            }
        }
    }

    pub(super) fn silence_all_of(&mut self, host: Ipv4Addr) {
        for pipe in self.pipes.values_mut().filter(|pipe| pipe.from == host || pipe.to == host) {
            pipe.silent = true;
            pipe.writer_gone |= pipe.from == host;
            pipe.reader_gone |= pipe.to == host;
        }
        self.pipes.retain(|_, pipe| !(pipe.writer_gone && pipe.reader_gone));
    }

    pub(super) fn reset_all_of(&mut self, host: Ipv4Addr) {
        let now = self.now;
        for pipe in self.pipes.values_mut().filter(|pipe| pipe.silent && pipe.from == host) {
            pipe.silent = false;
            let pause = self.rng.random_range(0..=nanos(RETRANSMISSION));
            pipe.reset = Some(now + pause);
            pipe.wake();
        }
    }

    /// A direction was healed: kernels send again what had not arrived.
    pub(super) fn resume(&mut self, a: Ipv4Addr, b: Ipv4Addr) {
        let now = self.now;
        let between =
            |pipe: &Pipe| (pipe.from == a && pipe.to == b) || (pipe.from == b && pipe.to == a);
        for pipe in self.pipes.values_mut().filter(|pipe| between(pipe)) {
            let again = now + self.rng.random_range(0..=nanos(RETRANSMISSION));
            for due in pipe
                .segments
                .iter_mut()
                .map(|(due, _)| due)
                .chain(&mut pipe.fin)
                .chain(&mut pipe.reset)
            {
                *due = (*due).max(again);
            }
            pipe.last_due = pipe.last_due.max(again);
            pipe.wake();
        }
    }
}

/// What came of a dial.
pub(super) enum Dialled {
    Connected(SimStream),
    Refused,
    /// No answer: it is cut off, or without power.
    Silence,
}

impl Fabric {
    pub(super) fn dial(self: &Arc<Self>, from: Ipv4Addr, to: SocketAddr) -> Dialled {
        let mut state = self.lock();
        let host = host_of(to);
        if !state.flows(from, host) {
            return Dialled::Silence;
        }
        if !state.listeners.contains_key(&to) {
            return Dialled::Refused;
        }
        let (there, back) = (state.fresh_id(), state.fresh_id());
        state.pipes.insert(there, Pipe::new(from, host));
        state.pipes.insert(back, Pipe::new(host, from));
        let ours = SimStream::new(self, back, there);
        let theirs = SimStream::new(self, there, back);
        // Ports of dialling sockets carry no meaning here, but must not repeat soon.
        let port = 32_768 + (there % 28_000) as u16;
        if let Some(backlog) = state.listeners.get_mut(&to) {
            backlog.waiting.push_back((theirs, SocketAddr::new(from.into(), port)));
            backlog.arrived.notify_one();
        }
        Dialled::Connected(ours)
    }
}

/// Streams that wait to be accepted.
pub(super) struct Backlog {
    id: u64,
    waiting: VecDeque<(SimStream, SocketAddr)>,
    arrived: Arc<Notify>,
}

pub(super) struct Acceptor {
    fabric: Arc<Fabric>,
    address: SocketAddr,
    id: u64,
    arrived: Arc<Notify>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Acceptor {
    pub(super) fn listen(fabric: &Arc<Fabric>, address: SocketAddr) -> io::Result<Self> {
        let mut state = fabric.lock();
        if state.listeners.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (id, arrived) = (state.fresh_id(), Arc::new(Notify::new()));
        let backlog = Backlog { id, waiting: VecDeque::new(), arrived: arrived.clone() };
        state.listeners.insert(address, backlog);
        drop(state);
        Ok(Self { fabric: fabric.clone(), address, id, arrived })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let mut state = self.fabric.lock();
        let own = state.listeners.get(&self.address).is_some_and(|backlog| backlog.id == self.id);
        let backlog = if own { state.listeners.remove(&self.address) } else { None };
        // Its streams take the lock themselves when they are dropped.
        drop(state);
        drop(backlog);
    }
}

#[async_trait]
impl Listener for Acceptor {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        loop {
            let next = {
                let mut state = self.fabric.lock();
                let backlog = state
                    .listeners
                    .get_mut(&self.address)
                    .filter(|backlog| backlog.id == self.id)
                    .ok_or(io::ErrorKind::NotConnected)?;
                backlog.waiting.pop_front()
            };
            match next {
                Some((stream, from)) => return Ok((Box::new(stream), from)),
                None => self.arrived.notified().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// One end of a stream.
pub(super) struct SimStream {
    fabric: Arc<Fabric>,
    incoming: u64,
    outgoing: u64,
    /// Until what is on its way has arrived.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl SimStream {
    fn new(fabric: &Arc<Fabric>, incoming: u64, outgoing: u64) -> Self {
        Self { fabric: fabric.clone(), incoming, outgoing, sleep: None }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let open = {
            let state = self.fabric.lock();
            state.pipes.get(&self.outgoing).is_some_and(|pipe| !pipe.writer_gone)
                || state.pipes.get(&self.incoming).is_some_and(|pipe| !pipe.reader_gone)
        };
        // The kernel has closed it already when the process was killed; then no host's time can be asked.
        if !open {
            return;
        }
        let now = self.fabric.now();
        let mut state = self.fabric.lock();
        state.finish(self.outgoing, now);
        state.abandon(self.incoming);
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let now = self.fabric.now();
            let wait = {
                let mut state = self.fabric.lock();
                let state = &mut *state;
                let Some(pipe) = state.pipes.get(&self.incoming) else {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                };
                let stalled = pipe.silent || !state.flows(pipe.from, pipe.to);
                let Some(pipe) = state.pipes.get_mut(&self.incoming) else {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                };
                pipe.reader = Some(cx.waker().clone());
                if stalled {
                    return Poll::Pending;
                }
                if pipe.reset.is_some_and(|due| due <= now) {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                let before = buf.filled().len();
                while let Some((due, bytes)) = pipe.segments.front_mut()
                    && *due <= now
                    && buf.remaining() > 0
                {
                    let part: Vec<u8> = bytes.drain(..bytes.len().min(buf.remaining())).collect();
                    buf.put_slice(&part);
                    pipe.buffered -= part.len();
                    if bytes.is_empty() {
                        pipe.segments.pop_front();
                    }
                }
                if buf.filled().len() > before {
                    if let Some(writer) = pipe.writer.take() {
                        writer.wake();
                    }
                    return Poll::Ready(Ok(()));
                }
                if pipe.segments.is_empty() && pipe.fin.is_some_and(|due| due <= now) {
                    return Poll::Ready(Ok(()));
                }
                match pipe.next_due() {
                    Some(due) => Duration::from_nanos(due.saturating_sub(now)),
                    None => return Poll::Pending,
                }
            };
            let mut timer = Box::pin(sleep(wait));
            if timer.as_mut().poll(cx).is_pending() {
                self.sleep = Some(timer);
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let now = self.fabric.now();
        let mut state = self.fabric.lock();
        let latency = state.latency();
        let Some(pipe) = state.pipes.get_mut(&self.outgoing).filter(|pipe| !pipe.writer_gone)
        else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if pipe.reader_gone && !pipe.silent {
            // The peer's kernel answers data for nobody with a reset.
            if let Some(back) = state.pipes.get_mut(&self.incoming) {
                back.reset.get_or_insert(now + 2 * latency);
                back.wake();
            }
            return Poll::Ready(Ok(buf.len()));
        }
        let room = WINDOW.saturating_sub(pipe.buffered);
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let part = &buf[..buf.len().min(room)];
        pipe.last_due = pipe.last_due.max(now + latency);
        pipe.segments.push_back((pipe.last_due, part.to_vec()));
        pipe.buffered += part.len();
        let (from, to) = (pipe.from, pipe.to);
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        state.traffic.segments += 1;
        state.traffic.bytes += part.len() as u64;
        drop(state);
        self.fabric.fingerprint.add("segment", now, &[&from.octets(), &to.octets(), part]);
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.fabric.now();
        let mut state = self.fabric.lock();
        if state.pipes.get(&self.outgoing).is_some_and(|pipe| !pipe.writer_gone) {
            state.finish(self.outgoing, now);
        }
        Poll::Ready(Ok(()))
    }
}
