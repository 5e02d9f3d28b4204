#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::failing_disk::FailingDisk;
use super::*;
use crate::checkpoint::conformance;
use crate::checkpoint::testing::{claim, forked, header, name, position, put, put_as, run};
use crate::checkpoint::testing::{session, spec, state};
use crate::core::claim::Phase;

const LEN: usize = 3000;

fn on(disk: &FailingDisk) -> DurableStore {
    DurableStore::on(Box::new(disk.clone())).unwrap()
}

fn commit_of(task: &str, seq: u64) -> Header {
    header(task, 1, seq, "w", &state(seq, LEN))
}

fn write(task: &str, seq: u64) -> Write {
    put(task, 1, seq, &state(seq, LEN))
}

fn finish(task: &str) -> Write {
    Write::End {
        claim: claim(task, 1, Phase::Finished),
        spec: spec(task, 1),
        output: Some(Bytes::from_static(b"out")),
    }
}

fn read(store: &DurableStore, header: &Header) -> Result<Option<(Header, Bytes)>, StoreError> {
    store.get(&header.name, header.run, header.position, &header.writer)
}

/// What is listed can be read, and is what was written.
fn assert_sound(store: &DurableStore) -> Vec<StoredRun> {
    let runs = store.runs().unwrap();
    for run in &runs {
        for header in &run.checkpoints {
            let seq = header.position.seq;
            assert_eq!(*header, commit_of(header.name.as_str(), seq));
            let found = read(store, header).unwrap();
            assert_eq!(found, Some((header.clone(), state(seq, LEN))));
        }
        if let Some((_, output)) = run.end {
            let found = store.get_output(&run.spec.name, run.spec.run).unwrap();
            assert_eq!(found, output.then(|| Bytes::from_static(b"out")));
        }
    }
    runs
}

/// The only run of a task, if it is listed: its newest commit, and whether it has ended.
fn newest(runs: &[StoredRun], task: &str) -> Option<(Option<u64>, bool)> {
    let run = runs.iter().find(|run| run.spec.name == name(task))?;
    let seq = run.checkpoints.first().map(|header| header.position.seq);
    Some((seq, run.end.is_some()))
}

#[test]
fn it_does_what_every_store_must() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    conformance::all(&|| {
        count.set(count.get() + 1);
        let path = directory.path().join(format!("{}.redb", count.get()));
        Box::new(DurableStore::open(&path).unwrap())
    });
}

#[test]
fn reopening_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.redb");
    let store = DurableStore::open(&path).unwrap();
    for seq in 1..5 {
        store.write(write("a", seq)).unwrap();
    }
    store.write(write("b", 1)).unwrap();
    store.write(finish("b")).unwrap();
    let fork = forked(&commit_of("a", 2), 2, 3, "other", b"fork");
    store.write(put_as(fork.clone(), &Bytes::from_static(b"fork"))).unwrap();
    let before = store.runs().unwrap();
    drop(store);

    let store = DurableStore::open(&path).unwrap();
    assert_eq!(store.take_damage(), []);
    assert_eq!(store.runs().unwrap(), before);
    assert_eq!(before[0].checkpoints, [commit_of("a", 4), fork.clone()], "two branches");
    assert_eq!(read(&store, &fork), Ok(Some((fork, Bytes::from_static(b"fork")))));
    assert_eq!(store.get_output(&name("b"), run(1)), Ok(Some(Bytes::from_static(b"out"))));
    store.write(write("a", 5)).unwrap();
    drop(store);
    let store = DurableStore::open(&path).unwrap();
    assert_eq!(store.runs().unwrap()[0].checkpoints[0], commit_of("a", 5));
}

