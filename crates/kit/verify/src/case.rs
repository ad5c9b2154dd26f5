//! A case, and what can come of it.

use std::fmt;
use std::time::Duration;

/// How binding a requirement is, in the words of RFC 2119.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Without it the subject does not conform.
    Must,
    /// Users expect it; there may be a reason not to.
    Should,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
        })
    }
}

/// Something seen, kept to explain a failure: a name and a text, possibly of several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What it is: `stdin`, `links on the host`, …
    pub name: String,
    /// The text.
    pub text: String,
}

/// Why a case did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmet {
    /// The requirement is not met.
    Failed {
        /// One line.
        reason: String,
        /// What was seen.
        evidence: Vec<Evidence>,
    },
    /// It could not be found out, and why.
    Skipped {
        /// One line.
        reason: String,
    },
}

impl Unmet {
    /// A failure without evidence yet.
    pub fn fail(reason: impl Into<String>) -> Self {
        Self::Failed { reason: reason.into(), evidence: Vec::new() }
    }

    /// A case that cannot be judged here.
    pub fn skip(reason: impl Into<String>) -> Self {
        Self::Skipped { reason: reason.into() }
    }

    /// Adds what was seen; a skipped case keeps none.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, text: impl fmt::Display) -> Self {
        if let Self::Failed { evidence, .. } = &mut self {
            evidence.push(Evidence { name: name.into(), text: text.to_string() });
        }
        self
    }
}

/// What goes wrong in the suite's own doings is a failure of the case, and says so.
impl<E: std::error::Error> From<E> for Unmet {
    fn from(error: E) -> Self {
        let mut reason = format!("the suite could not do its part: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            reason.push_str(": ");
            reason.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::fail(reason)
    }
}

/// What the body of a case gives back.
pub type Verdict = Result<(), Unmet>;

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The requirement is met.
    Passed,
    /// It is not, or it could not be found out.
    Not(Unmet),
}

/// One requirement and the way to find out whether it is met.
pub struct Case {
    /// Path of names: subject, group, case: `bridge/DEL/twice`. Unique in a suite.
    pub id: String,
    /// Section of the specification that asks for it.
    pub section: &'static str,
    /// How binding it is.
    pub level: Level,
    /// The requirement in one line.
    pub title: String,
    /// How long it may take; then it has failed.
    pub limit: Duration,
    pub(crate) body: Box<dyn FnOnce() -> Verdict + Send>,
}

impl Case {
    /// A case with a limit of 60 seconds.
    pub fn new(
        id: impl Into<String>,
        section: &'static str,
        level: Level,
        title: impl Into<String>,
        body: impl FnOnce() -> Verdict + Send + 'static,
    ) -> Self {
        let limit = Duration::from_mins(1);
        Self { id: id.into(), section, level, title: title.into(), limit, body: Box::new(body) }
    }

    /// The same with another limit.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The path without its last name.
    pub fn group(&self) -> &str {
        group_of(&self.id)
    }
}

pub(crate) fn group_of(id: &str) -> &str {
    id.rsplit_once('/').map_or("", |(group, _)| group)
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("id", &self.id).field("section", &self.section).finish_non_exhaustive()
    }
}
