//! The commands.

use super::words::{mib, ms, name, names, number, small, span, split};
use super::{Lab, LabNode};
use backstay_cluster::{
    Arming, Attendance, Dependencies, DrainStatus, EmbeddedFailureAction, Failback, FailbackWindow,
    FencingClass, Group, GroupName, GuestSign, MoveKind, MoveRequest, NodeName, NodePolicy, NodeState,
    OfflineAction, Priority, Report, Resource, ResourceKind, ResourceName, RestartAction, ResumeFailback,
    StorageName, Strategy, VmSettings, Wanted,
};
use backstay_model::Cores;

type Done = Result<(), String>;

impl Lab {
    pub fn command(&mut self, line: &str) -> Done {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (plain, pairs) = split(&words[1..]);
        match words[0] {
            "nodes" => plain.iter().try_for_each(|n| self.add_node(n, &pairs)),
            "node" => self.add_node(plain[0], &pairs),
            "storage" => self.storage(plain[0], &pairs),
            "set" => pairs.iter().try_for_each(|(k, v)| self.setting(k, v)),
            "vm" => self.vm(plain[0], &pairs),
            "group" => self.group(plain[0], &pairs),
            "resource" => self.resource(plain[0], plain[1], &pairs),
            "prop" => self.prop(plain[0], plain[1], &pairs),
            "run" => {
                self.running = true;
                Ok(())
            }
            "quiet" => {
                self.quiet = plain.first() != Some(&"off");
                Ok(())
            }
            "wait" => {
                self.wait(span(plain[0])?);
                Ok(())
            }
            "hour" => {
                // Now is the beginning of that hour.
                let passed = self.now.0 / 3_600_000_000;
                self.hour = (number(plain[0])? + 24 * 365 - passed % 24) % 24;
                Ok(())
            }
            "fail" | "end" | "critical" | "guest" | "looks-alive" | "is-alive" | "hang"
            | "refuse-shutdown" | "deaf" => self.resource_event(words[0], &plain, &pairs),
            "crash" | "isolate" | "leave" | "up" | "confirm" | "clear" => {
                self.node_event(words[0], &name(plain[0])?)
            }
            "drain" | "pause" | "resume" => self.admin(words[0], &name(plain[0])?, &pairs),
            "online" | "offline" | "move" | "move-fails" => self.group_order(words[0], &plain, &pairs),
            "show" | "rate" | "capacity" | "strategies" | "order" | "state" => self.show(words[0], &plain),
            "quorum" | "witness" | "lose" | "lose-clean" | "join" | "force" | "dynamic" | "weight"
            | "low" => self.vote(words[0], &plain),
            "timing" | "agent" | "taker" => self.heart(words[0], &plain, &pairs),
            other => Err(format!("no such command: {other}")),
        }
    }

    fn add_node(&mut self, text: &str, pairs: &[(&str, &str)]) -> Done {
        let node: NodeName = name(text)?;
        let shared: Vec<StorageName> = self.policy.storages.keys().cloned().collect();
        let fresh = LabNode {
            state: NodeState::Up,
            drain: DrainStatus::NotInitiated,
            lost: None,
            resume: None,
            memory_mib: 16_384,
            cores: 8,
            processors: 8,
            storages: shared.into_iter().collect(),
            switches: Default::default(),
            attendance: Attendance::default(),
            paused: false,
            life: 1,
            silent: None,
        };
        let entry = self.nodes.entry(node.clone()).or_insert(fresh);
        let policy: &mut NodePolicy = self.policy.nodes.entry(node).or_default();
        for (key, value) in pairs {
            match *key {
                "memory" => entry.memory_mib = mib(value)?,
                "cores" => entry.cores = small(value)?,
                "cpus" => entry.processors = small(value)?,
                "storage" => entry.storages = names(value)?,
                "switch" => entry.switches = names(value)?,
                "reserve" => policy.reserve = *value == "yes",
                _ => return Err(format!("a node has no {key}")),
            }
        }
        Ok(())
    }

