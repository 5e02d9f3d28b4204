//! Datagrams pass where streams do not: a firewall that knows of UDP alone, an address that is wrong.

use std::io;
use std::net::SocketAddr;

use super::*;
use crate::net::{Datagrams, Listener, Network, Stream, SystemNetwork};

/// No stream is opened before it is told to let them pass.
#[derive(Clone, Debug, Default)]
struct Firewall {
    open: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl Network for Firewall {
    async fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        SystemNetwork.bind(address).await
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        SystemNetwork.listen(address).await
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Stream>> {
        if !self.open.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        SystemNetwork.connect(address).await
    }

    async fn refuses_datagrams(&self, address: SocketAddr) -> Option<bool> {
        SystemNetwork.refuses_datagrams(address).await
    }
}

async fn told_unlinked(events: &mut Events) -> (SessionId, SocketAddr) {
    let told = async {
        loop {
            if let NodeEvent::Unlinked { peer, address } = events.next().await.expect("it goes on")
            {
                return (peer, address);
            }
        }
    };
    timeout(SOON, told).await.expect("it is told")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_datagrams_reach_and_streams_do_not_is_told_of_on_both_sides() {
    log();
    let firewall = Firewall::default();
    let behind = |id: &str, seeds: Seeds| {
        let quick = Timing { silence_floor: Duration::from_secs(1), ..timing() };
        builder(id, seeds, Arc::default()).timing(quick).network(Arc::new(firewall.clone()))
    };
    let a = behind("a", Seeds::None).start().await.unwrap();
    let mut by_a = a.events();
    let b = behind("b", a.address().into()).start().await.unwrap();
    let mut by_b = b.events();
    assert_eq!(told_unlinked(&mut by_a).await, (b.session().clone(), b.address()));
    assert_eq!(told_unlinked(&mut by_b).await, (a.session().clone(), a.address()));
    assert!(a.peers().iter().all(|peer| !peer.linked));

    firewall.open.store(true, Ordering::Relaxed);
    until("a link stands", || a.peers().iter().any(|peer| peer.linked)).await;
    a.close().await;
    b.close().await;
}

/// What it says of itself leads nowhere, and it finds nobody either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_address_is_told_of_by_those_who_cannot_reach_it() {
    log();
    let quick = || Timing { silence_floor: Duration::from_secs(1), ..timing() };
    // A port that nobody answers at.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let wrong = nobody.local_addr().unwrap();
    let firewall = Firewall::default();
    let a = builder("a", Seeds::None, Arc::default()).timing(quick()).start().await.unwrap();
    let mut by_a = a.events();
    let b = builder("b", a.address().into(), Arc::default()).timing(quick()).advertise(wrong);
    let b = b.network(Arc::new(firewall)).start().await.unwrap();
    assert_eq!(told_unlinked(&mut by_a).await, (b.session().clone(), wrong));
    a.close().await;
    b.close().await;
}

/// Nobody acknowledges what no stream brings: it waits a second for that, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_learns_that_a_peer_has_not_acknowledged_the_goodbye() {
    log();
    let firewall = Arc::new(Firewall::default());
    let a = builder("a", Seeds::None, Arc::default()).network(firewall.clone());
    let a = a.start().await.unwrap();
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    let b = builder("b", a.address().into(), Arc::default()).network(firewall);
    let b = b.start().await.unwrap();
    until("it is known", || a.peers().iter().any(|peer| peer.session == *b.session())).await;
    timeout(SOON, a.drain()).await.unwrap();
    let begun = Instant::now();
    let error = timeout(SOON, a.leave()).await.unwrap().unwrap_err();
    assert_eq!(error, LeaveError::Unheard { heard: 0, told: 1 });
    assert!(error.to_string().starts_with("only 0 of 1 peers acknowledged"), "{error}");
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(a.status().await.unwrap_err(), NodeClosed, "it has left all the same");
    assert_eq!(timeout(SOON, a.leave()).await.unwrap().unwrap_err(), error, "whoever asks again");
    b.close().await;
}
