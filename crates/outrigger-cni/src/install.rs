//! Putting the binary into a directory of plugins that is in use, and taking it out again.
//!
//! Every file comes to its name by a rename, so at no moment is a plugin absent or half written, and a program that runs is
//! not touched. Whatever was interrupted is made good by the next run.
//!
//! The names are hard links to one file. Whoever writes over one of them in place (`cp` does, unless told to remove first)
//! writes over all: the next run sees that by several names that share a foreign file, takes none of them for a plugin to
//! keep, and makes them good.

#![expect(clippy::disallowed_methods, reason = "errors here name their path; fs_err as the others use it brings tokio")]

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::command::{Failure, NAME, names};

/// Where plugins of others that had our names are kept.
const REPLACED: &str = ".outrigger-replaced";

/// Plugins with a file of their own, since others write over them in place as a matter of course: the init container of
/// kube-flannel copies its plugin to this name whenever its pod starts.
const APART: [&str; 1] = ["flannel"];

/// What runs a plugin that stands apart.
const SHELL: &str = "/bin/sh";

/// A text that every version of this binary holds and no other program does.
static MARK: &[u8] = b"outrigger-cni holds every plugin: 5f0b6e1c-6d5a-4d3c-9a51-0d6f6b1f3f52";

/// A directory of plugins.
struct Directory<'a> {
    path: &'a Path,
    /// Locked as long as we work in it.
    handle: File,
    /// Files that are known to be ours, by device and inode.
    ours: Vec<(u64, u64)>,
    /// Files that were ours until somebody wrote over them: see the [module](self).
    overwritten: Vec<(u64, u64)>,
}

/// What has a name.
enum Holder {
    Nobody,
    Ours,
    /// Our file with the content of another program.
    Overwritten,
    Other,
}

