//! The neutral meter of the examples, on logs made up for the purpose.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, unreachable_pub, reason = "programs use the rest of it")]
#[path = "../examples/rolling_deploy/meter.rs"]
mod meter;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;

use self::meter::{Cause, Measured, Percentiles, ProcessEnd, Step, StepLog};

const MS: u64 = 1_000_000;

fn step(node: &str, epoch: u64, seq: u64, start: u64, end: impl Into<Option<u64>>) -> Step {
    Step {
        name: "t".into(),
        epoch,
        seq,
        node: node.into(),
        start: start * MS,
        end: end.into().map(|end| end * MS),
        units: 10,
    }
}

fn end(node: &str, cause: Cause, signalled: u64, exited: u64) -> ProcessEnd {
    ProcessEnd { node: node.into(), cause, signalled: signalled * MS, exited: exited * MS }
}

fn measure(steps: &[Step], ends: &[ProcessEnd]) -> Measured {
    Measured::new(steps, ends, 1_000_000 * MS)
}

#[test]
fn the_gap_lies_between_the_last_end_and_the_first_start() {
    let steps = [step("b", 2, 3, 37, 45), step("a", 1, 1, 10, 20), step("a", 1, 2, 20, 30)];
    let measured = measure(&steps, &[end("a", Cause::Sigterm, 25, 60)]);
    let [moved] = measured.moves.as_slice() else {
        panic!("one move, not {:?}", measured.moves);
    };
    assert_eq!((moved.from.as_str(), moved.to.as_str()), ("a", "b"));
    assert_eq!(moved.gap, 7 * MS);
    assert_eq!(moved.cause, Cause::Sigterm);
    assert!(!moved.unprompted);
    assert_eq!((moved.overlap, moved.redone, measured.overlap), (0, 0, 0));
    assert_eq!((measured.units_done, measured.units_needed), (30, 30));
}

#[test]
fn two_owners_at_once_are_an_overlap_and_no_gap() {
    let steps = [step("a", 1, 1, 10, 30), step("b", 2, 2, 25, 40)];
    let measured = measure(&steps, &[]);
    assert_eq!(measured.overlap, 5 * MS);
    assert_eq!(measured.moves[0].overlap, 5 * MS);
    assert_eq!(measured.moves[0].gap, 0);
    assert!(measured.moves[0].unprompted);
}

#[test]
fn owners_that_take_turns_without_touching_overlap_all_the_same() {
    let steps = [step("a", 1, 1, 10, 20), step("b", 2, 1, 22, 28), step("a", 1, 2, 30, 40)];
    assert_eq!(measure(&steps, &[]).overlap, 6 * MS);
}

#[test]
fn an_overlap_with_an_owner_before_the_last_is_seen() {
    let steps = [step("a", 1, 1, 10, 100), step("b", 2, 2, 20, 30), step("c", 3, 3, 90, 120)];
    let measured = measure(&steps, &[]);
    assert_eq!(measured.moves[0].overlap, 10 * MS);
    assert_eq!(measured.moves[1].overlap, 10 * MS);
}

#[test]
fn work_done_twice_is_counted_against_the_move_that_caused_it() {
    let steps = [
        step("a", 1, 1, 10, 20),
        step("a", 1, 2, 20, 30),
        step("a", 1, 3, 30, None),
        step("b", 2, 2, 50, 60),
        step("b", 2, 3, 60, 70),
        step("b", 2, 4, 70, 80),
    ];
    let measured = measure(&steps, &[end("a", Cause::Sigkill, 35, 36)]);
    assert_eq!(measured.moves[0].redone, 20);
    assert_eq!(measured.moves[0].cause, Cause::Sigkill);
    assert_eq!((measured.units_done, measured.units_needed), (60, 40));
}

#[test]
fn a_step_cut_off_by_a_kill_ran_until_the_kill_and_its_time_counts_as_pause() {
    let cut = [step("a", 1, 1, 10, 20), step("a", 1, 2, 20, None), step("b", 2, 2, 40, 50)];
    let late = measure(&cut, &[end("a", Cause::Sigkill, 35, 60)]);
    assert_eq!((late.overlap, late.moves[0].gap), (0, 20 * MS));
    let early = measure(&cut, &[end("a", Cause::Sigkill, 45, 60)]);
    assert_eq!(early.overlap, 5 * MS);
}

