//! The machine that decides: events in, actions out (`handle`, `poll`, `next_timeout`).
//!
//! It owns everything a decision depends on. One task's life on this node is a [`Task`]; what the
//! cluster says of a name is the [`View`]; who is there is [`Members`]. Rule numbers are those of
//! `docs/semantics.md`.

mod agenda;
mod answer;
mod boot;
mod cleanup;
mod config;
mod conflict;
mod copies;
mod desire;
mod dispatch;
mod drain;
mod end;
mod evidence;
mod goodbyes;
mod hearsay;
mod holding;
mod incoming;
mod knowledge;
mod needs;
mod parked;
mod parting;
mod publish;
mod reconcile;
mod recover;
mod relief;
mod replicate;
mod settle;
mod start;
mod takeover;
mod task;
mod transfer;
mod versions;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use litemap::LiteMap;

pub use config::{MachineConfig, OnLostState};
pub use needs::Needs;
use publish::Shown;
use task::{Doing, Task};

use super::branch::{Branches, Header, Position};
use super::claim::{Claim, Desired, Spec, Terms};
use super::ids::{Kind, Name, RunId, SessionId};
use super::io::{Action, CallError, Event, Gone, Notice, Now};
use super::members::Members;
use super::message::{Message, Question};
use super::record::{Load, NodeState};
use super::time::Time;
use super::view::View;

/// See the module.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Machine {
    config: MachineConfig,
    state: NodeState,
    started: Time,
    now: Now,
    members: Members,
    view: View,
    specs: BTreeMap<Name, Spec>,
    /// Of other runs of a name than the one in `specs`: the newest is not always the one that stands.
    other_specs: BTreeMap<Name, BTreeMap<RunId, Spec>>,
    desires: BTreeMap<Name, Desired>,
    /// Boxed: a tree moves its values about.
    tasks: BTreeMap<Name, Box<Task>>,
    /// Checkpoints held here, of my own tasks and as a replica.
    held: BTreeMap<Name, LiteMap<RunId, Branches>>,
    /// Checkpoints on their way to the store: held by nobody before they are there (C5). Until then the
    /// store has those whose place they take.
    writing: BTreeMap<(Name, RunId, Position, SessionId), Vec<Header>>,
    /// Terminal records held here, with when they came.
    ends: BTreeMap<Name, (Claim, Time)>,
    /// Ends on their way to the store, or that it has not taken: held by nobody before they are there (C5).
    unstored: BTreeSet<Name>,
    /// Ends that are held without their output: it has been dropped, or never came.
    bare: BTreeSet<Name>,
    copies: copies::Copies,
    /// Runs kept here that another run of the name has replaced, and since when (Rule 8).
    outdated: BTreeMap<(Name, RunId), Time>,
    /// The sessions with which a task here is in conflict.
    rivalries: BTreeMap<SessionId, conflict::Rivalry>,
    owed: BTreeMap<Name, conflict::Owed>,
    /// Names that run here of which a branch may be held that is not of their line, and from when on to
    /// look at that (Rule 22).
    forked: BTreeMap<Name, Time>,
    /// Those whose branches were reconciled here, until that is in other hands.
    reconciled: BTreeMap<Name, BTreeSet<SessionId>>,
    /// Names of which nothing but their past is known, and since when.
    idle: BTreeMap<Name, Time>,
    /// Who asked about a name, until their claim is visible or they are gone (Rule 13).
    askers: BTreeMap<Name, BTreeSet<SessionId>>,
    starts: start::Starts,
    readers: versions::Readers,
    /// When each revision was first seen, by the clocks of its nodes.
    revisions: BTreeMap<String, u64>,
    boot: boot::Boot,
    drain: Option<drain::Drain>,
    leave: Option<drain::Goodbye>,
    /// Sessions whose address has refused this node since they were last heard: others were told.
    refused: BTreeSet<SessionId>,
    /// A process that lives and goes by the same name: a person was told.
    namesake: Option<SessionId>,
    /// Sessions whose claims are void here, and since when (Rule 24).
    buried: BTreeMap<SessionId, Time>,
    /// When burials were last looked at.
    mourned: Time,
    next_number: u64,
    /// Numbers of my claims that hold a name.
    holding: holding::Holding,
    recently_released: VecDeque<u64>,
    /// Vacant names that this node had no room for.
    passed_over: BTreeSet<Name>,
    /// A name was refused for want of room, and a person was told.
    crowded: bool,
    /// Vacant names whose owner's mode is unknown here.
    left_alone: BTreeSet<Name>,
    /// When a name that nobody holds was first seen free.
    free_since: BTreeMap<Name, Time>,
    header: Option<(NodeState, u64, Vec<u64>)>,
    /// Of the header; ascends with its every change.
    version: u64,
    inquiry: hearsay::Inquiry,
    load: Load,
    permit: Time,
    ticked: Time,
    /// When what this node holds is looked at because of who is there, and when at the latest.
    review: Option<(Time, Time)>,
    /// Names to look at before `handle` returns.
    dirty: BTreeSet<Name>,
    /// Names to look at when nothing else is to be done: there may be very many.
    later: BTreeSet<Name>,
    alarms: BTreeSet<(Time, Name)>,
    alarm_of: BTreeMap<Name, Time>,
    /// Asks and answers gathered in one `handle`, sent as one message per peer.
    asks: BTreeMap<SessionId, Vec<Question>>,
    /// What lookups were last told of each name.
    shown: BTreeMap<Name, Shown>,
    actions: VecDeque<Action>,
    /// Results of calls, given when all that follows from them has been decided.
    replies: Vec<(u64, Result<RunId, CallError>)>,
}

