//! Settling (Rule 13), exhaustively: every order of events on three and on four nodes, for membership
//! views that are equal, one-sided, bridged, in a ring, only just formed, and disjoint. Never two
//! copies among nodes that a message can go between, never none, and whoever calls `run` is told the
//! run that starts.
//!
//! Disjoint views are of two kinds. Where each half has links to the other and has heard nothing of
//! it yet, one copy starts in all; where nothing at all goes between them, one starts in each half:
//! the partition of which Rule 21 ends the second copy at the heal.

use std::collections::BTreeSet;

use super::explorer::{Begin, Case, Found, Gossip, Knows, Views, explore, parts};

fn all(nodes: usize, knows: Knows) -> Views {
    vec![vec![knows; nodes]; nodes]
}

fn views(nodes: usize) -> Vec<(&'static str, Views)> {
    use Knows::{Joining, Linked, Live, Nothing};
    let equal = all(nodes, Live);
    let (mut one_sided, mut bridged) = (equal.clone(), equal.clone());
    let last = nodes - 1;
    one_sided[last][0] = Linked;
    bridged[0][last] = Nothing;
    bridged[last][0] = Nothing;
    let (mut ring, mut late) = (equal.clone(), equal.clone());
    for i in 0..nodes {
        ring[i][(i + 1) % nodes] = Linked;
        late[i][(i + 1) % nodes] = Joining;
    }
    let mut views = vec![
        ("equal", equal),
        ("one-sided", one_sided),
        ("bridged", bridged),
        ("ring", ring),
        ("just up", all(nodes, Joining)),
        ("just up, half of it known", late),
    ];
    // A node that knows nobody is not up: halves have two nodes.
    if nodes == 4 {
        views.push(("disjoint, linked", halves(Linked)));
    }
    views
}

/// Four nodes: each half knows itself, and of the other one only this.
fn halves(across: Knows) -> Views {
    let knows = |i: usize, j: usize| if i / 2 == j / 2 { Knows::Live } else { across };
    (0..4).map(|i| (0..4).map(|j| knows(i, j)).collect()).collect()
}

/// Every set of so many claimants.
fn claimants(nodes: usize, many: usize) -> Vec<Vec<usize>> {
    let sets = (0..1usize << nodes).map(|set| (0..nodes).filter(|i| set >> i & 1 == 1).collect());
    sets.filter(|set: &Vec<usize>| set.len() == many).collect()
}

/// Every view of so many nodes with every set of so many claimants.
fn cases(nodes: usize, many: usize, begin: Begin, gossip: Gossip) -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, views) in views(nodes) {
        for claimants in claimants(nodes, many) {
            let (views, rising) = (views.clone(), Vec::new());
            cases.push(Case { what, views, claimants, begin, rising, gossip, settling: true });
        }
    }
    cases
}

/// Nodes that become up while others start the name, each known to be joining by all others.
fn rising(begin: Begin, gossip: Gossip) -> Vec<Case> {
    let mut cases = Vec::new();
    for rising in [vec![2], vec![0, 1, 2]] {
        let mut views = all(3, Knows::Live);
        for row in &mut views {
            rising.iter().for_each(|of| row[*of] = Knows::Joining);
        }
        for claimants in (2..=3).flat_map(|many| claimants(3, many)) {
            let (what, views, rising) = ("rising", views.clone(), rising.clone());
            cases.push(Case { what, views, claimants, begin, rising, gossip, settling: true });
        }
    }
    cases
}

/// One copy starts in each part that has a claimant: where all can reach each other, exactly one.
fn assert_exactly_one(case: &Case) -> Found {
    let found = explore(case);
    println!(
        "{} nodes, {} {:?} rising {:?} {:?}: {} states, {} ends, {} to {} copies, {} misled",
        case.views.len(),
        case.what,
        case.claimants,
        case.rising,
        case.begin,
        found.states,
        found.ends,
        found.fewest.unwrap_or(0),
        found.most,
        found.misled
    );
    let parts = parts(&case.views);
    let of = case.claimants.iter().map(|claimant| parts[*claimant]);
    let copies = of.collect::<BTreeSet<usize>>().len();
    assert!(found.ends > 0 && found.states > 2);
    assert!(found.most <= copies, "two copies: {case:?}\n{}", found.story);
    assert_eq!(found.fewest, Some(copies), "none: {case:?} {found:?}");
    assert_eq!(found.misled, 0, "{case:?}\n{}", found.story);
    found
}

/// Returns how many states were explored.
fn assert_exactly_one_in_each(cases: Vec<Case>) -> usize {
    let states: usize = cases.iter().map(|case| assert_exactly_one(case).states).sum();
    println!("{states} states in {} cases", cases.len());
    states
}

