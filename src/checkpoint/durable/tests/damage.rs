//! Whatever happens to the file's bytes: no panic, no garbage, no silent loss.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

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
    for round in 0..200 {
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
    assert!(reported > 10, "only {reported} flips hit anything");
}

#[test]
fn a_truncated_or_torn_file_costs_at_most_a_reported_loss() {
    let bytes = filled().lock().bytes.clone();
    let mut random = StdRng::seed_from_u64(2);
    for round in 0..80 {
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
    disk.after_kill().lock().bytes.split_off(0)
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
        .step_by(3)
        // Leaves; the offsets in them follow the count of rows.
        .filter(|at| bytes[*at] == 1)
        .filter_map(|at| rebuilt(&bytes, |bytes| bytes[at + 4..at + 12].fill(0xff)))
        .collect();
    // Neither all before the page nor all behind it, but all other rows; one leaf is that of the tables.
    let others = results.iter().filter(|(_, saved)| *saved >= 118).count();
    assert!(others > 3 && others + 1 >= results.len(), "{results:?}");
}
