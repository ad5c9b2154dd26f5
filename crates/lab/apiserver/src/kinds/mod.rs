//! The kinds that the server knows: one descriptor row each, built-in or custom, and the registry that finds them.
//!
//! Nothing else in the request path knows a kind by name. What a kind needs beyond its schema stands in its row:
//! scope, verbs, subresources, name rule, generation rule, immutable fields and, for the few that truly need code, hooks.

mod registry;
mod table;

use std::sync::Arc;

use outrigger_lab_schema::{FieldError, Schema};
use serde_json::Value;

pub use registry::{Group, Registry};

/// A resource as clients name it: group (empty for core), version, plural.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// API version, such as `v1`.
    pub version: String,
    /// Plural name, such as `configmaps`.
    pub plural: String,
}

impl Resource {
    /// A resource from its three names.
    pub fn new(group: impl Into<String>, version: impl Into<String>, plural: impl Into<String>) -> Self {
        Self { group: group.into(), version: version.into(), plural: plural.into() }
    }
}

/// Which names a kind accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// DNS-1123 subdomain, at most 253 characters.
    Subdomain,
    /// DNS-1123 label, at most 63 characters.
    Label,
    /// DNS-1035 label, at most 63 characters.
    Label1035,
    /// Anything that can be one path segment (RBAC).
    PathSegment,
}

/// When a write raises `metadata.generation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Never set.
    None,
    /// Starts at 1, raised when `spec` changes.
    Spec,
    /// As `Spec`, and when annotations change (Deployment).
    SpecAndAnnotations,
    /// Starts at 1, raised when anything outside metadata and status changes.
    Content,
    /// Starts at 1, raised when anything outside metadata changes (custom kinds without /status).
    ContentAndStatus,
}

/// What DELETE does with dependents if the request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Dependents are deleted by the garbage collector afterwards.
    Background,
    /// The object stays until its dependents are gone.
    Foreground,
    /// Dependents are released.
    Orphan,
}

/// The verbs a resource offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verbs(u16);

impl Verbs {
    /// create
    pub const CREATE: Self = Self(1);
    /// delete
    pub const DELETE: Self = Self(1 << 1);
    /// deletecollection
    pub const DELETE_COLLECTION: Self = Self(1 << 2);
    /// get
    pub const GET: Self = Self(1 << 3);
    /// list
    pub const LIST: Self = Self(1 << 4);
    /// patch
    pub const PATCH: Self = Self(1 << 5);
    /// update
    pub const UPDATE: Self = Self(1 << 6);
    /// watch
    pub const WATCH: Self = Self(1 << 7);
    /// Everything a stored resource offers.
    pub const ALL: Self = Self(0xff);
    /// Everything but deletecollection (namespaces, services of old; namespaces still).
    pub const NO_COLLECTION: Self = Self(0xff & !(1 << 2));

    /// Whether every verb of `other` is offered.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The names in the order of discovery documents (alphabetical).
    pub fn names(self) -> Vec<&'static str> {
        ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| self.0 & (1 << bit) != 0)
            .map(|(_, name)| name)
            .collect()
    }
}

/// What a subresource does; the request path dispatches on this, not on its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubresourceKind {
    /// GET/PUT/PATCH of the object where only `status` is written.
    Status,
    /// GET/PUT/PATCH of an autoscaling/v1 Scale; JSON paths rooted at the object.
    Scale {
        /// Path of the wanted replicas, such as `.spec.replicas`.
        spec: Box<str>,
        /// Path of the observed replicas.
        status: Box<str>,
        /// Path of the selector (a string or a LabelSelector).
        selector: Option<Box<str>>,
    },
    /// POST of a Binding that sets the node of a pod.
    Binding,
    /// POST of an Eviction.
    Eviction,
    /// POST of a TokenRequest.
    Token,
    /// PUT of a Namespace whose `spec.finalizers` are written.
    Finalize,
    /// PUT/PATCH of a pod whose `spec.ephemeralContainers` or resources are written, or PUT of a CSR's approval.
    Part {
        /// Top-level-rooted pointer of the field that this subresource may write.
        pointer: &'static str,
    },
}

/// One subresource.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// Path segment after the object's name.
    pub name: Box<str>,
    /// Group, version and kind if they differ from the parent's.
    pub foreign: Option<(&'static str, &'static str, &'static str)>,
    /// Verbs offered.
    pub verbs: Verbs,
    /// What it does.
    pub kind: SubresourceKind,
}

/// What a hook gets to see beside the object.
#[derive(Debug)]
pub struct HookContext<'a> {
    /// RFC 3339 time of the request.
    pub now: &'a str,
    /// Name of the user that made the request.
    pub user: &'a str,
    /// The user's UID, may be empty.
    pub user_uid: &'a str,
    /// The user's groups.
    pub groups: &'a [String],
    /// Subresource that is written, empty for the object itself.
    pub subresource: &'a str,
}

