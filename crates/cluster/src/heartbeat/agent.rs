//! The node's side: heartbeats, the deadline, the ladder down from it.

use super::{Member, Standing, Timing};
use crate::Time;

/// Where on the ladder a node is. All times after the last good heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// It has the right to write.
    Holding,
    /// Shortly before the deadline: new writes wait.
    Stalled,
    /// At the deadline: guests stand still. A little later the kernel kills what could not be told.
    Isolated,
    /// Others declared it lost: its guests end.
    Fenced,
    /// Not a member yet, or again.
    Joining,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// Time has passed.
    Tick,
    /// The put with this sequence was committed, as this revision.
    Committed {
        /// Of the put.
        sequence: u64,
        /// The store's.
        revision: u64,
    },
    /// The put was refused: the record is not as expected.
    Refused,
    /// The request failed or timed out: it may have been carried out, now or later.
    Unknown,
    /// The record as a linearizable read shows it.
    Read(Option<(Member, u64)>),
    /// The clock cannot be trusted: the machine was suspended with a frozen clock, restored, or migrated.
    ClockJumped,
    /// All that belonged to the fenced life has ended.
    Ended,
    /// The node is to leave; no group is on it.
    Leave,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEffect {
    /// Put the member's record if its revision is `expect` (none: if there is no record). One put at a time.
    Put {
        /// The record.
        member: Member,
        /// The revision it must have.
        expect: Option<u64>,
    },
    /// Read the record, linearizably.
    Read,
    /// Publish this deadline to the workers, and re-arm the dead-man timers for it.
    Deadline(Time),
    /// New writes wait.
    Stall,
    /// Guests stand still.
    Pause,
    /// Guests and writes go on.
    Resume,
    /// Guests end now; answer with [`AgentEvent::Ended`].
    End,
    /// The node is out.
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// The record has to be read.
    Nothing,
    /// There is none.
    Absent,
    At(u64),
}

#[derive(Clone, Copy, Debug)]
enum Flight {
    Put { sequence: u64, sent: Time, standing: Standing },
    Read { sent: Time },
}

/// The node's side of the protocol. All times are its `CLOCK_BOOTTIME`.
#[derive(Clone, Debug)]
pub struct Agent {
    timing: Timing,
    /// 0: not known yet.
    incarnation: u64,
    sequence: u64,
    known: Known,
    flight: Option<Flight>,
    deadline: Option<Time>,
    rung: Rung,
    next_put: Time,
    leaving: bool,
}

