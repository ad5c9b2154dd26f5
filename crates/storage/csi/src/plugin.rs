//! Putting a plugin together: implementations in, capabilities out.

use std::sync::Arc;

use outrigger_rpc::Observer;

use crate::capability::{
    Capabilities, ControllerCapability, GroupControllerCapability, NodeCapability, PluginService, VolumeExpansion,
};
use crate::page::{MAX_MAP, MAX_STRING};
use crate::{driver, proto};

/// Implementations by capability.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) identity: Arc<dyn driver::Identity>,
    pub(crate) controller: Option<Arc<dyn driver::Controller>>,
    pub(crate) create_delete_volume: Option<Arc<dyn driver::CreateDeleteVolume>>,
    pub(crate) publish_volume: Option<Arc<dyn driver::PublishVolume>>,
    pub(crate) list_volumes: Option<Arc<dyn driver::ListVolumes>>,
    pub(crate) get_capacity: Option<Arc<dyn driver::GetCapacity>>,
    pub(crate) create_delete_snapshot: Option<Arc<dyn driver::CreateDeleteSnapshot>>,
    pub(crate) list_snapshots: Option<Arc<dyn driver::ListSnapshots>>,
    pub(crate) get_snapshot: Option<Arc<dyn driver::GetSnapshot>>,
    pub(crate) expand_volume: Option<Arc<dyn driver::ExpandVolume>>,
    pub(crate) get_volume: Option<Arc<dyn driver::GetVolume>>,
    pub(crate) modify_volume: Option<Arc<dyn driver::ModifyVolume>>,
    pub(crate) group_controller: Option<Arc<dyn driver::GroupController>>,
    pub(crate) snapshot_metadata: Option<Arc<dyn driver::SnapshotMetadata>>,
    pub(crate) node: Option<Arc<dyn driver::Node>>,
    pub(crate) stage_volume: Option<Arc<dyn driver::StageVolume>>,
    pub(crate) volume_stats: Option<Arc<dyn driver::VolumeStats>>,
    pub(crate) node_expand_volume: Option<Arc<dyn driver::NodeExpandVolume>>,
}

/// A plugin that cannot be started, because what it was put together from contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// One part makes no sense without another.
    #[error("the plugin has {part} but not {needs}: add Plugin::{needs} or leave out Plugin::{part}")]
    Needs {
        /// The part, by the name of its method of [`Plugin`].
        part: &'static str,
        /// What it needs; alternatives are joined by " or ".
        needs: &'static str,
    },
    /// The name breaks the specification's rules.
    #[error("plugin name {name:?} {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The version is empty or too long.
    #[error("vendor version {version:?} {problem}")]
    VendorVersion {
        /// The version.
        version: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The manifest is too large.
    #[error("the plugin's manifest has {bytes} bytes of keys and values, {} more than the allowed {}", bytes - limit, limit)]
    Manifest {
        /// Its size.
        bytes: usize,
        /// The largest allowed.
        limit: usize,
    },
}

/// A plugin put together from implementations of the traits of [`driver`].
///
/// Each method adds one capability and returns the plugin; the ones without an argument switch on a property of calls
/// that are there already. See the crate's documentation for a whole plugin.
#[must_use = "a plugin does nothing until it serves"]
pub struct Plugin {
    pub(crate) parts: Parts,
    pub(crate) capabilities: Capabilities,
    expansion: Option<VolumeExpansion>,
    volume_condition: bool,
    single_node_multi_writer: bool,
    pub(crate) observer: Observer,
}

