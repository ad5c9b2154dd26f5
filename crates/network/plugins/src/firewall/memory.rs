//! Numbers of a container's rules, so that DEL need not look for them among those of all containers.
//!
//! They are hints: what is wrong, torn or missing costs a look through the chain, no more. They end with the boot, as the
//! rules do.

use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use outrigger_netlink::nft::{Rule, userdata};

const DIRECTORY: &str = "/run/cni/outrigger/firewall";
/// More than any container's rules; what is longer is not ours.
const LIMIT: u64 = 64 << 10;

fn path(key: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(key)
}

/// Notes the numbers of those rules that have this owner, besides what is noted already.
pub(super) fn remember(key: &str, made: &[Rule]) {
    let mut text = String::new();
    for rule in made {
        if userdata::find_text(&rule.user_data, userdata::OWNER) == Some(key) {
            text.push_str(&rule.handle.to_string());
            text.push('\n');
        }
    }
    if text.is_empty() {
        return;
    }
    let append = || File::options().append(true).create(true).open(path(key));
    let file = append().or_else(|_| {
        DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY)?;
        append()
    });
    let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
}

/// The numbers noted for an owner; none if there is anything wrong with them.
pub(super) fn recall(key: &str) -> Vec<u64> {
    let mut text = String::new();
    let read = File::open(path(key)).and_then(|file| file.take(LIMIT).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    text.lines().map(str::parse).collect::<Result<_, _>>().unwrap_or_default()
}

/// Forgets an owner.
pub(super) fn forget(key: &str) {
    let _ = rustix::fs::unlink(path(key));
}

/// Forgets many: also those whose rules the original removed, which does not know of these files.
pub(super) fn forget_those(doomed: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return };
    for name in entries.flatten().map(|entry| entry.file_name()) {
        if let Some(key) = name.to_str().filter(|key| doomed(key)) {
            forget(key);
        }
    }
}
