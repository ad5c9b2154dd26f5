//! Opening a directory: the snapshot is loaded and the log replayed onto it.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::frame::{Kind, Record};
use crate::segment::{self, Ending, Header};
use crate::state::State;
use crate::{Error, EventKind, Revision, snapshot};

/// The revision of an empty store.
pub(crate) const EMPTY: Revision = 1;

/// A log file that is complete.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub path: PathBuf,
    /// Newest revision in it or before it.
    pub last: Revision,
    pub bytes: u64,
}

/// What a directory held.
pub(crate) struct Loaded {
    pub state: State,
    /// The log files, oldest first.
    pub sealed: Vec<Sealed>,
    /// Revision and length of the snapshot.
    pub snapshot: Option<(Revision, u64)>,
}

/// A new state for a store with these options.
pub(crate) fn empty(history: usize) -> State {
    let mut state = State::new(0, history);
    state.skip(EMPTY);
    state
}

/// Reads everything in `dir`. A torn end of the newest log file is cut off; anything else that is wrong is refused.
pub(crate) fn load(dir: &Path, history: usize) -> Result<Loaded, Error> {
    let Listing { mut snapshots, mut segments } = list(dir)?;
    let mut state = empty(history);
    let mut loaded = None;
    if let Some(newest) = snapshots.pop() {
        let (revision, bytes, restored) = restore(&snapshot::path(dir, newest), history)?;
        state = restored;
        loaded = Some((revision, bytes));
    }
    let mut sealed: Vec<Sealed> = Vec::new();
    segments.sort_unstable();
    for (index, first) in segments.iter().enumerate() {
        let newest = index + 1 == segments.len();
        let path = segment::path(dir, *first);
        let before = sealed.last().map(|sealed| sealed.last);
        if let Some(done) = replay(&path, *first, before, newest, &mut state)? {
            sealed.push(done);
        }
    }
    for revision in snapshots {
        fs_err::remove_file(snapshot::path(dir, revision)).map_err(Error::io("remove old snapshot"))?;
    }
    Ok(Loaded { state, sealed, snapshot: loaded })
}

/// The state in the snapshot file `path`, its revision and length.
pub(crate) fn restore(path: &Path, history: usize) -> Result<(Revision, u64, State), Error> {
    let mut state = None;
    let mut versions = Vec::new();
    let (revision, bytes) =
        snapshot::read(path, |revision| state = Some(State::new(revision, history)), |version| versions.push(version))?;
    let mut state = state.unwrap_or_else(|| State::new(revision, history));
    for version in versions {
        state.load(version);
    }
    Ok((revision, bytes, state))
}

#[derive(Default)]
struct Listing {
    /// Oldest first.
    snapshots: Vec<Revision>,
    segments: Vec<Revision>,
}

/// Lists the store's files in `dir` and removes unfinished ones.
fn list(dir: &Path) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    for entry in fs_err::read_dir(dir).map_err(Error::io("open store"))? {
        let entry = entry.map_err(Error::io("open store"))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if snapshot::is_temporary(name) {
            fs_err::remove_file(entry.path()).map_err(Error::io("remove unfinished snapshot"))?;
        } else if let Some(revision) = snapshot::revision_of(name) {
            listing.snapshots.push(revision);
        } else if let Some(first) = segment::first_of(name) {
            listing.segments.push(first);
        }
    }
    listing.snapshots.sort_unstable();
    Ok(listing)
}

/// Replays one log file. `before` is the newest revision of the file before it. Returns nothing if the file held no
/// changes and was removed.
fn replay(
    path: &Path,
    name: Revision,
    before: Option<Revision>,
    newest: bool,
    state: &mut State,
) -> Result<Option<Sealed>, Error> {
    let bytes = fs_err::read(path).map_err(Error::io("read log"))?;
    let mut next = 0;
    let base = state.revision();
    let ending = {
        let state = std::cell::RefCell::new(&mut *state);
        let start = |header: Header| {
            if header.first != name {
                return Err(format!("the header says revision {}, the name {name}", header.first));
            }
            match before {
                Some(before) if before != header.previous => {
                    return Err(format!(
                        "a log file is missing: this one follows revision {}, the one before ends at {before}",
                        header.previous
                    ));
                }
                None if header.previous > base => {
                    return Err(format!(
                        "a log file or snapshot is missing: this one follows revision {}, known is {base}",
                        header.previous
                    ));
                }
                _ => {}
            }
            next = header.first;
            state.borrow_mut().skip(header.first - 1);
            Ok(())
        };
        let mut expected = name;
        let ending =
            segment::read(path, &bytes, start, |record| apply(&mut state.borrow_mut(), &record, &mut expected))?;
        next = next.max(expected);
        ending
    };
    let mut length = bytes.len() as u64;
    match ending {
        Ending::Whole => {}
        Ending::Torn(offset, what) if newest => {
            tracing::warn!(file = %path.display(), offset, what, "the end of the log was cut off");
            let file = fs_err::OpenOptions::new().write(true).open(path).map_err(Error::io("cut torn end of log"))?;
            file.set_len(offset).and_then(|()| file.sync_all()).map_err(Error::io("cut torn end of log"))?;
            length = offset;
        }
        Ending::Torn(offset, what) => {
            return Err(Error::Corrupt {
                file: path.into(),
                offset,
                what: format!("{what}, and this is not the newest log file"),
            });
        }
        Ending::Headless if newest => {
            fs_err::remove_file(path).map_err(Error::io("remove empty log file"))?;
            return Ok(None);
        }
        Ending::Headless => {
            return Err(Error::Corrupt { file: path.into(), offset: 0, what: "the header is cut off".to_owned() });
        }
    }
    Ok(Some(Sealed { path: path.into(), last: next - 1, bytes: length }))
}

fn apply(state: &mut State, record: &Record<'_>, expected: &mut Revision) -> Result<(), String> {
    let kind = match record.kind {
        Kind::Put => EventKind::Put,
        Kind::Delete => EventKind::Delete,
        Kind::Compact => {
            if record.number > state.revision() {
                return Err(format!("the history is cut at revision {}, which is in the future", record.number));
            }
            state.compact(record.number);
            return Ok(());
        }
        Kind::Entry | Kind::End => return Err("a record that does not belong here".to_owned()),
    };
    if record.number != *expected {
        return Err(format!("revision {} where {expected} was expected", record.number));
    }
    *expected += 1;
    // The snapshot may be newer than the beginning of the log.
    if record.number > state.revision() {
        let key = state.present(record.key).key;
        state.apply(key, kind, Bytes::copy_from_slice(record.value), record.number);
    }
    Ok(())
}