macro_rules! part {
    ($(#[$doc:meta])* $name:ident: $trait:ident => $($capability:expr),*) => {
        impl Plugin {
            $(#[$doc])*
            pub fn $name(mut self, implementation: Arc<impl driver::$trait>) -> Self {
                self.parts.$name = Some(implementation);
                $(self.capabilities.insert($capability);)*
                self
            }
        }
    };
}

part!(
    /// Adds the `Controller` service.
    controller: Controller => PluginService::ControllerService
);
part!(
    /// Adds `CREATE_DELETE_VOLUME`.
    create_delete_volume: CreateDeleteVolume => ControllerCapability::CreateDeleteVolume
);
part!(
    /// Adds `PUBLISH_UNPUBLISH_VOLUME`: volumes are attached before nodes can use them.
    publish_volume: PublishVolume => ControllerCapability::PublishUnpublishVolume
);
part!(
    /// Adds `LIST_VOLUMES`.
    list_volumes: ListVolumes => ControllerCapability::ListVolumes
);
part!(
    /// Adds `GET_CAPACITY`.
    get_capacity: GetCapacity => ControllerCapability::GetCapacity
);
part!(
    /// Adds `CREATE_DELETE_SNAPSHOT`, which includes volumes made from snapshots.
    create_delete_snapshot: CreateDeleteSnapshot => ControllerCapability::CreateDeleteSnapshot
);
part!(
    /// Adds `LIST_SNAPSHOTS`.
    list_snapshots: ListSnapshots => ControllerCapability::ListSnapshots
);
part!(
    /// Adds `GET_SNAPSHOT` (alpha).
    get_snapshot: GetSnapshot => ControllerCapability::GetSnapshot
);
part!(
    /// Adds `GET_VOLUME` (alpha).
    get_volume: GetVolume => ControllerCapability::GetVolume
);
part!(
    /// Adds `MODIFY_VOLUME`.
    modify_volume: ModifyVolume => ControllerCapability::ModifyVolume
);
part!(
    /// Adds the `GroupController` service with `CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT`.
    group_controller: GroupController =>
        PluginService::GroupControllerService, GroupControllerCapability::CreateDeleteGetVolumeGroupSnapshot
);
part!(
    /// Adds the `SnapshotMetadata` service (alpha).
    snapshot_metadata: SnapshotMetadata => PluginService::SnapshotMetadataService
);
part!(
    /// Adds the `Node` service.
    node: Node =>
);
part!(
    /// Adds `STAGE_UNSTAGE_VOLUME`.
    stage_volume: StageVolume => NodeCapability::StageUnstageVolume
);
part!(
    /// Adds `GET_VOLUME_STATS`.
    volume_stats: VolumeStats => NodeCapability::GetVolumeStats
);

impl Plugin {
    /// Begins with what every plugin has: the `Identity` service.
    pub fn new(identity: Arc<impl driver::Identity>) -> Self {
        Self {
            parts: Parts {
                identity,
                controller: None,
                create_delete_volume: None,
                publish_volume: None,
                list_volumes: None,
                get_capacity: None,
                create_delete_snapshot: None,
                list_snapshots: None,
                get_snapshot: None,
                expand_volume: None,
                get_volume: None,
                modify_volume: None,
                group_controller: None,
                snapshot_metadata: None,
                node: None,
                stage_volume: None,
                volume_stats: None,
                node_expand_volume: None,
            },
            capabilities: Capabilities::default(),
            expansion: None,
            volume_condition: false,
            single_node_multi_writer: false,
            observer: Observer::new(proto::descriptor_pool().clone()),
        }
    }

    /// Adds `LIST_VOLUMES` and `LIST_VOLUMES_PUBLISHED_NODES`: entries name the nodes that volumes are published to.
    pub fn list_volumes_with_published_nodes(mut self, implementation: Arc<impl driver::ListVolumes>) -> Self {
        self.capabilities.insert(ControllerCapability::ListVolumesPublishedNodes);
        self.list_volumes(implementation)
    }

    /// Adds the controller's `EXPAND_VOLUME`, and whether volumes grow while they are published.
    pub fn expand_volume(mut self, implementation: Arc<impl driver::ExpandVolume>, expansion: VolumeExpansion) -> Self {
        self.parts.expand_volume = Some(implementation);
        self.capabilities.insert(ControllerCapability::ExpandVolume);
        self.expansion = Some(expansion);
        self
    }

    /// Adds the node's `EXPAND_VOLUME`. Without [`Plugin::expand_volume`] the plugin's volumes grow online.
    pub fn node_expand_volume(mut self, implementation: Arc<impl driver::NodeExpandVolume>) -> Self {
        self.parts.node_expand_volume = Some(implementation);
        self.capabilities.insert(NodeCapability::ExpandVolume);
        self
    }

    /// `CreateVolume` also makes volumes from volumes (`CLONE_VOLUME`).
    pub fn clone_volume(mut self) -> Self {
        self.capabilities.insert(ControllerCapability::CloneVolume);
        self
    }

    /// `ControllerPublishVolume` heeds `readonly` (`PUBLISH_READONLY`).
    pub fn publish_readonly(mut self) -> Self {
        self.capabilities.insert(ControllerCapability::PublishReadonly);
        self
    }

    /// Volume states carry a condition (`VOLUME_CONDITION`, alpha), wherever states are given.
    pub fn volume_condition(mut self) -> Self {
        self.volume_condition = true;
        self
    }

    /// The access modes that tell workloads on one node apart are supported (`SINGLE_NODE_MULTI_WRITER`, alpha), by each
    /// service that is there.
    pub fn single_node_multi_writer(mut self) -> Self {
        self.single_node_multi_writer = true;
        self
    }

    /// The node side heeds `volume_mount_group` (`VOLUME_MOUNT_GROUP`).
    pub fn volume_mount_group(mut self) -> Self {
        self.capabilities.insert(NodeCapability::VolumeMountGroup);
        self
    }

    /// Volumes are not reachable from everywhere (`VOLUME_ACCESSIBILITY_CONSTRAINTS`): nodes and volumes have topologies.
    pub fn accessibility_constraints(mut self) -> Self {
        self.capabilities.insert(PluginService::VolumeAccessibilityConstraints);
        self
    }

    /// What the plugin advertises.
    ///
    /// ```
    /// # use outrigger_csi::{ControllerCapability, Plugin, Identity};
    /// # struct Me;
    /// # impl Identity for Me { fn name(&self) -> &str { "me" } fn vendor_version(&self) -> &str { "1" } }
    /// let plugin = Plugin::new(std::sync::Arc::new(Me)).clone_volume();
    /// assert!(plugin.capabilities().has(ControllerCapability::CloneVolume));
    /// ```
    pub fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.capabilities.clone();
        let parts = &self.parts;
        if let Some(expansion) =
            self.expansion.or_else(|| parts.node_expand_volume.as_ref().map(|_| VolumeExpansion::Online))
        {
            capabilities.insert(expansion);
        }
        if self.single_node_multi_writer {
            if parts.controller.is_some() {
                capabilities.insert(ControllerCapability::SingleNodeMultiWriter);
            }
            if parts.node.is_some() {
                capabilities.insert(NodeCapability::SingleNodeMultiWriter);
            }
        }
        if self.volume_condition {
            if parts.list_volumes.is_some() || parts.get_volume.is_some() {
                capabilities.insert(ControllerCapability::VolumeCondition);
            }
            if parts.volume_stats.is_some() {
                capabilities.insert(NodeCapability::VolumeCondition);
            }
        }
        capabilities
    }

    /// Finds contradictions that types cannot exclude. Serving begins with this check.
    pub fn check(&self) -> Result<(), StartError> {
        let parts = &self.parts;
        let has = |capability: crate::Capability| self.capabilities.has(capability);
        let controller = ("controller", parts.controller.is_some());
        let node = ("node", parts.node.is_some());
        let create = ("create_delete_volume", parts.create_delete_volume.is_some());
        let publish = ("publish_volume", parts.publish_volume.is_some());
        let rules: [(&'static str, bool, (&'static str, bool)); 20] = [
            ("create_delete_volume", parts.create_delete_volume.is_some(), controller),
            ("publish_volume", parts.publish_volume.is_some(), controller),
            ("list_volumes", parts.list_volumes.is_some(), controller),
            ("get_capacity", parts.get_capacity.is_some(), controller),
            ("create_delete_snapshot", parts.create_delete_snapshot.is_some(), controller),
            ("list_snapshots", parts.list_snapshots.is_some(), controller),
            ("get_snapshot", parts.get_snapshot.is_some(), controller),
            ("expand_volume", parts.expand_volume.is_some(), controller),
            ("get_volume", parts.get_volume.is_some(), controller),
            ("modify_volume", parts.modify_volume.is_some(), controller),
            ("stage_volume", parts.stage_volume.is_some(), node),
            ("volume_stats", parts.volume_stats.is_some(), node),
            ("node_expand_volume", parts.node_expand_volume.is_some(), node),
            ("volume_mount_group", has(NodeCapability::VolumeMountGroup.into()), node),
            ("clone_volume", has(ControllerCapability::CloneVolume.into()), create),
            ("publish_readonly", has(ControllerCapability::PublishReadonly.into()), publish),
            ("list_volumes_with_published_nodes", has(ControllerCapability::ListVolumesPublishedNodes.into()), publish),
            ("single_node_multi_writer", self.single_node_multi_writer, ("controller or node", controller.1 || node.1)),
            (
                "volume_condition",
                self.volume_condition,
                (
                    "list_volumes or get_volume or volume_stats",
                    parts.list_volumes.is_some() || parts.get_volume.is_some() || parts.volume_stats.is_some(),
                ),
            ),
            (
                "accessibility_constraints",
                has(PluginService::VolumeAccessibilityConstraints.into()),
                ("controller or node", controller.1 || node.1),
            ),
        ];
        for (part, present, (needs, fulfilled)) in rules {
            if present && !fulfilled {
                return Err(StartError::Needs { part, needs });
            }
        }
        self.check_identity()
    }

    fn check_identity(&self) -> Result<(), StartError> {
        let name = self.parts.identity.name();
        if let Some(problem) = name_problem(name) {
            return Err(StartError::Name { name: name.to_owned(), problem });
        }
        let version = self.parts.identity.vendor_version();
        let problem = match version.len() {
            0 => Some("is empty"),
            1..=MAX_STRING => None,
            _ => Some("has more than 128 bytes"),
        };
        if let Some(problem) = problem {
            return Err(StartError::VendorVersion { version: version.to_owned(), problem });
        }
        let bytes = self.parts.identity.manifest().iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_MAP {
            return Err(StartError::Manifest { bytes, limit: MAX_MAP });
        }
        Ok(())
    }
}

