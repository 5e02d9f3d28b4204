//! Stopping at boundaries, within a grace, with a transfer slot; what cannot be stopped.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::error::Error;

/// Steps as long as the task's name says, in milliseconds.
fn as_long_as_named() -> Script {
    Script::new(|_, name, at| {
        Box::pin(async move {
            let millis = name.split('-').next().unwrap_or_default();
            tokio::time::sleep(ms(millis.parse().unwrap_or_default())).await;
            at.n += 1;
            Ok(Step::More)
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_boundary_and_seals_the_newest_state() {
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            tokio::time::sleep(ms(100)).await;
            at.n += 1;
            at.ballast = "x".repeat(10_000);
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.start("a");
    world.commit().await;
    tokio::time::sleep(ms(350)).await;
    world.stop("a", Duration::from_secs(5));
    let (sealed, dropped) = world.sealed().await;
    let (header, state) = sealed.unwrap();
    assert!(!dropped);
    assert_eq!(header.position.seq, 5, "though the throttle let none out");
    assert_eq!(count(&state).n, 5);
    assert!(world.clock.0.elapsed() < ms(510));
}

#[tokio::test(start_paused = true)]
async fn a_hung_step_is_dropped_after_the_grace_and_the_state_before_it_is_sealed() {
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            at.n += 1;
            if at.n == 4 {
                std::future::pending::<()>().await;
            }
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.start("a");
    world.commit().await;
    tokio::time::sleep(ms(10)).await;
    world.stop("a", ms(500));
    let (sealed, dropped) = world.sealed().await;
    let (header, state) = sealed.unwrap();
    assert!(dropped);
    assert_eq!((header.position.seq, count(&state).n), (3, 3));
    assert!((ms(510)..ms(520)).contains(&world.clock.0.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn the_earlier_of_two_deadlines_counts() {
    let mut world = World::new(as_long_as_named());
    world.start("60000");
    tokio::time::sleep(ms(1)).await;
    world.stop("60000", Duration::from_secs(10));
    world.stop("60000", ms(100));
    world.stop("60000", Duration::from_secs(20));
    assert!(world.sealed().await.1);
    assert!(world.clock.0.elapsed() < ms(150));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_or_backs_off_stops_at_once() {
    let script = Script::new(|_, name, at| {
        Box::pin(async move {
            if name == "backs off" {
                return Err(Error::retry("away"));
            }
            at.n += 1;
            Ok(Step::Wait(Duration::from_secs(3600)))
        })
    });
    let mut world = World::new(script);
    for name in ["waits", "backs off"] {
        world.start(name);
        tokio::time::sleep(ms(10)).await;
        let asked = Instant::now();
        world.stop(name, Duration::from_secs(60));
        assert!(!world.sealed().await.1);
        assert!(asked.elapsed() < ms(5));
    }
}

/// In its second step a closure waits for a word; the runner stands as soon as it does.
async fn in_a_closure() -> (World, std::sync::mpsc::Sender<()>) {
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let script = Script::new(move |cx, _, at| {
        let (gate, begun) = (gate.clone(), begun.clone());
        Box::pin(async move {
            at.n += 1;
            if at.n == 2 {
                let stuck = move || {
                    begun.send(()).unwrap();
                    gate.lock().unwrap().recv().unwrap();
                };
                cx.blocking(stuck).await?;
            }
            Ok(Step::More)
        })
    });
    let mut world = World::with(script, |config| config.closure_grace = ms(50));
    world.start("a");
    world.commit().await;
    has_begun.recv().await.unwrap();
    (world, release)
}

#[tokio::test]
async fn a_closure_that_does_not_return_is_unstoppable_until_it_does() {
    let (mut world, release) = in_a_closure().await;
    world.stop("a", ms(50));
    assert!(matches!(world.next().await, Event::Unstoppable { .. }));
    assert_eq!(world.runner.running(), 1);
    world.quiet(ms(300)).await;
    release.send(()).unwrap();
    let (sealed, dropped) = world.sealed().await;
    assert!(dropped);
    assert_eq!(sealed.unwrap().0.position.seq, 1);
    assert_eq!(world.runner.running(), 0);
}

/// Rule 15, where the user's runtime is lost: what still runs has not stopped, and nobody is told that it has.
#[tokio::test]
async fn a_closure_that_outlives_its_runtime_has_not_stopped_until_it_returns() {
    let (mut world, release) = in_a_closure().await;
    world.runner.bury();
    assert!(matches!(world.next().await, Event::Unstoppable { .. }));
    world.quiet(ms(300)).await;
    release.send(()).unwrap();
    let (sealed, dropped) = world.sealed().await;
    assert!(sealed.is_none() && dropped);
}

#[tokio::test]
async fn a_failed_steps_closure_returns_before_the_step_is_repeated() {
    let busy = Arc::new(AtomicBool::new(false));
    let script = Script::new(move |cx, _, _| {
        let busy = busy.clone();
        Box::pin(async move {
            if busy.load(Ordering::SeqCst) {
                return Err(Error::fatal("the closure of the attempt before still runs"));
            }
            if cx.attempt() == 3 {
                return Ok(Step::Done(3));
            }
            drop(cx.blocking(move || {
                busy.store(true, Ordering::SeqCst);
                std::thread::sleep(ms(150));
                busy.store(false, Ordering::SeqCst);
            }));
            tokio::time::sleep(ms(50)).await;
            Err(Error::retry("away"))
        })
    });
    let mut script = script;
    script.retry = Retry::default().delays(ms(1), ms(1));
    let mut world = World::new(script);
    world.start("a");
    assert!(matches!(world.outcome().await, Outcome::Done(_)));
}

#[tokio::test(start_paused = true)]
async fn a_spawned_future_is_dropped_with_its_step() {
    struct Guard(Log<&'static str>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.push("dropped");
        }
    }
    let seen = Log::new();
    let script = {
        let seen = seen.clone();
        Script::new(move |cx, _, _| {
            let guard = Guard(seen.clone());
            let spawned = cx.spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
            Box::pin(async move {
                spawned.await?;
                Ok(Step::More)
            })
        })
    };
    let mut world = World::new(script);
    world.start("a");
    tokio::time::sleep(ms(10)).await;
    assert_eq!(seen.len(), 0);
    world.stop("a", ms(10));
    assert!(world.sealed().await.1);
    assert_eq!(seen.all(), ["dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_is_over_when_what_it_spawned_has_returned() {
    let seen = Log::new();
    let script = {
        let seen = seen.clone();
        Script::new(move |cx, _, at| {
            let seen = seen.clone();
            Box::pin(async move {
                at.n += 1;
                seen.push(format!("step {}", at.n));
                let late = seen.clone();
                drop(cx.spawn(async move {
                    tokio::time::sleep(ms(50)).await;
                    late.push("late".into());
                }));
                Ok(if at.n == 2 { Step::Done(2) } else { Step::More })
            })
        })
    };
    let mut world = World::new(script);
    world.start("a");
    world.outcome().await;
    assert_eq!(seen.all(), ["step 1", "late", "step 2", "late"]);
}

#[tokio::test]
async fn work_that_panics_is_an_error_of_its_step() {
    let script = Script::new(|cx, _, _| {
        Box::pin(async move {
            let blocking = cx.blocking(|| panic!("in a closure")).await;
            let spawned = cx.spawn(async { panic!("in a future") }).await;
            let texts: [Result<()>; 2] = [blocking, spawned];
            let texts = texts.map(|result| result.unwrap_err().to_string());
            assert_eq!(texts[0], "tracked work panicked: in a closure");
            assert_eq!(texts[1], "tracked work panicked: in a future");
            assert_eq!(cx.blocking(|| 7).await?, 7);
            Ok(Step::Done(0))
        })
    });
    let mut world = World::new(script);
    world.start("a");
    assert!(matches!(world.outcome().await, Outcome::Done(_)));
}

#[tokio::test(start_paused = true)]
async fn slots_bound_how_many_tasks_have_stopped_at_once() {
    let mut world = World::with(as_long_as_named(), |config| config.slots = 2);
    let names: Vec<String> = (0..5).map(|number| format!("10-{number}")).collect();
    for name in &names {
        world.start(name);
    }
    tokio::time::sleep(ms(55)).await;
    for name in &names {
        world.runner.stop(&self::name(name), Stop::WithSlot);
    }
    let stopped = async |world: &mut World| match world.last().await {
        Event::Stopped { name, .. } => name,
        other => panic!("{other:?}"),
    };
    let mut held = vec![stopped(&mut world).await, stopped(&mut world).await];
    for _ in 0..3 {
        let quiet = tokio::time::timeout(ms(500), stopped(&mut world)).await;
        assert!(quiet.is_err(), "both slots are taken");
        world.runner.free_slot(&held.remove(0));
        held.push(stopped(&mut world).await);
    }
    assert_eq!(world.runner.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_with_long_steps_waits_for_its_slot_while_one_with_short_steps_goes_on() {
    let steps = Log::new();
    let script = {
        let steps = steps.clone();
        Script::new(move |_, name, at| {
            let steps = steps.clone();
            Box::pin(async move {
                let millis = if name == "long" { 150 } else { 10 };
                tokio::time::sleep(ms(millis)).await;
                at.n += 1;
                steps.push(name.clone());
                Ok(Step::More)
            })
        })
    };
    let mut world = World::with(script, |config| config.slots = 1);
    let made = |name: &str| steps.all().iter().filter(|step| *step == name).count();
    world.start("first");
    world.start("long");
    world.start("short");
    tokio::time::sleep(ms(5)).await;
    world.runner.stop(&name("first"), Stop::WithSlot);
    world.sealed().await;
    for waits in ["long", "short"] {
        world.runner.stop(&name(waits), Stop::WithSlot);
    }
    tokio::time::sleep(ms(1_005)).await;
    assert_eq!(made("long"), 1, "it stands at the boundary");
    assert!(made("short") > 90, "it goes on: {}", made("short"));
    world.runner.free_slot(&name("first"));
    let first = world.last().await;
    assert!(matches!(&first, Event::Stopped { name, .. } if name.as_str() == "long"));
    world.runner.free_slot(&name("long"));
    let (sealed, _) = world.sealed().await;
    assert_eq!(sealed.unwrap().0.position.seq as usize, made("short"));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_needs_a_slot_but_does_not_step_again() {
    let script = Script::new(|_, name, at| {
        Box::pin(async move {
            at.n += 1;
            tokio::time::sleep(ms(1)).await;
            Ok(if name == "waits" { Step::Wait(ms(500)) } else { Step::More })
        })
    });
    let mut world = World::with(script, |config| config.slots = 1);
    world.start("first");
    world.start("waits");
    tokio::time::sleep(ms(20)).await;
    world.runner.stop(&name("first"), Stop::WithSlot);
    world.sealed().await;
    world.runner.stop(&name("waits"), Stop::WithSlot);
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.runner.free_slot(&name("first"));
    assert_eq!(world.sealed().await.0.unwrap().0.position.seq, 1);
}

#[tokio::test(start_paused = true)]
async fn a_boundary_overrides_a_slot() {
    let mut world = World::with(as_long_as_named(), |config| config.slots = 1);
    world.start("10");
    world.start("150");
    tokio::time::sleep(ms(5)).await;
    world.runner.stop(&name("10"), Stop::WithSlot);
    world.sealed().await;
    world.runner.stop(&name("150"), Stop::WithSlot);
    tokio::time::sleep(ms(500)).await;
    world.stop("150", Duration::from_secs(5));
    world.runner.stop(&name("150"), Stop::WithSlot);
    assert!(!world.sealed().await.1);
    assert!(world.clock.0.elapsed() < ms(520));
}

#[tokio::test(start_paused = true)]
async fn steps_that_end_early_while_they_wait_for_a_slot_do_not_spin() {
    let steps = Log::new();
    let script = {
        let steps = steps.clone();
        Script::new(move |cx, name, _| {
            if name == "spins" && cx.draining() {
                steps.push(());
            }
            let millis = if name == "spins" { 0 } else { 10 };
            Box::pin(async move {
                tokio::time::sleep(ms(millis)).await;
                Ok(Step::More)
            })
        })
    };
    let mut world = World::with(script, |config| config.slots = 1);
    world.start("first");
    tokio::time::sleep(ms(5)).await;
    world.runner.stop(&name("first"), Stop::WithSlot);
    world.sealed().await;
    world.runner.draining(Some(world.clock.boot() + ms(10_000)));
    world.start("spins");
    world.runner.stop(&name("spins"), Stop::WithSlot);
    tokio::time::sleep(ms(1_000)).await;
    assert!(steps.len() <= 1_100, "{}", steps.len());
    assert!(steps.len() >= 300, "{}", steps.len());
}

/// Rule 15: whoever hears of an end may start the task again elsewhere.
#[tokio::test]
async fn an_end_is_told_only_when_the_last_closure_has_returned() {
    for fails in [false, true] {
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let script = Script::new(move |cx, _, _| {
            let gate = gate.clone();
            Box::pin(async move {
                let stuck = move || gate.lock().unwrap().recv().unwrap();
                // The step does not wait for it.
                let closure = cx.blocking(stuck);
                assert!(tokio::time::timeout(ms(20), closure).await.is_err());
                if fails { Err(Error::fatal("no")) } else { Ok(Step::Done(1)) }
            })
        });
        let mut world =
            World::with(script, |config| config.closure_grace = Duration::from_secs(60));
        world.start("a");
        world.quiet(ms(300)).await;
        release.send(()).unwrap();
        assert_eq!(matches!(world.outcome().await, Outcome::Failed(_)), fails);
    }
}
