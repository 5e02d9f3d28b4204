//! What is measured over several events: moves, gaps, overlaps, work done again, gauges.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::metrics;
use crate::core::branch::Header;
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::{Cause, From};
use crate::core::machine::{Machine, Needs};
use crate::core::time::Time;
use crate::registry::TaskState;

/// Two moves of a task within this time count as a double move.
const DOUBLE: Duration = Duration::from_secs(600);
/// A stop that nobody took up within this time is no gap of a move any more.
const FORGET: Duration = Duration::from_secs(60);
/// Between two questions to one that did not answer, perhaps because its link is not up yet.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Bound on what is remembered; beyond it, measurements are lost.
const MAX: usize = 100_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// What runs here.
    running: BTreeMap<Name, Begun>,
    /// What has stopped here and not been taken up yet.
    stopped: BTreeMap<Name, Stopped>,
    /// Tasks that are to end here because another node runs them too.
    losing: BTreeMap<Name, Losing>,
    /// Copies that have stopped for another one, until it is known since when that has been running.
    lost: BTreeMap<Name, Lost>,
    /// When a name was last seen to change the session that runs it.
    moved: BTreeMap<Name, Time>,
    /// The gauges that were set, to be zeroed when nothing is counted under them.
    tasks: BTreeMap<(String, TaskState), usize>,
    parked: BTreeMap<Needs, usize>,
    one_way: BTreeMap<String, usize>,
    expired: Time,
}

/// A task that runs here, and what it began from.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Time,
    run: RunId,
    /// When its newest checkpoint was written, Unix milliseconds; none for the initial state.
    written_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Stopped {
    at: Time,
    begun: Begun,
    /// The share of the run's work so far that its stop has thrown away.
    redone: f64,
}

/// A conflict that this node loses.
#[derive(Clone, Debug)]
struct Losing {
    kept: SessionId,
    seen: Time,
}

/// A copy that has stopped because another node runs the task too.
#[derive(Clone, Debug)]
struct Lost {
    /// Who goes on.
    kept: SessionId,
    begun: Time,
    seen: Time,
    stopped: Time,
    /// When the other was asked last.
    asked: Option<Time>,
}

impl Lost {
    /// How long both ran, if the other copy has run for `theirs` as of `asked`. Without an answer, for
    /// as long as this one ran on after it saw the claim that ends it.
    fn overlap(&self, theirs: Option<(Time, Duration)>) -> Duration {
        match theirs {
            Some((asked, theirs)) => self.stopped.since(self.begun.max(asked.back(theirs))),
            None => self.stopped.since(self.seen),
        }
    }
}

/// What is known of a task that came to run here after running elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Arrival {
    /// It had moved lately.
    pub(super) again: bool,
    /// How long nobody ran it.
    pub(super) gap: Option<Duration>,
    /// The share of the run's work so far that has to be done again.
    pub(super) redone: Option<f64>,
}

impl Tally {
    /// A task begins to run here.
    pub(super) fn begun(&mut self, now: Time, name: &Name, run: RunId, from: &From) {
        let written_ms = match from {
            From::Initial => None,
            From::Checkpoint { header, .. } => Some(header.wall_ms),
        };
        self.stopped.remove(name);
        // Bounded by what runs.
        let begun = self.running.entry(name.clone()).or_insert(Begun { at: now, run, written_ms });
        if begun.run != run {
            begun.at = now;
        }
        (begun.run, begun.written_ms) = (run, written_ms);
    }

    /// A task that runs here has committed its state.
    pub(super) fn committed(&mut self, name: &Name, wall_ms: u64) {
        if let Some(begun) = self.running.get_mut(name) {
            begun.written_ms = Some(wall_ms);
        }
    }

    /// Since when a task runs here, also while it stands still to go on from what its copies have done.
    pub(super) fn runs_since(&self, name: &Name) -> Option<Time> {
        let stopped = || self.stopped.get(name).map(|stopped| &stopped.begun);
        Some(self.running.get(name).or_else(stopped)?.at)
    }

