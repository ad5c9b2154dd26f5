//! The mount table of a process (`/proc/<pid>/mountinfo`), described in proc(5).
//!
//! [`parse`] is pure; [`read`] feeds it the caller's own table.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Unique while the mount exists; may be reused afterwards.
    pub id: u64,
    /// Id of the mount that this one lies on.
    pub parent: u64,
    /// Major and minor number of the device of the file system.
    pub device: (u32, u32),
    /// The directory (or file) of the file system that is visible here. Differs from `/` for bind mounts.
    pub root: PathBuf,
    /// Where it is mounted, seen from the root directory of the process.
    pub target: PathBuf,
    /// Options of this mount, for instance `ro`, `nosuid`, `relatime`.
    pub options: Vec<String>,
    /// Propagation and other tags, for instance `shared:2`.
    pub tags: Vec<String>,
    /// File system type, `type.subtype` where there is a subtype.
    pub filesystem: String,
    /// What is mounted in the file system's own terms: a device, or any word.
    pub source: PathBuf,
    /// Options of the file system as a whole, shared by all its mounts.
    pub filesystem_options: Vec<String>,
}

impl Mount {
    /// Whether writing is refused, by this mount or by the file system as a whole.
    pub fn is_read_only(&self) -> bool {
        self.options.iter().chain(&self.filesystem_options).any(|option| option == "ro")
    }
}

/// Parses a mount table.
///
/// Unknown optional fields are kept in [`Mount::tags`]; a line without the separator or with a number that is none is an
/// error naming the line.
pub fn parse(table: &[u8]) -> Result<Vec<Mount>, Error> {
    table
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| parse_line(line).map_err(|reason| Error::MountTable { line: index + 1, reason }))
        .collect()
}

/// The mount table of this process.
pub fn read() -> Result<Vec<Mount>, Error> {
    let path = Path::new("/proc/self/mountinfo");
    parse(&crate::filesystem::read(path).map_err(Error::on_file("read", path))?)
}

fn parse_line(line: &[u8]) -> Result<Mount, &'static str> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next(), "the mount id is no number")?;
    let parent = number(fields.next(), "the parent id is no number")?;
    let device = fields.next().ok_or("the device is missing")?;
    let colon = device.iter().position(|byte| *byte == b':').ok_or("the device is not major:minor")?;
    let major = number(Some(&device[..colon]), "the major number is no number")?;
    let minor = number(Some(&device[colon + 1..]), "the minor number is no number")?;
    let root = path(fields.next().ok_or("the root is missing")?);
    let target = path(fields.next().ok_or("the mount point is missing")?);
    let options = list(fields.next().ok_or("the mount options are missing")?);
    let mut tags = Vec::new();
    loop {
        match fields.next().ok_or("the separator is missing")? {
            b"-" => break,
            tag => tags.push(text(tag)),
        }
    }
    let filesystem = text(fields.next().ok_or("the file system type is missing")?);
    let source = path(fields.next().ok_or("the source is missing")?);
    let filesystem_options = list(fields.next().ok_or("the file system options are missing")?);
    Ok(Mount {
        id,
        parent,
        device: (major, minor),
        root,
        target,
        options,
        tags,
        filesystem,
        source,
        filesystem_options,
    })
}

fn number<T: std::str::FromStr>(field: Option<&[u8]>, reason: &'static str) -> Result<T, &'static str> {
    field.and_then(|bytes| str::from_utf8(bytes).ok()).and_then(|digits| digits.parse().ok()).ok_or(reason)
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn list(field: &[u8]) -> Vec<String> {
    field.split(|byte| *byte == b',').filter(|item| !item.is_empty()).map(text).collect()
}

/// The kernel writes space, tab, newline, backslash and `#` as `\ooo`. Anything else after a backslash stands for itself.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if let (b'\\', Some(octal)) = (byte, tail.get(..3).and_then(octal)) {
            plain.push(octal);
            rest = &tail[3..];
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 28 0:21 / /proc rw,relatime - proc proc rw\n\
36 28 98:0 /mnt1 /mnt2 ro,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n\
61 28 7:3 / /var/lib/with\\040space\\011tab\\134slash rw shared:5 - fuse.sshfs a\\043b rw,user_id=0\n";

    #[test]
    fn every_field_is_found() {
        let mounts = parse(TABLE).unwrap();
        assert_eq!(mounts.len(), 3);
        let second = &mounts[1];
        assert_eq!((second.id, second.parent, second.device), (36, 28, (98, 0)));
        assert_eq!((second.root.as_path(), second.target.as_path()), (Path::new("/mnt1"), Path::new("/mnt2")));
        assert_eq!(second.options, ["ro", "noatime"]);
        assert_eq!(second.tags, ["master:1", "propagate_from:2"]);
        assert_eq!(second.filesystem_options, ["rw", "errors=continue"]);
        assert!(second.is_read_only());
        assert!(!mounts[0].is_read_only());
    }

    #[test]
    fn octal_escapes_are_undone() {
        let third = &parse(TABLE).unwrap()[2];
        assert_eq!(third.target, Path::new("/var/lib/with space\ttab\\slash"));
        assert_eq!(third.source, Path::new("a#b"));
        assert_eq!(third.filesystem, "fuse.sshfs");
        assert_eq!(unescape(b"\\"), b"\\");
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\999"), b"\\999");
        assert_eq!(unescape(b"\\777"), b"\\777", "no byte has that value");
    }

    #[test]
    fn bad_lines_are_named() {
        for (table, line) in [
            (&b"nonsense"[..], 1),
            (b"22 28 0:21 / /proc rw - proc proc rw\n22 28 0-21 / /proc rw - proc proc rw", 2),
            (b"22 28 0:21 / /proc rw,relatime shared:1", 1),
            (b"22 28 0:21 / /proc rw,relatime - proc", 1),
        ] {
            let Err(Error::MountTable { line: found, .. }) = parse(table) else { panic!("accepted {table:?}") };
            assert_eq!(found, line);
        }
    }

    #[test]
    fn the_own_table_has_a_root() {
        assert!(read().unwrap().iter().any(|mount| mount.target == Path::new("/")));
    }
}
