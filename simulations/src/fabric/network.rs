//! The library's seam to the network, for one process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use handover::{Datagrams, Listener, Network, Stream};
use tokio::time::sleep;

use super::datagrams::Socket;
use super::streams::{Acceptor, Dialled};
use super::{Fabric, host_of};

/// How long a kernel waits before it asks again for a connection.
const SYN_RETRY: Duration = Duration::from_secs(1);
/// How long a node listens for a refusal of its datagram.
const REFUSAL_WAIT: Duration = Duration::from_millis(100);

/// What a process on one host sees of the network.
pub(crate) struct SimNetwork {
    fabric: Arc<Fabric>,
    host: Ipv4Addr,
}

impl SimNetwork {
    pub(crate) const fn new(fabric: Arc<Fabric>, host: Ipv4Addr) -> Self {
        Self { fabric, host }
    }
}

impl std::fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimNetwork").field("host", &self.host).finish_non_exhaustive()
    }
}

#[async_trait]
impl Network for SimNetwork {
    async fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        Ok(Arc::new(Socket::bind(&self.fabric, address)?))
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(Acceptor::listen(&self.fabric, address)?))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Stream>> {
        loop {
            let Some(round_trip) = self.fabric.round_trip(self.host, host_of(address)) else {
                sleep(SYN_RETRY).await;
                continue;
            };
            sleep(round_trip).await;
            match self.fabric.dial(self.host, address) {
                Dialled::Connected(stream) => return Ok(Box::new(stream)),
                Dialled::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
                Dialled::Silence => sleep(SYN_RETRY).await,
            }
        }
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let address = name.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(vec![address])
    }

    async fn refuses_datagrams(&self, address: SocketAddr) -> Option<bool> {
        let round_trip = self.fabric.round_trip(self.host, host_of(address));
        match round_trip {
            Some(round_trip) if !self.fabric.is_bound(address) => {
                sleep(round_trip).await;
                Some(true)
            }
            // A living peer drops the byte unread.
            _ => {
                sleep(REFUSAL_WAIT).await;
                Some(false)
            }
        }
    }
}

impl Fabric {
    /// How long it takes to hear from a host; none when nothing comes back.
    fn round_trip(&self, from: Ipv4Addr, to: Ipv4Addr) -> Option<Duration> {
        let mut state = self.lock();
        let round_trip = Duration::from_nanos(state.latency() + state.latency());
        state.flows(from, to).then_some(round_trip)
    }

    fn is_bound(&self, address: SocketAddr) -> bool {
        self.lock().mailboxes.contains_key(&address)
    }
}
