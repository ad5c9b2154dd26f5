//! Putting the binary into a directory of plugins that is in use, and taking it out again.
//!
//! Every file comes to its name by a rename, so at no moment is a plugin absent or half written, and a program that runs is
//! not touched. Whatever was interrupted is made good by the next run.

#![expect(clippy::disallowed_methods, reason = "errors here name their path; fs_err as the others use it brings tokio")]

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::command::{Failure, NAME, names};

/// Where plugins of others that had our names are kept.
const REPLACED: &str = ".outrigger-replaced";

/// A text that every version of this binary holds and no other program does.
static MARK: &[u8] = b"outrigger-cni holds every plugin: 5f0b6e1c-6d5a-4d3c-9a51-0d6f6b1f3f52";

/// A directory of plugins.
struct Directory<'a> {
    path: &'a Path,
    /// Locked as long as we work in it.
    handle: File,
    /// Files that are known to be ours, by device and inode.
    ours: Vec<(u64, u64)>,
}

/// Installs the plugins of these names and says what it did.
pub(crate) fn install(path: &Path, wanted: &[&str]) -> Result<String, Failure> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(Failure::usage(format!("{} is not a directory", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).create(path).map_err(|error| failed("create", path, &error))?;
        }
        Err(error) => return Err(failed("look at", path, &error)),
    }
    let mut dir = Directory::open(path)?;
    // Seen before anything is done, since half of the plugins is worse than none.
    if let Some(name) = wanted.iter().chain([&NAME]).find(|name| path.join(name).is_dir()) {
        return Err(Failure::step(path.join(name).display(), "is a directory; move it away"));
    }
    let source = dir.copy_self()?;
    let result = dir.link_all(&source, wanted);
    // It has its name by now, unless something failed.
    let _ = fs::remove_file(&source);
    let report = result?;
    dir.flush()?;
    Ok(report)
}

/// Removes our plugins, puts back what they replaced, and says what it did.
pub(crate) fn uninstall(path: &Path) -> Result<String, Failure> {
    if !path.is_dir() {
        return Err(Failure::usage(format!("{} is not a directory", path.display())));
    }
    let mut dir = Directory::open(path)?;
    let (mut removed, mut restored) = (0, Vec::new());
    for name in names().chain([NAME]) {
        let (target, saved) = (path.join(name), path.join(REPLACED).join(name));
        if !dir.is_ours(&target)? {
            continue;
        }
        if fs::symlink_metadata(&saved).is_ok() {
            fs::rename(&saved, &target).map_err(|error| failed("put back", &target, &error))?;
            restored.push(name);
        } else {
            fs::remove_file(&target).map_err(|error| failed("remove", &target, &error))?;
            removed += 1;
        }
    }
    // Goes if it is empty.
    let _ = fs::remove_dir(path.join(REPLACED));
    dir.flush()?;
    let mut report = format!("{}: {removed} removed, {} put back\n", path.display(), restored.len());
    for name in restored {
        let _ = writeln!(report, "  put back: {name}");
    }
    Ok(report)
}

impl<'a> Directory<'a> {
    /// Opens it for us alone, and removes what an interrupted run left.
    fn open(path: &'a Path) -> Result<Self, Failure> {
        let handle = File::open(path).and_then(|handle| handle.lock().map(|()| handle));
        let handle = handle.map_err(|error| failed("lock", path, &error))?;
        let entries = fs::read_dir(path).map_err(|error| failed("list", path, &error))?;
        for entry in entries.flatten() {
            let file = entry.file_name();
            let parts = file.to_str().and_then(|file| file.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.'));
            let Some((name, process)) = parts else { continue };
            let numeric = !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit());
            if numeric && names().chain([NAME]).any(|known| known == name) {
                fs::remove_file(entry.path()).map_err(|error| failed("remove", &entry.path(), &error))?;
            }
        }
        Ok(Self { path, handle, ours: Vec::new() })
    }