    fn storage(&mut self, text: &str, pairs: &[(&str, &str)]) -> Done {
        let storage: StorageName = name(text)?;
        let mut only: Option<Vec<NodeName>> = None;
        for (key, value) in pairs {
            match *key {
                "class" => {
                    let class = FencingClass::ALL.into_iter().find(|c| c.to_string() == *value);
                    self.policy.storages.insert(storage.clone(), class.ok_or("no such class")?);
                }
                "only" => only = Some(names(value)?),
                _ => return Err(format!("a storage has no {key}")),
            }
        }
        for (node, state) in &mut self.nodes {
            if only.as_ref().is_none_or(|only| only.contains(node)) {
                state.storages.insert(storage.clone());
            }
        }
        Ok(())
    }

    fn setting(&mut self, key: &str, value: &str) -> Done {
        let policy = &mut self.policy;
        match key {
            "enforced-anti-affinity" => policy.enforced_anti_affinity = value == "yes",
            "move-type-threshold" => policy.move_type_threshold = Priority(small(value)?),
            "moves-at-once" => policy.moves_at_once = small(value)?,
            "resiliency" => {
                policy.resiliency_period_s = u32::try_from(ms(value)? / 1000).map_err(|e| e.to_string())?
            }
            "strategy" => {
                policy.strategy = if value == "reserve" { Strategy::Reserve } else { Strategy::Spread }
            }
            "armed" => policy.arming = if value == "yes" { Arming::Armed } else { Arming::Disarmed },
            "quarantine-threshold" => policy.quarantine.threshold = small(value)?,
            "quarantine-duration" => policy.quarantine.duration_s = ms(value)? / 1000,
            "quarantine-percent" => policy.quarantine.percent_max = small(value)?,
            _ => return Err(format!("the cluster has no {key}")),
        }
        Ok(())
    }

    fn vm(&mut self, text: &str, pairs: &[(&str, &str)]) -> Done {
        let group = Group::virtual_machine(text).map_err(|e| e.to_string())?;
        self.policy.groups.insert(group.name.clone(), group);
        self.group(text, pairs)
    }

    fn group(&mut self, text: &str, pairs: &[(&str, &str)]) -> Done {
        let group_name: GroupName = name(text)?;
        self.groups.entry(group_name.clone()).or_default();
        let group = self.policy.groups.entry(group_name.clone()).or_insert_with(|| Group::new(group_name));
        for (key, value) in pairs {
            match *key {
                "priority" => group.priority = Priority(small(value)?),
                "prefer" => group.preferred = names(value)?,
                "failback" => {
                    group.failback = if *value == "allow" { Failback::Allow } else { Failback::Prevent }
                }
                "window" => {
                    let (start, end) = value.split_once('-').ok_or("a window is START-END")?;
                    let hours = (start.parse().map_err(|_| "no hour")?, end.parse().map_err(|_| "no hour")?);
                    group.failback_window =
                        Some(FailbackWindow::new(hours.0, hours.1).map_err(|e| e.to_string())?);
                }
                "anti" => group.anti_affinity = value.split(',').map(ToOwned::to_owned).collect(),
                "threshold" => group.failover_threshold = Some(small(value)?),
                "period" => group.failover_period_h = small(value)?,
                "resiliency" => {
                    group.resiliency_period_s = u32::try_from(ms(value)? / 1000).ok();
                }
                _ => {
                    let Some(vm) = group.resources.last_mut() else {
                        return Err(format!("a group has no {key}"));
                    };
                    need(vm, key, value)?;
                }
            }
        }
        // A changed group is what the runner has from its next start on.
        Ok(())
    }

