//! The flags, which are the original hostpath driver's, and what they come to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::ArgAction;
use outrigger_rpc::Endpoint;

use crate::Error;
use crate::fault::Fault;
use crate::quantity::Bytes;

/// Flags of the driver. Names and defaults are those of the original; the crate documentation lists the differences.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Unix socket on which the driver serves CSI.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///tmp/csi.sock")]
    pub endpoint: String,

    /// Name by which Kubernetes knows the driver.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_DRIVERNAME", default_value = "hostpath.csi.k8s.io")]
    pub drivername: String,

    /// Directory that holds the volumes and the record of them. Made if missing.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_STATEDIR", default_value = "/csi-data-dir")]
    pub statedir: PathBuf,

    /// Id of this node, at most 256 bytes; also its topology segment.
    #[arg(long, env = "KUBE_NODE_NAME")]
    pub nodeid: String,

    /// Volumes that the scheduler may place on the node; 0 for no limit.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_MAXVOLUMESPERNODE", default_value_t = 0)]
    pub maxvolumespernode: i64,

    /// Volumes that can be attached to the node, with --enable-attach; 0 for no limit. A negative number makes the node
    /// report another random limit of 1 to 10 each time it is asked, to test schedulers, and enforces none.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_ATTACH_LIMIT", default_value_t = 0, allow_negative_numbers = true)]
    pub attach_limit: i64,

    /// A capacity pool as KIND=QUANTITY, for instance fast=100Gi. Repeatable. The storage class parameter `kind` picks the
    /// pool; a volume without it goes into the first pool (by name) with room. Without pools, room is not counted.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_CAPACITY", value_delimiter = ',', value_name = "KIND=QUANTITY")]
    pub capacity: Vec<Pool>,

    /// Largest volume.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_MAX_VOLUME_SIZE", default_value = "1Ti")]
    pub max_volume_size: Bytes,

    /// Largest volume that the node side expands. Not available in this version.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_MAX_VOLUME_SIZE_NODE", default_value = "0")]
    pub max_volume_size_node: Bytes,

    /// Demand that volumes are attached (ControllerPublishVolume) before nodes use them.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_ENABLE_ATTACH", default_value_t = false, action = ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true)]
    pub enable_attach: bool,

    /// Refuse to detach a volume that the node still has staged or published. (Deleting and unstaging a volume that is in
    /// use is always refused.)
    #[arg(long, env = "OUTRIGGER_HOSTPATH_CHECK_VOLUME_LIFECYCLE", default_value_t = false, action = ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub check_volume_lifecycle: bool,

    /// Give volumes and node the topology segment `topology.hostpath.csi/node`.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_ENABLE_TOPOLOGY", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true)]
    pub enable_topology: bool,

    /// Volume expansion. Not available in this version: only `false` is accepted.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_volume_expansion: Option<bool>,

    /// No expansion at the controller; always so in this version.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub disable_controller_expansion: Option<bool>,

    /// No expansion at the node; always so in this version.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub disable_node_expansion: Option<bool>,

    /// ControllerModifyVolume. Not available in this version: only `false` is accepted.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_controller_modify_volume: Option<bool>,

    /// Parameters that ControllerModifyVolume takes. Not available in this version.
    #[arg(long, value_delimiter = ',')]
    pub accepted_mutable_parameter_names: Vec<String>,

    /// ListSnapshots. Not available in this version: only `false` is accepted.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_list_snapshots: Option<bool>,

    /// Changed block tracking of snapshots. Not available in this version: only `false` is accepted.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_snapshot_metadata: Option<bool>,

    /// Form of changed block lists. Not available in this version.
    #[arg(long)]
    pub snapshot_metadata_block_type: Option<String>,

    /// Forward calls to another driver. Not available.
    #[arg(long)]
    pub proxy_endpoint: Option<String>,

    /// Inline volumes only, as in Kubernetes 1.15. Not available: only `false` is accepted.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub ephemeral: Option<bool>,

    /// Accepted for compatibility, without effect: the runtime heeds CPU limits by itself.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub automaxprocs: Option<bool>,

    /// Address for /metrics, /healthz and /readyz, for example `:8080`. Default: none.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_HTTP_ENDPOINT", default_value = "", value_name = "ADDRESS")]
    pub http_endpoint: String,

    /// Path of the metrics.
    #[arg(long, env = "OUTRIGGER_HOSTPATH_METRICS_PATH", default_value = "/metrics", value_name = "PATH")]
    pub metrics_path: String,
}

