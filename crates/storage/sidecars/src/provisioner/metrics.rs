//! What the provisioner counts, under the names of the original.

use std::time::Duration;

use outrigger_daemon::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProvisionLabels {
    class: String,
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeleteLabels {
    class: String,
}

/// `controller_persistentvolumeclaim_provision_*` and `controller_persistentvolume_delete_*`. Clones share the data.
#[derive(Debug, Clone)]
pub struct ProvisionerMetrics {
    provisioned: Family<ProvisionLabels, Counter>,
    provision_failed: Family<ProvisionLabels, Counter>,
    provision_seconds: Family<ProvisionLabels, Histogram, fn() -> Histogram>,
    deleted: Family<DeleteLabels, Counter>,
    delete_failed: Family<DeleteLabels, Counter>,
    delete_seconds: Family<DeleteLabels, Histogram, fn() -> Histogram>,
}

fn seconds() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

impl ProvisionerMetrics {
    /// Registers the metrics. Twice in one registry would publish them twice.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self {
            provisioned: Family::default(),
            provision_failed: Family::default(),
            provision_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            deleted: Family::default(),
            delete_failed: Family::default(),
            delete_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
        };
        metrics.register(|registry| {
            let claims = registry.sub_registry_with_prefix("controller_persistentvolumeclaim");
            claims.register(
                "provision",
                "Volumes made, by class and by the kind of the claim's data source",
                this.provisioned.clone(),
            );
            claims.register(
                "provision_failed",
                "Attempts to make a volume that failed, by class and by the kind of the claim's data source",
                this.provision_failed.clone(),
            );
            claims.register(
                "provision_duration_seconds",
                "How long successful attempts to make a volume took",
                this.provision_seconds.clone(),
            );
            let volumes = registry.sub_registry_with_prefix("controller_persistentvolume");
            volumes.register("delete", "Volumes deleted, by class", this.deleted.clone());
            volumes.register(
                "delete_failed",
                "Attempts to delete a volume that failed, by class",
                this.delete_failed.clone(),
            );
            volumes.register(
                "delete_duration_seconds",
                "How long successful attempts to delete a volume took",
                this.delete_seconds.clone(),
            );
        });
        this
    }

    /// An attempt to make a volume ended; `took` only if it succeeded.
    pub(super) fn provisioned(&self, class: &str, source: &str, took: Option<Duration>) {
        let labels = ProvisionLabels { class: class.to_owned(), source: source.to_owned() };
        if let Some(took) = took {
            self.provisioned.get_or_create(&labels).inc();
            self.provision_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        } else {
            self.provision_failed.get_or_create(&labels).inc();
        }
    }

    /// An attempt to delete a volume ended; `took` only if it succeeded.
    pub(super) fn deleted(&self, class: &str, took: Option<Duration>) {
        let labels = DeleteLabels { class: class.to_owned() };
        if let Some(took) = took {
            self.deleted.get_or_create(&labels).inc();
            self.delete_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        } else {
            self.delete_failed.get_or_create(&labels).inc();
        }
    }
}
