//! The metrics a node records through the `metrics` facade. Without a recorder they cost next to nothing.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::drain::DrainReport;
use super::tally::Arrival;
use crate::core::ids::Kind;
use crate::core::io::Cause;
use crate::core::machine::Needs;

/// Describes every metric to the recorder. Doing it again changes nothing.
pub(crate) fn describe() {
    describe_gauge!("handover_tasks", Unit::Count, "Tasks this node holds, by kind and state");
    describe_gauge!("handover_peers", Unit::Count, "Peers that are there, for all this node knows");
    describe_gauge!("handover_names", Unit::Count, "Names this node knows, of `max_names`");
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
        "Time in which nobody ran a task, by reason: from its stop to the news that it runs elsewhere; after a crash from the owner's last sign of life"
    );
    describe_histogram!(
        "handover_overlap_seconds",
        Unit::Seconds,
        "Time for which two nodes ran a task, told by the one that stopped: from the later start to its stop"
    );
    describe_histogram!(
        "handover_checkpoint_age_seconds",
        Unit::Seconds,
        "Age of a task's newest checkpoint, by kind: when the next one was committed, and when a node went on from it"
    );
    describe_histogram!(
        "handover_work_redone_ratio",
        Unit::Count,
        "Share of a run's work so far that a move made to be done again, by reason"
    );
    describe_histogram!("handover_step_seconds", Unit::Seconds, "How long steps took, by kind");
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
    describe_gauge!(
        "handover_parked",
        Unit::Count,
        "Tasks this node keeps parked, by what they need and why"
    );
    describe_gauge!(
        "handover_one_way",
        Unit::Count,
        "Tasks held here whose newest state a node cannot read that is there, or was lately, by kind"
    );
    describe_counter!(
        "handover_unstored_total",
        Unit::Count,
        "Checkpoints, ends and orders that could not be stored, by where"
    );
    describe_counter!(
        "handover_unstoppable_total",
        Unit::Count,
        "Tasks whose code had not returned when its grace was over"
    );
    describe_counter!(
        "handover_conflicts_total",
        Unit::Count,
        "Tasks that two nodes held at once, by which one went on"
    );
    describe_counter!(
        "handover_frames_rejected_total",
        Unit::Count,
        "Frames of authenticated peers that were not taken in, by reason"
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
    describe_counter!(
        "handover_gossip_rejected_total",
        Unit::Count,
        "Datagrams that were not taken in, by reason"
    );
    describe_counter!(
        "handover_link_rejected_total",
        Unit::Count,
        "Connections closed before a handshake, by reason"
    );
    describe_counter!(
        "handover_gossip_dropped_total",
        Unit::Count,
        "Gossip that a full queue dropped, by what; it is repeated"
    );
    describe_counter!(
        "handover_gossip_send_errors_total",
        Unit::Count,
        "Datagrams that the system would not send"
    );
    describe_counter!(
        "handover_link_rejected_total",
        Unit::Count,
        "Connections closed before a handshake, by reason"
    );
    describe_counter!(
        "handover_gossip_restarts_total",
        Unit::Count,
        "Times that a part of gossip ended unexpectedly and was started again, by part"
    );
    describe_counter!(
        "handover_gossip_foreign_writes_total",
        Unit::Count,
        "Times that a peer wrote what only this node may write; it was overwritten"
    );
}

pub(crate) const fn reason(cause: Cause) -> &'static str {
    match cause {
        Cause::Start => "start",
        Cause::Drain => "drain",
        Cause::Rollback => "rollback",
        Cause::Crash => "crash",
        Cause::Released => "released",
        Cause::Boot => "boot",
        Cause::Unparked => "unparked",
    }
}

pub(crate) fn moved_here(cause: Cause, from_rev: String, to_rev: String, arrival: Arrival) {
    let reason = reason(cause);
    counter!("handover_moves_total", "reason" => reason, "from_rev" => from_rev, "to_rev" => to_rev)
        .increment(1);
    if arrival.again {
        counter!("handover_task_double_moves_total").increment(1);
    }
    if let Some(gap) = arrival.gap {
        move_gap(reason, gap);
    }
    if let Some(share) = arrival.redone {
        work_redone(reason, share);
    }
}

pub(crate) fn move_gap(reason: &'static str, gap: Duration) {
    histogram!("handover_move_gap_seconds", "reason" => reason).record(gap);
}

pub(crate) fn work_redone(reason: &'static str, share: f64) {
    histogram!("handover_work_redone_ratio", "reason" => reason).record(share);
}

pub(crate) fn overlap(seen: Duration) {
    histogram!("handover_overlap_seconds").record(seen);
}

/// The age of the checkpoint that a task goes on from here.
pub(crate) fn checkpoint_age(kind: &Kind, age: Duration) {
    let kind = kind.to_string();
    histogram!("handover_checkpoint_age_seconds", "kind" => kind, "at" => "start").record(age);
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

pub(crate) fn parked(needs: &Needs, count: usize) {
    gauge!("handover_parked", "needs" => needs.to_string(), "reason" => needs.reason())
        .set(count as f64);
}

pub(crate) fn one_way(kind: &str, count: usize) {
    gauge!("handover_one_way", "kind" => kind.to_owned()).set(count as f64);
}

pub(crate) fn peers(count: usize) {
    gauge!("handover_peers").set(count as f64);
}

pub(super) fn names(count: usize) {
    gauge!("handover_names").set(count as f64);
}

pub(crate) fn frame_rejected(reason: &'static str) {
    counter!("handover_frames_rejected_total", "reason" => reason).increment(1);
}

pub(crate) fn record_rejected() {
    counter!("handover_records_rejected_total").increment(1);
}

pub(super) fn unstoppable() {
    counter!("handover_unstoppable_total").increment(1);
}

pub(super) fn unstored(elsewhere: bool) {
    let place = if elsewhere { "replica" } else { "here" };
    counter!("handover_unstored_total", "where" => place).increment(1);
}

pub(crate) fn message_dropped() {
    counter!("handover_messages_dropped_total").increment(1);
}