/// One `KIND=QUANTITY` of `--capacity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Name of the pool; never empty.
    pub kind: String,
    /// Its size.
    pub size: Bytes,
}

impl FromStr for Pool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, size) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not KIND=QUANTITY, for instance fast=100Gi"))?;
        if kind.is_empty() {
            return Err(format!("{text:?} names no kind: write KIND=QUANTITY, for instance fast=100Gi"));
        }
        let size = size.parse().map_err(|error| format!("pool {kind:?}: {error}"))?;
        Ok(Self { kind: kind.to_owned(), size })
    }
}

/// What the flags come to, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) endpoint: Endpoint,
    pub(crate) name: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) node_id: String,
    pub(crate) max_volumes_per_node: i64,
    pub(crate) attach_limit: i64,
    /// Bytes by kind.
    pub(crate) pools: BTreeMap<String, u64>,
    pub(crate) max_volume_size: u64,
    pub(crate) attach: bool,
    pub(crate) check_lifecycle: bool,
    pub(crate) topology: bool,
    pub(crate) fault: Fault,
}

impl Options {
    /// Checks the flags against each other and refuses those whose feature is not there, rather than ignore them.
    pub(crate) fn config(self, fault: Fault) -> Result<Config, Error> {
        let refuse = |flag, problem: &str| Err(Error::Flag { flag, problem: problem.to_owned() });
        let absent = [
            ("enable-volume-expansion", self.enable_volume_expansion == Some(true)),
            ("enable-controller-modify-volume", self.enable_controller_modify_volume == Some(true)),
            ("enable-list-snapshots", self.enable_list_snapshots == Some(true)),
            ("enable-snapshot-metadata", self.enable_snapshot_metadata == Some(true)),
            ("ephemeral", self.ephemeral == Some(true)),
            ("accepted-mutable-parameter-names", !self.accepted_mutable_parameter_names.is_empty()),
            ("snapshot-metadata-block-type", self.snapshot_metadata_block_type.is_some()),
            ("proxy-endpoint", self.proxy_endpoint.as_ref().is_some_and(|endpoint| !endpoint.is_empty())),
            ("max-volume-size-node", self.max_volume_size_node != Bytes(0)),
        ];
        for (flag, asked) in absent {
            if asked {
                return refuse(flag, "this version of the driver does not have the feature: leave the flag out");
            }
        }
        if self.automaxprocs.is_some() {
            tracing::info!("--automaxprocs has no effect: the runtime heeds CPU limits by itself");
        }
        let endpoint = self.endpoint.parse().map_err(|error: outrigger_rpc::EndpointError| Error::Flag {
            flag: "endpoint",
            problem: crate::store::describe(&error),
        })?;
        match self.nodeid.len() {
            0 => return refuse("nodeid", "is empty: give the name of this node"),
            1..=256 => {}
            _ => return refuse("nodeid", "has more than the 256 bytes that CSI allows"),
        }
        if self.enable_topology && !is_segment(&self.nodeid) {
            return refuse(
                "nodeid",
                "is no topology value (at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends): change it, \
                 or set --enable-topology=false",
            );
        }
        if self.maxvolumespernode < 0 {
            return refuse("maxvolumespernode", "is negative: give 0 for no limit");
        }
        if self.max_volume_size == Bytes(0) {
            return refuse("max-volume-size", "is 0: no volume could be made");
        }
        let mut pools = BTreeMap::new();
        for Pool { kind, size } in self.capacity {
            if pools.insert(kind.clone(), size.0).is_some() {
                return refuse("capacity", &format!("names the pool {kind:?} twice"));
            }
        }
        Ok(Config {
            endpoint,
            name: self.drivername,
            state_dir: self.statedir,
            node_id: self.nodeid,
            max_volumes_per_node: self.maxvolumespernode,
            attach_limit: self.attach_limit,
            pools,
            max_volume_size: self.max_volume_size.0,
            attach: self.enable_attach,
            check_lifecycle: self.check_volume_lifecycle,
            topology: self.enable_topology,
            fault,
        })
    }
}

