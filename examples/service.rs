//! An HTTP service whose long-running work survives its deploys and crashes.
//!
//! ```text
//! cargo run --example service -- 127.0.0.1:8001 127.0.0.1:7001
//! cargo run --example service -- 127.0.0.1:8002 127.0.0.1:7002 127.0.0.1:7001
//! curl -X POST 127.0.0.1:8001/count/sheep/600
//! curl 127.0.0.1:8002/count/sheep
//! ```

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use axum::extract::{Path, State};
use axum::{Json, Router, http::StatusCode, routing};
use handover::{Cx, Node, Progress, Result, Step, Task, signal};

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
    match node.run::<Count>(format!("count/{id}"), n).await {
        Ok(_) => StatusCode::ACCEPTED, // the name makes it one task, wherever it is asked for
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn progress(State(node): State<Node>, Path(id): Path<String>) -> Json<Option<Progress>> {
    Json(node.get::<Count>(&format!("count/{id}")).progress().await)
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let addresses = std::env::args().skip(1).map(|text| text.parse());
    let addresses: Vec<SocketAddr> = addresses.collect::<Result<_, _>>()?;
    let [http, gossip, seeds @ ..] = addresses.as_slice() else {
        return Err(handover::Error::fatal("usage: service HTTP GOSSIP [SEED]..."));
    };
    let node = Node::builder("sheep").node_id(gossip.to_string()).listen(gossip);
    let node = node.seeds(seeds.to_vec()).task(Count).start().await?;
    let app = Router::new()
        .route("/count/{id}/{n}", routing::post(start))
        .route("/count/{id}", routing::get(progress))
        .with_state(node.clone());
    let server = axum::serve(tokio::net::TcpListener::bind(http).await?, app);
    tokio::spawn(server.with_graceful_shutdown(node.stop_accepting()).into_future());

    let report = node.drain_on(signal::term_or_int()).await; // tasks move; HTTP still serves
    node.leave().await?;
    Ok(report.exit_code())
}
