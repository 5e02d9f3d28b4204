//! Which build this is: an opaque label, compared for equality only.

use std::fs::File;
use std::io;

use sha2::{Digest, Sha256};

/// Overrides the revision when set and not empty.
const VARIABLE: &str = "HANDOVER_REVISION";

/// The environment's label, or else a hash of the running executable. Reads the whole executable:
/// call it off the async threads.
pub(crate) fn detect() -> String {
    if let Ok(label) = std::env::var(VARIABLE)
        && !label.is_empty()
    {
        return label;
    }
    hash_of_executable().unwrap_or_else(|_| "unknown".into())
}

fn hash_of_executable() -> io::Result<String> {
    let mut file = File::open(std::env::current_exe()?)?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash)?;
    Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn one_executable_has_one_revision() {
        let label = hash_of_executable().unwrap();
        assert_eq!(label.len(), 12);
        assert_eq!(label, hash_of_executable().unwrap());
    }
}
