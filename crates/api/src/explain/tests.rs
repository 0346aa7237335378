use super::*;
use std::collections::BTreeSet;

fn codes(text: &str) -> Vec<String> {
    explain(text).into_iter().map(|found| found.code).collect()
}

#[test]
fn a_windows_code_is_found_in_every_form_that_tools_print() {
    for form in [
        "0x80070057",
        "0X80070057",
        "80070057",
        "-2147024809",
        "2147942487",
        "87",
        " 0x80070057 ",
        "ERROR_INVALID_PARAMETER",
        "error_invalid_parameter",
        "0x57",
    ] {
        assert_eq!(codes(form), ["0x80070057"], "{form}");
    }
    assert_eq!(codes("0xc03a000e"), ["0xC03A000E"]);
    assert_eq!(codes("-1069940722"), ["0xC03A000E"]);
    assert!(codes("0x80079999").is_empty());
}

#[test]
fn every_entry_says_something_and_codes_are_their_numbers() {
    let mut seen = BTreeSet::new();
    for entry in entries() {
        assert!(seen.insert((format!("{:?}", entry.group), entry.code)), "{} twice", entry.code);
        assert!(
            !entry.meaning.is_empty() && !entry.causes.is_empty() && !entry.cures.is_empty(),
            "{}",
            entry.code
        );
        if let Some(number) = entry.number {
            assert_eq!(entry.code, format!("0x{number:08X}"));
        }
    }
}

#[test]
fn every_problem_is_explained() {
    for code in ProblemCode::ALL {
        let found = explain(code.as_str());
        assert!(found.iter().any(|e| e.group == CodeGroup::Problem && e.meaning == code.title()), "{code}");
    }
}

#[test]
fn what_nobody_knows_is_answered_with_what_is_near() {
    let near = |text: &str| nearest(text).into_iter().map(|e| e.code).collect::<Vec<_>>();
    assert_eq!(near("0x80070021")[0], "0x80070021");
    assert_eq!(near("0x80070058")[0], "0x80070057");
    assert_eq!(near("0xC03A0FFF").len(), 5);
    assert_eq!(near("vm.stat")[0], "vm.state");
    assert_eq!(near("presondition"), ["precondition"]);
    assert!(near("checkpoint").iter().all(|code| code.starts_with("checkpoint.")));
    assert!(near("xyzzyxyzzy").is_empty());
    assert!(
        decode("0x800700C1").unwrap().contains("Win32") && decode("0x800700C1").unwrap().contains("code 193")
    );
    assert_eq!(decode("abc"), None);
}

#[test]
fn a_state_counts_by_what_it_has_become() {
    assert_eq!(severity_of("vm.state", Some("running")), Severity::Info);
    assert_eq!(severity_of("vm.state", Some("failed")), Severity::Error);
    assert_eq!(severity_of("host.disk-warning", None), Severity::Warning);
}
