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
        Ok((original, decoded, compressed)) if original == decoded => {
            Verdict::Intact { compressed, sha256: original.1 }
        }
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