/// Installs the plugins of these names and says what it did.
pub(crate) fn install(path: &Path, wanted: &[&'static str]) -> Result<String, Failure> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(Failure::usage(format!("{} is not a directory", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).create(path).map_err(|error| failed("create", path, &error))?;
        }
        Err(error) => return Err(failed("look at", path, &error)),
    }
    let mut dir = Directory::open(path)?;
    let wanted = &dir.with_overwritten(wanted);
    // Seen before anything is done, since half of the plugins is worse than none.
    if let Some(name) = wanted.iter().chain([&NAME]).find(|name| path.join(name).is_dir()) {
        return Err(Failure::step(path.join(name).display(), "is a directory; move it away"));
    }
    let source = dir.copy_self(NAME)?;
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
    let (mut removed, mut restored, mut overwritten) = (0, Vec::new(), Vec::new());
    for name in names().chain([NAME]) {
        let (target, saved) = (path.join(name), path.join(REPLACED).join(name));
        match dir.holder(&target)? {
            Holder::Nobody | Holder::Other => continue,
            Holder::Ours => {}
            Holder::Overwritten => overwritten.push(name),
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
    say_overwritten(&mut report, &overwritten, "the copy is gone with them");
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
        let mut dir = Self { path, handle, ours: Vec::new(), overwritten: Vec::new() };
        dir.find_overwritten()?;
        Ok(dir)
    }

    /// Finds files that are not ours, but have several of our names. Only where we have been: on a fresh host they are
    /// somebody else's links.
    fn find_overwritten(&mut self) -> Result<(), Failure> {
        let here = |name: &str| fs::symlink_metadata(self.path.join(name)).ok();
        if here(NAME).is_none() && here(REPLACED).is_none() {
            return Ok(());
        }
        let files = names().chain([NAME]).filter_map(here).filter(fs::Metadata::is_file);
        let mut ids: Vec<_> = files.map(|file| (file.dev(), file.ino())).collect();
        ids.sort_unstable();
        let mut shared: Vec<_> = ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        shared.dedup();
        for name in names().chain([NAME]) {
            let path = self.path.join(name);
            let id = fs::symlink_metadata(&path).map(|file| (file.dev(), file.ino()));
            let Some(at) = id.ok().and_then(|id| shared.iter().position(|shared| *shared == id)) else { continue };
            let id = shared.swap_remove(at);
            if !self.is_ours(&path)? {
                self.overwritten.push(id);
            }
        }
        Ok(())
    }

    /// The wanted names, and those that must be made good.
    fn with_overwritten(&self, wanted: &[&'static str]) -> Vec<&'static str> {
        let damaged = |name: &&'static str| self.is_overwritten(&self.path.join(name));
        let further = names().filter(damaged).filter(|name| !wanted.contains(name));
        wanted.iter().copied().chain(further).collect()
    }

    /// A complete copy of this program in the directory, under a name that no runtime looks for.
    fn copy_self(&mut self, name: &str) -> Result<PathBuf, Failure> {
        let program = File::open("/proc/self/exe");
        let mut program = program.map_err(|error| failed("open", Path::new("/proc/self/exe"), &error))?;
        self.write(name, &mut program)
    }

    /// A file that runs the program beside it, since a second copy of it would double the directory. Where there is no
    /// shell it is a copy nevertheless: this may be a container with nothing in it, or a host without one.
    fn stand_apart(&mut self, name: &str) -> Result<PathBuf, Failure> {
        if !Path::new(SHELL).exists() {
            return self.copy_self(name);
        }
        let mark = String::from_utf8_lossy(MARK);
        let script = format!(
            "#!{SHELL}\n# {mark}\n# A file of its own: installers of {name} write over it in place, and the other names are \
             one file.\nexec \"${{0%/*}}/{NAME}\" {name} \"$@\"\n"
        );
        self.write(name, &mut script.as_bytes())
    }

    /// A new program, flushed, under a name that no runtime looks for.
    fn write(&mut self, name: &str, content: &mut dyn io::Read) -> Result<PathBuf, Failure> {
        let target = self.temporary(name);
        // Nothing is in the way: opening the directory has removed what interrupted runs left.
        let mut written = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&target)?;
            io::copy(content, &mut file)?;
            // Not only what the process mask lets through: runtimes may run as others.
            file.set_permissions(fs::Permissions::from_mode(0o755))?;
            file.sync_all()?;
            file.metadata()
        };
        let metadata = written().map_err(|error: io::Error| {
            let _ = fs::remove_file(&target);
            failed("write", &target, &error)
        })?;
        self.ours.push((metadata.dev(), metadata.ino()));
        Ok(target)
    }

    /// Gives the copy every wanted name, and its own name last: until then the next run copies anew.
    fn link_all(&mut self, source: &Path, wanted: &[&str]) -> Result<String, Failure> {
        let (mut made, mut updated, mut replaced, mut overwritten) = (0, 0, Vec::new(), Vec::new());
        for name in wanted {
            let target = self.path.join(name);
            match self.holder(&target)? {
                Holder::Nobody => made += 1,
                Holder::Ours => updated += 1,
                // What was kept in its place, if anything, is older and still the one to put back.
                Holder::Overwritten => overwritten.push(*name),
                Holder::Other => {
                    self.save(name)?;
                    replaced.push(*name);
                }
            }
            let link = if APART.contains(name) {
                self.stand_apart(name)?
            } else {
                let link = self.temporary(name);
                fs::hard_link(source, &link).map_err(|error| failed("link", &link, &error))?;
                link
            };
            fs::rename(&link, &target).map_err(|error| {
                let _ = fs::remove_file(&link);
                failed("replace", &target, &error)
            })?;
        }
        let own = self.path.join(NAME);
        if self.is_overwritten(&own) {
            overwritten.push(NAME);
        }
        fs::rename(source, &own).map_err(|error| failed("replace", &own, &error))?;
        let mut report = format!(
            "{}: {} plugins: {made} new, {} updated, {} in place of others\n",
            self.path.display(),
            wanted.len(),
            updated + overwritten.iter().filter(|name| **name != NAME).count(),
            replaced.len()
        );
        for name in replaced {
            let _ = writeln!(report, "  replaced: {name} (kept in {REPLACED})");
        }
        say_overwritten(&mut report, &overwritten, "all are made good, and none of them is kept");
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

    fn holder(&mut self, path: &Path) -> Result<Holder, Failure> {
        Ok(if fs::symlink_metadata(path).is_err() {
            Holder::Nobody
        } else if self.is_overwritten(path) {
            Holder::Overwritten
        } else if self.is_ours(path)? {
            Holder::Ours
        } else {
            Holder::Other
        })
    }

    fn is_overwritten(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|file| self.overwritten.contains(&(file.dev(), file.ino())))
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

/// Says which names somebody wrote over, and how to do better.
fn say_overwritten(report: &mut String, names: &[&str], outcome: &str) {
    if !names.is_empty() {
        let _ = writeln!(
            report,
            "  overwritten: {} were one file, and something was copied onto it in place; {outcome}; to put another plugin \
             in place of one of ours, use: cp --remove-destination",
            names.join(", ")
        );
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::step(format_args!("cannot {what} {}", path.display()), error)
}
