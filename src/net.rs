//! The seam to the network: datagrams, listeners, streams, and what they may cost. The simulation
//! brings its own network.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

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

    /// Whether datagrams to `address` are refused, which no living process does; none where the platform
    /// does not tell of refusals.
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

/// What a node takes from the network and spends on it, before or without knowing whom it has to do
/// with. Every bound is checked before anything is decrypted or allocated; what is over it is dropped
/// unanswered and counted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkLimits {
    /// Authentic datagrams a second from the address of one peer that has shown to be there by an echo.
    /// Up to eight times as many are opened under its address, since anybody can write it on a forgery.
    /// Default 20,000.
    pub peer_datagrams: u32,
    /// Bytes a second from such an address. Default 64 MiB.
    pub peer_bytes: u32,
    /// Datagrams a second from any other source: an IPv4 address, or a /64 of IPv6. Everybody is a
    /// stranger for one round trip. Default 1,000.
    pub stranger_datagrams: u32,
    /// Bytes a second from such a source. Default 1 MiB.
    pub stranger_bytes: u32,
    /// Datagrams a second from all strangers together, at up to 1,400 bytes each: spoofed sources
    /// cost no more, and known peers notice nothing. Default 20,000.
    pub strangers_datagrams: u32,
    /// Connections a second from one source. Default 100.
    pub source_connections: u32,
    /// Connections of one source whose handshake is not complete. Default 32.
    pub source_handshakes: usize,
    /// Connections of all sources whose handshake is not complete. The hosts of known peers have places of their
    /// own beyond, as many as one source. Default 128.
    pub handshakes: usize,
    /// Datagrams a second by which silent peers are looked for, of about 200 bytes each. Default 50.
    pub probes: u32,
}

impl Default for NetworkLimits {
    fn default() -> Self {
        Self {
            peer_datagrams: 20_000,
            peer_bytes: 64 << 20,
            stranger_datagrams: 1000,
            stranger_bytes: 1 << 20,
            strangers_datagrams: 20_000,
            source_connections: 100,
            source_handshakes: 32,
            handshakes: 128,
            probes: 50,
        }
    }
}

/// A limit that would keep a node from its peers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the network limit {what} is {value}: choose at least {least}, or peers are not heard")]
#[non_exhaustive]
pub struct InvalidLimit {
    /// Which.
    pub what: &'static str,
    /// What was given.
    pub value: u64,
    /// The least allowed.
    pub least: u64,
}

impl NetworkLimits {
    /// Checks that peers can still come together.
    ///
    /// # Errors
    /// Names the first limit that is too low.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let count = |limit: usize| u64::try_from(limit).unwrap_or(u64::MAX);
        // A peer's largest message is 64 KiB: about 50 datagrams, which must fit in one second's worth.
        for (what, value, least) in [
            ("peer_datagrams", self.peer_datagrams.into(), 100),
            ("peer_bytes", self.peer_bytes.into(), 128 << 10),
            ("stranger_datagrams", self.stranger_datagrams.into(), 10),
            ("stranger_bytes", self.stranger_bytes.into(), 16 << 10),
            ("strangers_datagrams", self.strangers_datagrams.into(), 10),
            ("source_connections", self.source_connections.into(), 1),
            ("source_handshakes", count(self.source_handshakes), 1),
            ("handshakes", count(self.handshakes), 1),
            ("probes", self.probes.into(), 10),
        ] {
            if value < least {
                return Err(InvalidLimit { what, value, least });
            }
        }
        Ok(())
    }
}

/// The system's sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemNetwork;

/// Gossip bursts would overflow the usual 208 KiB; the system may grant less.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How long a refusal of a datagram is waited for, and how often: a network that takes longer tells of no
/// death, and silence has to.
const REFUSAL_WAIT: Duration = Duration::from_millis(10);
const REFUSAL_PROBES: u32 = 10;

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
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        // A process that ends closes one socket after the other.
        for _ in 0..REFUSAL_PROBES {
            // One byte: too short to be anything, so a living peer drops it unread.
            if let Err(error) = socket.send(&[0]).await {
                return Some(refused(&error));
            }
            if let Ok(said) = timeout(REFUSAL_WAIT, socket.recv(&mut [0])).await {
                return Some(said.is_err_and(|error| refused(&error)));
            }
        }
        Some(false)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_would_cut_a_node_off_are_refused() {
        assert_eq!(NetworkLimits::default().check(), Ok(()));
        let limits = NetworkLimits { handshakes: 0, ..NetworkLimits::default() };
        let error = InvalidLimit { what: "handshakes", value: 0, least: 1 };
        assert_eq!(limits.check(), Err(error));
        let limits = NetworkLimits { peer_bytes: 1000, ..NetworkLimits::default() };
        assert!(limits.check().is_err());
    }
}
