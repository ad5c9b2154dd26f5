//! The process's metrics.

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use crate::process::Process;

/// The registry that all parts of the process share. Clones share the data.
///
/// It includes the usual `process_*` metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<RwLock<Registry>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with the process metrics.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        Self { registry: Arc::new(RwLock::new(registry)) }
    }

    /// Registers metrics; gives what `register` gives.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// All metrics in the text format of Prometheus, version 0.0.4.
    pub fn encode(&self) -> String {
        prometheus_text(&self.encode_openmetrics())
    }

    /// All metrics in the text format of OpenMetrics 1.0.
    pub fn encode_openmetrics(&self) -> String {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::new();
        if let Err(error) = text::encode(&mut out, &registry) {
            // A String takes all; only a collector can fail, and then the rest is still good.
            tracing::warn!(%error, "cannot encode all metrics");
        }
        out
    }
}

/// Makes Prometheus text of OpenMetrics text: there, the family of a counter is named with its `_total`, and there
/// are no units and no end mark.
fn prometheus_text(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').or(Some((rest, "")));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn counters_are_named_as_prometheus_wants() {
        let metrics = Metrics::new();
        let calls: Counter = Counter::default();
        let depth: Gauge = Gauge::default();
        metrics.register(|registry| {
            registry.register("calls", "Calls", calls.clone());
            registry.register("depth", "Depth", depth.clone());
        });
        calls.inc();
        depth.set(7);
        let text = metrics.encode();
        assert!(text.contains("# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total 1\n"), "{text}");
        assert!(text.contains("# TYPE depth gauge\ndepth 7\n"), "{text}");
        assert!(!text.contains("EOF") && !text.contains("# UNIT"), "{text}");
        assert!(metrics.encode_openmetrics().ends_with("# EOF\n"));
    }

    #[test]
    fn the_process_is_measured() {
        let text = Metrics::new().encode();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).expect(name);
            line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect(line)
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..600.0).contains(&age), "{age}");
    }
}
