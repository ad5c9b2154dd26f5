//! Typed capabilities: what a plugin advertises and what a caller may ask for.

use std::collections::BTreeSet;
use std::fmt;

pub use crate::proto::controller_service_capability::rpc::Type as ControllerCapability;
pub use crate::proto::group_controller_service_capability::rpc::Type as GroupControllerCapability;
pub use crate::proto::node_service_capability::rpc::Type as NodeCapability;
pub use crate::proto::plugin_capability::service::Type as PluginService;
pub use crate::proto::plugin_capability::volume_expansion::Type as VolumeExpansion;

use crate::proto;

/// One capability of any of the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// A service, or a property of the whole plugin.
    Plugin(PluginService),
    /// When volumes can grow.
    Expansion(VolumeExpansion),
    /// A call of the `Controller` service, or an extension of one.
    Controller(ControllerCapability),
    /// A call of the `GroupController` service.
    Group(GroupControllerCapability),
    /// A call of the `Node` service, or an extension of one.
    Node(NodeCapability),
}

macro_rules! from {
    ($($variant:ident($type:ty)),*) => {$(
        impl From<$type> for Capability {
            fn from(capability: $type) -> Self {
                Self::$variant(capability)
            }
        }
    )*};
}
from!(
    Plugin(PluginService),
    Expansion(VolumeExpansion),
    Controller(ControllerCapability),
    Group(GroupControllerCapability),
    Node(NodeCapability)
);

/// The specification's name, such as `CREATE_DELETE_VOLUME`.
impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plugin(capability) => capability.as_str_name(),
            Self::Expansion(capability) => capability.as_str_name(),
            Self::Controller(capability) => capability.as_str_name(),
            Self::Group(capability) => capability.as_str_name(),
            Self::Node(capability) => capability.as_str_name(),
        })
    }
}

/// The capabilities of a plugin. What is not in it, the plugin cannot do.
///
/// ```
/// use outrigger_csi::{Capabilities, ControllerCapability, NodeCapability};
/// let capabilities: Capabilities = [ControllerCapability::ListVolumes].into_iter().collect();
/// assert!(capabilities.has(ControllerCapability::ListVolumes));
/// assert!(!capabilities.has(NodeCapability::StageUnstageVolume));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(BTreeSet<Capability>);

impl Capabilities {
    /// Whether the plugin advertises the capability.
    pub fn has(&self, capability: impl Into<Capability>) -> bool {
        self.0.contains(&capability.into())
    }

    /// All capabilities, service by service.
    pub fn iter(&self) -> impl Iterator<Item = Capability> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn insert(&mut self, capability: impl Into<Capability>) {
        self.0.insert(capability.into());
    }

    /// The answer of `GetPluginCapabilities`.
    pub(crate) fn plugin_response(&self) -> proto::GetPluginCapabilitiesResponse {
        use proto::plugin_capability::{Service, Type, VolumeExpansion};
        let capabilities = self.iter().filter_map(|capability| match capability {
            Capability::Plugin(service) => Some(Type::Service(Service { r#type: service.into() })),
            Capability::Expansion(expansion) => {
                Some(Type::VolumeExpansion(VolumeExpansion { r#type: expansion.into() }))
            }
            _ => None,
        });
        proto::GetPluginCapabilitiesResponse {
            capabilities: capabilities.map(|capability| proto::PluginCapability { r#type: Some(capability) }).collect(),
        }
    }

    /// Adds what `GetPluginCapabilities` answered; numbers of other versions of the specification are passed over.
    pub(crate) fn add_plugin(&mut self, response: &proto::GetPluginCapabilitiesResponse) {
        use proto::plugin_capability::Type;
        for capability in &response.capabilities {
            match &capability.r#type {
                Some(Type::Service(service)) => self.add_known(PluginService::try_from(service.r#type)),
                Some(Type::VolumeExpansion(expansion)) => self.add_known(VolumeExpansion::try_from(expansion.r#type)),
                None => {}
            }
        }
    }

    fn add_known<C: Into<Capability>, E>(&mut self, capability: Result<C, E>) {
        if let Ok(capability) = capability {
            self.insert(capability);
        }
    }
}

macro_rules! rpc_capabilities {
    ($to:ident, $add:ident, $variant:ident, $enum:ty, $module:ident, $capability:ident, $response:ident) => {
        impl Capabilities {
            #[doc = concat!("The answer that lists the capabilities of this kind: `", stringify!($response), "`.")]
            pub(crate) fn $to(&self) -> proto::$response {
                use proto::$module::{Rpc, Type};
                let capabilities = self.iter().filter_map(|capability| match capability {
                    Capability::$variant(capability) => {
                        Some(proto::$capability { r#type: Some(Type::Rpc(Rpc { r#type: capability.into() })) })
                    }
                    _ => None,
                });
                proto::$response { capabilities: capabilities.collect() }
            }

            #[doc = concat!("Adds what `", stringify!($response), "` lists; unknown numbers are passed over.")]
            pub(crate) fn $add(&mut self, response: &proto::$response) {
                for capability in &response.capabilities {
                    if let Some(proto::$module::Type::Rpc(rpc)) = &capability.r#type {
                        self.add_known(<$enum>::try_from(rpc.r#type));
                    }
                }
            }
        }
    };
}
rpc_capabilities!(
    controller_response,
    add_controller,
    Controller,
    ControllerCapability,
    controller_service_capability,
    ControllerServiceCapability,
    ControllerGetCapabilitiesResponse
);
rpc_capabilities!(
    group_response,
    add_group,
    Group,
    GroupControllerCapability,
    group_controller_service_capability,
    GroupControllerServiceCapability,
    GroupControllerGetCapabilitiesResponse
);
rpc_capabilities!(
    node_response,
    add_node,
    Node,
    NodeCapability,
    node_service_capability,
    NodeServiceCapability,
    NodeGetCapabilitiesResponse
);

impl<C: Into<Capability>> FromIterator<C> for Capabilities {
    fn from_iter<I: IntoIterator<Item = C>>(capabilities: I) -> Self {
        Self(capabilities.into_iter().map(Into::into).collect())
    }
}
