//! What the workers of one provisioner share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume};
use outrigger_csi::Client as Driver;
use outrigger_kube::{EventType, Recorder, WorkQueue};
use tokio::time::Instant;

use super::Config;
use super::api::Objects;
use super::cache::Cache;
use super::journal::Journal;
use super::metrics::ProvisionerMetrics;
use super::objects::Claim;
use super::plan::{self, Plan};

/// A claim whose request the driver called invalid.
#[derive(Debug, Clone)]
pub(super) struct Infeasible {
    pub(super) class_uid: String,
    pub(super) until: Instant,
}

/// The provisioner's own state, beside what it sees of the cluster.
#[derive(Default)]
pub(super) struct Progress {
    /// Plans of calls that may be under way, by claim UID.
    pub(super) in_flight: HashMap<String, Arc<Plan>>,
    /// UIDs of claims whose volume is saved, and when that was. They are remembered until the claim is seen bound or gone, so that a cache which lags
    /// behind does not lead to a second volume.
    pub(super) settled: HashMap<String, Instant>,
    /// Those of them whose volume object went away before they were seen bound.
    pub(super) bereft: HashSet<String>,
    /// Volumes that are made but not saved, by name.
    pub(super) unsaved: HashMap<String, Arc<PersistentVolume>>,
    /// Claims that are retried slowly, by UID.
    pub(super) infeasible: HashMap<String, Infeasible>,
}

pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) objects: Objects,
    pub(super) driver: Driver,
    pub(super) cache: Arc<Cache>,
    pub(super) journal: Arc<Journal>,
    pub(super) recorder: Recorder,
    pub(super) metrics: ProvisionerMetrics,
    pub(super) claims: WorkQueue<String>,
    pub(super) volumes: WorkQueue<String>,
    pub(super) unsaved: WorkQueue<String>,
    pub(super) sources: WorkQueue<(String, String)>,
    pub(super) locks: NameLocks,
    progress: Mutex<Progress>,
}

/// The parts of which [`Shared`] is made.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) objects: Objects,
    pub(super) driver: Driver,
    pub(super) cache: Arc<Cache>,
    pub(super) journal: Arc<Journal>,
    pub(super) recorder: Recorder,
    pub(super) metrics: ProvisionerMetrics,
    pub(super) queue_metrics: outrigger_kube::QueueMetrics,
    pub(super) replays: Vec<Plan>,
}

impl Shared {
    pub(super) fn new(parts: Parts) -> Self {
        let backoff = parts.config.backoff;
        let metrics = || Some(parts.queue_metrics.clone());
        let progress = Progress {
            in_flight: parts.replays.into_iter().map(|plan| (plan.claim_uid().to_owned(), Arc::new(plan))).collect(),
            ..Progress::default()
        };
        Self {
            claims: WorkQueue::new("claims", backoff, metrics()),
            volumes: WorkQueue::new("volumes", backoff, metrics()),
            unsaved: WorkQueue::new("unsavedpvs", backoff, metrics()),
            sources: WorkQueue::new("cloningprotection", backoff, metrics()),
            config: parts.config,
            objects: parts.objects,
            driver: parts.driver,
            cache: parts.cache,
            journal: parts.journal,
            recorder: parts.recorder,
            metrics: parts.metrics,
            locks: NameLocks::default(),
            progress: Mutex::new(progress),
        }
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        // Each field is consistent by itself.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call has come to a definite end without a volume.
    pub(super) fn forget_call(&self, uid: &str) {
        self.progress().in_flight.remove(uid);
        self.journal.end(uid);
    }

    /// The volume of a claim is saved (or is known to be): its call will never be repeated.
    pub(super) fn settle(&self, uid: &str) {
        let is_claim_known = self.cache.read().claims.contains_key(uid);
        {
            let mut progress = self.progress();
            progress.in_flight.remove(uid);
            progress.infeasible.remove(uid);
            if is_claim_known {
                progress.settled.insert(uid.to_owned(), Instant::now());
            }
        }
        self.journal.end(uid);
    }

    /// A volume object went away. A claim that waits for it, if there still is one, needs another.
    pub(super) fn volume_gone(&self, name: &str) {
        let bereft: Vec<String> = {
            let mut progress = self.progress();
            let of_volume = |uid: &&String| plan::volume_name(&self.config.plan, uid) == name;
            let bereft: Vec<_> = progress.settled.keys().filter(of_volume).cloned().collect();
            progress.bereft.extend(bereft.iter().cloned());
            bereft
        };
        for uid in bereft {
            self.claims.add(uid);
        }
    }

    /// An event on a claim.
    pub(super) fn claim_event(
        &self,
        claim: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder.event(claim, kind, reason, message);
    }
}

/// The reference by which events name a claim.
pub(super) fn reference(claim: &Claim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: Some(claim.namespace.clone()),
        name: Some(claim.name.clone()),
        uid: Some(claim.uid.clone()),
        resource_version: Some(claim.resource_version.clone()),
        field_path: None,
    }
}

/// One lock for each volume name: making and deleting the volume of one name exclude each other.
#[derive(Default)]
pub(super) struct NameLocks {
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// Holds a name until dropped.
pub(super) struct NameGuard<'a> {
    locks: &'a NameLocks,
    name: String,
    guard: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl NameLocks {
    pub(super) async fn lock(&self, name: &str) -> NameGuard<'_> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.entry(name.to_owned()).or_default().clone()
        };
        NameGuard { locks: self, name: name.to_owned(), guard: Some(lock.lock_owned().await) }
    }
}

impl Drop for NameGuard<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = self.locks.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else holds or awaits it: clones are made under the same mutex.
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}
