//! The built-in kinds and definitions, read from the compressed table that `cargo xtask kubernetes` generates.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, LazyLock};

use crate::types::{Definitions, ListKind, MapKind, Schema, Type};

/// Kinds and definitions; the form is described where it is written, in xtask.
const TABLE: &[u8] = include_bytes!("../data/schema.tsv.gz");

/// A kind that Kubernetes itself defines.
#[derive(Debug, Clone)]
pub struct Kind {
    /// The API group; empty for core.
    pub group: Box<str>,
    /// The version, such as `v1`.
    pub version: Box<str>,
    /// The kind, such as `Pod`.
    pub kind: Box<str>,
    /// The resource's plural name, such as `pods`; for the body of a subresource, such as `Eviction`, the subresource's name.
    pub plural: Box<str>,
    /// Where objects live.
    pub scope: Scope,
    /// The kind of a list of these, such as `PodList`; empty when there is none.
    pub list_kind: Box<str>,
    /// The name of the definition, such as `io.k8s.api.core.v1.Pod`.
    pub definition: Arc<str>,
    /// A reference to the definition: the schema to give to the functions of this crate.
    pub schema: Schema,
}

/// Where the objects of a kind live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In namespaces.
    Namespaced,
    /// In the cluster.
    Cluster,
    /// Nowhere: the kind is the body of a subresource.
    Subresource,
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
    static BUILTIN: LazyLock<Builtin> = LazyLock::new(|| parse(&unpack(TABLE)));
    &BUILTIN
}

/// The text of a table that is compiled in.
pub(crate) fn unpack(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 6);
    flate2::read::GzDecoder::new(bytes)
        .read_to_string(&mut text)
        .expect("the committed table is gzip of UTF-8 text: a test regenerates it");
    text
}

fn parse(text: &str) -> Builtin {
    let mut definitions = Definitions::new();
    let mut kinds = BTreeMap::new();
    let mut names = Names::default();
    let mut current: Option<(Arc<str>, Schema)> = None;
    for line in text.lines() {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_default();
        match next() {
            "K" => {
                let kind = Kind {
                    group: next().into(),
                    version: next().into(),
                    kind: next().into(),
                    plural: next().into(),
                    scope: match next() {
                        "N" => Scope::Namespaced,
                        "C" => Scope::Cluster,
                        _ => Scope::Subresource,
                    },
                    list_kind: next().into(),
                    definition: names.get(next()),
                    schema: Schema::default(),
                };
                let schema = Schema::reference(kind.definition.clone());
                kinds.insert((kind.group.clone(), kind.version.clone(), kind.kind.clone()), Kind { schema, ..kind });
            }
            "D" => {
                if let Some((name, schema)) = current.take() {
                    definitions.insert(name, schema);
                }
                let name = names.get(next());
                let (schema, _) = parse_schema(&mut names, next(), next(), next(), next());
                current = Some((name, schema));
            }
            "P" => {
                let name: Box<str> = next().into();
                let (schema, required) = parse_schema(&mut names, next(), next(), next(), next());
                if let Some((_, owner)) = &mut current {
                    if required {
                        owner.required.push(name.clone());
                    }
                    owner.properties.insert(name, Arc::new(schema));
                }
            }
            _ => {}
        }
    }
    if let Some((name, schema)) = current {
        definitions.insert(name, schema);
    }
    Builtin { definitions, kinds }
}

/// Definition names, each allocated once.
#[derive(Default)]
struct Names(BTreeMap<Box<str>, Arc<str>>);

impl Names {
    fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let shared: Arc<str> = name.into();
        self.0.insert(name.into(), shared.clone());
        shared
    }
}

/// The schema of one line, and whether the property is required.
fn parse_schema(names: &mut Names, ty: &str, attributes: &str, default: &str, description: &str) -> (Schema, bool) {
    let mut schema = parse_type(names, ty);
    if !description.is_empty() {
        schema.description = Some(description.into());
    }
    if !default.is_empty() {
        schema.default = serde_json::from_str(default).ok();
    }
    let mut required = false;
    for attribute in attributes.split_ascii_whitespace() {
        match attribute {
            "r" => required = true,
            "u" => schema.preserve_unknown = true,
            "m" => schema.map = MapKind::Atomic,
            "l:set" => schema.list = ListKind::Set,
            "p:merge" => schema.patch.merge = true,
            "p:retain" => schema.patch.retain_keys = true,
            _ => {
                if let Some(keys) = attribute.strip_prefix("l:map:") {
                    schema.list = ListKind::Map { keys: keys.split(',').map(Into::into).collect() };
                } else if let Some(values) = attribute.strip_prefix("e:") {
                    let rules = schema.rules.get_or_insert_default();
                    rules.allowed = values.split('|').map(Into::into).collect();
                } else if let Some((least, most)) =
                    attribute.strip_prefix("n:").and_then(|range| range.split_once(".."))
                {
                    let rules = schema.rules.get_or_insert_default();
                    rules.minimum = least.parse().ok();
                    rules.maximum = most.parse().ok();
                } else if let Some(key) = attribute.strip_prefix("p:merge:") {
                    schema.patch.merge = true;
                    schema.patch.merge_key = Some(key.into());
                }
            }
        }
    }
    (schema, required)
}

