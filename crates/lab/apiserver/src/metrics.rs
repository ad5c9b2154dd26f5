//! A few series in the Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::api::Api;

/// Counters of the API.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, String, u16), u64>>,
    pub(crate) watches: AtomicI64,
}

impl Metrics {
    /// Counts a finished request.
    pub(crate) fn count(&self, verb: &'static str, resource: &str, code: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((verb, resource.to_owned(), code)).or_default() += 1;
    }
}

impl Api {
    /// The text of `/metrics`.
    pub(crate) fn metrics_text(&self) -> String {
        let mut out = String::from(
            "# HELP apiserver_request_total Requests by verb, resource and code.\n# TYPE apiserver_request_total counter\n",
        );
        for ((verb, resource, code), count) in
            self.0.metrics.requests.lock().unwrap_or_else(PoisonError::into_inner).iter()
        {
            let _ = writeln!(
                out,
                "apiserver_request_total{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {count}"
            );
        }
        out.push_str(
            "# HELP apiserver_longrunning_requests Open watches.\n# TYPE apiserver_longrunning_requests gauge\n",
        );
        let _ = writeln!(
            out,
            "apiserver_longrunning_requests{{verb=\"watch\"}} {}",
            self.0.metrics.watches.load(Ordering::Relaxed)
        );
        let stats = self.store().stats();
        out.push_str("# HELP apiserver_storage_objects Objects stored.\n# TYPE apiserver_storage_objects gauge\n");
        let _ = writeln!(out, "apiserver_storage_objects {}", stats.keys);
        out.push_str("# HELP apiserver_storage_size_bytes Bytes of the stored objects.\n# TYPE apiserver_storage_size_bytes gauge\n");
        let _ = writeln!(out, "apiserver_storage_size_bytes {}", stats.value_bytes);
        out.push_str("# HELP outrigger_store_revision Newest revision.\n# TYPE outrigger_store_revision counter\n");
        let _ = writeln!(out, "outrigger_store_revision {}", stats.revision);
        out
    }
}
