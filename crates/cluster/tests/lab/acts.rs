//! What happens: nodes come and go, plans are carried out, resources do what they are told.

use super::{LIVE, Lab, Later, STEP};
use backstay_cluster::{
    Action, Doing, Ending, Failure, FencingClass, Goal, GroupName, GroupView, Lost, MoveKind, NodeName,
    NodeState, NodeView, OfflineAction, Plan, Reason, Report, ResourceState, Runner, RunnerEffect, Step,
    Then, Time, View, Wanted, check, plan,
};
use backstay_model::Cores;
use std::sync::Arc;
use std::time::Duration;

impl Lab {
    pub fn view(&self) -> View {
        let hours = self.now.0 / 3_600_000_000;
        let local_hour = u8::try_from((self.hour + hours) % 24).unwrap_or(0);
        let mut view = View { revision: self.revision, now: self.now, local_hour, ..View::default() };
        for (name, node) in &self.nodes {
            let shown = NodeView {
                state: node.state,
                drain: node.drain,
                lost: node.lost.clone(),
                resume: node.resume,
                memory_mib: node.memory_mib,
                cores: Cores::whole(node.cores),
                processors: node.processors,
                storages: node.storages.clone(),
                switches: node.switches.clone(),
            };
            view.nodes.insert(name.clone(), shown);
        }
        for (name, group) in &self.groups {
            let orphaned =
                group.owner.as_ref().and_then(|o| self.nodes.get(o)).is_some_and(|n| n.life > group.life);
            let doing = group.hand.as_ref().map(|(to, _, uid)| Doing { uid: *uid, to: Some(to.clone()) });
            let shown = GroupView {
                owner: group.owner.clone(),
                epoch: group.epoch,
                orphaned,
                wanted: group.wanted,
                resources: group
                    .runner
                    .as_ref()
                    .map_or_else(|| group.states.clone(), |r| r.states().to_vec()),
                verdict: group.runner.as_ref().and_then(|r| r.verdict().cloned()),
                failures: group.failures.clone(),
                doing,
                request: group.request.clone(),
                drained_from: group.drained_from.clone(),
                refused_by: group.refused_by.clone(),
                preempted: group.preempted,
            };
            view.groups.insert(name.clone(), shown);
        }
        view
    }

    /// Plans and carries out until nothing is left to do.
    pub fn settle(&mut self) {
        self.standings();
        if !self.running {
            return;
        }
        for _ in 0..200 {
            self.revision += 1;
            let view = self.view();
            let plan = plan(&self.policy, &view);
            for violation in check(&self.policy, &view, &plan) {
                self.say(&format!("CHECK: {violation}"));
            }
            self.tell_holds(&plan);
            for step in &plan.steps {
                self.say(&format!("plan: {step}"));
                self.carry_out(step);
            }
            self.groups.values_mut().for_each(|g| g.request = None);
            self.tell_states();
            if plan.steps.is_empty() {
                return;
            }
        }
        self.say("the plans do not end");
    }

    fn tell_holds(&mut self, plan: &Plan) {
        let now: std::collections::BTreeSet<String> = plan.holds.iter().map(ToString::to_string).collect();
        let new: Vec<String> = now.difference(&self.holds).cloned().collect();
        new.iter().for_each(|hold| self.say(&format!("hold: {hold}")));
        self.holds = now;
    }

    fn tell_states(&mut self) {
        let view = self.view();
        let names: Vec<GroupName> = self.groups.keys().cloned().collect();
        for name in names {
            let group = &self.policy.groups[&name];
            let owner = self.groups[&name].owner.as_ref().map_or("-".into(), ToString::to_string);
            let shown = format!("{name} is {} on {owner}", view.shown_state(&self.policy, group));
            if self.groups[&name].shown != shown {
                self.say(&shown);
                if let Some(group) = self.groups.get_mut(&name) {
                    group.shown = shown;
                }
            }
        }
    }

