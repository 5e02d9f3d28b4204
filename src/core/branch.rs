//! Checkpoint headers, and which of them a replica keeps (Rule 19).

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::ids::{Kind, Name, RunId, SessionId};
use super::lease::Epoch;
use super::limits;

/// Where a checkpoint stands in its line of descent: ordered by epoch, then sequence number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// The epoch it was written under.
    #[serde(rename = "e")]
    pub epoch: Epoch,
    /// Counts a run's commits: it goes on across owners of one line.
    #[serde(rename = "s")]
    pub seq: u64,
}

/// One stretch of a line of descent: what one lease wrote.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ancestor {
    /// The writer's epoch.
    #[serde(rename = "e")]
    pub epoch: Epoch,
    /// The writer: two sides of a split can write under one epoch.
    #[serde(rename = "w")]
    pub writer: SessionId,
    /// The last sequence number of it that the line contains.
    #[serde(rename = "s")]
    pub seq: u64,
}

/// The higher of two floors, by epoch and commits.
pub fn higher(a: Option<Ancestor>, b: Option<Ancestor>) -> Option<Ancestor> {
    let order = |floor: &Option<Ancestor>| floor.as_ref().map(|point| (point.epoch, point.seq));
    if order(&b) > order(&a) { b } else { a }
}

/// How far a task says it is, in units of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all; zero when unknown.
    pub total: u64,
    /// A line for people.
    #[serde(default, deserialize_with = "limits::text::<_, { limits::TEXT }>")]
    pub note: String,
}

/// What a checkpoint says of itself, apart from the state's bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The task.
    pub name: Name,
    /// Its run.
    pub run: RunId,
    /// Its kind.
    pub kind: Kind,
    /// Epoch and sequence number.
    pub position: Position,
    /// The session that wrote it.
    pub writer: SessionId,
    /// Older stretches of this line, the newest last; at most [`Header::MAX_LINEAGE`] are kept.
    #[serde(deserialize_with = "limits::list::<_, _, { Header::MAX_LINEAGE }>")]
    pub lineage: Vec<Ancestor>,
    /// The version of the state's format.
    pub state_version: u32,
    /// The writer's revision.
    #[serde(deserialize_with = "limits::text::<_, { limits::TEXT }>")]
    pub revision: String,
    /// Wall clock at writing, Unix milliseconds; for people only, no decision uses it.
    pub wall_ms: u64,
    /// Length of the state in bytes.
    pub len: u64,
    /// xxh3-128 of the state.
    pub hash: u128,
    /// Progress when it was written.
    pub progress: Option<Progress>,
}

impl Header {
    /// Bound on [`Header::lineage`]; an older stretch is forgotten, which at worst keeps a branch
    /// longer than needed.
    pub const MAX_LINEAGE: usize = 32;

    /// What [`Header::hash`] is of a state.
    pub fn hash_of(state: &[u8]) -> u128 {
        xxh3_128(state)
    }

    /// Whether a state is the one that it speaks of.
    pub fn describes(&self, state: &[u8]) -> bool {
        self.len == state.len() as u64 && self.hash == Self::hash_of(state)
    }

    /// What tells it from the other checkpoints of its run.
    pub fn key(&self) -> (Position, &SessionId) {
        (self.position, &self.writer)
    }

    /// Whether this checkpoint's line contains `other`, so that `other` adds nothing to it.
    pub fn descends_from(&self, other: &Self) -> bool {
        self.run == other.run
            && ((self.position.epoch == other.position.epoch
                && self.writer == other.writer
                && self.position.seq >= other.position.seq)
                || self.lineage.iter().any(|ancestor| {
                    ancestor.epoch == other.position.epoch
                        && ancestor.writer == other.writer
                        && ancestor.seq >= other.position.seq
                }))
    }

    /// Whether this checkpoint stands for `other`: its line contains it, and whoever reads `other`
    /// reads this one. The last checkpoint of an older version stays beside a newer one, pinned, so
    /// that a rollback has something to go on from.
    pub fn replaces(&self, other: &Self) -> bool {
        self.state_version <= other.state_version && self.descends_from(other)
    }

    /// Whether this checkpoint's line contains a point of it, or reaches so far beyond that the point
    /// has been forgotten.
    pub fn contains(&self, point: &Ancestor) -> bool {
        let own = self.position.epoch == point.epoch
            && self.writer == point.writer
            && self.position.seq >= point.seq;
        let forgotten = self.lineage.len() >= Self::MAX_LINEAGE
            && self.lineage.first().is_some_and(|oldest| oldest.epoch > point.epoch);
        own || forgotten
            || self.lineage.iter().any(|ancestor| {
                ancestor.epoch == point.epoch
                    && ancestor.writer == point.writer
                    && ancestor.seq >= point.seq
            })
    }

