//! All volumes, claims and classes, and which volume fits a claim best.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use outrigger_lab_machinery::quantity::Quantity;

use super::model::{Claim, ClaimKey, Class, Volume};

/// Position of an unclaimed volume: by class, then size, then name.
type Slot = (String, i128, String);

/// The storage objects of the cluster.
#[derive(Default)]
pub(crate) struct Index {
    volumes: BTreeMap<String, Volume>,
    claims: BTreeMap<ClaimKey, Claim>,
    classes: BTreeMap<String, Class>,
    /// Volumes that no claim has.
    free: BTreeSet<Slot>,
    /// Volumes by the claim that they refer to.
    claimed: BTreeMap<ClaimKey, BTreeSet<String>>,
    /// Volumes by the claim that refers to them.
    wanted: BTreeMap<String, BTreeSet<ClaimKey>>,
    /// Claims whose binding is not complete.
    unbound: BTreeSet<ClaimKey>,
}

impl Index {
    /// Takes in a volume, unless a newer version is known.
    pub(crate) fn put_volume(&mut self, volume: Volume) {
        if self.volumes.get(&volume.name).is_some_and(|known| known.revision >= volume.revision) {
            return;
        }
        self.remove_volume(&volume.name.clone(), volume.revision);
        match &volume.claim {
            Some(claim) => {
                self.claimed.entry(claim.key.clone()).or_default().insert(volume.name.clone());
            }
            None => {
                self.free.insert(slot(&volume));
            }
        }
        self.volumes.insert(volume.name.clone(), volume);
    }

    /// Forgets a volume that was deleted at `revision`.
    pub(crate) fn remove_volume(&mut self, name: &str, revision: u64) -> Option<Volume> {
        if self.volumes.get(name)?.revision > revision {
            return None;
        }
        let volume = self.volumes.remove(name)?;
        self.free.remove(&slot(&volume));
        if let Some(claim) = &volume.claim {
            drop_from(&mut self.claimed, &claim.key, &volume.name);
        }
        Some(volume)
    }

    /// Takes in a claim, unless a newer version is known.
    pub(crate) fn put_claim(&mut self, claim: Claim) {
        if self.claims.get(&claim.key).is_some_and(|known| known.revision >= claim.revision) {
            return;
        }
        self.remove_claim(&claim.key.clone(), claim.revision);
        if !claim.bind_completed {
            self.unbound.insert(claim.key.clone());
        }
        if !claim.volume.is_empty() {
            self.wanted.entry(claim.volume.clone()).or_default().insert(claim.key.clone());
        }
        self.claims.insert(claim.key.clone(), claim);
    }

    /// Forgets a claim that was deleted at `revision`.
    pub(crate) fn remove_claim(&mut self, key: &ClaimKey, revision: u64) -> Option<Claim> {
        if self.claims.get(key)?.revision > revision {
            return None;
        }
        let claim = self.claims.remove(key)?;
        self.unbound.remove(key);
        drop_from(&mut self.wanted, &claim.volume, key);
        Some(claim)
    }

    pub(crate) fn put_class(&mut self, class: Class) {
        self.classes.insert(class.name.clone(), class);
    }

