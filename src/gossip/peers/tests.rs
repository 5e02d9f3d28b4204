//! Evidence, addresses and the book, one step at a time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use uuid::Uuid;

use crate::core::ids::NodeId;
use crate::core::record::NodeState;

use super::*;

fn session(number: u128) -> SessionId {
    SessionId::new(NodeId::new("n").unwrap(), Uuid::from_u128(number))
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn at(millis: u64) -> Time {
    Time::from_micros(1_000_000_000 + millis * 1000)
}

fn peers() -> Peers {
    peers_with(NetworkLimits::default(), &[])
}

fn peers_with(limits: NetworkLimits, within: &[&str]) -> Peers {
    let within = within.iter().map(|network| network.parse().unwrap()).collect();
    Peers::new(session(1), &Timing::default(), 10, &limits, within, at(0))
}

/// A session is heard at a port, is sent `counter` there, and echoes it from there.
fn meet(peers: &mut Peers, from: u128, port: u16, counter: u64, now: Time) -> Accepted {
    peers.accept(&header(from, 2 * counter - 1, None), (address(port), 100), 0, now).unwrap();
    assert!(peers.sending(address(port), counter, now).is_some());
    let echo = header(from, 2 * counter, Some(counter));
    peers.accept(&echo, (address(port), 100), counter, now).unwrap()
}

fn header(from: u128, counter: u64, echo: Option<u64>) -> Header {
    Header {
        session: session(from),
        counter,
        echo: echo.map(|counter| Echo { nonce: Uuid::from_u128(1), counter }),
        state: NodeState::Up,
        version: 1,
        watermark: 0,
        released: Vec::new(),
    }
}

#[test]
fn a_session_is_verified_by_its_first_echo_and_then_gossiped_with_once() {
    let mut peers = peers();
    let first = peers.accept(&header(2, 1, None), (address(2), 100), 0, at(0));
    assert!(matches!(
        first,
        Ok(Accepted { verified: false, challenge: true, returned: false, .. })
    ));
    assert_eq!(peers.reachable(at(0)), []);
    assert_eq!(peers.route(address(2)), None);
    assert!(peers.sending(address(2), 1, at(0)).is_some());
    let second = peers.accept(&header(2, 2, Some(1)), (address(2), 100), 1, at(1)).unwrap();
    assert!(second.verified && second.returned);
    assert_eq!(second.echoed, Some(1));
    let third = peers.accept(&header(2, 3, Some(1)), (address(2), 100), 1, at(2)).unwrap();
    assert!(third.verified && !third.returned);
    assert_eq!(third.echoed, None);
    assert_eq!(peers.reachable(at(3)), [address(2)]);
    assert_eq!(peers.route(address(2)), Some(address(2)));
    assert_eq!(peers.book(), [(session(2), address(2))]);
}

/// Whoever repeats from elsewhere what a session has sent never saw what was sent to its address.
#[test]
fn an_address_is_proved_only_by_an_echo_of_what_was_sent_there() {
    let mut peers = peers();
    meet(&mut peers, 2, 2, 1, at(0));
    // A datagram caught on its way and sent on from a third party's address.
    let moved = peers.accept(&header(2, 3, Some(1)), (address(3), 100), 1, at(30)).unwrap();
    assert!(!moved.verified && moved.challenge);
    // What goes there is echoed by nobody; the session goes on echoing what goes to itself.
    assert!(peers.sending(address(3), 2, at(0)).is_some());
    assert!(peers.sending(address(2), 3, at(0)).is_some());
    let caught = peers.accept(&header(2, 4, Some(3)), (address(3), 100), 3, at(31)).unwrap();
    assert!(!caught.verified);
    assert_eq!(peers.route(address(3)), Some(address(2)));
    assert_eq!(peers.reachable(at(3)), [address(2)]);
    assert_eq!(peers.book(), [(session(2), address(2))]);
}

/// Its own flows leave with one source, its answers to what was forwarded to it with another.
#[test]
fn a_peer_behind_nat_is_verified_at_both_its_addresses_and_found_where_it_advertises() {
    let mut peers = peers();
    meet(&mut peers, 2, 50_002, 1, at(0));
    peers.advertised(&session(2), address(2), at(1));
    assert_eq!(peers.take_located(), BTreeMap::new(), "nothing has come from there yet");
    assert_eq!(peers.reachable(at(1)), [address(50_002)]);
    assert_eq!(peers.route(address(2)), Some(address(50_002)), "what is meant for it finds it");
    assert_eq!(peers.due(at(1)), [address(2)], "it is probed meanwhile");
    assert!(peers.sending(address(2), 2, at(0)).is_some());
    assert!(peers.accept(&header(2, 3, Some(2)), (address(2), 100), 2, at(2)).unwrap().verified);
    assert_eq!(peers.take_located(), [(session(2), address(2))].into());
    assert_eq!(peers.book(), [(session(2), address(2))]);
    for (counter, port) in [(4, 50_002), (5, 2), (6, 50_002)] {
        let heard =
            peers.accept(&header(2, counter, Some(2)), (address(port), 100), 2, at(3)).unwrap();
        assert!(heard.verified, "{port}");
        assert_eq!(peers.reachable(at(3)), [address(2)]);
    }
    // The advertised address is what lasts, and is not probed while the session is heard at all.
    assert_eq!(peers.book(), [(session(2), address(2))]);
    peers.accept(&header(2, 7, None), (address(50_002), 100), 2, at(2_000)).unwrap();
    assert_eq!(peers.due(at(2_900)), []);
    assert_eq!(peers.due(at(4_000)), [address(2)]);
}

#[test]
fn an_advertised_address_that_nobody_answers_at_is_neither_used_nor_remembered() {
    let mut peers = peers();
    meet(&mut peers, 2, 2, 1, at(0));
    peers.advertised(&session(2), address(9), at(0));
    peers.advertised(&session(3), address(8), at(0));
    for second in 0..90 {
        peers.advertised(&session(2), address(9), at(second * 1000));
        peers
            .accept(&header(2, 10 + second, None), (address(2), 100), 1, at(second * 1000))
            .unwrap();
        for probed in peers.due(at(second * 1000)) {
            peers.sending(probed, 100 + second, at(0));
        }
    }
    assert_eq!(peers.take_located(), BTreeMap::new());
    assert_eq!(peers.route(address(9)), Some(address(2)));
    assert_eq!(peers.route(address(8)), None);
    assert_eq!(peers.book(), [(session(2), address(2))]);
    assert!(!peers.due(at(89_500)).contains(&address(8)), "nobody advertises it any more");
}

#[test]
fn outside_of_the_networks_allowed_only_where_a_peer_is_heard_is_believed() {
    let mut peers = peers_with(NetworkLimits::default(), &["10.1.0.0/16", "192.0.2.7/32"]);
    meet(&mut peers, 2, 2, 1, at(0));
    let ip = |text: &str| -> SocketAddr { text.parse().unwrap() };
    for (number, advertised, probed) in [
        (3, ip("10.1.2.3:7"), true),
        (4, ip("10.2.2.3:7"), false),
        (5, ip("192.0.2.7:7"), true),
        (6, address(6), false),
        // Heard at this host, though at another port: the source has been validated.
        (2, address(7), true),
    ] {
        peers.advertised(&session(number), advertised, at(1));
        let due = peers.due(at(1));
        assert_eq!(due, if probed { vec![advertised] } else { Vec::new() });
    }
}

#[test]
fn an_address_that_another_session_takes_over_belongs_to_that_one_alone() {
    let mut peers = peers();
    meet(&mut peers, 2, 2, 1, at(0));
    peers.advertised(&session(2), address(2), at(0));
    let restarted = peers.accept(&header(3, 1, None), (address(2), 100), 1, at(5)).unwrap();
    assert!(!restarted.verified);
    assert_eq!(peers.route(address(2)), None);
    assert!(peers.sending(address(2), 2, at(0)).is_some());
    assert!(peers.accept(&header(3, 2, Some(2)), (address(2), 100), 2, at(6)).unwrap().verified);
    peers.advertised(&session(3), address(2), at(6));
    assert_eq!(peers.take_located().get(&session(3)), Some(&address(2)));
    assert_eq!(peers.reachable(at(6)), [address(2)], "once, not once for each of them");
}

#[test]
fn a_stranger_and_a_peer_each_have_their_share_and_no_more() {
    let limits =
        NetworkLimits { peer_datagrams: 200, stranger_datagrams: 20, ..NetworkLimits::default() };
    let mut peers = peers_with(limits, &[]);
    meet(&mut peers, 2, 2, 1, at(0));
    let admitted = |peers: &mut Peers, port, now| {
        (0..5000).filter(|_| peers.admit(address(port), 100, now)).count()
    };
    // Ports of one host are one source, however many it uses; a peer of that host is not hurt.
    assert_eq!(admitted(&mut peers, 3, at(0)), 20);
    assert_eq!(admitted(&mut peers, 4, at(0)), 0);
    // Under a peer's address more is opened, since anybody can write it on a forgery.
    assert_eq!(admitted(&mut peers, 2, at(0)), 1600);
    assert_eq!(admitted(&mut peers, 4, at(100)), 2);
    assert_eq!(admitted(&mut peers, 2, at(100)), 160);
    // Of what is authentic it has its share alone.
    let accepted = |peers: &mut Peers, counters: std::ops::Range<u64>, now| {
        let one = |counter| peers.accept(&header(2, counter, None), (address(2), 100), 1, now);
        counters.map(one).filter(|accepted| *accepted != Err(Rejected::Rate)).count()
    };
    assert_eq!(accepted(&mut peers, 10..1000, at(200)), 200);
    assert_eq!(accepted(&mut peers, 1000..2000, at(300)), 20);
}

#[test]
fn forgeries_and_recordings_under_a_peers_address_cost_nothing_of_its_share() {
    let limits = NetworkLimits { peer_datagrams: 200, ..NetworkLimits::default() };
    let mut peers = peers_with(limits, &[]);
    meet(&mut peers, 2, 2, 1, at(0));
    // Opened in vain: no key fits.
    assert!((0..1000).all(|_| peers.admit(address(2), 100, at(0))));
    let recorded = header(2, 3, None);
    peers.accept(&recorded, (address(2), 100), 1, at(0)).unwrap();
    for _ in 0..400 {
        assert!(peers.admit(address(2), 100, at(0)));
        let again = peers.accept(&recorded, (address(2), 100), 1, at(0));
        assert_eq!(again, Err(Rejected::Replayed));
    }
    for counter in 4..=202 {
        assert!(peers.admit(address(2), 100, at(0)), "{counter}");
        peers.accept(&header(2, counter, None), (address(2), 100), 1, at(0)).unwrap();
    }
}

#[test]
fn made_up_sources_of_one_session_do_not_grow_the_table_of_addresses() {
    let mut peers = peers();
    meet(&mut peers, 2, 2, 1, at(0));
    for number in 0..1000_u16 {
        let from = address(1000 + number);
        let counter = 10 + u64::from(number);
        let _ = peers.accept(&header(2, counter, None), (from, 100), 1, at(u64::from(number) * 10));
    }
    assert!(peers.places.len() <= 30);
    assert_eq!(peers.route(address(2)), Some(address(2)));
}

#[test]
fn an_echo_of_a_counter_never_sent_proves_nothing() {
    let mut peers = peers();
    let ahead = peers.accept(&header(2, 1, Some(50)), (address(2), 100), 3, at(0)).unwrap();
    assert!(!ahead.verified);
    assert_eq!(ahead.echoed, None);
}

/// X2: what a session told a third, recorded and sent here in its name, keeps nobody alive.
#[test]
fn what_was_said_to_another_session_is_not_taken() {
    let mut peers = peers();
    meet(&mut peers, 2, 2, 1, at(0));
    for counter in 10..20 {
        let mut foreign = header(2, counter, Some(1));
        foreign.echo.as_mut().unwrap().nonce = Uuid::from_u128(77);
        let foreign = peers.accept(&foreign, (address(2), 100), 3, at(counter * 1000));
        assert_eq!(foreign, Err(Rejected::Misdirected));
    }
    let own = peers.accept(&header(2, 10, Some(1)), (address(2), 100), 3, at(21_000)).unwrap();
    assert!(own.news, "its counter is still free");
}

/// X2: a first word, which is addressed to nobody, is news while its session may just have come.
#[test]
fn what_names_no_receiver_is_no_news_of_a_session_that_has_been_met() {
    let mut peers = peers();
    meet(&mut peers, 2, 2, 1, at(0));
    let news = |peers: &mut Peers, counter, millis| {
        peers.accept(&header(2, counter, None), (address(2), 100), 3, at(millis)).unwrap().news
    };
    assert!(news(&mut peers, 10, 1_000));
    assert!(!news(&mut peers, 11, 30_000));
}

/// A datagram that was lost, recorded, and is sent again when later ones have come.
#[test]
fn what_was_overtaken_is_no_news() {
    let mut peers = peers();
    meet(&mut peers, 2, 2, 1, at(0));
    let news = |peers: &mut Peers, counter, millis| {
        peers.accept(&header(2, counter, Some(1)), (address(2), 100), 3, at(millis)).unwrap().news
    };
    assert!(news(&mut peers, 10, 1_000));
    assert!(!news(&mut peers, 7, 9_000));
    assert!(news(&mut peers, 11, 10_000));
}

#[test]
fn replays_and_own_datagrams_are_dropped() {
    let mut peers = peers();
    let taken = header(2, 1, None);
    assert!(peers.accept(&taken, (address(2), 100), 0, at(0)).is_ok());
    assert_eq!(peers.accept(&taken, (address(2), 100), 0, at(1)), Err(Rejected::Replayed));
    assert_eq!(peers.accept(&header(1, 1, None), (address(2), 100), 0, at(1)), Err(Rejected::Own));
}

#[test]
fn a_recording_is_news_for_no_longer_than_the_silence_floor() {
    let mut peers = peers();
    let news = |peers: &mut Peers, counter, millis| {
        peers.accept(&header(2, counter, None), (address(2), 100), 0, at(millis)).unwrap().news
    };
    assert!(news(&mut peers, 1, 0));
    assert!(news(&mut peers, 2, 9_000));
    assert!(!news(&mut peers, 3, 11_000));
}

#[test]
fn a_session_at_a_new_address_has_to_prove_itself_again() {
    let mut peers = peers();
    meet(&mut peers, 2, 2, 5, at(0));
    let moved = peers.accept(&header(2, 12, Some(5)), (address(3), 100), 6, at(30)).unwrap();
    assert!(!moved.verified && moved.challenge);
    assert!(peers.sending(address(3), 9, at(0)).is_some());
    let stale = peers.accept(&header(2, 13, Some(8)), (address(3), 100), 9, at(31));
    assert!(!stale.unwrap().verified);
    let proven = peers.accept(&header(2, 14, Some(9)), (address(3), 100), 9, at(32));
    assert!(proven.unwrap().verified);
    assert_eq!(peers.reachable(at(3)), [address(3)]);
}

/// How many probes go out, looked for every 50 ms.
fn probes(peers: &mut Peers, from: u64, to: u64) -> Vec<SocketAddr> {
    (from..to).step_by(50).flat_map(|ms| peers.due(at(ms))).collect()
}

fn crowd(size: u16) -> Peers {
    let limits = NetworkLimits::default();
    let mut peers = Peers::new(session(1), &Timing::default(), 1000, &limits, Vec::new(), at(0));
    for number in 0..size {
        peers.remember(&session(2 + u128::from(number)), address(1000 + number), at(0));
    }
    peers
}

#[test]
fn a_few_silent_peers_are_probed_every_100_ms_however_long_they_are_silent() {
    let mut peers = peers();
    meet(&mut peers, 2, 2, 1, at(0));
    assert_eq!(probes(&mut peers, 0, 1000), []);
    assert_eq!(probes(&mut peers, 1050, 2050).len(), 10);
    let hour = 3600 * 1000;
    assert_eq!(probes(&mut peers, hour, hour + 10_000).len(), 100);
}

#[test]
fn many_silent_peers_are_probed_in_turn_within_the_budget() {
    let mut peers = crowd(200);
    probes(&mut peers, 0, 100_000);
    let probed = probes(&mut peers, 100_000, 140_000);
    assert!((1_900..=2_000).contains(&probed.len()), "{} in 40 s", probed.len());
    for number in 0..200 {
        let times = probed.iter().filter(|probed| **probed == address(1000 + number)).count();
        assert!((9..=11).contains(&times), "{number}: {times}");
    }
}

#[test]
fn the_first_who_answers_makes_all_others_looked_for_at_once() {
    let mut peers = crowd(200);
    probes(&mut peers, 0, 100_000);
    peers.sending(address(1000), 7, at(0));
    let back = peers.accept(&header(2, 1, Some(7)), (address(1000), 100), 7, at(100_000)).unwrap();
    assert!(back.returned);
    let mut swept = peers.due(at(100_000));
    swept.sort();
    assert_eq!(swept, (1001..1200).map(address).collect::<Vec<_>>());
    // The next one to answer brings nothing new: it was looked for because of the first.
    peers.sending(address(1001), 8, at(0));
    assert!(
        peers
            .accept(&header(3, 1, Some(8)), (address(1001), 100), 8, at(100_001))
            .unwrap()
            .returned
    );
    assert!(peers.due(at(100_001)).len() <= 50);
    // A recording does not make a node look for anybody.
    let mut peers = crowd(200);
    probes(&mut peers, 0, 100_000);
    peers.accept(&header(2, 1, None), (address(1000), 100), 7, at(100_000)).unwrap();
    assert!(peers.due(at(100_000)).len() <= 50);
}

#[test]
fn the_address_book_outlives_silence_and_forgets_who_left() {
    let mut peers = peers();
    for number in [2, 3] {
        meet(&mut peers, number, number as u16, 1, at(0));
    }
    peers.retire(&session(3), at(1));
    peers.accept(&header(3, 3, Some(1)), (address(3), 100), 1, at(2)).unwrap();
    let hours = |hours: u64| at(hours * 3600 * 1000);
    assert_eq!(peers.due(hours(23)), [address(2)]);
    assert_eq!(peers.book(), [(session(2), address(2))]);
    assert_eq!(peers.due(hours(25)), []);
    assert_eq!(peers.book(), []);
}

#[test]
fn a_seed_is_probed_for_ever_and_oneself_never() {
    let mut peers = peers();
    peers.add_own_address(address(1));
    peers.add_seed(address(1), at(0));
    peers.add_seed(address(2), at(0));
    peers.probe(address(3), at(0));
    assert_eq!(peers.due(at(0)), [address(2), address(3)]);
    assert_eq!(peers.due(at(100_000_000)), [address(2)]);
}

#[test]
fn a_flood_of_sessions_pushes_out_nobody_who_is_heard() {
    let mut peers = peers();
    for number in 2..12 {
        assert!(peers.accept(&header(number, 1, None), (address(2), 100), 0, at(0)).is_ok());
    }
    assert_eq!(
        peers.accept(&header(12, 1, None), (address(2), 100), 0, at(1)),
        Err(Rejected::Limit)
    );
    assert!(peers.accept(&header(12, 1, None), (address(2), 100), 0, at(11_000)).is_ok());
    assert_eq!(peers.sessions.len(), 10);
}

#[test]
fn a_path_open_in_one_direction_alone_is_noticed_in_either() {
    let mut peers = peers();
    let one_way = |peers: &Peers, ms| peers.one_way(at(ms));
    for (number, port) in [(2, 2), (3, 3)] {
        meet(&mut peers, number, port, 1, at(0));
        peers.advertised(&session(number), address(port), at(0));
    }
    // 2 is heard and echoes; 3 is heard, and echoes only what it had before. Nothing new is sent to
    // a session 4 that has nothing to echo, which is no fault of the path.
    meet(&mut peers, 4, 4, 1, at(0));
    peers.sending(address(2), 2, at(100));
    peers.sending(address(3), 3, at(100));
    for (step, ms) in (200..6000).step_by(200).enumerate() {
        let counter = 100 + step as u64;
        peers.accept(&header(2, counter, Some(2)), (address(2), 100), 9, at(ms)).unwrap();
        peers.accept(&header(3, counter, Some(1)), (address(3), 100), 9, at(ms)).unwrap();
        peers.accept(&header(4, counter, Some(1)), (address(4), 100), 9, at(ms)).unwrap();
        let unechoed = usize::from(ms > 2100);
        assert_eq!(one_way(&peers, ms), OneWay { unechoed, unheard: 0 }, "{ms}");
    }
    // Now 2 is heard no more, while others go on hearing it; 3 is gone for everybody.
    for ms in (6000..12_000).step_by(200) {
        peers.advertised(&session(2), address(2), at(ms));
        let unheard = usize::from(ms > 5800 + 2000);
        let expected = OneWay { unechoed: usize::from(ms <= 5800 + 2000), unheard };
        assert_eq!(one_way(&peers, ms), expected, "{ms}");
    }
    assert_eq!(one_way(&peers, 20_000), OneWay::default(), "silence is another matter");
}
