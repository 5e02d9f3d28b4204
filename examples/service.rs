//! A service that embeds the library: `POST /count/ID` counts the primes up to a number, and the
//! count survives deploys and crashes of the service.
//!
//! ```text
//! cargo run --example service -- 127.0.0.1:7001 127.0.0.1:8001
//! cargo run --example service -- 127.0.0.1:7002 127.0.0.1:8002 127.0.0.1:7001
//! curl -X POST -H 'content-type: application/json' -d '{"up_to":50000000}' 127.0.0.1:8001/count/a
//! curl 127.0.0.1:8002/count/a
//! ```

use std::{net::SocketAddr, process::ExitCode};

use axum::extract::{Path, State};
use axum::{Json, Router, http::StatusCode, routing};
use handover::{Cx, Node, Progress, Seeds, Step, Task, signal};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Job {
    up_to: u64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)] // a field added later is no obstacle, in either direction
struct Found {
    looked_at: u64,
    primes: u64,
}

struct Count;

impl Task for Count {
    const KIND: &'static str = "count-primes";
    type Args = Job;
    type State = Found; // the checkpoint: it goes wherever the task goes
    type Output = u64;

    async fn step(&self, cx: &mut Cx, job: &Job, at: &mut Found) -> handover::Result<Step<u64>> {
        let (from, to) = (at.looked_at + 1, job.up_to.min(at.looked_at + 50_000));
        let is_prime =
            |n: &u64| *n > 1 && !(2..).take_while(|d| d * d <= *n).any(|d| n.is_multiple_of(d));
        let count = move || (from..=to).filter(is_prime).count() as u64;
        at.primes += cx.blocking(count).await?;
        at.looked_at = to;
        cx.progress(to, job.up_to);
        let done = to == job.up_to;
        Ok(if done { Step::Done(at.primes) } else { Step::More })
    }
}

async fn start(
    State(node): State<Node>,
    Path(id): Path<String>,
    Json(job): Json<Job>,
) -> StatusCode {
    // The name makes it one task, however often and on whichever node it is asked for.
    match node.run::<Count>(format!("count/{id}"), job).await {
        Ok(_) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn progress(State(node): State<Node>, Path(id): Path<String>) -> Json<Option<Progress>> {
    Json(node.get::<Count>(&format!("count/{id}")).progress().await)
}

#[tokio::main]
async fn main() -> handover::Result<ExitCode> {
    let mut addresses = std::env::args().skip(1).map(|text| text.parse::<SocketAddr>());
    let mut next = || addresses.next().unwrap_or_else(|| "127.0.0.1:0".parse());
    let (gossip, http) = (next()?, tokio::net::TcpListener::bind(next()?).await?);
    let node = Node::builder("primes")
        .node_id(gossip.to_string())
        .listen(gossip)
        .seeds(Seeds::Addresses(addresses.collect::<Result<_, _>>()?))
        .task(Count)
        .start()
        .await?;
    println!("gossip on {}, http on {}", node.address(), http.local_addr()?);
    let routes = Router::new()
        .route("/count/{id}", routing::post(start).get(progress))
        .with_state(node.clone());
    let server = axum::serve(http, routes).with_graceful_shutdown(node.stop_accepting());
    tokio::spawn(server.into_future());

    let report = node.drain_on(signal::term_or_int()).await; // tasks move; HTTP still serves
    node.leave().await?;
    Ok(report.exit_code())
}
