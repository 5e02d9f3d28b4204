//! Laws the protocol takes for granted: the view is a join, the order of claims is total.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::branch::Ancestor;
use super::claim::{Claim, Desired, Mode, Phase, Terms, Want};
use super::ids::{Name, NodeId, RunId, SessionId};
use super::lease::Epoch;
use super::timing::{InvalidTiming, Timing};
use super::view::View;

pub(crate) fn session() -> impl Strategy<Value = SessionId> {
    (0..4u8, 0..5u128).prop_map(|(node, nonce)| {
        SessionId::new(NodeId::new(format!("n{node}")).unwrap(), Uuid::from_u128(nonce))
    })
}

pub(crate) fn name() -> impl Strategy<Value = Name> {
    prop_oneof![Just("a"), Just("b")].prop_map(|text| Name::new(text).unwrap())
}

/// Mostly few, so that values meet; at times any.
fn count(few: u64) -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..few, 1 => any::<u64>(), 1 => u64::MAX - 2..=u64::MAX]
}

pub(crate) fn run() -> impl Strategy<Value = RunId> {
    let uuid = prop_oneof![8 => 0..5u128, 1 => any::<u128>()];
    (count(6), uuid).prop_map(|(number, uuid)| RunId { number, uuid: Uuid::from_u128(uuid) })
}

pub(crate) fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Claimed),
        session().prop_map(|from| Phase::Incoming { from }),
        Just(Phase::Recovering),
        Just(Phase::Running),
        Just(Phase::Paused),
        any::<bool>().prop_map(|until_resumed| Phase::Parked { until_resumed }),
        Just(Phase::Quarantined),
        (session(), 0..4u64).prop_map(|(to, epoch)| Phase::Transferred { to, epoch: Epoch(epoch) }),
        Just(Phase::Released),
        Just(Phase::Superseded),
        Just(Phase::Finished),
        Just(Phase::Failed),
        Just(Phase::Cancelled),
    ]
}

pub(crate) fn claim() -> impl Strategy<Value = Claim> {
    let version = prop_oneof![8 => 0..8u32, 1 => any::<u32>()];
    (name(), session(), count(8), version, run(), count(12), phase(), 0..3u64).prop_map(
        |(name, session, number, version, run, epoch, phase, seq)| Claim {
            name,
            session: session.clone(),
            number,
            version,
            run,
            epoch: Epoch(epoch),
            phase,
            terms: Terms { mode: Mode::Available, silence_floor: Duration::from_secs(10) },
            replicas: Vec::new(),
            floor: (seq > 0).then_some(Ancestor { epoch: Epoch(epoch), writer: session, seq }),
            checkpointed: seq > 0,
            strikes: 0,
            note: String::new(),
            heeded: 0,
            expired: false,
            resting: false,
        },
    )
}

/// Claims as sessions can write them: (session, number, version) names one record, which comes as
/// often as it likes.
fn claims() -> impl Strategy<Value = Vec<Claim>> {
    let again = prop::collection::vec(any::<prop::sample::Index>(), 0..8);
    (prop::collection::vec(claim(), 1..40), again).prop_map(|(claims, again)| {
        let mut written = BTreeMap::new();
        for mut claim in claims {
            // A session numbers its claims across names.
            claim.number = claim.number / 2 * 2 + u64::from(claim.name.as_str() == "b");
            let key = (claim.name.clone(), claim.session.clone(), claim.number, claim.version);
            written.entry(key).or_insert(claim);
        }
        let mut claims: Vec<Claim> = written.into_values().collect();
        let again: Vec<Claim> = again.iter().map(|at| at.get(&claims).clone()).collect();
        claims.extend(again);
        claims
    })
}

/// A record and one that differs from it under the same key, as no session writes them: by its phase,
/// or by its place in the order.
fn at_odds() -> impl Strategy<Value = (Claim, Claim)> {
    (claim(), claim()).prop_map(|(one, other)| {
        let (name, session) = (one.name.clone(), one.session.clone());
        let other = Claim { name, session, number: one.number, version: one.version, ..other };
        (one, other)
    })
}

fn view<'a>(claims: impl IntoIterator<Item = &'a Claim>) -> View {
    let mut view = View::default();
    claims.into_iter().for_each(|claim| {
        view.merge(claim.clone());
    });
    view
}

pub(crate) fn desired() -> impl Strategy<Value = Desired> {
    let want = prop_oneof![Just(Want::Run), Just(Want::Pause), Just(Want::Cancel)];
    (name(), run(), count(8), session(), want)
        .prop_map(|(name, run, version, writer, want)| Desired { name, run, version, writer, want })
}

