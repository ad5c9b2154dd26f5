//! Running cases: each on a thread of its own, with a time limit, several at a time.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::case::{Case, Outcome, Unmet, Verdict};
use crate::filter::Filter;
use crate::report::{Record, Report};

/// How cases are run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// How many at a time; at least one.
    pub jobs: usize,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { jobs: std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
    }
}

/// Runs the cases that the filter lets through, and calls `done` after each, in the order in which they end.
///
/// The thread of a case that does not end in time is left behind: bodies must bound what they wait for.
pub fn run(
    suite: &str,
    cases: Vec<Case>,
    filter: &Filter,
    options: RunOptions,
    mut done: impl FnMut(&Record),
) -> Report {
    let started = Instant::now();
    let queue: Mutex<VecDeque<(usize, Case)>> =
        Mutex::new(cases.into_iter().filter(|case| filter.lets_through(&case.id)).enumerate().collect());
    let mut records = Vec::new();
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..options.jobs.max(1) {
            let (queue, sender): (_, Sender<(usize, Record)>) = (&queue, sender.clone());
            scope.spawn(move || {
                while let Some((index, case)) = next(queue) {
                    if sender.send((index, judge(case))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (index, record) in receiver {
            done(&record);
            records.push((index, record));
        }
    });
    records.sort_by_key(|(index, _)| *index);
    let records = records.into_iter().map(|(_, record)| record).collect();
    Report { suite: suite.to_owned(), records, took: started.elapsed() }
}

fn next(queue: &Mutex<VecDeque<(usize, Case)>>) -> Option<(usize, Case)> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn judge(case: Case) -> Record {
    let Case { id, section, level, title, limit, body } = case;
    let started = Instant::now();
    let outcome = match bounded(&id, limit, body) {
        Ok(()) => Outcome::Passed,
        Err(unmet) => Outcome::Not(unmet),
    };
    Record { id, section, level, title, outcome, took: started.elapsed() }
}

fn bounded(id: &str, limit: Duration, body: Box<dyn FnOnce() -> Verdict + Send>) -> Verdict {
    let (sender, receiver) = channel();
    let thread = std::thread::Builder::new().name(id.to_owned()).spawn(move || {
        let _ = sender.send(body());
    })?;
    match receiver.recv_timeout(limit) {
        Ok(verdict) => {
            let _ = thread.join();
            verdict
        }
        Err(RecvTimeoutError::Timeout) => Err(Unmet::fail(format!("not done after {limit:?}"))),
        Err(RecvTimeoutError::Disconnected) => {
            let panic = thread.join().err();
            let text = panic.as_ref().and_then(|panic| {
                panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())
            });
            Err(Unmet::fail(format!("the case itself panicked: {}", text.unwrap_or("no text"))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Level;

    fn case(id: &str, body: impl FnOnce() -> Verdict + Send + 'static) -> Case {
        Case::new(id, "1", Level::Must, "title", body)
    }

    #[test]
    fn every_outcome_in_the_order_of_the_list() {
        let (hold, held) = channel::<()>();
        let cases = vec![
            case("a/stuck", move || held.recv().map_err(|_| Unmet::fail("let go"))).limit(Duration::from_millis(50)),
            case("a/passes", || Ok(())),
            case("a/skipped", || Err(Unmet::skip("no kernel"))),
            case("a/panics", || panic!("oh {}", "no")),
            case("b/not-wanted", || Ok(())),
            case("a/io", || Ok(std::fs::metadata("/none/such").map(drop)?)),
        ];
        let mut seen = 0;
        let report = run("s", cases, &Filter::new(["a"]), RunOptions { jobs: 2 }, |_| seen += 1);
        drop(hold);
        assert_eq!(seen, 5);
        let outcomes: Vec<_> = report.records.iter().map(|record| (record.id.as_str(), &record.outcome)).collect();
        let fail = |reason: &str| Outcome::Not(Unmet::fail(reason));
        assert_eq!(outcomes[0], ("a/stuck", &fail("not done after 50ms")));
        assert_eq!(outcomes[1], ("a/passes", &Outcome::Passed));
        assert_eq!(outcomes[2], ("a/skipped", &Outcome::Not(Unmet::skip("no kernel"))));
        assert_eq!(outcomes[3], ("a/panics", &fail("the case itself panicked: oh no")));
        let text = "the suite could not do its part: No such file or directory (os error 2)";
        assert_eq!(outcomes[4], ("a/io", &fail(text)));
        assert!(report.failed(false));
    }
}
