//! What state goes on where copies of a run meet again (Rule 22). Who goes on is decided before, by the order of
//! claims alone.

use bytes::Bytes;

use super::branch::{Ancestor, Header, Progress};

/// What one copy reached, or what came of two.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// The checkpoint that it is, or for a merged one that of the side it was merged into.
    pub header: Header,
    /// Commits; a merged side counts one more than either.
    pub seq: u64,
    /// How far it says it is; nothing is known of a merged one.
    pub progress: Option<Progress>,
    /// The version of the state's format.
    pub version: u32,
    /// The state.
    pub state: Bytes,
}

/// What is chosen of two sides.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// The one that is further: by what both say they have done, else by their commits. The winner's if
    /// they are equal.
    MoreProgress,
    /// The winner's.
    Mine,
    /// The other.
    Theirs,
    /// Something new: the version of its format, and the state.
    Merged(u32, Bytes),
}

impl Side {
    fn new((header, state): (Header, Bytes)) -> Self {
        Self {
            seq: header.position.seq,
            progress: header.progress.clone(),
            version: header.state_version,
            header,
            state,
        }
    }

    /// Sides of one run have their past in common: who has more commits has more since.
    fn is_ahead_of(&self, other: &Self) -> bool {
        match (&self.progress, &other.progress) {
            (Some(mine), Some(theirs)) if mine.done != theirs.done => mine.done > theirs.done,
            (Some(_), Some(_)) => false,
            _ => self.seq > other.seq,
        }
    }
}

/// Makes one state of several, the winner's first, two at a time. None of nothing.
pub fn reconcile(
    branches: Vec<(Header, Bytes)>,
    mut choose: impl FnMut(&Side, &Side) -> Choice,
) -> Option<Side> {
    let mut sides = branches.into_iter().map(Side::new);
    let first = sides.next()?;
    Some(sides.fold(first, |mine, theirs| match choose(&mine, &theirs) {
        Choice::MoreProgress if theirs.is_ahead_of(&mine) => theirs,
        Choice::MoreProgress | Choice::Mine => mine,
        Choice::Theirs => theirs,
        Choice::Merged(version, state) => {
            let seq = mine.seq.max(theirs.seq).saturating_add(1);
            Side { seq, progress: None, version, state, ..mine }
        }
    }))
}

/// The line of descent of what was made of these branches: it contains all of them.
pub fn lineage_of<'a>(branches: impl IntoIterator<Item = &'a Header>) -> Vec<Ancestor> {
    let mut lineage: Vec<Ancestor> = Vec::new();
    for point in branches.into_iter().flat_map(Header::lineage_after) {
        let known = lineage
            .iter_mut()
            .find(|known| (known.epoch, &known.writer) == (point.epoch, &point.writer));
        match known {
            Some(known) => known.seq = known.seq.max(point.seq),
            None => lineage.push(point),
        }
    }
    lineage.sort_by(|a, b| (a.epoch, &a.writer).cmp(&(b.epoch, &b.writer)));
    let surplus = lineage.len().saturating_sub(Header::MAX_LINEAGE);
    lineage.drain(..surplus);
    lineage
}
