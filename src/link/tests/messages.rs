//! Messages: order, size, urgency, backpressure.

use super::*;

fn numbered(number: u32, len: usize) -> Bytes {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(len.max(4), number as u8);
    bytes.into()
}

#[tokio::test]
async fn messages_go_both_ways() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    assert!(a.links.is_up(&b.session) && b.links.is_up(&a.session));
    expect_exchange(&mut a, &mut b).await;
    a.links.send(&b.session, Class::Bulk, Bytes::new()).unwrap();
    assert!(b.expect_frame(&a.session).await.is_empty());
}

#[tokio::test]
async fn what_is_sent_while_dialling_arrives_in_order_within_its_class() {
    let (a, mut b) = (Node::start("a").await, Node::start("b").await);
    a.want(&b);
    for number in 0..500 {
        a.links.send(&b.session, Class::Control, numbered(number, 100)).unwrap();
        a.links
            .send(
                &b.session,
                Class::Bulk,
                numbered(number | 1 << 31, 100 * number as usize % 40_000),
            )
            .unwrap();
    }
    b.expect_up(&a.session).await;
    let (mut control, mut bulk) = (0, 0);
    for _ in 0..1000 {
        let message = b.expect_frame(&a.session).await;
        let number = u32::from_be_bytes(*message.first_chunk().unwrap());
        if number >> 31 == 0 {
            assert_eq!(number, control);
            control += 1;
        } else {
            assert_eq!(number & !(1 << 31), bulk);
            bulk += 1;
        }
    }
}

#[tokio::test]
async fn control_overtakes_a_large_message_which_arrives_intact() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    let large: Bytes = (0..40_u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect::<Vec<u8>>()
        .into();
    a.links.send(&b.session, Class::Bulk, large.clone()).unwrap();
    for number in 0..5 {
        // Some of it goes out in between.
        tokio::task::yield_now().await;
        a.links.send(&b.session, Class::Control, numbered(number, 4)).unwrap();
    }
    assert!(a.links.queued_bytes(&b.session) >= large.len(), "it is all sent already");
    for number in 0..5 {
        let frame = b.expect_frame(&a.session).await;
        assert_eq!(frame.len(), 4);
        assert_eq!(frame, numbered(number, 4));
    }
    assert!(b.expect_frame(&a.session).await == large);
    assert_eq!(a.links.queued_bytes(&b.session), 0);
}

#[tokio::test]
async fn a_message_over_the_limit_is_neither_sent_nor_accepted() {
    let mut a = Node::start("a").await;
    let mut b = Node::with("b", |config| config.limits.max_message = 1 << 20).await;
    linked(&mut a, &mut b).await;
    let len = LinkLimits::default().max_message + 1;
    let refused = a.links.send(&b.session, Class::Bulk, vec![0; len].into());
    assert!(matches!(refused, Err(SendError::TooLarge { .. })));

    a.links.send(&b.session, Class::Bulk, vec![0; (1 << 20) + 1].into()).unwrap();
    b.expect_down(&a.session, false).await;
    a.expect_down(&b.session, false).await;
}

#[tokio::test]
async fn nothing_is_taken_for_a_session_that_is_not_linked() {
    let a = Node::start("a").await;
    let stranger = session("b");
    let result = a.links.send(&stranger, Class::Control, Bytes::new());
    assert_eq!(result, Err(SendError::NotLinked));
    assert!(!a.links.is_up(&stranger));
}

