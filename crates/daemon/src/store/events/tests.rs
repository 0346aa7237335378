use super::*;
use backstay_api::EventQuery;
use uuid::Uuid;

fn event(at: i64, vm: u128, kind: &'static str, who: &str, severity: Severity) -> NewEvent {
    NewEvent {
        at: Timestamp::from_second(at).unwrap(),
        object: ObjectRef { kind: ObjectKind::Vm, id: Some(Uuid::from_u128(vm)), name: "m".into() },
        kind,
        severity,
        who: who.into(),
        reason: String::new(),
        before: None,
        after: None,
        changes: vec![Change { field: "memory_mib".into(), before: Some("1".into()), after: None }],
    }
}

fn query(text: &[(&str, &str)]) -> EventQuery {
    let mut query = EventQuery::default();
    for (key, value) in text {
        match *key {
            "type" => query.kind = Some((*value).into()),
            "who" => query.who = Some((*value).into()),
            "severity" => query.severity = Severity::ALL.into_iter().find(|s| s.as_str() == *value),
            "since" => query.since = Some(Timestamp::from_second(value.parse().unwrap()).unwrap()),
            "until" => query.until = Some(Timestamp::from_second(value.parse().unwrap()).unwrap()),
            "after" => query.after = Some(value.parse().unwrap()),
            other => panic!("{other}"),
        }
    }
    query
}

/// What the database chooses and what a follower is told is the same choice.
#[tokio::test]
async fn every_filter_chooses_the_same_from_the_history_and_from_what_happens() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("db")).unwrap();
    let live = broadcast::Sender::new(64);
    let mut told = live.subscribe();
    let kinds = ["vm.state", "vm.updated", "vmx.other", "disk.stalled", "vm"];
    for n in 0..30_i64 {
        let at = usize::try_from(n).unwrap();
        let (kind, who) = (kinds[at % kinds.len()], ["root", "guest"][at % 2]);
        let new = event(100 + n, 1 + u128::from(n.unsigned_abs() % 3), kind, who, Severity::ALL[at % 3]);
        let writing = Writing { event: new, cursor: None, live: live.clone() };
        assert_eq!(store.insert_event(Late::default(), Some(writing)).await.unwrap(), 0);
    }
    let mut all = Vec::new();
    while let Ok(event) = told.try_recv() {
        all.push(event);
    }
    assert_eq!(all.len(), 30);
    let cases: &[(&[(&str, &str)], usize)] = &[
        (&[], 30),
        (&[("type", "vm.state")], 6),
        (&[("type", "vm.*")], 18),
        (&[("type", "vm, disk.stalled")], 24),
        (&[("type", "v%")], 0),
        (&[("severity", "warning")], 20),
        (&[("severity", "error"), ("who", "guest")], 5),
        (&[("since", "110"), ("until", "115")], 5),
        (&[("after", "28")], 2),
    ];
    for (filter, count) in cases {
        for vm in [None, Some(VmId(Uuid::from_u128(2)))] {
            let wanted = Wanted::of(&query(filter), vm);
            let chosen: Vec<_> = all.iter().filter(|event| wanted.takes(event)).cloned().collect();
            assert_eq!(store.events(wanted, 100).await.unwrap(), chosen, "{filter:?}");
            assert!(vm.is_some() || chosen.len() == *count, "{filter:?}: {}", chosen.len());
        }
    }
    let newest = store.events(Wanted::default(), 2).await.unwrap();
    assert_eq!(newest.iter().map(|e| e.seq).collect::<Vec<_>>(), [29, 30], "the newest, oldest first");
}

/// A database of the first version, as it lies on hosts.
#[tokio::test]
async fn a_database_of_the_first_version_keeps_its_events_and_learns_how_grave_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    {
        let old = Connection::open(&path).unwrap();
        old.execute_batch(super::super::schema::FIRST_VERSION).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        for (kind, after) in [("vm.state", "running"), ("vm.state", "failed"), ("vm.warning", "")] {
            old.execute(
                "INSERT INTO event (at_ms, object_kind, name, kind, who, reason, after) VALUES (5, 'vm', 'm', ?1, 'root', 'r', ?2)",
                params![kind, after],
            )
            .unwrap();
        }
    }
    let store = Store::open(&path).unwrap();
    let events = store.events(Wanted::default(), 10).await.unwrap();
    let found: Vec<_> = events.iter().map(|e| (e.kind.as_str(), e.severity)).collect();
    assert_eq!(
        found,
        [("vm.state", Severity::Info), ("vm.state", Severity::Error), ("vm.warning", Severity::Warning)]
    );
    assert!(events.iter().all(|event| event.changes.is_empty() && event.reason == "r"));
    drop(store);
    Store::open(&path).expect("a second time as well");
}

/// The database's volume is full, as SQLite sees it: no page may be added.
#[tokio::test]
async fn events_on_a_full_volume_are_written_in_order_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("db")).unwrap();
    let full: i64 =
        store.call(|db| Ok(db.pragma_query_value(None, "page_count", |row| row.get(0))?)).await.unwrap();
    store.call(move |db| Ok(db.pragma_update(None, "max_page_count", full)?)).await.unwrap();
    let (live, late) = (broadcast::Sender::new(64), Late::default());
    let write = |n: u64| {
        let event =
            NewEvent { reason: "x".repeat(5000), ..event(100, 1, "vm.state", "root", Severity::Info) };
        let cursor = Some((VmId(Uuid::from_u128(1)), n));
        store.insert_event(Arc::clone(&late), Some(Writing { event, cursor, live: live.clone() }))
    };
    let mut waiting = 0;
    for n in 1..=5 {
        waiting = write(n).await.unwrap();
    }
    assert!(waiting >= 3, "{waiting} wait");
    let heard = store.runtime(VmId(Uuid::from_u128(1))).await.unwrap().map_or(0, |(last, _)| last);
    assert!(heard < 5, "what is not written is not taken as heard: a next daemon asks for it again");
    store.call(|db| Ok(db.pragma_update(None, "max_page_count", 100_000)?)).await.unwrap();
    assert_eq!(store.insert_event(late, None).await.unwrap(), 0);
    assert_eq!(store.events(Wanted::default(), 100).await.unwrap().len(), 5);
    assert_eq!(store.runtime(VmId(Uuid::from_u128(1))).await.unwrap().unwrap().0, 5);
}
