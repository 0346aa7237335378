//! What commands print.

use super::Lab;
use super::words::{name, number};
use backstay_cluster::placement::rate;
use backstay_cluster::{Budget, GroupName, NodeName, capacity, compare_strategies};

impl Lab {
    pub fn show(&mut self, what: &str, plain: &[&str]) -> Result<(), String> {
        let view = self.view();
        let mut lines = Vec::new();
        match what {
            "rate" => {
                let group = self.policy.groups.get(plain[0]).ok_or("no such group")?;
                for rating in rate(&self.policy, &view, group) {
                    let refusals = rating.refusals.iter().map(ToString::to_string);
                    let why: Vec<String> =
                        if rating.refusals.is_empty() { rating.reasons.clone() } else { refusals.collect() };
                    lines.push(format!("{} {} stars: {}", rating.node, rating.stars, why.join("; ")));
                }
            }
            "capacity" => {
                let lose = usize::try_from(number(plain[0])?).map_err(|e| e.to_string())?;
                let sets = plain.get(1).map_or(Ok(Budget::default().sets), |n| number(n))?;
                lines.push(capacity(&self.policy, &view, lose, Budget { sets }).to_string());
            }
            "strategies" => {
                let reports = compare_strategies(&self.policy, &view, Budget::default());
                lines.extend(reports.iter().map(ToString::to_string));
            }
            "order" => {
                let group = self.policy.groups.get(plain[0]).ok_or("no such group")?;
                let order = group.online_order().map_err(|e| e.to_string())?;
                lines.push(
                    order.iter().map(|i| group.resources[*i].name.to_string()).collect::<Vec<_>>().join(" "),
                );
            }
            "state" => {
                let group: GroupName = name(plain[0])?;
                let states = &view.groups.get(&group).ok_or("no such group")?.resources;
                let resources = &self.policy.groups[&group].resources;
                lines.extend(
                    resources
                        .iter()
                        .zip(states)
                        .map(|(r, s)| format!("{group}/{}: {s} ({})", r.name, s.value())),
                );
            }
            _ => {
                for (node, state) in &self.nodes {
                    lines.push(format!(
                        "{node}: {}, drain {}, {}",
                        state.state,
                        state.drain,
                        self.groups_of(node)
                    ));
                }
            }
        }
        lines.iter().for_each(|line| self.out.push_str(&format!("  {line}\n")));
        Ok(())
    }

    fn groups_of(&self, node: &NodeName) -> String {
        let here = self.groups.iter().filter(|(_, g)| g.owner.as_ref() == Some(node));
        let names: Vec<_> = here.map(|(name, _)| name.to_string()).collect();
        if names.is_empty() { "no groups".into() } else { names.join(" ") }
    }
}
