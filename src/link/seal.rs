//! Noise: who may speak, and the two directions of a sealed stream.

use std::sync::Arc;

use hkdf::Hkdf;
use sha2::Sha256;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState, StatelessTransportState};

use crate::key::Key;

/// Of the wire format, from the first byte on.
pub(super) const VERSION: u8 = 1;
/// The longest Noise message, which also bounds a frame's length field.
pub(super) const MAX_SEALED: usize = 65_535;
/// What sealing adds.
pub(super) const TAG: usize = 16;

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";

/// A frame could not be sealed or opened. The link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame is not what the peer sealed")]
pub(super) struct SealError;

/// ring's cipher is several times faster; randomness stays with the default, which a simulation can
/// seed.
struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        DefaultResolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

/// Which end of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Initiator,
    Responder,
}

/// Begins a handshake that only holders of `key` in the cluster of this name complete.
pub(super) fn handshake(
    role: Role,
    key: &Key,
    cluster: &str,
) -> Result<HandshakeState, snow::Error> {
    // The cluster's key also seals datagrams: no two protocols share a key.
    let mut psk = [0; 32];
    Hkdf::<Sha256>::new(None, key.bytes())
        .expand(b"handover link psk v1", &mut psk)
        .map_err(|_| snow::Error::Input)?;
    let mut prologue = b"handover link".to_vec();
    prologue.push(VERSION);
    prologue.extend(key.id());
    prologue.extend(cluster.as_bytes());
    let builder = Builder::with_resolver(PATTERN.parse()?, Box::new(Resolver))
        .psk(0, &psk)?
        .prologue(&prologue)?;
    match role {
        Role::Initiator => builder.build_initiator(),
        Role::Responder => builder.build_responder(),
    }
}

/// The two directions of a completed handshake.
pub(super) fn split(handshake: HandshakeState) -> Result<(Sealer, Opener), snow::Error> {
    let transport = Arc::new(handshake.into_stateless_transport_mode()?);
    let sealer = Sealer { transport: transport.clone(), nonce: 0 };
    let opener = Opener { transport, nonce: 0, plain: vec![0; MAX_SEALED] };
    Ok((sealer, opener))
}

/// Seals what goes out, in order.
pub(super) struct Sealer {
    transport: Arc<StatelessTransportState>,
    nonce: u64,
}

impl Sealer {
    /// Appends `plain`, sealed and with its length before it.
    pub(super) fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let len = u16::try_from(plain.len() + TAG).map_err(|_| SealError)?;
        out.extend(len.to_be_bytes());
        let start = out.len();
        out.resize(start + usize::from(len), 0);
        let sealed = out.get_mut(start..).ok_or(SealError)?;
        self.transport.write_message(self.nonce, plain, sealed).map_err(|_| SealError)?;
        self.nonce += 1;
        Ok(())
    }
}

/// Opens what comes in, in order: a frame lost, repeated or moved does not open.
pub(super) struct Opener {
    transport: Arc<StatelessTransportState>,
    nonce: u64,
    plain: Vec<u8>,
}

impl Opener {
    /// The content of a sealed frame.
    pub(super) fn open(&mut self, sealed: &[u8]) -> Result<&[u8], SealError> {
        let len = self
            .transport
            .read_message(self.nonce, sealed, &mut self.plain)
            .map_err(|_| SealError)?;
        self.nonce += 1;
        self.plain.get(..len).ok_or(SealError)
    }
}
