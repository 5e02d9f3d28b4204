//! The seam to the network: datagrams, listeners, streams. The simulation brings its own.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Opens sockets.
#[async_trait]
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Binds a datagram socket.
    ///
    /// # Errors
    /// As the system says.
    async fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn Datagrams>>;

    /// Listens for streams.
    ///
    /// # Errors
    /// As the system says.
    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// Opens a stream.
    ///
    /// # Errors
    /// As the system says; `ConnectionRefused` is evidence that no process listens there.
    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Stream>>;

    /// The addresses that a name stands for, as `HOST:PORT`.
    ///
    /// # Errors
    /// As the system says.
    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(name).await?.collect())
    }

    /// Whether a datagram to `address` is refused; none where the platform does not tell.
    async fn refuses_datagrams(&self, address: SocketAddr) -> Option<bool>;
}

/// A bound datagram socket.
#[async_trait]
pub trait Datagrams: fmt::Debug + Send + Sync + 'static {
    /// Sends one datagram; never waits for the peer.
    ///
    /// # Errors
    /// As the system says.
    async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()>;

    /// Receives one datagram. Cancel-safe.
    ///
    /// # Errors
    /// As the system says; a refusal reported for an earlier send is not an error of the socket.
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// The bound address.
    ///
    /// # Errors
    /// As the system says.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A listening socket.
#[async_trait]
pub trait Listener: fmt::Debug + Send + Sync + 'static {
    /// Accepts one stream. Cancel-safe.
    ///
    /// # Errors
    /// As the system says.
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)>;

    /// The bound address.
    ///
    /// # Errors
    /// As the system says.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// The system's sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemNetwork;

/// Gossip bursts would overflow the usual 208 KiB; the system may grant less.
const RECEIVE_BUFFER: usize = 4 << 20;

#[async_trait]
impl Network for SystemNetwork {
    async fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        let socket = UdpSocket::bind(address).await?;
        // Best effort: without it a burst loses datagrams, which are asked for again.
        let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
        Ok(Arc::new(socket))
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpListener::bind(address).await?))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn refuses_datagrams(&self, address: SocketAddr) -> Option<bool> {
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let socket = UdpSocket::bind(any).await.ok()?;
        socket.connect(address).await.ok()?;
        // One byte: too short to be anything, so a living peer drops it unread.
        socket.send(&[0]).await.ok()?;
        let mut buffer = [0];
        match tokio::time::timeout(Duration::from_millis(20), socket.recv(&mut buffer)).await {
            Ok(Err(error)) => Some(error.kind() == io::ErrorKind::ConnectionRefused),
            Ok(Ok(_)) => Some(false),
            Err(_) => None,
        }
    }
}

#[async_trait]
impl Datagrams for UdpSocket {
    async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        match self.try_send_to(bytes, to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Self::send_to(self, bytes, to).await.map(|_| ())
            }
            result => result.map(|_| ()),
        }
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        Self::recv_from(self, buffer).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

#[async_trait]
impl Listener for TcpListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let (stream, from) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}