fn parse_type(names: &mut Names, ty: &str) -> Schema {
    let (letter, rest) = ty.split_at(ty.len().min(1));
    let mut schema = Schema::default();
    match letter {
        "@" => return Schema::reference(names.get(rest)),
        "[" => {
            schema.ty = Type::Array;
            schema.items = Some(Arc::new(parse_type(names, rest)));
            return schema;
        }
        "{" => {
            schema.ty = Type::Object;
            schema.additional = Some(Arc::new(parse_type(names, rest)));
            return schema;
        }
        "o" => schema.ty = Type::Object,
        "s" => schema.ty = Type::String,
        "i" => schema.ty = Type::Integer,
        "n" => schema.ty = Type::Number,
        "b" => schema.ty = Type::Boolean,
        "x" => schema.ty = Type::IntOrString,
        _ => {}
    }
    schema.format = rest.strip_prefix('/').map(Into::into);
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property<'a>(definition: &str, path: &[&str]) -> &'a Schema {
        let builtin = builtin();
        let mut schema: &Schema = builtin.definitions.get(definition).unwrap();
        for name in path {
            schema = &builtin.definitions.resolve(schema).properties[*name];
        }
        schema
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(schema: &Schema, definitions: &Definitions) {
            if let Some(name) = &schema.reference {
                assert!(definitions.get(name).is_some(), "{name}");
            }
            let inner = schema.properties.values().chain(&schema.items).chain(&schema.additional);
            inner.for_each(|schema| check(schema, definitions));
        }
        let builtin = builtin();
        assert!(builtin.definitions.len() > 400);
        builtin.definitions.iter().for_each(|(_, schema)| check(schema, &builtin.definitions));
        builtin.kinds.values().for_each(|kind| check(&kind.schema, &builtin.definitions));
    }

    #[test]
    fn kinds_know_where_they_are_served() {
        let pod = builtin().kind("", "v1", "Pod").unwrap();
        assert_eq!((&*pod.plural, pod.scope, &*pod.list_kind), ("pods", Scope::Namespaced, "PodList"));
        let class = builtin().kind("storage.k8s.io", "v1", "StorageClass").unwrap();
        assert_eq!((&*class.plural, class.scope), ("storageclasses", Scope::Cluster));
        assert_eq!(builtin().kind("policy", "v1", "Eviction").unwrap().scope, Scope::Subresource);
        assert!(builtin().kind("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema").is_none());
    }

    #[test]
    fn merge_keys_and_list_keys_are_told_apart() {
        let ports = property("io.k8s.api.core.v1.Container", &["ports"]);
        assert_eq!(ports.patch.merge_key.as_deref(), Some("containerPort"));
        assert_eq!(ports.list, ListKind::Map { keys: vec!["containerPort".into(), "protocol".into()] });
        let ports = property("io.k8s.api.core.v1.ServiceSpec", &["ports"]);
        assert_eq!(ports.patch.merge_key.as_deref(), Some("port"));
        assert_eq!(ports.list, ListKind::Map { keys: vec!["port".into(), "protocol".into()] });
        let spread = property("io.k8s.api.core.v1.PodSpec", &["topologySpreadConstraints"]);
        assert_eq!(spread.patch.merge_key.as_deref(), Some("topologyKey"));
        assert_eq!(spread.list, ListKind::Map { keys: vec!["topologyKey".into(), "whenUnsatisfiable".into()] });
        let finalizers = property("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", &["finalizers"]);
        assert!(finalizers.patch.merge && finalizers.patch.merge_key.is_none());
        assert_eq!(finalizers.list, ListKind::Set);
        assert_eq!(property("io.k8s.api.core.v1.PodSpec", &["tolerations"]).list, ListKind::Atomic);
        assert!(!property("io.k8s.api.core.v1.PodSpec", &["tolerations"]).patch.merge);
        let volumes = property("io.k8s.api.core.v1.PodSpec", &["volumes"]);
        assert!(volumes.patch.merge && volumes.patch.retain_keys);
        assert!(property("io.k8s.api.apps.v1.DeploymentSpec", &["strategy"]).patch.retain_keys);
        let definitions = &builtin().definitions;
        assert_eq!(definitions.map_kind(&Schema::reference("io.k8s.api.core.v1.SecretKeySelector")), MapKind::Atomic);
        assert_eq!(
            definitions.map_kind(&Schema::reference("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector")),
            MapKind::Atomic
        );
    }
}
