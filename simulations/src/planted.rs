//! Faults planted in the harness, by its own tests alone: each breaks what an invariant promises, and
//! the invariant has to notice.

use serde::Deserialize;

/// What is wrong.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Planted {
    /// The verdict is not told that the network is cut: nodes start what others run, for no reason.
    SecretCut,
    /// The verdict is told of the end of a cut three seconds before it comes: losers stop too late.
    LateHeal,
    /// No cut ends: nodes never agree.
    NoHeal,
    /// The verdict is not told that a process was killed: its successors repeat what was not saved.
    SecretCrash,
    /// Tasks leave their sixth step out, as if they went on from a state that never was.
    LeftOutStep,
    /// Tasks never end.
    EndlessTask,
    /// Tasks bring one too many.
    WrongResult,
    /// Nobody does what the console says.
    DeafNodes,
    /// A node listens where another one does.
    SharedAddress,
}

#[cfg(test)]
pub(crate) mod tests;