#[test]
fn what_was_replaced_leaves_the_disk() {
    let disk = FailingDisk::default();
    let store = on(&disk);
    let big = state(1, 100_000);
    for seq in 1..=50 {
        store.write(put("a", 1, seq, &big)).unwrap();
    }
    let len = disk.lock().bytes.len();
    assert!(len < 30 * 100_000, "{len} bytes for two checkpoints");
    let rows = |store: &DurableStore| {
        let inner = store.lock();
        let database = inner.database.as_ref().unwrap();
        Table::ALL.map(|table| {
            let reading = database.begin_read().unwrap();
            let table = reading.open_table(table.definition()).unwrap();
            table.iter().unwrap().count()
        })
    };
    assert_eq!(rows(&store), [1, 0, 2], "the newest and the one before");
    store.write(finish("a")).unwrap();
    assert_eq!(rows(&store), [1, 1, 0]);
    store.write(Write::Discard { name: name("a"), run: run(1), headers: vec![] }).unwrap();
    assert_eq!(rows(&store), [0, 0, 0]);
}

#[test]
fn a_file_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.redb");
    let _store = DurableStore::open(&path).unwrap();
    assert_eq!(DurableStore::open(&path).unwrap_err(), OpenError::InUse);
}

#[test]
fn what_cannot_be_opened_is_an_error_and_not_damage() {
    let directory = tempfile::tempdir().unwrap();
    let error = DurableStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// Where in the file the state of a commit stands.
fn find(bytes: &[u8], seq: u64) -> usize {
    let wanted = state(seq, LEN);
    bytes.windows(LEN).position(|window| window == wanted).unwrap()
}

#[test]
fn a_damaged_newest_checkpoint_falls_back_to_the_one_before() {
    let disk = FailingDisk::default();
    let store = on(&disk);
    for seq in 1..=9 {
        store.write(write("a", seq)).unwrap();
        store.write(write("b", seq * 100)).unwrap();
    }
    drop(store);
    let at = find(&disk.lock().bytes, 9);
    disk.lock().bytes[at + 17] ^= 4;

    let store = on(&disk);
    let damage = store.take_damage();
    let [Damage::Checkpoint { name: of, position: lost, fell_back_to, .. }] = damage.as_slice()
    else {
        panic!("{damage:?}");
    };
    assert_eq!((of, *lost), (&name("a"), position(1, 9)));
    assert_eq!(*fell_back_to, Some(commit_of("a", 8)));
    let runs = assert_sound(&store);
    assert_eq!(newest(&runs, "a"), Some((Some(8), false)));
    assert_eq!(newest(&runs, "b"), Some((Some(900), false)));
    assert_eq!(store.take_damage(), [], "reported once");
    store.write(write("a", 9)).unwrap();
    assert_eq!(newest(&assert_sound(&store), "a"), Some((Some(9), false)), "it may come again");
}

#[test]
fn both_checkpoints_damaged_is_reported_and_the_run_stays_known() {
    let disk = FailingDisk::default();
    let store = on(&disk);
    for seq in 1..=9 {
        store.write(write("a", seq)).unwrap();
    }
    drop(store);
    for seq in [8, 9] {
        let at = find(&disk.lock().bytes, seq);
        disk.lock().bytes[at] ^= 1;
    }
    let store = on(&disk);
    let damage = store.take_damage();
    assert_eq!(damage.len(), 2);
    for damage in damage {
        assert!(matches!(damage, Damage::Checkpoint { fell_back_to: None, .. }), "{damage}");
    }
    assert_eq!(newest(&store.runs().unwrap(), "a"), Some((None, false)));
}

/// Large enough together not to be answered from redb's cache.
#[test]
fn damage_that_happens_while_open_falls_back_too() {
    let disk = FailingDisk::default();
    let store = on(&disk);
    for seq in 1..=9 {
        store.write(write("a", seq)).unwrap();
    }
    for n in 0..40 {
        let filler = state(n, 1 << 20);
        store.write(put(&format!("filler{n}"), 1, 1, &filler)).unwrap();
    }
    let at = find(&disk.lock().bytes, 9);
    disk.lock().bytes[at] ^= 1;
    let error = read(&store, &commit_of("a", 9)).unwrap_err();
    let StoreError::Corrupt(damage) = &error else {
        panic!("{error}");
    };
    let Damage::Checkpoint { fell_back_to, .. } = damage.as_ref() else {
        panic!("{damage}");
    };
    assert_eq!(*fell_back_to, Some(commit_of("a", 8)));
    assert_eq!(store.take_damage(), [damage.as_ref().clone()]);
    assert_eq!(read(&store, &commit_of("a", 9)), Ok(None));
    assert_eq!(read(&store, &commit_of("a", 8)), Ok(Some((commit_of("a", 8), state(8, LEN)))));
    assert_eq!(store.runs().unwrap()[0].checkpoints, [commit_of("a", 8)]);
}

#[test]
fn a_checkpoint_of_a_newer_build_is_reported_and_left_alone() {
    let disk = FailingDisk::default();
    let store = on(&disk);
    store.write(write("a", 1)).unwrap();
    let mut row = envelope::encode(&commit_of("a", 5), &state(5, LEN)).unwrap();
    row.truncate(row.len() - 16);
    row[5] = 2;
    let checksum = xxhash_rust::xxh3::xxh3_128(&row);
    row.extend_from_slice(&checksum.to_be_bytes());
    let key = rows::checkpoint_key(&(name("a"), run(1)), &(position(1, 5), session("w")));
    let insert = [Op::Insert(Table::Checkpoints, key.clone(), row.clone())];
    let mut inner = store.lock();
    inner.with(&disk, |database| commit(database, &insert, 2)).unwrap();
    drop(inner);
    drop(store);

    let store = on(&disk);
    let damage = store.take_damage();
    assert_eq!(damage.len(), 1);
    assert!(damage[0].to_string().contains("version 2"), "{}", damage[0]);
    store.write(write("a", 2)).unwrap();
    store.write(write("a", 3)).unwrap();
    assert_eq!(newest(&assert_sound(&store), "a"), Some((Some(3), false)));
    let kept = store.lock().read(&disk, Table::Checkpoints, &key).unwrap();
    assert_eq!(kept.as_deref(), Some(row.as_slice()));
}

#[test]
fn a_file_that_is_no_database_is_moved_aside_and_never_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.redb");
    let contents = [vec![], b"no database".to_vec(), vec![0xa5; 100_000]];
    for (n, content) in (1..).zip(contents) {
        fs::write(&path, &content).unwrap();
        let store = DurableStore::open(&path).unwrap();
        let aside = PathBuf::from(format!("{}.corrupt-{n}", path.display()));
        let damage = store.take_damage();
        assert!(
            matches!(&damage[..], [Damage::File { aside: Some(to), saved: 0, .. }] if *to == aside),
            "{damage:?}"
        );
        assert_eq!(fs::read(&aside).unwrap(), content);
        assert_eq!(store.runs(), Ok(vec![]));
        store.write(write("a", 1)).unwrap();
        drop(store);
        assert_eq!(
            DurableStore::open(&path).unwrap().runs().unwrap().len(),
            1,
            "the new file is in its place"
        );
    }
}

