//! The parts of the rolling deploy that judge it, tested by themselves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, unreachable_pub, reason = "a part of the example")]
#[path = "../examples/rolling_deploy/compress.rs"]
mod compress;
#[allow(dead_code, unreachable_pub, reason = "a part of the example")]
#[path = "../examples/rolling_deploy/corpus.rs"]
mod corpus;
#[allow(dead_code, unreachable_pub, reason = "a part of the example")]
#[path = "../examples/rolling_deploy/meter.rs"]
mod meter;
#[allow(dead_code, unreachable_pub, reason = "a part of the example")]
#[path = "../examples/rolling_deploy/process.rs"]
mod process;
#[allow(dead_code, unreachable_pub, reason = "a part of the example")]
#[path = "../examples/rolling_deploy/report.rs"]
mod report;
#[allow(dead_code, unreachable_pub, reason = "a part of the example")]
#[path = "../examples/rolling_deploy/verify.rs"]
mod verify;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use self::compress::Job;
use self::corpus::{Corpus, Source};
use self::meter::{Cause, Measured, ProcessEnd, Step};
use self::process::Process;
use self::report::Report;
use self::verify::{Verdict, verify};

const SOON: Duration = Duration::from_secs(20);

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn parts_cover_the_corpus_without_holes() {
    let directory = scratch();
    let input = directory.path().join("input");
    for len in [1, 5, 23, 24, 25, 1000] {
        fs::write(&input, vec![7; len]).unwrap();
        let corpus = Corpus::of(&input, directory.path()).unwrap();
        let mut next = 0;
        for part in corpus.split(24) {
            assert_eq!(part.offset, next);
            next += part.len;
        }
        assert_eq!(next, len as u64);
    }
}

#[test]
fn a_directory_becomes_one_file_with_the_bytes_of_all_below() {
    let (input, directory) = (scratch(), scratch());
    fs::create_dir(input.path().join("deep")).unwrap();
    fs::write(input.path().join("deep/a"), "first").unwrap();
    fs::write(input.path().join("b"), "second").unwrap();
    let corpus = Corpus::of(input.path(), directory.path()).unwrap();
    assert_eq!(corpus.len, 11);
    let text = fs::read_to_string(&corpus.path).unwrap();
    assert!(text.contains("first") && text.contains("second"));
}

#[test]
fn this_machine_has_enough_files_and_no_more_than_wanted_is_taken() {
    let directory = scratch();
    let corpus = Corpus::of_this_machine(3 << 20, directory.path()).unwrap();
    assert_eq!(corpus.len, 3 << 20);
    assert_eq!(fs::metadata(&corpus.path).unwrap().len(), 3 << 20);
    assert!(corpus.origin.contains("files"));
}

#[test]
fn an_empty_or_missing_input_is_refused() {
    let directory = scratch();
    let empty = directory.path().join("empty");
    fs::write(&empty, "").unwrap();
    assert!(Corpus::of(&empty, directory.path()).is_err());
    assert!(Corpus::of(Path::new("/no/such/input"), directory.path()).is_err());
}

/// A process that answers each line with the same line, and leaves politely on SIGTERM.
fn parrot() -> Process<Value> {
    let mut command = Command::new("sh");
    let script = "trap 'exit 3' TERM; echo '\"up\"'; while read -r line; do echo \"$line\"; done";
    command.args(["-c", script]);
    Process::spawn("parrot", command).unwrap()
}

async fn up(parrot: &mut Process<Value>) {
    let up = |event| (event == json!("up")).then_some(());
    parrot.expect(SOON, "that it is up", up).await.unwrap();
}

#[tokio::test]
async fn a_process_hears_commands_and_is_heard() {
    let mut parrot = parrot();
    up(&mut parrot).await;
    parrot.send(&json!({"say": 1})).await.unwrap();
    assert_eq!(parrot.event().await, Some(json!({"say": 1})));
}

#[tokio::test]
async fn a_killed_process_is_noted_with_both_moments() {
    let mut parrot = parrot();
    up(&mut parrot).await;
    let before = meter::now();
    let end = parrot.kill().await.unwrap();
    assert_eq!((end.node.as_str(), end.cause), ("parrot", Cause::Sigkill));
    assert!(before <= end.signalled && end.signalled < end.exited);
    assert_eq!(parrot.event().await, None);
    assert!(parrot.signal(Signal::TERM).is_err(), "it has been waited for");
}