    fn carry_out(&mut self, step: &Step) {
        match &step.action {
            Action::Place { group, to, then, .. } => self.give(group, to, *then == Then::Online),
            Action::Online { group, .. } => {
                self.change(group, |g| g.preempted = false);
                self.with_runner(group, |r, now| r.set_goal(Goal::Online, now));
            }
            Action::MakeRoom { group, .. } => {
                self.change(group, |g| g.preempted = true);
                self.with_runner(group, |r, now| r.set_goal(Goal::Offline(Ending::ByAction), now));
            }
            Action::Move { group, to, kind, .. } => {
                let drained = match &step.reason {
                    Reason::Drain(node) => Some(Some(node.clone())),
                    Reason::Resume(_) => Some(None),
                    _ => None,
                };
                self.change(group, |g| {
                    g.hand = Some((to.clone(), Some(*kind), step.uid));
                    g.drained_from = drained.unwrap_or(g.drained_from.take());
                });
                self.begin_move(group, *kind);
            }
            Action::FailOver { group, from, to } => {
                let failure = Failure { at: self.now, node: from.clone(), moved: true };
                self.change(group, |g| {
                    g.hand = Some((to.clone(), None, step.uid));
                    g.failures.push(failure);
                });
                self.with_runner(group, |r, now| r.set_goal(Goal::Offline(Ending::Terminate), now));
            }
            Action::Drained { node, status } => {
                if let Some(node) = self.nodes.get_mut(node) {
                    node.drain = *status;
                }
            }
            Action::Resumed { node } => {
                if let Some(state) = self.nodes.get_mut(node) {
                    state.resume = None;
                }
                let from = node.clone();
                self.groups
                    .values_mut()
                    .filter(|g| g.drained_from.as_ref() == Some(&from))
                    .for_each(|g| g.drained_from = None);
            }
        }
    }

    fn change(&mut self, group: &GroupName, change: impl FnOnce(&mut super::LabGroup)) {
        if let Some(group) = self.groups.get_mut(group) {
            change(group);
        }
    }

    fn begin_move(&mut self, group: &GroupName, kind: MoveKind) {
        let down = self.groups[group].runner.as_ref().is_none_or(Runner::is_down);
        match kind {
            _ if down => self.moved(group, false),
            MoveKind::Live => {
                let epoch = self.groups[group].epoch;
                self.later.push((self.now + LIVE, Later::Arrived { group: group.clone(), epoch }));
            }
            MoveKind::Quick => self.end_by(group, Ending::Once(OfflineAction::Save)),
            MoveKind::Shutdown => self.end_by(group, Ending::Once(OfflineAction::Shutdown)),
            MoveKind::Offline => self.end_by(group, Ending::ByAction),
        }
    }

    fn end_by(&mut self, group: &GroupName, ending: Ending) {
        self.with_runner(group, |r, now| r.set_goal(Goal::Offline(ending), now));
    }

    /// A new owner, with the next epoch.
    fn give(&mut self, name: &GroupName, to: &NodeName, online: bool) {
        let life = self.nodes[to].life;
        let group = self.policy.groups[name].clone();
        let runner = match Runner::new(Arc::new(group)) {
            Ok(runner) => runner,
            Err(error) => return self.say(&format!("{name}: {error}")),
        };
        self.change(name, |g| {
            (g.owner, g.life, g.epoch) = (Some(to.clone()), life, g.epoch + 1);
            (g.runner, g.hand, g.preempted) = (Some(runner), None, false);
            g.refused_by.clear();
            g.states.clear();
        });
        if online {
            self.with_runner(name, |r, now| r.set_goal(Goal::Online, now));
        }
    }

    /// The move has got so far that the owner changes.
    fn moved(&mut self, name: &GroupName, live: bool) {
        let Some((to, _, _)) = self.groups[name].hand.clone() else { return };
        let (preempted, wanted) = (self.groups[name].preempted, self.groups[name].wanted);
        let states = self.groups[name].runner.as_ref().map(|r| r.states().to_vec()).unwrap_or_default();
        self.give(name, &to, false);
        self.change(name, |g| g.preempted = preempted && live);
        if live {
            let now = self.now;
            self.change(name, |g| g.runner.iter_mut().for_each(|r| r.adopt(&states, now)));
        } else if wanted == Wanted::Online && self.policy.groups[name].priority.0 > 0 {
            self.with_runner(name, |r, now| r.set_goal(Goal::Online, now));
        }
    }

