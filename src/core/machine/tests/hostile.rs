//! What authenticated but wrong peers can say: nothing panics, and memory stays bounded.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::Union;

use super::world::World;
use crate::core::branch::{Ancestor, Header, Position};
use crate::core::claim::{Claim, Phase, Spec, Want};
use crate::core::ids::{Kind, Name, RunId, SessionId};
use crate::core::io::{Action, CallError, Cause, Event, Gone, Now, Stop};
use crate::core::laws::{claim, desired, name, phase, run, session};
use crate::core::lease::Epoch;
use crate::core::machine::Machine;
use crate::core::message::{Answer, Message, Question, Refusal, Rejection, Said, Verdict};
use crate::core::record::NodeState;

fn epoch() -> impl Strategy<Value = Epoch> {
    prop_oneof![0..6u64, Just(u64::MAX - 1), Just(u64::MAX), any::<u64>()].prop_map(Epoch)
}

fn position() -> impl Strategy<Value = Position> {
    (epoch(), prop_oneof![0..5u64, Just(u64::MAX)]).prop_map(|(epoch, seq)| Position { epoch, seq })
}

fn wild_claim() -> impl Strategy<Value = Claim> {
    (claim(), epoch(), phase(), any::<u64>()).prop_map(|(claim, epoch, phase, number)| Claim {
        epoch,
        phase,
        number,
        ..claim
    })
}

fn spec() -> impl Strategy<Value = Spec> {
    (name(), run(), prop_oneof![Just("count"), Just("other")]).prop_map(|(name, run, kind)| Spec {
        name,
        run,
        kind: Kind::new(kind).unwrap(),
        args: Bytes::new(),
    })
}

fn header() -> impl Strategy<Value = Header> {
    let ancestor = (epoch(), session(), 0..5u64).prop_map(|(epoch, writer, seq)| Ancestor {
        epoch,
        writer,
        seq,
    });
    let lineage = prop::collection::vec(ancestor, 0..3);
    (name(), run(), position(), session(), lineage, 0..3u64, 0..4u32).prop_map(
        |(name, run, position, writer, lineage, len, state_version)| Header {
            name,
            run,
            kind: Kind::new("count").unwrap(),
            position,
            writer,
            lineage,
            state_version,
            revision: String::new(),
            wall_ms: 0,
            len,
            hash: 0,
            progress: None,
        },
    )
}

fn question() -> impl Strategy<Value = Question> {
    (wild_claim(), spec(), prop::option::of(session())).prop_map(|(claim, spec, from)| Question {
        claim,
        spec,
        from,
    })
}

fn cause() -> impl Strategy<Value = Cause> {
    prop_oneof![Just(Cause::Drain), Just(Cause::Rollback), Just(Cause::Unparked)]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        Just(Refusal::Incompatible),
        Just(Refusal::Full),
        Just(Refusal::NotUp),
        epoch().prop_map(Refusal::Held),
    ]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Ok),
        Just(Verdict::Yields),
        wild_claim().prop_map(|claim| Verdict::Held(Box::new(claim))),
        Just(Verdict::Buried),
    ]
}

fn state() -> impl Strategy<Value = Bytes> {
    (0..3usize).prop_map(|len| Bytes::from(vec![0; len]))
}

