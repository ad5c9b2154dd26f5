//! The state file: one append-only, checksummed line for every change, compacted now and then.
//!
//! ```text
//! <check> <durable> {"format":"outrigger-hostpath","version":1}
//! <check> <durable> {"put":{"id":"…","name":"pvc-1",…}}
//! <check> <durable> {"remove":"…"}
//! ```
//!
//! `durable` is how many bytes of the file were known to be on disk when the line was written; `check` is the first half
//! of the SHA-256 of the rest of the line, in hex. Reading stops at the first line that is not whole. If a later line
//! says that this place had been on disk, the file is damaged and opening it fails. Otherwise it is the tail of writes
//! that nobody was told had succeeded, and it is cut off.
//!
//! Why not a file for every volume: two fsyncs for each change instead of two for each group of changes that
//! arrive together, and ten thousand files to read at start.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err::{File, OpenOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::fault::Fault;
use crate::volume::{Volume, VolumeId};

/// Name of the file in the state directory.
pub(crate) const FILE: &str = "volumes.journal";
const NEW_FILE: &str = "volumes.journal.new";
const FORMAT: &str = "outrigger-hostpath";
/// Raised whenever an older driver could not read what this one writes.
const VERSION: u32 = 1;
/// A file of this many superfluous lines is not yet worth rewriting.
const SLACK: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
}

/// A change of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Change {
    /// The volume is like this from now on.
    Put(#[serde(with = "shared")] Arc<Volume>),
    /// The volume is gone.
    Remove(VolumeId),
}

/// A shared record is written like one that is not.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::volume::Volume;

    pub(super) fn serialize<S: Serializer>(volume: &Arc<Volume>, serializer: S) -> Result<S::Ok, S::Error> {
        volume.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Volume>, D::Error> {
        Volume::deserialize(deserializer).map(Arc::new)
    }
}

/// The open state file. Its owner serialises the calls.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    path: PathBuf,
    file: File,
    /// Bytes that hold whole lines.
    length: u64,
    /// Bytes that are known to be on disk.
    durable: u64,
    lines: usize,
    poisoned: bool,
    fault: Fault,
}

impl Journal {
    /// Opens the state file in `directory`, or makes one, and returns the changes in it in their order.
    pub(crate) fn open(directory: &Path, fault: Fault) -> Result<(Self, Vec<Change>), Error> {
        let path = directory.join(FILE);
        // Left over by a compaction that did not come to its end; the old file is still the valid one.
        match fs_err::remove_file(directory.join(NEW_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let content = match fs_err::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (file, length) = write_new(directory, &[], &fault)?;
                sync_names(directory, &fault)?;
                let journal = Self::new(directory, file, length, 1, fault);
                return Ok((journal, Vec::new()));
            }
            Err(error) => return Err(error.into()),
        };
        let replay =
            replay(&content).map_err(|(offset, problem)| Error::Corrupt { path: path.clone(), offset, problem })?;
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let total = content.len() as u64;
        if replay.length < total {
            tracing::warn!(
                path = %path.display(), kept = replay.length, dropped = total - replay.length,
                "the state file ends in a write that was cut short and never confirmed; dropping it"
            );
            file.set_len(replay.length)?;
        }
        // Whatever was written before the last stop is made durable now, so that all of it may be relied on.
        file.sync_all()?;
        let lines = replay.changes.len() + 1;
        Ok((Self::new(directory, file, replay.length, lines, fault), replay.changes))
    }

    fn new(directory: &Path, file: File, length: u64, lines: usize, fault: Fault) -> Self {
        let path = directory.join(FILE);
        Self { directory: directory.to_owned(), path, file, length, durable: length, lines, poisoned: false, fault }
    }

    /// Writes changes (each the JSON of a [`Change`]) after the last one. They survive the end of the process; for the
    /// loss of power see [`Journal::sync`]. On an error none of them is in the file.
    pub(crate) fn append<'a>(&mut self, changes: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
        if self.poisoned {
            return Err(Error::Poisoned { path: self.path.clone() });
        }
        let mut text = String::new();
        let mut lines = 0;
        for change in changes {
            encode(self.durable, change, &mut text);
            lines += 1;
        }
        let written = self.fault.effect("write to the state file").and_then(|()| self.write_at_end(text.as_bytes()));
        if let Err(source) = written {
            // What was written in part must not precede the next line.
            if self.file.set_len(self.length).is_err() {
                self.poisoned = true;
            }
            return Err(Error::Write { path: self.path.clone(), source });
        }
        self.length += text.len() as u64;
        self.lines += lines;
        Ok(())
    }

    fn write_at_end(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(bytes)
    }

    /// Makes everything that was appended survive a loss of power.
    ///
    /// After a failure nobody can know what is on disk, so the journal takes no more changes.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        let synced = self.fault.effect("sync the state file").and_then(|()| self.file.sync_data());
        match synced {
            Ok(()) => {
                self.durable = self.length;
                Ok(())
            }
            Err(source) => {
                self.poisoned = true;
                Err(Error::Unsynced { path: self.path.clone(), source })
            }
        }
    }

    /// Whether the journal takes no more changes.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Whether most lines tell of changes that later ones made void.
    pub(crate) fn is_wasteful(&self, volumes: usize) -> bool {
        self.lines > 2 * volumes + SLACK
    }

    /// Replaces the file by one that holds `volumes` only. On an error the old file is in use as before, or, where the new
    /// one has its name already, the journal takes no more changes.
    pub(crate) fn compact(&mut self, volumes: &[Arc<Volume>]) -> Result<(), Error> {
        let (file, length) = write_new(&self.directory, volumes, &self.fault)?;
        self.file = file;
        self.length = length;
        self.lines = volumes.len() + 1;
        // Nobody knows now which of the two files the name leads to after a loss of power; both say the same so far.
        sync_names(&self.directory, &self.fault).inspect_err(|_| self.poisoned = true)?;
        self.durable = length;
        Ok(())
    }
}

