//! What happened: written to the history and told to whoever follows.

use crate::failure::{Failure, chain};
use crate::store::{Late, NewEvent, Store, StoreError, Writing};
use crate::tasks::store_failure;
use backstay_api::explain::severity_of;
use backstay_api::{Change, Event, EventQuery, ObjectKind, ObjectRef, Severity};
use backstay_model::VmId;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;

/// Events that a slow follower may be behind before it reads them from the history.
const BACKLOG: usize = 1024;

/// Between two attempts to write events that wait for room.
const AGAIN: Duration = Duration::from_secs(1);

/// The history of events.
#[derive(Clone, Debug)]
pub struct EventHub {
    store: Store,
    live: broadcast::Sender<Event>,
    counts: Arc<Mutex<BTreeMap<String, u64>>>,
    /// Events that wait for room in the database.
    late: Late,
    /// The last event that was taken from each worker, which the database may not know yet.
    heard: Arc<Mutex<BTreeMap<VmId, u64>>>,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Happening<'a> {
    /// `vm.created`, `vm.state` …
    pub kind: &'static str,
    /// Who did it.
    pub who: &'a str,
    /// Why.
    pub reason: String,
    /// What it was.
    pub before: Option<String>,
    /// What it is now.
    pub after: Option<String>,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Only those of this machine.
    pub vm: Option<VmId>,
    /// Only those at or after this time.
    pub since: Option<Timestamp>,
    /// Only those before this time.
    pub until: Option<Timestamp>,
    /// Only these types; `vm` stands for all that begin with `vm.`. Empty: all.
    pub kinds: Vec<String>,
    /// Only those of this severity or a higher one.
    pub severity: Severity,
    /// Only those that this user did.
    pub who: Option<String>,
    /// Only those numbered above this.
    pub after: Option<u64>,
}

impl Wanted {
    /// What a query asks for; `vm` is the machine that it names.
    #[must_use]
    pub fn of(query: &EventQuery, vm: Option<VmId>) -> Self {
        let kinds = query.kind.as_deref().unwrap_or_default().split(',');
        // `vm.*` is what people write who know shells.
        let kinds = kinds.map(|kind| kind.trim().trim_end_matches('*').trim_end_matches('.').to_owned());
        Self {
            vm,
            since: query.since,
            until: query.until,
            kinds: kinds.filter(|kind| !kind.is_empty()).collect(),
            severity: query.severity.unwrap_or_default(),
            who: query.who.clone(),
            after: query.after,
        }
    }

    /// Whether an event that has just happened is one of them.
    #[must_use]
    pub fn takes(&self, event: &Event) -> bool {
        let of_kind = |kind: &String| {
            event.kind == *kind
                || event.kind.strip_prefix(kind.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        self.vm.is_none_or(|vm| event.object.id == Some(vm.0))
            && self.since.is_none_or(|since| event.at >= since)
            && self.until.is_none_or(|until| event.at < until)
            && (self.kinds.is_empty() || self.kinds.iter().any(of_kind))
            && event.severity >= self.severity
            && self.who.as_ref().is_none_or(|who| event.who == *who)
            && self.after.is_none_or(|after| event.seq > after)
    }
}

impl EventHub {
    /// A hub over `store`.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            store,
            live: broadcast::Sender::new(BACKLOG),
            late: Late::default(),
            heard: Arc::default(),
            counts: Arc::default(),
        }
    }

    fn counted(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there were of each kind since the daemon was started.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.counted().clone()
    }

