//! What came of a run, in three forms.

use std::fmt::Write as _;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::case::{Case, Evidence, Level, Outcome, Unmet, group_of};

/// What came of one case.
#[derive(Debug, Clone)]
pub struct Record {
    /// The case's id.
    pub id: String,
    /// Section of the specification.
    pub section: &'static str,
    /// How binding it is.
    pub level: Level,
    /// The requirement.
    pub title: String,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

impl Record {
    /// `pass`, `FAIL` for a MUST, `fail` for a SHOULD, `skip`.
    pub fn word(&self) -> &'static str {
        match (&self.outcome, self.level) {
            (Outcome::Passed, _) => "pass",
            (Outcome::Not(Unmet::Skipped { .. }), _) => "skip",
            (Outcome::Not(Unmet::Failed { .. }), Level::Must) => "FAIL",
            (Outcome::Not(Unmet::Failed { .. }), Level::Should) => "fail",
        }
    }

    /// Why it did not pass; empty if it did.
    pub fn reason(&self) -> &str {
        match &self.outcome {
            Outcome::Passed => "",
            Outcome::Not(Unmet::Failed { reason, .. } | Unmet::Skipped { reason }) => reason,
        }
    }
}

/// How many cases came to what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requirements met.
    pub passed: usize,
    /// MUST requirements not met.
    pub failed: usize,
    /// SHOULD requirements not met.
    pub advised: usize,
    /// Not found out.
    pub skipped: usize,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Aligned text for people.
    #[default]
    Table,
    /// One JSON object.
    Json,
    /// JUnit XML, for CI systems.
    Junit,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "junit" => Ok(Self::Junit),
            _ => Err(format!("{text:?} is not a form of report: table, json or junit")),
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// Name of the suite and its subject.
    pub suite: String,
    /// The cases in the suite's order.
    pub records: Vec<Record>,
    /// How long all took.
    pub took: Duration,
}