/// Writes a fresh file beside the old one, makes it durable and puts it into its place; see [`sync_names`] for that. After
/// an error the old file still has the name.
fn write_new(directory: &Path, volumes: &[Arc<Volume>], fault: &Fault) -> Result<(File, u64), Error> {
    let mut text = String::new();
    let header = Header { format: FORMAT.to_owned(), version: VERSION };
    encode(0, &json(&header), &mut text);
    for volume in volumes {
        encode(0, &json(&Change::Put(Arc::clone(volume))), &mut text);
    }
    let new = directory.join(NEW_FILE);
    fault.effect("write a new state file")?;
    let mut file = {
        use fs_err::os::unix::fs::OpenOptionsExt;
        OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?
    };
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fault.effect("replace the state file")?;
    fs_err::rename(&new, directory.join(FILE))?;
    Ok((file, text.len() as u64))
}

/// Makes the names in the state directory survive a loss of power.
fn sync_names(directory: &Path, fault: &Fault) -> Result<(), Error> {
    fault.effect("sync the state directory")?;
    Ok(File::open(directory)?.sync_all()?)
}

/// The JSON of a value of this crate, which always has one.
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records have string keys and no fallible parts")
}

fn encode(durable: u64, json: &str, text: &mut String) {
    use std::fmt::Write;
    let rest = format!("{durable} {json}");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} {rest}", check(rest.as_bytes()));
}

fn check(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes)[..16].iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A line that is whole: its `durable` and its JSON.
fn decode(line: &[u8]) -> Option<(u64, &str)> {
    let (sum, rest) = (line.get(..32)?, line.get(33..)?);
    if line[32] != b' ' || check(rest).as_bytes() != sum {
        return None;
    }
    let (durable, json) = str::from_utf8(rest).ok()?.split_once(' ')?;
    Some((durable.parse().ok()?, json))
}

struct Replay {
    changes: Vec<Change>,
    /// Bytes up to which all lines are whole.
    length: u64,
}

/// Reads a file. The error is the offset and what is wrong there.
fn replay(content: &[u8]) -> Result<Replay, (u64, String)> {
    let mut changes = Vec::new();
    let mut damage: Option<u64> = None;
    let mut offset = 0_u64;
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let start = offset;
        offset += line.len() as u64;
        let decoded = line.strip_suffix(b"\n").and_then(decode);
        match (decoded, damage) {
            (None, None) => damage = Some(start),
            (None, Some(_)) => {}
            (Some((durable, _)), Some(damaged)) => {
                if durable > damaged {
                    return Err((damaged, "damaged, although later changes were confirmed".to_owned()));
                }
            }
            (Some((_, json)), None) if start == 0 => check_header(json).map_err(|problem| (start, problem))?,
            (Some((_, json)), None) => {
                let change = serde_json::from_str(json)
                    .map_err(|error| (start, format!("not a change of a volume: {error}")))?;
                changes.push(change);
            }
        }
    }
    // The file got its name with a whole header in it. One without is not ours, or lost it.
    if content.is_empty() || damage == Some(0) {
        return Err((0, "not a state file of this driver".to_owned()));
    }
    Ok(Replay { changes, length: damage.unwrap_or(offset) })
}

