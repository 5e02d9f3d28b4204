//! One name, several kinds of task.

use std::time::Duration;

use bytes::Bytes;

use super::world::{MS, Setup, World, name};
use crate::core::claim::{Phase, Spec};
use crate::core::ids::{Kind, RunId, SessionId};
use crate::core::io::{CallError, Event};
use crate::core::message::{Message, Refusal};

const S: Duration = Duration::from_secs(1);

/// Joining it would give a handle of the wrong type, and the arguments to nobody.
#[test]
fn a_name_is_not_joined_as_a_task_of_another_kind() {
    let setup = Setup { kinds: vec![("count", 1), ("other", 1)], ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(31, 3, &setup);
    world.goal = 100;
    let answer =
        |world: &World, at: &SessionId, call: u64| world.nodes[at].replies.get(&call).cloned();
    let refused = || Some(Err(CallError::OtherKind(Kind::new("count").unwrap())));
    let first = world.start(&nodes[0], "a");
    // While it settles, here or where it was placed.
    let second = world.start_kind(&nodes[0], "a", "other", false);
    world.run_for(S);
    assert_eq!(answer(&world, &nodes[0], second), refused());
    let run = answer(&world, &nodes[0], first).unwrap().unwrap();
    for again in [false, true] {
        for at in &nodes {
            let call = world.start_kind(at, "a", "other", again);
            let same = world.start(at, "a");
            world.run_for(MS * 100);
            assert_eq!(answer(&world, at, call), refused(), "{at}");
            assert_eq!(answer(&world, at, same), Some(Ok(run)), "{at}");
        }
    }
    // A start that was sent on before the run was known.
    let owner = world.runner("a");
    let from = nodes.iter().find(|node| **node != owner).unwrap().clone();
    let kind = Kind::new("other").unwrap();
    let spec = Spec { name: name("a"), run, kind, args: Bytes::new() };
    world.record_messages = true;
    world.give(&owner, Event::Message { from, message: Message::Start { call: 9, spec } });
    let told = |result: &Result<RunId, Refusal>| {
        *result == Err(Refusal::OtherKind(Kind::new("count").unwrap()))
    };
    assert!(
        world.sent.iter().any(
            |(_, _, _, m)| matches!(m, Message::StartReply { call: 9, result } if told(result))
        )
    );

    world.run_for(S * 10);
    assert_eq!(world.owner(&nodes[0], "a").unwrap().phase, Phase::Finished);
    let joins = world.start_kind(&nodes[1], "a", "other", false);
    let anew = world.start_kind(&nodes[2], "a", "other", true);
    world.run_for(S);
    assert_eq!(answer(&world, &nodes[1], joins), refused(), "it is retained");
    let anew = answer(&world, &nodes[2], anew).unwrap().unwrap();
    assert!(anew.number > run.number, "an ended name is free for `rerun`");
}
