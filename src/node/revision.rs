//! Which build this is: an opaque label, compared for equality only.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::sync::OnceLock;

use xxhash_rust::xxh3::Xxh3Default;

use super::error::StartError;

/// Overrides the revision when set and not empty.
const VARIABLE: &str = "HANDOVER_REVISION";

/// The number of the deploy.
const ROLLOUT: &str = "HANDOVER_ROLLOUT";

/// The environment's number of the deploy, if there is one.
pub(crate) fn rollout() -> Result<Option<u64>, StartError> {
    parse_rollout(std::env::var(ROLLOUT).ok())
}

fn parse_rollout(text: Option<String>) -> Result<Option<u64>, StartError> {
    match text.filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(StartError::InvalidRollout(text)),
        },
    }
}

/// The environment's label, or else a hash of the running executable. Reads the whole executable:
/// call it off the async threads.
pub(crate) fn detect() -> String {
    if let Ok(label) = std::env::var(VARIABLE)
        && !label.is_empty()
    {
        return label;
    }
    // Once in a process: what runs stays what it is, whatever takes its place on the disk.
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| hash_of_executable().unwrap_or_else(|_| "unknown".into())).clone()
}

/// What runs, also where a deploy has put another file in its place.
fn executable() -> io::Result<File> {
    #[cfg(target_os = "linux")]
    return File::open("/proc/self/exe").or_else(|_| File::open(std::env::current_exe()?));
    #[cfg(not(target_os = "linux"))]
    File::open(std::env::current_exe()?)
}

fn hash_of_executable() -> io::Result<String> {
    // Builds are to be told apart, and nobody is kept from anything by it: no cryptography.
    let mut hash = Xxh3Default::new();
    let mut file = BufReader::with_capacity(1 << 20, executable()?);
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        hash.update(bytes);
        let read = bytes.len();
        file.consume(read);
    }
    Ok(format!("{:012x}", hash.digest() >> 16))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn a_rollout_is_a_number_or_an_error() {
        assert_eq!(parse_rollout(None).unwrap(), None);
        assert_eq!(parse_rollout(Some(String::new())).unwrap(), None);
        assert_eq!(parse_rollout(Some("17".into())).unwrap(), Some(17));
        let error = parse_rollout(Some("v17".into())).unwrap_err();
        assert!(matches!(&error, StartError::InvalidRollout(text) if text == "v17"), "{error}");
    }

    #[test]
    fn one_executable_has_one_revision() {
        let label = hash_of_executable().unwrap();
        assert_eq!(label.len(), 12);
        assert_eq!(label, hash_of_executable().unwrap());
    }
}