fn check_header(json: &str) -> Result<(), String> {
    let header: Header = serde_json::from_str(json).map_err(|error| format!("no header: {error}"))?;
    if header.format != FORMAT {
        return Err(format!("the format is {:?}, not {FORMAT:?}", header.format));
    }
    if header.version != VERSION {
        let Header { version, .. } = header;
        return Err(format!(
            "the version is {version}, and this driver knows {VERSION} only: use the driver that wrote it"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::tests::plain;

    fn put(name: &str) -> Change {
        Change::Put(Arc::new(plain(name)))
    }

    fn open(directory: &Path) -> (Journal, Vec<Change>) {
        Journal::open(directory, Fault::default()).unwrap()
    }

    /// A directory with a journal of these changes, each made durable.
    fn written(changes: &[Change]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        for change in changes {
            journal.append([json(change).as_str()]).unwrap();
            journal.sync().unwrap();
        }
        dir
    }

    #[test]
    fn changes_come_back_in_order() {
        let changes = [put("a"), put("b"), Change::Remove(VolumeId::random())];
        let dir = written(&changes);
        assert_eq!(open(dir.path()).1, changes);
        assert_eq!(open(dir.path()).1, changes, "opening changes nothing");
    }

    #[test]
    fn a_tail_cut_at_any_byte_loses_only_what_was_cut() {
        let changes = [put("a"), put("b")];
        let dir = written(&changes);
        let path = dir.path().join(FILE);
        let whole = fs_err::read(&path).unwrap();
        let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
        for length in ends[0]..=whole.len() {
            fs_err::write(&path, &whole[..length]).unwrap();
            let kept = ends[1..].iter().filter(|end| **end <= length).count();
            let (mut journal, found) = open(dir.path());
            assert_eq!(found, changes[..kept], "cut at {length}");
            journal.append([json(&put("c")).as_str()]).unwrap();
            assert_eq!(open(dir.path()).1.len(), kept + 1, "cut at {length}, then written to");
        }
    }

    #[test]
    fn damage_to_confirmed_changes_is_refused_with_its_place() {
        let dir = written(&[put("a"), put("b"), put("c")]);
        let path = dir.path().join(FILE);
        let whole = fs_err::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let mut damaged = whole.clone();
        damaged[first + 60] ^= 1;
        fs_err::write(&path, &damaged).unwrap();
        let Err(Error::Corrupt { path: named, offset, .. }) = Journal::open(dir.path(), Fault::default()) else {
            panic!("accepted a damaged file");
        };
        assert_eq!((named, offset), (path.clone(), first as u64));
        assert_eq!(fs_err::read(&path).unwrap(), damaged, "the evidence is left alone");
    }

    #[test]
    fn unconfirmed_lines_may_reach_the_disk_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        let first = usize::try_from(journal.length).unwrap();
        journal.append([json(&put("a")).as_str()]).unwrap();
        journal.append([json(&put("b")).as_str()]).unwrap();
        let path = dir.path().join(FILE);
        let mut content = fs_err::read(&path).unwrap();
        content[first + 60] ^= 1;
        fs_err::write(&path, content).unwrap();
        assert_eq!(open(dir.path()).1, []);
    }

    #[test]
    fn foreign_files_are_refused() {
        for content in ["", "hello\n", "{\"volumes\":[]}"] {
            let dir = tempfile::tempdir().unwrap();
            fs_err::write(dir.path().join(FILE), content).unwrap();
            let error = Journal::open(dir.path(), Fault::default()).unwrap_err();
            assert!(matches!(error, Error::Corrupt { offset: 0, .. }), "{content:?}: {error}");
        }
        for header in [r#"{"format":"outrigger-hostpath","version":2}"#, r#"{"format":"other","version":1}"#] {
            let dir = tempfile::tempdir().unwrap();
            let mut text = String::new();
            encode(0, header, &mut text);
            fs_err::write(dir.path().join(FILE), text).unwrap();
            assert!(Journal::open(dir.path(), Fault::default()).is_err(), "{header}");
        }
    }

    #[test]
    fn compaction_keeps_the_volumes() {
        let changes: Vec<Change> = (0..20).map(|n| put(&n.to_string())).collect();
        let dir = written(&changes);
        let (mut journal, _) = open(dir.path());
        let before = journal.length;
        let Change::Put(last) = &changes[19] else { panic!("made above") };
        journal.compact(std::slice::from_ref(last)).unwrap();
        assert!(journal.length < before / 10);
        journal.append([json(&changes[0]).as_str()]).unwrap();
        journal.sync().unwrap();
        assert_eq!(open(dir.path()).1, [changes[19].clone(), changes[0].clone()]);
    }

    #[test]
    fn a_stop_at_any_step_of_a_compaction_loses_nothing() {
        for effects in 0..4 {
            let dir = written(&[put("a"), put("b")]);
            let (mut journal, changes) = Journal::open(dir.path(), Fault::after(effects)).unwrap();
            let volumes = changes.iter().filter_map(|change| match change {
                Change::Put(volume) => Some(Arc::clone(volume)),
                Change::Remove(_) => None,
            });
            let volumes: Vec<_> = volumes.collect();
            let done = journal.compact(&volumes).is_ok();
            assert_eq!(done, effects >= 3);
            // What the journal accepts after a failure is in the file that has the name.
            journal.fault = Fault::default();
            let accepted = journal.append([json(&put("c")).as_str()]).is_ok();
            assert_eq!(accepted, effects != 2, "only the sync of the directory leaves doubts");
            assert_eq!(open(dir.path()).1.len(), 2 + usize::from(accepted), "stopped after {effects}");
            assert!(!dir.path().join(NEW_FILE).exists());
        }
    }
}
