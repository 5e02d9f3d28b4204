//! Failures, panics, retries, waits, what a step is told, limits.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::error::Error;
use crate::task::kinds::RegisterError;

/// Fails as `fail` says in the attempts it says, after having changed the state.
fn failing(times: usize, fail: impl Fn() -> Error + Send + Sync + Clone + 'static) -> Script {
    let attempts = Arc::new(AtomicUsize::new(0));
    Script::new(move |_, _, at| {
        let (attempts, fail) = (attempts.clone(), fail.clone());
        Box::pin(async move {
            at.n += 1;
            if at.n == 3 && attempts.fetch_add(1, Ordering::SeqCst) < times {
                at.n = 1_000;
                return Err(fail());
            }
            Ok(if at.n == 5 { Step::Done(at.n) } else { Step::More })
        })
    })
}

fn failed(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed(text) => text,
        done => panic!("{done:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_leaves_no_trace_in_the_state() {
    let mut world = World::new(failing(4, || Error::retry("away")));
    world.start("a");
    assert!(matches!(world.outcome().await, Outcome::Done(_)));
}

#[tokio::test(start_paused = true)]
async fn a_fatal_error_ends_the_task_at_once() {
    let mut world = World::new(failing(1, || Error::fatal("no such customer")));
    world.start("a");
    assert_eq!(failed(world.outcome().await), "no such customer");
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_ends_the_task_with_its_last_error() {
    let started = Instant::now();
    let mut world = World::new(failing(usize::MAX, || Error::retry("away")));
    world.start("a");
    assert_eq!(failed(world.outcome().await), "gave up after attempt 10: away");
    // Nine delays: 100 ms doubled eight times, each cut by up to a half.
    let full = ms(100 * 511);
    let taken = started.elapsed();
    assert!(taken <= full + ms(20), "{taken:?}");
    assert!(taken >= full / 2, "{taken:?}");
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_for_the_next_attempt_is_told_and_its_end_before_the_step() {
    let mut world = World::new(failing(9, || Error::retry("away")));
    world.start("a");
    let mut told = Vec::new();
    loop {
        match world.next().await {
            Event::Resting { resting, epoch, .. } => {
                assert_eq!(epoch, Epoch(1));
                told.push(resting);
            }
            Event::Ended { outcome, .. } => break assert!(matches!(outcome, Outcome::Done(_))),
            _ => {}
        }
    }
    // The delays of 1.6 s and more are at least half of that: some five of nine are long enough.
    assert!((6..=12).contains(&told.len()), "{told:?}");
    assert!(told.chunks(2).all(|pair| pair == [true, false]), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_in_a_row_and_shown_to_the_step() {
    let seen = Log::new();
    let mut script = {
        let seen = seen.clone();
        Script::new(move |cx, _, at| {
            let seen = seen.clone();
            Box::pin(async move {
                seen.push((at.n, cx.attempt()));
                if cx.attempt() < 3 {
                    return Err(Error::retry("not yet"));
                }
                at.n += 1;
                Ok(if at.n == 2 { Step::Done(2) } else { Step::More })
            })
        })
    };
    script.retry = Retry::default().attempts(3);
    let mut world = World::new(script);
    world.start("a");
    assert!(matches!(world.outcome().await, Outcome::Done(_)));
    assert_eq!(
        seen.all(),
        [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)],
        "each success starts the budget afresh"
    );
}

#[tokio::test(start_paused = true)]
async fn a_step_that_keeps_failing_spends_its_budget_although_earlier_steps_are_repeated() {
    // States over the limit of what is kept after every step: the first failure falls back to the
    // first commit, and the steps in between go well again.
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            at.ballast = "x".repeat(10_000);
            at.n += 1;
            if at.n == 8 {
                return Err(Error::retry("poison"));
            }
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.start("a");
    assert_eq!(failed(world.outcome().await), "gave up after attempt 10: poison");
}

#[tokio::test(start_paused = true)]
async fn large_states_fall_back_to_the_last_commit_once_and_then_step_by_step() {
    let seen = Log::new();
    let script = {
        let seen = seen.clone();
        Script::new(move |cx, _, at| {
            let seen = seen.clone();
            Box::pin(async move {
                at.ballast = "x".repeat(10_000);
                at.n += 1;
                seen.push(at.n);
                let fails = [5, 7].contains(&at.n);
                if fails && seen.all().iter().filter(|n| **n == at.n).count() == 1 {
                    return Err(Error::retry("away"));
                }
                assert!(!fails || cx.attempt() == 2);
                Ok(if at.n == 9 { Step::Done(9) } else { Step::More })
            })
        })
    };
    let mut world = World::new(script);
    world.start("a");
    world.outcome().await;
    assert_eq!(
        seen.all(),
        [1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7, 7, 8, 9],
        "only the first failure repeats steps before it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failed_attempt_and_leaves_the_neighbour_alone() {
    let script = Script::new(|_, name, at| {
        Box::pin(async move {
            at.n += 1;
            assert!(name != "wild", "boom");
            tokio::time::sleep(ms(10)).await;
            Ok(if at.n == 100 { Step::Done(at.n) } else { Step::More })
        })
    });
    let mut world = World::with(script, |_| {});
    world.start("wild");
    world.start("calm");
    let mut ends = Vec::new();
    while ends.len() < 2 {
        if let Event::Ended { name, outcome, .. } = world.last().await {
            ends.push((name.to_string(), outcome));
        }
    }
    assert_eq!(ends[0].0, "calm");
    assert!(matches!(ends[0].1, Outcome::Done(_)));
    assert_eq!(ends[1].0, "wild");
    let text = failed(ends[1].1.clone());
    assert_eq!(text, "gave up after attempt 10: a step panicked: boom");
}

/// Panics where bytes are made and read.
#[derive(Default)]
struct Bomb;

impl Serialize for Bomb {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("no bytes")
    }
}

impl<'de> Deserialize<'de> for Bomb {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("no value")
    }
}

struct Bombs;

impl Task for Bombs {
    const KIND: &'static str = "bombs";
    type Args = String;
    type State = Bomb;
    type Output = ();

    async fn step(&self, _: &mut Cx, _: &String, _: &mut Bomb) -> Result<Step<()>> {
        Ok(Step::More)
    }

    fn retry(&self) -> Retry {
        Retry::default().attempts(2)
    }
}

#[tokio::test(start_paused = true)]
async fn panics_while_encoding_and_decoding_are_failed_attempts() {
    let mut world = World::new(Bombs);
    let task = spec(Bombs::KIND, "a");
    world.runner.start(task.clone(), lease(1), From::Initial, vec![], 0);
    assert_eq!(
        failed(world.outcome().await),
        "gave up after attempt 2: encoding panicked: no bytes"
    );

    let mut donor = World::new(Script::new(|_, _, _| Box::pin(async { Ok(Step::More) })));
    donor.start("a");
    let (header, state, _) = donor.commit().await;
    drop(donor);
    let from = From::Checkpoint { header, state };
    world.runner.start(task, lease(2), from, vec![], 1);
    assert_eq!(
        failed(world.outcome().await),
        "gave up after attempt 2: decoding panicked: no value"
    );
}

/// Panics when it is dropped.
#[derive(Default, Serialize, Deserialize)]
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_a_cut_step_is_dropped_costs_that_step_and_no_more() {
    let script = Script::new(|_, _, at| {
        Box::pin(async {
            at.n += 1;
            if at.n < 3 {
                return Ok(Step::More);
            }
            let _grenade = Grenade;
            std::future::pending().await
        })
    });
    let mut world = World::new(script);
    world.start("a");
    world.commit().await;
    tokio::time::sleep(ms(10)).await;
    world.stop("a", ms(10));
    let (sealed, dropped) = world.sealed().await;
    assert!(dropped);
    assert_eq!(sealed.unwrap().0.position.seq, 2);
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_the_state_of_a_task_that_is_done_is_dropped_takes_nothing_from_its_output() {
    struct Armed;
    impl Task for Armed {
        type Args = String;
        type State = Option<Grenade>;
        type Output = u64;
        const KIND: &'static str = "armed";
        async fn step(
            &self,
            _: &mut Cx,
            _: &String,
            at: &mut Option<Grenade>,
        ) -> Result<Step<u64>> {
            *at = Some(Grenade);
            Ok(Step::Done(7))
        }
    }
    let mut world = World::new(Armed);
    world.runner.start(spec(Armed::KIND, "a"), lease(1), From::Initial, vec![], 0);
    assert!(matches!(world.outcome().await, Outcome::Done(_)));
}

#[tokio::test(start_paused = true)]
async fn a_wait_passes_before_the_next_step_and_is_committed_meanwhile() {
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            at.n += 1;
            Ok(match at.n {
                1 => Step::More,
                2 => Step::Wait(Duration::from_secs(600)),
                _ => Step::Done(at.n),
            })
        })
    });
    let mut world = World::new(script);
    let started = Instant::now();
    world.start("a");
    assert_eq!(world.commit().await.0.position.seq, 1);
    assert_eq!(world.commit().await.0.position.seq, 2);
    assert!(
        (ms(1_000)..ms(1_010)).contains(&started.elapsed()),
        "as soon as the throttle allows: {:?}",
        started.elapsed()
    );
    world.outcome().await;
    assert!((ms(600_000)..ms(600_010)).contains(&started.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn a_step_is_told_of_the_drain_and_of_its_own_stop() {
    let seen = Log::new();
    let script = {
        let seen = seen.clone();
        Script::new(move |cx, _, _| {
            let seen = seen.clone();
            Box::pin(async move {
                seen.push((cx.draining(), cx.drain_deadline()));
                cx.stopping().cancelled().await;
                seen.push((cx.draining(), cx.drain_deadline()));
                Ok(Step::More)
            })
        })
    };
    let mut world = World::new(script);
    world.start("a");
    tokio::time::sleep(ms(10)).await;
    let deadline = world.clock.boot() + Duration::from_secs(25);
    world.runner.draining(Some(deadline));
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.stop("a", Duration::from_secs(1));
    assert!(!world.sealed().await.1);
    assert_eq!(seen.all(), [(false, None), (true, Some(Duration::from_secs(20)))]);
}

#[tokio::test(start_paused = true)]
async fn progress_is_readable_at_once_and_a_failed_steps_report_is_taken_back() {
    let script = Script::new(|cx, _, at| {
        Box::pin(async move {
            at.n += 1;
            cx.progress(at.n, 10);
            cx.note("é".repeat(200));
            tokio::time::sleep(ms(10)).await;
            if at.n == 2 {
                return Err(Error::retry("away"));
            }
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.start("a");
    tokio::time::sleep(ms(5)).await;
    let early = world.runner.progress(&name("a")).unwrap();
    assert_eq!((early.done, early.total), (1, 10));
    assert_eq!(early.note.len(), Cx::MAX_NOTE);
    tokio::time::sleep(ms(10)).await;
    assert_eq!(world.runner.progress(&name("a")).unwrap().done, 2);
    tokio::time::sleep(ms(10)).await;
    assert_eq!(world.runner.progress(&name("a")).unwrap().done, 1);
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_names_a_step_of_a_run_whoever_takes_it() {
    let keys = Log::new();
    let script = {
        let keys = keys.clone();
        Script::new(move |cx, _, at| {
            let keys = keys.clone();
            Box::pin(async move {
                keys.push((cx.idempotency_key("a"), cx.idempotency_key("b")));
                if cx.attempt() == 1 && at.n == 0 {
                    return Err(Error::retry("once more"));
                }
                at.n += 1;
                Ok(if at.n == 3 { Step::Done(3) } else { Step::More })
            })
        })
    };
    let mut world = World::new(script);
    world.start("x");
    let (header, state, _) = world.commit().await;
    world.outcome().await;
    world.resume(9, header, state);
    world.outcome().await;
    let mut other = spec(Script::KIND, "x");
    other.run.uuid = Uuid::from_u128(8);
    world.runner.start(other, lease(1), From::Initial, vec![], 0);
    world.outcome().await;

    let keys = keys.all();
    assert_eq!(keys[0], keys[1], "the same on every attempt");
    assert_eq!(keys[2], keys[4], "the same under another epoch");
    assert_ne!(keys[0].0, keys[0].1, "another for another label");
    assert_ne!(keys[1].0, keys[2].0, "another for another step");
    assert_ne!(keys[0].0, keys[6].0, "another for another run");
    assert_eq!(keys[0].0.len(), 32);
}

#[tokio::test(start_paused = true)]
async fn a_state_over_its_limit_parks_the_task_with_its_last_state_and_advice() {
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            if at.n == 3 {
                at.ballast = "x".repeat(64 << 20);
            }
            at.n += 1;
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.start("a");
    let (sealed, text) = world.unkeepable().await;
    assert!(text.contains("over the limit of 67108864 bytes: keep bulk data"), "{text}");
    let (header, state) = sealed.unwrap();
    assert_eq!((header.position.seq, count(&state).n), (3, 3));
}

struct Verbose;

impl Task for Verbose {
    const KIND: &'static str = "verbose";
    type Args = String;
    type State = ();
    type Output = String;

    async fn step(&self, _: &mut Cx, _: &String, (): &mut ()) -> Result<Step<String>> {
        Ok(Step::Done("x".repeat(64 << 10)))
    }
}

#[tokio::test(start_paused = true)]
async fn an_output_over_its_limit_parks_the_task_with_advice() {
    let mut world = World::new(Verbose);
    world.runner.start(spec("verbose", "a"), lease(1), From::Initial, vec![], 0);
    let (_, text) = world.unkeepable().await;
    assert!(text.contains("over the limit of 65536 bytes: store the result"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn kinds_are_checked_when_they_are_registered() {
    struct Backwards;
    impl Task for Backwards {
        const KIND: &'static str = "backwards";
        const STATE_VERSION: u32 = 1;
        const OLDEST_STATE_VERSION: u32 = 2;
        type Args = ();
        type State = ();
        type Output = ();
        async fn step(&self, _: &mut Cx, (): &(), (): &mut ()) -> Result<Step<()>> {
            Ok(Step::Done(()))
        }
    }
    let mut kinds = Kinds::new(Limits::default());
    kinds.register(Verbose).unwrap();
    assert!(matches!(kinds.register(Verbose), Err(RegisterError::Duplicate(_))));
    assert!(matches!(kinds.register(Backwards), Err(RegisterError::Versions { .. })));
    let verbose = Kind::new(Verbose::KIND).unwrap();
    assert_eq!(kinds.versions().keys().collect::<Vec<_>>(), [&verbose]);
    assert!(kinds.limits_by_kind().is_empty());
    let mut script = Script::new(|_, _, _| Box::pin(std::future::pending()));
    script.max_running = Some(2);
    kinds.register(script).unwrap();
    assert_eq!(kinds.limits_by_kind().into_values().collect::<Vec<_>>(), [2]);
    let error = kinds.encode_args(&"x".repeat(5_000)).unwrap_err();
    assert!(error.to_string().contains("pass its address"));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_runs_is_not_started_twice() {
    let begun = Log::new();
    let script = {
        let begun = begun.clone();
        Script::new(move |cx, _, _| {
            begun.push(cx.fence().epoch);
            Box::pin(std::future::pending())
        })
    };
    let mut world = World::new(script);
    world.start("a");
    tokio::time::sleep(ms(1)).await;
    let again = spec(Script::KIND, "a");
    world.runner.start(again, lease(2), From::Initial, vec![], 0);
    tokio::time::sleep(ms(1)).await;
    assert_eq!(begun.all(), [Epoch(1)]);
    assert_eq!(world.runner.running(), 1);
}

impl std::io::Write for Log<u8> {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_longer_than_the_drain_budget_is_warned_about_once_while_it_runs() {
    let written = Log::new();
    let writer = written.clone();
    let subscriber =
        tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let _every_place = crate::test_log::every_place_is_heard();
    let _guard = tracing::subscriber::set_default(subscriber);
    let warnings = || {
        let text = String::from_utf8(written.all()).unwrap();
        let about = |line: &&str| line.contains("longer than the drain budget");
        text.lines().filter(about).map(String::from).collect::<Vec<_>>()
    };
    let script = Script::new(|_, _, _| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.start("slow");
    tokio::time::sleep(Duration::from_secs(24)).await;
    assert!(warnings().is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(warnings().len(), 1);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(warnings().len(), 1);
    let warning = warnings().remove(0);
    for part in ["WARN", "handover::task", "name=slow", "kind=script", "epoch=1"] {
        assert!(warning.contains(part), "{warning}");
    }
}
