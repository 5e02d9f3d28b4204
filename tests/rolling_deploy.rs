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

/// A run of one task that moved at a SIGTERM and at a SIGKILL; what it is judged by can be changed.
fn judged(exits: &[(&str, i32)], killed: bool) -> Vec<String> {
    const MS: u64 = 1_000_000;
    let name = "compress/part-00".to_owned();
    let step = |node: &str, epoch, seq, start: u64| Step {
        name: name.clone(),
        epoch,
        seq,
        node: node.to_owned(),
        start: start * MS,
        end: Some((start + 10) * MS),
        units: 1,
    };
    let end = |node: &str, cause, at: u64| ProcessEnd {
        node: node.to_owned(),
        cause,
        signalled: at * MS,
        exited: (at + 50) * MS,
    };
    let mut steps = vec![step("n1", 1, 1, 0), step("n2", 2, 2, 20)];
    if killed {
        steps.push(step("n3", 3, 3, 40));
    }
    let ends = [end("n1", Cause::Sigterm, 5), end("n2", Cause::Sigkill, 31)];
    let measured = Measured::new(&steps, &ends, 1000 * MS);
    let source = Source { path: "source".into(), offset: 0, len: 3 };
    let job = Job { source, output: "output".into(), frame: 1, level: 1, pace_ms: 1 };
    let intact = Verdict::Intact { compressed: 1, sha256: String::new() };
    let exits = exits
        .iter()
        .map(|(node, code)| ((*node).to_owned(), std::process::ExitStatus::from_raw(code << 8)));
    let report = Report {
        jobs: &BTreeMap::from([(name.clone(), job)]),
        outputs: &BTreeMap::from([(name.clone(), 1)]),
        verdicts: &BTreeMap::from([(name.clone(), intact)]),
        measured: &measured,
        ends: &ends,
        exits: &exits.collect(),
    };
    assert_eq!(report.is_good(), report.faults().is_empty());
    report.faults()
}

#[test]
fn a_run_is_good_if_the_drained_exit_with_0_and_both_signals_met_running_tasks() {
    assert_eq!(judged(&[("n1", 0)], true), [""; 0]);
    let faults = judged(&[("n1", 75)], true);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("n1") && faults[0].contains("75"), "{faults:?}");
    let faults = judged(&[("n1", 0)], false);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("SIGKILL") && faults[0].contains("--input"), "{faults:?}");
}