impl Agent {
    /// A new life. What an earlier one ran has ended.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            incarnation: 0,
            sequence: 0,
            known: Known::Nothing,
            flight: None,
            deadline: None,
            rung: Rung::Joining,
            next_put: Time::default(),
            leaving: false,
        }
    }

    /// The same life goes on after the agent alone was restarted: the workers kept the deadline. The record is read before
    /// anything is written, and without a deadline in the future guests stand still until then.
    #[must_use]
    pub fn resume(timing: Timing, incarnation: u64, deadline: Time) -> Self {
        let rung = Rung::Stalled;
        Self { incarnation, deadline: Some(deadline), rung, ..Self::new(timing) }
    }

    /// Where on the ladder it is.
    #[must_use]
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Which life; 0 while that is not known.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Until when it may write.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// Whether new writes may be submitted at `now`.
    #[must_use]
    pub fn may_write(&self, now: Time) -> bool {
        self.deadline.is_some_and(|d| now + self.timing.stall < d)
    }

    /// The revision of its record, for transactions that need it to be a member; none while a put is under way.
    #[must_use]
    pub fn revision(&self, now: Time) -> Option<u64> {
        match (self.known, self.flight) {
            (Known::At(revision), None) if self.may_write(now) => Some(revision),
            _ => None,
        }
    }

    /// Whether the watchdog is fed at `now`: not without the right to write, once guests of class W exist.
    #[must_use]
    pub fn feeds_watchdog(&self, now: Time, has_guests_of_class_w: bool) -> bool {
        !has_guests_of_class_w || self.deadline.is_some_and(|d| now < d)
    }

    /// When [`AgentEvent::Tick`] is needed next.
    #[must_use]
    pub fn next_tick(&self) -> Time {
        let mut next = match self.flight {
            Some(Flight::Put { sent, .. } | Flight::Read { sent }) => sent + self.timing.transaction,
            None => self.next_put,
        };
        if let Some(deadline) = self.deadline {
            match self.rung {
                Rung::Holding => next = next.min(deadline.before(self.timing.stall)),
                Rung::Stalled => next = next.min(deadline),
                Rung::Isolated | Rung::Fenced | Rung::Joining => {}
            }
        }
        next
    }

    /// One step.
    pub fn step(&mut self, event: AgentEvent, now: Time) -> Vec<AgentEffect> {
        let mut effects = Vec::new();
        match event {
            AgentEvent::Tick => {}
            AgentEvent::Committed { sequence, revision } => {
                self.committed(sequence, revision, now, &mut effects)
            }
            AgentEvent::Refused => self.failed(),
            AgentEvent::Unknown => {
                self.failed();
                // Not at once: a store that is down is not asked in a tight loop.
                self.next_put = now + self.timing.transaction / 4;
            }
            AgentEvent::Read(record) => self.read(record, now, &mut effects),
            AgentEvent::ClockJumped => {
                // Heartbeats that are under way were sent by a clock that cannot be compared with this one.
                self.failed();
                self.deadline = None;
            }
            AgentEvent::Ended if self.rung == Rung::Fenced => {
                *self = Self { leaving: self.leaving, ..Self::new(self.timing) };
            }
            AgentEvent::Ended => {}
            AgentEvent::Leave => {
                self.leaving = true;
                self.next_put = now;
            }
        }
        self.descend(now, &mut effects);
        self.send(now, &mut effects);
        effects
    }

    /// Only a commit that is known extends the deadline, counted from before its heartbeat was sent.
    fn committed(&mut self, sequence: u64, revision: u64, now: Time, effects: &mut Vec<AgentEffect>) {
        let Some(Flight::Put { sequence: ours, sent, standing }) = self.flight else { return };
        if ours != sequence {
            return;
        }
        self.flight = None;
        self.known = Known::At(revision);
        if standing == Standing::Left {
            self.deadline = None;
            self.rung = Rung::Joining;
            effects.push(AgentEffect::Left);
            return;
        }
        let deadline = sent + self.timing.lease;
        self.deadline = Some(self.deadline.map_or(deadline, |d| d.max(deadline)));
        effects.push(AgentEffect::Deadline(deadline));
        if self.may_write(now) && self.rung != Rung::Holding {
            self.rung = Rung::Holding;
            effects.push(AgentEffect::Resume);
        }
    }

    /// The request under way brought no answer that helps: the record must be read before the next put.
    fn failed(&mut self) {
        self.flight = None;
        self.known = Known::Nothing;
        self.next_put = Time::default();
    }

    fn read(&mut self, record: Option<(Member, u64)>, now: Time, effects: &mut Vec<AgentEffect>) {
        if !matches!(self.flight, Some(Flight::Read { .. })) {
            return;
        }
        self.flight = None;
        self.next_put = now;
        match record {
            None if self.deadline.is_none() && self.incarnation == 0 => {
                self.known = Known::Absent;
                self.incarnation = 1;
            }
            // Somebody removed the node from the cluster.
            None => self.fenced(effects),
            Some((member, revision)) => {
                if self.incarnation == 0 {
                    self.incarnation = member.incarnation + 1;
                }
                let earlier_life = member.incarnation < self.incarnation;
                if !earlier_life
                    && (member.incarnation > self.incarnation || member.standing == Standing::Fenced)
                {
                    self.fenced(effects);
                    return;
                }
                if !earlier_life {
                    self.sequence = self.sequence.max(member.sequence);
                }
                self.known = Known::At(revision);
            }
        }
    }

    fn fenced(&mut self, effects: &mut Vec<AgentEffect>) {
        self.known = Known::Nothing;
        self.deadline = None;
        if self.rung != Rung::Fenced {
            self.rung = Rung::Fenced;
            effects.extend([AgentEffect::Stall, AgentEffect::Pause, AgentEffect::End]);
        }
    }

    /// Down the ladder as the deadline comes near and passes.
    fn descend(&mut self, now: Time, effects: &mut Vec<AgentEffect>) {
        if self.rung > Rung::Isolated {
            return;
        }
        let due = match self.deadline {
            Some(deadline) if now + self.timing.stall < deadline => return,
            Some(deadline) if now < deadline => Rung::Stalled,
            _ => Rung::Isolated,
        };
        if self.rung < Rung::Stalled {
            effects.push(AgentEffect::Stall);
        }
        if self.rung < Rung::Isolated && due == Rung::Isolated {
            effects.push(AgentEffect::Pause);
        }
        self.rung = self.rung.max(due);
    }

    fn send(&mut self, now: Time, effects: &mut Vec<AgentEffect>) {
        if self.rung == Rung::Fenced {
            return;
        }
        if let Some(Flight::Put { sent, .. } | Flight::Read { sent }) = self.flight {
            if now < sent + self.timing.transaction {
                return;
            }
            self.failed();
        }
        if now < self.next_put {
            return;
        }
        let expect = match self.known {
            Known::Nothing => {
                self.flight = Some(Flight::Read { sent: now });
                effects.push(AgentEffect::Read);
                return;
            }
            Known::Absent => None,
            Known::At(revision) => Some(revision),
        };
        self.sequence += 1;
        self.next_put = now + self.timing.interval;
        let standing = if self.leaving { Standing::Left } else { Standing::Alive };
        self.flight = Some(Flight::Put { sequence: self.sequence, sent: now, standing });
        let member = Member { incarnation: self.incarnation, sequence: self.sequence, standing };
        effects.push(AgentEffect::Put { member, expect });
    }
}
