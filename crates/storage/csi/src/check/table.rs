//! What the specification demands of each request, as one table.

use crate::capability::{
    Capability, ControllerCapability as C, GroupControllerCapability as G, NodeCapability as N, PluginService as P,
};

/// What has to be there for an RPC to be served at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Gate {
    /// Nothing: the `Identity` service.
    Open,
    /// A capability that the plugin advertises.
    Has(Capability),
    /// The `Node` service, which is advertised by being there.
    Node,
}

/// The kinds of objects on which one operation runs at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// A volume by its id, at the controller.
    Volume,
    /// A volume by its id, at the node: what happens there does not wait for the controller, nor the reverse.
    NodeVolume,
    /// A volume to be, by its name.
    VolumeName,
    /// A snapshot by its id.
    Snapshot,
    /// A snapshot to be, by its name.
    SnapshotName,
    /// A group snapshot by its id.
    GroupSnapshot,
    /// A group snapshot to be, by its name.
    GroupSnapshotName,
}

impl Scope {
    /// The object, for messages.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Volume | Self::NodeVolume | Self::VolumeName => "volume",
            Self::Snapshot | Self::SnapshotName => "snapshot",
            Self::GroupSnapshot | Self::GroupSnapshotName => "group snapshot",
        }
    }
}

/// The demands on one RPC.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Full gRPC path.
    pub(crate) method: &'static str,
    /// What the plugin needs to serve it.
    pub(crate) gate: Gate,
    /// Fields that must not be empty.
    pub(crate) required: &'static [&'static str],
    /// Fields, or choices of a oneof by path, that may be set only if the plugin advertises the capability.
    pub(crate) only_with: &'static [(&'static str, Capability)],
    /// On what it excludes other operations, and the field that names it.
    pub(crate) lock: Option<(Scope, &'static str)>,
}

impl Rule {
    const fn new(method: &'static str, gate: Gate, required: &'static [&'static str]) -> Self {
        Self { method, gate, required, only_with: &[], lock: None }
    }

    const fn only_with(mut self, only_with: &'static [(&'static str, Capability)]) -> Self {
        self.only_with = only_with;
        self
    }

    const fn locks(mut self, scope: Scope, field: &'static str) -> Self {
        self.lock = Some((scope, field));
        self
    }

    /// The name of the RPC alone.
    pub(crate) fn name(&self) -> &'static str {
        self.method.rsplit('/').next().unwrap_or(self.method)
    }

    /// Whether it is one of the `Node` service.
    pub(crate) fn on_node(&self) -> bool {
        self.gate == Gate::Node || matches!(self.gate, Gate::Has(Capability::Node(_)))
    }
}

const fn plugin(service: P) -> Gate {
    Gate::Has(Capability::Plugin(service))
}

const fn controller(capability: C) -> Gate {
    Gate::Has(Capability::Controller(capability))
}

const fn node(capability: N) -> Gate {
    Gate::Has(Capability::Node(capability))
}

const GROUP: Gate = Gate::Has(Capability::Group(G::CreateDeleteGetVolumeGroupSnapshot));
const MODIFY: Capability = Capability::Controller(C::ModifyVolume);
const TOPOLOGY: Capability = Capability::Plugin(P::VolumeAccessibilityConstraints);

