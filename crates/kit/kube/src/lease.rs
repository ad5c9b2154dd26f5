//! The rules of leader election: values in, values out.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

/// How one lease is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseOptions {
    /// The namespace of the Lease.
    pub namespace: String,
    /// Its name; see [`sanitize_lease_name`].
    pub name: String,
    /// Who we are, unique among the candidates; see [`default_identity`].
    pub identity: String,
    /// How long others wait, from the renewal that they saw last, before they take the lease over. 15 s.
    pub duration: Duration,
    /// How long the holder tries to renew before it gives up. 10 s.
    pub renew_deadline: Duration,
    /// The time between two tries. 5 s.
    pub retry_period: Duration,
    /// Labels that the Lease gets.
    pub labels: BTreeMap<String, String>,
}

/// Why the options make no sense together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseOptionsError {
    /// Another candidate could take over while the holder still believes that it leads.
    #[error("the lease duration of {duration:?} must be longer than the renew deadline of {deadline:?}")]
    DurationTooShort {
        /// [`LeaseOptions::duration`].
        duration: Duration,
        /// [`LeaseOptions::renew_deadline`].
        deadline: Duration,
    },
    /// One failed try would lose the lease.
    #[error("the renew deadline of {deadline:?} must be longer than 1.2 times the retry period of {period:?}")]
    DeadlineTooShort {
        /// [`LeaseOptions::renew_deadline`].
        deadline: Duration,
        /// [`LeaseOptions::retry_period`].
        period: Duration,
    },
    /// The API knows whole seconds.
    #[error("the lease duration of {0:?} must be at least one second")]
    BelowOneSecond(Duration),
    /// A name is missing.
    #[error("the {0} of the lease must not be empty")]
    Empty(&'static str),
}

impl LeaseOptions {
    /// The usual times (15, 10 and 5 seconds), no labels, and the [`default_identity`].
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: default_identity(),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(5),
            labels: BTreeMap::new(),
        }
    }

    /// Checks the times against each other.
    pub fn validate(&self) -> Result<(), LeaseOptionsError> {
        for (what, value) in [("namespace", &self.namespace), ("name", &self.name), ("identity", &self.identity)] {
            if value.is_empty() {
                return Err(LeaseOptionsError::Empty(what));
            }
        }
        if self.duration < Duration::from_secs(1) {
            return Err(LeaseOptionsError::BelowOneSecond(self.duration));
        }
        if self.duration <= self.renew_deadline {
            return Err(LeaseOptionsError::DurationTooShort { duration: self.duration, deadline: self.renew_deadline });
        }
        if self.renew_deadline <= self.retry_period.mul_f64(1.2) {
            return Err(LeaseOptionsError::DeadlineTooShort {
                deadline: self.renew_deadline,
                period: self.retry_period,
            });
        }
        Ok(())
    }
}

/// An identity that no other process has: the host's name (in a pod, the pod's) and a random part.
pub fn default_identity() -> String {
    let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), uuid::Uuid::new_v4())
}

/// Makes a lease name of a driver's name as the CSI sidecars do: what is no letter, digit or dash becomes a dash,
/// and a dash at the end gets an `X`.
pub fn sanitize_lease_name(name: &str) -> String {
    let mut out: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    if out.ends_with('-') {
        out.push('X');
    }
    out
}

/// What was last seen of the lease, and when by our own clock.
///
/// The times written in a lease come from other clocks and are never compared with ours: a lease has run out when
/// it did not change for its duration.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    seen: Option<(LeaseSpec, Instant)>,
}

/// What to do about a lease.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Another one holds it.
    Wait {
        /// Who.
        holder: String,
    },
    /// Write this.
    Write(LeaseSpec),
}

impl Observed {
    /// Takes note of the lease as it is now.
    pub(crate) fn observe(&mut self, spec: &LeaseSpec, now: Instant) {
        if self.seen.as_ref().is_none_or(|(seen, _)| seen != spec) {
            self.seen = Some((spec.clone(), now));
        }
    }

