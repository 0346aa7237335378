//! The client against a server that behaves as told.

use super::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

const SOON: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(30);
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#;

struct Server {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Server {
    fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { lines: BufReader::new(read).lines(), write }
    }
    async fn say(&mut self, text: impl ToString) {
        self.write.write_all(format!("{}\r\n", text.to_string()).as_bytes()).await.unwrap();
    }
    async fn heard(&mut self) -> Value {
        serde_json::from_str(&self.lines.next_line().await.unwrap().expect("a command")).unwrap()
    }
    async fn answer(&mut self, command: &Value, value: Value) {
        self.say(json!({ "return": value, "id": command["id"] })).await;
    }
}

struct Place {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    listener: UnixListener,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    Place { _dir: dir, socket, listener }
}

/// A client that has greeted.
async fn connected() -> (Qmp, Server) {
    let place = place();
    let serve = async {
        let mut server = Server::new(place.listener.accept().await.unwrap().0);
        server.say(GREETING).await;
        let hello = server.heard().await;
        assert_eq!(hello["execute"], "qmp_capabilities");
        assert_eq!(hello["arguments"], json!({ "enable": ["oob"] }));
        server.answer(&hello, json!({})).await;
        server
    };
    let (qmp, server) = tokio::join!(Qmp::connect(&place.socket, PATIENCE), serve);
    (qmp.unwrap(), server)
}

#[tokio::test]
async fn the_greeting_tells_the_version() {
    let (qmp, _server) = connected().await;
    assert_eq!(qmp.greeting().version_text(), "10.0.2");
    assert!(qmp.greeting().oob);
    assert!(!qmp.is_closed());
}

