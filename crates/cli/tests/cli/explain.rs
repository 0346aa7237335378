//! `backstay explain`: without a daemon.

use crate::support::{backstay, err, out};

#[test]
fn codes_are_explained_and_unknown_ones_answered_with_what_is_near() {
    for code in ["0x80070057", "80070057", "-2147024809", "2147942487", "87", "ERROR_INVALID_PARAMETER"] {
        let said = backstay(&["explain", code]).output().unwrap();
        assert_eq!(said.status.code(), Some(0), "{code}: {}", err(&said));
        let text = out(&said);
        assert!(
            text.starts_with("0x80070057  ERROR_INVALID_PARAMETER") && text.contains("What to do:"),
            "{text}"
        );
    }
    let event = out(&backstay(&["explain", "storage.low-space", "-o", "json"]).output().unwrap());
    let event: serde_json::Value = serde_json::from_str(&event).unwrap();
    assert_eq!((event[0]["severity"].as_str(), event[0]["group"].as_str()), (Some("error"), Some("event")));
    let unknown = backstay(&["explain", "0x80070058"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(3));
    assert!(err(&unknown).contains("Win32") && err(&unknown).contains("0x80070057"), "{}", err(&unknown));
    assert_eq!(backstay(&["explain"]).output().unwrap().status.code(), Some(2));
    let all = out(&backstay(&["explain", "--list", "-o", "name"]).output().unwrap());
    for code in ["busy", "vm.state", "chain", "0xC03A000E"] {
        assert!(all.lines().any(|line| line == code), "{code}");
    }
}