    /// The point of its line where this checkpoint stands.
    pub fn point(&self) -> Ancestor {
        Ancestor { epoch: self.position.epoch, writer: self.writer.clone(), seq: self.position.seq }
    }

    /// The lineage of a checkpoint that continues this one under another lease.
    pub fn lineage_after(&self) -> Vec<Ancestor> {
        let mut lineage = self.lineage.clone();
        lineage.push(self.point());
        let surplus = lineage.len().saturating_sub(Self::MAX_LINEAGE);
        lineage.drain(..surplus);
        lineage
    }
}

/// The newest checkpoint of each branch of one run, and of each older version of the state in it
/// (pinned), in ascending order of position and writer, so that what was learnt in another order
/// compares equal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Branches(Vec<Header>);

/// What became of a checkpoint that was offered to [`Branches`].
#[derive(Clone, Debug, PartialEq)]
pub enum Admission {
    /// Kept; the checkpoints listed are its ancestors and can go.
    Kept {
        /// To be deleted. Whole headers: two sides of a split can write at one position.
        superseded: Vec<Header>,
    },
    /// One that is already kept contains it.
    Known,
    /// There are [`Branches::MAX`] unrelated branches already.
    Full,
}

impl Branches {
    /// Bound on unreconciled branches of one run.
    pub const MAX: usize = 8;

    /// The branches' newest checkpoints.
    pub fn iter(&self) -> impl Iterator<Item = &Header> {
        self.0.iter()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a checkpoint in, dropping what it replaces.
    pub fn admit(&mut self, header: Header) -> Admission {
        if self.0.iter().any(|kept| kept.replaces(&header)) {
            return Admission::Known;
        }
        let mut superseded: Vec<Header> =
            self.0.extract_if(.., |kept| header.replaces(kept)).collect();
        // What is pinned must not keep work out.
        if self.0.len() >= Self::MAX
            && let Some(pin) = self.0.iter().position(|old| {
                header.descends_from(old)
                    || self.0.iter().any(|other| other != old && other.descends_from(old))
            })
        {
            superseded.push(self.0.remove(pin));
        }
        if self.0.len() >= Self::MAX {
            return Admission::Full;
        }
        let at = self.0.partition_point(|kept| kept.key() < header.key());
        // There is one nearly always, and there are many of these.
        self.0.reserve_exact(1);
        self.0.insert(at, header);
        Admission::Kept { superseded }
    }

    /// The checkpoints of older versions that are kept beside a newer one of their line.
    pub fn pinned(&self) -> impl Iterator<Item = &Header> {
        let newer = |old: &Header| self.0.iter().any(|h| h != old && h.descends_from(old));
        self.0.iter().filter(move |old| newer(old))
    }

    /// Forgets one of the branches' newest checkpoints: reconciled, or found to be damaged.
    pub fn remove(&mut self, position: Position, writer: &SessionId) -> Option<Header> {
        let at = self.0.iter().position(|kept| kept.key() == (position, writer))?;
        Some(self.0.remove(at))
    }

    /// The branch a taker continues from by default: more progress if all say, else the most
    /// commits, then the highest position and writer.
    pub fn best(&self) -> Option<&Header> {
        let all_say = self.0.iter().all(|header| header.progress.is_some());
        self.0.iter().max_by(|a, b| {
            let done = |header: &Header| match (&header.progress, all_say) {
                (Some(progress), true) => progress.done,
                _ => 0,
            };
            done(a)
                .cmp(&done(b))
                .then(a.position.seq.cmp(&b.position.seq))
                .then_with(|| a.key().cmp(&b.key()))
        })
    }
}

impl Branches {
    /// The best branch that contains the floor (Rule 20). A higher position is not enough: it may
    /// have forked off below.
    pub fn best_from(&self, floor: Option<&Ancestor>) -> Option<&Header> {
        self.best_of(floor, |_| true)
    }

    /// The best checkpoint that contains the floor, of those whose version `reads` accepts.
    pub fn best_of(
        &self,
        floor: Option<&Ancestor>,
        reads: impl Fn(u32) -> bool,
    ) -> Option<&Header> {
        let fits = |header: &&Header| {
            floor.is_none_or(|floor| header.contains(floor)) && reads(header.state_version)
        };
        let best = Self(self.0.iter().filter(fits).cloned().collect()).best().cloned()?;
        self.0.iter().find(|header| **header == best)
    }

    /// Forgets one checkpoint: it could not be stored, or not be read.
    pub fn drop_exact(&mut self, header: &Header) {
        self.0.retain(|kept| kept != header);
    }

    /// Forgets what a checkpoint replaces, itself included, and names it.
    pub fn drop_replaced(&mut self, header: &Header) -> Vec<Header> {
        let (replaced, rest) =
            std::mem::take(&mut self.0).into_iter().partition(|kept| header.replaces(kept));
        self.0 = rest;
        replaced
    }
}

#[cfg(test)]
#[path = "branch_tests.rs"]
mod tests;