/// The process that asked has died, and the next one connects.
#[tokio::test]
async fn what_was_meant_for_a_former_connection_is_passed_over() {
    let place = place();
    let serve = async {
        let mut server = Server::new(place.listener.accept().await.unwrap().0);
        server.say(r#"tatus": "paused"}, "id": 12}"#).await;
        server.say(json!({ "return": {}, "id": 13 })).await;
        server.say(json!({ "event": "STOP", "timestamp": { "seconds": 1, "microseconds": 2 } })).await;
        server.say(GREETING).await;
        let hello = server.heard().await;
        server.say(json!({ "error": { "class": "GenericError", "desc": "late" }, "id": 1 })).await;
        server.answer(&hello, json!({})).await;
        server
    };
    let (qmp, _server) = tokio::join!(Qmp::connect(&place.socket, PATIENCE), serve);
    assert_eq!(qmp.unwrap().greeting().version_text(), "10.0.2");

    let other = async {
        let mut server = Server::new(place.listener.accept().await.unwrap().0);
        server.say("SSH-2.0-OpenSSH_9.2").await;
        server
    };
    let (refused, _server) = tokio::join!(Qmp::connect(&place.socket, PATIENCE), other);
    assert!(refused.unwrap_err().to_string().contains("it greeted with 'SSH-2.0-OpenSSH_9.2"));
}

#[tokio::test]
async fn answers_find_their_commands_in_any_order() {
    let (qmp, mut server) = connected().await;
    let serve = async {
        let first = server.heard().await;
        let second = server.heard().await;
        server.say("this is not JSON").await;
        server.say(json!({ "return": {}, "id": 999 })).await;
        server.answer(&second, json!("second")).await;
        server.answer(&first, json!("first")).await;
    };
    let (first, second, ()) =
        tokio::join!(qmp.execute("a", Value::Null), qmp.execute("b", json!({ "x": 1 })), serve);
    assert_eq!((first.unwrap(), second.unwrap()), (json!("first"), json!("second")));
}

#[tokio::test]
async fn a_refusal_carries_qemus_words() {
    let (qmp, mut server) = connected().await;
    let serve = async {
        let command = server.heard().await;
        assert_eq!(command.get("arguments"), None, "commands without arguments have no such field");
        let error = json!({ "class": "GenericError", "desc": "not now" });
        server.say(json!({ "error": error, "id": command["id"] })).await;
    };
    let (result, ()) = tokio::join!(qmp.cont(), serve);
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused cont: not now (GenericError)");
    assert!(!error.is_disconnected());
}

#[tokio::test]
async fn events_come_with_their_time_to_everyone_who_listens() {
    let (qmp, mut server) = connected().await;
    let (mut one, mut two) = (qmp.events(), qmp.events());
    server
        .say(json!({
            "event": "STOP", "data": {"a": 1}, "timestamp": {"seconds": 1_700_000_000, "microseconds": 250},
        }))
        .await;
    let event = one.recv().await.unwrap();
    assert_eq!((event.name.as_str(), event.at_unix_us), ("STOP", 1_700_000_000_000_250));
    assert_eq!(two.recv().await.unwrap(), event);
}

#[tokio::test]
async fn a_late_answer_disturbs_nobody() {
    let (qmp, mut server) = connected().await;
    let late = qmp.execute_within("slow", Value::Null, SOON).await.unwrap_err();
    assert!(matches!(late, QmpError::Timeout { ref command, .. } if command == "slow"), "{late}");
    let slow = server.heard().await;
    let serve = async {
        let next = server.heard().await;
        server.answer(&slow, json!("late")).await;
        server.answer(&next, json!({ "running": true, "status": "running" })).await;
    };
    let (status, ()) = tokio::join!(qmp.query_status(), serve);
    assert_eq!(status.unwrap(), StatusInfo { running: true, status: RunState::Running });
}

#[tokio::test]
async fn hanging_commands_leave_the_way_free_for_yank() {
    let (qmp, mut server) = connected().await;
    let mut hanging = Vec::new();
    for _ in 0..20 {
        let qmp = qmp.clone();
        hanging.push(tokio::spawn(async move { qmp.execute_within("stop", Value::Null, PATIENCE).await }));
    }
    // QEMU reads no further than eight in-band commands; the client must have left room.
    let mut read = Vec::new();
    while let Ok(command) = tokio::time::timeout(SOON, server.heard()).await {
        read.push(command);
    }
    assert!((1..8).contains(&read.len()), "{} commands in QEMU's queue", read.len());
    let nodes = ["nbd-ide0-0".to_owned()];
    let serve = async {
        let yank = server.heard().await;
        assert_eq!(yank["exec-oob"], "yank");
        let instance = json!({ "type": "block-node", "node-name": "nbd-ide0-0" });
        assert_eq!(yank["arguments"]["instances"], json!([instance]));
        server.answer(&yank, json!({})).await;
        // Every answer makes room for one more.
        let mut answered = 0;
        while answered < 20 {
            let command = if read.is_empty() { server.heard().await } else { read.remove(0) };
            server.answer(&command, json!({})).await;
            answered += 1;
        }
    };
    let (yanked, ()) = tokio::join!(qmp.yank(&nodes), serve);
    yanked.unwrap();
    for command in hanging {
        command.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_lost_connection_ends_every_wait() {
    let (qmp, mut server) = connected().await;
    let waiting = tokio::spawn({
        let qmp = qmp.clone();
        async move { qmp.stop().await }
    });
    server.heard().await;
    drop(server);
    qmp.closed().await;
    assert!(qmp.is_closed());
    assert!(waiting.await.unwrap().unwrap_err().is_disconnected());
    assert!(qmp.cont().await.unwrap_err().is_disconnected(), "and every later command");
    qmp.closed().await;
}

#[tokio::test]
async fn quit_is_done_when_the_connection_ends() {
    let (qmp, mut server) = connected().await;
    let serve = async move { assert_eq!(server.heard().await["execute"], "quit") };
    let (quit, ()) = tokio::join!(qmp.quit(), serve);
    quit.unwrap();
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_connection() {
    let (qmp, mut server) = connected().await;
    let copy = qmp.clone();
    drop(qmp);
    let serve = async {
        let command = server.heard().await;
        server.answer(&command, json!({})).await;
    };
    let (result, ()) = tokio::join!(copy.cont(), serve);
    result.unwrap();
    drop(copy);
    assert_eq!(server.lines.next_line().await.unwrap(), None);
}

#[tokio::test]
async fn a_background_snapshot_that_qemu_refuses_is_an_answer_not_an_error() {
    let (qmp, mut server) = connected().await;
    let serve = async {
        let set = server.heard().await;
        assert_eq!(set["execute"], "migrate-set-capabilities");
        let error =
            json!({ "class": "GenericError", "desc": "Background-snapshot is not supported by host kernel" });
        server.say(json!({ "error": error, "id": set["id"] })).await;
    };
    let (result, ()) = tokio::join!(qmp.probe_background_snapshot(), serve);
    assert!(result.unwrap().unwrap_err().contains("host kernel"));
}

#[tokio::test]
async fn who_does_not_speak_the_protocol_is_named() {
    let place = place();
    let serve = async {
        let mut server = Server::new(place.listener.accept().await.unwrap().0);
        server.say("NBDMAGIC").await;
        server
    };
    let (qmp, _server) = tokio::join!(Qmp::connect(&place.socket, PATIENCE), serve);
    let message = qmp.unwrap_err().to_string();
    assert!(message.contains("NBDMAGIC") && message.contains("qmp.sock"), "{message}");

    // The kernel accepts, nobody greets: another client has the monitor.
    let message = Qmp::connect(&place.socket, SOON).await.unwrap_err().to_string();
    assert!(message.contains("one client at a time"), "{message}");

    drop(place.listener);
    let error = Qmp::connect(&place.socket, SOON).await.unwrap_err();
    assert!(matches!(error, QmpError::Connect { .. }), "{error}");
}

#[test]
fn the_first_saved_page_is_what_makes_cont_safe() {
    let info = |text| serde_json::from_str::<MigrateInfo>(text).unwrap();
    assert!(!info("{}").first_page_saved());
    assert!(!info(r#"{"status": "setup"}"#).first_page_saved());
    assert!(
        !info(r#"{"status": "active", "ram": {"normal": 0, "duplicate": 0, "total": 1}}"#).first_page_saved()
    );
    assert!(
        info(r#"{"status": "active", "ram": {"normal": 0, "duplicate": 1, "new-field": []}}"#)
            .first_page_saved()
    );
    assert!(info(r#"{"status": "completed"}"#).first_page_saved());
    let failed = info(r#"{"status": "failed", "error-desc": "disk full"}"#);
    assert!(failed.status.is_final());
    assert_eq!(failed.error_desc.as_deref(), Some("disk full"));
    assert_eq!(info(r#"{"status": "wait-unplug"}"#).status, MigrationStatus::Other);
}
