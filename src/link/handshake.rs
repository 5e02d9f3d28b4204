//! How two nodes make sure of each other. Four messages: the initiator names its key in clear and
//! introduces itself, the responder introduces itself, the initiator confirms, the responder accepts.
//!
//! The third proves that the initiator is there now: the first alone could be a recording. The fourth
//! lets the responder decide between two connections before either carries anything.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use futures_util::FutureExt;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection::Connection;
use super::seal::{self, Opener, Role, Sealer, VERSION};
use crate::core::ids::SessionId;
use crate::key::Keyring;
use crate::net::Stream;

/// The longest message of a handshake: a fixed buffer is all that a stranger gets.
const MAX_MESSAGE: usize = 1024;

/// Who this node is to its peers.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) cluster: String,
    pub(super) keyring: Keyring,
    pub(super) session: SessionId,
    pub(super) address: SocketAddr,
}

/// Why dialling gave no link.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("the connection was refused")]
    Refused,
    #[error("the peer closed the connection before the handshake was complete")]
    HungUp,
    #[error("the handshake was not complete in time")]
    TimedOut,
    #[error("another session, {found}, answered")]
    WrongPeer { found: SessionId },
    #[error("the peer prefers another connection")]
    Rejected,
    #[error("the peer does not hold the cluster's key, or is none")]
    NotAuthentic,
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::HungUp,
            _ => Self::Io(error),
        }
    }
}

/// Why somebody who connected was turned away, unanswered.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error("it speaks version {0}, not {VERSION}")]
    Version(u8),
    #[error("it names a key that is not in the ring: {0:02x?}")]
    UnknownKey([u8; 4]),
    #[error("it does not hold the key it names, belongs to another cluster, or is none of us")]
    NotAuthentic,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The payload of the first two messages.
#[derive(Debug, Serialize, Deserialize)]
struct Introduction {
    #[serde(rename = "s")]
    session: SessionId,
    #[serde(rename = "a")]
    address: SocketAddr,
}

/// What the third and fourth message say: how far the sender has counted its dials.
#[derive(Debug, Serialize, Deserialize)]
enum Verdict {
    /// To the peer: all dials of mine up to this number are void but this one, or, from a responder,
    /// all of them.
    #[serde(rename = "y")]
    Yes(u64),
    /// The responder prefers another connection.
    #[serde(rename = "n")]
    No,
}

fn encode<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    rmp_serde::to_vec_named(value).ok()
}

/// Reads one message with a length before it; longer than the buffer is an error.
async fn read<'b>(
    stream: &mut dyn Stream,
    buffer: &'b mut [u8; MAX_MESSAGE],
) -> io::Result<&'b [u8]> {
    let len = usize::from(stream.read_u16().await?);
    let message = buffer.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
    stream.read_exact(message).await?;
    Ok(message)
}

/// Our half of the way: the peer has proved that it holds the key, but does not know yet that we are
/// there.
pub(super) struct Dialled {
    stream: Box<dyn Stream>,
    sealer: Sealer,
    opener: Opener,
}

/// Sends the first message and reads the second.
pub(super) async fn dial(
    mut stream: Box<dyn Stream>,
    local: &Local,
    expected: &SessionId,
) -> Result<Dialled, DialError> {
    let key = local.keyring.sending();
    let mut noise = seal::handshake(Role::Initiator, key, &local.cluster)
        .map_err(|_| DialError::NotAuthentic)?;
    let mut buffer = [0; MAX_MESSAGE];
    let introduction =
        encode(&Introduction { session: local.session.clone(), address: local.address })
            .ok_or(DialError::NotAuthentic)?;
    let len =
        noise.write_message(&introduction, &mut buffer).map_err(|_| DialError::NotAuthentic)?;
    let mut first = vec![VERSION];
    first.extend(key.id());
    first.extend((len as u16).to_be_bytes());
    first.extend(buffer.iter().take(len));
    stream.write_all(&first).await?;
    stream.flush().await?;

    let mut plain = [0; MAX_MESSAGE];
    let second = read(&mut *stream, &mut buffer).await?;
    let len = noise.read_message(second, &mut plain).map_err(|_| DialError::NotAuthentic)?;
    let peer: Introduction = plain
        .get(..len)
        .and_then(|plain| rmp_serde::from_slice(plain).ok())
        .ok_or(DialError::NotAuthentic)?;
    if peer.session != *expected {
        return Err(DialError::WrongPeer { found: peer.session });
    }
    let (sealer, opener) = seal::split(noise).map_err(|_| DialError::NotAuthentic)?;
    Ok(Dialled { stream, sealer, opener })
}

