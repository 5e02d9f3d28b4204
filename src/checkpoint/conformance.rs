//! What every store must do, whatever it keeps the bytes in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::testing::{end, forked, header, name, position, put, put_as, run, session, spec, state};
use super::{CheckpointStore, FrameError, StoreError, Write};
use crate::core::branch::{Branches, Header};
use crate::core::claim::{Desired, Phase, Want};
use crate::core::limits;
use crate::core::stored::StoredRun;

pub(crate) type Fresh<'a> = &'a dyn Fn() -> Box<dyn CheckpointStore>;

/// Runs all of them, each on a fresh store.
pub(crate) fn all(fresh: Fresh<'_>) {
    what_was_put_is_read_back(fresh);
    only_the_newest_of_a_line_is_listed(fresh);
    a_late_or_repeated_put_changes_nothing(fresh);
    the_last_of_an_older_version_is_kept_beside_a_newer_one(fresh);
    branches_are_kept_apart(fresh);
    runs_of_one_name_are_kept_apart(fresh);
    names_that_share_a_prefix_are_kept_apart(fresh);
    an_end_replaces_the_checkpoints(fresh);
    ends_are_joined_in_the_order_of_claims(fresh);
    a_failure_spares_what_a_higher_epoch_wrote(fresh);
    an_output_can_go_and_the_tombstone_stays(fresh);
    an_output_is_given_up_for_no_end_without_one(fresh);
    a_run_is_kept_before_its_first_checkpoint_with_what_is_wanted(fresh);
    branches_are_discarded_by_their_newest(fresh);
    what_is_no_checkpoint_is_refused(fresh);
    a_refused_write_leaves_the_batch_alone(fresh);
    a_ninth_branch_is_refused(fresh);
    any_batching_of_writes_gives_the_same(fresh);
}

fn read(store: &dyn CheckpointStore, header: &Header) -> Option<(Header, Bytes)> {
    store.get(&header.name, header.run, header.position, &header.writer).unwrap()
}

fn finished(task: &str, epoch: u64, output: Option<&'static str>) -> Write {
    Write::End {
        end: end(task, epoch, Phase::Finished),
        spec: spec(task, 1),
        output: output.map(|text| Bytes::from_static(text.as_bytes())),
    }
}

fn what_was_put_is_read_back(fresh: Fresh<'_>) {
    let store = fresh();
    assert_eq!(store.runs(), Ok(vec![]));
    for (task, len) in [("empty", 0), ("small", 100), ("large", 3 << 20)] {
        let state = state(1, len);
        let header = header(task, 3, 1, "w", &state);
        assert_eq!(read(&*store, &header), None);
        store.write(put_as(header.clone(), &state)).unwrap();
        assert_eq!(read(&*store, &header), Some((header, state)));
    }
    let listed = store.runs().unwrap();
    assert_eq!(listed.len(), 3);
    assert_eq!(
        listed[0],
        StoredRun {
            spec: spec("empty", 1),
            checkpoints: vec![header("empty", 3, 1, "w", b"")],
            damaged: false,
            desired: None,
            end: None,
        }
    );
}

fn only_the_newest_of_a_line_is_listed(fresh: Fresh<'_>) {
    let store = fresh();
    for seq in 1..=10 {
        store.write(put("a", 3, seq, &state(seq, 50))).unwrap();
    }
    let last = header("a", 3, 10, "w", &state(10, 50));
    let taken = forked(&last, 4, 12, "other", &state(12, 50));
    store.write(put_as(taken.clone(), &state(12, 50))).unwrap();
    assert_eq!(store.runs().unwrap()[0].checkpoints, std::slice::from_ref(&taken));
    assert!(read(&*store, &taken).is_some());
    assert_eq!(
        store.get(&name("a"), run(1), position(3, 5), &session("w")),
        Ok(None),
        "an old one is gone"
    );
}

fn a_late_or_repeated_put_changes_nothing(fresh: Fresh<'_>) {
    let store = fresh();
    let newest = header("a", 3, 9, "w", &state(9, 50));
    store.write(put("a", 3, 9, &state(9, 50))).unwrap();
    store.write(put("a", 3, 9, &state(9, 50))).unwrap();
    store.write(put("a", 3, 2, &state(2, 50))).unwrap();
    assert_eq!(store.runs().unwrap()[0].checkpoints, std::slice::from_ref(&newest));
    assert_eq!(read(&*store, &newest), Some((newest, state(9, 50))));
}