    /// A task has stopped here, with this as its last state; `dropped` if a step was cut short.
    pub(super) fn stopped(
        &mut self,
        (now, wall_ms): (Time, u64),
        name: &Name,
        sealed: Option<&Header>,
        dropped: bool,
    ) {
        let Some(begun) = self.running.remove(name) else {
            return;
        };
        let redone = match dropped {
            true => {
                let sealed_ms = sealed.map(|header| header.wall_ms);
                share(begun.run, sealed_ms.max(begun.written_ms), wall_ms)
            }
            false => 0.0,
        };
        if self.stopped.len() < MAX {
            self.stopped.insert(name.clone(), Stopped { at: now, begun, redone });
        }
        if let Some(Losing { kept, seen }) = self.losing.remove(name) {
            let lost = Lost { kept, begun: begun.at, seen, stopped: now, asked: None };
            self.lost.insert(name.clone(), lost);
        }
    }

    /// Which sessions to ask now since when they have been running a task.
    pub(super) fn ask_now(&mut self, now: Time) -> Vec<(Name, SessionId)> {
        let due = |lost: &Lost| lost.asked.is_none_or(|asked| now.since(asked) >= ASK_AGAIN);
        let mut ask = Vec::new();
        for (name, lost) in self.lost.iter_mut().filter(|(_, lost)| due(lost)) {
            lost.asked = Some(now);
            ask.push((name.clone(), lost.kept.clone()));
        }
        ask
    }

    /// The answer, if there will ever be one: for how long the other copy had been running when it
    /// was asked. Who goes on, and for how long both ran.
    pub(super) fn overlapped(
        &mut self,
        name: &Name,
        theirs: Option<(Time, Duration)>,
    ) -> Option<(SessionId, Duration)> {
        let lost = self.lost.remove(name)?;
        let overlap = lost.overlap(theirs);
        metrics::overlap(overlap);
        Some((lost.kept, overlap))
    }

    /// A task that has stopped here is about to go on here, from what its copies have done: to others it
    /// has been running all the time.
    pub(super) fn reconciling(&mut self, name: &Name) {
        if let Some(stopped) = self.stopped.remove(name) {
            self.running.insert(name.clone(), stopped.begun);
        }
    }

    /// It runs elsewhere, or anybody may take it: nothing of it is to happen here any more.
    pub(super) fn moved_away(&mut self, now: Time, name: &Name) {
        if let Some(stopped) = self.stopped.remove(name) {
            metrics::move_gap("drain", now.since(stopped.at));
            metrics::work_redone("drain", stopped.redone);
        }
    }

    /// It was released here: whoever takes it measures the gap.
    pub(super) fn released(&mut self, name: &Name) {
        if let Some(stopped) = self.stopped.remove(name) {
            metrics::work_redone("released", stopped.redone);
        }
    }

    /// Another node holds a name, by this claim, or nobody does. `before` is who ran it before.
    pub(super) fn owned(
        &mut self,
        now: Time,
        name: &Name,
        owner: Option<&Claim>,
        before: Option<&SessionId>,
    ) {
        let runs = |claim: &&Claim| claim.phase == Phase::Running;
        if let Some(claim) = owner.filter(runs)
            && before.is_some_and(|before| *before != claim.session)
        {
            self.moved(now, name);
        }
    }

    /// Notes a move; whether the task had moved lately.
    fn moved(&mut self, now: Time, name: &Name) -> bool {
        if self.moved.len() >= MAX && !self.moved.contains_key(name) {
            return false;
        }
        let before = self.moved.insert(name.clone(), now);
        before.is_some_and(|before| now.since(before) < DOUBLE)
    }

    /// A task runs here that another session had before. `idle_since` is the last sign of life of that
    /// session, or the news that it had let go.
    pub(super) fn moved_here(
        &mut self,
        (now, wall_ms): (Time, u64),
        name: &Name,
        cause: Cause,
        idle_since: Option<Time>,
    ) -> Arrival {
        let again = self.moved(now, name);
        let begun = self.running.get(name).copied();
        let gap = idle_since.map(|since| now.since(since));
        let redone = match (cause, gap, begun) {
            (Cause::Crash, Some(gap), Some(begun)) => {
                let stopped_ms = wall_ms.saturating_sub(gap.as_millis() as u64);
                Some(share(begun.run, begun.written_ms, stopped_ms))
            }
            _ => None,
        };
        Arrival { again, gap, redone }
    }