fn join(a: &Desired, b: &Desired) -> Desired {
    if b.replaces(a) { b.clone() } else { a.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Commutative and associative: any order, and any repetition, ends in the same view (R1).
    #[test]
    fn the_view_is_the_same_in_whatever_order_claims_arrive(
        (claims, shuffled) in claims().prop_flat_map(|claims| {
            (Just(claims.clone()), Just(claims).prop_shuffle())
        }),
    ) {
        prop_assert_eq!(view(&claims), view(&shuffled));
    }

    #[test]
    fn the_view_is_idempotent(claims in claims()) {
        let mut once = view(&claims);
        let before = once.clone();
        for claim in &claims {
            prop_assert!(!once.merge(claim.clone()), "{:?} changed what knew it", claim);
        }
        prop_assert_eq!(once, before);
    }

    #[test]
    fn two_halves_of_knowledge_join_into_the_whole(claims in claims(), at in 0..48usize) {
        let (left, right) = claims.split_at(at % (claims.len() + 1));
        let joined = view(view_claims(&view(left)).iter().chain(&view_claims(&view(right))));
        let whole = view(&claims);
        for name in whole.names() {
            prop_assert_eq!(whole.owner(name), joined.owner(name));
            prop_assert_eq!(whole.top(name), joined.top(name));
        }
    }

    /// Two records under one key: only a session that errs writes them, and even so all come to hold
    /// the same one, unless nothing in the order of claims tells them apart.
    #[test]
    fn of_two_records_under_one_key_the_same_one_stands_everywhere((one, other) in at_odds()) {
        let (left, right) = (view([&one, &other]), view([&other, &one]));
        prop_assert_eq!(left.epoch(&one.name), right.epoch(&one.name));
        let released = |claim: &Claim| claim.phase == Phase::Released;
        if one.order(&other).is_ne() || released(&one) != released(&other) {
            prop_assert_eq!(left, right);
        }
    }

    /// At equal knowledge exactly one winner (L1).
    #[test]
    fn the_same_knowledge_names_the_same_winner(
        (claims, shuffled) in claims().prop_flat_map(|claims| {
            (Just(claims.clone()), Just(claims).prop_shuffle())
        }),
    ) {
        let (one, other) = (view(&claims), view(&shuffled));
        for name in one.names() {
            prop_assert_eq!(one.owner(name), other.owner(name));
            prop_assert_eq!(one.top(name), other.top(name));
            prop_assert_eq!(one.epoch(name), other.epoch(name));
        }
    }

    #[test]
    fn the_order_of_claims_is_total_and_strict_between_sessions(
        a in claim(), b in claim(), c in claim(),
    ) {
        prop_assert_eq!(a.order(&a), Ordering::Equal);
        prop_assert_eq!(a.order(&b), b.order(&a).reverse());
        if a.session != b.session {
            prop_assert_ne!(a.order(&b), Ordering::Equal);
        }
        if a.order(&b).is_ge() && b.order(&c).is_ge() {
            prop_assert!(a.order(&c).is_ge());
        }
        // Where only the session differs it alone decides.
        let twin = Claim { session: b.session.clone(), ..a.clone() };
        prop_assert_eq!(a.order(&twin), a.session.cmp(&b.session));
    }

    #[test]
    fn the_desired_state_is_a_join(a in desired(), b in desired(), c in desired()) {
        prop_assert!(!a.replaces(&a));
        let in_name = |d: &Desired| Desired { name: a.name.clone(), ..d.clone() };
        // Also one that a writer has given the version of another: only what is wanted differs.
        let twin = Desired { version: a.version, run: a.run, writer: a.writer.clone(), ..in_name(&c) };
        prop_assert_eq!(join(&a, &twin), join(&twin, &a));
        let (b, c) = (in_name(&b), in_name(&c));
        prop_assert_eq!(join(&a, &b), join(&b, &a));
        prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
        if a.want == Want::Cancel && a.run == b.run {
            prop_assert_eq!(join(&a, &b).want, Want::Cancel);
        }
    }

    /// Whatever passes the check satisfies what the rules rely on.
    #[test]
    fn timings_that_pass_the_check_keep_their_relations(
        g in 0..3_000u64, t in 0..30_000u64, alone in 0..60_000u64, grace in 0..200_000u64,
        tombstones in 0..400_000u64, rank in 0..30_000u64,
    ) {
        let ms = Duration::from_millis;
        let timing = Timing {
            gossip_interval: ms(g),
            silence_floor: ms(t),
            takeover_delay: ms(rank),
            alone_after: ms(alone),
            dead_node_grace: ms(grace),
            tombstone_retention: ms(tombstones),
            ..Timing::default()
        };
        let holds = g > 0 && t > 0 && alone > 0 && grace > 0 && rank > 0
            && 8 * g <= t && rank <= t && t <= alone && 4 * t <= grace && 2 * grace <= tombstones;
        match timing.check() {
            Ok(()) => prop_assert!(holds, "{:?}", timing),
            Err(InvalidTiming::Zero(_)) => prop_assert!(g * t * alone * grace * rank == 0),
            Err(error) => prop_assert!(!holds, "{}", error),
        }
    }
}

fn view_claims(view: &View) -> Vec<Claim> {
    view.names().flat_map(|name| view.claims(name).cloned()).collect()
}

#[test]
fn the_defaults_pass_the_check() {
    Timing::default().check().unwrap();
}
