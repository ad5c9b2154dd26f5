//! File systems for `backing: file`: recognising what an image holds, and mkfs.

use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};

use fs_err::File;

use crate::Error;

/// All signatures that are looked for lie in this many bytes at the beginning.
const HEAD: usize = 128 << 10;

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing but zeros where a file system or a partition table would be.
    Blank,
    /// Something with a signature.
    Known(&'static str),
    /// Data without a signature.
    Unknown,
}

/// Where a signature is, and of what.
const SIGNATURES: [(usize, &[u8], &str); 16] = [
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"hsqs", "squashfs"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
    (32769, b"CD001", "iso9660"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (54, b"FAT", "vfat"),
    (82, b"FAT32", "vfat"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (512, b"LABELONE", "an LVM physical volume"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID member"),
    (512, b"EFI PART", "a GPT partition table"),
    (510, &[0x55, 0xaa], "a partition table or boot sector"),
];

/// Recognises the beginning of an image.
pub(crate) fn recognise(head: &[u8]) -> Content {
    if let Some(ext) = recognise_ext(head) {
        return Content::Known(ext);
    }
    let signature = SIGNATURES.iter().find(|(at, magic, _)| head.get(*at..at + magic.len()) == Some(*magic));
    match signature {
        Some((_, _, name)) => Content::Known(name),
        None if head.iter().all(|byte| *byte == 0) => Content::Blank,
        None => Content::Unknown,
    }
}

/// The ext family shares a signature and differs by features: a journal makes ext3, extents (and others) ext4.
fn recognise_ext(head: &[u8]) -> Option<&'static str> {
    let superblock = head.get(1024..2048)?;
    if superblock[56..58] != [0x53, 0xef] {
        return None;
    }
    let word =
        |at: usize| u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]]);
    let (compatible, incompatible, read_only) = (word(92), word(96), word(100));
    // What ext3 knows: filetype, recovery, meta_bg; sparse_super, large_file, btree_dir.
    if incompatible & !0x16 != 0 || read_only & !0x7 != 0 {
        Some("ext4")
    } else if compatible & 0x4 != 0 {
        Some("ext3")
    } else {
        Some("ext2")
    }
}

/// Looks into an image.
pub(crate) fn inspect(image: &Path) -> Result<Content, Error> {
    let mut file = File::open(image)?;
    let mut head = Vec::with_capacity(HEAD);
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    match recognise(&head) {
        // Backups of partition tables and RAID superblocks are at the end.
        Content::Blank => {
            let length = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(length.saturating_sub(HEAD as u64)))?;
            let mut tail = Vec::with_capacity(HEAD);
            file.read_to_end(&mut tail)?;
            Ok(if tail.iter().all(|byte| *byte == 0) { Content::Blank } else { Content::Unknown })
        }
        content => Ok(content),
    }
}

/// Sees to it that `image`, which was never mounted, holds a file system of this type.
///
/// A whole file system of the type is taken as it is (mkfs had finished, and the driver was stopped before it took note),
/// half of one is made anew, and anything recognisable of another kind is refused.
pub(crate) fn ensure(image: &Path, fs_type: &str) -> Result<(), Error> {
    // The lock goes with the open file, which the child inherits: should the driver be killed, its successor cannot start
    // a second mkfs while the first one still runs.
    let file = fs_err::OpenOptions::new().read(true).write(true).open(image)?;
    let program = format!("mkfs.{fs_type}");
    let failed = |problem: String| Error::Format { program: program.clone(), image: image.to_owned(), problem };
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| failed("an earlier run has not ended yet".to_owned()))?;
    match inspect(image)? {
        Content::Known(found) if found == fs_type => return Ok(()),
        Content::Known(found) => {
            return Err(Error::NotBlank {
                image: image.to_owned(),
                found: found.to_owned(),
                wanted: fs_type.to_owned(),
            });
        }
        Content::Blank | Content::Unknown => {}
    }
    let mut command = Command::new(&program);
    if fs_type == "xfs" {
        command.args(["-q", "-f"]);
    } else {
        // No blocks kept for root: the whole size is the workload's.
        command.args(["-q", "-F", "-m", "0"]);
    }
    command.arg("--").arg(image).stdin(Stdio::from(file.into_file())).env("LC_ALL", "C");
    let output = command.output().map_err(|error| {
        failed(if error.kind() == ErrorKind::NotFound {
            "the program is not installed on this node".to_owned()
        } else {
            error.to_string()
        })
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, said.trim().replace('\n', "; "))));
    }
    File::open(image)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn signatures() {
        assert_eq!(recognise(&vec![0; HEAD]), Content::Blank);
        assert_eq!(recognise(&[]), Content::Blank);
        for (at, magic, name) in SIGNATURES {
            let mut head = vec![0; HEAD];
            head[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(recognise(&head), Content::Known(name));
        }
        let mut head = vec![0; HEAD];
        head[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(recognise(&head), Content::Known("ext2"));
        head[1024 + 92] = 4;
        assert_eq!(recognise(&head), Content::Known("ext3"));
        head[1024 + 96] = 0x40;
        assert_eq!(recognise(&head), Content::Known("ext4"));
        assert_eq!(recognise(b"hello"), Content::Unknown);
    }

    proptest! {
        #[test]
        fn no_content_panics(head in proptest::collection::vec(any::<u8>(), 0..4096)) {
            recognise(&head);
        }
    }

    fn image(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    #[test]
    fn mkfs_makes_what_was_asked_for() {
        for fs_type in ["ext2", "ext3", "ext4"] {
            let image = image(16 << 20);
            match ensure(image.path(), fs_type) {
                Err(Error::Format { problem, .. }) if problem.contains("not installed") => {
                    eprintln!("skipped: mkfs.{fs_type} is not installed");
                    return;
                }
                result => result.unwrap(),
            }
            assert_eq!(inspect(image.path()).unwrap(), Content::Known(fs_type));
            let before = fs_err::read(image.path()).unwrap();
            ensure(image.path(), fs_type).unwrap();
            assert_eq!(fs_err::read(image.path()).unwrap(), before, "made once only");
        }
    }

    #[test]
    fn foreign_content_is_not_overwritten() {
        let image = image(16 << 20);
        fs_err::write(image.path(), "XFSB").unwrap();
        let error = ensure(image.path(), "ext4").unwrap_err();
        assert!(matches!(&error, Error::NotBlank { found, .. } if found == "xfs"), "{error}");
        assert_eq!(fs_err::read(image.path()).unwrap(), b"XFSB");
    }

    #[test]
    fn a_backup_partition_table_is_not_blank() {
        let image = image(1 << 20);
        let mut file = fs_err::OpenOptions::new().write(true).open(image.path()).unwrap();
        file.seek(SeekFrom::End(-512)).unwrap();
        std::io::Write::write_all(&mut file, b"EFI PART").unwrap();
        assert_eq!(inspect(image.path()).unwrap(), Content::Unknown);
    }

    #[test]
    fn only_one_mkfs_at_a_time() {
        let image = image(16 << 20);
        let other = File::open(image.path()).unwrap();
        rustix::fs::flock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let error = ensure(image.path(), "ext4").unwrap_err();
        assert!(error.to_string().contains("not ended"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let image = image(16 << 20);
        let error = ensure(image.path(), "no-such-fs").unwrap_err();
        assert!(error.to_string().contains("mkfs.no-such-fs"), "{error}");
    }
}