    /// A claim was seen that ends the task here. False if it does not run: there is nothing to measure.
    pub(super) fn losing(&mut self, now: Time, name: &Name, kept: &SessionId) -> bool {
        let runs = self.running.contains_key(name);
        if runs {
            self.losing.insert(name.clone(), Losing { kept: kept.clone(), seen: now });
        }
        runs
    }

    /// Forgets what is old; the names of conflicts of which nobody will tell any more.
    pub(super) fn expire(&mut self, now: Time) -> Vec<Name> {
        if now.since(self.expired) < FORGET {
            return Vec::new();
        }
        self.expired = now;
        self.stopped.retain(|_, stopped| now.since(stopped.at) < FORGET);
        self.losing.retain(|name, _| self.running.contains_key(name));
        self.moved.retain(|_, at| now.since(*at) < DOUBLE);
        let late = self.lost.iter().filter(|(_, lost)| now.since(lost.stopped) >= FORGET);
        late.map(|(name, _)| name.clone()).collect()
    }

    /// Sets the gauges of what this node holds.
    pub(super) fn gauge(&mut self, own: &BTreeMap<Name, Claim>, machine: &Machine) {
        let counts = self.tasks.values_mut().chain(self.parked.values_mut());
        counts.chain(self.one_way.values_mut()).for_each(|count| *count = 0);
        for (name, claim) in own {
            if !claim.phase.is_held() {
                continue;
            }
            if let Some(needs) = machine.needs(name) {
                *self.parked.entry(needs).or_default() += 1;
            }
            let kind = machine.spec(name).map(|spec| spec.kind.to_string());
            let kind = kind.unwrap_or_else(|| "unknown".into());
            if machine.is_one_way(name) {
                *self.one_way.entry(kind.clone()).or_default() += 1;
            }
            *self.tasks.entry((kind, TaskState::of(&claim.phase))).or_default() += 1;
        }
        for ((kind, state), count) in &self.tasks {
            metrics::tasks(kind, state.as_str(), *count);
        }
        for (needs, count) in &self.parked {
            metrics::parked(needs, *count);
        }
        for (kind, count) in &self.one_way {
            metrics::one_way(kind, *count);
        }
        self.one_way.retain(|_, count| *count > 0);
        self.tasks.retain(|_, count| *count > 0);
        self.parked.retain(|_, count| *count > 0);
    }
}

/// The share of the time a run has been worked on that lies after its checkpoint: all of it where
/// there is none. By wall clocks, for people.
fn share(run: RunId, written_ms: Option<u64>, stopped_ms: u64) -> f64 {
    let begun_ms = begun_ms(run.uuid).unwrap_or(stopped_ms);
    let whole = stopped_ms.saturating_sub(begun_ms);
    let Some(written_ms) = written_ms else {
        return 1.0;
    };
    let again = stopped_ms.saturating_sub(written_ms);
    if again == 0 { 0.0 } else { (again as f64 / whole.max(1) as f64).min(1.0) }
}

