//! The machine that decides: events in, actions out (`handle`, `poll`, `next_timeout`).
//!
//! It owns everything a decision depends on. One task's life on this node is a [`Task`]; what the
//! cluster says of a name is the [`View`]; who is there is [`Members`]. Rule numbers are those of
//! `docs/semantics.md`.

mod answer;
mod boot;
mod cleanup;
mod conflict;
mod copies;
mod desire;
mod drain;
mod end;
mod evidence;
mod goodbyes;
mod hearsay;
mod holding;
mod knowledge;
mod needs;
mod parting;
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
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use litemap::LiteMap;

pub use needs::Needs;
use task::{Doing, Task};
use transfer::OfferTerms;

use super::branch::{Branches, Position};
use super::claim::{Claim, Desired, Mode, Phase, Spec, Terms};
use super::ids::{Kind, Name, RunId, SessionId};
use super::io::{Action, Event, Gone, Notice, Now};
use super::limits;
use super::members::Members;
use super::message::{Message, Question};
use super::record::{Load, NodeRecord, NodeState};
use super::stored::StoredRun;
use super::time::Time;
use super::timing::Timing;
use super::view::View;

/// What a taker does when no state at or above the floor can be found (Rule 20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLostState {
    /// Keep the name until somebody says `resume`.
    #[default]
    Park,
    /// Begin at the initial state.
    Restart,
    /// Begin at the best state there is.
    UseOlder,
}

/// What the machine must know before it starts.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// My session.
    pub me: SessionId,
    /// My static record.
    pub record: NodeRecord,
    /// All durations; already checked.
    pub timing: Timing,
    /// My mode.
    pub mode: Mode,
    /// How many other nodes get each checkpoint.
    pub replicas: usize,
    /// Whether any seed is configured.
    pub seeds: bool,
    /// The sessions the data directory remembers.
    pub members: Vec<SessionId>,
    /// What the data directory holds.
    pub boot: Vec<StoredRun>,
    /// Whether checkpoints survive this process.
    pub durable: bool,
    /// Whether a refused reconnect proves death (Rule 5).
    pub known_dead: bool,
    /// How many tasks of a kind this node takes at most; none where there is no limit.
    pub kind_limits: BTreeMap<Kind, usize>,
    /// Kinds whose tasks a draining node finishes itself if it can.
    pub finish_here: BTreeSet<Kind>,
    /// Bound on names known.
    pub max_names: usize,
    /// See there.
    pub on_lost_state: OnLostState,
}

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
    /// Checkpoints on their way to the store: held by nobody before they are there (C5).
    writing: BTreeSet<(Name, RunId, Position, SessionId)>,
    /// Terminal records held here, with when they came.
    ends: BTreeMap<Name, (Claim, Time)>,
    /// Ends that are held without their output: it has been dropped, or never came.
    bare: BTreeSet<Name>,
    copies: copies::Copies,
    /// Runs kept here that another run of the name has replaced, and since when (Rule 8).
    outdated: BTreeMap<(Name, RunId), Time>,
    /// The sessions with which a task here is in conflict.
    rivalries: BTreeMap<SessionId, conflict::Rivalry>,
    owed: BTreeMap<Name, conflict::Owed>,
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
}

/// Tells a claim from any other: whoever writes one counts its changes, and a release can be counted
/// here before it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    session: SessionId,
    number: u64,
    version: u32,
    phase: Discriminant<Phase>,
}

impl Shown {
    fn of(claim: &Claim) -> Self {
        Self {
            session: claim.session.clone(),
            number: claim.number,
            version: claim.version,
            phase: discriminant(&claim.phase),
        }
    }
}

