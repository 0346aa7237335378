//! Quorum.

use super::Lab;
use super::words::name;
use backstay_cluster::{NodeName, Quorum};
use std::collections::BTreeSet;

impl Lab {
    pub fn vote(&mut self, what: &str, plain: &[&str]) -> Result<(), String> {
        let nodes = || plain.iter().map(|n| name(n)).collect::<Result<BTreeSet<NodeName>, String>>();
        match what {
            "quorum" => self.quorum = Quorum::new(nodes()?),
            "witness" => match plain[0] {
                "lost" => self.quorum.witness_online(false),
                "back" => self.quorum.witness_online(true),
                other => self.quorum.set_witness(other == "on"),
            },
            "lose" => self.quorum.lose(&nodes()?, false),
            "lose-clean" => self.quorum.lose(&nodes()?, true),
            "join" => nodes()?.iter().for_each(|n| self.quorum.join(n)),
            "force" => self.quorum.force(),
            "dynamic" => self.quorum.set_dynamic(plain[0] == "on"),
            "low" => self.quorum.set_lower_priority(Some(name(plain[0])?)),
            _ => self.quorum.set_weight(&name(plain[0])?, plain[1] == "1"),
        }
        let line = format!("  {}{}\n", self.quorum, self.voters());
        self.out.push_str(&line);
        Ok(())
    }

    fn voters(&self) -> String {
        let names = self.quorum.nodes();
        let votes = names
            .filter(|(_, v)| v.dynamic)
            .map(|(n, v)| format!("{n}{}", if v.present { "" } else { "(away)" }));
        let mut votes: Vec<String> = votes.collect();
        if self.quorum.witness().is_some_and(|w| w.votes) {
            votes.push("witness".into());
        }
        format!("; votes: {}", votes.join(" "))
    }
}