#[test]
fn a_step_that_never_ends_overlaps_with_every_later_owner() {
    let steps = [step("a", 1, 1, 10, None), step("b", 2, 1, 40, 50)];
    assert_eq!(measure(&steps, &[]).overlap, 10 * MS);
    let stuck = measure(&steps, &[end("a", Cause::Sigterm, 20, 44)]);
    assert_eq!(stuck.overlap, 4 * MS);
}

#[test]
fn a_task_can_move_twice_for_two_causes() {
    let steps = [step("a", 1, 1, 10, 20), step("b", 2, 2, 30, 40), step("c", 3, 3, 60, 70)];
    let ends = [end("a", Cause::Sigterm, 15, 50), end("b", Cause::Sigkill, 42, 43)];
    let measured = measure(&steps, &ends);
    assert_eq!(measured.moves_per_task(), BTreeMap::from([("t", 2)]));
    assert_eq!(measured.caused_by(Cause::Sigterm).count(), 1);
    let killed: Vec<_> = measured.caused_by(Cause::Sigkill).collect();
    assert_eq!((killed.len(), killed[0].gap), (1, 20 * MS));
}

#[test]
fn a_move_that_nobody_asked_for_belongs_to_the_phase_in_which_it_happened() {
    let steps = [step("b", 1, 1, 10, 20), step("c", 2, 2, 60, 70)];
    let ends = [end("a", Cause::Sigterm, 15, 50), end("d", Cause::Sigkill, 55, 56)];
    let measured = measure(&steps, &ends);
    assert!(measured.moves[0].unprompted);
    assert_eq!(measured.moves[0].cause, Cause::Sigkill);
}

#[test]
fn a_new_epoch_on_the_same_node_is_no_move() {
    let steps = [step("a", 1, 1, 10, 20), step("a", 2, 2, 30, 40)];
    assert!(measure(&steps, &[]).moves.is_empty());
}

#[test]
fn both_lines_of_a_step_are_one_step() {
    let lines = [step("a", 1, 1, 10, None), step("a", 1, 1, 10, 20)];
    let measured = measure(&lines, &[]);
    assert_eq!((measured.units_done, measured.units_needed), (10, 10));
    assert_eq!(measured.tenures["t"][0].end, 20 * MS);
}

#[test]
fn what_is_logged_is_read_back_and_a_torn_tail_is_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let log = Arc::new(StepLog::open(directory.path(), "a").unwrap());
    drop(log.begin("t", 7, 1, 5).unwrap());
    std::mem::forget(log.begin("t", 7, 2, 5).unwrap());
    let path = directory.path().join("a.steps.jsonl");
    let mut torn = File::options().append(true).open(path).unwrap();
    torn.write_all(b"{\"name\":\"t\",\"ep").unwrap();
    let lines = meter::read(directory.path()).unwrap();
    assert_eq!(lines.len(), 3);
    let measured = Measured::new(&lines, &[], meter::now());
    assert_eq!(measured.units_done, 10);
    let tenure = &measured.tenures["t"][0];
    assert!(tenure.epoch == 7 && tenure.start <= tenure.last_end && tenure.last_end < tenure.end);
}

#[test]
fn a_damaged_line_in_the_middle_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.steps.jsonl"), "{\n{}\n").unwrap();
    assert!(meter::read(directory.path()).is_err());
}

#[test]
fn percentiles_are_by_nearest_rank() {
    let hundred = Percentiles::of((1..=100).map(f64::from));
    assert_eq!((hundred.p50, hundred.p99, hundred.max), (50.0, 99.0, 100.0));
    let one = Percentiles::of([4.5]);
    assert_eq!((one.p50, one.p99, one.max), (4.5, 4.5, 4.5));
    assert_eq!(Percentiles::of([]), Percentiles::default());
}

/// Between the moment that is noted and the kill itself a step can begin. The process of the same node
/// that is killed much later has nothing to do with it.
#[test]
fn a_step_that_begins_while_its_process_is_being_killed_ends_with_that_process() {
    let steps = [step("a", 1, 1, 0, 10), step("a", 1, 2, 51, None), step("b", 2, 2, 100, 9_000)];
    let kills = [end("a", Cause::Sigkill, 50, 53), end("a", Cause::Sigkill, 9_100, 9_103)];
    let measured = measure(&steps, &kills);
    assert_eq!(measured.overlap, 0, "{:?}", measured.tenures);
    assert_eq!(measured.moves[0].cause, Cause::Sigkill);
}
