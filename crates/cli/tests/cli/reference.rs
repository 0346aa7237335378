//! `docs/cli.md` names every command, and only commands that exist.

use crate::support::{backstay, err, out};
use std::collections::BTreeSet;

/// The names in the `Commands:` part of a help text.
fn commands(args: &[&str]) -> Vec<String> {
    let help = backstay(&[args, &["--help"]].concat()).output().unwrap();
    assert!(help.status.success(), "{args:?}: {}", err(&help));
    let text = out(&help);
    let Some((_, list)) = text.split_once("Commands:\n") else { return Vec::new() };
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn the_reference_names_every_command() {
    let mut exist = BTreeSet::new();
    for noun in commands(&[]) {
        let verbs = commands(&[&noun]);
        if verbs.is_empty() {
            exist.insert(format!("backstay {noun}"));
        }
        for verb in verbs {
            assert!(commands(&[&noun, &verb]).is_empty(), "two words are enough");
            exist.insert(format!("backstay {noun} {verb}"));
        }
    }
    let page = include_str!("../../../../docs/cli.md");
    let words = |line: &str| {
        let mut words: Vec<&str> = line.strip_prefix("| `")?.split('`').next()?.split(' ').take(3).collect();
        words.retain(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
        (words.first() == Some(&"backstay")).then(|| words.join(" "))
    };
    let named: BTreeSet<String> = page.lines().filter_map(words).collect();
    assert_eq!(named, exist);
}
