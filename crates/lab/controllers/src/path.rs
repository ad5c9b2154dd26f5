//! Where an object is: the store's keys, taken apart.

use std::fmt;

/// An object's place, borrowed from its key `/registry/<group or "core">/<plural>/<namespace or "">/<name>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path<'a> {
    /// API group, `core` for the core group.
    pub group: &'a str,
    pub plural: &'a str,
    /// Empty for cluster-scoped objects.
    pub namespace: &'a str,
    pub name: &'a str,
}

/// What all keys of objects begin with.
pub(crate) const ROOT: &str = "/registry/";

impl<'a> Path<'a> {
    pub(crate) fn parse(key: &'a str) -> Option<Self> {
        let mut parts = key.strip_prefix(ROOT)?.splitn(4, '/');
        Some(Self { group: parts.next()?, plural: parts.next()?, namespace: parts.next()?, name: parts.next()? })
    }

    /// A path in the core group.
    pub(crate) fn core(plural: &'a str, namespace: &'a str, name: &'a str) -> Self {
        Self { group: "core", plural, namespace, name }
    }

    pub(crate) fn key(&self) -> String {
        let Self { group, plural, namespace, name } = self;
        format!("{ROOT}{group}/{plural}/{namespace}/{name}")
    }

    /// Whether this is of a kind in the core group.
    pub(crate) fn is_core(&self, plural: &str) -> bool {
        self.group == "core" && self.plural == plural
    }

    /// The API group as objects name it: empty for the core group.
    pub(crate) fn api_group(&self) -> &'a str {
        if self.group == "core" { "" } else { self.group }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.plural)?;
        if !self.api_group().is_empty() {
            write!(f, ".{}", self.group)?;
        }
        write!(f, " ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_apart() {
        let path = Path::parse("/registry/core/pods/default/a").unwrap();
        assert_eq!(path, Path::core("pods", "default", "a"));
        assert_eq!(path.key(), "/registry/core/pods/default/a");
        let node = Path::parse("/registry/core/nodes//n").unwrap();
        assert_eq!((node.namespace, node.name), ("", "n"));
        // Names of RBAC objects are free-form.
        let role = Path::parse("/registry/rbac.authorization.k8s.io/clusterroles//system:a/b").unwrap();
        assert_eq!(role.name, "system:a/b");
        assert_eq!(role.to_string(), "clusterroles.rbac.authorization.k8s.io system:a/b");
        assert_eq!(Path::parse("/registry/core/pods"), None);
        assert_eq!(Path::parse("/other/core/pods/a/b"), None);
    }
}
