//! Real processes, signals and sockets. The ledger is the oracle: it should be `seq 1 N`, so every
//! line lost and every line repeated shows.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, unreachable_pub, reason = "other tests use the rest of it")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use self::support::ledger::Ledger;
use self::support::meter::{Cause, Step};
use self::support::protocol::{Command, Event};
use self::support::{Cluster, Setup, bounded};

const THREE: [&str; 3] = ["n1", "n2", "n3"];

/// A silence floor below which a process can be held in a test.
const FLOOR: Duration = Duration::from_millis(2500);

/// How many steps lie between two forced checkpoints, where they are forced.
const FORCED: u64 = 10;

fn ledger(cluster: &Cluster, name: &str) -> Ledger {
    cluster.ledger(name, 300, 10)
}

fn forced(cluster: &Cluster, name: &str) -> Ledger {
    Ledger { force_every: FORCED, ..ledger(cluster, name) }
}

#[tokio::test]
async fn sigterm_moves_every_task_without_losing_or_repeating_a_line() {
    bounded(async {
        let mut cluster = Cluster::of(&THREE, Setup::default()).await;
        cluster.run_alike(12, ledger).await;
        cluster.written(20).await;
        let moved = cluster.must_run_on("n2", "n1").await;
        let stopped = cluster.stop("n1").await;
        assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
        assert!(stopped.after < Duration::from_secs(10), "{stopped:?}");
        cluster.finish("n2").await;
        cluster.assert_exact();
        let measured = cluster.measure();
        assert_eq!(measured.caused_by(Cause::Sigterm).count(), moved);
        assert_eq!(measured.units_done, measured.units_needed);
        assert!(measured.moves_per_task().values().all(|moves| *moves == 1));
    })
    .await;
}

#[tokio::test]
async fn sigint_is_as_good_as_sigterm() {
    bounded(async {
        let mut cluster = Cluster::of(&["n1", "n2"], Setup::default()).await;
        cluster.run_alike(6, ledger).await;
        cluster.written(20).await;
        let signalled = cluster.signal("n1", Signal::INT);
        let stopped = cluster.stopped("n1", signalled).await;
        assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
        cluster.finish("n2").await;
        cluster.assert_exact();
        cluster.measure();
    })
    .await;
}

