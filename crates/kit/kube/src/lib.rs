//! Controller plumbing: client set-up, leader election, events, work queues.
//!
//! What goes over the wire is what controllers built on client-go send, so that ours can take turns with them: the
//! same Lease protocol, the same form of Events, the same metrics.

mod client;
mod election;
mod events;
#[cfg(test)]
mod fake;
mod lease;
mod queue;
mod rate;

pub use client::{ClientError, client};
pub use election::{ElectionError, ElectionMetrics, Elector};
pub use events::{EventType, Recorder};
pub use lease::{LeaseOptions, LeaseOptionsError, default_identity, sanitize_lease_name};
pub use queue::{Backoff, Outcome, QueueMetrics, Work, WorkQueue};
pub use rate::{RateLimit, RateLimitLayer};
