//! A checksummed piece of data at rest: what every record on disk is wrapped in.
//!
//! ```text
//! magic 4 | version u16 | header length u32 | body length u64 | header | body | xxh3-128 of all before
//! ```
//!
//! Big-endian. The magic, the version's place and the trailing checksum are the same in every
//! version, so that "newer than this build" is never mistaken for damage, nor the other way round.

use xxhash_rust::xxh3::xxh3_128;

const FIXED: usize = 4 + 2 + 4 + 8;
const CHECKSUM: usize = 16;

/// What kind of record it is, and how large its parts may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    /// Its first four bytes.
    pub(crate) magic: [u8; 4],
    /// The version this build writes, and the newest it reads.
    pub(crate) version: u16,
    /// Bound on the header in bytes.
    pub(crate) max_header: usize,
    /// Bound on the body in bytes.
    pub(crate) max_body: usize,
}

/// Why bytes are not a record that this build can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FrameError {
    /// They begin with something else.
    #[error("this is no record of the expected kind: its first bytes are foreign")]
    Foreign,
    /// Intact, and written by a newer build.
    #[error(
        "the record has format version {found}, this build reads up to {supported}: run the build that wrote it, or a newer one"
    )]
    NewerFormat {
        /// Its version.
        found: u16,
        /// The newest version this build reads.
        supported: u16,
    },
    /// They end before the record does.
    #[error("the record is cut off: {found} bytes of {expected}")]
    Truncated {
        /// How many bytes there are.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
    /// They are not what was written.
    #[error("the record is damaged: {0}")]
    Corrupt(&'static str),
    /// A part is over its limit.
    #[error("the {what} of {len} bytes is over the limit of {limit} bytes: store less of it")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

impl Format {
    /// Wraps a header and a body.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]; nothing is allocated then.
    pub(crate) fn seal(&self, header: &[u8], body: &[u8]) -> Result<Vec<u8>, FrameError> {
        self.check(header.len() as u64, body.len() as u64)?;
        let mut bytes = Vec::with_capacity(FIXED + header.len() + body.len() + CHECKSUM);
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(&(header.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(body);
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        Ok(bytes)
    }

    /// The header and the body of a record. Allocates nothing, whatever the lengths in it say.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub(crate) fn open<'a>(&self, bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), FrameError> {
        let found = bytes.len() as u64;
        let too_short = FrameError::Truncated { found, expected: (FIXED + CHECKSUM) as u64 };
        let Some((magic, rest)) = bytes.split_first_chunk::<4>() else {
            return Err(too_short);
        };
        if *magic != self.magic {
            return Err(FrameError::Foreign);
        }
        let Some((sealed, stored)) = bytes.split_last_chunk::<CHECKSUM>() else {
            return Err(too_short);
        };
        let Some((version, rest)) = rest.split_first_chunk::<2>() else {
            return Err(too_short);
        };
        let version = u16::from_be_bytes(*version);
        let intact = checksum(sealed) == *stored;
        if version != self.version {
            // Only an intact record can be believed to be of another version.
            return Err(match intact {
                true if version > self.version => {
                    FrameError::NewerFormat { found: version, supported: self.version }
                }
                true => FrameError::Corrupt("its version was never in use"),
                false => FrameError::Corrupt("its checksum does not match"),
            });
        }
        let Some((header_len, rest)) = rest.split_first_chunk::<4>() else {
            return Err(too_short);
        };
        let Some((body_len, _)) = rest.split_first_chunk::<8>() else {
            return Err(too_short);
        };
        let header_len = u64::from(u32::from_be_bytes(*header_len));
        let body_len = u64::from_be_bytes(*body_len);
        let expected =
            body_len.saturating_add(header_len).saturating_add((FIXED + CHECKSUM) as u64);
        if !intact {
            let cut = expected > found && self.check(header_len, body_len).is_ok();
            return Err(match cut {
                true => FrameError::Truncated { found, expected },
                false => FrameError::Corrupt("its checksum does not match"),
            });
        }
        self.check(header_len, body_len)?;
        if expected != found {
            return Err(FrameError::Corrupt("its lengths do not add up"));
        }
        sealed
            .get(FIXED..)
            .and_then(|parts| parts.split_at_checked(header_len as usize))
            .ok_or(too_short)
    }

    /// How many bytes follow the body.
    pub(crate) const fn trailer(&self) -> usize {
        CHECKSUM
    }

    fn check(&self, header: u64, body: u64) -> Result<(), FrameError> {
        for (what, len, limit) in
            [("header", header, self.max_header as u64), ("body", body, self.max_body as u64)]
        {
            if len > limit {
                return Err(FrameError::TooLarge { what, len, limit });
            }
        }
        Ok(())
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    xxh3_128(bytes).to_be_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    const FORMAT: Format = Format { magic: *b"TEST", version: 2, max_header: 100, max_body: 1000 };

    /// With a checksum that matches, as only a writer with other rules could have made it.
    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM);
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = FORMAT.seal(b"head", b"body").unwrap();
        bytes[5] = 3;
        assert_eq!(FORMAT.open(&bytes), Err(FrameError::Corrupt("its checksum does not match")));
        assert_eq!(
            FORMAT.open(&resealed(bytes)),
            Err(FrameError::NewerFormat { found: 3, supported: 2 })
        );
    }

    #[test]
    fn a_foreign_record_is_named_as_such() {
        let other = Format { magic: *b"TSET", ..FORMAT };
        let bytes = other.seal(b"head", b"body").unwrap();
        assert_eq!(FORMAT.open(&bytes), Err(FrameError::Foreign));
    }

    #[test]
    fn parts_over_their_limit_are_refused_both_ways() {
        assert!(matches!(
            FORMAT.seal(&[0; 101], b""),
            Err(FrameError::TooLarge { what: "header", .. })
        ));
        assert!(matches!(
            FORMAT.seal(b"", &[0; 1001]),
            Err(FrameError::TooLarge { what: "body", .. })
        ));
        let generous = Format { max_body: 5000, ..FORMAT };
        let bytes = generous.seal(b"", &[0; 1001]).unwrap();
        assert!(matches!(FORMAT.open(&bytes), Err(FrameError::TooLarge { what: "body", .. })));
    }

    #[test]
    fn lengths_that_lie_are_refused_even_under_a_valid_checksum() {
        for (at, value) in [(6, 0xff), (9, 5), (10, 0xff), (17, 5), (17, 3)] {
            let mut bytes = FORMAT.seal(b"head", b"body").unwrap();
            bytes[at] = value;
            let found = FORMAT.open(&resealed(bytes)).map(|_| ());
            assert!(
                matches!(found, Err(FrameError::TooLarge { .. } | FrameError::Corrupt(_))),
                "byte {at}: {found:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens(
            header in prop::collection::vec(any::<u8>(), 0..=100),
            body in prop::collection::vec(any::<u8>(), 0..=1000),
        ) {
            let bytes = FORMAT.seal(&header, &body).unwrap();
            prop_assert_eq!(FORMAT.open(&bytes), Ok((header.as_slice(), body.as_slice())));
        }

        #[test]
        fn arbitrary_bytes_never_open(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if magic {
                bytes.splice(..bytes.len().min(4), *b"TEST");
            }
            prop_assert!(FORMAT.open(&bytes).is_err());
        }
    }
}
