//! Makes a volume for each claim that asks this driver for one, and deletes it when it is released.
//!
//! # The path of a claim
//!
//! The volume controller of Kubernetes annotates a claim with the driver's name. The [claim's step](decide::claim_step) is then to
//! [plan] one `CreateVolume` call, to put the plan on [record], and to call. The answer becomes a
//! [volume object](volume), which is saved for ever; an error is [judged](decide::after_error): definite, or uncertain.
//! Uncertain ones are repeated with the same plan until they are definite, also by the next process after this one, and also
//! when the claim is gone. In that last case the volume object is saved all the same: the volume controller finds no claim for it, marks it
//! `Released`, and its reclaim policy decides. So a volume never depends on this process's memory, and `Retain` is honoured.
//!
//! # The path of a volume
//!
//! A `Released` volume with policy `Delete` that no VolumeAttachment refers to is deleted by the driver, then as an object. A
//! finalizer keeps the object until then. Making and deleting the volume of one name exclude each other.
//!
//! # Rates
//!
//! A claim costs one request (the volume object) and two events, and its share of the record: one write covers all claims that
//! begin or end while the previous one is under way.
//!
//! # Losing the driver
//!
//! The connection is made anew when the driver is back; meanwhile calls fail as `Unavailable`, hence are repeated.

mod api;
mod cache;
mod claims;
mod clone;
pub mod decide;
mod journal;
mod metrics;
pub mod names;
pub mod objects;
pub mod plan;
pub mod record;
mod save;
mod shared;
pub mod storage_class;
pub mod topology;
pub mod volume;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use outrigger_csi::Client as Driver;
use outrigger_daemon::Shutdown;
use outrigger_kube::{Backoff, QueueMetrics, Recorder};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::api::Objects;
use self::cache::{Cache, Trigger};
use self::journal::Journal;
pub use self::metrics::ProvisionerMetrics;
use self::plan::PlanSettings;
use self::shared::{Parts, Shared};

/// Workers that save volumes at the second and later attempts.
const SAVERS: usize = 4;

/// What the driver can do, as far as the provisioner is concerned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriverFeatures {
    /// `VOLUME_ACCESSIBILITY_CONSTRAINTS`.
    pub topology: bool,
    /// `PUBLISH_UNPUBLISH_VOLUME`: attachments exist and have to be heeded.
    pub attach: bool,
    /// `CLONE_VOLUME`.
    pub clone_volume: bool,
    /// `MODIFY_VOLUME`.
    pub modify_volume: bool,
}

/// The settings of a [`Provisioner`].
#[derive(Debug, Clone)]
pub struct Config {
    /// How plans are made.
    pub plan: PlanSettings,
    /// What the driver can do.
    pub driver: DriverFeatures,
    /// `--strict-topology`.
    pub strict_topology: bool,
    /// `--immediate-topology`.
    pub immediate_topology: bool,
    /// Deadline of one call to the driver.
    pub timeout: Duration,
    /// Pauses after failures.
    pub backoff: Backoff,
    /// Claims, and volumes, worked on at once.
    pub workers: usize,
    /// Namespace of the record of calls under way.
    pub namespace: String,
    /// Name of the ConfigMap with that record.
    pub record: String,
    /// Written into each volume's attributes.
    pub identity: String,
}

/// The metrics that a provisioner reports to.
#[derive(Debug, Clone)]
pub struct Reporting {
    /// The provisioner's own.
    pub provisioner: ProvisionerMetrics,
    /// Those of its queues.
    pub queues: QueueMetrics,
}

/// The provisioner of one driver.
pub struct Provisioner {
    client: kube::Client,
    driver: Driver,
    recorder: Recorder,
    config: Config,
    reporting: Reporting,
}

impl Provisioner {
    /// A provisioner that is not running yet.
    pub fn new(client: kube::Client, driver: Driver, recorder: Recorder, config: Config, reporting: Reporting) -> Self {
        Self { client, driver, recorder, config, reporting }
    }

