//! What is committed when, under which header; permits; what is resumed.

use super::*;
use crate::core::branch::Position;

/// Steps of 10 ms; the state's ballast is as long as the name says.
fn stepping() -> Script {
    Script::new(|_, name, at| {
        Box::pin(async move {
            tokio::time::sleep(ms(10)).await;
            at.n += 1;
            at.ballast = "x".repeat(name.parse().unwrap_or_default());
            Ok(Step::More)
        })
    })
}

fn position(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch), seq }
}

#[tokio::test(start_paused = true)]
async fn the_first_step_is_committed_at_once_and_then_one_an_interval() {
    let mut world = World::new(stepping());
    world.start("100");
    let mut times = Vec::new();
    for _ in 0..4 {
        let (header, state, forced) = world.commit().await;
        times.push(world.clock.0.elapsed());
        assert_eq!(header.position.seq, count(&state).n);
        assert_eq!(header.len, state.len() as u64);
        assert_eq!(header.hash, xxhash_rust::xxh3::xxh3_128(&state));
        assert!(!forced);
    }
    assert!(times[0] < ms(15), "{times:?}");
    for pair in times.windows(2) {
        let apart = pair[1] - pair[0];
        assert!((ms(1_000)..ms(1_020)).contains(&apart), "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_of_several_mebibytes_is_committed_as_much_more_rarely() {
    let mut world = World::new(stepping());
    world.start("3000000");
    world.commit().await;
    let first = world.clock.0.elapsed();
    world.commit().await;
    let apart = world.clock.0.elapsed() - first;
    assert!((ms(3_000)..ms(3_020)).contains(&apart), "{apart:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_room_among_the_events_takes_no_further_step() {
    let mut world = World::with(stepping(), |config| {
        config.throttle.interval = Duration::ZERO;
    });
    world.start("a");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.events.len(), 64);
    for seq in 1..=64 {
        assert_eq!(world.commit().await.0.position.seq, seq);
    }
    assert_eq!(world.commit().await.0.position.seq, 65, "none was dropped");
}

#[tokio::test(start_paused = true)]
async fn commit_all_commits_at_the_next_boundary_whatever_the_throttle_says() {
    let mut world = World::new(stepping());
    world.start("9000");
    world.commit().await;
    tokio::time::sleep(ms(105)).await;
    world.runner.commit_all();
    let (header, state, _) = world.commit().await;
    assert_eq!(header.position.seq, 12);
    assert_eq!(count(&state).n, 12);
    assert!(world.clock.0.elapsed() < ms(125));
}

#[tokio::test(start_paused = true)]
async fn commit_all_commits_what_a_task_in_a_long_step_has_kept() {
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            at.n += 1;
            if at.n == 3 {
                std::future::pending::<()>().await;
            }
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.start("a");
    assert_eq!(world.commit().await.0.position.seq, 1);
    tokio::time::sleep(ms(10)).await;
    world.runner.commit_all();
    assert_eq!(world.commit().await.0.position.seq, 2);
    assert!(world.clock.0.elapsed() < ms(20));
    world.quiet(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_state_before_a_long_step_is_committed_when_it_is_due() {
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            at.n += 1;
            if at.n == 3 {
                std::future::pending::<()>().await;
            }
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.start("a");
    assert_eq!(world.commit().await.0.position.seq, 1);
    assert_eq!(world.commit().await.0.position.seq, 2);
    assert!((ms(1_000)..ms(1_010)).contains(&world.clock.0.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn a_forced_checkpoint_holds_the_next_step_until_a_replica_has_it() {
    let steps = Log::new();
    let script = {
        let steps = steps.clone();
        Script::new(move |cx, _, at| {
            let steps = steps.clone();
            Box::pin(async move {
                at.n += 1;
                steps.push(at.n);
                tokio::time::sleep(ms(1)).await;
                if at.n == 2 || at.n == 4 {
                    cx.checkpoint_now();
                }
                Ok(Step::More)
            })
        })
    };
    let mut world = World::new(script);
    world.start("a");
    assert!(!world.commit().await.2);
    let (header, _, forced) = world.commit().await;
    assert!(forced);
    assert_eq!(header.position, position(1, 2));
    world.quiet(Duration::from_secs(60)).await;
    world.runner.replicated(&name("a"), position(1, 1), 1, 1);
    world.runner.replicated(&name("a"), position(1, 2), 0, 1);
    world.quiet(Duration::from_secs(60)).await;
    assert_eq!(steps.all(), [1, 2], "neither an older one nor none will do");

    world.runner.replicated(&name("a"), position(1, 2), 1, 2);
    while !world.commit().await.2 {}
    assert_eq!(steps.all(), [1, 2, 3, 4]);
    world.runner.replicated(&name("a"), position(1, 4), 0, 0);
    world.commit().await;
    assert!(steps.len() > 4, "with no peer there is nobody to wait for");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_an_acknowledgement_can_be_stopped() {
    let script = Script::new(|cx, _, at| {
        Box::pin(async move {
            at.n += 1;
            cx.checkpoint_now();
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.start("a");
    assert!(world.commit().await.2);
    world.stop("a", Duration::from_secs(5));
    let (sealed, dropped) = world.sealed().await;
    assert_eq!(sealed.unwrap().0.position, position(1, 1));
    assert!(!dropped);
    assert!(world.clock.0.elapsed() < ms(10));
}

#[tokio::test(start_paused = true)]
async fn without_a_permit_no_step_begins_and_a_renewal_lets_it_go_on() {
    let steps = Log::new();
    let script = {
        let steps = steps.clone();
        Script::new(move |_, _, at| {
            let steps = steps.clone();
            Box::pin(async move {
                at.n += 1;
                steps.push(at.n);
                tokio::time::sleep(ms(10)).await;
                Ok(Step::More)
            })
        })
    };
    let mut world = World::new(script);
    world.permit(ms(95));
    world.start("a");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(steps.len(), 10, "the last began before it lapsed");
    world.permit(ms(45));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(steps.len(), 15);
    world.permit(Duration::from_secs(5));
    tokio::time::sleep(ms(100)).await;
    world.runner.permit(Time::ZERO);
    tokio::time::sleep(ms(10)).await;
    let before = steps.len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(steps.len(), before, "a permit can be ended early");
}

impl World {
    /// Drops the commits that are waiting to be read.
    fn forget(&mut self) {
        while self.events.try_recv().is_ok() {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_outlives_its_permit_is_not_committed_before_the_next() {
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            at.n += 1;
            tokio::time::sleep(Duration::from_secs(10)).await;
            Ok(if at.n == 2 { Step::Done(2) } else { Step::More })
        })
    });
    let mut world = World::new(script);
    world.permit(Duration::from_secs(5));
    world.start("a");
    world.quiet(Duration::from_secs(60)).await;
    world.permit(Duration::from_secs(5));
    assert_eq!(world.commit().await.0.position.seq, 1);
    world.quiet(Duration::from_secs(60)).await;
    world.permit(Duration::from_secs(5));
    assert!(matches!(world.next().await, Event::Ended { .. }), "an end is a commit too");
}

#[tokio::test(start_paused = true)]
async fn a_state_kept_before_a_long_step_is_not_committed_without_a_permit() {
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            at.n += 1;
            if at.n == 3 {
                std::future::pending::<()>().await;
            }
            Ok(Step::More)
        })
    });
    let mut world = World::new(script);
    world.permit(ms(500));
    world.start("a");
    assert_eq!(world.commit().await.0.position.seq, 1);
    world.quiet(Duration::from_secs(60)).await;
    world.permit(ms(500));
    assert_eq!(world.commit().await.0.position.seq, 2);
}

/// Rule 17: the permit is looked at when the commit can go out, not when it could not yet.
#[tokio::test(start_paused = true)]
async fn a_commit_that_waited_for_room_is_held_to_the_permit_of_then() {
    let script = Script::new(|_, _, at| {
        Box::pin(async move {
            at.n += 1;
            tokio::time::sleep(ms(10)).await;
            Ok(if at.n == 2 { std::future::pending().await } else { Step::More })
        })
    });
    let mut world = World::new(script);
    world.permit(Duration::from_secs(5));
    // As many as find room have said that they have stopped.
    for i in 0..64 {
        let name = format!("filler {i}");
        world.start(&name);
        world.stop(&name, Duration::ZERO);
    }
    tokio::time::sleep(ms(5)).await;
    world.start("a");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let committed = |event: &Event| matches!(event, Event::Committed { header, .. } if header.name == name("a"));
    for _ in 0..64 {
        assert!(!committed(&world.next().await), "the permit had lapsed when there was room");
    }
    world.quiet(Duration::from_secs(60)).await;
    world.permit(Duration::from_secs(5));
    assert!(committed(&world.next().await));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_runner_ends_every_task() {
    let script = Script::new(|cx, _, at| {
        Box::pin(async move {
            at.n += 1;
            drop(cx.spawn(std::future::pending::<()>()));
            tokio::time::sleep(ms(10)).await;
            Ok(Step::More)
        })
    });
    let world = World::new(script);
    let World { mut runner, mut events, .. } = world;
    let task = spec(Script::KIND, "a");
    runner.start(task, lease(1), From::Initial, vec![], 0);
    tokio::time::sleep(ms(5)).await;
    drop(runner);
    assert!(events.recv().await.is_none(), "every sender is gone, and no event was sent");
}

#[tokio::test(start_paused = true)]
async fn a_new_epoch_holds_from_the_next_step_on_and_the_old_one_becomes_an_ancestor() {
    let fences = Log::new();
    let script = {
        let fences = fences.clone();
        Script::new(move |cx, _, at| {
            let fences = fences.clone();
            Box::pin(async move {
                let before = cx.fence().epoch;
                tokio::time::sleep(ms(100)).await;
                assert_eq!(cx.fence().epoch, before, "it holds for the whole step");
                fences.push(before);
                at.n += 1;
                Ok(Step::More)
            })
        })
    };
    let mut world = World::new(script);
    world.start("a");
    let (first, ..) = world.commit().await;
    assert_eq!(first.position, position(1, 1));
    assert!(first.lineage.is_empty());
    tokio::time::sleep(ms(50)).await;
    world.runner.reepoch(&name("a"), lease(5));
    let (second, ..) = world.commit().await;
    assert_eq!(second.position.epoch, Epoch(5));
    assert_eq!(second.lineage, [Ancestor { epoch: Epoch(1), writer: session(1), seq: 1 }]);
    assert!(second.descends_from(&first));
    assert_eq!(fences.all()[..3], [Epoch(1), Epoch(1), Epoch(5)]);

    world.runner.reepoch(&name("a"), lease(3));
    assert_eq!(world.commit().await.0.position.epoch, Epoch(5), "never lower");
    world.stop("a", Duration::from_secs(1));
    assert!(matches!(world.next().await, Event::Stopped { epoch, .. } if epoch == Epoch(5)));
}

#[tokio::test(start_paused = true)]
async fn a_kept_state_is_sealed_under_the_newest_epoch() {
    let mut world = World::new(stepping());
    world.start("a");
    world.commit().await;
    tokio::time::sleep(ms(55)).await;
    world.runner.reepoch(&name("a"), lease(5));
    world.stop("a", ms(0));
    let (sealed, dropped) = world.sealed().await;
    let (header, state) = sealed.unwrap();
    assert!(dropped);
    assert_eq!(header.position, position(5, 6));
    assert_eq!(header.lineage.last().unwrap().seq, 1);
    assert_eq!(count(&state).n, 6);
}

#[tokio::test(start_paused = true)]
async fn a_task_resumed_and_stopped_before_its_first_step_gives_back_what_it_was_given() {
    let mut world = World::new(stepping());
    world.start("a");
    let (header, state, _) = world.commit().await;
    drop(world.runner.cancel_all());
    world.forget();
    world.runner.permit(Time::ZERO);
    world.resume(2, header.clone(), state.clone());
    world.stop("a", ms(100));
    let (sealed, dropped) = world.sealed().await;
    assert_eq!(sealed, Some((header, state)));
    assert!(!dropped);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_never_committed_seals_nothing() {
    let mut world = World::new(stepping());
    world.start("a");
    world.stop("a", ms(0));
    assert_eq!(world.sealed().await.0, None);
}

/// Reads and writes as its type says.
struct Versioned<const OLDEST: u32, const NEWEST: u32>;

impl<const OLDEST: u32, const NEWEST: u32> Task for Versioned<OLDEST, NEWEST> {
    const KIND: &'static str = "versioned";
    const STATE_VERSION: u32 = NEWEST;
    const OLDEST_STATE_VERSION: u32 = OLDEST;
    type Args = String;
    type State = Count;
    type Output = u64;

    async fn step(&self, _: &mut Cx, _: &String, at: &mut Count) -> Result<Step<u64>> {
        at.n += 1;
        tokio::time::sleep(ms(10)).await;
        Ok(Step::More)
    }

    fn upgrade(&self, from: u32, state: &[u8]) -> Result<Count> {
        let old: Count = super::super::decode(state)?;
        Ok(Count { n: old.n + 1_000 * u64::from(NEWEST - from), ..old })
    }
}

async fn written_by<const OLDEST: u32, const NEWEST: u32>() -> (Header, Bytes) {
    let mut world = World::new(Versioned::<OLDEST, NEWEST>);
    world.runner.start(spec("versioned", "a"), lease(1), From::Initial, vec![], 0);
    let (header, state, _) = world.commit().await;
    assert_eq!(header.state_version, NEWEST);
    assert_eq!(header.revision, "r1");
    (header, state)
}

#[tokio::test(start_paused = true)]
async fn an_older_state_is_upgraded() {
    let (header, state) = written_by::<1, 1>().await;
    let mut world = World::new(Versioned::<1, 3>);
    world.resume(2, header, state);
    let (header, state, _) = world.commit().await;
    assert_eq!(count(&state).n, 2_002);
    assert_eq!(header.state_version, 3);
}

async fn unreadable(world: &mut World) -> String {
    match world.next().await {
        Event::Stuck { why: Stuck::Unreadable(why), epoch, .. } => {
            assert_eq!(epoch, Epoch(2));
            why
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_and_a_too_old_state_are_refused_with_the_versions_read() {
    let (header, state) = written_by::<1, 4>().await;
    let mut world = World::new(Versioned::<1, 3>);
    world.resume(2, header, state);
    assert_eq!(
        unreadable(&mut world).await,
        "its state is of version 4, this build reads 1 to 3: start a node whose build reads it"
    );
    let (header, state) = written_by::<1, 1>().await;
    let mut world = World::new(Versioned::<2, 3>);
    world.resume(2, header, state);
    assert!(unreadable(&mut world).await.contains("version 1"));
    assert_eq!(world.runner.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_do_not_decode_are_refused_and_so_is_an_unknown_kind() {
    let (header, _) = written_by::<1, 1>().await;
    let mut world = World::new(Versioned::<1, 1>);
    world.resume(2, header.clone(), Bytes::from_static(b"\xc1nonsense"));
    let why = unreadable(&mut world).await;
    assert!(why.contains("does not fit the type"), "{why}");

    let mut world = World::new(stepping());
    world.resume(2, header, Bytes::new());
    let why = unreadable(&mut world).await;
    assert!(why.contains("does not register the kind versioned"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn the_lineage_of_a_task_that_changes_its_epoch_often_stays_bounded() {
    let mut world = World::new(stepping());
    world.start("a");
    let mut newest = world.commit().await.0;
    for epoch in 2..=60 {
        world.runner.reepoch(&name("a"), lease(epoch));
        world.runner.commit_all();
        let (header, ..) = world.commit().await;
        assert!(header.descends_from(&newest));
        newest = header;
    }
    assert_eq!(newest.lineage.len(), Header::MAX_LINEAGE);
    assert_eq!(newest.lineage.last().unwrap().epoch, Epoch(59));
}