fn the_last_of_an_older_version_is_kept_beside_a_newer_one(fresh: Fresh<'_>) {
    let store = fresh();
    let of = |version, seq| Header {
        state_version: version,
        ..header("a", 3, seq, "w", &state(seq, 50))
    };
    for (version, seq) in [(1, 1), (1, 2), (2, 3), (2, 4), (2, 5)] {
        store.write(put_as(of(version, seq), &state(seq, 50))).unwrap();
    }
    assert_eq!(store.runs().unwrap()[0].checkpoints, [of(1, 2), of(2, 5)]);
    for (version, seq) in [(1, 2), (2, 5)] {
        let expected = (of(version, seq), state(seq, 50));
        assert_eq!(read(&*store, &of(version, seq)), Some(expected));
    }
    let pinned = of(1, 2);
    let headers = vec![(pinned.position, pinned.writer.clone())];
    store.write(Write::Discard { name: name("a"), run: run(1), headers }).unwrap();
    assert_eq!(store.runs().unwrap()[0].checkpoints, [of(2, 5)]);
    assert_eq!(read(&*store, &pinned), None);
    assert!(read(&*store, &of(2, 5)).is_some());
}

fn branches_are_kept_apart(fresh: Fresh<'_>) {
    let store = fresh();
    let long = header("a", 10, 900, "w", &state(900, 50));
    let common = header("a", 10, 500, "w", &state(500, 50));
    let taker = forked(&common, 11, 503, "t", &state(503, 50));
    let twin = forked(&common, 11, 503, "u", &state(77, 50));
    for (header, of) in [(&common, 500), (&taker, 503), (&long, 900), (&twin, 77)] {
        store.write(put_as(header.clone(), &state(of, 50))).unwrap();
    }
    assert_eq!(store.runs().unwrap()[0].checkpoints, [long.clone(), taker.clone(), twin.clone()]);
    for (header, of) in [(long, 900), (taker, 503), (twin, 77)] {
        assert_eq!(read(&*store, &header), Some((header, state(of, 50))));
    }
}

fn runs_of_one_name_are_kept_apart(fresh: Fresh<'_>) {
    let store = fresh();
    let first = header("a", 3, 1, "w", &state(1, 50));
    let second = Header { run: run(2), ..header("a", 3, 1, "w", &state(2, 50)) };
    store.write(put_as(first.clone(), &state(1, 50))).unwrap();
    store.write(put_as(second.clone(), &state(2, 50))).unwrap();
    assert_eq!(read(&*store, &second), Some((second, state(2, 50))));
    store.write(finished("a", 3, None)).unwrap();
    let listed = store.runs().unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed[0].end.is_some() && listed[0].checkpoints.is_empty());
    assert!(listed[1].end.is_none() && listed[1].checkpoints.len() == 1);
}

fn names_that_share_a_prefix_are_kept_apart(fresh: Fresh<'_>) {
    let store = fresh();
    for task in ["a", "ab", "abc"] {
        store.write(put(task, 3, 1, &state(1, 50))).unwrap();
    }
    for task in ["ab", "a"] {
        store.write(Write::Discard { name: name(task), run: run(1), headers: vec![] }).unwrap();
    }
    let left = header("abc", 3, 1, "w", &state(1, 50));
    assert_eq!(store.runs().unwrap().len(), 1);
    assert!(read(&*store, &left).is_some());
}

