//! The histogram of call durations that CSI sidecars publish.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;

/// The upper bounds of the buckets in seconds, those of the CSI sidecars.
const BUCKETS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    driver_name: String,
    method_name: &'static str,
    grpc_status_code: &'static str,
}

/// `csi_sidecar_operations_seconds`: how long calls took, by `driver_name`, `method_name` (the full gRPC path) and
/// `grpc_status_code`. Clones share the data.
#[derive(Debug, Clone)]
pub struct OperationsSeconds {
    family: Family<Labels, Histogram, fn() -> Histogram>,
    driver: Arc<RwLock<String>>,
}

impl OperationsSeconds {
    /// Makes the histogram and registers it. The driver is called `unknown-driver` until its name is set.
    pub fn register(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(BUCKETS);
        let family = Family::new_with_constructor(new);
        registry.register(
            "csi_sidecar_operations_seconds",
            "Container Storage Interface operation duration with gRPC error code status total",
            family.clone(),
        );
        Self { family, driver: Arc::new(RwLock::new("unknown-driver".to_owned())) }
    }

    /// Sets the `driver_name` of what is recorded from now on.
    pub fn set_driver_name(&self, name: &str) {
        name.clone_into(&mut self.driver.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// Records a call.
    pub fn observe(&self, method: &'static str, code: Code, took: Duration) {
        let driver_name = self.driver.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let labels = Labels { driver_name, method_name: method, grpc_status_code: code_name(code) };
        self.family.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// The name of a gRPC code as Go programs print it, for instance `InvalidArgument`.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
