//! A service that embeds the library: it counts words, and survives its deploys.
//!
//! ```text
//! cargo run --example service -- 127.0.0.1:7001
//! cargo run --example service -- 127.0.0.1:7002 127.0.0.1:7001
//! ```

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use handover::{Cx, Node, Seeds, Step, Task, signal};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Range {
    up_to: u64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)] // each revision reads the states of the one before and the one after
struct Found {
    looked_at: u64,
    primes: u64,
}

struct CountPrimes;

impl Task for CountPrimes {
    const KIND: &'static str = "count-primes";
    type Args = Range;
    type State = Found; // the checkpoint: wherever the task goes, this goes along
    type Output = u64;

    async fn step(
        &self,
        cx: &mut Cx,
        range: &Range,
        so_far: &mut Found,
    ) -> handover::Result<Step<u64>> {
        let from = so_far.looked_at + 1;
        let to = range.up_to.min(so_far.looked_at + 20_000);
        let is_prime = |n: &u64| *n > 1 && (2..).take_while(|d| d * d <= *n).all(|d| n % d != 0);
        so_far.primes += cx
            .blocking(move || (from..=to).filter(is_prime).count() as u64)
            .await?;
        so_far.looked_at = to;
        cx.progress(to, range.up_to);
        Ok(if to == range.up_to {
            Step::Done(so_far.primes)
        } else {
            Step::More
        })
    }
}

#[tokio::main]
async fn main() -> handover::Result<ExitCode> {
    let mut addresses = std::env::args()
        .skip(1)
        .map(|text| text.parse::<SocketAddr>());
    let listen = addresses
        .next()
        .unwrap_or_else(|| "127.0.0.1:7001".parse())?;
    let node = Node::builder("primes")
        .node_id(listen.to_string())
        .listen(listen)
        .seeds(Seeds::Addresses(addresses.collect::<Result<_, _>>()?))
        .task(CountPrimes)
        .drain_budget(Duration::from_secs(25)) // keep it under the time until SIGKILL
        .start()
        .await?;
    let watcher = node.clone();
    tokio::spawn(async move {
        watcher.wait_ready().await?;
        // Every node says so at its start; the name makes it one task.
        let count = watcher
            .run::<CountPrimes>("primes", Range { up_to: 20_000_000 })
            .await?;
        println!("{} primes", count.output().await?);
        handover::Result::Ok(())
    });
    let report = node.drain_on(signal::term_or_int()).await; // told to stop: tasks move, with their state
    node.leave().await?;
    Ok(report.exit_code())
}