    /// Follows events as they are written.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Event> {
        self.live.subscribe()
    }

    /// Writes what happened to a machine. A history that cannot be written stops nothing; it is logged.
    pub async fn vm(&self, id: VmId, name: &str, what: Happening<'_>) {
        let object = ObjectRef { kind: ObjectKind::Vm, id: Some(id.0), name: name.into() };
        self.write(object, what, Vec::new(), Timestamp::now(), None).await;
    }

    /// Writes what happened to a machine's settings, value by value.
    pub async fn vm_changed(&self, id: VmId, name: &str, what: Happening<'_>, changes: Vec<Change>) {
        let object = ObjectRef { kind: ObjectKind::Vm, id: Some(id.0), name: name.into() };
        self.write(object, what, changes, Timestamp::now(), None).await;
    }

    /// Writes what a machine's worker told, and how far it was heard.
    pub async fn vm_from_worker(&self, id: VmId, name: &str, what: Happening<'_>, at_unix_ms: i64, seq: u64) {
        let object = ObjectRef { kind: ObjectKind::Vm, id: Some(id.0), name: name.into() };
        let at = Timestamp::from_millisecond(at_unix_ms).unwrap_or_else(|_| Timestamp::now());
        self.write(object, what, Vec::new(), at, Some((id, seq))).await;
    }

    /// Writes what happened to the host.
    pub async fn host(&self, what: Happening<'_>) {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let object = ObjectRef { kind: ObjectKind::Host, id: None, name };
        self.write(object, what, Vec::new(), Timestamp::now(), None).await;
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmId, u64>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last event that was taken from a machine's worker by this daemon; 0 if none was.
    #[must_use]
    pub fn heard_of(&self, vm: VmId) -> u64 {
        self.heard().get(&vm).copied().unwrap_or(0)
    }

    /// A worker begins to count anew.
    pub fn forget_heard(&self, vm: VmId) {
        self.heard().remove(&vm);
    }

    /// Tries again while events wait for room.
    fn write_late(&self) {
        let (store, late) = (self.store.clone(), Arc::clone(&self.late));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(AGAIN).await;
                match store.insert_event(Arc::clone(&late), None).await {
                    Ok(0) | Err(StoreError::Closed) => return,
                    Ok(_) => {}
                    Err(error) => tracing::error!(error = chain(&error), "an event could not be written"),
                }
            }
        });
    }

    async fn write(
        &self,
        object: ObjectRef,
        what: Happening<'_>,
        changes: Vec<Change>,
        at: Timestamp,
        cursor: Option<(VmId, u64)>,
    ) {
        tracing::info!(
            vm = object.name,
            kind = what.kind,
            who = what.who,
            reason = what.reason,
            after = what.after.as_deref().unwrap_or_default(),
            "event"
        );
        *self.counted().entry(what.kind.to_string()).or_default() += 1;
        let event = NewEvent {
            at,
            object,
            kind: what.kind,
            severity: severity_of(what.kind, what.after.as_deref()),
            who: what.who.into(),
            reason: what.reason,
            before: what.before,
            after: what.after,
            changes,
        };
        if let Some((vm, seq)) = cursor {
            self.heard().insert(vm, seq);
        }
        let writing = Writing { event, cursor, live: self.live.clone() };
        match self.store.insert_event(Arc::clone(&self.late), Some(writing)).await {
            Ok(0) => {}
            // The first one that waits brings a task that tries again.
            Ok(1) => {
                tracing::warn!("the database's volume is full: events wait for room");
                self.write_late();
            }
            Ok(_) => {}
            Err(error) => tracing::error!(error = chain(&error), "an event could not be written"),
        }
    }

    /// Events after number `after` and at or after `since`, oldest first; with neither, the newest ones.
    ///
    /// # Errors
    /// The database.
    pub async fn list(
        &self,
        vm: Option<VmId>,
        since: Option<Timestamp>,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Event>, Failure> {
        self.select(Wanted { vm, since, after, ..Wanted::default() }, limit).await
    }

    /// The wanted events, oldest first: with `since` or `after` the first ones from there on, else the newest ones.
    ///
    /// # Errors
    /// The database.
    pub async fn select(&self, wanted: Wanted, limit: u32) -> Result<Vec<Event>, Failure> {
        self.store.events(wanted, limit).await.map_err(store_failure)
    }

    /// The highest number so far.
    ///
    /// # Errors
    /// The database.
    pub async fn last(&self) -> Result<u64, Failure> {
        self.store.last_event().await.map_err(store_failure)
    }
}