/// Three tasks; one has ended.
fn filled() -> FailingDisk {
    let disk = FailingDisk::default();
    let store = on(&disk);
    for seq in 1..=6 {
        for task in ["a", "b", "c"] {
            store.write(write(task, seq)).unwrap();
        }
    }
    store.write(finish("c")).unwrap();
    drop(store);
    disk
}

/// Whatever the damage: no panic, nothing that was not written, and nothing lost without a report.
fn assert_survives(damaged: Vec<u8>, what: &str) -> (bool, usize) {
    let disk = FailingDisk::of(damaged);
    let store = on(&disk);
    let damage = store.take_damage();
    let runs = assert_sound(&store);
    let expected = [("a", Some(6), false), ("b", Some(6), false), ("c", None, true)];
    let kept = expected
        .iter()
        .filter(|(task, seq, ended)| newest(&runs, task) == Some((*seq, *ended)))
        .count();
    assert!(
        kept == expected.len() || !damage.is_empty(),
        "{what}: lost without a report: {runs:?}"
    );
    for task in ["a", "b", "d"] {
        // Damage that only a write runs into costs that write; the next one finds a new file.
        let written = (0..2).any(|_| store.write(write(task, 7)).is_ok());
        assert!(written, "{what}: {task} cannot be written");
    }
    assert_sound(&store);
    drop(store);
    assert_sound(&on(&disk));
    (damage.is_empty(), kept)
}