#[tokio::test]
async fn a_full_queue_says_so_and_has_room_again_when_the_peer_reads() {
    let mut a = Node::with("a", |config| {
        config.limits.bulk = QueueLimits { messages: 100, bytes: 1 << 20 };
    })
    .await;
    let mut b = Node::start("b").await;
    linked(&mut a, &mut b).await;
    // Nobody takes b's events: its channel, both sockets and a's queue fill up.
    let message = Bytes::from(vec![1; 256 << 10]);
    let mut taken = 0;
    let full = loop {
        match a.links.send(&b.session, Class::Bulk, message.clone()) {
            Ok(()) => taken += 1,
            Err(full) => {
                // Full while the socket still takes some is not full yet.
                tokio::time::sleep(Duration::from_millis(20)).await;
                match a.links.send(&b.session, Class::Bulk, message.clone()) {
                    Ok(()) => taken += 1,
                    Err(_) => break full,
                }
            }
        }
        tokio::task::yield_now().await;
    };
    assert!(matches!(full, SendError::Full { .. }));
    assert!(a.links.queued_bytes(&b.session) <= 1 << 20);
    // Control has a queue of its own.
    a.links.send(&b.session, Class::Control, Bytes::from_static(b"now")).unwrap();

    let (mut bulk, mut control) = (0, 0);
    while bulk < taken || control < 1 {
        let frame = b.expect_frame(&a.session).await;
        if frame == "now" {
            control += 1;
        } else {
            assert!(frame == message);
            bulk += 1;
        }
    }
    a.links.send(&b.session, Class::Bulk, message.clone()).unwrap();
    assert!(b.expect_frame(&a.session).await == message);
}

#[tokio::test]
async fn a_slow_consumer_does_not_cost_the_link() {
    let impatient = |config: &mut LinkConfig| {
        config.limits.ping_every = Duration::from_millis(20);
        config.limits.dead_after = Duration::from_millis(1000);
    };
    let mut a = Node::with("a", impatient).await;
    let mut b = Node::with("b", impatient).await;
    linked(&mut a, &mut b).await;
    for number in 0..300 {
        a.links.send(&b.session, Class::Bulk, numbered(number, 100_000)).unwrap();
    }
    a.expect_nothing_for(Duration::from_millis(2000)).await;
    for number in 0..300 {
        assert!(b.expect_frame(&a.session).await == numbered(number, 100_000));
    }
    expect_exchange(&mut a, &mut b).await;
}

#[tokio::test]
async fn shutting_down_sends_what_is_queued() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    for number in 0..20 {
        a.links.send(&b.session, Class::Bulk, numbered(number, 30_000)).unwrap();
    }
    let from = a.session.clone();
    let (_, ()) = tokio::join!(a.links.shutdown(), async {
        for number in 0..20 {
            assert!(b.expect_frame(&from).await == numbered(number, 30_000));
        }
    });
    b.expect_down(&from, true).await;
}

/// Rooms for 2 MiB of each peer and 3 of all: the fourth message waits in its sender's queue.
#[tokio::test]
async fn what_waits_for_the_node_is_bounded_in_bytes_of_each_peer_and_of_all() {
    const MIB: usize = 1 << 20;
    let mut a = Node::with("a", |config| {
        config.limits.waiting = 2 * MIB;
        config.limits.waiting_total = 3 * MIB;
    })
    .await;
    let (mut b, mut c) = (Node::start("b").await, Node::start("c").await);
    linked(&mut b, &mut a).await;
    linked(&mut c, &mut a).await;
    for number in 0..8 {
        b.links.send(&a.session, Class::Bulk, numbered(number, MIB)).unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(a.events.len(), 2);
    for number in 0..8 {
        c.links.send(&a.session, Class::Bulk, numbered(number, MIB)).unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(a.events.len(), 3);
    let mut from = BTreeMap::new();
    for _ in 0..16 {
        let LinkEvent::Frame { from: sender, payload } = a.next().await else {
            panic!("a link went down");
        };
        let number: &mut u32 = from.entry(sender).or_default();
        assert!(payload.into_bytes() == numbered(*number, MIB));
        *number += 1;
    }
    assert_eq!(from.into_values().collect::<Vec<_>>(), [8, 8]);
}

#[tokio::test]
async fn a_link_that_is_cut_is_made_again() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    linked(&mut a, &mut b).await;
    b.links.cut(&a.session);
    b.expect_down(&a.session, false).await;
    a.expect_down(&b.session, false).await;
    a.expect_up(&b.session).await;
    b.expect_up(&a.session).await;
    expect_exchange(&mut a, &mut b).await;
}
