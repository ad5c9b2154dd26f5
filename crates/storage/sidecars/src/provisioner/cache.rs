//! The watches, and what is kept of what they show.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::storage::v1 as storage;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::names;
use super::objects::{Claim, Class, Volume};
use super::topology::Cluster;

/// What has to be looked at again because of a change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Trigger {
    /// The claim with this UID.
    Claim(String),
    /// The volume of this name.
    Volume(String),
    /// The volume of this name is gone.
    VolumeGone(String),
    /// The source of a clone, by namespace and name.
    Source(String, String),
}

/// All that is known of the cluster.
#[derive(Default)]
pub(super) struct Known {
    /// Unbound claims for this driver, by UID.
    pub(super) claims: HashMap<String, Arc<Claim>>,
    /// Classes of this driver, by name.
    pub(super) classes: HashMap<String, Arc<Class>>,
    /// This driver's volumes, by name.
    pub(super) volumes: HashMap<String, Volume>,
    /// Attachment name → volume name and node name.
    attachments: HashMap<String, (String, String)>,
    /// Deleted claims that wait for our cloning finalizer to go, by namespace and name.
    pub(super) sources: HashSet<(String, String)>,
    /// Nodes and the driver's registrations there.
    pub(super) cluster: Cluster,
}

impl Known {
    /// A node to which the volume is still attached.
    pub(super) fn attached_to(&self, volume: &str) -> Option<&str> {
        self.attachments.values().find(|(name, _)| name == volume).map(|(_, node)| node.as_str())
    }
}

/// The caches of one provisioner.
pub(super) struct Cache {
    driver: String,
    known: RwLock<Known>,
    /// Names of watches whose first list is complete.
    synced: watch::Sender<HashSet<&'static str>>,
}

/// How one kind is kept: by a key, so that objects which vanished while a watch was down can be told.
trait Kind: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static {
    const NAME: &'static str;

    /// Keeps what matters; returns what to look at.
    fn apply(self, cache: &Cache, known: &mut Known) -> Vec<Trigger>;

    /// Forgets the object of this key.
    fn forget(key: &str, known: &mut Known) -> Vec<Trigger>;

    /// The keys of what is kept.
    fn keys(known: &Known) -> Vec<String>;

    fn key(&self) -> String {
        self.name_any()
    }
}

