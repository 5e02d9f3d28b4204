//! The parts of the rolling deploy that judge it, tested by themselves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, unreachable_pub, reason = "a part of the example")]
#[path = "../examples/rolling_deploy/corpus.rs"]
mod corpus;
#[allow(dead_code, unreachable_pub, reason = "a part of the example")]
#[path = "../examples/rolling_deploy/verify.rs"]
mod verify;

use std::fs;
use std::path::Path;

use self::corpus::Corpus;

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