    /// What `options.identity` does about a lease that was observed.
    pub(crate) fn decide(&self, options: &LeaseOptions, now: Instant, wall: Timestamp) -> Decision {
        let Some((spec, since)) = &self.seen else {
            return Decision::Write(held(options, wall, wall, 0));
        };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or(0);
        if holder == options.identity {
            let acquired = spec.acquire_time.as_ref().map_or(wall, |time| time.0);
            return Decision::Write(held(options, acquired, wall, transitions));
        }
        let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
        if !holder.is_empty() && now < *since + Duration::from_secs(seconds) {
            return Decision::Wait { holder: holder.to_owned() };
        }
        Decision::Write(held(options, wall, wall, transitions.saturating_add(1)))
    }
}

fn held(options: &LeaseOptions, acquired: Timestamp, renewed: Timestamp, transitions: i32) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(options.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(options.duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: Some(MicroTime(acquired)),
        renew_time: Some(MicroTime(renewed)),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

/// What a holder writes that gives the lease up: no holder, and the shortest duration.
pub(crate) fn released(spec: &LeaseSpec, wall: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        acquire_time: Some(MicroTime(wall)),
        renew_time: Some(MicroTime(wall)),
        ..spec.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(identity: &str) -> LeaseOptions {
        LeaseOptions { identity: identity.into(), ..LeaseOptions::new("ns", "lease") }
    }

    fn written(decision: Decision) -> LeaseSpec {
        match decision {
            Decision::Write(spec) => spec,
            Decision::Wait { holder } => panic!("held by {holder}"),
        }
    }

    #[test]
    fn names_are_those_of_the_sidecars() {
        assert_eq!(sanitize_lease_name("hostpath.csi.k8s.io"), "hostpath-csi-k8s-io");
        assert_eq!(sanitize_lease_name("a/b_c."), "a-b-c-X");
    }

    #[test]
    fn times_must_fit_together() {
        let good = options("a");
        good.validate().unwrap();
        let bad = LeaseOptions { duration: Duration::from_secs(10), ..good.clone() };
        assert!(matches!(bad.validate(), Err(LeaseOptionsError::DurationTooShort { .. })));
        let bad = LeaseOptions { retry_period: Duration::from_secs(9), ..good.clone() };
        assert!(matches!(bad.validate(), Err(LeaseOptionsError::DeadlineTooShort { .. })));
        let bad = LeaseOptions { name: String::new(), ..good };
        assert_eq!(bad.validate(), Err(LeaseOptionsError::Empty("name")));
    }

    #[tokio::test]
    async fn a_lease_runs_out_by_our_own_clock() {
        let start = Instant::now();
        // The holder's clock is an hour ahead; that must not matter.
        let ahead = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let theirs = written(Observed::default().decide(&options("a"), start, ahead));
        assert_eq!((theirs.lease_transitions, theirs.lease_duration_seconds), (Some(0), Some(15)));
        let mut observed = Observed::default();
        observed.observe(&theirs, start);
        let late = start + Duration::from_secs(14);
        let wait = Decision::Wait { holder: "a".into() };
        assert_eq!(observed.decide(&options("b"), late, Timestamp::now()), wait);
        // A renewal starts the time anew.
        let renewed = LeaseSpec { renew_time: Some(MicroTime(ahead + jiff::SignedDuration::from_secs(5))), ..theirs };
        observed.observe(&renewed, late);
        let later = late + Duration::from_secs(14);
        assert_eq!(observed.decide(&options("b"), later, Timestamp::now()), wait);
        observed.observe(&renewed, later);
        let taken = written(observed.decide(&options("b"), late + Duration::from_secs(15), Timestamp::now()));
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("b"), Some(1)));
    }

    #[tokio::test]
    async fn renewing_keeps_the_history_and_a_release_is_free_at_once() {
        let now = Instant::now();
        let first = written(Observed::default().decide(&options("a"), now, Timestamp::UNIX_EPOCH));
        let mut observed = Observed::default();
        observed.observe(&first, now);
        let renewed = written(observed.decide(&options("a"), now, Timestamp::now()));
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_eq!(renewed.lease_transitions, Some(0));
        assert_ne!(renewed.renew_time, first.renew_time);
        observed.observe(&released(&renewed, Timestamp::now()), now);
        let taken = written(observed.decide(&options("b"), now, Timestamp::now()));
        assert_eq!(taken.lease_transitions, Some(1));
    }
}