fn an_end_replaces_the_checkpoints(fresh: Fresh<'_>) {
    let store = fresh();
    let common = header("a", 3, 1, "w", &state(1, 50));
    let left = forked(&common, 4, 2, "l", &state(2, 50));
    let right = forked(&common, 4, 2, "r", &state(3, 50));
    store.write(put_as(common, &state(1, 50))).unwrap();
    store.write(put_as(left.clone(), &state(2, 50))).unwrap();
    store.write(put_as(right.clone(), &state(3, 50))).unwrap();
    store.write(finished("a", 5, Some("out"))).unwrap();
    assert_eq!(
        store.runs().unwrap(),
        [StoredRun {
            spec: spec("a", 1),
            checkpoints: vec![],
            damaged: false,
            desired: None,
            end: Some((end("a", 5, Phase::Finished), true)),
        }]
    );
    assert_eq!(store.get_output(&name("a"), run(1)), Ok(Some(Bytes::from_static(b"out"))));
    for gone in [left, right] {
        assert_eq!(read(&*store, &gone), None);
    }
    assert_eq!(
        store.write(put("a", 9, 9, &state(9, 50))),
        Err(StoreError::Ended),
        "a straggler is not born anew"
    );
    store.write(finished("unseen", 5, None)).unwrap();
    assert_eq!(store.runs().unwrap().len(), 2, "an end alone is kept too");
}

fn ends_are_joined_in_the_order_of_claims(fresh: Fresh<'_>) {
    let cancelled =
        Write::End { end: end("a", 2, Phase::Cancelled), spec: spec("a", 1), output: None };
    let writes = [finished("a", 5, Some("high")), finished("a", 4, Some("low"))];
    for order in [[0, 1], [1, 0]] {
        let store = fresh();
        for at in order {
            let write: &Write = &writes[at];
            store.write(write.clone()).unwrap();
        }
        assert_eq!(store.get_output(&name("a"), run(1)), Ok(Some(Bytes::from_static(b"high"))));
        store.write(cancelled.clone()).unwrap();
        store.write(writes[0].clone()).unwrap();
        assert_eq!(store.runs().unwrap()[0].end, Some((end("a", 2, Phase::Cancelled), false)));
        assert_eq!(store.get_output(&name("a"), run(1)), Ok(None));
    }
}

fn a_failure_spares_what_a_higher_epoch_wrote(fresh: Fresh<'_>) {
    let store = fresh();
    let failed = Write::End { end: end("a", 10, Phase::Failed), spec: spec("a", 1), output: None };
    let minority = header("a", 10, 900, "w", &state(900, 50));
    let majority = forked(&header("a", 9, 500, "v", b""), 11, 503, "t", &state(503, 50));
    store.write(put_as(minority.clone(), &state(900, 50))).unwrap();
    store.write(put_as(majority.clone(), &state(503, 50))).unwrap();
    store.write(failed).unwrap();
    assert_eq!(store.runs().unwrap()[0].checkpoints, std::slice::from_ref(&majority));
    assert_eq!(read(&*store, &majority), Some((majority.clone(), state(503, 50))));
    assert_eq!(read(&*store, &minority), None);
    assert_eq!(store.write(put_as(minority, &state(900, 50))), Err(StoreError::Ended));
    let next = Header { position: position(11, 504), ..majority };
    store.write(put_as(next.clone(), &state(503, 50))).unwrap();
    assert_eq!(store.runs().unwrap()[0].checkpoints, [next]);
}

/// Several nodes may have published an end one after another, some without what it brought.
fn an_output_is_given_up_for_no_end_without_one(fresh: Fresh<'_>) {
    let output = |store: &dyn CheckpointStore| store.get_output(&name("a"), run(1)).unwrap();
    let out = Some(Bytes::from_static(b"out"));
    for (first, second) in [(5, 6), (6, 5)] {
        let store = fresh();
        store.write(finished("a", first, Some("out"))).unwrap();
        store.write(finished("a", second, None)).unwrap();
        assert_eq!(output(&*store), out, "{first}, then {second} without");
        let store = fresh();
        store.write(finished("a", first, None)).unwrap();
        store.write(finished("a", second, Some("out"))).unwrap();
        assert_eq!(output(&*store), out, "{first} without, then {second}");
        let kept = store.runs().unwrap()[0].end.clone().unwrap();
        assert_eq!(kept.0.claim.epoch.0, 6, "the higher one is the end");
    }
    let store = fresh();
    store.write(finished("a", 6, Some("out"))).unwrap();
    store.write(finished("a", 5, Some("low"))).unwrap();
    assert_eq!(output(&*store), out, "of two, that of the higher one");
}

