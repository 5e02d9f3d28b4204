//! What a store holds, without the bytes, and what each write does to it: the same for all stores.

use std::collections::BTreeMap;

use super::{StoreError, Write};
use crate::core::branch::{Admission, Branches, Header, Position};
use crate::core::claim::{Claim, Desired, Phase, Spec};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::stored::{StoredEnd, StoredRun};

pub(super) type RunKey = (Name, RunId);

/// What tells a checkpoint from the others of its run.
pub(super) type CheckpointKey = (Position, SessionId);

pub(super) fn key(header: &Header) -> CheckpointKey {
    (header.position, header.writer.clone())
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) spec: Spec,
    pub(super) heads: Branches,
    /// The checkpoint before a branch's newest, by the newest.
    pub(super) spares: BTreeMap<CheckpointKey, Header>,
    pub(super) desired: Option<Desired>,
    pub(super) end: Option<(StoredEnd, bool)>,
    /// Some of its checkpoints are damaged.
    pub(super) damaged: bool,
}

impl Run {
    pub(super) fn new(spec: Spec) -> Self {
        Self {
            spec,
            heads: Branches::default(),
            spares: BTreeMap::new(),
            desired: None,
            end: None,
            damaged: false,
        }
    }

    pub(super) fn find(&self, position: Position, writer: &SessionId) -> Option<&Header> {
        self.heads
            .iter()
            .chain(self.spares.values())
            .find(|header| header.key() == (position, writer))
    }

    /// The newest checkpoint, of whatever branch.
    pub(super) fn newest(&self) -> Option<&Header> {
        self.heads.iter().last()
    }

    /// Forgets a branch; returns what to delete.
    fn drop_branch(&mut self, head: &CheckpointKey) -> Vec<CheckpointKey> {
        let Some(header) = self.heads.remove(head.0, &head.1) else {
            return Vec::new();
        };
        let spare = self.spares.remove(head);
        [Some(header), spare].iter().flatten().map(key).collect()
    }

    /// Forgets a damaged checkpoint. If it was its branch's newest, the one before takes its place.
    pub(super) fn lose(&mut self, lost: &CheckpointKey) -> Option<Header> {
        self.spares.retain(|_, spare| key(spare) != *lost);
        self.heads.remove(lost.0, &lost.1)?;
        let spare = self.spares.remove(lost)?;
        self.heads.admit(spare.clone());
        Some(spare)
    }
}

/// What a write does to the bytes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Store the checkpoint of the [`Write::Put`].
    pub(super) insert: bool,
    /// Delete these checkpoints.
    pub(super) remove: Vec<CheckpointKey>,
    /// The run's spec and end.
    pub(super) record: Change,
    /// The run's output.
    pub(super) output: Change,
    /// Delete whatever there is of the run, known to the catalog or not.
    pub(super) everything: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Change {
    #[default]
    Keep,
    Write,
    Remove,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        !self.insert
            && self.remove.is_empty()
            && self.record == Change::Keep
            && self.output == Change::Keep
            && !self.everything
    }
}

/// All runs of a store.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    runs: BTreeMap<RunKey, Run>,
    /// Whether the checkpoint before the newest is kept.
    spares: bool,
}

impl Catalog {
    pub(super) fn new(spares: bool) -> Self {
        Self { runs: BTreeMap::new(), spares }
    }

    pub(super) fn get(&self, key: &RunKey) -> Option<&Run> {
        self.runs.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &RunKey) -> Option<&mut Run> {
        self.runs.get_mut(key)
    }

    /// Puts a run back as it was: the undoing of [`Catalog::plan`].
    pub(super) fn restore(&mut self, key: RunKey, run: Option<Run>) {
        match run {
            Some(run) => self.runs.insert(key, run),
            None => self.runs.remove(&key),
        };
    }

    pub(super) fn stored(&self) -> Vec<StoredRun> {
        let mut runs: Vec<&Run> = self.runs.values().collect();
        runs.sort_by_key(|run| (run.spec.name.as_str(), run.spec.run));
        runs.into_iter()
            .map(|run| StoredRun {
                spec: run.spec.clone(),
                checkpoints: run.heads.iter().cloned().collect(),
                damaged: run.damaged,
                desired: run.desired.clone(),
                end: run.end.clone(),
            })
            .collect()
    }

    /// Takes a write into the catalog, and says what is to be done to the bytes. On an error nothing
    /// has changed.
    pub(super) fn plan(&mut self, write: &Write) -> Result<Plan, StoreError> {
        match write {
            Write::Put { spec, header, .. } => self.put(spec, header),
            Write::Run { spec, desired } => Ok(self.keep(spec, desired.as_ref())),
            Write::End { end, spec, output } => self.end(end, spec, output.is_some()),
            Write::DropOutput { name, run } => {
                let mut plan = Plan::default();
                let run = self.runs.get_mut(&(name.clone(), *run));
                if let Some((_, output)) = run.and_then(|run| run.end.as_mut()) {
                    *output = false;
                    plan.output = Change::Remove;
                }
                Ok(plan)
            }
            Write::Discard { name, run, headers } => {
                Ok(self.discard(&(name.clone(), *run), headers))
            }
        }
    }

