//! A checkpoint at rest: header and state in one checksummed record.

use std::ops::Range;

use bytes::Bytes;

use super::frame::{Format, FrameError};
use crate::core::branch::Header;
use crate::core::limits;

const FORMAT: Format =
    Format { magic: *b"HOCP", version: 1, max_header: 64 << 10, max_body: limits::STATE };

/// Whether a checkpoint can be kept: bounded, and its state the one that the header speaks of.
///
/// # Errors
/// [`FrameError::TooLarge`], [`FrameError::Corrupt`].
pub(crate) fn check(header: &Header, state: &[u8]) -> Result<(), FrameError> {
    if state.len() > limits::STATE {
        return Err(FrameError::TooLarge {
            what: "state",
            len: state.len() as u64,
            limit: limits::STATE as u64,
        });
    }
    if !header.describes(state) {
        return Err(FrameError::Corrupt("its state is not the one it speaks of"));
    }
    Ok(())
}

/// Wraps a checkpoint up.
///
/// # Errors
/// [`FrameError::TooLarge`]; [`FrameError::Corrupt`] if the state is not the header's.
pub(crate) fn encode(header: &Header, state: &[u8]) -> Result<Vec<u8>, FrameError> {
    check(header, state)?;
    let header = rmp_serde::to_vec_named(header)
        .map_err(|_| FrameError::Corrupt("its header cannot be encoded"))?;
    FORMAT.seal(&header, state)
}

/// Unwraps a checkpoint. The state shares the memory of `bytes`.
///
/// # Errors
/// See [`FrameError`]. Whatever the bytes, no length in them is believed before it is checked.
pub(crate) fn decode(bytes: &Bytes) -> Result<(Header, Bytes), FrameError> {
    let (header, state) = inspect(bytes)?;
    Ok((header, bytes.slice(state)))
}

/// As [`decode`]: the header, and where the state stands.
pub(crate) fn inspect(bytes: &[u8]) -> Result<(Header, Range<usize>), FrameError> {
    let (header, state) = FORMAT.open(bytes)?;
    let header: Header = rmp_serde::from_slice(header)
        .map_err(|_| FrameError::Corrupt("its header is unreadable"))?;
    check(&header, state)?;
    let end = bytes.len() - FORMAT.trailer();
    Ok((header, end - state.len()..end))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::checkpoint::testing;
    use crate::core::branch::{Ancestor, Position, Progress};
    use crate::core::lease::Epoch;

    const GOLDEN: &[u8] = include_bytes!("../../tests/fixtures/checkpoint-v1.bin");

    /// What the golden file holds.
    fn golden() -> (Header, Bytes) {
        let state = Bytes::from_static(b"\x81\xa4done\x2a");
        let mut header = testing::header("fixtures/golden", 12, 3456, "writer", &state);
        header.run.uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
        header.lineage =
            vec![Ancestor { epoch: Epoch(11), writer: testing::session("before"), seq: 3400 }];
        header.wall_ms = 1_700_000_000_000;
        header.progress = Some(Progress { done: 42, total: 100, note: "chunks".into() });
        (header, state)
    }

    #[test]
    fn the_golden_checkpoint_of_version_1_decodes() {
        let (header, state) = golden();
        assert_eq!(decode(&Bytes::from_static(GOLDEN)), Ok((header.clone(), state.clone())));
        assert_eq!(
            encode(&header, &state).unwrap(),
            GOLDEN,
            "the format has changed: old builds must still read it, and a new golden file is due"
        );
    }

    #[test]
    fn every_truncation_is_detected() {
        for len in 0..GOLDEN.len() {
            let cut = Bytes::copy_from_slice(&GOLDEN[..len]);
            match decode(&cut) {
                Err(FrameError::Truncated { found, expected }) if found < expected => {}
                other => panic!("cut to {len} bytes: {other:?}"),
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        for bit in 0..GOLDEN.len() * 8 {
            let mut bytes = GOLDEN.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = decode(&bytes.into()).unwrap_err();
            assert!(
                !matches!(error, FrameError::NewerFormat { .. }),
                "bit {bit}: damage is not a newer format"
            );
        }
    }

    #[test]
    fn a_header_with_fields_of_a_newer_build_decodes() {
        #[derive(serde::Serialize)]
        struct Newer {
            #[serde(flatten)]
            header: Header,
            added: Vec<String>,
        }
        let (header, state) = golden();
        let newer = rmp_serde::to_vec_named(&Newer {
            header: header.clone(),
            added: vec!["unknown here".into()],
        })
        .unwrap();
        let bytes = FORMAT.seal(&newer, &state).unwrap();
        assert_eq!(decode(&bytes.into()), Ok((header, state)));
    }

    #[test]
    fn a_state_that_is_not_the_headers_is_refused_both_ways() {
        let (header, _) = golden();
        assert!(matches!(encode(&header, b"another"), Err(FrameError::Corrupt(_))));
        let packed = rmp_serde::to_vec_named(&header).unwrap();
        let bytes = FORMAT.seal(&packed, b"another").unwrap();
        assert!(matches!(decode(&bytes.into()), Err(FrameError::Corrupt(_))));
    }

    #[test]
    fn a_header_without_bound_is_refused() {
        let (mut header, state) = golden();
        header.revision = "r".repeat(FORMAT.max_header);
        assert!(matches!(
            encode(&header, &state),
            Err(FrameError::TooLarge { what: "header", .. })
        ));
    }

    #[test]
    fn a_position_of_any_size_survives() {
        let (mut header, state) = golden();
        header.position = Position { epoch: Epoch(u64::MAX), seq: u64::MAX };
        let bytes = encode(&header, &state).unwrap();
        assert_eq!(decode(&bytes.into()), Ok((header, state)));
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(
            name in "[a-z/é ]{1,80}",
            epoch: u64,
            seq: u64,
            uuid: u128,
            state in prop::collection::vec(any::<u8>(), 0..5000),
            progress in prop::option::of((any::<u64>(), any::<u64>(), ".{0,40}")),
            lineage in prop::collection::vec((any::<u64>(), any::<u64>()), 0..Header::MAX_LINEAGE),
        ) {
            let mut header = testing::header(&name, epoch, seq, "w", &state);
            header.run.uuid = Uuid::from_u128(uuid);
            header.progress = progress.map(|(done, total, note)| Progress { done, total, note });
            header.lineage = lineage
                .into_iter()
                .map(|(epoch, seq)| Ancestor { epoch: Epoch(epoch), writer: testing::session("w"), seq })
                .collect();
            let bytes = encode(&header, &state).unwrap();
            prop_assert_eq!(decode(&bytes.into()), Ok((header, Bytes::from(state))));
        }

        #[test]
        fn any_damage_is_detected(
            state in prop::collection::vec(any::<u8>(), 0..500),
            at: prop::sample::Index,
            bits in 1u8..,
        ) {
            let header = testing::header("job", 3, 4, "w", &state);
            let mut bytes = encode(&header, &state).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            prop_assert!(decode(&bytes.into()).is_err());
        }
    }
}