impl Report {
    /// The counts.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for record in &self.records {
            match record.word() {
                "pass" => counts.passed += 1,
                "FAIL" => counts.failed += 1,
                "fail" => counts.advised += 1,
                _ => counts.skipped += 1,
            }
        }
        counts
    }

    /// True if the subject does not conform: a MUST is not met, or, when `strict`, a SHOULD; or nothing ran at all, which
    /// must not be taken for success.
    pub fn failed(&self, strict: bool) -> bool {
        let counts = self.counts();
        counts.failed > 0 || (strict && counts.advised > 0) || self.records.is_empty()
    }

    /// The report in a form.
    pub fn print(&self, format: Format) -> String {
        match format {
            Format::Table => self.table(),
            Format::Json => format!("{:#}\n", self.json()),
            Format::Junit => self.junit(),
        }
    }

    /// The cases of each subject by section of the specification: one line for each, the evidence of failures; the sum.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let width = self.records.iter().map(|record| record.id.len()).max().unwrap_or(0);
        let mut heading = None;
        for record in self.by_section() {
            let place = (subject_of(&record.id), record.section);
            if heading.replace(place) != Some(place) {
                let gap = if text.is_empty() { "" } else { "\n" };
                let of = if place.1.is_empty() { "" } else { ": " };
                let _ = writeln!(text, "{gap}{}{of}{}", place.0, place.1);
            }
            let _ = write!(text, "{}  {:6}  {:width$}  {}", record.word(), record.level, record.id, record.title);
            match &record.outcome {
                Outcome::Passed => text.push('\n'),
                Outcome::Not(Unmet::Skipped { reason }) => {
                    let _ = writeln!(text, " ({reason})");
                }
                Outcome::Not(Unmet::Failed { reason, evidence }) => {
                    let _ = writeln!(text, "\n        {reason}");
                    for Evidence { name, text: seen } in evidence {
                        let mut lines = seen.trim_end().lines();
                        let _ = writeln!(text, "        {name}: {}", lines.next().unwrap_or_default());
                        for line in lines {
                            let _ = writeln!(text, "            {line}");
                        }
                    }
                }
            }
        }
        let Counts { passed, failed, advised, skipped } = self.counts();
        let _ = writeln!(
            text,
            "\n{}: {} cases in {:.1} s: {passed} passed, {failed} failed, {advised} not as they should be, {skipped} skipped",
            self.suite,
            self.records.len(),
            self.took.as_secs_f64(),
        );
        text
    }

    /// The records by subject, in the order of the run, and section, in the order of its number.
    fn by_section(&self) -> Vec<&Record> {
        let mut subjects = Vec::new();
        for record in &self.records {
            let subject = subject_of(&record.id);
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
        let mut records: Vec<_> = self.records.iter().collect();
        records.sort_by_key(|record| {
            let subject = subjects.iter().position(|subject| *subject == subject_of(&record.id));
            (subject, number_of(record.section), record.section)
        });
        records
    }

    /// Everything as one object.
    pub fn json(&self) -> Value {
        let Counts { passed, failed, advised, skipped } = self.counts();
        let cases = self.records.iter().map(|record| {
            let mut case = json!({
                "id": record.id, "section": record.section, "level": record.level.to_string(), "title": record.title,
                "outcome": record.word().to_lowercase(), "seconds": record.took.as_secs_f64(),
            });
            if !record.reason().is_empty() {
                case["reason"] = record.reason().into();
            }
            if let Outcome::Not(Unmet::Failed { evidence, .. }) = &record.outcome {
                case["evidence"] =
                    evidence.iter().map(|seen| json!({ "name": seen.name, "text": seen.text })).collect();
            }
            case
        });
        json!({
            "suite": self.suite, "seconds": self.took.as_secs_f64(), "cases": cases.collect::<Vec<_>>(),
            "counts": { "passed": passed, "failed": failed, "advised": advised, "skipped": skipped },
        })
    }

    /// JUnit XML: a test suite for each group; a SHOULD that is not met is a failure of type SHOULD.
    pub fn junit(&self) -> String {
        let Counts { failed, advised, skipped, .. } = self.counts();
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(
            text,
            "<testsuites name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{skipped}\" time=\"{:.3}\">",
            escape(&self.suite),
            self.records.len(),
            failed + advised,
            self.took.as_secs_f64(),
        );
        let mut groups: Vec<&str> = Vec::new();
        for record in &self.records {
            let group = group_of(&record.id);
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        for group in groups {
            let records: Vec<_> = self.records.iter().filter(|record| group_of(&record.id) == group).collect();
            let count = |wanted: &[&str]| records.iter().filter(|record| wanted.contains(&record.word())).count();
            let _ = writeln!(
                text,
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">",
                escape(group),
                records.len(),
                count(&["FAIL", "fail"]),
                count(&["skip"]),
            );
            for record in records {
                junit_case(&mut text, group, record);
            }
            text.push_str("  </testsuite>\n");
        }
        text.push_str("</testsuites>\n");
        text
    }

    /// The list of cases without running them.
    pub fn list<'a>(cases: impl IntoIterator<Item = &'a Case>, format: Format) -> String {
        let cases: Vec<_> = cases.into_iter().collect();
        if format == Format::Json {
            let list: Vec<_> = cases
                .iter()
                .map(|case| {
                    json!({ "id": case.id, "section": case.section, "level": case.level.to_string(), "title": case.title })
                })
                .collect();
            return format!("{:#}\n", Value::from(list));
        }
        let width = cases.iter().map(|case| case.id.len()).max().unwrap_or(0);
        let mut text = String::new();
        for case in &cases {
            let _ = writeln!(text, "{:6}  {:width$}  {} [{}]", case.level, case.id, case.title, case.section);
        }
        let _ = writeln!(text, "\n{} cases", cases.len());
        text
    }
}

/// The first name of an id.
fn subject_of(id: &str) -> &str {
    id.split('/').next().unwrap_or_default()
}

/// The number that a section begins with, part by part; what has none comes last.
fn number_of(section: &str) -> (bool, Vec<u32>) {
    let number: String = section.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let parts: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
    (parts.is_empty(), parts)
}

