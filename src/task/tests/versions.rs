//! Which version of its state a task writes.

use super::*;
use crate::core::branch::Header;
use crate::error::Error;
use crate::task::{Run, RunCx, Running, assert_resumable, decode, encode};

/// What versions 1 and 2 of the state look like: 1 counts in tens.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tens {
    tens: u64,
}

/// What [`Growing`] does when it is to write an older version.
#[derive(Clone, Copy, PartialEq)]
enum Older {
    Writes,
    Cannot,
    IsAway,
    IsTooLong,
}

/// Reads versions 1 to 3, writes 3, and 1 if it can.
struct Growing {
    older: Older,
    /// It fails once, at this number.
    fails_at: u64,
}

impl Growing {
    fn new(older: Older) -> Self {
        Self { older, fails_at: u64::MAX }
    }

    fn read(from: u32, state: &[u8]) -> Result<Count> {
        match from {
            1 => Ok(Count { n: decode::<Tens>(state)?.tens * 10, ballast: "upgraded".into() }),
            _ => decode(state),
        }
    }

    fn write(&self, to: u32, state: &Count) -> Result<Option<Vec<u8>>> {
        match (self.older, to) {
            (Older::Writes, 1) => encode(&Tens { tens: state.n / 10 }).map(Some),
            (Older::IsAway, _) => Err(Error::retry("away")),
            (Older::IsTooLong, _) => Ok(Some(vec![0; (64 << 20) + 1])),
            _ => Ok(None),
        }
    }
}

impl Task for Growing {
    const KIND: &'static str = "growing";
    const STATE_VERSION: u32 = 3;
    const OLDEST_STATE_VERSION: u32 = 1;
    type Args = String;
    type State = Count;
    type Output = u64;

    async fn step(&self, cx: &mut Cx, _: &String, at: &mut Count) -> Result<Step<u64>> {
        tokio::time::sleep(ms(10)).await;
        at.n += 10;
        if at.n == self.fails_at && cx.attempt() == 1 {
            return Err(Error::retry("once"));
        }
        Ok(if at.n >= 3_000 { Step::Done(at.n) } else { Step::More })
    }

    fn upgrade(&self, from: u32, state: &[u8]) -> Result<Count> {
        Self::read(from, state)
    }

    fn downgrade(&self, to: u32, state: &Count) -> Result<Option<Vec<u8>>> {
        self.write(to, state)
    }

    fn retry(&self) -> Retry {
        Retry::default().attempts(3)
    }
}

/// The same as a run.
struct Grown(Growing);

impl Run for Grown {
    const KIND: &'static str = Growing::KIND;
    const STATE_VERSION: u32 = 3;
    const OLDEST_STATE_VERSION: u32 = 1;
    type Args = String;
    type State = Count;
    type Output = u64;

    async fn run(&self, cx: &mut RunCx<Count>, _: &String) -> Result<u64> {
        loop {
            let mut at = cx.state()?;
            tokio::time::sleep(ms(10)).await;
            at.n += 10;
            cx.checkpoint(&at).await?;
        }
    }

    fn upgrade(&self, from: u32, state: &[u8]) -> Result<Count> {
        Growing::read(from, state)
    }

    fn downgrade(&self, to: u32, state: &Count) -> Result<Option<Vec<u8>>> {
        self.0.write(to, state)
    }
}

fn started(job: impl Job, version: u32) -> World {
    let mut world = World::new(job);
    world.runner.write_version(&Kind::new(Growing::KIND).unwrap(), version);
    world.runner.start(spec(Growing::KIND, "a"), lease(1), From::Initial, vec![], 0);
    world
}

async fn first(world: &mut World) -> (Header, Bytes) {
    let (header, state, _) = world.commit().await;
    (header, state)
}

#[tokio::test(start_paused = true)]
async fn a_state_is_written_in_the_version_wanted_if_the_task_can() {
    for job in [true, false] {
        let mut world = if job {
            started(Growing::new(Older::Writes), 1)
        } else {
            started(Running(Grown(Growing::new(Older::Writes))), 1)
        };
        let (header, state) = first(&mut world).await;
        assert_eq!(header.state_version, 1);
        assert_eq!(decode::<Tens>(&state).unwrap(), Tens { tens: 1 });
        // Nobody reads the older one any more.
        world.runner.write_version(&Kind::new(Growing::KIND).unwrap(), 3);
        let (header, state) = first(&mut world).await;
        assert_eq!(header.state_version, 3);
        assert_eq!(count(&state).n, header.position.seq * 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_that_cannot_be_written_in_an_older_version_is_written_in_the_newest() {
    for (older, wanted) in [(Older::Cannot, 1), (Older::Writes, 2), (Older::Writes, 0)] {
        let mut world = started(Growing::new(older), wanted);
        let (header, state) = first(&mut world).await;
        assert_eq!(header.state_version, 3);
        assert_eq!(count(&state).n, 10);
    }
}

/// A step that fails is repeated from the bytes that were kept, of whatever version.
#[tokio::test(start_paused = true)]
async fn what_was_written_in_an_older_version_is_read_again_after_a_failure() {
    let growing = Growing { fails_at: 500, ..Growing::new(Older::Writes) };
    let mut world = started(growing, 1);
    assert!(
        matches!(world.outcome().await, Outcome::Done(output) if decode::<u64>(&output).unwrap() == 3_000)
    );
}

#[tokio::test(start_paused = true)]
async fn a_downgrade_that_fails_is_an_attempt_and_one_that_is_too_long_parks_the_task() {
    let mut world = started(Growing::new(Older::IsAway), 1);
    assert!(
        matches!(world.outcome().await, Outcome::Failed(why) if why.contains("attempt 3: away"))
    );
    let mut world = started(Growing::new(Older::IsTooLong), 1);
    let (_, why) = world.unkeepable().await;
    assert!(why.contains("over the limit"), "{why}");
}

fn golden(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, state) in files {
        std::fs::write(directory.path().join(name), state).unwrap();
    }
    directory
}

fn resumable(growing: &Growing, files: &[(&str, Vec<u8>)]) -> Result<(), String> {
    let directory = golden(files);
    let asserted = std::panic::AssertUnwindSafe(|| assert_resumable(growing, directory.path()));
    std::panic::catch_unwind(asserted)
        .map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn states_of_released_builds_can_be_checked_in_a_tasks_own_tests() {
    let growing = Growing::new(Older::Writes);
    let one = encode(&Tens { tens: 4 }).unwrap();
    let three = encode(&Count { n: 7, ballast: String::new() }).unwrap();
    assert_eq!(resumable(&growing, &[("1.tens", one.clone()), ("3", three.clone())]), Ok(()));

    for (files, why) in [
        (vec![], "no states"),
        (vec![("tens", one.clone())], "begin with the version"),
        (vec![("1.tens", three.clone())], "does not fit"),
        (vec![("4", three)], "of version 4"),
    ] {
        let error = resumable(&growing, &files).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let error = resumable(&Growing::new(Older::IsTooLong), &[("1", one)]).unwrap_err();
    assert!(error.contains("cannot be written in version 1"), "{error}");
}
