//! The progress bar, on a terminal only.

use crate::context::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// A bar that may be invisible.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of percents with a message, for tasks of the daemon.
    pub fn percent(context: &Context) -> Self {
        Self::new(context, 100, "{spinner} {msg} {wide_bar} {pos:>3} % {elapsed}")
    }

    /// A bar of bytes, for work in this process.
    pub fn bytes(context: &Context, total: u64, message: &str) -> Self {
        let progress = Self::new(
            context,
            total,
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        );
        progress.bar.set_message(message.to_owned());
        progress
    }

    fn new(context: &Context, total: u64, template: &str) -> Self {
        let target = if context.shows_progress() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        if context.shows_progress() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar }
    }

    /// How far it will go.
    pub fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Where it is.
    pub fn set(&self, position: u64, message: &str) {
        self.bar.set_position(position);
        if !message.is_empty() && self.bar.message() != message {
            self.bar.set_message(message.to_owned());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
