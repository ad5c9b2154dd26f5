//! Markdown tables.

use std::time::Duration;

use crate::figures::Times;

/// A table that is printed when it is complete.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, head: Vec<String>) -> Self {
        Self { title: title.into(), head, rows: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// A line under the table; each text once.
    pub(crate) fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    pub(crate) fn print(&self) {
        println!("### {}\n", self.title);
        println!("| {} |", self.head.join(" | "));
        println!("|{}", "---|".repeat(self.head.len()));
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
        println!();
        for note in &self.notes {
            println!("- {note}");
        }
        if !self.notes.is_empty() {
            println!();
        }
    }
}

/// What a target needed for many equal operations.
#[derive(Debug, Default)]
pub(crate) struct Series {
    wall: Times,
    cpu: Duration,
    /// Operations that the plugin refused, and one of its errors.
    pub(crate) failed: usize,
    pub(crate) error: Option<String>,
}

impl Series {
    pub(crate) fn push(&mut self, sample: &super::driver::Sample) {
        self.wall.push(sample.wall);
        self.cpu += sample.cpu;
        if let Some(error) = &sample.error {
            self.failed += 1;
            self.error.get_or_insert_with(|| error.clone());
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.wall.extend(other.wall);
        self.cpu += other.cpu;
        self.failed += other.failed;
        self.error = self.error.take().or(other.error);
    }

    pub(crate) fn count(&self) -> usize {
        self.wall.len()
    }

    /// Mean CPU time of one operation.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let count = u32::try_from(self.wall.len()).ok()?;
        self.cpu.checked_div(count)
    }

    pub(crate) fn quantile(&mut self, part: f64) -> Option<Duration> {
        (self.wall.len() > 0).then(|| self.wall.quantile(part))
    }

    /// `CPU / p50 / p99`, with a mark if operations failed.
    pub(crate) fn cell(&mut self) -> String {
        let (Some(cpu), Some(p50), Some(p99)) = (self.cpu(), self.quantile(0.5), self.quantile(0.99)) else {
            return "–".into();
        };
        let mark = if self.failed > 0 { " (fails)" } else { "" };
        format!("{} / {} / {}{mark}", ms(cpu), ms(p50), ms(p99))
    }
}

/// Milliseconds with as many digits as say something.
pub(crate) fn ms(time: Duration) -> String {
    let value = time.as_secs_f64() * 1e3;
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

/// How many times as much the peer needs as we do.
pub(crate) fn ratio(ours: Option<f64>, peer: Option<f64>) -> String {
    match (ours, peer) {
        (Some(ours), Some(peer)) if ours > 0.0 => format!("**{:.1}×**", peer / ours),
        _ => "–".into(),
    }
}

/// [`ratio`] of two times.
pub(crate) fn time_ratio(ours: Option<Duration>, peer: Option<Duration>) -> String {
    ratio(ours.map(|time| time.as_secs_f64()), peer.map(|time| time.as_secs_f64()))
}
