//! The built-in kinds and definitions.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::types::{Definitions, Schema};

/// A kind that Kubernetes itself defines.
#[derive(Debug, Clone)]
pub struct Kind {
    /// The API group; empty for core.
    pub group: Box<str>,
    /// The version, such as `v1`.
    pub version: Box<str>,
    /// The kind, such as `Pod`.
    pub kind: Box<str>,
    /// The resource's plural name, such as `pods`; empty for kinds that are no resource of their own (`DeleteOptions`).
    pub plural: Box<str>,
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// The kind of a list of these, such as `PodList`; empty when there is none.
    pub list_kind: Box<str>,
    /// The name of the definition, such as `io.k8s.api.core.v1.Pod`.
    pub definition: Box<str>,
    /// A reference to the definition: the schema to give to the functions of this crate.
    pub schema: Schema,
}

/// Group, version and kind.
pub type GroupVersionKind = (Box<str>, Box<str>, Box<str>);

/// All that is known of Kubernetes' own types.
#[derive(Debug)]
pub struct Builtin {
    /// The schemas, by definition name.
    pub definitions: Definitions,
    /// The kinds, by group, version and kind.
    pub kinds: BTreeMap<GroupVersionKind, Kind>,
}

impl Builtin {
    /// The kind of this name.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Kind> {
        self.kinds.get(&(group.into(), version.into(), kind.into()))
    }
}

/// The built-in kinds, read once from the data that is compiled in.
pub fn builtin() -> &'static Builtin {
    static BUILTIN: LazyLock<Builtin> = LazyLock::new(|| Builtin { definitions: Definitions::new(), kinds: BTreeMap::new() });
    &BUILTIN
}
