//! What every conformance suite (`outrigger verify …`) shares.
//!
//! A suite makes a list of [`Case`]s, [`run`] runs those that a [`Filter`] lets through, each with a time limit on a
//! thread of its own, and the [`Report`] prints as a table, as JSON or as JUnit XML.
//!
//! ```
//! use outrigger_verify_report::{Case, Filter, Level, RunOptions, Unmet, run};
//!
//! let cases = vec![
//!     Case::new("arithmetic/sum", "section 1", Level::Must, "one and one is two", || {
//!         if 1 + 1 == 2 { Ok(()) } else { Err(Unmet::fail("the sum is wrong")) }
//!     }),
//!     Case::new("arithmetic/moon", "section 2", Level::Should, "the moon is up", || Err(Unmet::skip("it is cloudy"))),
//! ];
//! let report = run("demo", cases, &Filter::default(), RunOptions::default(), |_| {});
//! assert_eq!(report.counts().passed, 1);
//! assert!(!report.failed(false));
//! ```

mod case;
mod filter;
mod report;
mod run;

pub use case::{Case, Evidence, Level, Outcome, Unmet, Verdict};
pub use filter::Filter;
pub use report::{Counts, Format, Record, Report};
pub use run::{RunOptions, run};
