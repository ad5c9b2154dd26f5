//! The number above which no revision was ever used, kept in a small file of its own.
//!
//! Two slots are written in turn, each with a checksum and a sequence number, so that one of them is whole
//! whatever happens. A slot also says whether the store was closed properly, in which case its number is exact.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::crc::crc32c;
use crate::frame::{number32, number64};
use crate::{Error, Revision};

const NAME: &str = "ceiling";
const MAGIC: u32 = 0x6c69_6563;
const FORMAT: u32 = 1;
const SLOT: usize = 32;
/// Distance of the slots: more than any sector, so that one torn write cannot hit both.
const STRIDE: usize = 4096;

/// What a slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// No revision above this one was used.
    pub ceiling: Revision,
    /// The store was closed with exactly this revision as its newest.
    pub clean: bool,
}

/// The open file.
pub(crate) struct Ceiling {
    file: fs_err::File,
    sequence: u64,
    mark: Mark,
}

impl Ceiling {
    /// Opens or creates the file in `dir`. The second value is what it said, if it said anything.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Option<Mark>), Error> {
        let path = dir.join(NAME);
        let bytes = match fs_err::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io("open store")(error)),
        };
        let newest =
            [0, STRIDE].into_iter().filter_map(|at| decode(bytes.get(at..at + SLOT)?)).max_by_key(|slot| slot.0);
        if let Some((_, found, _)) = newest
            && found != FORMAT
        {
            return Err(Error::Format { file: path, found, supported: FORMAT });
        }
        // The slot at the beginning is written second, when the other one was whole.
        if newest.is_none() && bytes.iter().take(SLOT).any(|byte| *byte != 0) {
            return Err(damaged(path));
        }
        let file = fs_err::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open store"))?;
        let mark = newest.map(|(_, _, mark)| mark);
        let this = Self {
            file,
            sequence: newest.map_or(0, |(sequence, ..)| sequence),
            mark: mark.unwrap_or(Mark { ceiling: 0, clean: false }),
        };
        Ok((this, mark))
    }

    /// The number that holds now.
    pub(crate) fn value(&self) -> Revision {
        self.mark.ceiling
    }

    /// Writes and syncs a new mark. Costs one sync.
    pub(crate) fn set(&mut self, mark: Mark) -> Result<(), Error> {
        let sequence = self.sequence + 1;
        let at = if sequence.is_multiple_of(2) { 0 } else { STRIDE as u64 };
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.write_all(&encode(sequence, mark)))
            .and_then(|()| self.file.sync_data())
            .map_err(Error::io("reserve revisions"))?;
        self.sequence = sequence;
        self.mark = mark;
        Ok(())
    }
}

fn damaged(file: PathBuf) -> Error {
    Error::Corrupt { file, offset: 0, what: "neither of its two entries is whole".to_owned() }
}

fn encode(sequence: u64, mark: Mark) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..4].copy_from_slice(&MAGIC.to_le_bytes());
    slot[4..8].copy_from_slice(&FORMAT.to_le_bytes());
    slot[8..16].copy_from_slice(&sequence.to_le_bytes());
    slot[16..24].copy_from_slice(&mark.ceiling.to_le_bytes());
    slot[24] = u8::from(mark.clean);
    let crc = crc32c(0, &slot[..28]);
    slot[28..].copy_from_slice(&crc.to_le_bytes());
    slot
}

/// Sequence number, format version and mark of a whole slot.
fn decode(slot: &[u8]) -> Option<(u64, u32, Mark)> {
    let whole = number32(&slot[..4]) == MAGIC && number32(&slot[28..32]) == crc32c(0, &slot[..28]);
    let mark = Mark { ceiling: number64(&slot[16..24]), clean: slot[24] == 1 };
    whole.then(|| (number64(&slot[8..16]), number32(&slot[4..8]), mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_torn_slot() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ceiling, before) = Ceiling::open(dir.path()).unwrap();
        assert_eq!(before, None);
        let old = Mark { ceiling: 10, clean: false };
        ceiling.set(old).unwrap();
        ceiling.set(Mark { ceiling: 20, clean: true }).unwrap();
        let path = dir.path().join(NAME);
        let whole = fs_err::read(&path).unwrap();
        assert_eq!(Ceiling::open(dir.path()).unwrap().1, Some(Mark { ceiling: 20, clean: true }));
        for byte in 0..SLOT {
            let mut torn = whole.clone();
            torn[byte] ^= 0x55;
            fs_err::write(&path, torn).unwrap();
            assert_eq!(Ceiling::open(dir.path()).unwrap().1, Some(old), "byte {byte}");
        }
    }

    #[test]
    fn refuses_two_bad_slots_and_foreign_formats() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        fs_err::write(&path, vec![0x41; STRIDE + SLOT]).unwrap();
        assert!(matches!(Ceiling::open(dir.path()), Err(Error::Corrupt { .. })));
        let mut slot = encode(1, Mark { ceiling: 1, clean: true });
        slot[4] = 9;
        let crc = crc32c(0, &slot[..28]);
        slot[28..].copy_from_slice(&crc.to_le_bytes());
        fs_err::write(&path, slot).unwrap();
        assert!(matches!(Ceiling::open(dir.path()), Err(Error::Format { found: 9, .. })));
    }
}
