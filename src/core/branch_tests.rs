#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::core::ids::NodeId;

fn writer(n: u8) -> SessionId {
    SessionId::new(NodeId::new(format!("n{n}")).unwrap(), Uuid::from_u128(u128::from(n)))
}

fn first(epoch: u64, by: u8, seq: u64) -> Header {
    Header {
        name: Name::new("job").unwrap(),
        run: RunId { number: 1, uuid: Uuid::from_u128(1) },
        kind: Kind::new("k").unwrap(),
        position: Position { epoch: Epoch(epoch), seq },
        writer: writer(by),
        lineage: Vec::new(),
        state_version: 1,
        revision: "r".into(),
        wall_ms: 0,
        len: 0,
        hash: 0,
        progress: None,
    }
}

/// `parent` continued under another lease, up to `seq`.
fn forked(parent: &Header, epoch: u64, by: u8, seq: u64) -> Header {
    Header { lineage: parent.lineage_after(), ..first(epoch, by, seq) }
}

fn kept(branches: &Branches) -> Vec<(u64, u64)> {
    branches.iter().map(|header| (header.position.epoch.0, header.position.seq)).collect()
}

#[test]
fn an_hour_of_work_survives_the_takers_few_commits() {
    let mut branches = Branches::default();
    branches.admit(first(10, 1, 900));
    let taker = forked(&first(10, 1, 500), 11, 2, 503);
    assert_eq!(branches.admit(taker), Admission::Kept { superseded: vec![] });
    assert_eq!(kept(&branches), [(10, 900), (11, 503)]);
}

#[test]
fn what_the_taker_continued_from_is_superseded() {
    let mut branches = Branches::default();
    let old = first(10, 1, 400);
    branches.admit(old.clone());
    let taker = forked(&first(10, 1, 500), 11, 2, 503);
    assert_eq!(branches.admit(taker), Admission::Kept { superseded: vec![old.clone()] });
    assert_eq!(branches.admit(old), Admission::Known, "a late copy changes nothing");
    assert_eq!(kept(&branches), [(11, 503)]);
}

#[test]
fn two_sides_of_a_split_under_one_epoch_are_two_branches() {
    let common = first(10, 1, 500);
    let left = forked(&common, 11, 2, 510);
    let right = forked(&common, 11, 3, 510);
    let mut branches = Branches::default();
    for header in [&common, &left, &right] {
        branches.admit(header.clone());
    }
    assert_eq!(branches.iter().count(), 2);
    assert!(!left.descends_from(&right) && !right.descends_from(&left));
    assert_eq!(branches.remove(right.position, &right.writer), Some(right.clone()));
    assert_eq!(branches.remove(right.position, &right.writer), None);
    assert_eq!(branches.iter().collect::<Vec<_>>(), [&left]);
}

#[test]
fn the_last_checkpoint_of_an_older_version_stays_until_its_own_version_replaces_it() {
    let of = |version, seq| Header { state_version: version, ..first(10, 1, seq) };
    let mut branches = Branches::default();
    branches.admit(of(1, 1));
    branches.admit(of(1, 2));
    branches.admit(of(2, 3));
    branches.admit(of(2, 4));
    assert_eq!(kept(&branches), [(10, 2), (10, 4)]);
    assert_eq!(branches.pinned().collect::<Vec<_>>(), [&of(1, 2)]);
    assert_eq!(branches.best(), Some(&of(2, 4)));
    assert_eq!(branches.best_of(None, |version| version == 1), Some(&of(1, 2)));
    let floor = of(2, 3).point();
    assert_eq!(branches.best_of(Some(&floor), |version| version == 1), None, "below the floor");
    // A late copy of what it replaced changes nothing.
    assert_eq!(branches.admit(of(1, 1)), Admission::Known);
    // An older version again: whoever reads it reads all there is.
    branches.admit(of(1, 5));
    assert_eq!(kept(&branches), [(10, 5)]);
}

#[test]
fn a_pinned_checkpoint_gives_way_to_work() {
    let mut branches = Branches::default();
    for by in 0..Branches::MAX as u8 {
        branches.admit(first(10, by, 5));
    }
    let newer = Header { state_version: 2, ..first(10, 3, 6) };
    let Admission::Kept { superseded } = branches.admit(newer.clone()) else {
        panic!("{branches:?}");
    };
    assert_eq!(superseded, [first(10, 3, 5)]);
    assert!(branches.iter().any(|header| *header == newer));
}

#[test]
fn another_run_is_never_an_ancestor() {
    let one = first(10, 1, 5);
    let mut other = first(10, 1, 4);
    other.run.uuid = Uuid::from_u128(2);
    assert!(!one.descends_from(&other) && !other.descends_from(&one));
}

#[test]
fn a_full_set_refuses_strangers_and_still_takes_descendants() {
    let mut branches = Branches::default();
    for by in 0..Branches::MAX as u8 {
        assert_eq!(branches.admit(first(10, by, 5)), Admission::Kept { superseded: vec![] });
    }
    let before = branches.clone();
    assert_eq!(branches.admit(first(10, 99, 5)), Admission::Full);
    assert_eq!(branches, before, "a refusal changes nothing");
    assert_eq!(
        branches.admit(forked(&first(10, 0, 5), 11, 99, 6)),
        Admission::Kept { superseded: vec![first(10, 0, 5)] }
    );
}

