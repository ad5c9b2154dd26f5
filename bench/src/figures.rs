//! Figures and how they are printed.

use std::time::Duration;

/// Times of many equal operations.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that `part` (0 to 1) of the operations stayed below.
    pub(crate) fn quantile(&mut self, part: f64) -> Duration {
        self.0.sort_unstable();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index into what was just counted"
        )]
        let index = ((self.0.len() as f64 - 1.0) * part).round() as usize;
        self.0.get(index).copied().unwrap_or_default()
    }
}

/// Operations a second.
pub(crate) fn rate(count: usize, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
    let count = count as f64;
    count / time.as_secs_f64()
}

/// One line of the table: what, value, unit.
pub(crate) fn line(what: &str, value: impl std::fmt::Display, unit: &str) {
    println!("{what:<64} {value:>12} {unit}");
}

/// Rate, median and 99th percentile of a run.
pub(crate) fn run(what: &str, times: &mut Times, wall: Duration) {
    line(what, format!("{:.0}", rate(times.len(), wall)), "/s");
    line(&format!("{what}, p50"), milliseconds(times.quantile(0.5)), "ms");
    line(&format!("{what}, p99"), milliseconds(times.quantile(0.99)), "ms");
}

pub(crate) fn milliseconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1000.0)
}
