//! Prometheus' text format 0.0.4.

use super::histogram::Histogram;
use std::fmt::Write as _;

/// Media type of a page.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Kinds of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only goes up, and back to 0 when its process is started again.
    Counter,
}

/// Name and value of a label.
pub type Label<'a> = (&'a str, &'a str);

/// A page being written, family by family.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// Writes a family: its name, what it is, and its samples. A family without samples is left out.
    pub fn family<'a, V: Into<f64>>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<Label<'a>>, V)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        self.head(name, kind, help);
        for (labels, value) in samples {
            self.sample(name, &labels, value.into());
        }
    }

    /// Writes a family of histograms.
    pub fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = (Vec<Label<'a>>, &'a Histogram)>,
    ) {
        let mut histograms = histograms.into_iter().peekable();
        if histograms.peek().is_none() {
            return;
        }
        self.head(name, "histogram", help);
        for (labels, histogram) in histograms {
            for (end, count) in histogram.cumulative() {
                let end = end.map_or_else(|| "+Inf".to_owned(), |end| end.to_string());
                let labels: Vec<Label<'_>> = labels.iter().copied().chain([("le", end.as_str())]).collect();
                self.sample(&format!("{name}_bucket"), &labels, approximate(count));
            }
            self.sample(&format!("{name}_sum"), &labels, histogram.sum());
            self.sample(&format!("{name}_count"), &labels, approximate(histogram.count()));
        }
    }

    /// The page.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: f64) {
        self.text.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// A count as Prometheus has numbers: exact up to 2⁵³.
#[expect(clippy::cast_precision_loss, reason = "every value is a 64-bit float on the wire")]
#[must_use]
pub fn approximate(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn labels_are_escaped_and_empty_families_left_out() {
        let mut page = Page::default();
        page.family("a_total", Kind::Counter, "what", Vec::<(Vec<Label<'_>>, f64)>::new());
        page.family("b", Kind::Gauge, "two\nlines", [(vec![("vm", "a\"b\\c\nd")], 1.5), (vec![], 2.0)]);
        let expected = "# HELP b two\\nlines\n# TYPE b gauge\nb{vm=\"a\\\"b\\\\c\\nd\"} 1.5\nb 2\n";
        assert_eq!(page.finish(), expected);
    }

    #[test]
    fn a_histogram_ends_in_infinity_sum_and_count() {
        let mut histogram = Histogram::new(&[0.5]);
        histogram.observe(Duration::from_secs(1));
        let mut page = Page::default();
        page.histograms("t_seconds", "t", [(vec![("o", "x")], &histogram)]);
        let lines: Vec<_> = page.text.lines().skip(2).map(str::to_owned).collect();
        assert_eq!(
            lines,
            [
                "t_seconds_bucket{o=\"x\",le=\"0.5\"} 0",
                "t_seconds_bucket{o=\"x\",le=\"+Inf\"} 1",
                "t_seconds_sum{o=\"x\"} 1",
                "t_seconds_count{o=\"x\"} 1"
            ]
        );
    }
}
