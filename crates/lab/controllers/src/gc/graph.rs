//! Who owns whom, over all objects: values in, decisions out.
//!
//! The graph follows the store's one order of changes, so an owner that is not in it is gone for good: a UID is never
//! given twice, and nobody can refer to an object that will be created later.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::Deserialize;

use crate::path::Path;

/// Finalizer of a deletion that waits for dependents.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion that releases dependents.
pub(crate) const ORPHAN: &str = "orphan";

/// A UID in half the space of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Uid(u128);

impl Uid {
    /// The number of a UUID. Anything else (owner references hold what users write) gets its hash.
    pub(crate) fn new(text: &str) -> Self {
        let digits: String = text.split('-').collect();
        if text.len() == 36
            && digits.len() == 32
            && let Ok(number) = u128::from_str_radix(&digits, 16)
        {
            return Self(number);
        }
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, text).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        Self(half(1) << 64 | half(2))
    }
}

/// What the graph reads of an object.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Head {
    #[serde(default, rename = "apiVersion")]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub metadata: Meta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Meta {
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub deletion_timestamp: Option<String>,
    #[serde(default)]
    pub finalizers: Option<Vec<String>>,
    #[serde(default)]
    pub owner_references: Option<Vec<Reference>>,
}

/// An owner reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reference {
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub block_owner_deletion: Option<bool>,
}

#[derive(Debug)]
struct Node {
    key: Arc<str>,
    /// Group and kind, shared by all objects of the kind.
    kind: Arc<(String, String)>,
    revision: u64,
    owners: Box<[Reference]>,
    deleting: Option<Deleting>,
}

/// How an object is being deleted, as far as its dependents are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deleting {
    /// Dependents go afterwards.
    Plainly,
    /// Dependents go first.
    Foreground,
    /// Dependents stay.
    Orphaning,
}

/// What is to be done about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Nothing,
    /// All its owners are gone: delete it, dependents afterwards unless its finalizers say otherwise.
    Delete,
    /// Its owner waits for it: delete it, dependents first.
    DeleteForeground,
    /// Some owners are gone, others are not: remove these references.
    Release(Vec<Uid>),
    /// Its dependents are to stay: remove the reference to it from each, then the finalizer.
    Orphan(Vec<Uid>),
    /// It waits for no dependents any more: remove the finalizer.
    Finish,
}

/// The state of one reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Solid,
    Waiting,
    Gone,
    /// In a place where it cannot be: another namespace.
    Misplaced,
}

/// All objects by UID, and who refers to whom.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<Uid, Node>,
    /// By key, to find what a deletion removed.
    uids: HashMap<Arc<str>, Uid>,
    dependents: HashMap<Uid, HashSet<Uid>>,
    /// Owners whose deletion was seen and that are still referred to. They are gone even if their kind is no longer
    /// served, as when a definition was deleted with all its objects.
    gone: HashSet<Uid>,
    kinds: HashSet<Arc<(String, String)>>,
}

impl Graph {
    /// Takes in the present state of an object. Returns the UIDs for which the decision may have changed.
    pub(crate) fn put(&mut self, key: &Arc<str>, revision: u64, head: Head) -> Vec<Uid> {
        let uid = Uid::new(&head.metadata.uid);
        let mut affected = Vec::new();
        // The same name with another UID: the old object's deletion was not seen, or its UID was edited.
        if self.uids.get(key).is_some_and(|known| *known != uid) {
            affected.extend(self.delete(key));
        }
        let group = head.api_version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
        let finalizers = head.metadata.finalizers.unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
        let deleting = head.metadata.deletion_timestamp.map(|_| match () {
            () if has(ORPHAN) => Deleting::Orphaning,
            () if has(FOREGROUND) => Deleting::Foreground,
            () => Deleting::Plainly,
        });
        let node = Node {
            key: Arc::clone(key),
            kind: self.kind(group, head.kind),
            revision,
            owners: head.metadata.owner_references.unwrap_or_default().into(),
            deleting,
        };
        for owner in &node.owners {
            self.dependents.entry(Uid::new(&owner.uid)).or_default().insert(uid);
        }
        let owned = !node.owners.is_empty();
        let new_owners: HashSet<Uid> = node.owners.iter().map(|owner| Uid::new(&owner.uid)).collect();
        self.uids.insert(Arc::clone(key), uid);
        let before = self.nodes.insert(uid, node);
        if let Some(before) = &before {
            for owner in
                before.owners.iter().map(|owner| Uid::new(&owner.uid)).filter(|owner| !new_owners.contains(owner))
            {
                self.detach(owner, uid);
                affected.push(owner);
            }
        }
        // An owner that waits may wait for less now, or for one more.
        affected.extend(new_owners.into_iter().filter(|owner| self.is_waiting(*owner)));
        if before.map(|before| before.deleting) != Some(deleting) && deleting == Some(Deleting::Foreground) {
            affected.extend(self.dependents.get(&uid).into_iter().flatten());
        }
        if owned || matches!(deleting, Some(Deleting::Foreground | Deleting::Orphaning)) {
            affected.push(uid);
        }
        affected
    }

    /// Takes note that the object at `key` is gone.
    pub(crate) fn delete(&mut self, key: &str) -> Vec<Uid> {
        let Some(uid) = self.uids.remove(key) else { return Vec::new() };
        let mut affected: Vec<Uid> = self.dependents.get(&uid).into_iter().flatten().copied().collect();
        if !affected.is_empty() {
            self.gone.insert(uid);
        }
        if let Some(node) = self.nodes.remove(&uid) {
            for owner in node.owners.iter().map(|owner| Uid::new(&owner.uid)) {
                self.detach(owner, uid);
                if self.is_waiting(owner) {
                    affected.push(owner);
                }
            }
        }
        affected
    }

