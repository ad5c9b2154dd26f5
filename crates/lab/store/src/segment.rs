//! Log files. Each is named by the first revision that it may hold and says which revision came before it.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::crc::crc32c;
use crate::frame::{self, Decoded, Record, number32, number64};
use crate::{Error, Revision};

const MAGIC: &[u8; 8] = b"orlablog";
const FORMAT: u32 = 1;
/// Length of the header in bytes.
pub(crate) const HEADER: usize = 32;
const PREFIX: &str = "log-";

/// What the header of a log file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Newest revision before this file.
    pub previous: Revision,
    /// Revision of the first change in this file; the others count up from it. Numbers between the two were
    /// skipped.
    pub first: Revision,
}

impl Header {
    fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.previous.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32c(0, &bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// The name of the log file that begins with `first`.
pub(crate) fn path(dir: &Path, first: Revision) -> PathBuf {
    dir.join(format!("{PREFIX}{first:020}"))
}

/// The log file in `dir` with this file name, if it is one.
pub(crate) fn first_of(name: &str) -> Option<Revision> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// The log file that is being written.
pub(crate) struct Segment {
    pub file: Arc<fs_err::File>,
    pub path: PathBuf,
    pub length: u64,
}

impl Segment {
    /// Creates the file and syncs the directory, so that the file is found after a loss of power.
    pub(crate) fn create(dir: &Path, header: Header) -> Result<Self, Error> {
        let path = path(dir, header.first);
        let mut file = fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io("create log file"))?;
        let written = file.write_all(&header.encode()).map_err(Error::io("create log file"));
        if let Err(error) = written.and_then(|()| sync_dir(dir)) {
            let _ = fs_err::remove_file(&path);
            return Err(error);
        }
        Ok(Self { file: Arc::new(file), path, length: HEADER as u64 })
    }

    /// Appends `bytes` with one write. If that fails, the file is as before, or the second value is true: then its
    /// end is in doubt and nothing may be appended any more.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), (Error, bool)> {
        let mut file = &*self.file;
        if let Err(error) = file.write_all(bytes) {
            let undone = self.file.set_len(self.length).and_then(|()| (&*self.file).seek(SeekFrom::Start(self.length)));
            return Err((Error::io("append to log")(error), undone.is_err()));
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Makes creations, renames and removals in `dir` survive a loss of power.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    fs_err::File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync directory"))
}

/// How a log file ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a whole record, or with the header.
    Whole,
    /// Within something that is not a whole record; it begins at this offset.
    Torn(u64, &'static str),
    /// Before the end of the header.
    Headless,
}

/// Reads a log file's bytes: first the header is given to `start`, then each record to `each`. Both may refuse by
/// naming what is wrong. `file` is for messages.
pub(crate) fn read(
    file: &Path,
    bytes: &[u8],
    start: impl FnOnce(Header) -> Result<(), String>,
    mut each: impl FnMut(Record<'_>) -> Result<(), String>,
) -> Result<Ending, Error> {
    let corrupt = |offset: usize, what: String| Error::Corrupt { file: file.into(), offset: offset as u64, what };
    let Some(header) = bytes.get(..HEADER) else {
        return Ok(Ending::Headless);
    };
    if number32(&header[28..32]) != crc32c(0, &header[..28]) || &header[..8] != MAGIC {
        let empty = resume(&bytes[HEADER..]).is_none();
        return if empty { Ok(Ending::Headless) } else { Err(corrupt(0, "bad header".to_owned())) };
    }
    let found = number32(&header[8..12]);
    if found != FORMAT {
        return Err(Error::Format { file: file.into(), found, supported: FORMAT });
    }
    let header = Header { previous: number64(&header[12..20]), first: number64(&header[20..28]) };
    start(header).map_err(|what| corrupt(12, what))?;
    let mut offset = HEADER;
    loop {
        match frame::decode(&bytes[offset..]) {
            Decoded::End => return Ok(Ending::Whole),
            Decoded::Record(record, length) => {
                each(record).map_err(|what| corrupt(offset, what))?;
                offset += length;
            }
            Decoded::Bad(what) => {
                return match resume(&bytes[offset + 1..]) {
                    Some(behind) => {
                        let next = offset + 1 + behind;
                        Err(corrupt(offset, format!("{what}, but whole records follow at byte {next}")))
                    }
                    None => Ok(Ending::Torn(offset as u64, what)),
                };
            }
        }
    }
}

/// Where the first whole record in `bytes` begins.
fn resume(bytes: &[u8]) -> Option<usize> {
    let marks = bytes.windows(frame::MARK.len()).enumerate().filter(|(_, window)| *window == frame::MARK);
    marks.map(|(at, _)| at).find(|at| matches!(frame::decode(&bytes[*at..]), Decoded::Record(..)))
}
