//! What every daemon needs: logs, signals, and the health and metrics port.
//!
//! - [`LogOptions`] and [`init_logs`]: text on a terminal, JSON otherwise, with the verbosity numbers of klog.
//! - [`Shutdown`]: the first SIGTERM or SIGINT asks for a clean end, the second one ends at once.
//! - [`Metrics`]: one registry for the process, as Prometheus text.
//! - [`notify_ready`]: tells the supervisor, systemd or another, that the process is ready.
//! - [`HttpEndpoint`]: `/metrics`, `/healthz` and `/readyz` on one port.

mod http;
mod logs;
mod metrics;
mod notify;
mod process;
mod shutdown;

pub use http::{EndpointError, Health, HttpEndpoint};
pub use logs::{LogFormat, LogOptions, init_logs};
pub use metrics::Metrics;
pub use notify::notify_ready;
pub use shutdown::Shutdown;
