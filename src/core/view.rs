//! All sessions' claims, and who owns what by them: a join, the same for everyone who knows the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::claim::{Claim, Phase};
use super::ids::{Name, RunId, SessionId};
use super::lease::Epoch;

/// The merged claims of all sessions, mine included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    names: BTreeMap<Name, Claims>,
    by_session: BTreeMap<SessionId, Published>,
    /// What each session's header says has stopped.
    released: BTreeMap<SessionId, Released>,
    /// The highest epoch ever seen of a name; survives the claims that carried it (L2).
    epochs: BTreeMap<Name, Epoch>,
}

/// The claims of one name, in the order of their sessions: nearly always one or two, and a map would
/// make room for eleven.
#[derive(Clone, Debug, Default, PartialEq)]
struct Claims(Vec<Claim>);

impl Claims {
    fn find(&self, session: &SessionId) -> Result<usize, usize> {
        self.0.binary_search_by(|claim| claim.session.cmp(session))
    }

    fn get(&self, session: &SessionId) -> Option<&Claim> {
        self.find(session).ok().and_then(|at| self.0.get(at))
    }

    fn get_mut(&mut self, session: &SessionId) -> Option<&mut Claim> {
        self.find(session).ok().and_then(|at| self.0.get_mut(at))
    }

    fn insert(&mut self, claim: Claim) {
        match self.find(&claim.session) {
            Ok(at) => {
                if let Some(held) = self.0.get_mut(at) {
                    *held = claim;
                }
            }
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, claim);
            }
        }
    }

    fn remove(&mut self, session: &SessionId) -> Option<Claim> {
        self.find(session).ok().map(|at| self.0.remove(at))
    }
}

/// The names a session has claims of, and which of them under each number: one, unless it errs.
#[derive(Clone, Debug, Default, PartialEq)]
struct Published {
    names: BTreeSet<Name>,
    numbers: BTreeMap<u64, Vec<Name>>,
}

impl Published {
    /// Takes a claim's number out of the index.
    fn forget(&mut self, claim: &Claim) {
        if let Some(names) = self.numbers.get_mut(&claim.number) {
            names.retain(|name| *name != claim.name);
            if names.is_empty() {
                self.numbers.remove(&claim.number);
            }
        }
    }
}

/// The claims of a session that have stopped, by number (Rule 2).
#[derive(Clone, Debug, Default, PartialEq)]
struct Released {
    watermark: u64,
    listed: BTreeSet<u64>,
}

impl Released {
    fn covers(&self, number: u64) -> bool {
        number <= self.watermark || self.listed.contains(&number)
    }
}

impl View {
    /// Bound on single releases remembered of a session.
    const MAX_LISTED: usize = 64;

    /// Takes a session's claim in. Of two claims of one session the later (by number, then version)
    /// stands, whatever order they arrive in.
    /// Returns whether anything changed.
    pub fn merge(&mut self, mut claim: Claim) -> bool {
        self.raise(&claim.name, claim.epoch);
        if let Phase::Transferred { epoch, .. } = claim.phase {
            self.raise(&claim.name, epoch);
        }
        // The header can overtake the claim that it speaks of.
        if claim.phase.is_held()
            && self.released.get(&claim.session).is_some_and(|r| r.covers(claim.number))
        {
            claim.phase = Phase::Released;
        }
        let claims = self.names.entry(claim.name.clone()).or_default();
        if let Some(held) = claims.get(&claim.session)
            && !replaces(&claim, held)
        {
            return false;
        }
        let published = self.by_session.entry(claim.session.clone()).or_default();
        if let Some(old) = claims.get(&claim.session) {
            published.forget(old);
        }
        published.names.insert(claim.name.clone());
        let numbered = published.numbers.entry(claim.number).or_default();
        numbered.reserve_exact(1);
        numbered.push(claim.name.clone());
        claims.insert(claim);
        true
    }

    /// Drops a session's claim. Its epoch stays remembered.
    pub fn remove(&mut self, name: &Name, session: &SessionId) -> Option<Claim> {
        let claims = self.names.get_mut(name)?;
        let removed = claims.remove(session);
        if claims.0.is_empty() {
            self.names.remove(name);
        }
        if let (Some(published), Some(removed)) = (self.by_session.get_mut(session), &removed) {
            published.names.remove(name);
            published.forget(removed);
            if published.names.is_empty() {
                self.by_session.remove(session);
            }
        }
        removed
    }

    /// Forgets a name altogether, its highest epoch too.
    pub fn forget(&mut self, name: &Name) {
        let sessions: Vec<SessionId> =
            self.claims(name).map(|claim| claim.session.clone()).collect();
        for session in sessions {
            self.remove(name, &session);
        }
        self.epochs.remove(name);
    }

