//! Datagrams: lost, doubled and delayed, but never mangled.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use handover::Datagrams;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::{Fabric, Nanos, host_of};

/// What a socket's buffer holds, in bytes; the rest is lost.
const BUFFER: usize = 4 << 20;
/// The longest datagram that IP can carry.
const LONGEST: usize = 65_507;

/// What is on its way to a bound socket.
pub(super) struct Mailbox {
    id: u64,
    /// By time of arrival, then in the order sent.
    letters: BTreeMap<(Nanos, u64), (SocketAddr, Vec<u8>)>,
    bytes: usize,
    arrived: Arc<Notify>,
}

pub(super) struct Socket {
    fabric: Arc<Fabric>,
    address: SocketAddr,
    id: u64,
    arrived: Arc<Notify>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Socket {
    pub(super) fn bind(fabric: &Arc<Fabric>, address: SocketAddr) -> io::Result<Self> {
        let mut state = fabric.lock();
        if state.mailboxes.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (id, arrived) = (state.fresh_id(), Arc::new(Notify::new()));
        let mailbox = Mailbox { id, letters: BTreeMap::new(), bytes: 0, arrived: arrived.clone() };
        state.mailboxes.insert(address, mailbox);
        drop(state);
        Ok(Self { fabric: fabric.clone(), address, id, arrived })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.fabric.lock();
        // A later process may be bound to the same address.
        if state.mailboxes.get(&self.address).is_some_and(|mailbox| mailbox.id == self.id) {
            state.mailboxes.remove(&self.address);
        }
    }
}

#[async_trait]
impl Datagrams for Socket {
    async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        if bytes.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long"));
        }
        let now = self.fabric.now();
        self.fabric.fingerprint.add(
            "datagram",
            now,
            &[self.address.to_string().as_bytes(), to.to_string().as_bytes(), bytes],
        );
        let mut state = self.fabric.lock();
        let (loss, duplicate) = (state.weather.loss, state.weather.duplicate);
        let copies = match (state.chance(loss), state.chance(duplicate)) {
            (true, _) => 0,
            (false, doubled) => 1 + usize::from(doubled),
        };
        state.traffic.datagrams += 1;
        state.traffic.bytes += bytes.len() as u64;
        let fits = state.weather.lose_over.is_none_or(|most| bytes.len() <= most);
        let passes = fits && state.passes(host_of(self.address), host_of(to));
        let mut delivered = false;
        for _ in 0..if passes { copies } else { 0 } {
            let due = now + state.latency();
            let id = state.fresh_id();
            if let Some(mailbox) = state.mailboxes.get_mut(&to)
                && mailbox.bytes + bytes.len() <= BUFFER
            {
                mailbox.bytes += bytes.len();
                mailbox.letters.insert((due, id), (self.address, bytes.to_vec()));
                mailbox.arrived.notify_one();
                delivered = true;
            }
        }
        state.traffic.datagrams_lost += u64::from(!delivered);
        Ok(())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            let now = self.fabric.now();
            let wait = {
                let mut state = self.fabric.lock();
                let mailbox = state
                    .mailboxes
                    .get_mut(&self.address)
                    .filter(|mailbox| mailbox.id == self.id)
                    .ok_or(io::ErrorKind::NotConnected)?;
                match mailbox.letters.first_entry() {
                    Some(first) if first.key().0 <= now => {
                        let (from, bytes) = first.remove();
                        mailbox.bytes -= bytes.len();
                        // A buffer too short cuts the datagram, as the system does.
                        let len = bytes.len().min(buffer.len());
                        for (to, byte) in buffer.iter_mut().zip(bytes) {
                            *to = byte;
                        }
                        return Ok((len, from));
                    }
                    Some(first) => Some(Duration::from_nanos(first.key().0 - now)),
                    None => None,
                }
            };
            match wait {
                Some(wait) => tokio::select! {
                    biased;
                    () = self.arrived.notified() => {}
                    () = sleep(wait) => {}
                },
                None => self.arrived.notified().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
