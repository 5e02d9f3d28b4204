//! The ledger appends the numbers from one on: loss and duplication show at once.

use super::*;

/// Appends 1..=100, one a step, with steps of 20 ms.
fn ledger(written: &Log<u64>) -> Script {
    let written = written.clone();
    Script::new(move |cx, _, at| {
        let written = written.clone();
        Box::pin(async move {
            tokio::time::sleep(ms(20)).await;
            at.n += 1;
            written.push(at.n);
            cx.progress(at.n, 100);
            Ok(if at.n == 100 { Step::Done(at.n) } else { Step::More })
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_task_runs_from_its_initial_state_to_its_output() {
    let written = Log::new();
    let mut world = World::new(ledger(&written));
    world.start("ledger");
    assert_eq!(world.runner.running(), 1);
    let output = match world.outcome().await {
        Outcome::Done(output) => output,
        failed => panic!("{failed:?}"),
    };
    let output: u64 = codec::decode(&output, Value::Output, &Limits::default()).unwrap();
    assert_eq!(output, 100);
    assert_eq!(written.all(), (1..=100).collect::<Vec<u64>>());
    assert_eq!(world.runner.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_handed_over_again_and_again_loses_and_repeats_nothing() {
    let written = Log::new();
    let mut world = World::new(ledger(&written));
    world.start("ledger");
    let mut epoch = 1;
    loop {
        tokio::time::sleep(ms(150)).await;
        world.stop("ledger", Duration::from_secs(5));
        match world.last().await {
            Event::Stopped { sealed, dropped, epoch: under, .. } => {
                assert!(!dropped);
                assert_eq!(under, Epoch(epoch));
                let (header, state) = sealed.unwrap();
                assert_eq!(header.position.seq, count(&state).n, "seq counts steps");
                assert_eq!(header.progress.clone().unwrap().done, count(&state).n);
                epoch += 1;
                world.resume(epoch, header, state);
            }
            Event::Ended { outcome, .. } => {
                assert!(matches!(outcome, Outcome::Done(_)));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(epoch > 10, "it was handed over {epoch} times");
    assert_eq!(written.all(), (1..=100).collect::<Vec<u64>>());
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_repeats_lies_after_the_last_commit() {
    let written = Log::new();
    let mut world = World::new(ledger(&written));
    world.start("ledger");
    tokio::time::sleep(ms(1_500)).await;
    drop(world.runner.cancel_all());
    let before = written.all();
    let mut newest = None;
    while let Ok(event) = world.events.try_recv() {
        if let Event::Committed { header, state, .. } = event {
            newest = Some((header, state));
        }
    }
    let (header, state) = newest.unwrap();
    let committed = header.position.seq;
    assert!(committed < before.len() as u64, "the throttle held some back");
    world.resume(2, header, state);
    world.outcome().await;
    let after = written.all().split_off(before.len());
    assert_eq!(after, (committed + 1..=100).collect::<Vec<u64>>());
}