/// Changes an object before validation: `(new, old if it is an update, context)`.
pub type Prepare = fn(&mut Value, Option<&Value>, &HookContext<'_>);
/// Finds rule violations: `(new, old if it is an update, errors)`.
pub type Check = fn(&Value, Option<&Value>, &mut Vec<FieldError>);

/// The behaviour of a kind beyond its schema. Custom kinds use [`Rules::CUSTOM`].
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Accepted names.
    pub name: NameRule,
    /// Generation rule.
    pub generation: Generation,
    /// A PUT without resourceVersion overwrites whatever is there.
    pub unconditional_update: bool,
    /// A PUT of a missing object creates it.
    pub create_on_update: bool,
    /// Dependents' fate if a DELETE does not say.
    pub propagation: Propagation,
    /// Deletion gives the object a grace period (pods).
    pub graceful: bool,
    /// DELETE answers with the object rather than with a Status, also when the object is gone.
    pub returns_deleted: bool,
    /// Finalizer that admission adds at create.
    pub finalizer: Option<&'static str>,
    /// Fields (dotted paths) that cannot change after creation.
    pub immutable: &'static [&'static str],
    /// Field selectors beyond metadata.name and metadata.namespace.
    pub selectable: &'static [&'static str],
    /// Normalises an object on create and update.
    pub prepare: Option<Prepare>,
    /// Rules that the schema cannot express.
    pub check: Option<Check>,
    /// Create-only review kinds: answered at once, never stored.
    pub virtual_kind: bool,
    /// Objects expire after this many seconds (events).
    pub ttl: Option<u32>,
}

impl Rules {
    /// The rules most built-in kinds share.
    pub const BUILTIN: Self = Self {
        name: NameRule::Subdomain,
        generation: Generation::None,
        unconditional_update: true,
        create_on_update: false,
        propagation: Propagation::Background,
        graceful: false,
        returns_deleted: false,
        finalizer: None,
        immutable: &[],
        selectable: &[],
        prepare: None,
        check: None,
        virtual_kind: false,
        ttl: None,
    };
    /// The rules of kinds that a CustomResourceDefinition defines.
    pub const CUSTOM: Self = Self { unconditional_update: false, ..Self::BUILTIN };
}

/// What a CustomResourceDefinition adds to a kind.
#[derive(Debug)]
pub struct Custom {
    /// Name of the defining CustomResourceDefinition.
    pub definition: String,
    /// The compiled structural schema of this version.
    pub schema: Arc<Schema>,
    /// `additionalPrinterColumns` as given.
    pub columns: Vec<Value>,
    /// JSON paths of `selectableFields`.
    pub selectable: Vec<String>,
    /// Text of the warning that requests for a deprecated version get.
    pub deprecation: Option<String>,
}

/// One served version of one kind.
#[derive(Debug)]
pub struct KindInfo {
    /// API group; empty for core.
    pub group: Box<str>,
    /// Version.
    pub version: Box<str>,
    /// Kind name, such as `ConfigMap`.
    pub kind: Box<str>,
    /// Kind name of lists.
    pub list_kind: Box<str>,
    /// Plural resource name.
    pub plural: Box<str>,
    /// Singular resource name.
    pub singular: Box<str>,
    /// Short names, such as `cm`.
    pub short_names: Vec<Box<str>>,
    /// Categories, such as `all`.
    pub categories: Vec<Box<str>>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs offered.
    pub verbs: Verbs,
    /// Whether `status` is a subresource and hence not written by the main one.
    pub status: bool,
    /// Subresources, `status` included.
    pub subresources: Vec<Subresource>,
    /// Behaviour.
    pub rules: Rules,
    /// Key prefix in the store, `/registry/<group or core>/<plural>/`; shared by all versions and views of a resource.
    pub prefix: Box<str>,
    /// `apiVersion` of stored objects; differs from [`Self::api_version`] when another version is stored.
    pub storage_api_version: Box<str>,
    /// `apiVersion` of served objects.
    pub api_version: Box<str>,
    /// Set for custom kinds.
    pub custom: Option<Custom>,
}

impl KindInfo {
    /// Store key of an object; `namespace` is empty for cluster-scoped kinds.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{namespace}/{name}", self.prefix)
    }

    /// Store prefix of all objects, or of those in one namespace.
    pub fn key_prefix(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) => format!("{}{namespace}/", self.prefix),
            None => self.prefix.to_string(),
        }
    }

    /// Whether stored bytes can be served as they are.
    pub fn stored_as_served(&self) -> bool {
        self.storage_api_version == self.api_version
    }

    /// `plural.group`, or `plural` for core: how messages name the resource.
    pub fn qualified(&self) -> String {
        crate::status::qualified(&self.group, &self.plural)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| &*sub.name == name)
    }

    /// The resource's three names.
    pub fn resource(&self) -> Resource {
        Resource::new(&*self.group, &*self.version, &*self.plural)
    }

    /// Whether `metadata.generation` is kept.
    pub fn has_generation(&self) -> bool {
        self.rules.generation != Generation::None
    }
}