/// Between looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// Bound on the sessions remembered as buried.
const MAX_BURIED: usize = 10_000;
/// Bound on specs kept of runs of a name other than the newest.
const MAX_OTHER_SPECS: usize = 4;
/// Bound on the revisions remembered.
const MAX_REVISIONS: usize = 256;

impl Machine {
    /// A joining node that knows nothing but its own disk.
    pub fn new(now: Now, config: MachineConfig) -> Self {
        let members = Members::new(
            now.at,
            config.me.clone(),
            config.timing.clone(),
            config.known_dead,
            &config.members,
        );
        let mut machine = Self {
            state: NodeState::Joining,
            started: now.at,
            now,
            members,
            view: View::default(),
            specs: BTreeMap::new(),
            other_specs: BTreeMap::new(),
            desires: BTreeMap::new(),
            tasks: BTreeMap::new(),
            held: BTreeMap::new(),
            writing: BTreeMap::new(),
            ends: BTreeMap::new(),
            unstored: BTreeSet::new(),
            bare: BTreeSet::new(),
            copies: copies::Copies::default(),
            outdated: BTreeMap::new(),
            rivalries: BTreeMap::new(),
            owed: BTreeMap::new(),
            forked: BTreeMap::new(),
            reconciled: BTreeMap::new(),
            idle: BTreeMap::new(),
            askers: BTreeMap::new(),
            starts: start::Starts::default(),
            readers: versions::Readers::default(),
            revisions: BTreeMap::new(),
            boot: boot::Boot::default(),
            drain: None,
            leave: None,
            refused: BTreeSet::new(),
            namesake: None,
            buried: BTreeMap::new(),
            mourned: now.at,
            next_number: 1,
            holding: holding::Holding::default(),
            recently_released: VecDeque::new(),
            passed_over: BTreeSet::new(),
            crowded: false,
            left_alone: BTreeSet::new(),
            free_since: BTreeMap::new(),
            header: None,
            version: 0,
            inquiry: hearsay::Inquiry::default(),
            load: Load::default(),
            permit: Time::ZERO,
            ticked: now.at,
            review: None,
            dirty: BTreeSet::new(),
            later: BTreeSet::new(),
            alarms: BTreeSet::new(),
            alarm_of: BTreeMap::new(),
            asks: BTreeMap::new(),
            shown: BTreeMap::new(),
            actions: VecDeque::new(),
            replies: Vec::new(),
            config,
        };
        machine.load_boot();
        machine.tick();
        machine.finish();
        machine
    }

    /// Takes one event in.
    pub fn handle(&mut self, now: Now, event: Event) {
        self.now = now;
        if now.at.since(self.ticked) >= TICK {
            self.tick();
        }
        if matches!(event, Event::Tick) {
            self.touch_some();
        }
        self.dispatch(event);
        for session in self.members.take_displaced() {
            self.forget_session(&session);
        }
        self.ring();
        self.finish();
    }

    /// The next thing to do, in order.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When `handle` must be called with [`Event::Tick`] at the latest. At once if there is more to
    /// decide: what has been decided is to be carried out first, and what has happened is to be told.
    pub fn next_timeout(&self) -> Time {
        if !self.later.is_empty() {
            return self.now.at;
        }
        let tick = self.ticked + TICK;
        let alarm = self.alarms.first().map(|(at, _)| *at);
        [alarm, self.review.map(|(at, _)| at)].into_iter().flatten().fold(tick, Time::min)
    }