fn junit_case(text: &mut String, group: &str, record: &Record) {
    let name = record.id.rsplit('/').next().unwrap_or_default();
    let _ = write!(
        text,
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
        escape(group),
        escape(name),
        record.took.as_secs_f64(),
    );
    match &record.outcome {
        Outcome::Passed => text.push_str("/>\n"),
        Outcome::Not(Unmet::Skipped { reason }) => {
            let _ = writeln!(text, ">\n      <skipped message=\"{}\"/>\n    </testcase>", escape(reason));
        }
        Outcome::Not(Unmet::Failed { reason, evidence }) => {
            let _ = write!(text, ">\n      <failure type=\"{}\" message=\"{}\">", record.level, escape(reason));
            let _ = write!(text, "{} [{}]", escape(&record.title), escape(record.section));
            for Evidence { name, text: seen } in evidence {
                let _ = write!(text, "\n{}: {}", escape(name), escape(seen.trim_end()));
            }
            text.push_str("</failure>\n    </testcase>\n");
        }
    }
}

/// XML text: the five entities, and what XML 1.0 has no way to write is replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\n' | '\t' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let record = |id: &str, section, level, outcome| Record {
            id: id.to_owned(),
            section,
            level,
            title: format!("title of {id}"),
            outcome,
            took: Duration::from_millis(1500),
        };
        Report {
            suite: "demo <x>".into(),
            records: vec![
                record("a/one", "2.1", Level::Must, Outcome::Passed),
                record("a/two", "2.1", Level::Must, Outcome::Not(Unmet::fail("1 < 2").with("stdout", "a\nb\u{1}"))),
                record("b/three", "10 Late", Level::Should, Outcome::Not(Unmet::fail("so so"))),
                record("b/four", "2 Early", Level::Should, Outcome::Not(Unmet::skip("no \"root\""))),
            ],
            took: Duration::from_secs(6),
        }
    }

    #[test]
    fn a_table_for_people_by_section() {
        let expected = "\
a: 2.1
pass  MUST    a/one    title of a/one
FAIL  MUST    a/two    title of a/two
        1 < 2
        stdout: a
            b\u{1}

b: 2 Early
skip  SHOULD  b/four   title of b/four (no \"root\")

b: 10 Late
fail  SHOULD  b/three  title of b/three
        so so

demo <x>: 4 cases in 6.0 s: 1 passed, 1 failed, 1 not as they should be, 1 skipped
";
        assert_eq!(report().table(), expected);
        let mut report = report();
        report.records.push(report.records[0].clone());
        report.records[4].id = "a/unnumbered".into();
        report.records[4].section = "the documentation";
        let order: Vec<_> = report.by_section().iter().map(|record| record.id.as_str()).collect();
        assert_eq!(order, ["a/one", "a/two", "a/unnumbered", "b/four", "b/three"]);
    }

    #[test]
    fn junit_for_ci_systems() {
        let xml = report().junit();
        assert!(
            xml.contains(
                "<testsuites name=\"demo &lt;x&gt;\" tests=\"4\" failures=\"2\" skipped=\"1\" time=\"6.000\">"
            )
        );
        assert!(xml.contains("<testsuite name=\"a\" tests=\"2\" failures=\"1\" skipped=\"0\">"));
        assert!(xml.contains("<testcase classname=\"a\" name=\"one\" time=\"1.500\"/>"));
        let failure =
            "<failure type=\"MUST\" message=\"1 &lt; 2\">title of a/two [2.1]\nstdout: a\nb\u{fffd}</failure>";
        assert!(xml.contains(failure), "{xml}");
        assert!(xml.contains("<skipped message=\"no &quot;root&quot;\"/>"));
        assert_eq!(xml.matches("<testcase").count(), 4);
        assert_eq!(xml.matches("</testcase>").count(), 3);
    }

    #[test]
    fn json_for_programs_and_the_exit_code() {
        let json = report().json();
        assert_eq!(json["counts"], json!({ "passed": 1, "failed": 1, "advised": 1, "skipped": 1 }));
        assert_eq!(json["cases"][1]["outcome"], "fail");
        assert_eq!(json["cases"][1]["evidence"][0]["name"], "stdout");
        let mut report = report();
        assert!(report.failed(false));
        report.records.remove(1);
        assert!(!report.failed(false));
        assert!(report.failed(true));
        report.records.clear();
        assert!(report.failed(false), "a run of no cases is no success");
    }
}
