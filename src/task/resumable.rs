//! For the tests of a task: whether it reads what released builds have written.

use std::fs;
use std::path::Path;

use super::codec::{self, Limits, Value};
use super::{Task, decode};

/// Checks that a task goes on from states that released builds have written, and that what it
/// writes for older builds can be read again. For the task's own tests: keep a state of each
/// version ([`encode`](fn@super::encode) makes one) in a directory, in files whose names begin with the
/// version, like `2.halfway`.
///
/// # Panics
/// With the file and the reason, if a state cannot be gone on from, if the task writes for an older
/// build what it cannot read itself, or if there are no states.
///
/// ```no_run
/// # struct Copy;
/// # impl handover::Task for Copy {
/// #     const KIND: &'static str = "copy";
/// #     type Args = ();
/// #     type State = u64;
/// #     type Output = ();
/// #     async fn step(&self, _: &mut handover::Cx, _: &(), _: &mut u64) -> handover::Result<handover::Step<()>> {
/// #         Ok(handover::Step::Done(()))
/// #     }
/// # }
/// // #[test]
/// fn states_of_released_builds_are_read() {
///     handover::assert_resumable(&Copy, "tests/states/copy");
/// }
/// ```
#[track_caller]
pub fn assert_resumable<T: Task>(task: &T, directory: impl AsRef<Path>) {
    let directory = directory.as_ref();
    let files = fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{} cannot be read: {error}", directory.display()));
    let mut seen = 0;
    for file in files {
        let path = file.unwrap_or_else(|error| panic!("{}: {error}", directory.display())).path();
        let at = path.display();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let digits: String = name.chars().take_while(char::is_ascii_digit).collect();
        let version = digits.parse().unwrap_or_else(|_| {
            panic!("{at}: the name of a state has to begin with the version that it is of")
        });
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{at}: {error}"));
        let state = read(task, version, &bytes).unwrap_or_else(|why| panic!("{at}: {why}"));
        check_written(task, &state).unwrap_or_else(|why| panic!("{at}: {why}"));
        seen += 1;
    }
    assert!(seen > 0, "{} holds no states", directory.display());
}

fn read<T: Task>(task: &T, version: u32, bytes: &[u8]) -> Result<T::State, String> {
    let (oldest, newest) = (T::OLDEST_STATE_VERSION, T::STATE_VERSION);
    if !(oldest..=newest).contains(&version) {
        return Err(format!("it is of version {version}, the task reads {oldest} to {newest}"));
    }
    let state = if version == newest { decode(bytes) } else { task.upgrade(version, bytes) };
    state.map_err(|error| error.to_string())
}

/// Whatever the task writes of a state, it reads again.
fn check_written<T: Task>(task: &T, state: &T::State) -> Result<(), String> {
    let limits = Limits::default();
    let cannot = |version, why| format!("it cannot be written in version {version}: {why}");
    for version in T::OLDEST_STATE_VERSION..=T::STATE_VERSION {
        let written = if version == T::STATE_VERSION {
            codec::encode(state, Value::State, &limits).map(|bytes| Some(bytes.into()))
        } else {
            let older = task.downgrade(version, state);
            let older = older.map_err(|error| cannot(version, error.to_string()))?;
            let len = older.as_ref().map_or(0, Vec::len);
            codec::check_len(len, Value::State, &limits).map(|()| older)
        };
        let written: Option<Vec<u8>> =
            written.map_err(|error| cannot(version, error.to_string()))?;
        if let Some(written) = written {
            read(task, version, &written)
                .map_err(|why| format!("what the task writes in version {version}: {why}"))?;
        }
    }
    Ok(())
}