    fn resource(&mut self, group: &str, text: &str, pairs: &[(&str, &str)]) -> Done {
        let group = self.policy.groups.get_mut(group).ok_or("no such group")?;
        let mut resource = Resource::new(name(text)?, ResourceKind::Command);
        for (key, value) in pairs {
            match *key {
                "kind" => {
                    resource.kind = match *value {
                        "vm" => ResourceKind::VirtualMachine(VmSettings::default()),
                        "config" => ResourceKind::VmConfiguration,
                        "disk" => ResourceKind::ClusterDisk,
                        "folder" => ResourceKind::SharedFolder,
                        _ => ResourceKind::Command,
                    }
                }
                "depends" => {
                    let parts = value.split('&').map(|part| part.split('|').map(name).collect());
                    resource.depends_on = Dependencies(parts.collect::<Result<_, String>>()?);
                }
                _ => need(&mut resource, key, value)?,
            }
        }
        group.resources.push(resource);
        Ok(())
    }

    fn prop(&mut self, group: &str, resource: &str, pairs: &[(&str, &str)]) -> Done {
        let group = self.policy.groups.get_mut(group).ok_or("no such group")?;
        let resource: ResourceName = name(resource)?;
        let i = group.position(&resource).ok_or("no such resource")?;
        pairs.iter().try_for_each(|(key, value)| property(&mut group.resources[i], key, value))
    }

    fn resource_event(&mut self, what: &str, plain: &[&str], pairs: &[(&str, &str)]) -> Done {
        let group: GroupName = name(plain[0])?;
        let resource: ResourceName = name(plain.get(1).copied().unwrap_or("vm"))?;
        let i =
            self.policy.groups.get(&group).and_then(|g| g.position(&resource)).ok_or("no such resource")?;
        let no = plain.last() == Some(&"no");
        match what {
            "hang" if no => drop(self.hanging.remove(&(group, i))),
            "hang" => drop(self.hanging.insert((group, i))),
            "refuse-shutdown" => drop(self.stubborn.insert(group)),
            "deaf" => drop(self.deaf.insert(group)),
            "fail" | "end" => {
                let get = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
                let times = get("times").map_or(Ok(1), number)?;
                let every = get("every").map_or(Ok(std::time::Duration::from_secs(10)), span)?;
                for n in 0..times {
                    if n > 0 {
                        self.wait(every);
                    }
                    let report =
                        if what == "end" { Report::Offline } else { Report::Failed("it was broken".into()) };
                    self.report(&group, i, report);
                    self.settle();
                }
            }
            "critical" => self.report(&group, i, Report::ApplicationCritical),
            "looks-alive" => self.report(&group, i, Report::LooksAlive(!no)),
            "is-alive" => self.report(&group, i, Report::IsAlive(!no)),
            _ => {
                let sign = match plain.last().copied() {
                    Some("heartbeat") => GuestSign::Heartbeat,
                    Some("shutting-down") => GuestSign::ShuttingDown,
                    Some("reset") => GuestSign::Reset,
                    Some("stopped") => GuestSign::Stopped,
                    Some("resumed") => GuestSign::Resumed,
                    other => return Err(format!("no such sign: {other:?}")),
                };
                self.report(&group, i, Report::Guest(sign));
            }
        }
        Ok(())
    }

    fn admin(&mut self, what: &str, node: &NodeName, pairs: &[(&str, &str)]) -> Done {
        let state = self.nodes.get_mut(node).ok_or("no such node")?;
        match what {
            "resume" => {
                (state.paused, state.drain) = (false, DrainStatus::NotInitiated);
                state.resume = Some(match pairs.first().map(|(_, v)| *v) {
                    Some("immediate") => ResumeFailback::Immediate,
                    Some("policy") => ResumeFailback::Policy,
                    _ => ResumeFailback::No,
                });
            }
            "drain" => (state.paused, state.drain) = (true, DrainStatus::InProgress),
            _ => state.paused = true,
        }
        if state.state == NodeState::Up || state.state == NodeState::Paused {
            state.state = if state.paused { NodeState::Paused } else { NodeState::Up };
        }
        Ok(())
    }