impl Dialled {
    /// Confirms dial number `attempt` to `address` and waits to be accepted. Returns with the connection
    /// the number up to which the peer's own dials are void.
    pub(super) async fn confirm(
        mut self,
        attempt: u64,
        address: SocketAddr,
    ) -> Result<(Connection, u64), DialError> {
        let mut third = Vec::new();
        encode(&Verdict::Yes(attempt))
            .and_then(|plain| self.sealer.seal(&plain, &mut third).ok())
            .ok_or(DialError::NotAuthentic)?;
        self.stream.write_all(&third).await?;
        self.stream.flush().await?;

        let mut buffer = [0; MAX_MESSAGE];
        let fourth = read(&mut *self.stream, &mut buffer).await?;
        let plain = self.opener.open(fourth).map_err(|_| DialError::NotAuthentic)?;
        match rmp_serde::from_slice(plain) {
            Ok(Verdict::Yes(void)) => Ok((
                Connection {
                    stream: self.stream,
                    sealer: self.sealer,
                    opener: self.opener,
                    opening: Vec::new(),
                    address: Some(address),
                },
                void,
            )),
            Ok(Verdict::No) => Err(DialError::Rejected),
            Err(_) => Err(DialError::NotAuthentic),
        }
    }
}

/// Somebody who connected, is there now and holds the key. Waits to be accepted.
pub(super) struct Candidate {
    /// Who it is.
    pub(super) session: SessionId,
    /// Where it says it listens.
    address: SocketAddr,
    /// Whether that is to be believed.
    located: bool,
    /// Its number of this dial.
    pub(super) attempt: u64,
    stream: Box<dyn Stream>,
    sealer: Sealer,
    opener: Opener,
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate")
            .field("session", &self.session)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Reads the first message, sends the second, reads the third. Says nothing before the first has
/// proved authentic.
pub(super) async fn answer(
    mut stream: Box<dyn Stream>,
    local: &Local,
) -> Result<Candidate, AnswerError> {
    let mut hello = [0; 1 + 4];
    stream.read_exact(&mut hello).await?;
    let [version, id @ ..] = hello;
    if version != VERSION {
        return Err(AnswerError::Version(version));
    }
    let key = local.keyring.by_id(id).ok_or(AnswerError::UnknownKey(id))?;
    let mut buffer = [0; MAX_MESSAGE];
    let mut plain = [0; MAX_MESSAGE];
    let first = read(&mut *stream, &mut buffer).await?;
    let mut noise = seal::handshake(Role::Responder, key, &local.cluster)
        .map_err(|_| AnswerError::NotAuthentic)?;
    let len = noise.read_message(first, &mut plain).map_err(|_| AnswerError::NotAuthentic)?;
    let peer: Introduction = plain
        .get(..len)
        .and_then(|plain| rmp_serde::from_slice(plain).ok())
        .ok_or(AnswerError::NotAuthentic)?;

    let introduction =
        encode(&Introduction { session: local.session.clone(), address: local.address })
            .ok_or(AnswerError::NotAuthentic)?;
    let len =
        noise.write_message(&introduction, &mut buffer).map_err(|_| AnswerError::NotAuthentic)?;
    let mut second = (len as u16).to_be_bytes().to_vec();
    second.extend(buffer.iter().take(len));
    stream.write_all(&second).await?;
    stream.flush().await?;

    let (sealer, mut opener) = seal::split(noise).map_err(|_| AnswerError::NotAuthentic)?;
    let third = read(&mut *stream, &mut buffer).await?;
    let plain = opener.open(third).map_err(|_| AnswerError::NotAuthentic)?;
    let Ok(Verdict::Yes(attempt)) = rmp_serde::from_slice(plain) else {
        return Err(AnswerError::NotAuthentic);
    };
    Ok(Candidate {
        session: peer.session,
        address: peer.address,
        located: false,
        attempt,
        stream,
        sealer,
        opener,
    })
}

impl Candidate {
    /// Believes the peer's word of where it listens, if it connected from that host or the address is
    /// within the networks allowed: nobody else's listener is to be tried in its name (Rule 5).
    pub(super) fn locate(&mut self, from: SocketAddr, within: &[IpNet]) {
        let said = self.address.ip();
        self.located = said.to_canonical() == from.ip().to_canonical()
            || within.iter().any(|network| network.contains(&said));
    }

    /// Takes the connection; all own dials to this peer up to number `void` are void.
    pub(super) fn accept(mut self, void: u64) -> Option<Connection> {
        let mut opening = Vec::new();
        let fourth = encode(&Verdict::Yes(void))?;
        self.sealer.seal(&fourth, &mut opening).ok()?;
        Some(Connection {
            stream: self.stream,
            sealer: self.sealer,
            opener: self.opener,
            opening,
            address: self.located.then_some(self.address),
        })
    }

    /// Tells the peer that another connection is preferred.
    pub(super) fn reject(mut self) {
        let mut last = Vec::new();
        if encode(&Verdict::No).is_some_and(|plain| self.sealer.seal(&plain, &mut last).is_ok()) {
            // So short that a fresh stream takes it at once, and if not, closing says the same.
            let _ = self.stream.write_all(&last).now_or_never();
        }
    }
}