    fn kind(&mut self, group: String, kind: String) -> Arc<(String, String)> {
        let name = (group, kind);
        if let Some(known) = self.kinds.get(&name) {
            return Arc::clone(known);
        }
        let name = Arc::new(name);
        self.kinds.insert(Arc::clone(&name));
        name
    }

    fn detach(&mut self, owner: Uid, dependent: Uid) {
        if let Some(dependents) = self.dependents.get_mut(&owner) {
            dependents.remove(&dependent);
            if dependents.is_empty() {
                self.dependents.remove(&owner);
                self.gone.remove(&owner);
            }
        }
    }

    fn is_waiting(&self, uid: Uid) -> bool {
        self.nodes
            .get(&uid)
            .is_some_and(|node| matches!(node.deleting, Some(Deleting::Foreground | Deleting::Orphaning)))
    }

    /// Key and revision of an object.
    pub(crate) fn locate(&self, uid: Uid) -> Option<(Arc<str>, u64)> {
        self.nodes.get(&uid).map(|node| (Arc::clone(&node.key), node.revision))
    }

    /// Decides about one object. `served` tells whether the server knows a kind (API version, kind): owners of other
    /// kinds cannot be looked up and count as present.
    pub(crate) fn plan(&self, uid: Uid, served: impl Fn(&str, &str) -> bool) -> Plan {
        let Some(node) = self.nodes.get(&uid) else { return Plan::Nothing };
        match node.deleting {
            Some(Deleting::Plainly) => return Plan::Nothing,
            Some(Deleting::Orphaning) => {
                let dependents = self.dependents.get(&uid).into_iter().flatten();
                return Plan::Orphan(
                    dependents.copied().filter(|dependent| self.nodes.contains_key(dependent)).collect(),
                );
            }
            Some(Deleting::Foreground) => {
                let waits = self.blocking(uid).next().is_some() && !self.in_circle(uid);
                return if waits { Plan::Nothing } else { Plan::Finish };
            }
            None => {}
        }
        if node.owners.is_empty() {
            return Plan::Nothing;
        }
        let states: Vec<Owner> = node.owners.iter().map(|owner| self.state(node, owner, &served)).collect();
        let of = |wanted: &[Owner]| -> Vec<Uid> {
            let with = node.owners.iter().zip(&states).filter(|(_, state)| wanted.contains(state));
            with.map(|(owner, _)| Uid::new(&owner.uid)).collect()
        };
        if states.contains(&Owner::Solid) {
            let released = of(&[Owner::Waiting, Owner::Gone, Owner::Misplaced]);
            return if released.is_empty() { Plan::Nothing } else { Plan::Release(released) };
        }
        if states.contains(&Owner::Waiting) {
            let has_dependents = self.dependents.get(&uid).is_some_and(|dependents| !dependents.is_empty());
            return if has_dependents { Plan::DeleteForeground } else { Plan::Delete };
        }
        Plan::Delete
    }

    /// The references of an object that name an owner where none can be.
    pub(crate) fn misplaced(&self, uid: Uid, served: impl Fn(&str, &str) -> bool) -> Vec<Reference> {
        let Some(node) = self.nodes.get(&uid) else { return Vec::new() };
        node.owners.iter().filter(|owner| self.is_misplaced(node, owner, &served)).cloned().collect()
    }

    fn is_misplaced(&self, node: &Node, owner: &Reference, served: &impl Fn(&str, &str) -> bool) -> bool {
        let here = namespace(&node.key);
        let there = self.nodes.get(&Uid::new(&owner.uid)).map(|owner| namespace(&owner.key));
        served(&owner.api_version, &owner.kind) && there.is_some_and(|there| !there.is_empty() && there != here)
    }

    fn state(&self, node: &Node, owner: &Reference, served: &impl Fn(&str, &str) -> bool) -> Owner {
        if self.is_misplaced(node, owner, served) {
            // A cluster-scoped object with an owner in a namespace cannot be resolved, and is left alone.
            return if namespace(&node.key).is_empty() { Owner::Solid } else { Owner::Misplaced };
        }
        let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let found = self.nodes.get(&Uid::new(&owner.uid)).filter(|found| {
            let name = Path::parse(&found.key).map_or("", |path| path.name);
            name == owner.name && found.kind.1 == owner.kind && found.kind.0 == group
        });
        match found {
            Some(found) if found.deleting == Some(Deleting::Foreground) => Owner::Waiting,
            None if self.gone.contains(&Uid::new(&owner.uid)) || served(&owner.api_version, &owner.kind) => Owner::Gone,
            Some(_) | None => Owner::Solid,
        }
    }

    /// Dependents whose references block the deletion of their owner.
    fn blocking(&self, owner: Uid) -> impl Iterator<Item = Uid> {
        let dependents = self.dependents.get(&owner).into_iter().flatten().copied();
        dependents.filter(move |dependent| {
            self.nodes.get(dependent).is_some_and(|node| {
                node.owners
                    .iter()
                    .any(|reference| reference.block_owner_deletion == Some(true) && Uid::new(&reference.uid) == owner)
            })
        })
    }

    /// Whether an object waits, directly or through others, for itself: then none of them would ever go.
    fn in_circle(&self, uid: Uid) -> bool {
        let mut seen = HashSet::new();
        let mut next: Vec<Uid> = self.blocking(uid).collect();
        while let Some(dependent) = next.pop() {
            if dependent == uid {
                return true;
            }
            if seen.insert(dependent) && self.is_waiting(dependent) {
                next.extend(self.blocking(dependent));
            }
        }
        false
    }
}

fn namespace(key: &str) -> &str {
    Path::parse(key).map_or("", |path| path.namespace)
}