/// What is wrong with a plugin's name (Identity service, `GetPluginInfo`), if anything is.
fn name_problem(name: &str) -> Option<&'static str> {
    let ends = [name.chars().next(), name.chars().last()];
    if name.is_empty() {
        Some("is empty")
    } else if name.len() > 63 {
        Some("has more than 63 characters")
    } else if ends.iter().flatten().any(|end| !end.is_ascii_alphanumeric()) {
        Some("has to begin and end with a letter or digit")
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')) {
        Some("may have letters, digits, '-' and '.' only")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Me(&'static str, &'static str);
    impl driver::Identity for Me {
        fn name(&self) -> &str {
            self.0
        }
        fn vendor_version(&self) -> &str {
            self.1
        }
    }

    fn plugin() -> Plugin {
        Plugin::new(Arc::new(Me("p.example.org", "1")))
    }

    #[test]
    fn names_follow_the_rules() {
        for name in ["a", "hostpath.csi.k8s.io", "A-1.b", &"x".repeat(63)] {
            assert_eq!(name_problem(name), None, "{name}");
        }
        for name in ["", "-a", "a.", "a_b", "a b", "ä", &"x".repeat(64)] {
            assert!(name_problem(name).is_some(), "{name}");
        }
    }

    #[test]
    fn contradictions_name_both_sides() {
        let error = plugin().clone_volume().check().unwrap_err();
        assert_eq!(error, StartError::Needs { part: "clone_volume", needs: "create_delete_volume" });
        assert!(
            error.to_string().contains("Plugin::clone_volume")
                && error.to_string().contains("Plugin::create_delete_volume")
        );
        let error = plugin().volume_condition().check().unwrap_err();
        assert!(error.to_string().contains("get_volume"));
        assert!(plugin().single_node_multi_writer().check().is_err());
        assert!(plugin().accessibility_constraints().check().is_err());
        assert_eq!(plugin().check(), Ok(()));
    }

    #[test]
    fn an_identity_has_name_and_version() {
        let start = |name, version| Plugin::new(Arc::new(Me(name, version))).check();
        assert!(matches!(start("", "1"), Err(StartError::Name { .. })));
        assert!(matches!(start("p", ""), Err(StartError::VendorVersion { .. })));
        assert_eq!(start("p", "1"), Ok(()));
    }
}