    /// My state.
    pub fn state(&self) -> NodeState {
        self.state
    }

    /// All claims known.
    #[cfg(test)]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// All sessions known.
    #[cfg(test)]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// How many names are known, against [`MachineConfig::max_names`].
    pub fn names(&self) -> usize {
        self.view.len().max(self.held.len()).max(self.ends.len())
    }

    /// A spec known.
    pub fn spec(&self, name: &Name) -> Option<&Spec> {
        self.specs.get(name)
    }

    fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn tell(&mut self, notice: Notice) {
        self.push(Action::Tell(notice));
    }

    /// Sends over the link, or by one hop where the link is cut (Rule 13).
    fn send(&mut self, to: &SessionId, message: Message) {
        let via = match self.is_linked(to) || !message.may_be_relayed() {
            true => None,
            // Who is known to have a link to it, or else anybody.
            false => {
                let known = self.members.get(to).and_then(|peer| Some(&peer.via.as_ref()?.0));
                let anybody = || self.members.live().find(|v| *v != to && self.is_linked(v));
                known.filter(|via| self.is_linked(via)).or_else(anybody).cloned()
            }
        };
        if let Some(via) = via {
            let relay = Message::Relay {
                from: self.config.me.clone(),
                to: to.clone(),
                message: Box::new(message),
            };
            return self.push(Action::Send { to: via, message: relay });
        }
        self.push(Action::Send { to: to.clone(), message });
    }

    fn terms(&self) -> Terms {
        Terms { mode: self.config.mode, silence_floor: self.config.timing.silence_floor }
    }

    /// Stops everything and says so: this session has lost its right to run (Rule 6).
    fn fence(&mut self, why: &str) {
        if self.state.is_fenced() {
            return;
        }
        self.tell(Notice::Warning(format!("{why}: this session stops all its tasks")));
        self.set_state(NodeState::Fencing);
        let grace = self.config.timing.stop_grace;
        for name in self.tasks.keys().cloned().collect::<Vec<_>>() {
            self.stop_for(&name, task::Why::Release, grace);
        }
    }

    fn tick(&mut self) {
        self.ticked = self.now.at;
        let ticked = self.members.tick(self.now.at);
        if let Some(until) = ticked.braked {
            self.tell(Notice::Brake { until });
        }
        for session in ticked.silent {
            self.on_gone(&session, Gone::Silent);
        }
        self.crowded &= self.names() >= self.config.max_names / 10 * 9;
        self.tick_join();
        self.tick_boot();
        self.tick_drain();
        self.tick_relief();
        self.tick_copies();
        self.tick_burials();
        self.tick_inquiry();
        self.tick_versions();
        self.starts_tick();
        let permit = self.now.at + self.config.timing.permit();
        if !self.state.is_fenced()
            && self.members.may_step(self.now.at)
            && permit.since(self.permit) >= TICK * 2
        {
            self.permit = permit;
            self.push(Action::Permit { until: permit });
        }
        if self.state == NodeState::Fencing
            && self.tasks.values().all(|task| matches!(task.doing, Doing::Over { .. }))
        {
            self.set_state(NodeState::Fenced);
        }
    }

    /// Whether this node's code reads a version of a kind's state.
    pub(super) fn reads(&self, kind: &Kind, version: u32) -> bool {
        self.config.record.kinds.get(kind).is_some_and(|versions| versions.reads(version))
    }

    /// Whether this node may take a task now.
    fn may_take(&self, spec: &Spec, state_version: Option<u32>) -> bool {
        self.state == NodeState::Up
            && !self.is_full_for(spec)
            && self
                .config
                .record
                .kinds
                .get(&spec.kind)
                .is_some_and(|versions| state_version.is_none_or(|v| versions.reads(v)))
    }

    /// What this node runs, or is about to.
    fn load_now(&self) -> Load {
        let running = u32::try_from(self.holding.running()).unwrap_or(u32::MAX);
        Load { running, full: running >= self.config.record.max_running }
    }

    /// Whether this node runs as many tasks as it may, of all kinds or of this one.
    fn is_full_for(&self, spec: &Spec) -> bool {
        let of_kind = self.config.kind_limits.get(&spec.kind);
        self.load_now().full || of_kind.is_some_and(|limit| self.holding.of(&spec.kind) >= *limit)
    }
}
