//! Sealed datagrams: authenticated encryption under the cluster's keys.
//!
//! On the wire: version (1 byte), key id (4), nonce (24), ciphertext, tag (16). The nonce is random
//! and 192 bits wide, because one made of session and counter repeats on a cloned machine. Version,
//! key id and cluster id are associated data, so a datagram of another cluster opens under no key.

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use rand::RngCore;
use sha2::Sha256;

use crate::key::{Key, Keyring};

use super::rejected::Rejected;

const VERSION: u8 = 1;
const KEY_ID: usize = 4;
const NONCE: usize = 24;
const TAG: usize = 16;
const CLEAR: usize = 1 + KEY_ID + NONCE;

/// Bytes that sealing adds.
pub(super) const OVERHEAD: usize = CLEAR + TAG;

/// Seals with the keyring's first key, opens with all of them.
pub(super) struct Sealer {
    sending: Lane,
    receiving: Vec<Lane>,
}

struct Lane {
    id: [u8; KEY_ID],
    cipher: XChaCha20Poly1305,
    associated: Vec<u8>,
}

impl Lane {
    fn new(key: &Key, cluster: &str) -> Self {
        // A key of its own, so that nothing sealed for links can be replayed as a datagram.
        let mut derived = [0; 32];
        // The only error is an output over 255 hashes long.
        let _ = Hkdf::<Sha256>::new(None, key.bytes()).expand(b"handover gossip v1", &mut derived);
        let id = key.id();
        let mut associated = Vec::with_capacity(1 + KEY_ID + cluster.len());
        associated.push(VERSION);
        associated.extend_from_slice(&id);
        associated.extend_from_slice(cluster.as_bytes());
        Self { id, cipher: XChaCha20Poly1305::new(&derived.into()), associated }
    }
}

impl Sealer {
    pub(super) fn new(keyring: &Keyring, cluster: &str) -> Self {
        Self {
            sending: Lane::new(keyring.sending(), cluster),
            receiving: keyring.all().map(|key| Lane::new(key, cluster)).collect(),
        }
    }

    /// Writes the sealed datagram into `out`, replacing what is there.
    pub(super) fn seal(
        &self,
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), chacha20poly1305::Error> {
        let mut nonce = XNonce::default();
        rand::rng().fill_bytes(&mut nonce);
        out.clear();
        out.reserve(plaintext.len() + OVERHEAD);
        out.push(VERSION);
        out.extend_from_slice(&self.sending.id);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plaintext);
        let tag = self.sending.cipher.encrypt_in_place_detached(
            &nonce,
            &self.sending.associated,
            out.get_mut(CLEAR..).unwrap_or_default(),
        )?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens in place and returns the plaintext. Allocates nothing.
    pub(super) fn open<'a>(&self, datagram: &'a mut [u8]) -> Result<&'a [u8], Rejected> {
        // Whoever sees whether a port refuses sends less, and is no stranger.
        if datagram.len() < OVERHEAD {
            return Err(Rejected::Short);
        }
        let (version, rest) = datagram.split_first_mut().ok_or(Rejected::Short)?;
        if *version != VERSION {
            return Err(Rejected::Version);
        }
        let (id, rest) = rest.split_first_chunk_mut::<KEY_ID>().ok_or(Rejected::Short)?;
        let (nonce, rest) = rest.split_first_chunk_mut::<NONCE>().ok_or(Rejected::Short)?;
        let (sealed, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(Rejected::Short)?;
        let lane = self.receiving.iter().find(|lane| lane.id == *id).ok_or(Rejected::Key)?;
        lane.cipher
            .decrypt_in_place_detached(
                XNonce::from_slice(nonce),
                &lane.associated,
                sealed,
                Tag::from_slice(tag),
            )
            .map_err(|_| Rejected::Seal)?;
        Ok(sealed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> Key {
        Key::new([byte; 32])
    }

    fn sealed(sealer: &Sealer, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        sealer.seal(text, &mut out).unwrap();
        out
    }

    #[test]
    fn what_is_sealed_opens_and_is_not_readable_in_between() {
        let sealer = Sealer::new(&key(1).into(), "blue");
        let mut datagram = sealed(&sealer, b"the quick brown fox");
        assert_eq!(datagram.len(), 19 + OVERHEAD);
        assert!(!datagram.windows(5).any(|window| window == b"quick"));
        assert_eq!(sealer.open(&mut datagram).unwrap(), b"the quick brown fox");
    }

    #[test]
    fn the_same_text_never_looks_the_same_twice() {
        let sealer = Sealer::new(&key(1).into(), "blue");
        assert_ne!(sealed(&sealer, b"text"), sealed(&sealer, b"text"));
    }

    #[test]
    fn another_cluster_cannot_open_it() {
        let mut datagram = sealed(&Sealer::new(&key(1).into(), "blue"), b"text");
        let other = Sealer::new(&key(1).into(), "green");
        assert_eq!(other.open(&mut datagram), Err(Rejected::Seal));
    }

    #[test]
    fn another_key_cannot_open_it() {
        let mut datagram = sealed(&Sealer::new(&key(1).into(), "blue"), b"text");
        let other = Sealer::new(&key(2).into(), "blue");
        assert_eq!(other.open(&mut datagram), Err(Rejected::Key));
    }

    #[test]
    fn a_rotated_keyring_still_receives_the_old_key_and_sends_the_new() {
        let old = Sealer::new(&key(1).into(), "blue");
        let both = Sealer::new(&Keyring::new(key(2), vec![key(1)]), "blue");
        let new = Sealer::new(&key(2).into(), "blue");
        assert_eq!(both.open(&mut sealed(&old, b"text")).unwrap(), b"text");
        assert_eq!(new.open(&mut sealed(&both, b"text")).unwrap(), b"text");
        assert_eq!(old.open(&mut sealed(&both, b"text")), Err(Rejected::Key));
    }

    #[test]
    fn every_truncation_is_rejected() {
        let sealer = Sealer::new(&key(1).into(), "blue");
        let datagram = sealed(&sealer, b"some text of moderate length");
        for len in 0..datagram.len() {
            assert!(sealer.open(&mut datagram[..len].to_vec()).is_err(), "{len}");
        }
    }

    #[test]
    fn what_is_too_short_to_be_sealed_is_of_no_other_format() {
        let sealer = Sealer::new(&key(1).into(), "blue");
        for len in 0..OVERHEAD {
            assert_eq!(sealer.open(&mut vec![0; len]), Err(Rejected::Short));
        }
        assert_eq!(sealer.open(&mut [0; OVERHEAD]), Err(Rejected::Version));
    }

    #[test]
    fn every_flipped_bit_is_rejected() {
        let sealer = Sealer::new(&key(1).into(), "blue");
        let datagram = sealed(&sealer, b"some text");
        for bit in 0..datagram.len() * 8 {
            let mut flipped = datagram.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(sealer.open(&mut flipped).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_rejected(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(Sealer::new(&key(1).into(), "blue").open(&mut bytes).is_err());
        }

        #[test]
        fn any_text_survives(text in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let sealer = Sealer::new(&key(1).into(), "blue");
            let mut datagram = sealed(&sealer, &text);
            prop_assert_eq!(sealer.open(&mut datagram).unwrap(), &text[..]);
        }
    }
}