impl Cache {
    pub(super) fn new(driver: String) -> Arc<Self> {
        Arc::new(Self { driver, known: RwLock::default(), synced: watch::Sender::default() })
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the first lists of these kinds are complete.
    pub(super) async fn synced(&self, kinds: &[&'static str]) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|done| kinds.iter().all(|kind| done.contains(kind))).await;
    }

    /// Kinds whose first list is not complete.
    pub(super) fn missing(&self, kinds: &[&'static str]) -> Vec<&'static str> {
        let synced = self.synced.borrow();
        kinds.iter().copied().filter(|kind| !synced.contains(kind)).collect()
    }

    /// Follows one kind for ever. Failures are retried with backoff; an expired position (410) leads to a new list.
    async fn follow<K: Kind>(&self, api: Api<K>, trigger: impl Fn(Trigger)) {
        loop {
            self.follow_once(api.clone(), &trigger).await;
        }
    }

    /// Follows one kind until its position has expired in a way that the watcher would not get over.
    async fn follow_once<K: Kind>(&self, api: Api<K>, trigger: &impl Fn(Trigger)) {
        let stream = watcher(api, watcher::Config::default()).default_backoff();
        pin_mut!(stream);
        let mut seen = HashSet::new();
        while let Some(event) = stream.next().await {
            let triggers = match event {
                Ok(watcher::Event::Init) => {
                    seen.clear();
                    Vec::new()
                }
                Ok(watcher::Event::InitApply(object)) => {
                    seen.insert(object.key());
                    object.apply(self, &mut self.write())
                }
                Ok(watcher::Event::InitDone) => {
                    let triggers = self.forget_all_but::<K>(&std::mem::take(&mut seen));
                    self.synced.send_if_modified(|synced| synced.insert(K::NAME));
                    triggers
                }
                Ok(watcher::Event::Apply(object)) => object.apply(self, &mut self.write()),
                Ok(watcher::Event::Delete(object)) => K::forget(&object.key(), &mut self.write()),
                Err(error) => {
                    tracing::warn!(
                        kind = K::NAME,
                        error = &error as &dyn std::error::Error,
                        "watch failed, trying again"
                    );
                    // The watcher starts over when a watch says that it has expired, but not when the server refuses to start it for that reason.
                    if matches!(&error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
                    {
                        return;
                    }
                    Vec::new()
                }
            };
            triggers.into_iter().for_each(trigger);
        }
    }

    fn forget_all_but<K: Kind>(&self, seen: &HashSet<String>) -> Vec<Trigger> {
        let mut known = self.write();
        let gone: Vec<_> = K::keys(&known).into_iter().filter(|key| !seen.contains(key)).collect();
        gone.iter().flat_map(|key| K::forget(key, &mut known)).collect()
    }

    pub(super) async fn follow_claims(&self, api: Api<core::PersistentVolumeClaim>, trigger: impl Fn(Trigger)) {
        self.follow(api, trigger).await;
    }

    pub(super) async fn follow_volumes(&self, api: Api<core::PersistentVolume>, trigger: impl Fn(Trigger)) {
        self.follow(api, trigger).await;
    }

    pub(super) async fn follow_classes(&self, api: Api<storage::StorageClass>, trigger: impl Fn(Trigger)) {
        self.follow(api, trigger).await;
    }

    pub(super) async fn follow_attachments(&self, api: Api<storage::VolumeAttachment>, trigger: impl Fn(Trigger)) {
        self.follow(api, trigger).await;
    }

    pub(super) async fn follow_nodes(&self, api: Api<core::Node>, trigger: impl Fn(Trigger)) {
        self.follow(api, trigger).await;
    }

    pub(super) async fn follow_csi_nodes(&self, api: Api<storage::CSINode>, trigger: impl Fn(Trigger)) {
        self.follow(api, trigger).await;
    }
}

/// Names under which the kinds are reported as synced.
pub(super) const CLAIMS: &str = "persistentvolumeclaims";
pub(super) const VOLUMES: &str = "persistentvolumes";
pub(super) const CLASSES: &str = "storageclasses";
pub(super) const ATTACHMENTS: &str = "volumeattachments";
pub(super) const NODES: &str = "nodes";
pub(super) const CSI_NODES: &str = "csinodes";

impl Kind for core::PersistentVolumeClaim {
    const NAME: &'static str = CLAIMS;

    fn key(&self) -> String {
        self.uid().unwrap_or_default()
    }

    fn apply(self, cache: &Cache, known: &mut Known) -> Vec<Trigger> {
        let guarded = self.metadata.deletion_timestamp.is_some()
            && self.finalizers().iter().any(|name| name == names::CLONING_FINALIZER);
        let claim = Claim::from(self);
        let mut triggers = Vec::new();
        let source = (claim.namespace.clone(), claim.name.clone());
        let of_driver = claim.is_for(&cache.driver) || known.volumes.contains_key(&claim.volume_name);
        if guarded && of_driver {
            known.sources.insert(source.clone());
            triggers.push(Trigger::Source(source.0, source.1));
        } else {
            known.sources.remove(&source);
        }
        if claim.volume_name.is_empty() && claim.is_for(&cache.driver) {
            triggers.push(Trigger::Claim(claim.uid.clone()));
            known.claims.insert(claim.uid.clone(), Arc::new(claim));
        } else {
            triggers.extend(Self::forget(&claim.uid, known));
        }
        triggers
    }

    fn forget(key: &str, known: &mut Known) -> Vec<Trigger> {
        let Some(claim) = known.claims.remove(key) else {
            return Vec::new();
        };
        let mut triggers = vec![Trigger::Claim(key.to_owned())];
        if let Some(source) = &claim.source {
            let source = (claim.namespace.clone(), source.name.clone());
            if known.sources.contains(&source) {
                triggers.push(Trigger::Source(source.0, source.1));
            }
        }
        triggers
    }

    fn keys(known: &Known) -> Vec<String> {
        known.claims.keys().cloned().collect()
    }
}

impl Kind for core::PersistentVolume {
    const NAME: &'static str = VOLUMES;

    fn apply(self, cache: &Cache, known: &mut Known) -> Vec<Trigger> {
        let Some(volume) = Volume::of_driver(&self, &cache.driver) else {
            return Self::forget(&self.name_any(), known);
        };
        let name = volume.name.clone();
        known.volumes.insert(name.clone(), volume);
        vec![Trigger::Volume(name)]
    }

    fn forget(key: &str, known: &mut Known) -> Vec<Trigger> {
        match known.volumes.remove(key) {
            Some(volume) => vec![Trigger::VolumeGone(volume.name)],
            None => Vec::new(),
        }
    }

    fn keys(known: &Known) -> Vec<String> {
        known.volumes.keys().cloned().collect()
    }
}

impl Kind for storage::StorageClass {
    const NAME: &'static str = CLASSES;

    fn apply(self, _: &Cache, known: &mut Known) -> Vec<Trigger> {
        let class = Class::from(self);
        // Claims may have waited for the class, or for a better one of that name.
        let waiting = known.claims.values().filter(|claim| claim.class == class.name);
        let triggers = waiting.map(|claim| Trigger::Claim(claim.uid.clone())).collect();
        known.classes.insert(class.name.clone(), Arc::new(class));
        triggers
    }

    fn forget(key: &str, known: &mut Known) -> Vec<Trigger> {
        known.classes.remove(key);
        Vec::new()
    }

    fn keys(known: &Known) -> Vec<String> {
        known.classes.keys().cloned().collect()
    }
}

impl Kind for storage::VolumeAttachment {
    const NAME: &'static str = ATTACHMENTS;

    fn apply(self, _: &Cache, known: &mut Known) -> Vec<Trigger> {
        let name = self.name_any();
        if let Some(volume) = self.spec.source.persistent_volume_name {
            known.attachments.insert(name, (volume, self.spec.node_name));
        }
        Vec::new()
    }

    fn forget(key: &str, known: &mut Known) -> Vec<Trigger> {
        match known.attachments.remove(key) {
            // Its deletion may have waited for this.
            Some((volume, _)) if known.volumes.contains_key(&volume) => vec![Trigger::Volume(volume)],
            _ => Vec::new(),
        }
    }

    fn keys(known: &Known) -> Vec<String> {
        known.attachments.keys().cloned().collect()
    }
}

impl Kind for core::Node {
    const NAME: &'static str = NODES;

    fn apply(self, _: &Cache, known: &mut Known) -> Vec<Trigger> {
        let labels: BTreeMap<_, _> = self.metadata.labels.clone().unwrap_or_default();
        known.cluster.nodes.insert(self.name_any(), labels);
        Vec::new()
    }

    fn forget(key: &str, known: &mut Known) -> Vec<Trigger> {
        known.cluster.nodes.remove(key);
        Vec::new()
    }

    fn keys(known: &Known) -> Vec<String> {
        known.cluster.nodes.keys().cloned().collect()
    }
}

impl Kind for storage::CSINode {
    const NAME: &'static str = CSI_NODES;

    fn apply(self, cache: &Cache, known: &mut Known) -> Vec<Trigger> {
        let name = self.name_any();
        let keys = self
            .spec
            .drivers
            .into_iter()
            .find(|driver| driver.name == cache.driver)
            .and_then(|driver| driver.topology_keys)
            .unwrap_or_default();
        known.cluster.csi_nodes.insert(name, keys);
        Vec::new()
    }

    fn forget(key: &str, known: &mut Known) -> Vec<Trigger> {
        known.cluster.csi_nodes.remove(key);
        Vec::new()
    }

    fn keys(known: &Known) -> Vec<String> {
        known.cluster.csi_nodes.keys().cloned().collect()
    }
}