/// The documents say how much was explored: at least so many states.
fn assert_as_documented(explored: usize, documented: &str) {
    let semantics = include_str!("../../../../docs/semantics.md");
    let documented_there = semantics.contains(&format!("{documented} states"));
    assert!(documented_there, "say in docs/semantics.md, Rule 13: {explored} states");
    let least: usize = documented.replace(',', "").parse().unwrap();
    assert!(explored >= least, "docs/semantics.md, Rule 13, promises {least}, not {explored}");
}

#[test]
fn settling_lets_exactly_one_of_two_start_in_every_interleaving() {
    let explore = |begin| assert_exactly_one_in_each(cases(3, 2, begin, Gossip::Never));
    let explored = explore(Begin::ClaimSame) + explore(Begin::ClaimOwn);
    assert_as_documented(explored, "5,000");
}

#[test]
fn settling_lets_exactly_one_of_three_start_in_every_interleaving() {
    let explore = |begin| {
        let mut cases = cases(3, 3, begin, Gossip::Never);
        // They have by far the most orders, and those of nodes that rise are explored below.
        cases.retain(|case| !case.what.starts_with("just up"));
        assert_exactly_one_in_each(cases)
    };
    let explored = explore(Begin::ClaimSame) + explore(Begin::ClaimOwn);
    assert_as_documented(explored, "40,000");
}

#[test]
fn settling_lets_exactly_one_of_two_start_on_four_nodes() {
    let mut cases = cases(4, 2, Begin::ClaimOwn, Gossip::Never);
    // Most differ in nothing but which node is called which: all are explored in release builds.
    cases.retain(|case| matches!(case.claimants[..], [0, 2 | 3]));
    assert_as_documented(assert_exactly_one_in_each(cases), "21,000");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes unless optimised: cargo test --release")]
fn settling_lets_exactly_one_start_on_four_nodes_whichever_two_claim() {
    let explore = |begin| assert_exactly_one_in_each(cases(4, 2, begin, Gossip::Never));
    let explored = explore(Begin::ClaimSame) + explore(Begin::ClaimOwn);
    assert_as_documented(explored, "130,000");
}

#[test]
#[ignore = "takes minutes even if optimised: cargo test --release -- --ignored"]
fn settling_lets_exactly_one_of_three_start_on_four_nodes() {
    let mut cases = cases(4, 3, Begin::ClaimOwn, Gossip::Never);
    cases.retain(|case| matches!(case.claimants[..], [0, 1, 2] | [0, 2, 3]));
    cases.retain(|case| case.what == "bridged" || case.what.starts_with("disjoint"));
    assert_as_documented(assert_exactly_one_in_each(cases), "740,000");
}

/// Nothing goes between the halves: one copy in each, and never two.
#[test]
fn each_half_of_a_partition_starts_exactly_one() {
    for begin in [Begin::ClaimSame, Begin::ClaimOwn] {
        for claimants in claimants(4, 2) {
            let (what, views) = ("disjoint, cut", halves(Knows::Nothing));
            let (rising, gossip) = (Vec::new(), Gossip::Never);
            let case = Case { what, views, claimants, begin, rising, gossip, settling: true };
            assert_exactly_one(&case);
        }
    }
}

#[test]
fn nodes_that_become_up_meanwhile_start_no_second_copy() {
    let explored = assert_exactly_one_in_each(rising(Begin::ClaimOwn, Gossip::Never));
    assert_as_documented(explored, "13,000");
}

#[test]
fn run_returns_the_run_that_starts_in_every_interleaving() {
    let explore = |many| assert_exactly_one_in_each(cases(3, many, Begin::Run, Gossip::Last));
    assert_as_documented(explore(2) + explore(3), "11,000");
    let mut four = cases(4, 2, Begin::Run, Gossip::Last);
    four.retain(|case| case.what.starts_with("disjoint"));
    assert_as_documented(assert_exactly_one_in_each(four), "8,000");
}

#[test]
fn run_returns_the_run_that_starts_whatever_gossip_brings_when() {
    let mut cases = cases(3, 2, Begin::Run, Gossip::Whenever);
    // Where all know each other, calls go to one node, and there is little that can go wrong.
    cases.retain(|case| case.claimants == [0, 2] && case.what == "just up");
    assert_as_documented(assert_exactly_one_in_each(cases), "14,000");
}

#[test]
fn run_returns_the_run_that_starts_on_nodes_that_have_just_become_up() {
    let explored = assert_exactly_one_in_each(rising(Begin::Run, Gossip::Last));
    assert_as_documented(explored, "8,100");
}

/// The control: the explorer does find two copies where nothing prevents them.
#[test]
fn without_settling_every_case_has_two_copies() {
    for begin in [Begin::ClaimSame, Begin::ClaimOwn] {
        for case in cases(3, 2, begin, Gossip::Never) {
            let found = explore(&Case { settling: false, ..case.clone() });
            assert!(found.most >= 2, "{case:?} {found:?}");
        }
    }
}
