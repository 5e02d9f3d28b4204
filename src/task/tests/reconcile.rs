//! What the code of a task says where copies of it meet.

use super::*;
use crate::core::branch::Position;
use crate::core::reconcile::Side;
use crate::error::Error;
use crate::task::{Branch, Reconciled, encode};

/// Says what its args name.
struct Judge;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sum {
    n: u64,
}

impl Task for Judge {
    const KIND: &'static str = "judge";
    const STATE_VERSION: u32 = 2;
    const OLDEST_STATE_VERSION: u32 = 1;
    type Args = String;
    type State = Sum;
    type Output = ();

    async fn step(&self, _: &mut Cx, _: &String, _: &mut Sum) -> Result<Step<()>> {
        Ok(Step::More)
    }

    fn upgrade(&self, _: u32, state: &[u8]) -> Result<Sum> {
        crate::decode::<u64>(state).map(|n| Sum { n })
    }

    fn reconcile(
        &self,
        args: &String,
        mine: Branch<Sum>,
        theirs: Branch<Sum>,
    ) -> Result<Reconciled<Sum>> {
        Ok(match args.as_str() {
            "mine" => Reconciled::Mine,
            "theirs" => Reconciled::Theirs,
            "merge" => Reconciled::Merged(Sum { n: mine.state.n + theirs.state.n }),
            "who" => {
                assert_eq!([mine.node.as_str(), theirs.node.as_str()], ["here", "there"]);
                assert!(mine.epoch < theirs.epoch && mine.steps > theirs.steps);
                Reconciled::Theirs
            }
            "panic" => panic!("no idea"),
            "fail" => return Err(Error::retry("the ledger is away")),
            _ => Reconciled::MoreProgress,
        })
    }
}

/// A branch that its writer reached in so many steps, of which it says to have done `done`.
fn branch(by: &str, epoch: u64, seq: u64, done: Option<u64>, state: Vec<u8>) -> (Header, Bytes) {
    let header = Header {
        name: Name::new("a").unwrap(),
        run: RunId { number: 1, uuid: Uuid::nil() },
        kind: Kind::new(Judge::KIND).unwrap(),
        position: Position { epoch: Epoch(epoch), seq },
        writer: SessionId::new(NodeId::new(by).unwrap(), Uuid::nil()),
        lineage: Vec::new(),
        state_version: 2,
        revision: String::new(),
        wall_ms: 0,
        len: state.len() as u64,
        hash: Header::hash_of(&state),
        progress: done.map(|done| crate::Progress { done, ..Default::default() }),
    };
    (header, state.into())
}

fn sum(n: u64) -> Vec<u8> {
    encode(&Sum { n }).unwrap()
}

/// What comes of it.
async fn chosen(args: &str, branches: Vec<(Header, Bytes)>) -> Side {
    let mut world = World::new(Judge);
    let mut task = spec(Judge::KIND, "a");
    task.args = encode(&args).unwrap().into();
    world.runner.reconcile(task, Epoch(9), branches);
    match world.events.recv().await {
        Some(Event::Reconciled { name, epoch: Epoch(9), chosen }) if name.as_str() == "a" => {
            chosen.unwrap()
        }
        other => panic!("expected what was chosen: {other:?}"),
    }
}

fn n(side: &Side) -> u64 {
    assert_eq!(side.version, 2);
    crate::decode::<Sum>(&side.state).unwrap().n
}

#[tokio::test]
async fn code_chooses_a_side_or_makes_a_new_one() {
    let both = || vec![branch("here", 3, 7, None, sum(70)), branch("there", 4, 5, None, sum(50))];
    for (args, state, seq) in
        [("mine", 70, 7), ("theirs", 50, 5), ("merge", 120, 8), ("who", 50, 5), ("", 70, 7)]
    {
        let side = chosen(args, both()).await;
        assert_eq!((n(&side), side.seq), (state, seq), "{args}");
    }
}

/// Two at a time, and what came of the first two is merged with the third.
#[tokio::test]
async fn of_three_branches_all_are_merged() {
    let three = vec![
        branch("a", 3, 7, None, sum(1)),
        branch("b", 4, 9, None, sum(2)),
        branch("c", 5, 8, None, sum(4)),
    ];
    let side = chosen("merge", three).await;
    assert_eq!((n(&side), side.seq), (7, 11));
}

/// What both say they have done counts before their steps, and the winner's where they are equal.
#[tokio::test]
async fn by_default_more_progress_decides() {
    for (mine, theirs, state) in [
        ((9, None), (5, None), 1),
        ((5, None), (9, None), 2),
        ((5, None), (5, None), 1),
        ((9, Some(10)), (5, Some(11)), 2),
        ((5, Some(10)), (9, Some(10)), 1),
        ((9, None), (5, Some(11)), 1),
    ] {
        let branches = vec![
            branch("here", 3, mine.0, mine.1, sum(1)),
            branch("there", 4, theirs.0, theirs.1, sum(2)),
        ];
        assert_eq!(n(&chosen("", branches).await), state, "{mine:?} {theirs:?}");
    }
}

#[tokio::test]
async fn code_that_fails_or_panics_leaves_it_to_more_progress() {
    for args in ["panic", "fail"] {
        let branches =
            vec![branch("here", 3, 5, None, sum(1)), branch("there", 4, 9, None, sum(2))];
        assert_eq!(n(&chosen(args, branches).await), 2, "{args}");
    }
}

#[tokio::test]
async fn states_of_an_older_version_are_upgraded_first() {
    let mut older = branch("there", 4, 9, None, encode(&40_u64).unwrap());
    older.0.state_version = 1;
    let branches = vec![branch("here", 3, 5, None, sum(2)), older];
    assert_eq!(n(&chosen("merge", branches).await), 42);
}

/// A state that does not fit is no reason to stand still.
#[tokio::test]
async fn a_state_that_does_not_fit_leaves_it_to_more_progress() {
    let branches =
        vec![branch("here", 3, 5, None, sum(1)), branch("there", 4, 4, None, b"nonsense".to_vec())];
    assert_eq!(n(&chosen("merge", branches).await), 1);
}
