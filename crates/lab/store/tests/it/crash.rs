//! kill -9 while writing: what was acknowledged is there, and no revision is used twice.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use outrigger_lab_store::{Durability, EventKind, Expect, Options, Revision, Store};

use crate::value;

const DIR: &str = "OUTRIGGER_STORE_TEST_DIR";
const POWER: &str = "OUTRIGGER_STORE_TEST_POWER";

fn options(dir: &Path, power: bool) -> Options {
    let durability = if power { Durability::Power } else { Durability::Process };
    // Small files, so that kills also hit rotations and snapshots.
    Options { durability, history: 50, segment: 4096, ..Options::directory(dir) }
}

/// Not a test by itself: the process that is killed.
#[test]
#[ignore = "started by the test that kills it"]
fn writer_to_be_killed() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let power = std::env::var_os(POWER).is_some();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = Store::open(options(Path::new(&dir), power)).unwrap();
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nopen {}", store.revision()).unwrap();
    for count in 0u64.. {
        let key = format!("/r/things/{}", count * 7 % 40);
        let done = if count % 5 == 4 && store.get(&key).is_some() {
            let gone = store.delete(&key, Expect::Any, |revision| value(format!("gone {revision}"))).unwrap();
            (gone.modified, "delete")
        } else {
            let text = "x".repeat(usize::try_from(count % 300).unwrap());
            let made = store.write(&key, Expect::Any, |revision| value(format!("{revision} {text}"))).unwrap();
            (made.modified, "write")
        };
        if power {
            runtime.block_on(store.durable(done.0)).unwrap();
        }
        writeln!(out, "{} {} {key}", done.1, done.0).unwrap();
    }
}

/// Keys by the last acknowledged change, and the newest revision that was seen.
#[derive(Default)]
struct Acknowledged {
    keys: BTreeMap<String, (Revision, bool)>,
    newest: Revision,
    /// Since the last check, for each run but the first: the newest revision that was seen before it, and the one at which
    /// it opened. Between them is the change that the run before could not tell any more.
    gaps: Vec<(Revision, Revision)>,
}

impl Acknowledged {
    /// Whether a change may have been made by a process that was killed before it could tell.
    fn untold(&self, revision: Revision) -> bool {
        revision > self.newest || self.gaps.iter().any(|(seen, open)| (seen + 1..=*open).contains(&revision))
    }
}

/// Runs the writer on `dir`, kills it after `lines` acknowledgements and takes note of what it said.
fn run_and_kill(dir: &Path, power: bool, lines: usize, seen: &mut Acknowledged) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::writer_to_be_killed", "--ignored", "--nocapture"]).env(DIR, dir);
    if power {
        command.env(POWER, "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut note = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, revision, ..] = words[..] else {
            return false;
        };
        let Ok(revision) = revision.parse::<Revision>() else {
            return false;
        };
        match kind {
            "open" => {
                assert!(revision >= seen.newest, "opened at {revision} after {}", seen.newest);
                seen.gaps.push((seen.newest, revision));
            }
            "write" | "delete" if words.len() == 3 => {
                assert!(revision > seen.newest, "revision {revision} after {}", seen.newest);
                seen.keys.insert(words[2].to_owned(), (revision, kind == "write"));
            }
            _ => return false,
        }
        seen.newest = revision;
        true
    };
    let mut count = 0;
    while count < lines {
        let line = output.next().expect("the writer goes on until it is killed").unwrap();
        count += usize::from(note(&line));
    }
    child.kill().unwrap();
    // What was in the pipe was acknowledged as well; the last line may be half.
    let mut rest: Vec<String> = output.map_while(Result::ok).collect();
    rest.pop();
    for line in rest {
        note(&line);
    }
    child.wait().unwrap();
}

fn check(dir: &Path, power: bool, seen: &mut Acknowledged) {
    let store = Store::open(options(dir, power)).unwrap();
    // Properly closed stores go on where they were, killed ones skip.
    assert!(store.revision() >= seen.newest);
    for (key, (revision, exists)) in &seen.keys {
        match store.get(key) {
            Some(version) if version.modified == *revision => assert!(exists, "{key}"),
            // The killed process may have made one more change than it could tell.
            Some(version) => {
                assert!(
                    version.modified > *revision && seen.untold(version.modified),
                    "{key}: {} for {revision}",
                    version.modified
                );
            }
            None if *exists => {
                let mut watch = store.watch(key, (*revision).max(store.compacted())).unwrap();
                let since = crate::drain(&mut watch);
                let deleted = since
                    .iter()
                    .any(|event| *event.key == **key && event.kind == EventKind::Delete && seen.untold(event.revision));
                assert!(deleted, "{key} of revision {revision} is gone");
            }
            None => {}
        }
    }
    // A watcher resumes where it was.
    assert!(store.watch("", seen.newest).is_ok());
    let unsaid = store.range("", None, 0, None).unwrap().versions.iter().map(|version| version.modified).max();
    seen.newest = store.revision().max(unsaid.unwrap_or(0));
    seen.gaps.clear();
    // From now on the present is what counts; deletions that could not be told included.
    seen.keys = (0..40)
        .map(|n| format!("/r/things/{n}"))
        .filter_map(|key| store.get(&key).map(|version| (key, (version.modified, true))))
        .collect();
}

fn kill_often(power: bool, rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Acknowledged::default();
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for round in 0..rounds {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let lines = usize::try_from(random % if power { 150 } else { 1500 }).unwrap();
        run_and_kill(dir.path(), power, lines + 1, &mut seen);
        if round % 2 == 1 {
            check(dir.path(), power, &mut seen);
        }
    }
    check(dir.path(), power, &mut seen);
}

#[test]
fn killed_process_loses_nothing() {
    kill_often(false, 30);
}

#[test]
fn killed_process_loses_nothing_with_group_commit() {
    kill_often(true, 10);
}
