//! The metrics a node records through the `metrics` facade. Without a recorder they cost next to nothing.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::drain::DrainReport;
use crate::core::io::Cause;

/// Describes every metric to the recorder. Doing it again changes nothing.
pub(crate) fn describe() {
    describe_gauge!("handover_tasks", Unit::Count, "Tasks this node holds, by kind and state");
    describe_gauge!("handover_peers", Unit::Count, "Peers this node knows, by state");
    describe_gauge!(
        "handover_gossip_one_way",
        Unit::Count,
        "Peers to which the path seems open in one direction alone: heard without echoing this node, or heard by others alone"
    );
    describe_counter!(
        "handover_moves_total",
        Unit::Count,
        "Tasks that came to run here after running elsewhere, by reason and revisions"
    );
    describe_counter!(
        "handover_task_double_moves_total",
        Unit::Count,
        "Moves of a task that had moved within the last ten minutes"
    );
    describe_histogram!(
        "handover_move_gap_seconds",
        Unit::Seconds,
        "Time in which nobody ran a task that this node handed over: from its stop here to the news that it runs there, so an upper bound by the news' way"
    );
    describe_histogram!(
        "handover_overlap_seconds",
        Unit::Seconds,
        "Time for which this node still ran a task after it saw the claim that ends it here: a lower bound of the overlap"
    );
    describe_histogram!(
        "handover_checkpoint_age_seconds",
        Unit::Seconds,
        "Age by wall clock of the checkpoint that a task taken over here started from"
    );
    describe_histogram!(
        "handover_drain_seconds",
        Unit::Seconds,
        "How long drains took, by outcome"
    );
    describe_counter!(
        "handover_abandoned_total",
        Unit::Count,
        "Tasks whose last commit no other node held when the drain ended"
    );
    describe_gauge!("handover_parked", Unit::Count, "Tasks this node keeps parked");
    describe_counter!(
        "handover_conflicts_total",
        Unit::Count,
        "Tasks that two nodes held at once, by which one went on"
    );
    describe_counter!(
        "handover_frames_rejected_total",
        Unit::Count,
        "Frames of authenticated peers that could not be decoded"
    );
    describe_counter!(
        "handover_records_rejected_total",
        Unit::Count,
        "Gossiped records that were malformed or not their publisher's to write"
    );
    describe_counter!(
        "handover_messages_dropped_total",
        Unit::Count,
        "Messages to peers that no link could take; what matters is sent again"
    );
}

pub(crate) const fn reason(cause: Cause) -> &'static str {
    match cause {
        Cause::Start => "start",
        Cause::Drain => "drain",
        Cause::Crash => "crash",
        Cause::Released => "released",
        Cause::Boot => "boot",
        Cause::Unparked => "unparked",
    }
}

pub(crate) fn moved_here(cause: Cause, from_rev: String, to_rev: String, again: bool) {
    counter!("handover_moves_total", "reason" => reason(cause), "from_rev" => from_rev, "to_rev" => to_rev)
        .increment(1);
    if again {
        counter!("handover_task_double_moves_total").increment(1);
    }
}

pub(crate) fn move_gap(gap: Duration) {
    histogram!("handover_move_gap_seconds").record(gap);
}

pub(crate) fn overlap(seen: Duration) {
    histogram!("handover_overlap_seconds").record(seen);
}

pub(crate) fn checkpoint_age(age: Duration) {
    histogram!("handover_checkpoint_age_seconds").record(age);
}

pub(crate) fn drained(report: &DrainReport) {
    histogram!("handover_drain_seconds", "outcome" => report.outcome()).record(report.elapsed);
    counter!("handover_abandoned_total").increment(report.abandoned.len() as u64);
}

pub(crate) fn conflict(kept_here: bool) {
    let kept = if kept_here { "here" } else { "there" };
    counter!("handover_conflicts_total", "kept" => kept).increment(1);
}

pub(crate) fn tasks(kind: &str, state: &'static str, count: usize) {
    gauge!("handover_tasks", "kind" => kind.to_owned(), "state" => state).set(count as f64);
}

pub(crate) fn parked(count: usize) {
    gauge!("handover_parked").set(count as f64);
}

pub(crate) fn peers(count: usize) {
    gauge!("handover_peers").set(count as f64);
}

pub(crate) fn frame_rejected() {
    counter!("handover_frames_rejected_total").increment(1);
}

pub(crate) fn record_rejected() {
    counter!("handover_records_rejected_total").increment(1);
}

pub(crate) fn message_dropped() {
    counter!("handover_messages_dropped_total").increment(1);
}
