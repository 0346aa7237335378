//! What happened: written to the history and told to whoever follows.

use crate::failure::{Failure, chain};
use crate::store::{NewEvent, Store};
use crate::tasks::store_failure;
use backstay_api::{Event, ObjectKind, ObjectRef};
use backstay_model::VmId;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;

/// Events that a slow follower may be behind before it reads them from the history.
const BACKLOG: usize = 1024;

/// The history of events.
#[derive(Clone, Debug)]
pub struct EventHub {
    store: Store,
    live: broadcast::Sender<Event>,
    counts: Arc<Mutex<BTreeMap<String, u64>>>,
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

impl EventHub {
    /// A hub over `store`.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, live: broadcast::Sender::new(BACKLOG), counts: Arc::default() }
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
        self.write(object, what, Timestamp::now(), None).await;
    }

    /// Writes what a machine's worker told, and how far it was heard.
    pub async fn vm_from_worker(&self, id: VmId, name: &str, what: Happening<'_>, at_unix_ms: i64, seq: u64) {
        let object = ObjectRef { kind: ObjectKind::Vm, id: Some(id.0), name: name.into() };
        let at = Timestamp::from_millisecond(at_unix_ms).unwrap_or_else(|_| Timestamp::now());
        self.write(object, what, at, Some((id, seq))).await;
    }

    /// Writes what happened to the host.
    pub async fn host(&self, what: Happening<'_>) {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let object = ObjectRef { kind: ObjectKind::Host, id: None, name };
        self.write(object, what, Timestamp::now(), None).await;
    }

    async fn write(
        &self,
        object: ObjectRef,
        what: Happening<'_>,
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
            who: what.who.into(),
            reason: what.reason,
            before: what.before,
            after: what.after,
        };
        if let Err(error) = self.store.insert_event(event, cursor, self.live.clone()).await {
            tracing::error!(error = chain(&error), "an event could not be written");
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
        self.store.events(vm, since, after, limit).await.map_err(store_failure)
    }

    /// The highest number so far.
    ///
    /// # Errors
    /// The database.
    pub async fn last(&self) -> Result<u64, Failure> {
        self.store.last_event().await.map_err(store_failure)
    }
}
