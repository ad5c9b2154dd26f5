//! From the command line to running controllers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outrigger_csi::{Capabilities, Client, ControllerCapability, PluginService, proto};
use outrigger_daemon::{Health, HttpEndpoint, Metrics, Shutdown};
use outrigger_kube::{Backoff, ElectionMetrics, Elector, LeaseOptions, QueueMetrics, Recorder};
use outrigger_rpc::{Endpoint, Observer, OperationsSeconds};
use tonic::Code;

use crate::Options;
use crate::provisioner::plan::PlanSettings;
use crate::provisioner::{Config, DriverFeatures, Provisioner, ProvisionerMetrics, Reporting};

/// How long the driver's socket is waited for before that is worth a message.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of the calls that ask the driver about itself.
const INFO_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the driver is asked whether it is well, and how often once it is not.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const LOST_PROBE_INTERVAL: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why the controllers cannot run, or run no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A flag that this release does not support.
    #[error("{flag} is not supported: {reason}")]
    Unsupported {
        /// The flag.
        flag: &'static str,
        /// Why, and what to do instead.
        reason: &'static str,
    },
    /// Flags that contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// No access to the API server.
    #[error("failed to set up the Kubernetes client")]
    Kube(#[source] outrigger_kube::ClientError),
    /// The health and metrics port.
    #[error("failed to open the HTTP endpoint {address}")]
    Http {
        /// The address as it was given.
        address: String,
        /// Why.
        #[source]
        source: outrigger_daemon::EndpointError,
    },
    /// The driver answers, but with an error.
    #[error("failed to ask the CSI driver at {endpoint} about itself")]
    Driver {
        /// The driver's socket.
        endpoint: Box<Endpoint>,
        /// The failed call.
        #[source]
        source: Box<outrigger_csi::CallError>,
    },
    /// The driver cannot make volumes.
    #[error("the CSI driver {driver} does not advertise {missing}, which the provisioner needs")]
    Incapable {
        /// Name of the driver.
        driver: String,
        /// The capability.
        missing: &'static str,
    },
    /// Another driver, or another version of it, came back on the socket.
    #[error("the CSI driver at {endpoint} is not what it was: it now is {now}; start again")]
    DriverChanged {
        /// The driver's socket.
        endpoint: Box<Endpoint>,
        /// What is there now.
        now: String,
    },
    /// The election's settings.
    #[error("failed to set up leader election")]
    LeaseOptions(#[from] outrigger_kube::LeaseOptionsError),
    /// Another process leads now.
    #[error("failed to stay the leader")]
    Election(#[from] outrigger_kube::ElectionError),
    /// The record of calls under way.
    #[error("failed to read the record of calls under way, ConfigMap {namespace}/{name}")]
    Record {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server says.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Runs the controllers until the shutdown, which ends them cleanly: what is under way is finished, the lease given up.
///
/// The driver's socket is waited for without end, and when it is lost later, the connection is made anew: `/readyz` tells.
pub async fn run(options: Options, shutdown: Shutdown) -> Result<(), Error> {
    check(&options)?;
    let metrics = Metrics::new();
    let http = match options.http_endpoint.as_str() {
        "" => None,
        address => Some(
            HttpEndpoint::bind(address, metrics.clone(), &options.metrics_path)
                .await
                .map_err(|source| Error::Http { address: address.to_owned(), source })?,
        ),
    };
    let health = http.as_ref().map_or_else(Health::new, HttpEndpoint::health);
    let serve = async {
        match http {
            Some(http) => http.serve(shutdown.clone()).await,
            None => shutdown.cancelled().await,
        }
    };
    let work = work(options, shutdown.clone(), metrics, health);
    let mut work = std::pin::pin!(work);
    tokio::select! {
        outcome = &mut work => outcome,
        () = serve => work.await,
    }
}

/// Refuses what is not there, rather than running without it.
fn check(options: &Options) -> Result<(), Error> {
    if options.node_deployment {
        return Err(Error::Unsupported {
            flag: "--node-deployment",
            reason: "this release provisions from one place; run it as a Deployment with --leader-election",
        });
    }
    if options.enable_capacity {
        return Err(Error::Unsupported {
            flag: "--enable-capacity",
            reason: "this release publishes no CSIStorageCapacity objects; set storageCapacity: false in the CSIDriver object",
        });
    }
    if options.retry_interval_start > options.retry_interval_max {
        return Err(Error::Contradiction("--retry-interval-start must not be longer than --retry-interval-max"));
    }
    Ok(())
}

/// What the driver says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct About {
    name: String,
    version: String,
    capabilities: Capabilities,
}

impl About {
    async fn ask(driver: &Client, endpoint: &Endpoint) -> Result<Self, Error> {
        let failed = |source| Error::Driver { endpoint: Box::new(endpoint.clone()), source: Box::new(source) };
        let info = driver.plugin_info(INFO_TIMEOUT).await.map_err(failed)?;
        let capabilities = driver.capabilities(INFO_TIMEOUT).await.map_err(failed)?;
        Ok(Self { name: info.name, version: info.vendor_version, capabilities })
    }
}

/// Finds the driver, then leads and works.
async fn work(options: Options, shutdown: Shutdown, metrics: Metrics, health: Health) -> Result<(), Error> {
    // Before the driver is waited for, however long that takes: a wrong kubeconfig is to be told at once.
    let client = outrigger_kube::client(options.kubeconfig.as_deref(), options.kube_api_qps, options.kube_api_burst)
        .await
        .map_err(Error::Kube)?;
    let endpoint = options.csi_address.clone();
    let operations = metrics.register(OperationsSeconds::register);
    let observer = Observer::new(proto::descriptor_pool().clone()).at_debug().with_metrics(operations.clone());
    let driver = tokio::select! {
        driver = connect(&endpoint, observer) => driver?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let about = About::ask(&driver, &endpoint).await?;
    operations.set_driver_name(&about.name);
    for (missing, capability) in [
        ("CONTROLLER_SERVICE", about.capabilities.has(PluginService::ControllerService)),
        ("CREATE_DELETE_VOLUME", about.capabilities.has(ControllerCapability::CreateDeleteVolume)),
    ] {
        if !capability {
            return Err(Error::Incapable { driver: about.name, missing });
        }
    }
    tracing::info!(driver = about.name, version = about.version, %endpoint, "CSI driver found");

    let namespace = match &options.leader_election_namespace {
        Some(namespace) => namespace.clone(),
        None => own_namespace(client.default_namespace()),
    };
    let config = config(&options, &about, &namespace);
    let reporting =
        Reporting { provisioner: ProvisionerMetrics::register(&metrics), queues: QueueMetrics::register(&metrics) };
    let source = format!("{}_{}", about.name, outrigger_kube::default_identity());
    let recorder = Recorder::new(client.clone(), &source, None);
    let record = config.record.clone();
    let provisioner = Provisioner::new(client.clone(), driver.clone(), recorder, config, reporting);

    // A candidate that waits for its turn is as ready as it can be.
    let is_working = AtomicBool::new(options.leader_election);
    let provision = async {
        let begin = || {
            is_working.store(true, Ordering::Release);
            health.set_ready(true);
            tracing::info!(driver = about.name, "provisioner started");
            if let Err(error) = outrigger_daemon::notify_ready() {
                tracing::warn!("cannot tell the supervisor that the provisioner is ready: {error}");
            }
        };
        provisioner.run(&shutdown, begin).await.map_err(|source| Error::Record {
            namespace: namespace.clone(),
            name: record,
            source: Box::new(source),
        })
    };
    let lead = async {
        if !options.leader_election {
            return provision.await;
        }
        let lease = LeaseOptions {
            duration: options.leader_election_lease_duration,
            renew_deadline: options.leader_election_renew_deadline,
            retry_period: options.leader_election_retry_period,
            ..LeaseOptions::new(namespace.clone(), lease_name(&about.name))
        };
        let elector = Elector::new(client, lease, ElectionMetrics::register(&metrics))?;
        elector.register_health(&health);
        Box::pin(elector.run(&shutdown, provision)).await?.unwrap_or(Ok(()))
    };
    tokio::select! {
        outcome = lead => outcome,
        error = monitor(&driver, &endpoint, &about, &health, &is_working) => Err(error),
    }
}

/// Connects, however long that takes, and waits until the driver is ready.
async fn connect(endpoint: &Endpoint, observer: Observer) -> Result<Client, Error> {
    let driver = loop {
        match Client::connect(endpoint, CONNECT_TIMEOUT).await {
            Ok(driver) => break driver.with_observer(observer),
            Err(error) => {
                tracing::warn!(%endpoint, error = &error as &dyn std::error::Error, "still waiting for the CSI driver");
            }
        }
    };
    loop {
        match driver.wait_ready().await {
            Ok(()) => return Ok(driver),
            // It went away again, as drivers do that are being set up.
            Err(error) if error.code() == Code::Unavailable => {
                tracing::warn!(%endpoint, error = &error as &dyn std::error::Error, "the CSI driver went away");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(source) => {
                return Err(Error::Driver { endpoint: Box::new(endpoint.clone()), source: Box::new(source) });
            }
        }
    }
}

/// Watches over the driver. Ends only if something else came back in its place.
async fn monitor(
    driver: &Client,
    endpoint: &Endpoint,
    about: &About,
    health: &Health,
    is_working: &AtomicBool,
) -> Error {
    let mut was_well = true;
    loop {
        tokio::time::sleep(if was_well { PROBE_INTERVAL } else { LOST_PROBE_INTERVAL }).await;
        let outcome = driver.probe(proto::ProbeRequest {}, PROBE_TIMEOUT).await;
        let is_well = match &outcome {
            Ok(response) => response.ready != Some(false),
            // Slow is not gone.
            Err(error) => error.code() == Code::DeadlineExceeded,
        };
        if is_well && !was_well {
            match About::ask(driver, endpoint).await {
                Ok(now) if now == *about => tracing::info!(%endpoint, "the CSI driver is back"),
                Ok(now) => {
                    return Error::DriverChanged {
                        endpoint: Box::new(endpoint.clone()),
                        now: format!("{} {}", now.name, now.version),
                    };
                }
                Err(_) => continue,
            }
        } else if !is_well && was_well {
            let error = outcome.err();
            tracing::error!(%endpoint, error = error.as_ref().map(|e| e as &dyn std::error::Error), "lost connection to the CSI driver, reconnecting");
        }
        was_well = is_well;
        health.set_ready(is_well && is_working.load(Ordering::Acquire));
    }
}

fn config(options: &Options, about: &About, namespace: &str) -> Config {
    let has = |capability: ControllerCapability| about.capabilities.has(capability);
    Config {
        plan: PlanSettings {
            driver: about.name.clone(),
            volume_name_prefix: options.volume_name_prefix.clone(),
            volume_name_uuid_length: usize::try_from(options.volume_name_uuid_length).ok(),
            default_fs_type: options.default_fstype.clone(),
            extra_create_metadata: options.extra_create_metadata,
            controller_publish_readonly: options.controller_publish_readonly,
            single_node_multi_writer: has(ControllerCapability::SingleNodeMultiWriter),
        },
        driver: DriverFeatures {
            topology: about.capabilities.has(PluginService::VolumeAccessibilityConstraints),
            attach: has(ControllerCapability::PublishUnpublishVolume),
            clone_volume: has(ControllerCapability::CloneVolume),
            modify_volume: has(ControllerCapability::ModifyVolume),
        },
        strict_topology: options.strict_topology,
        immediate_topology: options.immediate_topology,
        timeout: options.timeout,
        backoff: Backoff { start: options.retry_interval_start, max: options.retry_interval_max },
        workers: usize::try_from(options.worker_threads).unwrap_or(usize::MAX),
        namespace: namespace.to_owned(),
        record: format!("outrigger-provisioner-{}", about.name.to_ascii_lowercase()),
        identity: identity(&about.name),
    }
}

/// The name that the original gives its Lease, so that the two exclude each other while one takes the other's place.
fn lease_name(driver: &str) -> String {
    let mut name = driver.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-");
    if name.ends_with('-') {
        name.push('X');
    }
    name
}

/// When this process started, a random number, and the driver: the form that the original writes.
fn identity(driver: &str) -> String {
    let random = uuid::Uuid::new_v4().as_u128() % 10_000;
    format!("{}-{random}-{driver}", jiff::Timestamp::now().as_millisecond())
}

/// The pod's namespace, else that of the kubeconfig.
fn own_namespace(default: &str) -> String {
    fs_err::read_to_string("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or_else(|| default.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_is_the_originals() {
        assert_eq!(lease_name("hostpath.csi.k8s.io"), "hostpath-csi-k8s-io");
        assert_eq!(lease_name("example.com/driver"), "example-com-driver");
        assert_eq!(lease_name("driver."), "driver-X");
        assert_eq!(lease_name("a1-b2"), "a1-b2");
    }
}