    /// A complete copy of this program in the directory, under a name that no runtime looks for.
    fn copy_self(&mut self) -> Result<PathBuf, Failure> {
        let program = Path::new("/proc/self/exe");
        let target = self.temporary(NAME);
        // Nothing is in the way: opening the directory has removed what interrupted runs left.
        let copy = || {
            let mut source = File::open(program)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&target)?;
            io::copy(&mut source, &mut file)?;
            // Not only what the process mask lets through: runtimes may run as others.
            file.set_permissions(fs::Permissions::from_mode(0o755))?;
            file.sync_all()?;
            file.metadata()
        };
        let metadata = copy().map_err(|error: io::Error| {
            let _ = fs::remove_file(&target);
            failed("write", &target, &error)
        })?;
        self.ours.push((metadata.dev(), metadata.ino()));
        Ok(target)
    }

    /// Gives the copy every wanted name, and its own name last: until then the next run copies anew.
    fn link_all(&mut self, source: &Path, wanted: &[&str]) -> Result<String, Failure> {
        let (mut made, mut updated, mut replaced) = (0, 0, Vec::new());
        for name in wanted {
            let target = self.path.join(name);
            if self.is_ours(&target)? {
                updated += 1;
            } else if fs::symlink_metadata(&target).is_ok() {
                self.save(name)?;
                replaced.push(*name);
            } else {
                made += 1;
            }
            let link = self.temporary(name);
            fs::hard_link(source, &link).map_err(|error| failed("link", &link, &error))?;
            fs::rename(&link, &target).map_err(|error| {
                let _ = fs::remove_file(&link);
                failed("replace", &target, &error)
            })?;
        }
        let own = self.path.join(NAME);
        fs::rename(source, &own).map_err(|error| failed("replace", &own, &error))?;
        let mut report = format!(
            "{}: {} plugins: {made} new, {updated} updated, {} in place of others\n",
            self.path.display(),
            wanted.len(),
            replaced.len()
        );
        for name in replaced {
            let _ = writeln!(report, "  replaced: {name} (kept in {REPLACED})");
        }
        Ok(report)
    }

    /// Keeps a plugin of others beside the directory's own files; one that was kept before stays.
    fn save(&self, name: &str) -> Result<(), Failure> {
        let kept = self.path.join(REPLACED);
        let made = fs::DirBuilder::new().create(&kept);
        made.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
            .map_err(|error| failed("create", &kept, &error))?;
        let (from, to) = (self.path.join(name), kept.join(name));
        match fs::hard_link(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The operator put another one in its place since: that is the one to put back.
                fs::remove_file(&to).and_then(|()| fs::hard_link(&from, &to))
            }
            result => result,
        }
        .map_err(|error| failed("keep", &from, &error))
    }

    /// Whether a file is some version of this binary.
    fn is_ours(&mut self, path: &Path) -> Result<bool, Failure> {
        let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(false) };
        if !metadata.is_file() {
            return Ok(false);
        }
        let id = (metadata.dev(), metadata.ino());
        if self.ours.contains(&id) {
            return Ok(true);
        }
        let mut content = Vec::new();
        let read = File::open(path).and_then(|file| file.take(64 << 20).read_to_end(&mut content));
        read.map_err(|error| failed("read", path, &error))?;
        // Hidden from the compiler, which could take the text apart and leave none in the program.
        let mark = std::hint::black_box(MARK);
        let ours = content.windows(mark.len()).any(|window| window == mark);
        if ours {
            self.ours.push(id);
        }
        Ok(ours)
    }

    fn temporary(&self, name: &str) -> PathBuf {
        self.path.join(format!(".{name}.{}.tmp", std::process::id()))
    }

    /// Makes the names last over a power failure.
    fn flush(&self) -> Result<(), Failure> {
        self.handle.sync_all().map_err(|error| failed("flush", self.path, &error))
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::step(format_args!("cannot {what} {}", path.display()), error)
}