    pub(crate) fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
    }

    pub(crate) fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.get(name)
    }

    pub(crate) fn claim(&self, key: &ClaimKey) -> Option<&Claim> {
        self.claims.get(key)
    }

    pub(crate) fn class(&self, name: &str) -> Option<&Class> {
        self.classes.get(name)
    }

    /// The class for claims that name none: of several defaults the newest.
    pub(crate) fn default_class(&self) -> Option<&Class> {
        let defaults = self.classes.values().filter(|class| class.default_since.is_some());
        // Of two made in the same second the first by name.
        defaults.max_by(|a, b| a.default_since.cmp(&b.default_since).then(b.name.cmp(&a.name)))
    }

    /// Unbound claims that a change of this class concerns: those that name it or none.
    pub(crate) fn waiting_for_class(&self, class: &str) -> Vec<ClaimKey> {
        let waits = |key: &&ClaimKey| {
            let claim = self.claims.get(*key);
            claim.is_some_and(|claim| claim.class.as_deref().is_none_or(|name| name == class))
        };
        self.unbound.iter().filter(waits).cloned().collect()
    }

    /// An unbound claim, none of `except`, that this volume could serve if it is free.
    pub(crate) fn waiting_for_volume(&self, volume: &str, except: &HashSet<ClaimKey>) -> Option<ClaimKey> {
        let volume = self.volumes.get(volume).filter(|volume| volume.claim.is_none())?;
        let waits = |key: &&ClaimKey| {
            self.claims.get(*key).is_some_and(|claim| {
                claim.volume.is_empty() && !claim.deleting && fits(claim, volume) && !self.waits_for_consumer(claim)
            })
        };
        self.unbound.iter().filter(|key| !except.contains(*key)).find(waits).cloned()
    }

    /// Whether nothing must be chosen for a claim before its consumer has a node.
    pub(crate) fn waits_for_consumer(&self, claim: &Claim) -> bool {
        let class = claim.class.as_deref().and_then(|class| self.classes.get(class));
        class.is_some_and(|class| class.wait_for_consumer) && !claim.selected_node
    }

    /// Volumes that refer to a claim.
    pub(crate) fn volumes_of(&self, claim: &ClaimKey) -> impl Iterator<Item = &Volume> {
        let names = self.claimed.get(claim).into_iter().flatten();
        names.filter_map(|name| self.volumes.get(name))
    }

    /// Claims that refer to a volume.
    pub(crate) fn claims_on(&self, volume: &str) -> impl Iterator<Item = &ClaimKey> {
        self.wanted.get(volume).into_iter().flatten()
    }

    /// The volume to bind a claim to: one that already refers to it, else, unless `reserved_only`, the smallest free
    /// one that fits.
    pub(crate) fn best_match(&self, claim: &Claim, reserved_only: bool) -> Option<&Volume> {
        let class = claim.class.as_deref().unwrap_or_default();
        let reserved =
            self.volumes_of(&claim.key).find(|volume| volume.is_for(claim) && unfit(claim, volume).is_none());
        if reserved.is_some() || reserved_only {
            return reserved;
        }
        let least = claim.request.map_or(0, amount);
        let from = (class.to_owned(), least, String::new());
        let of_class = self.free.range(from..).take_while(|(of, ..)| of == class);
        let mut volumes = of_class.filter_map(|(.., name)| self.volumes.get(name));
        volumes.find(|volume| fits(claim, volume))
    }
}

/// Whether a volume can serve a claim that did not ask for this very one.
fn fits(claim: &Claim, volume: &Volume) -> bool {
    let label = |name: &str| volume.labels.get(name).map(String::as_str);
    unfit(claim, volume).is_none() && claim.selector.as_ref().is_some_and(|selector| selector.matches(label))
}

fn drop_from<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

fn amount(quantity: Quantity) -> i128 {
    quantity.nanos()
}

fn slot(volume: &Volume) -> Slot {
    (volume.class.clone(), volume.capacity.map_or(0, amount), volume.name.clone())
}

/// Why a volume cannot serve a claim, if it cannot.
pub(crate) fn unfit(claim: &Claim, volume: &Volume) -> Option<&'static str> {
    if volume.deleting {
        return Some("volume is being deleted");
    }
    if volume.capacity.map_or(0, amount) < claim.request.map_or(0, amount) {
        return Some("requested PV is too small");
    }
    if claim.class.as_deref().unwrap_or_default() != volume.class {
        return Some("storageClassName does not match");
    }
    if claim.attributes_class != volume.attributes_class {
        return Some("volumeAttributesClassName does not match");
    }
    if claim.block != volume.block {
        return Some("incompatible volumeMode");
    }
    if claim.access_modes.iter().any(|mode| !volume.access_modes.contains(mode)) {
        return Some("incompatible accessMode");
    }
    None
}