#[test]
fn any_flipped_bit_costs_at_most_a_reported_loss() {
    let bytes = filled().lock().bytes.clone();
    let mut random = StdRng::seed_from_u64(1);
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let mut reported = 0;
    for round in 0..400 {
        // The file's header and the roots of its trees are few among the many bytes of states.
        let at = match round % 4 {
            0 => random.random_range(0..320),
            1 => random.random_range(0..bytes.len()),
            _ => used[random.random_range(0..used.len())],
        };
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << random.random_range(0..8);
        let (silent, _) = assert_survives(damaged, &format!("byte {at}"));
        reported += usize::from(!silent);
    }
    assert!(reported > 20, "only {reported} flips hit anything");
}

#[test]
fn a_truncated_or_torn_file_costs_at_most_a_reported_loss() {
    let bytes = filled().lock().bytes.clone();
    let mut random = StdRng::seed_from_u64(2);
    for round in 0..120 {
        let mut damaged = bytes.clone();
        let at = match round % 3 {
            0 => random.random_range(1..400),
            _ => random.random_range(1..bytes.len()),
        };
        match round % 2 {
            0 => damaged.truncate(at),
            _ => {
                let end = (at + 4096).min(bytes.len());
                damaged[at..end].fill(0);
            }
        }
        assert_survives(damaged, &format!("round {round} at {at}"));
    }
}

/// Sixty tasks, and the store's file with `damage` done to it; what is left, and what was saved.
fn rebuilt(bytes: &[u8], damage: impl FnOnce(&mut [u8])) -> Option<(usize, usize)> {
    let mut damaged = bytes.to_vec();
    damage(&mut damaged);
    let disk = FailingDisk::of(damaged.clone());
    let store = on(&disk);
    let listed = assert_sound(&store).len();
    store.write(write("after", 1)).unwrap();
    let damage = store.take_damage();
    let saved = damage.iter().find_map(|damage| match damage {
        Damage::File { aside: Some(_), saved, .. } => Some(*saved),
        _ => None,
    })?;
    let aside = disk.lock().aside[0].len();
    assert!(aside >= damaged.len(), "the old file is kept");
    Some((listed, saved))
}

fn sixty() -> Vec<u8> {
    let disk = FailingDisk::default();
    let store = on(&disk);
    for n in 0..60 {
        store.write(write(&format!("task{n:02}"), 1)).unwrap();
    }
    drop(store);
    let bytes = disk.lock().bytes.clone();
    bytes
}

#[test]
fn rows_under_a_damaged_key_are_all_carried_over() {
    let bytes = sixty();
    let key = b"task30\0";
    let results: Vec<_> = (0..bytes.len() - key.len())
        .filter(|at| bytes[*at..].starts_with(key))
        .filter_map(|at| rebuilt(&bytes, |bytes| bytes[at] ^= 8))
        .collect();
    assert!(!results.is_empty(), "no key was in use");
    for result in results {
        assert_eq!(result, (60, 120), "a run and a checkpoint of each");
    }
}

#[test]
fn rows_on_either_side_of_a_broken_page_are_carried_over() {
    let bytes = sixty();
    let results: Vec<_> = (1..bytes.len() / 4096)
        .map(|page| page * 4096)
        // Leaves; the offsets in them follow the count of rows.
        .filter(|at| bytes[*at] == 1)
        .filter_map(|at| rebuilt(&bytes, |bytes| bytes[at + 4..at + 12].fill(0xff)))
        .collect();
    let most = results.iter().filter(|(_, saved)| *saved > 90).count();
    assert!(most > 10, "{results:?}");
}