fn plain() -> impl Strategy<Value = Message> {
    let node_state = (0..7u8).prop_map(|code| NodeState::from_code(code).unwrap());
    let result = prop_oneof![Just(Ok(())), refusal().prop_map(Err)];
    let kept = prop_oneof![
        Just(Ok(())),
        wild_claim().prop_map(|claim| Err(Rejection::Superseded(Box::new(claim)))),
        Just(Err(Rejection::Unavailable("full".to_owned()))),
    ];
    let ran = prop_oneof![run().prop_map(Ok), refusal().prop_map(Err)];
    let sessions = prop::collection::vec(session(), 0..4);
    let gone = prop::sample::select(vec![Gone::Left, Gone::Superseded, Gone::Dead, Gone::Silent]);
    let said = (session(), node_state.clone(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
        |(session, state, version, watermark, linked)| Said {
            session,
            version,
            state,
            watermark,
            released: vec![1, watermark, u64::MAX],
            linked,
        },
    );
    let answer = (name(), epoch(), verdict(), prop::collection::vec(session(), 0..4))
        .prop_flat_map(|(name, epoch, verdict, askers)| {
            prop::collection::vec(wild_claim(), 0..3).prop_map(move |known| Answer {
                held: None,
                name: name.clone(),
                epoch,
                verdict: verdict.clone(),
                askers: askers.clone(),
                known,
            })
        });
    let all: Vec<BoxedStrategy<Message>> = vec![
        (node_state.clone(), 0..4u64)
            .prop_map(|(state, version)| Message::State { state, version })
            .boxed(),
        prop::collection::vec(session(), 0..4)
            .prop_map(|sessions| Message::Unheard { sessions })
            .boxed(),
        prop::collection::vec(said, 0..3).prop_map(|said| Message::Hearsay { said }).boxed(),
        Just(Message::Leave).boxed(),
        Just(Message::LeaveHeard).boxed(),
        session().prop_map(|session| Message::Dead { session }).boxed(),
        prop::collection::vec((session(), gone), 0..4)
            .prop_map(|sessions| Message::Gone { sessions })
            .boxed(),
        sessions.prop_map(|sessions| Message::Buried { sessions }).boxed(),
        header().prop_map(|header| Message::Obsolete { header }).boxed(),
        (0..3u64, spec()).prop_map(|(call, spec)| Message::Start { call, spec }).boxed(),
        (0..3u64, ran).prop_map(|(call, result)| Message::StartReply { call, result }).boxed(),
        prop::collection::vec(question(), 0..4).prop_map(|asks| Message::Ask { asks }).boxed(),
        prop::collection::vec(answer, 0..3)
            .prop_map(|answers| Message::Answers { answers })
            .boxed(),
        (wild_claim(), epoch(), spec(), prop::option::of(desired()), any::<bool>(), cause())
            .prop_map(|(claim, epoch, spec, desired, idle, cause)| Message::Offer {
                claim,
                epoch,
                spec,
                desired,
                idle,
                version: idle.then_some(1),
                cause,
            })
            .boxed(),
        (name(), epoch(), result)
            .prop_map(|(name, epoch, result)| Message::OfferReply { name, epoch, result })
            .boxed(),
        (name(), epoch()).prop_map(|(name, epoch)| Message::Withdraw { name, epoch }).boxed(),
        (wild_claim(), spec(), header(), state())
            .prop_map(|(claim, spec, header, state)| Message::Checkpoint {
                claim,
                spec,
                header,
                state,
            })
            .boxed(),
        (name(), run(), position(), kept)
            .prop_map(|(name, run, position, result)| Message::CheckpointReply {
                name,
                run,
                position,
                result,
            })
            .boxed(),
        (name(), run(), epoch(), prop::option::of(header()))
            .prop_map(|(name, run, epoch, sealed)| Message::Transferred {
                name,
                run,
                epoch,
                sealed,
            })
            .boxed(),
        (name(), epoch()).prop_map(|(name, epoch)| Message::Taken { name, epoch }).boxed(),
        (name(), run()).prop_map(|(name, run)| Message::FindState { name, run }).boxed(),
        (name(), run(), prop::collection::vec(header(), 0..12))
            .prop_map(|(name, run, headers)| Message::States { name, run, headers })
            .boxed(),
        (name(), run(), position(), session())
            .prop_map(|(name, run, position, writer)| Message::GetState {
                name,
                run,
                position,
                writer,
            })
            .boxed(),
        (header(), prop::option::of(state()))
            .prop_map(|(header, state)| Message::StateData { header, state })
            .boxed(),
        (wild_claim(), spec(), prop::option::of(state()))
            .prop_map(|(claim, spec, output)| Message::Ended {
                claim,
                spec,
                output,
                age: Duration::MAX,
            })
            .boxed(),
        (name(), run()).prop_map(|(name, run)| Message::EndedReply { name, run }).boxed(),
        desired().prop_map(|desired| Message::Desire { desired }).boxed(),
        prop::collection::vec((name(), run(), prop::option::of(position())), 0..4)
            .prop_map(|offers| Message::Found { offers })
            .boxed(),
    ];
    Union::new(all)
}

fn message() -> impl Strategy<Value = Message> {
    let relay = (session(), session(), plain()).prop_map(|(from, to, message)| Message::Relay {
        from,
        to,
        message: Box::new(message),
    });
    prop_oneof![8 => plain(), 1 => relay]
}

/// Not among the names that hostile messages speak of.
const STEADY: &str = "steady";

thread_local! {
    static CLUSTER: (World, Vec<SessionId>) = {
        let (mut world, nodes) = World::cluster(1, 3);
        world.goal = 1_000_000;
        for task in ["a", STEADY] {
            world.start(&nodes[0], task);
            world.run_for(Duration::from_secs(2));
            // Only the owner of the first one takes the second.
            let owner = world.runner("a");
            for node in nodes.iter().filter(|node| **node != owner) {
                world.give(node, Event::Cordon(true));
            }
            world.run_for(Duration::from_secs(2));
        }
        assert_eq!(world.running("a"), world.running(STEADY));
        for node in &nodes {
            world.give(node, Event::Cordon(false));
        }
        world.run_for(Duration::from_secs(2));
        (world, nodes)
    };
}

fn machine() -> (Machine, Now, Vec<SessionId>) {
    CLUSTER.with(|(world, nodes)| {
        let owner = world.running("a")[0].clone();
        (world.nodes[&owner].machine.clone(), world.clock(), nodes.clone())
    })
}

/// What `run` and `pause` are told, and whether the task to be paused is, while all peers answer as
/// they should.
#[derive(Debug, Default)]
struct Told {
    run: Option<Result<RunId, CallError>>,
    pause: Option<Result<RunId, CallError>>,
    stops: bool,
}

fn use_it(machine: &mut Machine, mut now: Now, nodes: &[SessionId]) -> Told {
    let (steady, me) = (super::world::name(STEADY), machine.config.me.clone());
    let spec = Spec {
        name: super::world::name("fresh"),
        run: RunId { number: 0, uuid: uuid::Uuid::from_u128(99) },
        kind: Kind::new("count").unwrap(),
        args: Bytes::new(),
    };
    let mut told = Told::default();
    machine.handle(now, Event::Run { call: 1, spec, again: false });
    machine
        .handle(now, Event::Want { call: 2, name: steady.clone(), run: None, want: Want::Pause });
    for _ in 0..300 {
        let mut answers = Vec::new();
        while let Some(action) = machine.poll() {
            match action {
                Action::Reply { call: 1, result } => told.run = Some(result),
                Action::Reply { call: 2, result } => told.pause = Some(result),
                Action::Stop { name, how: Stop::Boundary { .. } } if name == steady => {
                    told.stops = true;
                }
                Action::Send { to, message: Message::Start { call, spec } } => {
                    answers.push((to, Message::StartReply { call, result: Ok(spec.run) }));
                }
                Action::Send { to, message: Message::Ask { asks } } => {
                    let ok = |ask: &Question| Answer {
                        held: None,
                        name: ask.claim.name.clone(),
                        epoch: ask.claim.epoch,
                        verdict: Verdict::Ok,
                        askers: Vec::new(),
                        known: Vec::new(),
                    };
                    let answers_all = asks.iter().map(ok).collect();
                    answers.push((to, Message::Answers { answers: answers_all }));
                }
                _ => {}
            }
        }
        for (from, message) in answers.into_iter().filter(|(from, _)| nodes.contains(from)) {
            machine.handle(now, Event::Message { from, message });
        }
        for peer in nodes.iter().filter(|peer| **peer != me) {
            let heard = Event::Heard {
                from: peer.clone(),
                state: NodeState::Up,
                version: u64::MAX,
                watermark: 0,
                released: Vec::new(),
                echoed: Some(now.at),
            };
            machine.handle(now, heard);
        }
        now.at = now.at + Duration::from_millis(100);
        machine.handle(now, Event::Tick);
    }
    told
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 200,
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_message_panics_the_machine_or_makes_it_answer_without_bound(
        messages in prop::collection::vec((0..3usize, message(), 0..800u64), 1..40),
    ) {
        let (mut machine, mut now, nodes) = machine();
        for (from, message, wait) in messages {
            now.at = now.at + Duration::from_millis(wait);
            machine.handle(now, Event::Message { from: nodes[from].clone(), message });
            let mut actions = 0;
            while let Some(action) = machine.poll() {
                actions += 1;
                let stops = matches!(&action, Action::Stop { name, .. } if name.as_str() == STEADY);
                prop_assert!(!stops, "nobody spoke of it");
            }
            prop_assert!(actions < 500, "one message makes {actions} actions");
        }
        // What it ran it still runs, and it is of use to its users.
        let steady = super::world::name(STEADY);
        let owner = machine.view().owner(&steady).unwrap();
        prop_assert_eq!((&owner.session, &owner.phase), (&machine.config.me, &Phase::Running));
        let run = owner.run;
        let told = use_it(&mut machine, now, &nodes);
        prop_assert_eq!(told.pause, Some(Ok(run)));
        prop_assert!(told.stops, "it is to be paused");
        // A peer that is invented never answers, and where all others have said goodbye there is nobody
        // to tell it by (S2): the caller's own timeout ends that.
        let live = |node: &SessionId| *node != machine.config.me && !machine.members.is_gone(node);
        match told.run {
            None => prop_assert!(!nodes.iter().any(live), "somebody could have answered"),
            Some(result) => prop_assert!(result.is_ok(), "{result:?}"),
        }
    }
}

#[test]
fn names_sessions_and_askers_without_number_fill_no_memory() {
    let (mut machine, now, nodes) = machine();
    machine.config.max_names = 50;
    for i in 0..11_000u64 {
        let name = Name::new(format!("x{i}")).unwrap();
        let run = RunId { number: 1, uuid: uuid::Uuid::from_u128(u128::from(i)) };
        let spec =
            Spec { name: name.clone(), run, kind: Kind::new("count").unwrap(), args: Bytes::new() };
        let mine = machine.view().claims(&super::world::name("a")).next().unwrap().clone();
        let claim = Claim { name: name.clone(), session: nodes[1].clone(), run, number: i, ..mine };
        let invented = SessionId::new(nodes[1].node.clone(), run.uuid);
        let messages = [
            Message::Ask {
                asks: vec![Question { claim: claim.clone(), spec: spec.clone(), from: None }],
            },
            Message::Found { offers: vec![(name.clone(), run, None)] },
            Message::Ended { claim, spec, output: None, age: Duration::ZERO },
            Message::Dead { session: invented.clone() },
            Message::Relay {
                from: invented.clone(),
                to: machine.config.me.clone(),
                message: Box::new(Message::Leave),
            },
            Message::Buried { sessions: vec![invented] },
        ];
        for message in messages {
            machine.handle(now, Event::Message { from: nodes[1].clone(), message });
            while machine.poll().is_some() {}
        }
    }
    assert!(machine.specs.len() <= 60, "{} specs", machine.specs.len());
    assert!(machine.view().len() <= 60, "{} names", machine.view().len());
    assert!(machine.askers.len() <= 60, "{} askers", machine.askers.len());
    assert!(machine.members.iter().count() <= 4_096);
    assert!(machine.ends.len() <= 60, "{} ends", machine.ends.len());
    let told = use_it(&mut machine, now, &nodes);
    assert!(matches!(told.pause, Some(Ok(_))) && told.stops, "{told:?}");
    // It is full of names, and says so, or another node has taken it.
    assert!(told.run.is_some(), "{told:?}");
}

/// A relayed goodbye is the word of who relays it: who is heard has not left.
#[test]
fn a_goodbye_that_another_relays_does_not_outweigh_what_is_heard_of_its_writer() {
    let (machine, now, nodes) = machine();
    let me = machine.config.me.clone();
    let others: Vec<SessionId> = nodes.into_iter().filter(|node| *node != me).collect();
    let relayed = |of: &SessionId| Event::Message {
        from: others[0].clone(),
        message: Message::Relay {
            from: of.clone(),
            to: me.clone(),
            message: Box::new(Message::Leave),
        },
    };
    let says = |state, version| Event::Heard {
        from: others[1].clone(),
        state,
        version,
        watermark: 0,
        released: Vec::new(),
        echoed: None,
    };
    let heard = |machine: &mut Machine| {
        std::iter::from_fn(|| machine.poll())
            .any(|action| format!("{action:?}").contains("LeaveHeard"))
    };
    let mut lied_to = machine.clone();
    lied_to.handle(now, relayed(&others[1]));
    assert!(!lied_to.members.is_gone(&others[1]));
    assert!(!heard(&mut lied_to));

    // Its own header says that it is leaving.
    let mut told = machine;
    told.handle(now, says(NodeState::Leaving, 1_000));
    told.handle(now, relayed(&others[1]));
    assert!(told.members.is_gone(&others[1]));
    assert!(heard(&mut told));
}

/// Rule 5 wants two observers: one that relays what the other never said must not be both.
#[test]
fn one_peer_cannot_stand_for_two_observers_of_a_death() {
    let (mut machine, now, nodes) = machine();
    let me = machine.config.me.clone();
    let third = SessionId::new(crate::core::ids::NodeId::new("n9").unwrap(), uuid::Uuid::max());
    let others: Vec<SessionId> = nodes.into_iter().filter(|node| *node != me).collect();
    let up = |of: &SessionId| Event::Heard {
        from: of.clone(),
        state: NodeState::Up,
        version: 1,
        watermark: 0,
        released: Vec::new(),
        echoed: Some(now.at),
    };
    machine.handle(now, up(&third));
    assert!(machine.members.get(&third).is_some_and(|peer| peer.is_live()));
    let dead = Message::Dead { session: third.clone() };
    let relay = Message::Relay { from: others[1].clone(), to: me, message: Box::new(dead.clone()) };
    for message in [dead, relay] {
        machine.handle(now, Event::Message { from: others[0].clone(), message });
    }
    assert!(!machine.members.is_gone(&third));
    let second = Message::Dead { session: third.clone() };
    machine.handle(now, Event::Message { from: others[1].clone(), message: second });
    assert!(machine.members.is_gone(&third), "two observers are enough");
}

/// Checkpoints and specs of runs that nobody runs: they are bounded, and the run that stands stays.
#[test]
fn invented_runs_of_a_name_push_out_nothing_of_the_run_that_stands() {
    let (owner, now, nodes) = machine();
    let name = super::world::name("a");
    let claim = owner.tasks[&name].claim.clone();
    let spec = owner.tasks[&name].spec.clone();
    let latest = owner.tasks[&name].latest.clone().unwrap();
    // One that keeps a replica, too.
    let replica = CLUSTER.with(|(world, nodes)| {
        let held = |node: &&SessionId| {
            let machine = &world.nodes[*node].machine;
            machine.config.me != claim.session && machine.held.contains_key(&name)
        };
        world.nodes[nodes.iter().find(held).unwrap()].machine.clone()
    });
    for mut machine in [owner, replica] {
        let from = nodes.iter().find(|node| **node != machine.config.me).unwrap().clone();
        for number in [0].into_iter().chain(2..200).chain([u64::MAX]) {
            let run = RunId { number, uuid: uuid::Uuid::from_u128(u128::from(number)) };
            let spec = Spec { run, ..spec.clone() };
            let header = Header { run, ..latest.clone() };
            let invented = SessionId::new(from.node.clone(), uuid::Uuid::max());
            let claim = Claim { run, session: invented, ..claim.clone() };
            let state = Bytes::from(vec![0; latest.len as usize]);
            let message = Message::Checkpoint { claim, spec: spec.clone(), header, state };
            machine.handle(now, Event::Message { from: from.clone(), message });
            machine.handle(now, Event::Specs { specs: vec![spec] });
            while machine.poll().is_some() {}
        }
        let held = machine.held.get(&name).unwrap();
        assert!(held.len() <= 4, "{} runs", held.len());
        assert!(held.get(&claim.run).is_some_and(|branches| !branches.is_empty()));
        assert!(machine.other_specs[&name].len() <= 4);
        assert!(machine.spec_of(&name, claim.run).is_some());
    }
}