    fn group_order(&mut self, what: &str, plain: &[&str], pairs: &[(&str, &str)]) -> Done {
        let group: GroupName = name(plain[0])?;
        let state = self.groups.get_mut(&group).ok_or("no such group")?;
        match what {
            "online" => {
                state.wanted = Wanted::Online;
                self.user_online(&group);
            }
            "offline" => {
                state.wanted = Wanted::Offline;
                let once = match pairs.first().map(|(_, v)| *v) {
                    Some(action) => Some(offline_action(action)?),
                    None => None,
                };
                self.user_offline(&group, once);
            }
            "move-fails" => {
                let node = name(plain[1])?;
                self.failing.insert((group, node));
            }
            _ => {
                let mut request = MoveRequest { kind: MoveKind::Live, to: None };
                for (key, value) in pairs {
                    match (*key, *value) {
                        ("to", node) => request.to = Some(name(node)?),
                        ("type", "quick") => request.kind = MoveKind::Quick,
                        ("type", "shutdown") => request.kind = MoveKind::Shutdown,
                        ("type", "offline") => request.kind = MoveKind::Offline,
                        _ => {}
                    }
                }
                state.request = Some(request);
            }
        }
        Ok(())
    }
}

fn need(resource: &mut Resource, key: &str, value: &str) -> Done {
    let needs = &mut resource.needs;
    match key {
        "memory" => needs.memory_mib = mib(value)?,
        // Hundredths, so that half cores can be said.
        "cores" => needs.cores = Cores(u64::from(small(value)?) * 100),
        "cpus" => needs.processors = small(value)?,
        "storage" => needs.storages = names(value)?,
        "switch" => needs.switches = names(value)?,
        "possible" => resource.possible_owners = Some(names(value)?),
        _ => return Err(format!("a resource has no {key}")),
    }
    Ok(())
}

fn offline_action(text: &str) -> Result<OfflineAction, String> {
    Ok(match text {
        "turn-off" => OfflineAction::TurnOff,
        "save" => OfflineAction::Save,
        "shutdown" => OfflineAction::Shutdown,
        "forced" => OfflineAction::ShutdownForced,
        other => return Err(format!("no such offline action: {other}")),
    })
}

fn property(resource: &mut Resource, key: &str, value: &str) -> Done {
    let restart = &mut resource.restart;
    match key {
        "restart-action" => {
            restart.action = match value {
                "0" => RestartAction::DontRestart,
                "1" => RestartAction::RestartNoNotify,
                _ => RestartAction::RestartNotify,
            }
        }
        "restart-threshold" => restart.threshold = small(value)?,
        "restart-period" => restart.period_ms = ms(value)?,
        "restart-delay" => restart.delay_ms = ms(value)?,
        "retry" => restart.retry_ms = if value == "never" { None } else { Some(ms(value)?) },
        "pending-timeout" => resource.pending_timeout_ms = ms(value)?,
        "deadlock-timeout" => resource.deadlock_timeout_ms = ms(value)?,
        "looks-alive" => resource.looks_alive_ms = Some(ms(value)?),
        "is-alive" => resource.is_alive_ms = Some(ms(value)?),
        "persistent" => resource.persistent_state = value == "yes",
        "offline-action" | "heartbeat" | "embedded" => {
            let ResourceKind::VirtualMachine(vm) = &mut resource.kind else {
                return Err("no machine".into());
            };
            match key {
                "offline-action" => vm.offline_action = offline_action(value)?,
                "heartbeat" => vm.check_heartbeat = value == "on",
                _ => {
                    vm.embedded_failure = match value {
                        "0" => EmbeddedFailureAction::None,
                        "1" => EmbeddedFailureAction::Log,
                        _ => EmbeddedFailureAction::Recover,
                    }
                }
            }
        }
        _ => need(resource, key, value)?,
    }
    Ok(())
}
