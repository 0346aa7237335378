//! A daemon that answers as it is told, and the command under test.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

/// What came in.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET /vms?name=web`: method, path below the API's prefix, query.
    pub line: String,
    /// The body, `Null` if there was none.
    pub body: Value,
}

/// What goes out.
pub enum Answer {
    /// JSON with a status.
    Json(u16, Value),
    /// Anything: the handler owns the connection and has to write the head too.
    Raw(Box<dyn FnOnce(UnixStream) + Send>),
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// A daemon on a socket of its own.
pub struct FakeDaemon {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeDaemon {
    /// Answers every request by `handler`.
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("backstay.sock")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, handler): (_, Arc<Handler>) = (Arc::clone(&requests), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
                std::thread::spawn(move || serve(stream.unwrap(), &seen, handler.as_ref()));
            }
        });
        Self { folder, requests }
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("backstay.sock")
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// `backstay` with this daemon.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = backstay(args);
        command.arg("--connect").arg(self.socket());
        command
    }

    /// Runs `backstay` to its end, without a terminal.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

/// The command under test, without a terminal and without the caller's settings.
pub fn backstay(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backstay"));
    command.args(args).stdin(Stdio::null()).env_remove("BACKSTAY_SOCKET").env_remove("BACKSTAY_RUN_DIR");
    command
}

fn serve(stream: UnixStream, seen: &Mutex<Vec<Request>>, handler: &Handler) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            if header == "\r\n" {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let line = line.trim().trim_end_matches(" HTTP/1.1").replace(" /api/v1", " ");
        let request = Request { line, body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
        seen.lock().unwrap().push(request.clone());
        match handler(&request) {
            Answer::Json(status, value) => {
                let body = value.to_string();
                let kind = if status < 400 { "application/json" } else { "application/problem+json" };
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                if stream.write_all((head + &body).as_bytes()).is_err() {
                    return;
                }
            }
            Answer::Raw(handler) => return handler(stream),
        }
    }
}

/// A machine as the API tells of it.
pub fn vm(name: &str, id: u128) -> Value {
    json!({
        "id": guid(id), "name": name, "notes": "", "state": "running", "generation": 3, "hardware": "gen1",
        "memory_mib": 2048, "cpus": 2, "cpu_reserve": 0, "cpu_limit": 75, "cpu_weight": 100,
        "drives": [{"slot": "ide:0:0", "kind": "disk", "path": "/vm/web.vhd"}],
        "nics": [{"id": guid(9), "mac": "00-15-5D-01-07-DC", "model": "e1000", "attachment": "user"}],
        "boot_order": ["hard-drive", "optical"], "bios_guid": guid(8), "machine_type": "pc-i440fx-10.0",
        "accel": "auto", "recovery": "restart", "host_start": "nothing", "host_stop": "save",
        "config_file": "/vm/Virtual Machines/x.xml", "folder": "/vm", "checkpoints": 2, "now_parent": null,
        "blocked": [{"verb": "delete", "reason": "'web' is running: delete is possible while it is off"}],
    })
}

/// A task as the API tells of it.
pub fn task(state: &str, error: Value) -> Value {
    json!({
        "id": guid(77), "operation": "vm.start", "object": {"kind": "vm", "id": guid(1), "name": "web"}, "state": state,
        "progress": 40, "message": "opening disks", "cancellable": true, "who": "root",
        "created": "2026-11-23T10:00:00Z", "error": error, "revision": 1,
    })
}

/// A problem as the API tells of it.
pub fn problem(code: &str, detail: &str) -> Value {
    json!({"type": format!("urn:backstay:problem:{code}"), "code": code, "title": "t", "status": 400, "detail": detail})
}

/// A GUID made of a small number.
pub fn guid(n: u128) -> String {
    uuid::Uuid::from_u128(n).to_string().to_uppercase()
}

/// Standard output as text.
pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error as text.
pub fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
