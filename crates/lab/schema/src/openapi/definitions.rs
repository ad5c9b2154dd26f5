//! The definitions of a document: schemas as OpenAPI writes them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Dialect, ServedResource, Source};
use crate::builtin::builtin;
use crate::structural::OBJECT_META;
use crate::types::{ListKind, MapKind, Rules, Schema, Type};

pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The name of a resource's definition. Those of custom resources start with the group, its parts reversed.
pub(super) fn name_of(resource: &ServedResource) -> String {
    match &resource.source {
        Source::Builtin(name) => name.to_string(),
        Source::Custom(_) => {
            let group: Vec<&str> = resource.group.rsplit('.').collect();
            format!("{}.{}.{}", group.join("."), resource.version, resource.kind)
        }
    }
}

/// The name of the definition of a list of the resource's objects.
pub(super) fn list_name_of(resource: &ServedResource) -> String {
    let name = name_of(resource);
    let family = name.rsplit_once('.').map_or("", |(family, _)| family);
    format!("{family}.{}", resource.list_kind)
}

/// All definitions that the resources need.
pub(super) fn all(resources: &[&ServedResource], dialect: Dialect) -> Map<String, Value> {
    let mut wanted: Vec<String> =
        ["DeleteOptions", "Status", "Patch", "ListMeta", "ObjectMeta"].map(|name| format!("{META}{name}")).into();
    let mut definitions = BTreeMap::new();
    for resource in resources {
        let name = name_of(resource);
        match &resource.source {
            Source::Builtin(_) => wanted.push(name.clone()),
            Source::Custom(schema) => {
                let mut value = Writer { dialect, custom: true }.schema(schema);
                describe_custom(&mut value, dialect);
                value["x-kubernetes-group-version-kind"] =
                    json!([gvk(&resource.group, &resource.version, &resource.kind)]);
                definitions.insert(name.clone(), value);
                references(schema, &mut wanted);
            }
        }
        if resource.verbs.iter().any(|verb| &**verb == "list") {
            definitions.insert(list_name_of(resource), list(resource, &name, dialect));
        }
        for kind in resource.subresources.iter().filter_map(|subresource| subresource.kind.as_ref()) {
            if let Some(kind) = builtin().kind(&kind.0, &kind.1, &kind.2) {
                wanted.push(kind.definition.to_string());
            }
        }
    }
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        let Some(schema) = builtin().definitions.get(&name) else { continue };
        if seen.insert(name) {
            references(schema, &mut wanted);
        }
    }
    let mut kinds: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for kind in builtin().kinds.values() {
        kinds.entry(&kind.definition).or_default().push(gvk(&kind.group, &kind.version, &kind.kind));
    }
    let options = format!("{META}DeleteOptions");
    let versions: BTreeSet<(&str, &str)> =
        resources.iter().map(|resource| (&*resource.group, &*resource.version)).collect();
    kinds.insert(&options, versions.into_iter().map(|(group, version)| gvk(group, version, "DeleteOptions")).collect());
    let status = format!("{META}Status");
    kinds.insert(&status, vec![gvk("", "v1", "Status")]);
    for name in &seen {
        let Some(schema) = builtin().definitions.get(name) else { continue };
        let mut value = Writer { dialect, custom: false }.definition(name, schema);
        if let Some(kinds) = kinds.get(name.as_str()) {
            value["x-kubernetes-group-version-kind"] = kinds.clone().into();
        }
        definitions.insert(name.clone(), value);
    }
    definitions.into_iter().collect()
}

/// Group, version and kind as the extension writes them.
pub(super) fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn references(schema: &Schema, wanted: &mut Vec<String>) {
    wanted.extend(schema.reference.as_ref().map(ToString::to_string));
    let inner = schema.properties.values().chain(&schema.items).chain(&schema.additional);
    inner.for_each(|schema| references(schema, wanted));
}

const API_VERSION: &str = "The version of the schema that this representation of the object has.";
const KIND: &str = "The REST resource that this object represents, in CamelCase.";

