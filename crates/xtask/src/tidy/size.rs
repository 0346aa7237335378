//! A file has one subject and a function fits a screen.

use super::Source;

/// Lines of a file without its tests.
const FILE_LINES: usize = 600;
/// Lines of a file with its tests.
const FILE_LINES_WITH_TESTS: usize = 1000;
/// Lines from `fn` to its closing brace.
const FUNCTION_LINES: usize = 80;

pub fn check(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources {
        let all = source.text.lines().count();
        let product = source.product_lines().len();
        if product > FILE_LINES {
            findings.push(format!(
                "{}: {product} lines (at most {FILE_LINES} without tests): split it by subject",
                source.path
            ));
        } else if all > FILE_LINES_WITH_TESTS {
            findings.push(format!(
                "{}: {all} lines (at most {FILE_LINES_WITH_TESTS}): move its tests to a file",
                source.path
            ));
        }
        for (number, lines) in functions(&source.text) {
            if lines > FUNCTION_LINES {
                findings.push(format!(
                    "{}:{number}: a function of {lines} lines (at most {FUNCTION_LINES}): name its parts",
                    source.path
                ));
            }
        }
    }
    findings
}

/// First line and length of every function. rustfmt puts the closing brace at the column where the `fn` line starts.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let named = code.split(['(', '<']).next().unwrap_or_default();
        if !named.split_whitespace().any(|w| w == "fn") || code.starts_with("//") || code.starts_with('"') {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(indent));
        let body = lines[start..].iter().position(|l| l.trim_end().ends_with(['{', ';', '}']));
        let Some(opens) = body.filter(|o| lines[start + o].trim_end().ends_with('{')) else { continue };
        if let Some(end) = lines[start + opens + 1..].iter().position(|l| *l == closing) {
            found.push((start + 1, opens + end + 2));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::functions;

    #[test]
    fn functions_are_measured_from_signature_to_brace() {
        let text = "fn a() {\n    1\n}\n\nimpl X {\n    pub fn b(\n        x: u8,\n    ) -> u8 {\n        x\n    }\n}\ntrait T {\n    fn c();\n}\n";
        assert_eq!(functions(text), [(1, 3), (6, 5)]);
    }
}
