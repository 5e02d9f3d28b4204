use handover::TaskState;

use super::*;
use crate::observer::Life;

const S: Nanos = 1_000_000_000;

/// Two copies may go on for a second after a heal, and nobody is missed for five.
fn timing() -> Timing {
    let mut timing = Timing::default();
    timing.gossip_interval = Duration::from_millis(400);
    timing.silence_floor = Duration::from_millis(6_200);
    timing
}

fn pace() -> Pace {
    Pace { step: Duration::from_millis(200), delay: Duration::ZERO, ..Pace::default() }
}

fn window(cut: Nanos, healed: Option<Nanos>) -> Window {
    Window { cut, healed, relayed: false }
}

fn span(host: &str, start: Nanos, stop: Nanos) -> Span {
    let life = Life { host: host.into(), number: 0 };
    Span { task: "t".into(), epoch: 1, life, start, stop }
}

/// The two hosts of the tests could not reach each other in these times.
fn apart(windows: &[Window]) -> Reach {
    let hosts = ["a", "b"].map(str::to_owned);
    let cut = BTreeSet::from([("a".to_owned(), "b".to_owned())]);
    let mut reach = Reach::default();
    for window in windows {
        reach.note(window.cut, &hosts, cut.clone());
        if let Some(healed) = window.healed {
            reach.note(healed, &hosts, BTreeSet::new());
        }
    }
    reach
}

fn overlaps(spans: &[Span], windows: &[Window]) -> Verdict {
    judged(spans, &apart(windows), false)
}

fn judged(spans: &[Span], reach: &Reach, nobody_missed: bool) -> Verdict {
    let (errands, told, running) = (BTreeMap::new(), Told::default(), BTreeSet::new());
    let around = Circumstances {
        reach,
        timing: &timing(),
        pace: pace(),
        nobody_missed,
        losses: false,
        errands: &errands,
        told: &told,
        running: &running,
    };
    let mut record = Record::default();
    spans.iter().for_each(|span| record.add(span));
    judge(&record, &around)
}

#[test]
fn two_copies_without_a_cut_are_a_violation() {
    let spans = [span("a", 0, 3 * S), span("b", 2 * S, 5 * S)];
    let verdict = overlaps(&spans, &[]);
    assert_eq!(verdict.overlaps, [Overlap { lasted: S, bound: None }]);
    assert_eq!(verdict.violations.len(), 1);
}

#[test]
fn one_copy_after_the_other_is_none() {
    let verdict = overlaps(&[span("a", 0, 2 * S), span("b", 2 * S, 5 * S)], &[]);
    assert!(verdict.overlaps.is_empty() && verdict.violations.is_empty());
    assert_eq!(verdict.checks[&Invariant::L4], 2);
}

#[test]
fn a_cut_allows_two_copies_until_shortly_after_its_end() {
    let cut = [window(S, Some(10 * S))];
    let within = overlaps(&[span("a", 0, 11 * S), span("b", 6 * S, 20 * S)], &cut);
    assert!(within.violations.is_empty(), "{:?}", within.violations);
    assert_eq!(within.overlaps, [Overlap { lasted: 5 * S, bound: Some(5 * S) }]);
    assert_eq!(within.after_heal, [S]);
    let beyond = overlaps(&[span("a", 0, 12 * S), span("b", 8 * S, 20 * S)], &cut);
    assert_eq!(beyond.violations.len(), 1, "it did not end in time");
    let early = overlaps(&[span("a", 0, 10 * S), span("b", 4 * S, 20 * S)], &cut);
    assert_eq!(early.violations.len(), 1, "its owner was not missed for long enough");
    let both = overlaps(&[span("a", 2 * S, 10 * S), span("b", 3 * S, 20 * S)], &cut);
    assert!(both.violations.is_empty(), "started on both sides: {:?}", both.violations);
    let before = overlaps(&[span("a", 0, 2 * S), span("b", S / 2, 20 * S)], &cut);
    assert_eq!(before.violations.len(), 1);
}

#[test]
fn a_cut_that_comes_before_the_copies_of_another_have_ended_is_one_with_it() {
    let spans = [span("a", 0, 21 * S), span("b", 8 * S, 30 * S)];
    let cuts = |next| {
        let first = window(S, Some(10 * S));
        [first, window(next, Some(20 * S))]
    };
    let at_once = overlaps(&spans, &cuts(10 * S + S / 2)).violations;
    assert!(at_once.is_empty(), "{at_once:?}");
    let later = overlaps(&spans, &cuts(12 * S)).violations;
    assert_eq!(later.len(), 2, "they outlive the first, and each bound: {later:?}");
}

#[test]
fn who_is_heard_is_not_missed() {
    let hosts = ["a", "b"].map(str::to_owned);
    let one_way = |from: &str, to: &str| {
        let mut reach = Reach::default();
        reach.note(0, &hosts, BTreeSet::new());
        reach.note(10 * S, &hosts, BTreeSet::from([(from.to_owned(), to.to_owned())]));
        reach
    };
    let spans = [span("a", 0, 18 * S), span("b", 16 * S, 30 * S)];
    let missed = |reach: &Reach, nobody_missed| {
        let verdict = judged(&spans, reach, nobody_missed);
        let label = Invariant::S3.to_string();
        let found = verdict.violations.iter().filter(|found| found.starts_with(&label));
        (found.count(), verdict.checks[&Invariant::S3])
    };
    assert_eq!(missed(&one_way("a", "b"), false), (0, 1), "silent for long enough");
    assert_eq!(missed(&one_way("b", "a"), false), (1, 1), "b hears a all the time");
    assert_eq!(missed(&one_way("a", "b"), true), (1, 2), "there was to be no reason");
}

#[test]
fn a_gap_is_when_no_copy_runs() {
    let spans = [span("a", 0, 2 * S), span("b", S, 4 * S), span("c", 5 * S, 6 * S)];
    assert_eq!(gaps(&spans), [S]);
}

#[test]
fn a_task_that_is_lost_or_wrong_is_a_violation() {
    let errand = Errand { steps: 3, step_ms: 1 };
    let errands = BTreeMap::from([("t".to_owned(), (0, errand))]);
    let mut told = Told::default();
    let running = BTreeSet::from(["a".to_owned()]);
    let life = Life { host: "a".into(), number: 0 };
    let mut record = Record::default();
    let judged = |record: &Record, told: &Told| {
        let around = Circumstances {
            reach: &Reach::default(),
            timing: &timing(),
            pace: pace(),
            nobody_missed: false,
            losses: false,
            errands: &errands,
            told,
            running: &running,
        };
        judge(record, &around).violations
    };
    assert_eq!(judged(&record, &told).len(), 4, "not taken on, not done, no result, not known");

    told.taken_on.insert("t".into());
    record.done.insert("t".into(), vec![(S, life.clone())]);
    let states = BTreeMap::from([("t".to_owned(), TaskState::Finished)]);
    told.known.insert(life.clone(), states);
    told.outputs.insert("t".into(), Ok(2));
    assert_eq!(judged(&record, &told).len(), 1, "a wrong result");

    told.outputs.insert("t".into(), Ok(3));
    assert!(judged(&record, &told).is_empty());

    record.done.insert("t".into(), vec![(S, life.clone()), (S, life)]);
    assert_eq!(judged(&record, &told).len(), 1, "twice");
}