fn an_output_can_go_and_the_tombstone_stays(fresh: Fresh<'_>) {
    let store = fresh();
    let drop_output = Write::DropOutput { name: name("a"), run: run(1) };
    store.write(drop_output.clone()).unwrap();
    assert_eq!(store.runs(), Ok(vec![]), "of a run that is not there");
    store.write(finished("a", 5, Some("out"))).unwrap();
    store.write(drop_output).unwrap();
    assert_eq!(store.get_output(&name("a"), run(1)), Ok(None));
    assert_eq!(store.runs().unwrap()[0].end, Some((end("a", 5, Phase::Finished), false)));
    store.write(Write::Discard { name: name("a"), run: run(1), headers: vec![] }).unwrap();
    assert_eq!(store.runs(), Ok(vec![]));
}

fn a_run_is_kept_before_its_first_checkpoint_with_what_is_wanted(fresh: Fresh<'_>) {
    let store = fresh();
    let order = |version, want| Desired {
        name: name("a"),
        run: run(1),
        version,
        writer: session("w"),
        want,
    };
    let keep = |desired| Write::Run { spec: spec("a", 1), desired };
    store.write(keep(None)).unwrap();
    assert_eq!(store.runs().unwrap().len(), 1);
    store.write(keep(Some(order(1, Want::Pause)))).unwrap();
    store.write(put("a", 3, 1, &state(1, 50))).unwrap();
    let listed = store.runs().unwrap();
    assert_eq!(listed[0].desired, Some(order(1, Want::Pause)));
    assert_eq!(listed[0].checkpoints.len(), 1);
    store.write(keep(Some(order(2, Want::Run)))).unwrap();
    assert_eq!(store.runs().unwrap()[0].desired, Some(order(2, Want::Run)));
    store.write(finished("a", 5, None)).unwrap();
    store.write(keep(Some(order(3, Want::Pause)))).unwrap();
    let listed = store.runs().unwrap();
    assert!(listed[0].end.is_some() && listed[0].desired.is_none(), "it has ended");
}

fn branches_are_discarded_by_their_newest(fresh: Fresh<'_>) {
    let store = fresh();
    let discard = |header: &Header| Write::Discard {
        name: name("a"),
        run: run(1),
        headers: vec![(header.position, header.writer.clone())],
    };
    let old = header("a", 3, 1, "w", &state(1, 50));
    let left = header("a", 3, 2, "w", &state(2, 50));
    let right = forked(&old, 4, 2, "r", &state(3, 50));
    store.write(put_as(old.clone(), &state(1, 50))).unwrap();
    store.write(put_as(left.clone(), &state(2, 50))).unwrap();
    store.write(put_as(right.clone(), &state(3, 50))).unwrap();
    store.write(discard(&old)).unwrap();
    assert_eq!(
        store.runs().unwrap()[0].checkpoints,
        [left.clone(), right.clone()],
        "a replaced one needs no discarding"
    );
    store.write(discard(&left)).unwrap();
    assert_eq!(store.runs().unwrap()[0].checkpoints, std::slice::from_ref(&right));
    assert_eq!(read(&*store, &left), None);
    store.write(discard(&right)).unwrap();
    store.write(discard(&right)).unwrap();
    assert_eq!(store.runs(), Ok(vec![]), "nothing is left of the run");
    store.write(put_as(right.clone(), &state(3, 50))).unwrap();
    assert!(read(&*store, &right).is_some(), "it may come back");
}

fn what_is_no_checkpoint_is_refused(fresh: Fresh<'_>) {
    let store = fresh();
    let honest = header("a", 3, 1, "w", &state(1, 50));
    let refused = |header: Header, bytes: Bytes| store.write(put_as(header, &bytes));
    assert!(matches!(
        refused(honest.clone(), state(2, 50)),
        Err(StoreError::Unfit(FrameError::Corrupt(_)))
    ));
    let mut long = honest.clone();
    long.len += 1;
    assert!(matches!(refused(long, state(1, 50)), Err(StoreError::Unfit(FrameError::Corrupt(_)))));
    let huge = Bytes::from(vec![0; limits::STATE + 1]);
    assert!(matches!(
        refused(header("a", 3, 1, "w", &huge), huge),
        Err(StoreError::Unfit(FrameError::TooLarge { .. }))
    ));
    for contradiction in [
        Write::Put { spec: spec("b", 1), header: honest, state: state(1, 50) },
        Write::End { end: end("a", 3, Phase::Running), spec: spec("a", 1), output: None },
        Write::End { end: end("a", 3, Phase::Finished), spec: spec("a", 2), output: None },
    ] {
        assert!(matches!(store.write(contradiction), Err(StoreError::Invalid(_))));
    }
    assert_eq!(store.runs(), Ok(vec![]));
}