#[test]
fn the_lineage_is_bounded_and_forgets_the_oldest() {
    let mut header = first(1, 1, 1);
    for epoch in 2..100 {
        header = forked(&header, epoch, 1, epoch);
    }
    assert_eq!(header.lineage.len(), Header::MAX_LINEAGE);
    assert_eq!(header.lineage.last().unwrap().epoch, Epoch(98));
    assert!(!header.descends_from(&first(1, 1, 1)), "forgotten: kept");
}

#[test]
fn the_best_branch_has_more_progress_if_all_say() {
    let said = |header: Header, done| Header {
        progress: Some(Progress { done, ..Progress::default() }),
        ..header
    };
    let long = first(10, 1, 900);
    let far = first(11, 2, 3);
    let mut branches = Branches::default();
    assert_eq!(branches.best(), None);
    branches.admit(said(long.clone(), 1));
    branches.admit(said(far.clone(), 2));
    assert_eq!(branches.best().unwrap().key(), far.key());

    let mut branches = Branches::default();
    branches.admit(said(far, 2));
    branches.admit(long.clone());
    assert_eq!(branches.best().unwrap().key(), long.key(), "one is silent: commits count");
}

/// A history of one run: each commit continues any earlier one, under its lease or another.
#[derive(Clone, Debug)]
struct History {
    commits: Vec<Header>,
    /// Each commit's ancestors, itself included: the truth the headers are to tell.
    ancestors: Vec<BTreeSet<usize>>,
}

fn history() -> impl Strategy<Value = History> {
    let step = (any::<prop::sample::Index>(), any::<bool>(), 1u64..4, 1u32..3);
    prop::collection::vec(step, 1..24).prop_map(|steps| {
        let mut commits = vec![first(1, 0, 1)];
        let mut ancestors = vec![BTreeSet::from([0])];
        for (parent, takeover, skipped, version) in steps {
            let parent = parent.index(commits.len());
            let from: &Header = &commits[parent];
            let seq = from.position.seq + skipped;
            // A lease is one line: only its last commit can be continued under it.
            let is_last = !commits.iter().any(|other| {
                other.writer == from.writer
                    && other.position.epoch == from.position.epoch
                    && other.position.seq > from.position.seq
            });
            let mut next = if takeover || !is_last {
                // Two takers may mint one epoch; their sessions differ.
                let by = commits.len() as u8;
                forked(from, from.position.epoch.0 + 1, by, seq)
            } else {
                let mut next = from.clone();
                next.position.seq = seq;
                next
            };
            next.state_version = version;
            let mut line = ancestors[parent].clone();
            line.insert(commits.len());
            commits.push(next);
            ancestors.push(line);
        }
        History { commits, ancestors }
    })
}

/// The last of each branch, and of each older version in it.
fn leaves(history: &History) -> BTreeSet<usize> {
    let all = 0..history.commits.len();
    let version = |commit: usize| history.commits[commit].state_version;
    all.clone()
        .filter(|leaf| {
            !all.clone().any(|other| {
                other != *leaf
                    && history.ancestors[other].contains(leaf)
                    && version(other) <= version(*leaf)
            })
        })
        .collect()
}

proptest! {
    #[test]
    fn headers_tell_the_true_descent(history in history()) {
        for (a, header) in history.commits.iter().enumerate() {
            for (b, other) in history.commits.iter().enumerate() {
                prop_assert_eq!(
                    header.descends_from(other),
                    history.ancestors[a].contains(&b),
                    "{:?} of {:?}", header.position, other.position
                );
            }
        }
    }

    /// Whatever the order of arrival, and however often: exactly the newest of each branch is kept,
    /// and of each older version in it.
    #[test]
    fn any_order_of_arrival_keeps_the_newest_of_each_branch(
        (history, order) in history().prop_flat_map(|history| {
            let twice: Vec<usize> = (0..history.commits.len()).chain(0..history.commits.len()).collect();
            (Just(history), Just(twice).prop_shuffle())
        })
    ) {
        let leaves = leaves(&history);
        prop_assume!(leaves.len() <= Branches::MAX);
        let mut branches = Branches::default();
        for at in order {
            let header = &history.commits[at];
            let had: Vec<Header> = branches.iter().cloned().collect();
            match branches.admit(header.clone()) {
                Admission::Kept { superseded } => {
                    // More of them for a while than there are in the end: pins give way.
                    if superseded.iter().any(|gone| !header.replaces(gone)) {
                        prop_assert!(had.len() >= Branches::MAX, "only what is replaced goes");
                        return Ok(());
                    }
                    prop_assert_eq!(branches.iter().count(), had.len() + 1 - superseded.len());
                }
                Admission::Known => {
                    prop_assert!(had.iter().any(|kept| kept.replaces(header)));
                }
                // More branches for a while than there are in the end.
                Admission::Full => return Ok(()),
            }
        }
        let mut expected = Branches::default();
        for leaf in leaves {
            expected.admit(history.commits[leaf].clone());
        }
        prop_assert_eq!(branches, expected);
    }
}