    pub fn event(&mut self, event: Later) {
        match event {
            Later::Resource { group, epoch, resource, up } => {
                if self.groups[&group].epoch == epoch && self.groups[&group].runner.is_some() {
                    self.report(&group, resource, if up { Report::Online } else { Report::Offline });
                }
            }
            Later::Arrived { group, epoch } => {
                if self.groups[&group].epoch != epoch {
                    return;
                }
                let Some((to, ..)) = self.groups[&group].hand.clone() else { return };
                if self.failing.contains(&(group.clone(), to.clone()))
                    || !self.nodes[&to].state.takes_groups()
                {
                    self.say(&format!("{group}: the live move to {to} failed, it runs on where it is"));
                    self.change(&group, |g| {
                        g.hand = None;
                        g.refused_by.insert(to);
                    });
                } else {
                    self.moved(&group, true);
                }
            }
            Later::Silent(node, life) => {
                let state = &self.nodes[&node];
                if state.life == life && state.silent.is_some() && state.state == NodeState::Isolated {
                    self.declare_lost(&node);
                }
            }
        }
    }

    pub fn report(&mut self, group: &GroupName, resource: usize, report: Report) {
        self.with_runner(group, |r, now| r.report(resource, report, now));
    }

    pub fn with_runner(
        &mut self,
        name: &GroupName,
        act: impl FnOnce(&mut Runner, Time) -> Vec<RunnerEffect>,
    ) {
        let now = self.now;
        let Some(runner) = self.groups.get_mut(name).and_then(|g| g.runner.as_mut()) else { return };
        let effects = act(runner, now);
        for effect in effects {
            self.effect(name, effect);
        }
        let group = &self.groups[name];
        let live = matches!(group.hand, Some((_, Some(MoveKind::Live), _)));
        if group.hand.is_some() && !live && group.runner.as_ref().is_some_and(Runner::is_down) {
            self.moved(name, false);
        }
        // A group that refused to go offline is not on the move.
        let stays = group_stays(&self.groups[name]);
        if stays && !live {
            self.change(name, |g| g.hand = None);
        }
    }

    fn effect(&mut self, name: &GroupName, effect: RunnerEffect) {
        let resources: Vec<String> =
            self.policy.groups[name].resources.iter().map(|r| r.name.to_string()).collect();
        let epoch = self.groups[name].epoch;
        let done = |lab: &mut Self, resource: usize, up: bool| {
            lab.later.push((lab.now + STEP, Later::Resource { group: name.clone(), epoch, resource, up }));
        };
        match effect {
            RunnerEffect::Start(i) => {
                self.say(&format!("{name}/{}: start", resources[i]));
                if !self.hanging.contains(&(name.clone(), i)) {
                    done(self, i, true);
                }
            }
            RunnerEffect::Stop(i, action) => {
                let how = action.map_or("stop".into(), |a| a.to_string());
                self.say(&format!("{name}/{}: {how}", resources[i]));
                let asks = matches!(action, Some(OfflineAction::Shutdown | OfflineAction::ShutdownForced));
                if asks && self.stubborn.contains(name) {
                    self.report(name, i, Report::ShutdownRefused);
                } else if !self.hanging.contains(&(name.clone(), i)) {
                    done(self, i, false);
                }
            }
            RunnerEffect::Terminate(i) => {
                self.say(&format!("{name}/{}: terminate", resources[i]));
                done(self, i, false);
            }
            RunnerEffect::LooksAlive(i) if !self.deaf.contains(name) => {
                self.report(name, i, Report::LooksAlive(true))
            }
            RunnerEffect::IsAlive(i) if !self.deaf.contains(name) => {
                self.report(name, i, Report::IsAlive(true))
            }
            RunnerEffect::LooksAlive(i) => self.say(&format!("{name}/{}: looks alive?", resources[i])),
            RunnerEffect::IsAlive(i) => self.say(&format!("{name}/{}: is alive?", resources[i])),
            RunnerEffect::Note(text) => self.say(&format!("{name}: {text}")),
        }
    }

