//! Handing over: what may fail on the way, who takes it, what is said (Rules 15 to 18, H1 to H6).

mod drains;
mod faults;
mod late;
mod targets;
mod words;

use std::time::Duration;

use super::world::{World, name};
use crate::core::claim::Phase;
use crate::core::ids::SessionId;
use crate::core::message::Message;

const S: Duration = Duration::from_secs(1);

/// The target of the offer that a drain of `owner` makes, told by a rehearsal.
fn target_of(world: &World, owner: &SessionId) -> SessionId {
    let mut rehearsal = world.clone();
    rehearsal.drain(owner, S * 25);
    rehearsal.run_for(S);
    rehearsal.running("a")[0].clone()
}

/// A cluster in which the second step of "a" takes another four seconds: its owner, and the others.
fn in_a_long_step(seed: u64) -> (World, SessionId, Vec<SessionId>) {
    let (mut world, nodes) = World::cluster(seed, 3);
    world.goal = 100_000;
    world.steps.insert(name("a"), S * 6);
    world.start(&nodes[0], "a");
    world.run_for(S * 8);
    let owner = world.runner("a");
    let others = nodes.into_iter().filter(|node| *node != owner).collect();
    (world, owner, others)
}

/// Who has accepted "a" and does not have it yet.
fn incoming(world: &World) -> Vec<SessionId> {
    let accepted = |node: &&SessionId| {
        let claim = world.claim_of(node, "a");
        claim.is_some_and(|claim| matches!(claim.phase, Phase::Incoming { .. }))
    };
    world.nodes.keys().filter(accepted).cloned().collect()
}

/// One copy, nowhere two, no step lost that a replica had acknowledged (H1, H3, H4).
fn assert_moved(world: &World) {
    world.assert_no_overlap();
    assert_eq!(world.running("a").len(), 1, "exactly one copy");
    let mut of: Vec<_> = world.stretches.iter().filter(|s| s.name == name("a")).collect();
    of.sort_by_key(|s| s.start);
    for pair in of.windows(2) {
        assert!(pair[0].epoch < pair[1].epoch, "H2: {pair:?}");
        assert!(pair[1].from_seq + 1 >= pair[0].to_seq, "H4: {pair:?}");
    }
}

fn is_offer(message: &Message) -> bool {
    matches!(message, Message::Offer { .. })
}
fn is_offer_reply(message: &Message) -> bool {
    matches!(message, Message::OfferReply { .. })
}
fn is_checkpoint_reply(message: &Message) -> bool {
    matches!(message, Message::CheckpointReply { .. })
}
fn is_transferred(message: &Message) -> bool {
    matches!(message, Message::Transferred { .. })
}
fn is_taken(message: &Message) -> bool {
    matches!(message, Message::Taken { .. })
}
