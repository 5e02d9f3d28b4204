//! A network that can be cut at one node: nothing comes in or goes out, and nothing is refused.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use handover::{Datagrams, Listener, Network, Stream, SystemNetwork};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Odd while the node is cut off; streams of another number are dead for good.
#[derive(Debug, Default)]
pub(super) struct Cut(Arc<AtomicU64>);

impl Cut {
    pub(super) fn isolate(&self) {
        self.0.fetch_or(1, Ordering::SeqCst);
    }

    pub(super) fn heal(&self) {
        if is_cut(&self.0) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn wrap(&self, stream: Box<dyn Stream>) -> Box<dyn Stream> {
        let of = self.0.load(Ordering::SeqCst);
        Box::new(Severed { stream, now: self.0.clone(), of })
    }
}

fn is_cut(now: &AtomicU64) -> bool {
    now.load(Ordering::SeqCst) % 2 == 1
}

#[async_trait]
impl Network for Cut {
    async fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        Ok(Arc::new(Lossy { socket: SystemNetwork.bind(address).await?, now: self.0.clone() }))
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let listener = SystemNetwork.listen(address).await?;
        Ok(Box::new(Door { listener, cut: Self(self.0.clone()) }))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Stream>> {
        if is_cut(&self.0) {
            std::future::pending::<()>().await;
        }
        Ok(self.wrap(SystemNetwork.connect(address).await?))
    }

    async fn refuses_datagrams(&self, address: SocketAddr) -> Option<bool> {
        if is_cut(&self.0) {
            return None;
        }
        SystemNetwork.refuses_datagrams(address).await
    }
}

#[derive(Debug)]
struct Lossy {
    socket: Arc<dyn Datagrams>,
    now: Arc<AtomicU64>,
}

#[async_trait]
impl Datagrams for Lossy {
    async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        if is_cut(&self.now) {
            return Ok(());
        }
        self.socket.send_to(bytes, to).await
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            let received = self.socket.recv_from(buffer).await?;
            if !is_cut(&self.now) {
                return Ok(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

#[derive(Debug)]
struct Door {
    listener: Box<dyn Listener>,
    cut: Cut,
}

#[async_trait]
impl Listener for Door {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let (stream, from) = self.listener.accept().await?;
        Ok((self.cut.wrap(stream), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

struct Severed {
    stream: Box<dyn Stream>,
    now: Arc<AtomicU64>,
    of: u64,
}

impl Severed {
    fn is_dead(&self) -> bool {
        self.of % 2 == 1 || self.now.load(Ordering::SeqCst) != self.of
    }
}

impl AsyncRead for Severed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_dead() {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Severed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_dead() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_dead() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
