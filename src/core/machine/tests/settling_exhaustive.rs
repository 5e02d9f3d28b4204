//! Settling (Rule 13), exhaustively, for every kind of membership view: never two copies, never
//! zero, and whoever calls `run` is told the run that starts.

use super::explorer::{Begin, Case, Found, Gossip, Knows, NODES, Views, explore};

fn views() -> Vec<(&'static str, Views)> {
    use Knows::{Joining, Linked, Live, Nothing};
    let equal = [[Live; NODES]; NODES];
    let (mut one_sided, mut bridged) = (equal, equal);
    one_sided[2][0] = Linked;
    bridged[0][2] = Nothing;
    bridged[2][0] = Nothing;
    let (mut ring, mut late) = (equal, equal);
    for i in 0..NODES {
        ring[i][(i + 1) % NODES] = Linked;
        late[i][(i + 1) % NODES] = Joining;
    }
    let fresh = [[Joining; NODES]; NODES];
    vec![
        ("equal", equal),
        ("one-sided", one_sided),
        ("bridged", bridged),
        ("ring", ring),
        ("just up", fresh),
        ("just up, half of it known", late),
    ]
}

fn claimants() -> [Vec<usize>; 4] {
    [vec![0, 1], vec![0, 2], vec![1, 2], vec![0, 1, 2]]
}

/// Every view with every set of claimants.
fn cases(begin: Begin, gossip: Gossip) -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, views) in views() {
        for claimants in claimants() {
            let rising = Vec::new();
            cases.push(Case { what, views, claimants, begin, rising, gossip, settling: true });
        }
    }
    cases
}

/// Nodes that become up while others start the name, each known to be joining by all others.
fn rising(begin: Begin, gossip: Gossip) -> Vec<Case> {
    let mut cases = Vec::new();
    for rising in [vec![2], vec![0, 1, 2]] {
        let mut views = [[Knows::Live; NODES]; NODES];
        for (of, joins) in rising.iter().flat_map(|of| (0..NODES).map(move |row| (row, *of))) {
            views[of][joins] = Knows::Joining;
        }
        for claimants in claimants() {
            let (what, rising) = ("rising", rising.clone());
            cases.push(Case { what, views, claimants, begin, rising, gossip, settling: true });
        }
    }
    cases
}

fn assert_exactly_one(case: &Case) -> Found {
    let found = explore(case);
    println!(
        "{} {:?} rising {:?} {:?}: {} states, {} ends, {} to {} copies, {} misled",
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
    assert!(found.ends > 0 && found.states > 2);
    assert!(found.most <= 1, "two copies: {case:?}\n{}", found.story);
    assert_eq!(found.fewest, Some(1), "none: {case:?} {found:?}");
    assert_eq!(found.misled, 0, "{case:?}\n{}", found.story);
    found
}

fn assert_exactly_one_in_each(cases: Vec<Case>) {
    let states: usize = cases.iter().map(|case| assert_exactly_one(case).states).sum();
    println!("{states} states in {} cases", cases.len());
}

#[test]
fn settling_lets_exactly_one_start_in_every_interleaving() {
    for begin in [Begin::ClaimSame, Begin::ClaimOwn] {
        let mut cases = cases(begin, Gossip::Never);
        // Three claims have by far the most orders, and those of nodes that rise are explored below.
        cases.retain(|case| case.claimants.len() == 2 || !case.what.starts_with("just up"));
        assert_exactly_one_in_each(cases);
    }
}

#[test]
fn nodes_that_become_up_meanwhile_start_no_second_copy() {
    assert_exactly_one_in_each(rising(Begin::ClaimOwn, Gossip::Never));
}

#[test]
fn run_returns_the_run_that_starts_in_every_interleaving() {
    assert_exactly_one_in_each(cases(Begin::Run, Gossip::Last));
}

#[test]
fn run_returns_the_run_that_starts_whatever_gossip_brings_when() {
    let mut cases = cases(Begin::Run, Gossip::Whenever);
    // Where all know each other, calls go to one node, and there is little that can go wrong.
    cases.retain(|case| case.claimants == [0, 2] && case.what == "just up");
    assert_exactly_one_in_each(cases);
}

#[test]
fn run_returns_the_run_that_starts_on_nodes_that_have_just_become_up() {
    assert_exactly_one_in_each(rising(Begin::Run, Gossip::Last));
}

/// The control: the explorer does find two copies where nothing prevents them.
#[test]
fn without_settling_every_case_has_two_copies() {
    for begin in [Begin::ClaimSame, Begin::ClaimOwn] {
        for case in cases(begin, Gossip::Never) {
            if case.claimants.len() == 2 {
                let found = explore(&Case { settling: false, ..case.clone() });
                assert!(found.most >= 2, "{case:?} {found:?}");
            }
        }
    }
}
