//! Why something was dropped, and how often.

/// Why a datagram, or a part of one, was dropped. Nothing is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// Its source has sent more than its share. Not even looked at.
    Rate,
    /// Too short to be sealed.
    Short,
    /// Sealed in another format.
    Version,
    /// Sealed under a key this node does not hold.
    Key,
    /// Forged, damaged, or of another cluster.
    Seal,
    /// Authentic, but its content makes no sense to this build.
    Malformed,
    /// It claims to come from this very session.
    Own,
    /// It answers another session, perhaps the one that was here before: a recording may be anybody's.
    Misdirected,
    /// Seen before, or older than the window.
    Replayed,
    /// Its sender has not yet shown that it hears this node, so it may be a recording.
    Unverified,
    /// More sessions or records than the limits allow.
    Limit,
    /// A heartbeat or generation that time does not explain.
    Implausible,
    /// An advertised address outside of the networks allowed.
    Advertised,
    /// The engine is behind; chitchat will repeat it.
    Busy,
}

impl Rejected {
    const fn reason(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Short => "short",
            Self::Version => "version",
            Self::Key => "key",
            Self::Seal => "seal",
            Self::Malformed => "malformed",
            Self::Own => "own",
            Self::Misdirected => "misdirected",
            Self::Replayed => "replayed",
            Self::Unverified => "unverified",
            Self::Limit => "limit",
            Self::Implausible => "implausible",
            Self::Advertised => "advertised",
            Self::Busy => "busy",
        }
    }

    /// What is wrong with a datagram that this node cannot open, and what to do.
    pub(super) const fn is_strange(self) -> Option<&'static str> {
        match self {
            Self::Version => Some("it seals in another format: run builds that fit each other"),
            Self::Key => Some(
                "it seals under a key that this node does not hold: give all nodes of the cluster the same keys",
            ),
            Self::Seal => Some(
                "it is of another cluster, or not what it seems: give all nodes the same cluster name, and other clusters other keys",
            ),
            _ => None,
        }
    }

    pub(super) fn count(self) {
        metrics::counter!("handover_gossip_rejected_total", "reason" => self.reason()).increment(1);
    }
}