fn list(resource: &ServedResource, item: &str, dialect: Dialect) -> Value {
    let metadata = dialect.reference(&format!("{META}ListMeta"));
    json!({
        "description": format!("{} is a list of {}.", resource.list_kind, resource.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": API_VERSION},
            "kind": {"type": "string", "description": KIND},
            "metadata": metadata,
            "items": {"type": "array", "description": format!("List of {}.", resource.plural), "items": dialect.reference(item)},
        },
        "x-kubernetes-group-version-kind": [gvk(&resource.group, &resource.version, &resource.list_kind)],
    })
}

/// Custom resources seldom document what all resources have.
fn describe_custom(value: &mut Value, dialect: Dialect) {
    if let Some(Value::Object(properties)) = value.get_mut("properties") {
        for (name, text) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            properties.insert(name.to_owned(), json!({"type": "string", "description": text}));
        }
        let mut metadata = dialect.reference(OBJECT_META);
        if dialect == Dialect::V3 {
            metadata = json!({ "allOf": [metadata], "default": {} });
        }
        metadata["description"] = "Standard object's metadata.".into();
        properties.insert("metadata".to_owned(), metadata);
    }
}

#[derive(Clone, Copy)]
struct Writer {
    dialect: Dialect,
    /// Schemas of custom resources carry value rules; v2 can express few of them and upstream leaves them out.
    custom: bool,
}

impl Writer {
    /// A built-in definition. A few scalars have forms of their own.
    fn definition(self, name: &str, schema: &Schema) -> Value {
        let mut value = self.schema(schema);
        let v3 = self.dialect == Dialect::V3;
        match name.rsplit('.').next() {
            Some("Quantity") if v3 => value["oneOf"] = json!([{"type": "string"}, {"type": "number"}]),
            Some("Quantity") => value["type"] = "string".into(),
            Some("IntOrString") if v3 => {
                value["format"] = "int-or-string".into();
                value["oneOf"] = json!([{"type": "integer"}, {"type": "string"}]);
            }
            Some("IntOrString") => {
                value["format"] = "int-or-string".into();
                value["type"] = "string".into();
            }
            _ => {}
        }
        value
    }

    fn schema(self, schema: &Schema) -> Value {
        let mut out = Map::new();
        if let Some(name) = &schema.reference {
            let reference = self.dialect.reference(name);
            let bare = schema.description.is_none()
                && schema.default.is_none()
                && schema.map == MapKind::Granular
                && !schema.patch.retain_keys;
            match (reference, self.dialect) {
                (reference, Dialect::V3) if !bare => {
                    out.insert("allOf".to_owned(), json!([reference]));
                }
                (Value::Object(reference), _) => out = reference,
                _ => {}
            }
        }
        let v3 = self.dialect == Dialect::V3;
        let ty = schema.ty.name();
        // In v2 a type cannot be nullable: upstream then says nothing of it.
        if !ty.is_empty() && (v3 || !schema.nullable) {
            out.insert("type".to_owned(), ty.into());
        }
        if let Some(format) = &schema.format {
            out.insert("format".to_owned(), (&**format).into());
        }
        if let Some(description) = &schema.description {
            out.insert("description".to_owned(), (&**description).into());
        }
        if let Some(default) = schema.default.as_ref().filter(|_| v3 || !self.custom) {
            out.insert("default".to_owned(), default.clone());
        }
        if v3 && schema.nullable {
            out.insert("nullable".to_owned(), true.into());
        }
        if schema.ty == Type::IntOrString && self.custom {
            out.insert("x-kubernetes-int-or-string".to_owned(), true.into());
        }
        let reduced = !v3 && self.custom && (schema.preserve_unknown || schema.nullable);
        if schema.preserve_unknown && self.custom {
            out.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
        }
        if !reduced && schema.reference.is_none() {
            self.shape(schema, &mut out);
        }
        if schema.embedded {
            out.insert("x-kubernetes-embedded-resource".to_owned(), true.into());
        }
        self.merging(schema, &mut out);
        if let Some(rules) = schema.rules.as_ref().filter(|_| self.custom) {
            self.rules(rules, &mut out);
        }
        if v3 && !schema.validations.is_empty() {
            out.insert("x-kubernetes-validations".to_owned(), validations(schema));
        }
        Value::Object(out)
    }

