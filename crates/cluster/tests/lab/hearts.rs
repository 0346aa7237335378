//! The heartbeat protocol by hand: one agent and one taker, times in seconds.

use super::Lab;
use super::words::{name, number, span};
use backstay_cluster::heartbeat::{Agent, AgentEvent, Member, Standing, Taker, Timing};
use backstay_cluster::{FencingClass, NodeName, Span, Time};

#[derive(Default)]
pub struct Hearts {
    timing: Timing,
    agent: Option<Agent>,
    taker: Option<Taker>,
    /// Who the taker watches, and the class of what they own.
    class: FencingClass,
}

type Done = Result<(), String>;

impl Lab {
    pub fn heart(&mut self, what: &str, plain: &[&str], pairs: &[(&str, &str)]) -> Done {
        let lines = match what {
            "timing" => self.hearts.set(pairs)?,
            "agent" => self.hearts.agent(plain)?,
            _ => self.hearts.taker(plain, pairs)?,
        };
        lines.iter().for_each(|line| self.out.push_str(&format!("  {line}\n")));
        Ok(())
    }
}

impl Hearts {
    fn set(&mut self, pairs: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let timing = &mut self.timing;
        for (key, value) in pairs {
            match *key {
                "profile" if *value == "fast" => *timing = Timing::fast(),
                "lease" => timing.lease = span(value)?,
                "interval" => timing.interval = span(value)?,
                "wait" => timing.wait = span(value)?,
                "dead-man" => timing.dead_man = span(value)?,
                "drift" => timing.drift_ppm = u32::try_from(number(value)?).map_err(|e| e.to_string())?,
                "leaderless" => timing.leaderless = span(value)?,
                _ => return Err(format!("no such time: {key}")),
            }
        }
        let verdict = timing.check().map_or_else(|e| format!("refused: {e}"), |()| "holds".into());
        Ok(vec![
            verdict,
            format!(
                "class S takes over after {}, class W after {}",
                Span(timing.wait),
                Span(timing.wait_watchdog())
            ),
        ])
    }

    /// `agent SECONDS EVENT ...`
    fn agent(&mut self, plain: &[&str]) -> Result<Vec<String>, String> {
        let now = at(plain[0])?;
        let timing = self.timing;
        let event = match plain[1] {
            "tick" => AgentEvent::Tick,
            "committed" => AgentEvent::Committed { sequence: number(plain[2])?, revision: number(plain[3])? },
            "refused" => AgentEvent::Refused,
            "unknown" => AgentEvent::Unknown,
            "read-none" => AgentEvent::Read(None),
            "read" => AgentEvent::Read(Some((member(&plain[2..5])?, number(plain[5])?))),
            "clock-jumped" => AgentEvent::ClockJumped,
            "ended" => AgentEvent::Ended,
            "leave" => AgentEvent::Leave,
            "restarted" => {
                let old = self.agent.as_ref().ok_or("no agent")?;
                let deadline = old.deadline().ok_or("no deadline")?;
                self.agent = Some(Agent::resume(timing, old.incarnation(), deadline));
                AgentEvent::Tick
            }
            other => return Err(format!("no such event: {other}")),
        };
        let agent = self.agent.get_or_insert_with(|| Agent::new(timing));
        let mut lines: Vec<String> = agent.step(event, now).iter().map(|e| format!("{e:?}")).collect();
        let deadline = agent.deadline().map_or("none".into(), |d| d.to_string());
        let dog = if agent.feeds_watchdog(now, true) { "fed" } else { "not fed" };
        lines.push(format!(
            "{:?}, deadline {deadline}, writes {}, watchdog {dog}",
            agent.rung(),
            if agent.may_write(now) { "go" } else { "wait" }
        ));
        Ok(lines)
    }

    /// `taker SECONDS saw NODE INCARNATION SEQUENCE STANDING REVISION`, `... look [blind]`, `... confirm NODE INCARNATION`
    fn taker(&mut self, plain: &[&str], pairs: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let now = at(plain[0])?;
        let timing = self.timing;
        if let Some((_, class)) = pairs.first() {
            self.class =
                FencingClass::ALL.into_iter().find(|c| c.to_string() == *class).ok_or("no such class")?;
        }
        let taker = self.taker.get_or_insert_with(|| Taker::new(timing));
        let mut lines = Vec::new();
        match plain[1] {
            "saw" => taker.saw(&name(plain[2])?, member(&plain[3..6])?, number(plain[6])?, now),
            "confirm" => taker.confirm(&name(plain[2])?, number(plain[3])?, "an administrator"),
            "hook-failed" => taker.stonith_failed(&name(plain[2])?),
            "look" => {
                let mine = if plain.get(2) == Some(&"blind") { None } else { Some(99) };
                let class = self.class;
                lines.extend(taker.step(mine, |_| class, now).iter().map(|e| format!("{e:?}")));
                let node: NodeName = name("b")?;
                lines.push(format!("b looks {:?}", taker.presence(&node, now)));
            }
            other => return Err(format!("no such event: {other}")),
        }
        Ok(lines)
    }
}

fn at(seconds: &str) -> Result<Time, String> {
    Ok(Time::default() + span(&format!("{seconds}s"))?)
}

/// `INCARNATION SEQUENCE alive|fenced|left`
fn member(words: &[&str]) -> Result<Member, String> {
    let standing = match words[2] {
        "alive" => Standing::Alive,
        "fenced" => Standing::Fenced,
        _ => Standing::Left,
    };
    Ok(Member { incarnation: number(words[0])?, sequence: number(words[1])?, standing })
}
