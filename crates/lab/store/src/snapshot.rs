//! Snapshot files: all keys as of one revision.

use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::crc::crc32c;
use crate::frame::{self, Decoded, Kind, Record, number32, number64};
use crate::segment::sync_dir;
use crate::{Error, Revision, Version};

const MAGIC: &[u8; 8] = b"orlabsnp";
const FORMAT: u32 = 1;
const HEADER: usize = 24;
const PREFIX: &str = "snapshot-";
const TEMPORARY: &str = ".tmp";

/// The name of the snapshot of `revision`.
pub(crate) fn path(dir: &Path, revision: Revision) -> PathBuf {
    dir.join(format!("{PREFIX}{revision:020}"))
}

/// The revision of the snapshot with this file name, if it is one.
pub(crate) fn revision_of(name: &str) -> Option<Revision> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// Whether a file with this name is an unfinished snapshot.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.ends_with(TEMPORARY)
}

/// Writes a snapshot of `revision` to `target`, which appears whole or not at all. `fill` gives the versions in
/// groups until it gives an empty one. Returns the file's length in bytes.
pub(crate) fn write(
    target: &Path,
    revision: Revision,
    mut fill: impl FnMut() -> Result<Vec<Version>, Error>,
) -> Result<u64, Error> {
    let failed = || Error::io("write snapshot");
    let mut name = target.as_os_str().to_owned();
    name.push(TEMPORARY);
    let temporary = PathBuf::from(name);
    let undo = Undo(&temporary);
    let mut out = BufWriter::with_capacity(1 << 20, fs_err::File::create(&temporary).map_err(failed())?);
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[12..20].copy_from_slice(&revision.to_le_bytes());
    let crc = crc32c(0, &header[..20]);
    header[20..].copy_from_slice(&crc.to_le_bytes());
    out.write_all(&header).map_err(failed())?;
    let mut length = HEADER as u64;
    let mut count = 0;
    let mut buffer = Vec::new();
    let mut put = |record: Record<'_>| {
        buffer.clear();
        record.encode(&mut buffer);
        length += buffer.len() as u64;
        out.write_all(&buffer).map_err(failed())
    };
    loop {
        let versions = fill()?;
        if versions.is_empty() {
            break;
        }
        for Version { key, value, created, modified } in &versions {
            put(Record { kind: Kind::Entry, number: *modified, second: *created, key, value })?;
            count += 1;
        }
    }
    put(Record { kind: Kind::End, number: count, second: 0, key: "", value: &[] })?;
    let file = out.into_inner().map_err(|error| failed()(error.into_error()))?;
    file.sync_all().map_err(failed())?;
    drop(file);
    fs_err::rename(&temporary, target).map_err(failed())?;
    std::mem::forget(undo);
    sync_dir(target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    Ok(length)
}

/// Removes the unfinished file if the snapshot is given up.
struct Undo<'a>(&'a Path);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs_err::remove_file(self.0) {
            tracing::warn!(%error, "unfinished snapshot stays behind");
        }
    }
}

/// Reads the snapshot at `file` and gives each version to `each`. Returns its revision and length.
pub(crate) fn read(
    file: &Path,
    start: impl FnOnce(Revision),
    mut each: impl FnMut(Version),
) -> Result<(Revision, u64), Error> {
    let mut input = BufReader::with_capacity(1 << 20, fs_err::File::open(file).map_err(Error::io("read snapshot"))?);
    let mut offset = 0u64;
    let corrupt = |offset: u64, what: &str| Error::Corrupt { file: file.into(), offset, what: what.to_owned() };
    let mut fill = |buffer: &mut [u8], offset: u64| {
        input.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => corrupt(offset, "the snapshot is cut off"),
            _ => Error::io("read snapshot")(error),
        })
    };
    let mut header = [0; HEADER];
    fill(&mut header, offset)?;
    if &header[..8] != MAGIC || number32(&header[20..]) != crc32c(0, &header[..20]) {
        return Err(corrupt(0, "this is not the header of a snapshot"));
    }
    let found = number32(&header[8..12]);
    if found != FORMAT {
        return Err(Error::Format { file: file.into(), found, supported: FORMAT });
    }
    let revision = number64(&header[12..20]);
    start(revision);
    offset += HEADER as u64;
    let mut count = 0;
    let mut buffer = Vec::new();
    loop {
        let mut head = [0; frame::HEAD];
        fill(&mut head, offset)?;
        let length = frame::length(head).ok_or_else(|| corrupt(offset, "no record begins here"))?;
        buffer.clear();
        buffer.extend_from_slice(&head);
        buffer.resize(length, 0);
        fill(&mut buffer[frame::HEAD..], offset)?;
        let record = match frame::decode(&buffer) {
            Decoded::Record(record, _) => record,
            Decoded::Bad(what) => return Err(corrupt(offset, what)),
            Decoded::End => return Err(corrupt(offset, "the snapshot is cut off")),
        };
        match record.kind {
            Kind::Entry => each(Version {
                key: record.key.into(),
                value: record.value.to_vec().into(),
                created: record.second,
                modified: record.number,
            }),
            Kind::End if record.number == count => return Ok((revision, offset + length as u64)),
            _ => return Err(corrupt(offset, "a record that does not belong here")),
        }
        count += 1;
        offset += length as u64;
    }
}