/// Names that could wait, looked at in one `handle`.
const AT_LEISURE: usize = 64;
/// Between looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// Bound on the sessions remembered as buried.
const MAX_BURIED: usize = 10_000;
/// Bound on specs kept of runs of a name other than the newest.
const MAX_OTHER_SPECS: usize = 4;
/// Bound on the revisions remembered.
const MAX_REVISIONS: usize = 256;
/// Bound on the list of single releases in the header.
const MAX_RELEASED: usize = 32;

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
            writing: BTreeSet::new(),
            ends: BTreeMap::new(),
            bare: BTreeSet::new(),
            copies: copies::Copies::default(),
            outdated: BTreeMap::new(),
            rivalries: BTreeMap::new(),
            owed: BTreeMap::new(),
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

    fn dispatch(&mut self, event: Event) {
        if self.is_from_the_grave(&event) {
            return;
        }
        match event {
            Event::Heard { from, state, version, watermark, released, echoed } => {
                self.on_heard(&from, (state, version), watermark, &released, echoed);
            }
            Event::Heartbeat { of } => {
                if self.members.heartbeat(self.now.at, &of) {
                    self.on_back(&of);
                }
                self.conflict_evidence(&of);
            }
            Event::Suspicion { of, suspected } => {
                self.members.suspicion(self.now.at, &of, suspected);
            }
            Event::Record { of, record } => self.on_record(&of, record),
            Event::Load { of, load } => {
                if let Some(peer) = self.members.gossiped(&of, self.now.at)
                    && std::mem::replace(&mut peer.load, load).full != load.full
                {
                    self.review_later();
                }
            }
            Event::Claims { of, changes } => self.on_claims(&of, changes),
            Event::Specs { specs } => specs.into_iter().for_each(|spec| self.learn(spec)),
            Event::Desires { desires } => {
                desires.into_iter().for_each(|desired| self.learn_desired(desired));
            }
            Event::CaughtUp { of } => {
                if let Some(peer) = self.members.gossiped(&of, self.now.at) {
                    peer.caught_up = true;
                }
            }
            Event::LinkUp { with } => self.on_link_up(&with),
            Event::LinkDown { with, refused } => self.on_link_down(&with, refused),
            Event::Message { from, message } => self.on_message(&from, message),
            Event::Run { call, spec, again } => self.on_run(call, spec, again),
            Event::Want { call, name, want } => self.on_want(call, &name, want),
            Event::Cordon(on) => self.on_cordon(on),
            Event::Drain { deadline } => self.on_drain(deadline),
            Event::DrainNow => self.on_drain_now(),
            Event::Leave => self.on_leave(),
            Event::Committed { header, state, forced } => self.on_committed(header, state, forced),
            Event::Stopped { name, epoch, sealed, dropped } => {
                self.on_stopped(&name, epoch, sealed, dropped);
            }
            Event::Unstoppable { name, epoch } => self.on_unstoppable(&name, epoch),
            Event::Resting { name, epoch, resting } => self.on_resting(&name, epoch, resting),
            Event::Ended { name, epoch, outcome } => self.on_ended(&name, epoch, outcome),
            Event::Stuck { name, epoch, sealed, why } => self.on_stuck(&name, epoch, sealed, why),
            Event::Stored { header, from, error } => self.on_stored(header, from, error),
            Event::StoredEnd { name, run, from, error } => {
                self.on_stored_end(&name, run, from, error);
            }
            Event::Loaded { header, state } => self.on_loaded(header, state),
            Event::LoadedEnd { name, run, output } => self.on_loaded_end(&name, run, output),
            Event::FellBack { damaged, to } => self.on_fell_back(&damaged, to),
            Event::Tick => {}
        }
    }

    /// Gossip about a session that is buried here. Its claims are kept, void; nothing else of it
    /// counts before a datagram of its own, fresh and echoed, ends the burial (Rule 24).
    fn is_from_the_grave(&self, event: &Event) -> bool {
        match event {
            Event::Heard { from, echoed: None, .. } => self.buried.contains_key(from),
            Event::Heartbeat { of }
            | Event::Suspicion { of, .. }
            | Event::Record { of, .. }
            | Event::Load { of, .. }
            | Event::CaughtUp { of } => self.buried.contains_key(of),
            _ => false,
        }
    }

    fn on_message(&mut self, from: &SessionId, message: Message) {
        // Else two that hold each other for silent step over each other's claims without end.
        if self.members.frame(self.now.at, from) {
            self.on_back(from);
        }
        match message {
            Message::Relay { from: writer, to, message } => {
                if to == self.config.me {
                    // One hop only: a relayed relay is dropped.
                    if message.may_be_relayed() {
                        self.on_relayed(from, &writer, *message);
                    }
                } else if self.members.get(&to).is_some_and(|peer| peer.linked)
                    && writer == *from
                    && message.may_be_relayed()
                {
                    self.push(Action::Send {
                        to: to.clone(),
                        message: Message::Relay { from: writer, to, message },
                    });
                }
            }
            Message::State { state, version } => {
                if let Some(peer) = self.members.entry(from, self.now.at) {
                    peer.states(self.now.at, state, version);
                }
                self.on_state(from);
            }
            Message::Unheard { sessions } => self.on_unheard(from, &sessions),
            Message::Hearsay { said } => self.on_hearsay(from, said),
            Message::Leave => {
                self.send(from, Message::LeaveHeard);
                self.gone(from, Gone::Left);
            }
            Message::LeaveHeard => self.on_leave_heard(from),
            Message::Dead { session } => {
                if self.members.observed_dead(self.now.at, &session, from) {
                    self.on_gone(&session, Gone::Dead);
                }
            }
            Message::Gone { sessions } => self.on_told_gone(sessions),
            Message::Buried { sessions } => self.on_buried(sessions),
            Message::Start { call, spec } => self.on_start(from, call, spec),
            Message::StartReply { call, result } => self.on_start_reply(from, call, result),
            Message::Ask { asks } => self.on_ask(from, asks),
            Message::Answers { answers } => {
                answers.into_iter().for_each(|answer| self.on_answer(from, answer));
            }
            Message::Offer { claim, epoch, spec, desired, idle, version, cause } => {
                let terms = OfferTerms { epoch, idle, version, cause };
                self.on_offer(from, claim, spec, desired, terms);
            }
            Message::OfferReply { name, epoch, result } => {
                self.on_offer_reply(from, &name, epoch, result);
            }
            Message::Withdraw { name, epoch } => self.on_withdraw(from, &name, epoch),
            Message::Checkpoint { claim, spec, header, state } => {
                self.on_checkpoint(from, claim, spec, header, state);
            }
            Message::CheckpointReply { name, run, position, result } => {
                self.on_checkpoint_reply(from, &name, run, position, result);
            }
            Message::Obsolete { header } => self.on_obsolete(&header),
            Message::Transferred { name, run, epoch, sealed } => {
                self.on_transferred(from, &name, run, epoch, sealed);
            }
            Message::Taken { name, epoch } => self.on_taken(from, &name, epoch),
            Message::FindState { name, run } => self.on_find_state(from, &name, run),
            Message::States { name, run, headers } => self.on_states(from, &name, run, headers),
            Message::GetState { name, run, position, writer } => {
                self.on_get_state(from, &name, run, position, &writer);
            }
            Message::StateData { header, state } => {
                // Not as its header says, it is as good as none (H4).
                let state = state.filter(|state| header.describes(state));
                self.on_state_data(header, state);
            }
            Message::Ended { claim, spec, output, age } => {
                self.on_ended_elsewhere(from, claim, spec, output, age);
            }
            Message::EndedReply { name, run } => self.on_ended_reply(from, &name, run),
            Message::Desire { desired } => self.learn_desired(desired),
            Message::Found { offers } => self.on_found(from, offers),
        }
    }

    /// Takes in what a session says by the word of another.
    fn on_relayed(&mut self, by: &SessionId, writer: &SessionId, message: Message) {
        // The answer goes back by the way that is known to be open.
        if let Some(peer) = self.members.entry(writer, self.now.at) {
            peer.via = Some((by.clone(), self.now.at));
        }
        if !matches!(message, Message::Leave) {
            return self.on_message(writer, message);
        }
        // A goodbye frees all that its writer runs: what is heard of itself outweighs it.
        if self.members.told_gone(self.now.at, writer, Gone::Left) {
            self.on_gone(writer, Gone::Left);
        }
        if self.members.is_gone(writer) {
            self.send(writer, Message::LeaveHeard);
        }
    }

    // ---- shared by the rules --------------------------------------------------------------

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

    /// Publishes my claim of a name as the task has it now.
    fn publish(&mut self, name: &Name) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.claim.version = task.claim.version.saturating_add(1);
        let claim = task.claim.clone();
        if claim.phase.is_held() {
            self.holding.insert(claim.number, &task.spec.kind);
        } else if self.holding.remove(claim.number) {
            if claim.phase.is_free() {
                self.recently_released.push_back(claim.number);
                if self.recently_released.len() > MAX_RELEASED {
                    self.recently_released.pop_front();
                }
            }
            // There may be room for one more.
            self.dirty.append(&mut self.passed_over);
        }
        self.view.merge(claim.clone());
        self.push(Action::Publish(claim));
        self.dirty.insert(name.clone());
    }

    /// Looks at some of the names that could wait.
    fn touch_some(&mut self) {
        for _ in 0..AT_LEISURE {
            let Some(name) = self.later.pop_first() else { return };
            self.dirty.insert(name);
        }
    }

    /// Looks at every name a session has claimed.
    fn touch_all_of(&mut self, session: &SessionId) {
        self.dirty.extend(self.view.names_of(session));
    }

    /// Rings at `at` for a name, or earlier if it already would: whoever waits rings anew whenever
    /// it is looked at too early.
    fn alarm(&mut self, name: &Name, at: Time) {
        match self.alarm_of.get(name) {
            Some(set) if *set <= at => {}
            set => {
                if let Some(set) = set {
                    self.alarms.remove(&(*set, name.clone()));
                }
                self.alarms.insert((at, name.clone()));
                self.alarm_of.insert(name.clone(), at);
            }
        }
    }

    fn alarm_in(&mut self, name: &Name, after: Duration) {
        self.alarm(name, self.now.at + after);
    }

    /// Who is there has changed. What runs or is kept here is not in a hurry, and there is much of it:
    /// names that nobody runs now come first.
    fn review_later(&mut self) {
        let now = self.now.at;
        self.review.get_or_insert((now + TICK, now + self.config.timing.convergence()));
    }

    fn review(&mut self, at: Time, latest: Time) {
        let now = self.now.at;
        if now < at {
            return;
        }
        let starting = self.tasks.values().any(|task| task.is_starting());
        self.review = (starting && now < latest).then(|| (now + TICK, latest));
        if self.review.is_none() {
            self.touch_kept();
            self.review_copies();
        }
    }

    fn ring(&mut self) {
        if let Some((at, latest)) = self.review {
            self.review(at, latest);
        }
        while let Some((at, name)) = self.alarms.first().cloned() {
            if at > self.now.at {
                break;
            }
            self.alarms.pop_first();
            self.alarm_of.remove(&name);
            self.dirty.insert(name);
        }
    }

    /// Looks at every name something was learned about, and sends what was gathered.
    fn finish(&mut self) {
        let mut rounds = 0;
        // Looking at a name can make it or another one dirty again; each rule makes progress, so a
        // few rounds are enough, and the bound keeps a mistake from becoming a livelock.
        while !self.dirty.is_empty() && rounds < 8 {
            rounds += 1;
            for name in std::mem::take(&mut self.dirty) {
                self.look(&name);
            }
        }
        if !self.dirty.is_empty() {
            let rest = std::mem::take(&mut self.dirty);
            for name in rest {
                self.alarm_in(&name, TICK);
            }
        }
        for (to, asks) in std::mem::take(&mut self.asks) {
            for chunk in asks.chunks(limits::LISTED) {
                self.send(&to, Message::Ask { asks: chunk.to_vec() });
            }
        }
        self.publish_header();
        self.drain_progress();
    }

    /// Everything that may follow from what is known of a name now.
    fn look(&mut self, name: &Name) {
        self.look_conflict(name);
        self.look_task(name);
        self.look_desired(name);
        self.look_free(name);
        self.look_takeover(name);
        self.look_end(name);
        self.look_copies(name);
        self.look_owed(name);
        self.look_cleanup(name);
        self.look_idle(name);
        self.look_following(name);
        self.show(name);
    }

    /// Goes on with what this node is doing about a name.
    fn look_task(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        match &task.doing {
            Doing::Settling(_) => self.look_settling(name),
            Doing::Finding(_) => self.look_finding(name),
            Doing::Fetching { .. } => self.look_fetching(name),
            Doing::Incoming { .. } => self.look_incoming(name),
            Doing::Ending { .. } => self.look_ending(name),
            Doing::Parting { .. } => self.look_parting(name),
            Doing::Running | Doing::Kept if self.drain.is_some() && task.hand.is_none() => {
                if self.finishes_here(task) {
                    self.look_replicas(name);
                    self.look_callers(name);
                }
                self.drain_one(name);
            }
            Doing::Running | Doing::Kept => {
                self.look_parked(name);
                self.look_replicas(name);
                self.look_callers(name);
                self.look_hand(name);
            }
            Doing::Stopping(_) | Doing::Sealing { .. } | Doing::Moving { .. } => {
                self.look_hand(name);
            }
            Doing::Over { .. } => {}
        }
    }

    /// Keeps what lookups answer from.
    fn show(&mut self, name: &Name) {
        let owner = self.view.holder(name);
        let show = owner.map(Shown::of);
        if self.shown.get(name) == show.as_ref() {
            return;
        }
        let owner = owner.cloned();
        match show {
            Some(show) => self.shown.insert(name.clone(), show),
            None => self.shown.remove(name),
        };
        self.push(Action::Owner { name: name.clone(), claim: owner });
    }

    /// The state, watermark and releases that every datagram carries (Rule 2).
    fn publish_header(&mut self) {
        let watermark = self.holding.first().unwrap_or(self.next_number).saturating_sub(1);
        self.recently_released.retain(|number| *number > watermark);
        let header =
            (self.state, watermark, self.recently_released.iter().copied().collect::<Vec<_>>());
        if self.header.as_ref() != Some(&header) {
            let (state, watermark, released) = header.clone();
            self.version += 1;
            let version = self.version;
            self.push(Action::Header { state, version, watermark, released });
            self.header = Some(header);
        }
        let running = u32::try_from(self.holding.len()).unwrap_or(u32::MAX);
        let load = Load { running, full: running >= self.config.record.max_running };
        if load != self.load {
            self.load = load;
            self.push(Action::PublishLoad(load));
        }
    }

    fn set_state(&mut self, state: NodeState) {
        if self.state == state {
            return;
        }
        self.state = state;
        self.tell(Notice::State(state));
        self.publish_header();
        let version = self.version;
        let peers: Vec<SessionId> =
            self.members.iter().filter(|(_, p)| p.linked).map(|(s, _)| s.clone()).collect();
        for peer in peers {
            self.push(Action::Send { to: peer, message: Message::State { state, version } });
        }
        self.later.extend(self.view.names().cloned());
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
            && !self.load.full
            && !self.is_full_of(&spec.kind)
            && self
                .config
                .record
                .kinds
                .get(&spec.kind)
                .is_some_and(|versions| state_version.is_none_or(|v| versions.reads(v)))
    }

    /// Whether this node holds as many tasks of a kind as it may.
    pub(super) fn is_full_of(&self, kind: &Kind) -> bool {
        self.config.kind_limits.get(kind).is_some_and(|limit| self.holding.of(kind) >= *limit)
    }

    /// Ends a claim of mine that never ran: others act on its record alone.
    fn release_claim(&mut self, name: &Name) {
        if let Some(task) = self.tasks.get_mut(name) {
            task.claim.phase = Phase::Released;
            task.doing = Doing::Over { dominated: None };
            self.publish(name);
        }
    }
}
