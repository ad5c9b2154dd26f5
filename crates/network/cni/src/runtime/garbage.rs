//! Garbage collection (section 3, "Garbage-collecting a network").
//!
//! First it is decided what is to happen to each file of the cache, and nothing is done ([`Runtime::plan_gc`]); then that is
//! done ([`Runtime::delete_stale`]). So what a dry run shows is what happens.

use std::path::PathBuf;
use std::time::SystemTime;

use super::cache::{self, CacheFile, Damage, guess};
use super::call::Injected;
use super::config::NetworkList;
use super::error::{Error, several};
use super::{Attachment, Id, Runtime};
use crate::{Command, Version};

/// An attachment in the cache, as far as its file can be understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The file.
    pub file: PathBuf,
    /// The attachment, with the network namespace that it was given or that its result names.
    pub attachment: Attachment,
    /// What is wrong with the file, if its content is lost. The attachment is then made out from the file's name.
    pub damage: Option<String>,
    /// When the file was last written.
    pub modified: Option<SystemTime>,
}

/// A file of the cache that nobody can safely act upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    /// The file.
    pub file: PathBuf,
    /// Why, and what can be done.
    pub why: String,
}

/// What garbage collection will do to a network's attachments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// These are valid.
    pub valid: Vec<Held>,
    /// These get a DEL, and their files are removed.
    pub stale: Vec<Held>,
    /// Files that may be of this network and are left as they are.
    pub left: Vec<LeftAlone>,
}

/// What GC did.
#[derive(Debug, Default)]
pub struct Collected {
    /// Attachments of the cache that were not valid and were deleted.
    pub deleted: Vec<Id>,
    /// Files of the cache that may be of this network and were left as they are.
    pub left: Vec<LeftAlone>,
    /// Plugins that collected their own garbage.
    pub plugins: Vec<String>,
    /// What failed. The rest was done all the same.
    pub errors: Vec<Error>,
}

impl Collected {
    /// An error if anything failed.
    pub fn into_result(self) -> Result<Self, Error> {
        if self.errors.is_empty() { Ok(self) } else { Err(several(self.errors)) }
    }
}

impl Runtime {
    /// Collects garbage: first DEL for every attachment of the cache that is not valid, whatever the version; then GC by
    /// each plugin, if the network's version has it. Does nothing where the list says `disableGC`. All is tried; what
    /// failed is in the answer.
    pub fn gc(&self, network: &NetworkList, valid: &[Id]) -> Collected {
        let mut collected = match self.plan_gc(network, &[], valid, &|_| false) {
            Ok(plan) => self.delete_stale(network, plan),
            Err(error) => Collected { errors: vec![error], ..Collected::default() },
        };
        self.gc_by_plugins(network, valid, &mut collected);
        collected
    }

    /// Decides what is to happen to the network's attachments in the cache; nothing is done. Valid are those of the list,
    /// and those of which `is_valid` says so. `networks` are names of further networks, which help to tell whose a damaged
    /// file is; those in the cache are known.
    pub fn plan_gc(
        &self,
        network: &NetworkList,
        networks: &[&str],
        valid: &[Id],
        is_valid: &dyn Fn(&Held) -> bool,
    ) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        if network.disable_gc {
            return Ok(plan);
        }
        let files = self.cache.files()?;
        let mut known: Vec<&str> = networks.to_vec();
        known.extend(files.iter().filter_map(|file| Some(file.content.as_ref().ok()?.network.as_str())));
        for file in &files {
            // A name that is listed belongs to nobody else.
            let is_listed = |id: &&Id| {
                let wanted = Attachment::new(&id.container_id, &id.ifname);
                self.cache.path(&network.name, &wanted).is_ok_and(|path| path == file.file)
            };
            let listed = valid.iter().find(is_listed);
            match held(file, &network.name, &known, listed) {
                None => {}
                Some(Err(why)) => plan.left.push(LeftAlone { file: file.file.clone(), why }),
                Some(Ok(held)) => {
                    let valid = listed.is_some() || valid.contains(&held.attachment.id()) || is_valid(&held);
                    if valid { plan.valid.push(held) } else { plan.stale.push(held) }
                }
            }
        }
        Ok(plan)
    }

    /// Does what was planned: the first half of [`Runtime::gc`]. Unlike the plugins' own collection it cannot touch an
    /// attachment that is being made, since that is not in the cache yet.
    pub fn delete_stale(&self, network: &NetworkList, plan: Plan) -> Collected {
        let mut collected = Collected { left: plan.left, ..Collected::default() };
        if network.disable_gc {
            return collected;
        }
        self.cache.sweep();
        for Held { file, attachment, .. } in plan.stale {
            match self.del(network, &attachment).and_then(|()| cache::remove_file(&file)) {
                Ok(()) => collected.deleted.push(attachment.id()),
                Err(error) => collected.errors.push(error),
            }
        }
        collected
    }

    /// The second half: GC by each plugin, if the network's version has it.
    pub fn gc_by_plugins(&self, network: &NetworkList, valid: &[Id], collected: &mut Collected) {
        if network.disable_gc || network.version < Version::V1_1_0 {
            return;
        }
        for index in 0..network.plugins.len() {
            let injected = Injected { prev_result: None, valid: Some(valid) };
            let called = self
                .invocation(network, index, Command::Gc, None, &injected)
                .and_then(|invocation| self.call(&invocation).map(|_| invocation.plugin));
            match called {
                Ok(plugin) => collected.plugins.push(plugin),
                Err(error) => collected.errors.push(error),
            }
        }
    }
}

/// Whose attachment of this network a file holds: none if it is another network's, or why nobody knows.
fn held(file: &CacheFile, network: &str, networks: &[&str], listed: Option<&Id>) -> Option<Result<Held, String>> {
    let CacheFile { file, modified, content } = file;
    let damage = match content {
        Ok(cached) if cached.network == network => {
            let attachment = Attachment { netns: cached.netns(), ..cached.attachment.clone() };
            return Some(Ok(Held { file: file.clone(), attachment, damage: None, modified: *modified }));
        }
        Ok(_) => return None,
        Err(damage) => damage,
    };
    let guess = match listed {
        Some(id) => Ok(Attachment::new(&id.container_id, &id.ifname)),
        None => guess(file, network, networks)?,
    };
    Some(match (damage, guess) {
        (Damage::Unreadable(why), _) => Err(format!("it cannot be read now: {why}")),
        (Damage::Kind(why), _) => Err(format!("{why}: a newer runtime knows how to delete it")),
        (damage, Err(why)) => Err(format!("{damage}; {why}; {}", by_hand(network))),
        (Damage::Bare(result), Ok(attachment)) => {
            let attachment = Attachment { netns: cache::sandbox(result), ..attachment };
            Ok(Held { file: file.clone(), attachment, damage: None, modified: *modified })
        }
        (Damage::Lost(why), Ok(attachment)) => {
            Ok(Held { file: file.clone(), attachment, damage: Some(why.clone()), modified: *modified })
        }
    })
}

fn by_hand(network: &str) -> String {
    format!("if nobody uses it: outrigger cni del {network} --container-id ID --ifname NAME")
}