/// Whether `text` can be the value of a topology segment, which becomes a node label.
fn is_segment(text: &str) -> bool {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && alphanumeric(text.chars().next())
        && alphanumeric(text.chars().last())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        options: Options,
    }

    /// What a command line with these flags (and a node id) comes to.
    pub(crate) fn config(flags: &[&str]) -> Result<Config, String> {
        let arguments = ["driver", "--nodeid=node-1"].iter().chain(flags);
        let program = Program::try_parse_from(arguments).map_err(|error| error.to_string())?;
        program.options.config(Fault::default()).map_err(|error| error.to_string())
    }

    /// The flags of a command line with these (and a node id).
    pub(crate) fn options(flags: &[&str]) -> Options {
        Program::try_parse_from(["driver", "--nodeid=node-1"].iter().chain(flags))
            .unwrap_or_else(|error| panic!("{error}"))
            .options
    }

    #[test]
    fn defaults_are_the_originals() {
        let config = config(&[]).unwrap();
        assert_eq!(config.endpoint.to_string(), "unix:///tmp/csi.sock");
        assert_eq!(config.name, "hostpath.csi.k8s.io");
        assert_eq!(config.state_dir, PathBuf::from("/csi-data-dir"));
        assert_eq!(config.max_volume_size, 1 << 40);
        assert!(config.topology && !config.attach && !config.check_lifecycle);
    }

    #[test]
    fn booleans_are_written_as_in_go() {
        assert!(config(&["--enable-attach"]).unwrap().attach);
        assert!(config(&["--enable-attach=true"]).unwrap().attach);
        assert!(!config(&["--enable-topology=false"]).unwrap().topology);
        assert!(config(&["--enable-volume-expansion=false", "--automaxprocs", "--disable-node-expansion"]).is_ok());
    }

    #[test]
    fn pools() {
        let config = config(&["--capacity=fast=10Gi", "--capacity=slow=1Ti"]).unwrap();
        assert_eq!(config.pools, BTreeMap::from([("fast".to_owned(), 10 << 30), ("slow".to_owned(), 1 << 40)]));
    }

    #[test]
    fn bad_flags_are_named() {
        let long = format!("--nodeid={}", "n".repeat(64));
        for (flags, expected) in [
            (&["--enable-volume-expansion"][..], "enable-volume-expansion"),
            (&["--proxy-endpoint=unix:///x.sock"], "proxy-endpoint"),
            (&["--snapshot-metadata-block-type=FIXED_LENGTH"], "snapshot-metadata-block-type"),
            (&["--capacity=fast"], "KIND=QUANTITY"),
            (&["--capacity==1Gi"], "names no kind"),
            (&["--capacity=fast=much"], "not a quantity"),
            (&["--capacity=a=1", "--capacity=a=2"], "twice"),
            (&["--max-volume-size=0"], "max-volume-size"),
            (&["--max-volume-size=9Ei"], "too large"),
            (&["--maxvolumespernode=-1"], "maxvolumespernode"),
            (&["--endpoint="], "endpoint"),
            (&["--endpoint=tcp://127.0.0.1:1"], "endpoint"),
            (&["--no-such-flag"], "no-such-flag"),
        ] {
            let error = config(flags).unwrap_err();
            assert!(error.contains(expected), "{flags:?}: {error}");
        }
        for id in ["--nodeid=", "--nodeid=-a", "--nodeid=a b", &long] {
            let program = Program::try_parse_from(["driver", id]).unwrap_or_else(|error| panic!("{error}"));
            assert!(program.options.config(Fault::default()).unwrap_err().to_string().contains("nodeid"), "{id}");
        }
    }
}