/// When a run was asked for, by its uuid (version 7), Unix milliseconds.
fn begun_ms(run: Uuid) -> Option<u64> {
    let (seconds, nanos) = run.get_timestamp()?.to_unix();
    Some(seconds * 1000 + u64::from(nanos) / 1_000_000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::core::claim::{Mode, Terms};
    use crate::core::ids::NodeId;
    use crate::core::lease::Epoch;
    use crate::node::fresh_uuid;

    const S: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Time {
        Time::ZERO + S * u32::try_from(seconds).unwrap()
    }

    fn name() -> Name {
        Name::new("t").unwrap()
    }

    fn session(node: &str) -> SessionId {
        SessionId::new(NodeId::new(node).unwrap(), Uuid::nil())
    }

    /// A run that was asked for a hundred seconds after the epoch.
    fn run() -> RunId {
        RunId { number: 1, uuid: fresh_uuid(100_000) }
    }

    #[test]
    fn what_was_done_after_the_checkpoint_is_the_share_that_is_done_again() {
        assert_eq!(share(run(), Some(190_000), 200_000), 0.1);
        assert_eq!(share(run(), Some(200_000), 200_000), 0.0);
        assert_eq!(share(run(), None, 200_000), 1.0, "everything");
        assert_eq!(share(run(), Some(0), 200_000), 1.0, "clocks that disagree");
        assert_eq!(share(run(), Some(300_000), 200_000), 0.0, "clocks that disagree");
    }

    #[test]
    fn two_copies_overlap_from_the_later_start_to_the_earlier_stop() {
        let mut tally = Tally::default();
        tally.begun(at(10), &name(), run(), &From::Initial);
        tally.losing(at(29), &name(), &session("b"));
        tally.stopped((at(30), 0), &name(), None, false);
        assert_eq!(tally.ask_now(at(30)), [(name(), session("b"))]);
        assert!(tally.ask_now(at(30)).is_empty(), "not without end");
        assert_eq!(tally.ask_now(at(31)).len(), 1, "but again");
        let lost = &tally.lost[&name()];
        // At 31 the other said that it had been running for 8 s: since 23.
        assert_eq!(lost.overlap(Some((at(31), S * 8))), S * 7);
        assert_eq!(lost.overlap(Some((at(31), S * 60))), S * 20, "not before its own start");
        assert_eq!(lost.overlap(Some((at(40), S * 2))), Duration::ZERO, "it began afterwards");
        assert_eq!(lost.overlap(None), S);
    }

    #[test]
    fn what_stands_still_to_be_reconciled_has_been_running_all_the_time() {
        let mut tally = Tally::default();
        tally.begun(at(1), &name(), run(), &From::Initial);
        tally.stopped((at(9), 0), &name(), None, false);
        assert_eq!(tally.runs_since(&name()), Some(at(1)));
        tally.reconciling(&name());
        assert_eq!(tally.runs_since(&name()), Some(at(1)));
    }

    #[test]
    fn a_conflict_over_what_does_not_run_here_is_no_overlap() {
        let mut tally = Tally::default();
        tally.losing(at(1), &name(), &session("b"));
        tally.begun(at(2), &name(), run(), &From::Initial);
        tally.stopped((at(3), 0), &name(), None, false);
        assert!(tally.ask_now(at(3)).is_empty());
    }

    fn claim(node: &str, phase: Phase) -> Claim {
        Claim {
            name: name(),
            session: session(node),
            number: 1,
            version: 0,
            run: run(),
            epoch: Epoch(1),
            phase,
            terms: Terms { mode: Mode::Available, silence_floor: S },
            replicas: Vec::new(),
            floor: None,
            checkpointed: false,
            strikes: 0,
            note: String::new(),
            heeded: 0,
            expired: false,
            resting: false,
        }
    }

    #[test]
    fn a_second_move_counts_as_double_wherever_the_first_one_went() {
        let mut tally = Tally::default();
        let b = claim("b", Phase::Running);
        tally.owned(at(0), &name(), Some(&b), None);
        tally.owned(at(1), &name(), Some(&b), Some(&session("b")));
        let here = |tally: &mut Tally, seconds| {
            tally.moved_here((at(seconds), 0), &name(), Cause::Drain, None).again
        };
        assert!(!here(&mut tally, 2), "the first one");
        tally.owned(at(700), &name(), Some(&b), Some(&session("me")));
        assert!(here(&mut tally, 800), "it had moved to b from here");
        assert!(!here(&mut tally, 1500), "long ago");
    }

    #[test]
    fn the_gap_of_what_was_released_begins_when_it_was_known_to_be_free() {
        let mut tally = Tally::default();
        tally.begun(at(8), &name(), run(), &From::Initial);
        let arrival = tally.moved_here((at(8), 0), &name(), Cause::Released, Some(at(5)));
        assert_eq!((arrival.gap, arrival.redone), (Some(S * 3), None));
    }

    #[test]
    fn the_gap_of_a_crash_begins_with_the_owners_last_sign_of_life() {
        let mut tally = Tally::default();
        tally.begun(at(30), &name(), run(), &From::Initial);
        let now = (at(30), 130_000);
        let arrival = tally.moved_here(now, &name(), Cause::Crash, Some(at(18)));
        assert_eq!((arrival.gap, arrival.redone), (Some(S * 12), Some(1.0)));
    }
}