/// The rules of all RPCs.
pub(crate) const RULES: &[Rule] = &[
    Rule::new("/csi.v1.Identity/GetPluginInfo", Gate::Open, &[]),
    Rule::new("/csi.v1.Identity/GetPluginCapabilities", Gate::Open, &[]),
    Rule::new("/csi.v1.Identity/Probe", Gate::Open, &[]),
    Rule::new("/csi.v1.Controller/CreateVolume", controller(C::CreateDeleteVolume), &["name", "volume_capabilities"])
        .only_with(&[
            ("volume_content_source.snapshot", Capability::Controller(C::CreateDeleteSnapshot)),
            ("volume_content_source.volume", Capability::Controller(C::CloneVolume)),
            ("mutable_parameters", MODIFY),
            ("accessibility_requirements", TOPOLOGY),
        ])
        .locks(Scope::VolumeName, "name"),
    Rule::new("/csi.v1.Controller/DeleteVolume", controller(C::CreateDeleteVolume), &["volume_id"])
        .locks(Scope::Volume, "volume_id"),
    Rule::new(
        "/csi.v1.Controller/ControllerPublishVolume",
        controller(C::PublishUnpublishVolume),
        &["volume_id", "node_id", "volume_capability"],
    )
    .only_with(&[("readonly", Capability::Controller(C::PublishReadonly))])
    .locks(Scope::Volume, "volume_id"),
    Rule::new("/csi.v1.Controller/ControllerUnpublishVolume", controller(C::PublishUnpublishVolume), &["volume_id"])
        .locks(Scope::Volume, "volume_id"),
    Rule::new(
        "/csi.v1.Controller/ValidateVolumeCapabilities",
        plugin(P::ControllerService),
        &["volume_id", "volume_capabilities"],
    )
    .only_with(&[("mutable_parameters", MODIFY)]),
    Rule::new("/csi.v1.Controller/ListVolumes", controller(C::ListVolumes), &[]),
    Rule::new("/csi.v1.Controller/GetCapacity", controller(C::GetCapacity), &[])
        .only_with(&[("accessible_topology", TOPOLOGY)]),
    Rule::new("/csi.v1.Controller/ControllerGetCapabilities", plugin(P::ControllerService), &[]),
    Rule::new("/csi.v1.Controller/CreateSnapshot", controller(C::CreateDeleteSnapshot), &["source_volume_id", "name"])
        .locks(Scope::SnapshotName, "name"),
    Rule::new("/csi.v1.Controller/DeleteSnapshot", controller(C::CreateDeleteSnapshot), &["snapshot_id"])
        .locks(Scope::Snapshot, "snapshot_id"),
    Rule::new("/csi.v1.Controller/ListSnapshots", controller(C::ListSnapshots), &[]),
    Rule::new("/csi.v1.Controller/GetSnapshot", controller(C::GetSnapshot), &["snapshot_id"]),
    Rule::new(
        "/csi.v1.Controller/ControllerExpandVolume",
        controller(C::ExpandVolume),
        &["volume_id", "capacity_range"],
    )
    .locks(Scope::Volume, "volume_id"),
    Rule::new("/csi.v1.Controller/ControllerGetVolume", controller(C::GetVolume), &["volume_id"]),
    Rule::new(
        "/csi.v1.Controller/ControllerModifyVolume",
        controller(C::ModifyVolume),
        &["volume_id", "mutable_parameters"],
    )
    .locks(Scope::Volume, "volume_id"),
    Rule::new("/csi.v1.GroupController/GroupControllerGetCapabilities", plugin(P::GroupControllerService), &[]),
    Rule::new("/csi.v1.GroupController/CreateVolumeGroupSnapshot", GROUP, &["name", "source_volume_ids"])
        .locks(Scope::GroupSnapshotName, "name"),
    Rule::new("/csi.v1.GroupController/DeleteVolumeGroupSnapshot", GROUP, &["group_snapshot_id"])
        .locks(Scope::GroupSnapshot, "group_snapshot_id"),
    Rule::new("/csi.v1.GroupController/GetVolumeGroupSnapshot", GROUP, &["group_snapshot_id"]),
    Rule::new("/csi.v1.SnapshotMetadata/GetMetadataAllocated", plugin(P::SnapshotMetadataService), &["snapshot_id"]),
    Rule::new(
        "/csi.v1.SnapshotMetadata/GetMetadataDelta",
        plugin(P::SnapshotMetadataService),
        &["base_snapshot_id", "target_snapshot_id"],
    ),
    Rule::new(
        "/csi.v1.Node/NodeStageVolume",
        node(N::StageUnstageVolume),
        &["volume_id", "staging_target_path", "volume_capability"],
    )
    .locks(Scope::NodeVolume, "volume_id"),
    Rule::new("/csi.v1.Node/NodeUnstageVolume", node(N::StageUnstageVolume), &["volume_id", "staging_target_path"])
        .locks(Scope::NodeVolume, "volume_id"),
    Rule::new("/csi.v1.Node/NodePublishVolume", Gate::Node, &["volume_id", "target_path", "volume_capability"])
        .locks(Scope::NodeVolume, "volume_id"),
    Rule::new("/csi.v1.Node/NodeUnpublishVolume", Gate::Node, &["volume_id", "target_path"])
        .locks(Scope::NodeVolume, "volume_id"),
    Rule::new("/csi.v1.Node/NodeGetVolumeStats", node(N::GetVolumeStats), &["volume_id", "volume_path"]),
    Rule::new("/csi.v1.Node/NodeExpandVolume", node(N::ExpandVolume), &["volume_id", "volume_path"])
        .locks(Scope::NodeVolume, "volume_id"),
    Rule::new("/csi.v1.Node/NodeGetCapabilities", Gate::Node, &[]),
    Rule::new("/csi.v1.Node/NodeGetInfo", Gate::Node, &[]),
];

/// The rule of an RPC.
pub(crate) fn rule(method: &str) -> &'static Rule {
    RULES.iter().find(|rule| rule.method == method).expect("a test finds every RPC of the descriptor in the table")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::proto::descriptor_pool;

    #[test]
    fn the_table_is_the_descriptors() {
        let package = |name: &str| name.starts_with("csi.v1.");
        let methods: BTreeSet<String> = descriptor_pool()
            .services()
            .filter(|service| package(service.full_name()))
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name()))
            .collect();
        assert_eq!(RULES.len(), methods.len());
        for rule in RULES {
            assert!(methods.contains(rule.method), "{}", rule.method);
            let (service, name) = rule.method[1..].split_once('/').unwrap();
            let service = descriptor_pool().get_service_by_name(service).unwrap();
            let input = service.methods().find(|method| method.name() == name).unwrap().input();
            let fields = rule.required.iter().chain(rule.lock.iter().map(|(_, field)| field));
            for field in fields.chain(rule.only_with.iter().map(|(path, _)| path)) {
                let first = field.split('.').next().unwrap();
                assert!(input.get_field_by_name(first).is_some(), "{}: {field}", rule.method);
            }
        }
    }
}