fn a_refused_write_leaves_the_batch_alone(fresh: Fresh<'_>) {
    let store = fresh();
    let results = store.apply(vec![
        put("a", 3, 1, &state(1, 50)),
        put_as(header("b", 3, 1, "w", b"other"), &state(1, 50)),
        finished("c", 3, Some("out")),
        put("c", 4, 1, &state(1, 50)),
        put("a", 3, 2, &state(2, 50)),
    ]);
    assert_eq!(results[0], Ok(()));
    assert!(matches!(results[1], Err(StoreError::Unfit(_))));
    assert_eq!(results[2], Ok(()));
    assert_eq!(results[3], Err(StoreError::Ended));
    assert_eq!(results[4], Ok(()));
    assert_eq!(results.len(), 5);
    let newest = header("a", 3, 2, "w", &state(2, 50));
    assert_eq!(store.runs().unwrap()[0].checkpoints, [newest]);
}

fn a_ninth_branch_is_refused(fresh: Fresh<'_>) {
    let store = fresh();
    for n in 0..Branches::MAX {
        let header = header("a", 3, 1, &format!("n{n}"), &state(1, 50));
        store.write(put_as(header, &state(1, 50))).unwrap();
    }
    assert_eq!(
        store.write(put("a", 3, 1, &state(1, 50))),
        Err(StoreError::TooManyBranches(Branches::MAX))
    );
    assert_eq!(store.runs().unwrap()[0].checkpoints.len(), Branches::MAX);
}

/// Random writes, in one batch or one by one, give the same runs; whatever is listed can be read.
fn any_batching_of_writes_gives_the_same(fresh: Fresh<'_>) {
    let write = (0..3u8, 1..4u64, 1..6u64, 0..10u8).prop_map(|(task, epoch, seq, what)| {
        let task = ["a", "b", "c"][usize::from(task)];
        match what {
            0 => finished(task, epoch, Some("out")),
            1 => Write::DropOutput { name: name(task), run: run(1) },
            2 => Write::Discard { name: name(task), run: run(1), headers: vec![] },
            3 => Write::Discard {
                name: name(task),
                run: run(1),
                headers: vec![(position(epoch, seq), session("w"))],
            },
            4 => Write::End {
                end: end(task, epoch, Phase::Failed),
                spec: spec(task, 1),
                output: None,
            },
            _ => put(task, epoch, seq, &state(epoch * 100 + seq, 64)),
        }
    });
    // Few cases: a durable store syncs every write.
    let config =
        ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(write, 1..30), |writes| {
            let (together, singly) = (fresh(), fresh());
            let batched = together.apply(writes.clone());
            let each: Vec<_> = writes.into_iter().map(|write| singly.write(write)).collect();
            prop_assert_eq!(batched, each);
            let listed = together.runs().unwrap();
            prop_assert_eq!(&listed, &singly.runs().unwrap());
            let mut outputs = BTreeMap::new();
            for run in &listed {
                for header in &run.checkpoints {
                    let of = header.position.epoch.0 * 100 + header.position.seq;
                    prop_assert_eq!(
                        read(&*together, header),
                        Some((header.clone(), state(of, 64)))
                    );
                }
                let output = together.get_output(&run.spec.name, run.spec.run).unwrap();
                prop_assert_eq!(
                    output.is_some(),
                    run.end.as_ref().is_some_and(|(_, output)| *output)
                );
                outputs.insert(run.spec.name.clone(), output);
            }
            for task in ["a", "b", "c"] {
                let kept = outputs.get(&name(task)).cloned().flatten();
                prop_assert_eq!(together.get_output(&name(task), run(1)).unwrap(), kept);
            }
            Ok(())
        })
        .unwrap();
}
