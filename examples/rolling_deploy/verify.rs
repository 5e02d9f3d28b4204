//! Checks the outputs, sharing no code with the task that wrote them: each file is decoded whole,
//! as one stream, and its digest compared with the source's.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::corpus::Source;

/// What became of one task's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It decodes to the source.
    Intact {
        /// Length of the compressed file in bytes.
        compressed: u64,
        /// SHA-256 of source and decoded output.
        sha256: String,
    },
    /// It decodes to something else, or not at all.
    Damaged(String),
}

impl Verdict {
    /// Whether it decodes to the source.
    pub const fn is_intact(&self) -> bool {
        matches!(self, Self::Intact { .. })
    }
}

/// Compares the decoded `output` with its source.
pub fn verify(source: &Source, output: &Path) -> Verdict {
    let digests = || -> io::Result<_> {
        let mut original = File::open(&source.path)?;
        original.seek(SeekFrom::Start(source.offset))?;
        let original = digest(original.take(source.len))?;
        let file = File::open(output)?;
        let compressed = file.metadata()?.len();
        let decoded = digest(zstd::Decoder::with_buffer(BufReader::new(file))?)?;
        Ok((original, decoded, compressed))
    };
    match digests() {
        Ok((original, decoded, compressed)) if original == decoded => Verdict::Intact {
            compressed,
            sha256: original.1,
        },
        Ok((original, decoded, _)) => Verdict::Damaged(format!(
            "decodes to {} bytes of SHA-256 {}, but the source has {} bytes of {}",
            decoded.0, decoded.1, original.0, original.1,
        )),
        Err(error) => Verdict::Damaged(error.to_string()),
    }
}

fn digest(mut from: impl Read) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let len = io::copy(&mut from, &mut hasher)?;
    Ok((len, format!("{:x}", hasher.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(directory: &Path, bytes: &[u8]) -> Source {
        let path = directory.join("source");
        std::fs::write(&path, [b"before", bytes, b"after"].concat()).unwrap();
        Source {
            path,
            offset: 6,
            len: bytes.len() as u64,
        }
    }

    fn frames(parts: &[&[u8]]) -> Vec<u8> {
        let encode = |part: &&[u8]| zstd::encode_all(*part, 1).unwrap();
        parts.iter().flat_map(encode).collect()
    }

    fn judge(frames: &[u8]) -> Verdict {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("output");
        std::fs::write(&output, frames).unwrap();
        verify(&source(directory.path(), b"one two three"), &output)
    }

    #[test]
    fn frames_that_decode_to_the_range_are_intact() {
        let good = judge(&frames(&[b"one ", b"two ", b"three"]));
        let sha256 = format!("{:x}", Sha256::digest(b"one two three"));
        assert!(matches!(good, Verdict::Intact { sha256: found, .. } if found == sha256));
    }

    #[test]
    fn a_frame_written_twice_is_found() {
        let doubled = judge(&frames(&[b"one ", b"two ", b"two ", b"three"]));
        assert!(matches!(doubled, Verdict::Damaged(_)));
    }

    #[test]
    fn a_missing_frame_a_torn_one_and_a_long_tail_are_found() {
        let whole = frames(&[b"one ", b"two ", b"three"]);
        let torn = &whole[..whole.len() - 2];
        let tail = [whole.as_slice(), b"rest of an older write"].concat();
        for bad in [frames(&[b"one ", b"three"]).as_slice(), torn, &tail] {
            assert!(matches!(judge(bad), Verdict::Damaged(_)));
        }
    }

    #[test]
    fn an_output_that_is_not_there_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let verdict = verify(
            &source(directory.path(), b"x"),
            &directory.path().join("none"),
        );
        assert!(matches!(verdict, Verdict::Damaged(_)));
    }
}
