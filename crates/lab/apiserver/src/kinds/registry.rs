//! Finds kinds by resource or by kind, and keeps the group order of discovery.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{KindInfo, table};

/// One API group with its versions in order of preference.
#[derive(Debug, Clone)]
pub struct Group {
    /// Name; empty for core.
    pub name: Box<str>,
    /// Versions, preferred first.
    pub versions: Vec<Box<str>>,
}

/// The kinds of one group version by plural name.
type Resources = BTreeMap<Box<str>, Arc<KindInfo>>;

/// An immutable set of kinds. A change of a CustomResourceDefinition makes a new one.
#[derive(Debug, Default)]
pub struct Registry {
    groups: Vec<Group>,
    /// (group, version) -> plural -> kind
    resources: HashMap<(Box<str>, Box<str>), Resources>,
    /// Serial number, raised with every change; part of ETags.
    pub serial: u64,
}

impl Registry {
    /// The built-in kinds only.
    pub fn builtin() -> Self {
        Self::build(table::builtin().into_iter().map(Arc::new), 0)
    }

    /// This registry's built-in kinds with `custom` in place of its custom ones.
    #[must_use]
    pub fn with_custom(&self, custom: impl IntoIterator<Item = Arc<KindInfo>>) -> Self {
        let builtin = self.kinds().filter(|kind| kind.custom.is_none()).cloned().collect::<Vec<_>>();
        Self::build(builtin.into_iter().chain(custom), self.serial + 1)
    }

    fn build(kinds: impl Iterator<Item = Arc<KindInfo>>, serial: u64) -> Self {
        let mut registry = Self { serial, ..Self::default() };
        let mut order: Vec<(Box<str>, bool)> = Vec::new();
        let mut versions: HashMap<Box<str>, Vec<Box<str>>> = HashMap::new();
        for kind in kinds {
            if !order.iter().any(|(name, _)| *name == kind.group) {
                order.push((kind.group.clone(), kind.custom.is_some()));
            }
            let list = versions.entry(kind.group.clone()).or_default();
            if !list.contains(&kind.version) {
                list.push(kind.version.clone());
            }
            registry
                .resources
                .entry((kind.group.clone(), kind.version.clone()))
                .or_default()
                .insert(kind.plural.clone(), kind);
        }
        // Built-in groups keep the table's order; custom ones follow by name, so that discovery does not depend on history.
        let (mut builtin, mut custom): (Vec<_>, Vec<_>) = order.into_iter().partition(|(_, custom)| !custom);
        custom.sort();
        builtin.append(&mut custom);
        registry.groups = builtin
            .into_iter()
            .map(|(name, _)| {
                let mut versions = versions.remove(&name).unwrap_or_default();
                versions.sort_by(|a, b| version_order(a).cmp(&version_order(b)).then_with(|| a.cmp(b)));
                Group { name, versions }
            })
            .collect();
        registry
    }

    /// Groups in discovery order, core first.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| &*group.name == name)
    }

    /// The resources of a group version by plural name; `None` if the version is not served.
    pub fn version(&self, group: &str, version: &str) -> Option<&BTreeMap<Box<str>, Arc<KindInfo>>> {
        self.resources.get(&(group.into(), version.into()))
    }

    /// A kind by group, version and plural.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<KindInfo>> {
        self.version(group, version)?.get(plural)
    }

    /// A kind by group, version and kind name.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<KindInfo>> {
        self.version(group, version)?.values().find(|info| &*info.kind == kind)
    }

    /// All kinds in no particular order.
    pub fn kinds(&self) -> impl Iterator<Item = &Arc<KindInfo>> {
        self.groups.iter().flat_map(|group| {
            group.versions.iter().filter_map(|version| self.version(&group.name, version)).flat_map(BTreeMap::values)
        })
    }
}

/// Sort key of a version: GA before beta before alpha, newest first, anything else last by name.
fn version_order(version: &str) -> (u8, i64, i64) {
    let parse = || -> Option<(u8, i64, i64)> {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: i64 = rest[..digits].parse().ok()?;
        match &rest[digits..] {
            "" => Some((0, -major, 0)),
            tail => {
                let (stage, minor) = if let Some(minor) = tail.strip_prefix("beta") {
                    (1, minor)
                } else {
                    (2, tail.strip_prefix("alpha")?)
                };
                Some((stage, -major, -minor.parse::<i64>().ok()?))
            }
        }
    };
    parse().unwrap_or((3, 0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_by_stability_then_age() {
        let mut versions = ["v1alpha1", "foo", "v1", "v2beta1", "v10", "v2", "v1beta2", "v1beta1"];
        versions.sort_by_key(|version| version_order(version));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }

    #[test]
    fn core_comes_first_and_every_kind_is_found() {
        let registry = Registry::builtin();
        assert_eq!(&*registry.groups()[0].name, "");
        assert_eq!(&*registry.groups()[1].name, "apps");
        assert!(registry.resource("", "v1", "configmaps").is_some());
        assert_eq!(&*registry.kind("storage.k8s.io", "v1", "CSIDriver").expect("served").plural, "csidrivers");
        assert!(registry.kinds().count() > 60);
    }
}