    pub fn user_online(&mut self, group: &GroupName) {
        self.change(group, |g| g.preempted = false);
        self.with_runner(group, |r, now| r.set_goal(Goal::Online, now));
    }

    pub fn user_offline(&mut self, group: &GroupName, once: Option<OfflineAction>) {
        self.end_by(group, once.map_or(Ending::ByAction, Ending::Once));
    }

    /// A node crashes, is cut off, leaves, comes back.
    pub fn node_event(&mut self, what: &str, node: &NodeName) -> Result<(), String> {
        let now = self.now;
        let wait = self.policy.timing.wait;
        let state = self.nodes.get_mut(node).ok_or("no such node")?;
        match what {
            "crash" | "isolate" => {
                (state.state, state.silent) = (NodeState::Isolated, Some(now));
                state.lost = Some(Lost { since: now, ..Lost::default() });
                let life = state.life;
                self.later.push((now + wait, Later::Silent(node.clone(), life)));
                self.later
                    .push((now + self.policy.timing.wait_watchdog(), Later::Silent(node.clone(), life)));
                self.end_runners(node, what == "crash");
            }
            "leave" => {
                state.state = NodeState::Down;
                state.lost = Some(Lost { since: now, clean: true, ..Lost::default() });
                state.silent = None;
                self.end_runners(node, true);
            }
            "confirm" => {
                let lost = state.lost.as_mut().ok_or("it is not lost")?;
                lost.confirmed = Some("an administrator".into());
                state.state = NodeState::Down;
            }
            "clear" => {
                state.attendance.clear();
                state.state = NodeState::Up;
            }
            _ => {
                // Back within the wait it is the same life, and its groups go on.
                let new_life = state.state == NodeState::Down;
                if new_life {
                    state.life += 1;
                }
                let quarantined = state.attendance.quarantined(now).is_some();
                (state.silent, state.lost) = (None, None);
                state.state = match (quarantined, state.paused) {
                    (true, _) => NodeState::Quarantined,
                    (_, true) => NodeState::Paused,
                    _ => NodeState::Up,
                };
            }
        }
        Ok(())
    }

    /// What ran on a node that is gone has ended; its last states are what is known.
    fn end_runners(&mut self, node: &NodeName, gone: bool) {
        for group in self.groups.values_mut().filter(|g| g.owner.as_ref() == Some(node) && gone) {
            if let Some(runner) = group.runner.take() {
                group.states = runner.states().to_vec();
            }
            group.hand = None;
        }
    }

    fn declare_lost(&mut self, node: &NodeName) {
        let now = self.now;
        let missed = self.policy.timing.wait.as_millis() / self.policy.timing.interval.as_millis();
        let others = self.nodes.values().filter(|n| n.attendance.quarantined(now).is_some()).count();
        self.end_runners(node, true);
        let policy = &self.policy;
        if let Some(state) = self.nodes.get_mut(node) {
            state.state = NodeState::Down;
            state.attendance.left(policy, others, now);
            if let Some(lost) = &mut state.lost {
                lost.safe_for = Some(FencingClass::S);
                lost.missed = u32::try_from(missed).unwrap_or(0);
            }
        }
        self.say(&format!("{node} is fenced"));
    }

    /// What follows from the time that has passed.
    fn standings(&mut self) {
        let now = self.now;
        let watchdog: Duration = self.policy.timing.wait_watchdog();
        for node in self.nodes.values_mut() {
            if let Some(lost) =
                node.lost.as_mut().filter(|l| l.safe_for.is_some() && now.since(l.since) >= watchdog)
            {
                lost.safe_for = Some(FencingClass::W);
            }
            if node.state == NodeState::Quarantined && node.attendance.quarantined(now).is_none() {
                node.state = if node.paused { NodeState::Paused } else { NodeState::Up };
            }
        }
    }
}

/// It was to go offline, and its runner wants it online again.
fn group_stays(group: &super::LabGroup) -> bool {
    let online = group
        .runner
        .as_ref()
        .is_some_and(|r| r.goal() == Goal::Online && r.states().iter().all(|s| *s == ResourceState::Online));
    group.hand.is_some() && online
}