    fn shape(self, schema: &Schema, out: &mut Map<String, Value>) {
        if !schema.properties.is_empty() {
            let properties: Map<String, Value> =
                schema.properties.iter().map(|(name, schema)| (name.to_string(), self.schema(schema))).collect();
            out.insert("properties".to_owned(), properties.into());
        }
        if !schema.required.is_empty() {
            out.insert("required".to_owned(), schema.required.iter().map(|name| Value::from(&**name)).collect());
        }
        if let Some(additional) = &schema.additional {
            out.insert("additionalProperties".to_owned(), self.schema(additional));
        }
        if let Some(items) = &schema.items {
            out.insert("items".to_owned(), self.schema(items));
        }
    }

    fn merging(self, schema: &Schema, out: &mut Map<String, Value>) {
        match &schema.list {
            ListKind::Set => {
                out.insert("x-kubernetes-list-type".to_owned(), "set".into());
            }
            ListKind::Map { keys } => {
                out.insert("x-kubernetes-list-type".to_owned(), "map".into());
                out.insert(
                    "x-kubernetes-list-map-keys".to_owned(),
                    keys.iter().map(|key| Value::from(&**key)).collect(),
                );
            }
            // Said of built-in lists, so that clients need not guess from the patch strategy.
            ListKind::Atomic if schema.ty == Type::Array && !self.custom => {
                out.insert("x-kubernetes-list-type".to_owned(), "atomic".into());
            }
            ListKind::Atomic => {}
        }
        if schema.map == MapKind::Atomic {
            out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        let strategy = match (schema.patch.merge, schema.patch.retain_keys) {
            (true, true) => "merge,retainKeys",
            (true, false) => "merge",
            (false, true) => "retainKeys",
            (false, false) => return,
        };
        out.insert("x-kubernetes-patch-strategy".to_owned(), strategy.into());
        if let Some(key) = &schema.patch.merge_key {
            out.insert("x-kubernetes-patch-merge-key".to_owned(), (&**key).into());
        }
    }

    fn rules(self, rules: &Rules, out: &mut Map<String, Value>) {
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                out.insert(name.to_owned(), value);
            }
        };
        put("enum", (!rules.allowed.is_empty()).then(|| rules.allowed.clone().into()));
        put("minimum", rules.minimum.map(number));
        put("exclusiveMinimum", rules.exclusive_minimum.then_some(Value::Bool(true)));
        put("maximum", rules.maximum.map(number));
        put("exclusiveMaximum", rules.exclusive_maximum.then_some(Value::Bool(true)));
        put("multipleOf", rules.multiple_of.map(number));
        put("minLength", rules.min_length.map(Value::from));
        put("maxLength", rules.max_length.map(Value::from));
        put("pattern", rules.pattern.as_ref().map(|pattern| pattern.as_str().into()));
        put("minItems", rules.min_items.map(Value::from));
        put("maxItems", rules.max_items.map(Value::from));
        put("minProperties", rules.min_properties.map(Value::from));
        put("maxProperties", rules.max_properties.map(Value::from));
        if self.dialect == Dialect::V3 {
            for (name, schemas) in [("allOf", &rules.all_of), ("anyOf", &rules.any_of), ("oneOf", &rules.one_of)] {
                put(name, (!schemas.is_empty()).then(|| schemas.iter().map(|schema| self.schema(schema)).collect()));
            }
            put("not", rules.not.as_ref().map(|schema| self.schema(schema)));
        }
    }
}

/// A whole number is written without a fraction.
fn number(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small just before")]
    if value.fract() == 0.0 && value.abs() < 9e15 { Value::from(value as i64) } else { Value::from(value) }
}

fn validations(schema: &Schema) -> Value {
    schema
        .validations
        .iter()
        .map(|rule| {
            let mut out = Map::new();
            out.insert("rule".to_owned(), (&*rule.rule).into());
            for (name, value) in [
                ("message", &rule.message),
                ("messageExpression", &rule.message_expression),
                ("reason", &rule.reason),
                ("fieldPath", &rule.field_path),
            ] {
                if let Some(value) = value {
                    out.insert(name.to_owned(), (&**value).into());
                }
            }
            if rule.optional_old_self {
                out.insert("optionalOldSelf".to_owned(), true.into());
            }
            Value::Object(out)
        })
        .collect()
}
