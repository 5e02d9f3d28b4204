//! Leases and fencing tokens: who may act on a name, in a strict total order.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::SessionId;

/// Counts the changes of ownership of a name. It says nothing of progress, nor of recency across a
/// partition: two sides can mint the same one, and the order of claims decides (Rule 9).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The one above.
    #[must_use]
    pub(crate) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

/// The right to run a name: an epoch held by a session. Ordered by epoch, then session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// Which change of ownership.
    pub epoch: Epoch,
    /// Whose.
    pub session: SessionId,
}

/// A lease's place in the order, for stores and sinks that refuse what is older (fencing token;
/// M. Kleppmann, "How to do distributed locking").
///
/// A store accepts when the epoch is above its high-water mark, or equal *and* of the same session:
/// the first writer of an epoch owns it. It makes the check in the same transaction as the write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The lease's epoch.
    pub epoch: Epoch,
    /// The lease's session, as text.
    pub session: String,
}

impl Fence {
    /// Whether a store whose high-water mark is `high` accepts this token.
    ///
    /// ```
    /// use handover::{Epoch, Fence};
    /// let high = Fence { epoch: Epoch(4), session: "a#1".into() };
    /// let rival = Fence { epoch: Epoch(4), session: "b#2".into() };
    /// let taker = Fence { epoch: Epoch(5), session: "b#2".into() };
    /// assert!(high.accepted_over(Some(&high)));
    /// assert!(!rival.accepted_over(Some(&high)), "the first writer of an epoch owns it");
    /// assert!(taker.accepted_over(Some(&high)));
    /// ```
    pub fn accepted_over(&self, high: Option<&Self>) -> bool {
        high.is_none_or(|high| {
            self.epoch > high.epoch || (self.epoch == high.epoch && self.session == high.session)
        })
    }
}

impl From<&Lease> for Fence {
    fn from(lease: &Lease) -> Self {
        Self {
            epoch: lease.epoch,
            session: format!("{}/{}", lease.session.node, lease.session.nonce),
        }
    }
}