#[tokio::test]
async fn after_sigkill_every_task_goes_on_from_its_last_checkpoint() {
    bounded(async {
        let mut cluster = Cluster::of(&THREE, Setup::default()).await;
        cluster.run_alike(12, forced).await;
        cluster.written(35).await;
        let orphans = cluster.must_run_on("n2", "n1").await;
        cluster.kill("n1").await;
        cluster.finish("n2").await;
        // Up to FORCED steps after the checkpoint, and one more that was under way.
        cluster.assert_complete(FORCED + 1);
        let measured = cluster.measure();
        let moves: Vec<_> = measured.caused_by(Cause::Sigkill).collect();
        assert_eq!(moves.len(), orphans);
        for moved in moves {
            assert!(moved.redone <= FORCED + 1, "{moved:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_rolling_restart_of_all_nodes_leaves_every_ledger_exact() {
    bounded(async {
        let mut cluster = Cluster::of(&THREE, Setup::default()).await;
        cluster.run_alike(9, |cluster, name| cluster.ledger(name, 1200, 10)).await;
        cluster.written(20).await;
        for id in THREE {
            let stopped = cluster.stop(id).await;
            assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
            cluster.start(id).await;
        }
        cluster.finish("n1").await;
        cluster.assert_exact();
        let measured = cluster.measure();
        assert!(measured.moves.len() >= 9, "every task had to leave once");
    })
    .await;
}

#[tokio::test]
async fn a_drain_without_any_time_loses_nothing() {
    bounded(async {
        let setup = Setup { budget: Some(Duration::ZERO), ..Setup::default() };
        let mut cluster = Cluster::of(&THREE, setup).await;
        cluster.run_alike(12, forced).await;
        cluster.written(35).await;
        let stopped = cluster.stop("n1").await;
        assert!(stopped.after < Duration::from_secs(5), "{stopped:?}");
        cluster.finish("n2").await;
        cluster.assert_complete(FORCED + 1);
        cluster.measure();
    })
    .await;
}

/// 5 s are enough to be safe, whatever the steps: what is lost is the step under way.
#[tokio::test]
async fn a_drain_of_5_s_ends_in_time_and_costs_steps_that_take_longer_once_more_and_nothing_else() {
    bounded(async {
        let budget = Duration::from_secs(5);
        let setup = Setup { budget: Some(budget), ..Setup::default() };
        let mut cluster = Cluster::of(&["n1", "n2"], setup).await;
        let slow = |cluster: &Cluster, name: &str| cluster.ledger(name, 2, 12_000);
        cluster.run_alike(4, slow).await;
        // All are in their second step.
        cluster.written(2).await;
        let cut_off = cluster.must_run_on("n2", "n1").await;
        let stopped = cluster.stop("n1").await;
        assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
        // What the budget does not cover is bounded, too.
        assert!(stopped.after >= budget, "{stopped:?}");
        assert!(stopped.after < budget + Duration::from_secs(4), "{stopped:?}");
        assert_eq!(stopped.reported("released"), cut_off as u64, "{stopped:?}");
        cluster.finish("n2").await;
        assert_eq!(cluster.assert_complete(1), cut_off);
        cluster.measure();
    })
    .await;
}

#[tokio::test]
async fn a_second_signal_ends_the_waiting_for_steps() {
    bounded(async {
        let setup = Setup {
            stop_grace: Some(Duration::from_secs(20)),
            budget: Some(Duration::from_secs(30)),
            ..Setup::default()
        };
        let mut cluster = Cluster::of(&["n1", "n2"], setup).await;
        let slow = |cluster: &Cluster, name: &str| cluster.ledger(name, 3, 6000);
        cluster.run_alike(4, slow).await;
        cluster.written(1).await;
        cluster.must_run_on("n2", "n1").await;
        cluster.signal("n1", Signal::TERM);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let second = cluster.signal("n1", Signal::TERM);
        let stopped = cluster.stopped("n1", second).await;
        assert_eq!(stopped.status.code(), Some(143), "{stopped:?}");
        assert!(stopped.after < Duration::from_secs(2), "{stopped:?}");
        cluster.finish("n2").await;
        // Each dropped step is done again, and nothing else.
        cluster.assert_complete(1);
        cluster.measure();
    })
    .await;
}

#[tokio::test]
async fn a_signal_that_arrives_twice_at_once_is_one_signal() {
    bounded(async {
        let mut cluster = Cluster::of(&["n1", "n2"], Setup::default()).await;
        let slow = |cluster: &Cluster, name: &str| cluster.ledger(name, 8, 700);
        cluster.run_alike(4, slow).await;
        cluster.written(1).await;
        let signalled = cluster.signal("n1", Signal::TERM);
        cluster.signal("n1", Signal::TERM);
        let stopped = cluster.stopped("n1", signalled).await;
        assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
        cluster.finish("n2").await;
        cluster.assert_exact();
        cluster.measure();
    })
    .await;
}

#[tokio::test]
async fn the_last_node_keeps_its_tasks_on_disk_and_goes_on_with_them_when_it_is_back() {
    bounded(async {
        let setup = Setup { durable: true, ..Setup::default() };
        let mut cluster = Cluster::of(&["n1"], setup).await;
        cluster.run_alike(4, ledger).await;
        cluster.written(30).await;
        let stopped = cluster.stop("n1").await;
        // No other node holds anything, but the disk does: nothing is abandoned.
        assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
        assert_eq!(stopped.reported("parked"), 4, "{stopped:?}");
        assert!(stopped.after < Duration::from_secs(5), "{stopped:?}");
        cluster.start("n1").await;
        cluster.finish("n1").await;
        cluster.assert_exact();
        cluster.measure();
    })
    .await;
}

/// What could not be written is not on the disk: whoever watches exit codes hears of it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_last_node_says_what_its_full_disk_has_not_taken() {
    bounded(async {
        let setup = Setup { durable: true, may_lack_room: true, ..Setup::default() };
        let mut cluster = Cluster::of(&["n1"], setup).await;
        cluster.run_alike(4, ledger).await;
        cluster.written(5).await;
        cluster.fill_disk("n1");
        cluster.written(15).await;
        let stopped = cluster.stop("n1").await;
        assert_eq!(stopped.status.code(), Some(75), "{stopped:?}");
        assert_eq!(stopped.reported("abandoned"), 4, "{stopped:?}");
        assert_eq!(stopped.reported("only_on_disk"), 0, "{stopped:?}");
        // There is room again: what the disk had is gone on from.
        cluster.start("n1").await;
        cluster.finish("n1").await;
        cluster.assert_complete(100);
    })
    .await;
}

#[tokio::test]
async fn the_last_node_without_a_disk_says_what_it_abandons() {
    bounded(async {
        let mut cluster = Cluster::of(&["n1"], Setup::default()).await;
        cluster.run_alike(4, ledger).await;
        cluster.written(30).await;
        let stopped = cluster.stop("n1").await;
        // Whoever watches exit codes should know.
        assert_eq!(stopped.status.code(), Some(75), "{stopped:?}");
        assert_eq!(stopped.reported("abandoned"), 4, "{stopped:?}");
        assert!(stopped.after < Duration::from_secs(5), "{stopped:?}");
        cluster.measure();
    })
    .await;
}

#[tokio::test]
async fn two_nodes_that_are_both_told_to_stop_lose_nothing() {
    bounded(async {
        let setup = Setup { durable: true, ..Setup::default() };
        let mut cluster = Cluster::of(&["n1", "n2"], setup).await;
        cluster.run_alike(8, ledger).await;
        cluster.written(30).await;
        let signalled = THREE[..2].iter().map(|id| cluster.signal(id, Signal::TERM));
        let signalled: Vec<u64> = signalled.collect();
        for (id, signalled) in ["n1", "n2"].into_iter().zip(signalled) {
            let stopped = cluster.stopped(id, signalled).await;
            // Both have a disk: what nobody takes stays on it.
            assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
            assert!(stopped.after < Duration::from_secs(20), "{stopped:?}");
        }
        cluster.start_all(&["n2", "n1"]).await;
        cluster.finish("n2").await;
        cluster.assert_exact();
        cluster.measure();
    })
    .await;
}

#[tokio::test]
async fn a_cluster_restarted_in_another_order_and_partly_stale_resumes_all_and_revives_nothing() {
    bounded(async {
        let setup = Setup { durable: true, ..Setup::default() };
        let mut cluster = Cluster::of(&THREE, setup).await;
        let mut ledgers = BTreeMap::new();
        for number in 0..4 {
            let short = format!("short{number}");
            let long = format!("long{number}");
            ledgers.insert(short.clone(), Ledger { last: 150, ..forced(&cluster, &short) });
            ledgers.insert(long.clone(), Ledger { last: 900, ..forced(&cluster, &long) });
        }
        cluster.run(ledgers).await;
        cluster.written(30).await;
        for id in THREE {
            cluster.kill(id).await;
        }
        // On this copy the short ledgers are not finished, and never will be.
        let stale = tempfile::tempdir().unwrap();
        copy(&cluster.data_dir("n2"), stale.path());

        cluster.start_all(&THREE).await;
        for number in 0..4 {
            let output = cluster.output("n1", &format!("short{number}")).await;
            assert_eq!(output, Ok(150));
        }
        for id in THREE {
            cluster.kill(id).await;
        }
        fs::remove_dir_all(cluster.data_dir("n2")).unwrap();
        copy(stale.path(), &cluster.data_dir("n2"));
        let before: BTreeSet<_> = owners(&cluster);
        let finished: Vec<_> =
            (0..4).map(|number| cluster.lines(&format!("short{number}"))).collect();

        cluster.start_all(&["n2", "n3", "n1"]).await;
        cluster.finish("n3").await;
        for (number, lines) in finished.into_iter().enumerate() {
            let name = format!("short{number}");
            assert_eq!(cluster.lines(&name), lines, "{name} was revived");
        }
        // Two crashes of the whole cluster, FORCED steps and one under way for each.
        cluster.assert_complete(FORCED + 1);
        cluster.measure();
        let mut resumed: BTreeMap<String, usize> = BTreeMap::new();
        for (name, _, _) in owners(&cluster).difference(&before) {
            *resumed.entry(name.clone()).or_default() += 1;
        }
        assert_eq!(resumed.len(), 4, "{resumed:?}");
        assert!(resumed.values().all(|times| *times == 1), "{resumed:?}");
    })
    .await;
}

/// Who ran what under which epoch.
fn owners(cluster: &Cluster) -> BTreeSet<(String, String, u64)> {
    let steps = cluster.steps().into_iter();
    steps.map(|step| (step.name, step.node, step.epoch)).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn one_name_started_on_all_nodes_at_once_runs_once() {
    bounded(async {
        let mut cluster = Cluster::of(&THREE, Setup::default()).await;
        for number in 0..20 {
            let name = format!("l{number:02}");
            let ledger = cluster.ledger(&name, 20, 2);
            let runs = cluster.run_everywhere(&name, ledger).await;
            assert!(runs.iter().all(|run| *run == runs[0]), "{name}: {runs:?}");
        }
        cluster.finish("n3").await;
        cluster.assert_exact();
        let measured = cluster.measure();
        // An owner that meets a rival's claim may go on under a higher epoch, but only where it is.
        assert!(measured.moves.is_empty(), "{:?}", measured.moves);
    })
    .await;
}

#[tokio::test]
async fn a_node_that_drains_for_longer_than_the_silence_floor_is_never_taken_for_dead() {
    bounded(async {
        let setup = Setup {
            stop_grace: Some(Duration::from_secs(20)),
            budget: Some(Duration::from_secs(20)),
            silence_floor: Some(FLOOR),
            ..Setup::default()
        };
        let mut cluster = Cluster::of(&THREE, setup).await;
        let slow = |cluster: &Cluster, name: &str| cluster.ledger(name, 2, 7000);
        cluster.run_alike(6, slow).await;
        cluster.written(1).await;
        cluster.must_run_on("n2", "n1").await;
        let signalled = cluster.signal("n1", Signal::TERM);
        // The steps end after about 7 s.
        let stopped = cluster.stopped("n1", signalled).await;
        assert!(stopped.after > FLOOR + FLOOR / 2, "{stopped:?}");
        assert_eq!(stopped.status.code(), Some(0), "{stopped:?}");
        for witness in ["n2", "n3"] {
            for event in cluster.heard(witness) {
                if let Event::Noticed { what } = event {
                    let gone = what.contains("PeerGone");
                    assert!(!gone || what.contains("Left"), "{witness}: {what}");
                }
            }
        }
        cluster.finish("n2").await;
        cluster.assert_exact();
        let measured = cluster.measure();
        assert!(measured.moves.iter().all(|moved| !moved.unprompted));
    })
    .await;
}

#[tokio::test]
async fn pause_resume_and_cancel_work_by_name_from_any_node() {
    bounded(async {
        let mut cluster = Cluster::of(&THREE, Setup::default()).await;
        let paused = cluster.ledger("paused", 200, 5);
        let cancelled = cluster.ledger("cancelled", 100_000, 5);
        cluster.run_on("n1", "paused", paused).await;
        cluster.run_on("n1", "cancelled", cancelled).await;
        cluster.written(10).await;
        for (node, command) in [
            ("n2", Command::Pause { name: "paused".into() }),
            ("n3", Command::Cancel { name: "cancelled".into() }),
        ] {
            cluster.tell(node, &command).await;
            let noted = |event| matches!(event, Event::Noted { .. }).then_some(());
            cluster.hear(node, "that it was noted", noted).await;
        }
        assert!(cluster.output("n2", "cancelled").await.is_err());
        tokio::time::sleep(Duration::from_millis(500)).await;
        let standing = (cluster.lines("paused"), cluster.lines("cancelled"));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(standing, (cluster.lines("paused"), cluster.lines("cancelled")));

        let name = "paused".to_owned();
        cluster.tell("n3", &Command::Resume { name }).await;
        assert_eq!(cluster.output("n1", "paused").await, Ok(200));
        assert!(cluster.lines("paused").into_iter().eq(1..=200));
        cluster.measure();
    })
    .await;
}

#[tokio::test]
async fn a_process_that_stands_still_for_less_than_the_silence_floor_keeps_its_tasks() {
    bounded(async {
        let mut cluster = Cluster::of(&THREE, Setup::default()).await;
        cluster.run_alike(6, ledger).await;
        cluster.written(20).await;
        cluster.must_run_on("n2", "n1").await;
        cluster.signal("n1", Signal::STOP);
        // The silence floor is 10 s.
        tokio::time::sleep(Duration::from_millis(3200)).await;
        cluster.signal("n1", Signal::CONT);
        cluster.finish("n2").await;
        cluster.assert_exact();
        let measured = cluster.measure();
        assert!(measured.moves.is_empty(), "{:?}", measured.moves);
    })
    .await;
}

/// Stopped for longer than the floor, it cannot know that others have taken its tasks over. The step
/// under way ends, and until it learns of them a few more may begin; then it stops for good.
#[tokio::test]
async fn a_process_that_stands_still_for_longer_is_taken_over_and_yields_when_it_wakes() {
    bounded(async {
        let mut cluster =
            Cluster::of(&THREE, Setup { silence_floor: Some(FLOOR), ..Setup::default() }).await;
        let long = |cluster: &Cluster, name: &str| cluster.ledger(name, 800, 10);
        let alike =
            |cluster: &Cluster, name: &str| Ledger { force_every: FORCED, ..long(cluster, name) };
        cluster.run_alike(6, alike).await;
        cluster.written(35).await;
        cluster.must_run_on("n2", "n1").await;
        let stopped = cluster.signal("n1", Signal::STOP);
        let before: BTreeSet<_> =
            owners(&cluster).into_iter().filter(|(_, by, _)| by == "n1").collect();
        while cluster.runs_on("n2", "n1").await > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let woken = cluster.signal("n1", Signal::CONT);
        assert!(woken - stopped >= FLOOR.as_nanos() as u64 * 4 / 5, "not before the silence floor");
        let conflict = |event| match event {
            Event::Noticed { what } => what.contains("Conflict").then_some(()),
            _ => None,
        };
        cluster.hear("n1", "that it has met those who took over", conflict).await;
        cluster.finish("n2").await;

        let zombie = |step: &&Step| {
            step.start > woken
                && before.contains(&(step.name.clone(), step.node.clone(), step.epoch))
        };
        let steps = cluster.steps();
        let late: Vec<_> = steps.iter().filter(zombie).collect();
        let last = late.iter().map(|step| step.start - woken).max();
        assert!(last.unwrap_or(0) < 2_000_000_000, "it went on for {last:?} ns");
        // Nothing is missing; what is there twice was done after a checkpoint, or by the zombie.
        for number in 0..6 {
            let name = format!("l{number:02}");
            let lines = cluster.lines(&name);
            let by_zombie = late.iter().filter(|step| step.name == name).count();
            let twice = lines.len() - 800;
            assert!(twice <= FORCED as usize + 1 + by_zombie, "{name}: {twice} lines twice");
            let lines: BTreeSet<u64> = lines.into_iter().collect();
            assert!(lines.into_iter().eq(1..=800), "{name}");
        }
    })
    .await;
}
