//! Comma-separated values as RFC 4180 describes them, with line feeds.

/// A header as a field name: `STATE SINCE` becomes `state_since`.
pub fn key(title: &str) -> String {
    title.to_lowercase().replace([' ', '-'], "_")
}

/// Header and rows.
pub fn render(titles: &[String], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for row in std::iter::once(titles).chain(rows.iter().map(Vec::as_slice)) {
        let cells: Vec<String> = row.iter().map(|cell| quote(cell)).collect();
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

fn quote(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_inside_cells_are_quoted() {
        let rows = [vec!["a,b".into(), "say \"hi\"".into()]];
        assert_eq!(
            render(&[key("NAME"), key("STATE SINCE")], &rows),
            "name,state_since\n\"a,b\",\"say \"\"hi\"\"\"\n"
        );
    }
}
