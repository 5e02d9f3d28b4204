//! The rules, one by one, in a world of virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod churn;
mod concurrent_starts;
mod explorer;
mod handover;
mod hearsay_of_nobody;
mod hostile;
mod interleavings;
mod many_names;
mod regressions;
mod rules_checkpoints;
mod rules_claims;
mod rules_custody;
mod rules_desired;
mod rules_ends;
mod rules_evidence;
mod rules_floor;
mod rules_goodbyes;
mod rules_hearsay;
mod rules_joining;
mod rules_kinds;
mod rules_liveness;
mod rules_meeting;
mod rules_reconcile;
mod rules_relief;
mod rules_retention;
mod rules_runs;
mod rules_saturation;
mod rules_settling;
mod rules_versions;
mod settling_exhaustive;
mod slow;
mod spine;
mod world;