#[tokio::test]
async fn a_dropped_process_is_not_left_behind() {
    let mut parrot = parrot();
    up(&mut parrot).await;
    let pid = Pid::from_raw(parrot.pid().unwrap() as i32).unwrap();
    assert!(test_kill_process(pid).is_ok());
    drop(parrot);
    let begun = Instant::now();
    while test_kill_process(pid).is_ok() {
        assert!(begun.elapsed() < SOON, "it still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn source(directory: &Path, bytes: &[u8]) -> Source {
    let path = directory.join("source");
    fs::write(&path, [b"before", bytes, b"after"].concat()).unwrap();
    Source { path, offset: 6, len: bytes.len() as u64 }
}

fn frames(parts: &[&[u8]]) -> Vec<u8> {
    let encode = |part: &&[u8]| zstd::encode_all(*part, 1).unwrap();
    parts.iter().flat_map(encode).collect()
}

fn judge(frames: &[u8]) -> Verdict {
    let directory = scratch();
    let output = directory.path().join("output");
    fs::write(&output, frames).unwrap();
    verify(&source(directory.path(), b"one two three"), &output)
}

#[test]
fn frames_that_decode_to_the_range_are_intact() {
    let good = judge(&frames(&[b"one ", b"two ", b"three"]));
    let sha256 = format!("{:x}", Sha256::digest(b"one two three"));
    assert!(matches!(good, Verdict::Intact { sha256: found, .. } if found == sha256));
}

#[test]
fn a_frame_written_twice_is_found() {
    let doubled = judge(&frames(&[b"one ", b"two ", b"two ", b"three"]));
    assert!(matches!(doubled, Verdict::Damaged(_)));
}

#[test]
fn a_missing_frame_a_torn_one_and_a_long_tail_are_found() {
    let whole = frames(&[b"one ", b"two ", b"three"]);
    let torn = &whole[..whole.len() - 2];
    let tail = [whole.as_slice(), b"rest of an older write"].concat();
    for bad in [frames(&[b"one ", b"three"]).as_slice(), torn, &tail] {
        assert!(matches!(judge(bad), Verdict::Damaged(_)));
    }
}

#[test]
fn an_output_that_is_not_there_is_damaged() {
    let directory = scratch();
    let verdict = verify(&source(directory.path(), b"x"), &directory.path().join("none"));
    assert!(matches!(verdict, Verdict::Damaged(_)));
}

const PART: &str = "compress/part-00";

/// In milliseconds, 10 ms long.
fn step(node: &str, epoch: u64, start: u64) -> Step {
    Step {
        name: PART.into(),
        epoch,
        seq: epoch,
        node: node.into(),
        start: start * 1_000_000,
        end: Some((start + 10) * 1_000_000),
        units: 1,
    }
}

/// A run of one task that moved at a SIGTERM and at a SIGKILL, as it should be until a test changes it.
struct Ran {
    outputs: BTreeMap<String, u64>,
    verdicts: BTreeMap<String, Verdict>,
    steps: Vec<Step>,
    exit: i32,
}

impl Ran {
    fn well() -> Self {
        let intact = Verdict::Intact { compressed: 1, sha256: String::new() };
        Self {
            outputs: BTreeMap::from([(PART.into(), 1)]),
            verdicts: BTreeMap::from([(PART.into(), intact)]),
            steps: vec![step("n1", 1, 0), step("n2", 2, 20), step("n3", 3, 40)],
            exit: 0,
        }
    }

    fn report<T>(&self, read: impl FnOnce(&Report<'_>) -> T) -> T {
        let end = |node: &str, cause, at: u64| ProcessEnd {
            node: node.to_owned(),
            cause,
            signalled: at * 1_000_000,
            exited: (at + 50) * 1_000_000,
        };
        let ends = [end("n1", Cause::Sigterm, 5), end("n2", Cause::Sigkill, 31)];
        let source = Source { path: "source".into(), offset: 0, len: 3 };
        let job = Job { source, output: "output".into(), frame: 1, level: 1, pace_ms: 1 };
        read(&Report {
            jobs: &BTreeMap::from([(PART.into(), job)]),
            outputs: &self.outputs,
            verdicts: &self.verdicts,
            measured: &Measured::new(&self.steps, &ends, 1_000_000_000),
            ends: &ends,
            exits: &BTreeMap::from([("n1".into(), ExitStatus::from_raw(self.exit << 8))]),
        })
    }

    /// The only thing that is wrong with it has all these words.
    fn assert_fault(&self, words: &[&str]) {
        let (faults, good) = self.report(|report| (report.faults(), report.is_good()));
        assert!(!good);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(words.iter().all(|word| faults[0].contains(word)), "{faults:?}");
    }
}

#[test]
fn a_run_is_good_if_the_drained_exit_with_0_and_both_signals_met_running_tasks() {
    let (faults, good) = Ran::well().report(|report| (report.faults(), report.is_good()));
    assert!(good && faults.is_empty(), "{faults:?}");
    Ran { exit: 75, ..Ran::well() }.assert_fault(&["n1", "75"]);
    let mut unkilled = Ran::well();
    unkilled.steps.pop();
    unkilled.assert_fault(&["SIGKILL", "--input"]);
}

#[test]
fn a_task_that_is_lost_damaged_or_not_verified_is_a_fault() {
    Ran { outputs: BTreeMap::new(), ..Ran::well() }.assert_fault(&[PART, "is lost"]);
    Ran { verdicts: BTreeMap::new(), ..Ran::well() }.assert_fault(&[PART, "was not verified"]);
    let damaged = BTreeMap::from([(PART.into(), Verdict::Damaged("torn".into()))]);
    Ran { verdicts: damaged, ..Ran::well() }.assert_fault(&[PART, "is damaged", "torn"]);
}

#[test]
fn a_task_that_ran_twice_at_once_is_a_fault_on_two_nodes_as_on_one() {
    let mut on_two = Ran::well();
    on_two.steps[1] = step("n2", 2, 7);
    on_two.assert_fault(&[PART, "n1", "n2", "at once for 3 ms"]);
    let mut on_one = Ran::well();
    on_one.steps.push(step("n3", 4, 45));
    on_one.assert_fault(&["twice at once on one node"]);
}

/// Every leaf of it, by its path.
fn keys(of: &Value, below: &str) -> Vec<String> {
    let Value::Object(fields) = of else {
        assert!(of.is_number(), "{below} is {of}");
        return vec![below.to_owned()];
    };
    let path = |key: &str| format!("{below}{}{key}", if below.is_empty() { "" } else { "." });
    fields.iter().flat_map(|(key, value)| keys(value, &path(key))).collect()
}

#[test]
fn the_figures_have_the_names_that_programs_read_and_count_what_went_wrong() {
    let summary = |ran: &Ran| ran.report(|report| serde_json::to_value(report.summary()).unwrap());
    let well = summary(&Ran::well());
    let mut found = keys(&well, "");
    found.sort_unstable();
    let expected = [
        "completed",
        "lost",
        "moves_max_per_task",
        "moves_total",
        "sigkill.gap_ms.max",
        "sigkill.gap_ms.p50",
        "sigkill.gap_ms.p99",
        "sigkill.overlap_ms_max",
        "sigkill.redone_units_max_per_task",
        "sigterm.drain_s_max",
        "sigterm.gap_ms.max",
        "sigterm.gap_ms.p50",
        "sigterm.gap_ms.p99",
        "sigterm.overlap_ms_max",
        "sigterm.redone_ratio",
        "tasks",
        "verified",
    ];
    assert_eq!(found, expected);
    let counts = |of: &Value| ["tasks", "completed", "lost", "verified"].map(|key| of[key].clone());
    assert_eq!(counts(&well), [1, 1, 0, 1]);
    assert_eq!([&well["moves_total"], &well["moves_max_per_task"]], [2, 2]);
    assert_eq!(well["sigterm"]["gap_ms"]["max"], 10.0);
    assert_eq!([&well["sigterm"]["redone_ratio"], &well["sigterm"]["drain_s_max"]], [1.0, 0.05]);

    let mut badly = Ran { outputs: BTreeMap::new(), verdicts: BTreeMap::new(), ..Ran::well() };
    badly.steps[1] = step("n2", 2, 7);
    // What n2 had done is done again.
    badly.steps[2].seq = 2;
    let badly = summary(&badly);
    assert_eq!(counts(&badly), [1, 0, 1, 0]);
    assert_eq!(badly["sigterm"]["overlap_ms_max"], 3.0);
    assert_eq!(badly["sigkill"]["redone_units_max_per_task"], 1);
}
