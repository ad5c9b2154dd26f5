//! The command line of the controllers.

use std::path::PathBuf;
use std::time::Duration;

use outrigger_rpc::Endpoint;

/// Settings of `outrigger storage controllers`. Flags that the original sidecars have keep their names and defaults.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The driver's socket.
    #[arg(long, env = "CSI_ADDRESS", default_value = "/run/csi/socket", value_name = "ENDPOINT")]
    pub csi_address: Endpoint,

    /// Kubeconfig file; without it, the pod's service account, or KUBECONFIG.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Requests a second to the API server, on average. Three are needed for each claim, so raise it (and the burst) for bulk work.
    #[arg(long, default_value_t = 5.0, value_name = "N")]
    pub kube_api_qps: f32,

    /// Requests to the API server that may be made at once after a pause.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub kube_api_burst: u32,

    /// Let only one of several replicas work, by a Lease named after the driver.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub leader_election: bool,

    /// Namespace of the Lease, and of the ConfigMap that records calls under way. Default: the pod's own, else `default`.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub leader_election_namespace: Option<String>,

    /// How long a leader that fell silent is waited for.
    #[arg(long, default_value = "15s", value_parser = duration, value_name = "DURATION")]
    pub leader_election_lease_duration: Duration,

    /// How long the leader tries to renew before it steps down.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub leader_election_renew_deadline: Duration,

    /// Pause between attempts to become, or to stay, the leader.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    pub leader_election_retry_period: Duration,

    /// Address for /metrics, /healthz and /readyz, for example `:8080`. Default: none.
    #[arg(long, default_value = "", value_name = "ADDRESS")]
    pub http_endpoint: String,

    /// Path of the metrics.
    #[arg(long, default_value = "/metrics", value_name = "PATH")]
    pub metrics_path: String,

    /// Prefix of the names of new volumes.
    #[arg(long, default_value = "pvc", value_parser = name_prefix, value_name = "PREFIX")]
    pub volume_name_prefix: String,

    /// Shorten the claim's UID in volume names to this many hex digits; -1 keeps it whole.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=32), value_name = "N")]
    pub volume_name_uuid_length: i64,

    /// How many claims, and how many volumes, are worked on at once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    pub worker_threads: u32,

    /// How long one call to the driver may take. A call that takes longer is repeated until it has an end.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,

    /// First pause after a failure; it doubles with each further one.
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    pub retry_interval_start: Duration,

    /// Longest pause after failures, and the pause after a request that the driver calls invalid.
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub retry_interval_max: Duration,

    /// Filesystem for volumes whose class names none. Empty: the driver's choice.
    #[arg(long, default_value = "", value_name = "TYPE")]
    pub default_fstype: String,

    /// Give the driver the names of claim and volume as parameters.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub extra_create_metadata: bool,

    /// Late binding: offer the driver the selected node's segment only.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub strict_topology: bool,

    /// Immediate binding: offer the driver all segments of the cluster (rather than none).
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub immediate_topology: bool,

    /// Mark volumes as read-only at publishing when the claim's only access mode is `ReadOnlyMany`.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub controller_publish_readonly: bool,

    /// Run on each node for node-local volumes. Not available in this release.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub node_deployment: bool,

    /// Publish CSIStorageCapacity objects. Not available in this release.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub enable_capacity: bool,
}

/// A duration as Go programs write it (`10s`, `1m30s`, `500ms`), greater than zero.
fn duration(text: &str) -> Result<Duration, String> {
    let hint = || format!("{text:?} is not a duration; write for example 500ms, 10s or 1m30s");
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| hint())?;
    let duration = Duration::try_from(parsed).map_err(|_| hint())?;
    if duration.is_zero() {
        return Err("a duration greater than zero is needed".to_owned());
    }
    Ok(duration)
}

/// A prefix that makes valid object names.
fn name_prefix(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if starts && text.len() <= 200 && text.bytes().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("volume names are object names: use a-z, 0-9, '-' and '.', beginning with a letter or digit".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        Command::try_parse_from(std::iter::once(&"x").chain(arguments))
            .map(|command| command.options)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_the_originals() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.csi_address.to_string(), "unix:///run/csi/socket");
        assert_eq!(options.timeout, Duration::from_secs(10));
        assert_eq!(options.retry_interval_max, Duration::from_mins(5));
        assert_eq!(options.worker_threads, 100);
        assert_eq!((options.kube_api_qps, options.kube_api_burst), (5.0, 10));
        assert!(options.immediate_topology && !options.strict_topology && !options.leader_election);
    }

    #[test]
    fn flags_as_go_writes_them() {
        let options = parse(&[
            "--timeout=1m30s",
            "--immediate-topology=false",
            "--strict-topology",
            "--volume-name-uuid-length",
            "-1",
        ])
        .unwrap();
        assert_eq!(options.timeout, Duration::from_secs(90));
        assert!(!options.immediate_topology && options.strict_topology);
    }

    #[test]
    fn bad_values_say_what_to_write() {
        for (arguments, hint) in [
            (vec!["--timeout=10"], "write for example 500ms, 10s or 1m30s"),
            (vec!["--timeout=0s"], "greater than zero"),
            (vec!["--timeout=-5s"], "is not a duration"),
            (vec!["--volume-name-prefix="], "volume names are object names"),
            (vec!["--volume-name-prefix=A"], "volume names are object names"),
            (vec!["--volume-name-uuid-length=33"], "33 is not in -1..=32"),
            (vec!["--worker-threads=0"], "0 is not in 1..=10000"),
            (vec!["--strict-topology=yes"], "invalid value 'yes'"),
        ] {
            let error = parse(&arguments).unwrap_err();
            assert!(error.contains(hint), "{arguments:?}: {error}");
        }
    }
}