/// Two tasks commit, one of them ends; stops at the first failure. Returns what was acknowledged
/// and what was attempted: the newest commit of each, and whether `b` has ended.
fn script(store: &DurableStore) -> ([u64; 2], [u64; 2], [bool; 2]) {
    let (mut acknowledged, mut attempted, mut ended) = ([0; 2], [0; 2], [false; 2]);
    for seq in 1..=4 {
        attempted = [seq; 2];
        let results = store.apply(vec![write("a", seq), write("b", seq)]);
        if results.iter().any(Result::is_err) {
            return (acknowledged, attempted, ended);
        }
        acknowledged = [seq; 2];
    }
    ended[1] = true;
    ended[0] = store.write(finish("b")).is_ok();
    (acknowledged, attempted, ended)
}

/// Killed, or cut off from power, at any change or sync: what was acknowledged is there, what was
/// not is there whole or not at all, and nothing looks like damage.
#[test]
fn a_death_in_the_middle_of_a_commit_keeps_what_was_acknowledged() {
    let fresh = FailingDisk::default();
    drop(on(&fresh));
    let start = fresh.lock().bytes.clone();
    let mut deaths = 0;
    loop {
        let disk = FailingDisk::of(start.clone());
        let store = on(&disk);
        let from = disk.lock().operations;
        disk.lock().fails = Some((from + deaths, io::ErrorKind::Other));
        disk.lock().short_writes = deaths % 2 == 1;
        let (acknowledged, attempted, ended) = script(&store);
        let survivors: Vec<FailingDisk> = (0..4)
            .map(|seed| disk.after_power_cut(deaths * 10 + seed))
            .chain([disk.after_kill()])
            .collect();
        drop(store);
        for (n, survivor) in survivors.iter().enumerate() {
            let store = on(survivor);
            assert_eq!(store.take_damage(), [], "death {deaths}, survivor {n}");
            let runs = assert_sound(&store);
            for (at, task) in ["a", "b"].into_iter().enumerate() {
                let (seq, has_ended) = newest(&runs, task).unwrap_or((None, false));
                if task == "b" && has_ended {
                    assert!(ended[1], "death {deaths}: ended before its time");
                    continue;
                }
                assert!(!(task == "b" && ended[0]), "death {deaths}: its end is lost");
                let seq = seq.unwrap_or(0);
                assert!(
                    (acknowledged[at]..=attempted[at]).contains(&seq),
                    "death {deaths}, survivor {n}: {task} is at {seq}"
                );
            }
            store.write(write("a", 9)).unwrap();
        }
        if ended[0] {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 20, "only {deaths} places to die");
}

/// A full or failing disk: not acknowledged, no panic, and as good as new when the disk is.
#[test]
fn a_disk_that_recovers_is_used_again() {
    for (kind, full) in [(io::ErrorKind::StorageFull, true), (io::ErrorKind::Other, false)] {
        let mut faults = 0;
        loop {
            let disk = FailingDisk::default();
            let store = on(&disk);
            store.write(write("a", 1)).unwrap();
            let from = disk.lock().operations;
            disk.lock().fails = Some((from + faults, kind));
            let result = store.write(write("a", 2));
            if result.is_ok() {
                break;
            }
            match result {
                Err(StoreError::Full(_)) => assert!(full),
                Err(StoreError::Io { .. }) => assert!(!full),
                other => panic!("{other:?}"),
            }
            let again = store.write(write("a", 3));
            assert!(again.is_err(), "still failing: {again:?}");
            disk.lock().fails = None;
            let seq = newest(&assert_sound(&store), "a").unwrap().0;
            assert!(seq == Some(1) || seq == Some(2), "{seq:?}");
            store.write(write("a", 4)).unwrap();
            drop(store);
            let store = on(&disk);
            assert_eq!(store.take_damage(), []);
            assert_eq!(newest(&assert_sound(&store), "a"), Some((Some(4), false)));
            faults += 1;
        }
        assert!(faults > 3, "only {faults} places to fail");
    }
}
