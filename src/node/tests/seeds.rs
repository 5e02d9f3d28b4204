//! Names that stand for the first nodes of a cluster.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;

use super::*;
use crate::net::{Datagrams, Listener, Network, Stream, SystemNetwork};

/// The system's network, with a name service of its own.
#[derive(Clone, Debug, Default)]
struct Names {
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Names {
    fn stand_for(&self, addresses: &[SocketAddr]) {
        *self.addresses.lock().unwrap() = addresses.to_vec();
    }
}

#[async_trait::async_trait]
impl Network for Names {
    async fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        SystemNetwork.bind(address).await
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        SystemNetwork.listen(address).await
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Stream>> {
        SystemNetwork.connect(address).await
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        assert_eq!(name, "shop-headless:7946");
        match self.addresses.lock().unwrap().as_slice() {
            [] => Err(io::Error::other("no address is associated with the name")),
            addresses => Ok(addresses.to_vec()),
        }
    }

    async fn refuses_datagrams(&self, address: SocketAddr) -> Option<bool> {
        SystemNetwork.refuses_datagrams(address).await
    }
}

fn named(id: &str, names: &Names) -> NodeBuilder {
    let seeds = Seeds::Dns("shop-headless:7946".into());
    let may_end = Arc::new(AtomicBool::new(true));
    builder(id, seeds, may_end).network(Arc::new(names.clone()))
}

/// Not before `alone_after`: others may have been there first.
async fn assert_comes_up_alone(node: &Node, begun: Instant) {
    timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    let after = begun.elapsed();
    assert!(after >= timing().alone_after, "it is up after {after:?}");
    let task = node.run::<Count>("job", CountTo { end: 3, pause_ms: 5 }).await.unwrap();
    assert_eq!(timeout(SOON, task.output()).await.unwrap().unwrap().at, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_node_of_a_name_that_stands_for_nothing_comes_up_alone_and_is_joined() {
    log();
    let names = Names::default();
    let begun = Instant::now();
    let first = named("a", &names).start().await.unwrap();
    let mut events = first.events();
    let told = async {
        while let Some(event) = events.next().await {
            if let NodeEvent::SeedsUnreachable { tried } = event {
                return tried;
            }
        }
        panic!("the node ended");
    };
    let tried = timeout(SOON, told).await.unwrap();
    assert!(tried.contains("shop-headless:7946"), "{tried}");
    assert_comes_up_alone(&first, begun).await;

    // The name stands for it by now; whoever comes next joins at once.
    names.stand_for(&[first.address()]);
    let begun = Instant::now();
    let second = named("b", &names).start().await.unwrap();
    timeout(SOON, second.wait_ready()).await.unwrap().unwrap();
    assert!(begun.elapsed() < timing().alone_after, "{:?}", begun.elapsed());
    until("it knows the task", || second.whereis("job").is_some()).await;
    first.leave().await.unwrap();
    second.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_node_of_a_name_that_stands_for_it_alone_comes_up_alone() {
    log();
    let names = Names::default();
    let address = {
        let before = named("a", &names).start().await.unwrap();
        let address = before.address();
        before.close().await;
        address
    };
    names.stand_for(&[address]);
    let begun = Instant::now();
    let first = named("a", &names).listen(address).start().await.unwrap();
    assert_comes_up_alone(&first, begun).await;
    first.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_stands_for_somebody_only_after_the_start_is_resolved_again() {
    log();
    let names = Names::default();
    let there = start("a", None).await;
    let begun = Instant::now();
    let late = named("b", &names).start().await.unwrap();
    names.stand_for(&[there.address()]);
    timeout(SOON, late.wait_ready()).await.unwrap().unwrap();
    assert!(begun.elapsed() < timing().alone_after, "{:?}", begun.elapsed());
    until("they know each other", || there.peers().iter().any(|peer| peer.linked)).await;
    there.leave().await.unwrap();
    late.leave().await.unwrap();
}

/// Where nobody is known yet, the address that others reach is the one the default route has.
#[tokio::test]
async fn a_first_node_that_listens_everywhere_needs_a_route_out_or_an_address_to_advertise() {
    let names = Names::default();
    let everywhere = || {
        named("a", &names)
            .listen("0.0.0.0:0")
            .key(crate::key::Key::from_secret("a secret of the tests").unwrap())
    };
    match everywhere().start().await {
        Ok(node) => {
            assert!(!node.address().ip().is_unspecified() && node.address().port() != 0);
            node.close().await;
        }
        Err(error) => {
            assert!(matches!(error, StartError::NoAdvertisedAddress(_)), "{error}");
            assert!(error.to_string().contains("advertise"), "{error}");
        }
    }
    let told = everywhere().advertise("127.0.0.1:0").start().await.unwrap();
    assert_eq!(told.address().ip(), std::net::Ipv4Addr::LOCALHOST);
    told.close().await;
}
