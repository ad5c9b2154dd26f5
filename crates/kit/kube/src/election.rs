//! Leader election over a coordination.k8s.io/v1 Lease.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use outrigger_daemon::{Health, Metrics, Shutdown};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep, timeout};

use crate::lease::{Decision, LeaseOptions, LeaseOptionsError, Observed, released};

/// How long after the lease ran out the health check still passes, as in the CSI sidecars.
const HEALTH_SLACK: Duration = Duration::from_secs(20);
/// How long giving the lease up may take at the end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why leading ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElectionError {
    /// The lease could not be renewed in time. Another candidate may lead by now: the process must end.
    #[error("lost the lease {namespace}/{name}: no renewal within {deadline:?}")]
    Lost {
        /// The lease's namespace.
        namespace: String,
        /// The lease's name.
        name: String,
        /// The renew deadline.
        deadline: Duration,
    },
    /// Another candidate took the lease over.
    #[error("lost the lease {namespace}/{name} to {holder}")]
    Taken {
        /// The lease's namespace.
        namespace: String,
        /// The lease's name.
        name: String,
        /// Who holds it now.
        holder: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    name: String,
}

/// `leader_election_master_status`: 1 for each lease, by `name`, that this process holds. Clones share the data.
#[derive(Debug, Clone, Default)]
pub struct ElectionMetrics {
    leads: Family<NameLabel, Gauge>,
}

impl ElectionMetrics {
    /// Registers the metric.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            registry.register(
                "leader_election_master_status",
                "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master",
                this.leads.clone(),
            );
        });
        this
    }

    fn set(&self, name: &str, leads: bool) {
        let label = NameLabel { name: name.to_owned() };
        self.leads.get_or_create(&label).set(leads.into());
    }
}

/// A candidate for one lease.
pub struct Elector {
    api: Api<Lease>,
    options: LeaseOptions,
    metrics: ElectionMetrics,
    /// When the lease was renewed last, while it is held.
    renewed: Arc<Mutex<Option<Instant>>>,
}

/// What one try gave.
enum Try {
    /// The lease is ours, as written here.
    Ours(Box<Lease>),
    /// Another one holds it.
    Theirs(String),
    /// The API server did not answer, or somebody else wrote first.
    Failed(kube::Error),
}

/// The candidate's memory between two tries.
#[derive(Default)]
struct Memory {
    observed: Observed,
    /// The lease as we wrote it last; while it is ours it can be renewed without reading it.
    ours: Option<Box<Lease>>,
}

impl Elector {
    /// A candidate with these options.
    pub fn new(
        client: kube::Client,
        options: LeaseOptions,
        metrics: ElectionMetrics,
    ) -> Result<Self, LeaseOptionsError> {
        options.validate()?;
        metrics.set(&options.name, false);
        Ok(Self { api: Api::namespaced(client, &options.namespace), options, metrics, renewed: Arc::default() })
    }