    fn put(&mut self, spec: &Spec, header: &Header) -> Result<Plan, StoreError> {
        if (&header.name, header.run) != (&spec.name, spec.run) {
            return Err(StoreError::Invalid("the spec is not the checkpoint's"));
        }
        let run_key = (spec.name.clone(), spec.run);
        let known = self.runs.get(&run_key);
        if let Some((end, _)) = known.and_then(|run| run.end.as_ref())
            && ends(&end.claim, header.position)
        {
            return Err(StoreError::Ended);
        }
        let record = if known.is_some() { Change::Keep } else { Change::Write };
        let mut plan = Plan { insert: true, record, ..Plan::default() };
        let run = self.runs.entry(run_key).or_insert_with(|| Run::new(spec.clone()));
        match run.heads.admit(header.clone()) {
            Admission::Known => return Ok(Plan::default()),
            Admission::Full => return Err(StoreError::TooManyBranches(Branches::MAX)),
            Admission::Kept { mut superseded } => {
                for old in &superseded {
                    plan.remove.extend(run.spares.remove(&key(old)).iter().map(key));
                }
                if self.spares
                    && let Some(spare) = superseded.pop()
                {
                    run.spares.insert(key(header), spare);
                }
                plan.remove.extend(superseded.iter().map(key));
            }
        }
        Ok(plan)
    }

    fn keep(&mut self, spec: &Spec, desired: Option<&Desired>) -> Plan {
        let run_key = (spec.name.clone(), spec.run);
        let known = self.runs.get(&run_key);
        if known.is_some_and(|run| run.end.is_some() || run.desired.as_ref() == desired) {
            return Plan::default();
        }
        let run = self.runs.entry(run_key).or_insert_with(|| Run::new(spec.clone()));
        run.desired = desired.cloned();
        Plan { record: Change::Write, ..Plan::default() }
    }

    fn end(&mut self, end: &StoredEnd, spec: &Spec, output: bool) -> Result<Plan, StoreError> {
        let claim = &end.claim;
        if (&claim.name, claim.run) != (&spec.name, spec.run) {
            return Err(StoreError::Invalid("the spec is not the claim's"));
        }
        if !claim.phase.is_terminal() {
            return Err(StoreError::Invalid("the claim is not terminal"));
        }
        let run = self
            .runs
            .entry((spec.name.clone(), spec.run))
            .or_insert_with(|| Run::new(spec.clone()));
        // What a task brought is given up only for what another end of it brought.
        let brought = |end: &StoredEnd| end.claim.phase == claim.phase;
        let kept = run.end.as_ref().is_some_and(|(known, output)| *output && brought(known));
        if let Some((known, has)) = &mut run.end
            && known.claim.beats(claim)
        {
            let missing = output && !*has && brought(known);
            *has |= missing;
            let output = if missing { Change::Write } else { Change::Keep };
            return Ok(Plan { output, ..Plan::default() });
        }
        let ended: Vec<CheckpointKey> =
            run.heads.iter().filter(|head| ends(claim, head.position)).map(key).collect();
        let mut plan = Plan {
            remove: ended.iter().flat_map(|head| run.drop_branch(head)).collect(),
            record: Change::Write,
            output: match (output, kept) {
                (true, _) => Change::Write,
                (false, true) => Change::Keep,
                (false, false) => Change::Remove,
            },
            ..Plan::default()
        };
        plan.everything = claim.phase != Phase::Failed;
        run.desired = None;
        run.end = Some((end.clone(), output || kept));
        Ok(plan)
    }

    fn discard(&mut self, run_key: &RunKey, headers: &[CheckpointKey]) -> Plan {
        let mut plan = Plan::default();
        if let Some(run) = self.runs.get_mut(run_key) {
            for head in headers {
                plan.remove.extend(run.drop_branch(head));
            }
            let forgotten = !plan.remove.is_empty() && run.heads.is_empty() && run.end.is_none();
            if !headers.is_empty() && !forgotten {
                return plan;
            }
        } else if !headers.is_empty() {
            return plan;
        }
        self.runs.remove(run_key);
        Plan { everything: true, record: Change::Remove, output: Change::Remove, ..plan }
    }
}

/// Whether a terminal claim makes a checkpoint of its run void. A failure is compared like a live
/// claim (Rule 9), so work under a higher epoch goes on.
fn ends(claim: &Claim, position: Position) -> bool {
    claim.phase != Phase::Failed || position.epoch <= claim.epoch
}
