//! Records in gossip: encoding them, and checking what others have written.

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::wire;
use crate::core::claim::{Claim, Desired, Spec};
use crate::core::ids::{Name, SessionId};

/// A record that is kept under its name.
pub(crate) trait Named: DeserializeOwned {
    fn name(&self) -> &Name;

    /// Whether a session may publish it.
    fn may_come_from(&self, _publisher: &SessionId) -> bool {
        true
    }
}

impl Named for Claim {
    fn name(&self) -> &Name {
        &self.name
    }

    /// A claim speaks for its claimant alone.
    fn may_come_from(&self, publisher: &SessionId) -> bool {
        self.session == *publisher
    }
}

impl Named for Spec {
    fn name(&self) -> &Name {
        &self.name
    }
}

impl Named for Desired {
    fn name(&self) -> &Name {
        &self.name
    }
}

/// Why a record was not taken.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum BadRecord {
    #[error("it cannot be decoded: {0}")]
    Undecodable(String),
    #[error("it is of another name ({0})")]
    WrongName(Name),
    #[error("its publisher may not publish it")]
    WrongPublisher,
}

/// Reads a record that `publisher` keeps under `name`.
pub(crate) fn read<R: Named>(
    publisher: &SessionId,
    name: &Name,
    bytes: &Bytes,
) -> Result<R, BadRecord> {
    let record: R =
        wire::decode(bytes).map_err(|error| BadRecord::Undecodable(error.to_string()))?;
    if record.name() != name {
        return Err(BadRecord::WrongName(record.name().clone()));
    }
    if !record.may_come_from(publisher) {
        return Err(BadRecord::WrongPublisher);
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::core::claim::{Mode, Phase, Terms};
    use crate::core::ids::{NodeId, RunId};
    use crate::core::lease::Epoch;

    fn session(node: &str) -> SessionId {
        SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(1))
    }

    fn claim() -> Claim {
        Claim {
            name: Name::new("t").unwrap(),
            session: session("a"),
            number: 3,
            version: 0,
            run: RunId { number: 1, uuid: Uuid::from_u128(2) },
            epoch: Epoch(4),
            phase: Phase::Incoming { from: session("b") },
            terms: Terms { mode: Mode::Available, silence_floor: Duration::from_secs(10) },
            replicas: vec![NodeId::new("c").unwrap()],
            floor: None,
            checkpointed: true,
            strikes: 0,
            note: String::new(),
            heeded: 0,
            expired: false,
            resting: false,
        }
    }

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        let bytes = wire::encode(&claim()).unwrap();
        assert_eq!(read::<Claim>(&session("a"), &claim().name, &bytes), Ok(claim()));
    }

    /// Else a name that a newer build holds would look free here.
    #[test]
    fn a_claim_in_a_mode_of_a_later_build_is_seen() {
        #[derive(serde::Serialize)]
        struct Later {
            m: &'static str,
            t: Duration,
            q: u32,
        }
        let bytes = wire::encode(&claim()).unwrap();
        let terms = wire::encode(&claim().terms).unwrap();
        let later = Later { m: "quorum", t: Duration::from_secs(15), q: 3 };
        let later = wire::encode(&later).unwrap();
        let at = bytes.windows(terms.len()).position(|part| part == terms).unwrap();
        let mut raw = bytes[..at].to_vec();
        raw.extend(later);
        raw.extend(&bytes[at + terms.len()..]);
        let read = read::<Claim>(&session("a"), &claim().name, &Bytes::from(raw)).unwrap();
        let terms = Terms { mode: Mode::Unknown, silence_floor: Duration::from_secs(15) };
        assert_eq!(read, Claim { terms, ..claim() });
        assert_eq!(wire::decode::<Claim>(&wire::encode(&read).unwrap()).unwrap(), read);
    }

    #[test]
    fn a_record_over_a_limit_is_refused() {
        let note = "x".repeat(Claim::MAX_NOTE + 1);
        let bytes = wire::encode(&Claim { note, ..claim() }).unwrap();
        let error = read::<Claim>(&session("a"), &claim().name, &bytes);
        assert!(matches!(error, Err(BadRecord::Undecodable(why)) if why.contains("limit")));
    }

    #[test]
    fn a_claim_for_somebody_else_is_refused() {
        let bytes = wire::encode(&claim()).unwrap();
        assert_eq!(
            read::<Claim>(&session("b"), &claim().name, &bytes),
            Err(BadRecord::WrongPublisher)
        );
    }

    #[test]
    fn a_record_under_another_name_is_refused() {
        let bytes = wire::encode(&claim()).unwrap();
        let other = Name::new("u").unwrap();
        assert_eq!(
            read::<Claim>(&session("a"), &other, &bytes),
            Err(BadRecord::WrongName(claim().name))
        );
    }

    #[test]
    fn a_name_with_control_characters_does_not_get_in() {
        let bytes = wire::encode(&claim()).unwrap();
        // The name is the record's first field, so the first text "t" is its value.
        let mut raw = bytes.to_vec();
        let at = raw.windows(2).position(|w| w == [0xa1, b't']).unwrap() + 1;
        raw[at] = 7;
        assert!(matches!(
            read::<Claim>(&session("a"), &claim().name, &Bytes::from(raw)),
            Err(BadRecord::Undecodable(_))
        ));
    }
}