    /// Counts every live claim of a session numbered at most `watermark`, or listed, as released
    /// (Rule 2). Returns the names that changed. A header that says nothing new costs nothing.
    pub fn release(&mut self, session: &SessionId, watermark: u64, listed: &[u64]) -> Vec<Name> {
        let known = self.released.entry(session.clone()).or_default();
        let news: Vec<u64> =
            listed.iter().copied().filter(|n| !known.covers(*n)).take(Self::MAX_LISTED).collect();
        if watermark <= known.watermark && news.is_empty() {
            return Vec::new();
        }
        // A header can be overtaken by a later one.
        let risen = known.watermark..watermark.max(known.watermark);
        known.watermark = risen.end;
        known.listed.extend(&news);
        known.listed.retain(|number| *number > risen.end);
        while known.listed.len() > Self::MAX_LISTED {
            known.listed.pop_first();
        }
        let Some(published) = self.by_session.get(session) else {
            return Vec::new();
        };
        let numbers = &published.numbers;
        let below = numbers.range((Bound::Excluded(risen.start), Bound::Included(risen.end)));
        let single = news.iter().filter_map(|number| numbers.get_key_value(number));
        let mut changed = Vec::new();
        for name in below.chain(single).flat_map(|(_, names)| names) {
            let claim = self.names.get_mut(name).and_then(|claims| claims.get_mut(session));
            if let Some(claim) = claim
                && claim.phase.is_held()
            {
                claim.phase = Phase::Released;
                changed.push(name.clone());
            }
        }
        changed
    }

    /// What a session's header has said to have stopped: all up to a number, and single later ones.
    pub fn released(&self, session: &SessionId) -> (u64, Vec<u64>) {
        self.released.get(session).map_or((0, Vec::new()), |known| {
            (known.watermark, known.listed.iter().copied().collect())
        })
    }

    /// Whether its session's header says that this claim has stopped: then its phase may be an inference.
    pub fn is_covered(&self, claim: &Claim) -> bool {
        self.released.get(&claim.session).is_some_and(|known| known.covers(claim.number))
    }

    /// Forgets what a session's header said.
    pub fn forget_session(&mut self, session: &SessionId) {
        self.released.remove(session);
    }

    /// A session's claim of a name.
    pub fn get(&self, name: &Name, session: &SessionId) -> Option<&Claim> {
        self.names.get(name)?.get(session)
    }

    /// All claims of a name.
    pub fn claims(&self, name: &Name) -> impl Iterator<Item = &Claim> {
        self.names.get(name).into_iter().flat_map(|claims| &claims.0)
    }

    /// The names a session has claims of.
    pub fn names_of(&self, session: &SessionId) -> Vec<Name> {
        self.by_session
            .get(session)
            .map(|published| published.names.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.names.keys()
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The highest claim of a name (Rule 9), of a run that stands if there is any.
    pub fn top(&self, name: &Name) -> Option<&Claim> {
        let stands = |claim: &Claim| claim.phase != Phase::Superseded;
        self.claims(name).max_by(|a, b| stands(a).cmp(&stands(b)).then_with(|| a.order(b)))
    }

    /// Who owns a name: the highest claim that ended it or holds it, else the highest of all. A
    /// withdrawn claim above a running one hides nobody, whatever runs they are of.
    pub fn owner(&self, name: &Name) -> Option<&Claim> {
        // A run that stepped back for another one hides nobody either.
        let standing = self.claims(name).filter(|claim| claim.phase != Phase::Superseded);
        let Some(newest) = standing.map(|claim| claim.run).max() else {
            return self.top(name);
        };
        self.claims(name)
            .filter(|claim| {
                claim.run == newest && (claim.phase.is_held() || claim.phase.is_terminal())
            })
            .max_by(|a, b| a.order(b))
            .or_else(|| {
                let top = self.top(name)?;
                self.claims(name)
                    .filter(|claim| claim.phase.has_begun() || claim.ends(top))
                    .max_by(|a, b| a.order(b))
                    .or(Some(top))
            })
    }

    /// The claim that a name stands for by now: the highest that holds it or has ended, and does not
    /// merely ask for it.
    pub fn standing(&self, name: &Name) -> Option<&Claim> {
        self.claims(name).filter(|claim| claim.has_won()).max_by(|a, b| a.order(b))
    }

    /// Who has a name in hand, for lookups and orders: its owner, but as long as the target of a
    /// transfer has only accepted it, its source.
    pub fn holder(&self, name: &Name) -> Option<&Claim> {
        let owner = self.owner(name)?;
        let source = match &owner.phase {
            Phase::Incoming { from } => self.get(name, from),
            _ => None,
        };
        Some(
            source
                .filter(|source| source.run == owner.run && source.phase.is_held())
                .unwrap_or(owner),
        )
    }

    /// The run that ended under the highest claim, if the newest run has ended.
    pub fn ended(&self, name: &Name) -> Option<&Claim> {
        self.owner(name).filter(|claim| claim.phase.is_terminal())
    }

    /// The highest run number ever seen among the claims of a name.
    pub fn last_run(&self, name: &Name) -> Option<RunId> {
        self.claims(name).map(|claim| claim.run).max()
    }

    /// How much is kept: names, sessions with claims, sessions' releases, epochs.
    #[cfg(test)]
    pub fn sizes(&self) -> [usize; 4] {
        [self.names.len(), self.by_session.len(), self.released.len(), self.epochs.len()]
    }

    /// The highest epoch ever seen of a name.
    pub fn epoch(&self, name: &Name) -> Option<Epoch> {
        self.epochs.get(name).copied()
    }

    /// Remembers that an epoch was seen.
    pub fn raise(&mut self, name: &Name, epoch: Epoch) {
        let highest = self.epochs.entry(name.clone()).or_default();
        *highest = (*highest).max(epoch);
    }
}

/// Whether `new` stands for its session instead of `old`: a session numbers its claims and counts
/// the changes of each, so the later one is known in whatever order they arrive.
fn replaces(new: &Claim, old: &Claim) -> bool {
    let later = |claim: &Claim| (claim.number, claim.version, claim.phase == Phase::Released);
    later(new).cmp(&later(old)).then_with(|| new.order(old)).is_gt()
}
