//! What happens to a world: processes that end and start, cuts and heals.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::seq::IteratorRandom;

use super::World;
use crate::fabric::nanos;
use crate::host::{Order, process};
use crate::planted::Planted;
use crate::scenario::{ANY, Fault, FaultKind, Weather};

/// Something to be done at a time.
pub(super) enum Act {
    Fault(Fault),
    /// The end of a fault, with the nodes it happened to.
    Restart(String),
    Heal(Vec<(String, String)>),
    Clear,
}

impl World<'_> {
    pub(super) fn act(&mut self, act: Act) {
        match act {
            Act::Fault(fault) => self.fault(fault),
            Act::Restart(host) => self.start(&host),
            Act::Heal(pairs) => self.heal(&pairs),
            Act::Clear => self.weather(self.scenario.network.clone()),
        }
    }

    fn fault(&mut self, fault: Fault) {
        let at = self.sim.elapsed().as_secs_f64();
        if let Some(every) = fault.every {
            let until = self.scenario.unsafe_phase().as_secs_f64();
            if at + every < until {
                self.schedule(at + every, Act::Fault(fault.clone()), 0.0);
            }
        }
        let mut drawn = BTreeSet::new();
        let host = fault.node.as_deref().and_then(|name| self.choose(name, &mut drawn));
        match (fault.kind, host) {
            (FaultKind::Crash, Some(host)) => {
                tracing::info!(target: "simulations", host, "crash");
                self.kill(&host);
                self.undo(fault.lasts, Act::Restart(host));
            }
            (FaultKind::PowerOff, Some(host)) => {
                tracing::info!(target: "simulations", host, "power off");
                if let Some(address) = self.addresses.get(&host) {
                    self.fabric.power_off(*address);
                }
                self.kill(&host);
                self.undo(fault.lasts, Act::Restart(host));
            }
            (FaultKind::Restart | FaultKind::Start, Some(host)) => self.start(&host),
            (FaultKind::Drain, Some(host)) => {
                tracing::info!(target: "simulations", host, "drain");
                self.site.order(&host, Order::Drain);
                self.undo(fault.lasts, Act::Restart(host));
            }
            (FaultKind::Cut | FaultKind::CutOneWay, _) => {
                let pairs = self.cut(&fault, &mut drawn);
                if pairs.is_empty() {
                    return;
                }
                self.undo(fault.lasts, Act::Heal(pairs));
            }
            (FaultKind::Heal, _) => {
                self.heal_all();
            }
            (FaultKind::Weather, _) => {
                self.weather(self.scenario.network.changed(&fault.network));
                self.undo(fault.lasts, Act::Clear);
            }
            // Nobody is left that it could happen to.
            _ => return,
        }
        if !(fault.kind == FaultKind::Crash && self.scenario.plants(Planted::SecretCrash)) {
            *self.faults.entry(fault.kind).or_default() += 1;
        }
    }

    fn undo(&mut self, after: Option<f64>, act: Act) {
        if let Some(after) = after {
            self.schedule(self.sim.elapsed().as_secs_f64() + after, act, 0.0);
        }
    }

    pub(super) fn running(&self) -> Vec<String> {
        self.hosts.iter().filter(|(_, up)| **up).map(|(host, _)| host.clone()).collect()
    }

    /// The node of that name, or one that has not been drawn yet.
    fn choose(&mut self, name: &str, drawn: &mut BTreeSet<String>) -> Option<String> {
        let chosen = if name == ANY {
            let hosts = self.running();
            hosts.into_iter().filter(|host| !drawn.contains(host)).choose(&mut self.rng)?
        } else {
            name.to_owned()
        };
        drawn.insert(chosen.clone());
        Some(chosen)
    }

    fn cut(&mut self, fault: &Fault, drawn: &mut BTreeSet<String>) -> Vec<(String, String)> {
        let mut side = |world: &mut Self, names: &[String]| -> Vec<String> {
            names.iter().filter_map(|name| world.choose(name, drawn)).collect()
        };
        let a = side(self, &fault.a);
        let mut b = side(self, &fault.b);
        if fault.b.is_empty() {
            b = self.addresses.keys().filter(|host| !a.contains(host)).cloned().collect();
        }
        tracing::info!(target: "simulations", ?a, ?b, kind = fault.kind.label(), "cut");
        let mut pairs = Vec::new();
        for (one, other) in a.iter().flat_map(|one| b.iter().map(move |other| (one, other))) {
            pairs.push((one.clone(), other.clone()));
            if fault.kind == FaultKind::Cut {
                pairs.push((other.clone(), one.clone()));
            }
        }
        for (from, to) in &pairs {
            if let (Some(from), Some(to)) = (self.addresses.get(from), self.addresses.get(to)) {
                self.fabric.cut(*from, *to);
            }
        }
        for pair in &pairs {
            *self.cuts.entry(pair.clone()).or_default() += 1;
        }
        self.note_reach();
        if let Some(lasts) = fault.lasts.filter(|_| self.scenario.plants(Planted::LateHeal)) {
            let told = self.now() + nanos(Duration::from_secs_f64(lasts - 3.0));
            self.reach.note(told, &self.running(), BTreeSet::new());
        }
        pairs
    }

    fn heal(&mut self, pairs: &[(String, String)]) {
        if self.scenario.plants(Planted::NoHeal) {
            return;
        }
        for pair in pairs {
            // Another cut may still be in its way.
            let Some(cuts) = self.cuts.get_mut(pair) else { continue };
            *cuts -= 1;
            if *cuts > 0 {
                continue;
            }
            self.cuts.remove(pair);
            if let (Some(from), Some(to)) =
                (self.addresses.get(&pair.0), self.addresses.get(&pair.1))
            {
                self.fabric.heal(*from, *to);
            }
        }
        self.note_reach();
        if self.cuts.is_empty() && !pairs.is_empty() {
            tracing::info!(target: "simulations", "healed");
        }
    }

    fn heal_all(&mut self) {
        self.cuts.values_mut().for_each(|cuts| *cuts = 1);
        let pairs: Vec<(String, String)> = self.cuts.keys().cloned().collect();
        self.heal(&pairs);
    }

    fn weather(&mut self, weather: Weather) {
        tracing::info!(target: "simulations", ?weather, "weather");
        self.is_fair = weather.is_fair(&self.scenario.timing.timing());
        self.fabric.set_weather(weather);
        self.note_reach();
    }

    /// Tells the verdict who can reach whom from now on.
    fn note_reach(&mut self) {
        let secret = self.scenario.plants(Planted::SecretCut);
        let up = self.running();
        let cuts = match (secret, self.is_fair) {
            (true, _) => BTreeSet::new(),
            (false, true) => self.cuts.keys().cloned().collect(),
            (false, false) => {
                up.iter().flat_map(|a| up.iter().map(|b| (a.clone(), b.clone()))).collect()
            }
        };
        self.reach.note(self.now(), &up, cuts);
    }

    /// Starts a process, if none runs there.
    pub(super) fn start(&mut self, host: &str) {
        let Some(address) = self.addresses.get(host).copied() else { return };
        if self.hosts.get(host) == Some(&true) {
            return;
        }
        tracing::info!(target: "simulations", host, "start");
        self.fabric.power_on(address);
        let known = self.hosts.insert(host.to_owned(), true);
        self.note_reach();
        match known {
            Some(_) => self.sim.bounce(host),
            None => {
                let (site, name) = (self.site.clone(), host.to_owned());
                self.sim.host(host, move || {
                    let process = process(site.clone(), name.clone(), address);
                    async move {
                        process.await;
                        Ok(())
                    }
                });
            }
        }
    }

    /// Ends a process at once.
    pub(super) fn kill(&mut self, host: &str) {
        let Some(up) = self.hosts.get_mut(host).filter(|up| **up) else { return };
        *up = false;
        self.note_reach();
        // First what others see of it, while it is known when it happened.
        if let Some(life) = self.site.life(host) {
            self.observer.died(&life);
            let mut told = self.site.told();
            told.known.remove(&life);
            told.ready.remove(&life);
        }
        if let Some(address) = self.addresses.get(host) {
            self.fabric.exit(*address);
        }
        self.sim.crash(host);
    }

    /// Everything is as it should be again.
    pub(super) fn mend(&mut self) {
        self.fabric.set_now(self.now());
        self.agenda.clear();
        self.weather(self.scenario.network.clone());
        self.heal_all();
        // Nodes that were replaced stay away.
        for number in 1..=self.scenario.nodes {
            let host = format!("n{number}");
            let replaced = self.scenario.faults.iter().any(|fault| {
                fault.kind == FaultKind::Drain
                    && fault.lasts.is_none()
                    && fault.node.as_deref() == Some(&host)
            });
            if !replaced {
                self.start(&host);
            }
        }
    }
}