    /// Works until the shutdown; then ends what is under way and writes the record. `ready` is called when the caches are complete
    /// and work begins.
    ///
    /// Errors: the record of calls under way cannot be read. Without it, calls of an earlier process might be forgotten.
    pub async fn run(self, shutdown: &Shutdown, ready: impl FnOnce()) -> Result<(), kube::Error> {
        let objects = Objects::new(self.client);
        let (journal, replays) =
            Journal::open(objects.config_maps(&self.config.namespace), self.config.record.clone()).await?;
        if !replays.is_empty() {
            tracing::info!(calls = replays.len(), "calls of an earlier process are brought to an end");
        }
        let cache = Cache::new(self.config.plan.driver.clone());
        let shared = Arc::new(Shared::new(Parts {
            config: self.config,
            objects,
            driver: self.driver,
            cache,
            journal,
            recorder: self.recorder,
            metrics: self.reporting.provisioner,
            queue_metrics: self.reporting.queues,
            replays,
        }));

        // Both sets end with this future, also when it is dropped where it stands.
        let mut watches = JoinSet::new();
        let kinds = watch(&shared, &mut watches);
        tokio::select! {
            () = shared.cache.synced(&kinds) => {}
            () = shutdown.cancelled() => return Ok(()),
            () = complain(&shared, &kinds) => {}
        }
        let in_flight: Vec<_> = shared.progress().in_flight.keys().cloned().collect();
        for uid in in_flight {
            shared.claims.add(uid);
        }
        ready();

        let stop_journal = CancellationToken::new();
        let mut journal = JoinSet::new();
        journal.spawn({
            let (shared, stop) = (shared.clone(), stop_journal.clone());
            async move { shared.journal.run(stop).await }
        });
        let workers = shared.config.workers;
        let claims = shared.claims.run(workers, shutdown, {
            let shared = shared.clone();
            move |uid| claims::work(shared.clone(), uid)
        });
        let volumes = shared.volumes.run(workers, shutdown, {
            let shared = shared.clone();
            move |name| volumes::work(shared.clone(), name)
        });
        let unsaved = shared.unsaved.run(SAVERS, shutdown, {
            let shared = shared.clone();
            move |name| save::work(shared.clone(), name)
        });
        let sources = shared.sources.run(1, shutdown, {
            let shared = shared.clone();
            move |key| clone::work(shared.clone(), key)
        });
        tokio::join!(claims, volumes, unsaved, sources);
        stop_journal.cancel();
        while journal.join_next().await.is_some() {}
        shared.recorder.flush().await;
        Ok(())
    }
}

/// Starts the watches that this driver needs; gives the kinds to wait for.
fn watch(shared: &Arc<Shared>, watches: &mut JoinSet<()>) -> Vec<&'static str> {
    fn dispatch(shared: &Shared, trigger: Trigger) {
        match trigger {
            Trigger::Claim(uid) => shared.claims.add(uid),
            Trigger::Volume(name) => shared.volumes.add(name),
            Trigger::VolumeGone(name) => shared.volume_gone(&name),
            Trigger::Source(namespace, name) => shared.sources.add((namespace, name)),
        }
    }
    let mut kinds = Vec::new();
    macro_rules! follow {
        ($method:ident, $kind:expr) => {{
            kinds.push($kind);
            let shared = shared.clone();
            watches.spawn(async move {
                let api = shared.objects.all();
                shared.cache.$method(api, |trigger| dispatch(&shared, trigger)).await;
            });
        }};
    }
    follow!(follow_classes, cache::CLASSES);
    follow!(follow_volumes, cache::VOLUMES);
    follow!(follow_claims, cache::CLAIMS);
    if shared.config.driver.attach {
        follow!(follow_attachments, cache::ATTACHMENTS);
    }
    if shared.config.driver.topology {
        follow!(follow_nodes, cache::NODES);
        follow!(follow_csi_nodes, cache::CSI_NODES);
    }
    kinds
}

/// Says what the start waits for, if it takes long. Never ends.
async fn complain(shared: &Shared, kinds: &[&'static str]) {
    let mut interval = tokio::time::interval(Duration::from_secs(30));
    interval.tick().await;
    loop {
        interval.tick().await;
        tracing::warn!(kinds = ?shared.cache.missing(kinds), "still waiting for the first lists from the API server");
    }
}
