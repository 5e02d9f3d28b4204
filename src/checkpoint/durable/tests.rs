#![allow(clippy::unwrap_used, clippy::expect_used)]

mod damage;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::failing_disk::FailingDisk;
use super::*;
use crate::checkpoint::conformance;
use crate::checkpoint::testing::{end, forked, header, name, position, put, put_as, run};
use crate::checkpoint::testing::{session, spec, state};
use crate::checkpoint::{Execution, Limits, Reply, Request, StoreWorker};
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
        end: end(task, 1, Phase::Finished),
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
fn a_pinned_checkpoint_survives_reopening_and_what_comes_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("checkpoints.redb");
    let of = |version, seq| Header { state_version: version, ..commit_of("a", seq) };
    let put = |store: &DurableStore, version, seq| {
        store.write(put_as(of(version, seq), &state(seq, LEN))).unwrap();
    };
    let store = DurableStore::open(&path).unwrap();
    put(&store, 1, 1);
    put(&store, 1, 2);
    put(&store, 2, 3);
    drop(store);
    let store = DurableStore::open(&path).unwrap();
    for seq in 4..8 {
        put(&store, 2, seq);
    }
    drop(store);
    let store = DurableStore::open(&path).unwrap();
    assert_eq!(store.runs().unwrap()[0].checkpoints, [of(1, 2), of(2, 7)]);
    assert_eq!(read(&store, &of(1, 2)), Ok(Some((of(1, 2), state(2, LEN)))));
    assert!(store.take_damage().is_empty());
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
    assert_eq!(*fell_back_to, Some(commit_of("a", 8).into()));
    let runs = assert_sound(&store);
    assert_eq!(newest(&runs, "a"), Some((Some(8), false)));
    assert_eq!(newest(&runs, "b"), Some((Some(900), false)));
    assert_eq!(store.take_damage(), [], "reported once");
    store.write(write("a", 9)).unwrap();
    assert_eq!(newest(&assert_sound(&store), "a"), Some((Some(9), false)), "it may come again");
}

#[test]
fn a_damaged_newest_checkpoint_falls_back_to_its_own_owners_last_not_to_one_before_that() {
    let disk = FailingDisk::default();
    let store = on(&disk);
    for seq in 1..=2 {
        store.write(write("a", seq)).unwrap();
    }
    let next = |seq| forked(&commit_of("a", 2), 2, seq, "other", &state(seq, LEN));
    for seq in 3..=4 {
        store.write(put_as(next(seq), &state(seq, LEN))).unwrap();
    }
    drop(store);
    let store = on(&disk);
    let at = find(&disk.lock().bytes, 4);
    disk.lock().bytes[at] ^= 1;
    let StoreError::Corrupt(damage) = read(&store, &next(4)).unwrap_err() else {
        panic!("it is damaged");
    };
    let Damage::Checkpoint { fell_back_to, .. } = damage.as_ref() else {
        panic!("{damage}");
    };
    assert_eq!(*fell_back_to, Some(next(3).into()));
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
    let runs = store.runs().unwrap();
    assert_eq!(newest(&runs, "a"), Some((None, false)));
    assert!(runs.iter().all(|run| run.damaged));
}

#[test]
fn damage_that_happens_while_open_falls_back_too() {
    let disk = FailingDisk::default();
    let store = on(&disk);
    for seq in 1..=9 {
        store.write(write("a", seq)).unwrap();
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
    assert_eq!(*fell_back_to, Some(commit_of("a", 8).into()));
    assert_eq!(store.take_damage(), [damage.as_ref().clone()]);
    assert_eq!(read(&store, &commit_of("a", 9)), Ok(None));
    assert_eq!(read(&store, &commit_of("a", 8)), Ok(Some((commit_of("a", 8), state(8, LEN)))));
    assert_eq!(store.runs().unwrap()[0].checkpoints, [commit_of("a", 8)]);
}

#[tokio::test]
async fn damage_is_handed_on_with_the_answer_that_came_upon_it() {
    let disk = FailingDisk::default();
    let store = on(&disk);
    store.write(write("a", 9)).unwrap();
    let at = find(&disk.lock().bytes, 9);
    disk.lock().bytes[at] ^= 1;
    let (worker, mut answers) = StoreWorker::new(
        Arc::new(store),
        Execution::Blocking(tokio::runtime::Handle::current()),
        Limits::default(),
    );
    worker.submit(1, Request::Write(write("b", 1).into())).unwrap();
    let load = Request::Load {
        name: name("a"),
        run: run(1),
        position: position(1, 9),
        writer: session("w"),
    };
    worker.submit(2, load).unwrap();
    assert_eq!(answers.recv().await.unwrap().damage, []);
    let answer = answers.recv().await.unwrap();
    let Reply::Loaded(Err(StoreError::Corrupt(damage))) = answer.reply else {
        panic!("{answer:?}");
    };
    assert_eq!(answer.damage, [*damage]);
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
        let survivors: Vec<FailingDisk> = (0..2)
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
