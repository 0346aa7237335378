//! Tables for people: no lines, no colour, columns as wide as their content.

use comfy_table::{Table, presets::NOTHING};

/// Header and rows; a list without rows still shows its header, so that an empty answer is seen as one.
pub fn render(titles: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(titles.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    lines(&table)
}

/// `Title:  value` lines; values of several lines are indented below each other.
pub fn facts(facts: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for (title, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        let value: Vec<String> = value.lines().map(printable).collect();
        table.add_row([format!("{title}:"), value.join("\n")]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    lines(&table)
}

fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Control characters from files and guests must not reach a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_what_is_seen() {
        let rows = [vec!["语言".into(), "off".into()], vec!["web\x1b[31m".into(), "running".into()]];
        assert_eq!(
            render(&["NAME", "STATE"], &rows),
            "NAME      STATE\n语言      off\nweb\u{FFFD}[31m  running\n"
        );
    }

    #[test]
    fn facts_without_a_value_are_left_out() {
        let facts_ = [("Name", "web".into()), ("Notes", String::new()), ("Drives", "a\nb".to_owned())];
        assert_eq!(facts(&facts_), "Name:    web\nDrives:  a\n         b\n");
    }
}