    /// Adds the check `leader-election` to `health`: it fails if the lease is held, and was not renewed for its
    /// duration and 20 seconds more.
    pub fn register_health(&self, health: &Health) {
        let renewed = self.renewed.clone();
        let limit = self.options.duration + HEALTH_SLACK;
        health.register("leader-election", move || {
            let age = renewed.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed());
            async move {
                match age {
                    Some(age) if age > limit => Err(format!("lease not renewed for {} s", age.as_secs())),
                    _ => Ok(()),
                }
            }
        });
    }

    /// Waits for the lease, then runs `work` and renews the lease beside it.
    ///
    /// When `work` ends, the lease is given up, so that another candidate need not wait for it to run out; `work` itself must heed
    /// the shutdown. `None` if the shutdown came before the lease. If the lease is lost, `work` is dropped where it
    /// stands and the process should end with an error.
    pub async fn run<T>(&self, shutdown: &Shutdown, work: impl Future<Output = T>) -> Result<Option<T>, ElectionError> {
        let mut memory = Memory::default();
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = self.acquire(&mut memory) => {}
        }
        let name = &self.options.name;
        tracing::info!(lease = %name, identity = %self.options.identity, "became leader");
        self.metrics.set(name, true);
        let outcome = {
            let mut work = std::pin::pin!(work);
            tokio::select! {
                done = work.as_mut() => Ok(done),
                lost = self.keep(&mut memory) => Err(lost),
            }
        };
        self.metrics.set(name, false);
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if outcome.is_ok() {
            self.release(memory).await;
        }
        outcome.map(Some)
    }

    /// Tries until the lease is ours.
    async fn acquire(&self, memory: &mut Memory) {
        let mut reported = None;
        loop {
            match self.try_once_timed(memory, self.options.renew_deadline).await {
                Try::Ours(_) => return,
                Try::Theirs(holder) => {
                    if reported.as_ref() != Some(&holder) {
                        tracing::info!(lease = %self.options.name, %holder, "waiting for the lease");
                        reported = Some(holder);
                    }
                }
                Try::Failed(error) => tracing::warn!(lease = %self.options.name, %error, "cannot get the lease"),
            }
            // Candidates that started together must not stay in step.
            sleep(self.options.retry_period.mul_f64(1.0 + 1.2 * random())).await;
        }
    }

    /// Renews the lease for ever; gives why that ended.
    async fn keep(&self, memory: &mut Memory) -> ElectionError {
        let options = &self.options;
        let mut renewed = Instant::now();
        loop {
            *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(renewed);
            sleep(options.retry_period).await;
            let started = Instant::now();
            let deadline = started + options.renew_deadline;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.try_once_timed(memory, left).await {
                    Try::Ours(_) => break,
                    Try::Theirs(holder) => {
                        return ElectionError::Taken {
                            namespace: options.namespace.clone(),
                            name: options.name.clone(),
                            holder,
                        };
                    }
                    Try::Failed(error) => tracing::warn!(lease = %options.name, %error, "cannot renew the lease"),
                }
                if Instant::now() + options.retry_period >= deadline {
                    tokio::time::sleep_until(deadline).await;
                    return ElectionError::Lost {
                        namespace: options.namespace.clone(),
                        name: options.name.clone(),
                        deadline: options.renew_deadline,
                    };
                }
                sleep(options.retry_period).await;
            }
            renewed = started;
        }
    }

    async fn try_once_timed(&self, memory: &mut Memory, limit: Duration) -> Try {
        match timeout(limit, self.try_once(memory)).await {
            Ok(Try::Ours(lease)) => {
                memory.ours = Some(lease.clone());
                Try::Ours(lease)
            }
            Ok(other) => {
                memory.ours = None;
                other
            }
            Err(_) => {
                memory.ours = None;
                Try::Failed(kube::Error::Service("the API server did not answer in time".into()))
            }
        }
    }

    async fn try_once(&self, memory: &mut Memory) -> Try {
        let options = &self.options;
        if let Some(lease) = memory.ours.take() {
            // While nobody else wrote, the version is known and one request does.
            if let Ok(lease) = self.write(memory, *lease).await {
                return lease;
            }
        }
        match self.api.get_opt(&options.name).await {
            Ok(Some(lease)) => {
                if let Some(spec) = &lease.spec {
                    memory.observed.observe(spec, Instant::now());
                }
                self.write(memory, lease).await.unwrap_or_else(Try::Failed)
            }
            Ok(None) => {
                let mut lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(options.name.clone()),
                        namespace: Some(options.namespace.clone()),
                        ..ObjectMeta::default()
                    },
                    ..Lease::default()
                };
                let Decision::Write(spec) = Observed::default().decide(options, Instant::now(), Timestamp::now())
                else {
                    return Try::Failed(kube::Error::Service("a lease that does not exist is free".into()));
                };
                self.fill(&mut lease, spec);
                match self.api.create(&PostParams::default(), &lease).await {
                    Ok(lease) => Self::taken(memory, lease),
                    Err(error) => Try::Failed(error),
                }
            }
            Err(error) => Try::Failed(error),
        }
    }

    /// Writes `lease`, which carries the version that was read, if it is ours to write.
    async fn write(&self, memory: &mut Memory, mut lease: Lease) -> Result<Try, kube::Error> {
        match memory.observed.decide(&self.options, Instant::now(), Timestamp::now()) {
            Decision::Wait { holder } => Ok(Try::Theirs(holder)),
            Decision::Write(spec) => {
                self.fill(&mut lease, spec);
                let lease = self.api.replace(&self.options.name, &PostParams::default(), &lease).await?;
                Ok(Self::taken(memory, lease))
            }
        }
    }

    fn taken(memory: &mut Memory, lease: Lease) -> Try {
        if let Some(spec) = &lease.spec {
            memory.observed.observe(spec, Instant::now());
        }
        Try::Ours(Box::new(lease))
    }

    fn fill(&self, lease: &mut Lease, spec: LeaseSpec) {
        // Fields that newer servers know and we do not manage stay.
        let old = lease.spec.take().unwrap_or_default();
        lease.spec = Some(LeaseSpec { preferred_holder: old.preferred_holder, strategy: old.strategy, ..spec });
        if !self.options.labels.is_empty() {
            lease.metadata.labels.get_or_insert_default().extend(self.options.labels.clone());
        }
    }

    async fn release(&self, memory: Memory) {
        match timeout(RELEASE_TIMEOUT, self.try_release(memory)).await {
            Ok(Ok(())) => tracing::info!(lease = %self.options.name, "gave up the lease"),
            Ok(Err(error)) => tracing::warn!(lease = %self.options.name, %error, "cannot give up the lease"),
            Err(_) => tracing::warn!(lease = %self.options.name, "giving up the lease took too long"),
        }
    }

    async fn try_release(&self, memory: Memory) -> Result<(), kube::Error> {
        let write = async |mut lease: Lease| {
            lease.spec = lease.spec.as_ref().map(|spec| released(spec, Timestamp::now()));
            self.api.replace(&self.options.name, &PostParams::default(), &lease).await
        };
        if let Some(lease) = memory.ours
            && write(*lease).await.is_ok()
        {
            return Ok(());
        }
        // A renewal was under way when the work ended: find out how it went.
        let holds = |spec: &LeaseSpec| spec.holder_identity.as_ref() == Some(&self.options.identity);
        match self.api.get_opt(&self.options.name).await? {
            Some(lease) if lease.spec.as_ref().is_some_and(holds) => write(lease).await.map(|_| ()),
            _ => Ok(()),
        }
    }
}

/// A number in 0..1.
pub(crate) fn random() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u128();
    f64::from((bits >> 96) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
