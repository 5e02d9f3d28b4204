//! An HTTP service whose long-running work survives its deploys and crashes.
//!
//! ```text
//! HTTP=127.0.0.1:8001 GOSSIP=127.0.0.1:7001 cargo run --example service
//! HTTP=127.0.0.1:8002 GOSSIP=127.0.0.1:7002 SEED=127.0.0.1:7001 cargo run --example service
//! curl -X POST 127.0.0.1:8001/count/sheep/600
//! curl 127.0.0.1:8002/count/sheep
//! ```

use axum::extract::{Path, State};
use axum::{Json, Router, http::StatusCode, routing};
use handover::{Cx, Node, Progress, Result, Seeds, Step, Task, signal};
use std::time::Duration;

struct Count;

impl Task for Count {
    const KIND: &'static str = "count";
    type Args = u64;
    type State = u64; // the checkpoint: wherever the task goes, this goes along
    type Output = u64;

    async fn step(&self, cx: &mut Cx, up_to: &u64, at: &mut u64) -> Result<Step<u64>> {
        tokio::time::sleep(Duration::from_millis(100)).await; // the work
        *at += 1;
        cx.progress(*at, *up_to);
        Ok(if *at >= *up_to { Step::Done(*at) } else { Step::More })
    }
}

async fn start(State(node): State<Node>, Path((id, n)): Path<(String, u64)>) -> StatusCode {
    let task = node.run::<Count>(format!("count/{id}"), n).await; // the name makes it one task
    if task.is_ok() { StatusCode::ACCEPTED } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn progress(State(node): State<Node>, Path(id): Path<String>) -> Json<Option<Progress>> {
    Json(node.get::<Count>(&format!("count/{id}")).progress().await)
}

#[tokio::main]
async fn main() -> Result<()> {
    let (http, gossip) = (std::env::var("HTTP")?, std::env::var("GOSSIP")?);
    let seeds = std::env::var("SEED").map_or(Seeds::None, Seeds::Dns);
    let node = Node::builder("sheep").node_id(&gossip).listen(&gossip).seeds(seeds);
    let node = node.task(Count).start().await?;
    let app = Router::new()
        .route("/count/{id}/{n}", routing::post(start))
        .route("/count/{id}", routing::get(progress))
        .with_state(node.clone());
    let server = axum::serve(tokio::net::TcpListener::bind(http).await?, app);
    tokio::spawn(server.with_graceful_shutdown(node.stop_accepting()).into_future());
    let report = node.drain_on(signal::term_or_int()).await; // tasks move; HTTP still serves
    node.leave().await.unwrap_or_else(|error| eprintln!("{error}"));
    std::process::exit(report.code().into()) // also ends closures that do not return
}
