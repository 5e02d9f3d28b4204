//! Every metric is described and documented, and every documented one exists.

use std::collections::BTreeSet;

use handover::Node;

use super::recorder::Recorded;

#[test]
fn the_documented_metrics_are_those_that_a_node_describes() {
    let recorded = Recorded::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorded, || {
        runtime.block_on(async {
            Node::builder("names").node_id("a").start().await.unwrap().close().await;
        });
    });
    let page = include_str!("../../docs/observability.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `handover_"));
    let documented: BTreeSet<String> =
        rows.map(|row| format!("handover_{}", row.split(['`', '{']).next().unwrap())).collect();
    assert_eq!(documented, recorded.described());
}
