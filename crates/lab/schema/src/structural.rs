//! Structural schemas of custom resources.
//!
//! A schema is structural when its shape (types, properties, items) can be read off without looking into `allOf`,
//! `anyOf`, `oneOf` and `not`, which then only add value rules. Pruning, defaulting and merging go by the shape alone.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::builtin::builtin;
use crate::error::FieldError;
use crate::types::{CelRule, ListKind, MapKind, Pattern, Rules, Schema, Type};
use crate::validate::validate;
use crate::walk::{apply_defaults, child, prune};

/// The definition of `metadata`, the same for all resources.
pub(crate) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Compiles an `openAPIV3Schema`. `path` is where it stands in the definition
/// (`spec.versions[0].schema.openAPIV3Schema`) and starts every error's field.
///
/// The answer's root has type object with apiVersion, kind and metadata (a reference to ObjectMeta) in it, whether the
/// definition declares them or not. Give [`builtin`]'s definitions to the functions that walk it.
///
/// Rules in the Common Expression Language are kept in [`Schema::validations`]; only their presence is checked here.
pub fn compile(open_api_v3_schema: &Value, path: &str) -> Result<Schema, Vec<FieldError>> {
    let mut compiler = Compiler { errors: Vec::new() };
    let mut schema = compiler.schema(open_api_v3_schema, path, Place::Root);
    if compiler.errors.is_empty() {
        resource(&mut schema);
        compiler.defaults(&schema, path);
    }
    if compiler.errors.is_empty() { Ok(schema) } else { Err(compiler.errors) }
}

/// Adds what every resource has.
fn resource(schema: &mut Schema) {
    for name in ["apiVersion", "kind"] {
        schema
            .properties
            .entry(name.into())
            .or_insert_with(|| Arc::new(Schema { ty: Type::String, ..Schema::default() }));
    }
    // What the definition says of metadata only restricts names; the shape is ObjectMeta's.
    let declared = schema.properties.remove("metadata");
    let mut metadata = Schema::reference(OBJECT_META);
    if let Some(declared) = declared {
        metadata.properties.clone_from(&declared.properties);
        metadata.description.clone_from(&declared.description);
    }
    schema.properties.insert("metadata".into(), Arc::new(metadata));
}

/// Where a schema stands.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    /// Part of the shape; the text says what must have a type.
    Shape(&'static str),
    /// Below `allOf` and its kin: value rules only. Holds the part of the shape that they speak of.
    Rule {
        shape: Option<&'a Value>,
        int_or_string: bool,
    },
}

/// Keywords that a definition must not use at all.
const UNSUPPORTED: &[&str] = &["$ref", "id", "additionalItems", "patternProperties", "definitions", "dependencies"];

/// Keywords that belong to the shape and must not stand below `allOf` and its kin.
const SHAPE_ONLY: &[&str] = &[
    "type",
    "additionalProperties",
    "description",
    "title",
    "default",
    "nullable",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
];

struct Compiler {
    errors: Vec<FieldError>,
}

impl Compiler {
    fn schema(&mut self, value: &Value, path: &str, place: Place<'_>) -> Schema {
        let Some(object) = value.as_object() else {
            self.errors.push(FieldError::required(path, "must be a schema object"));
            return Schema::default();
        };
        self.unsupported(object, path);
        let mut schema = Schema::default();
        let is_shape = !matches!(place, Place::Rule { .. });
        let int_or_string = flag(object, "x-kubernetes-int-or-string");
        self.ty(object, path, place, &mut schema);
        if let Place::Rule { int_or_string, .. } = place {
            for keyword in SHAPE_ONLY.iter().filter(|keyword| object.contains_key(**keyword)) {
                // The one form of a type below anyOf that is allowed: that of integer-or-string.
                if *keyword != "type" || !int_or_string {
                    self.errors.push(FieldError::forbidden(child(path, keyword), "must be empty to be structural"));
                }
            }
        }
        schema.format = text(object, "format");
        schema.description = text(object, "description");
        if is_shape {
            schema.nullable = flag(object, "nullable");
            schema.default = object.get("default").filter(|value| !value.is_null() || schema.nullable).cloned();
        }
        self.children(object, path, place, &mut schema);
        self.extensions(object, path, &mut schema);
        let nested_int_or_string = int_or_string || matches!(place, Place::Rule { int_or_string: true, .. });
        let shape = match place {
            Place::Rule { shape, .. } => shape,
            _ => Some(value),
        };
        let rules = self.rules(object, path, shape, nested_int_or_string);
        schema.rules = rules.map(Box::new);
        schema
    }

    fn unsupported(&mut self, object: &Map<String, Value>, path: &str) {
        for keyword in UNSUPPORTED.iter().filter(|keyword| object.get(**keyword).is_some_and(|value| !is_empty(value)))
        {
            self.errors.push(FieldError::forbidden(child(path, keyword), &format!("{keyword} is not supported")));
        }
        if object.get("uniqueItems") == Some(&Value::Bool(true)) {
            let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.errors.push(FieldError::forbidden(child(path, "uniqueItems"), detail));
        }
    }

    fn ty(&mut self, object: &Map<String, Value>, path: &str, place: Place<'_>, schema: &mut Schema) {
        let at = child(path, "type");
        let name = object.get("type").and_then(Value::as_str).unwrap_or_default();
        schema.ty = match name {
            "" => Type::Any,
            "object" => Type::Object,
            "array" => Type::Array,
            "string" => Type::String,
            "integer" => Type::Integer,
            "number" => Type::Number,
            "boolean" => Type::Boolean,
            "null" => {
                self.errors.push(FieldError::forbidden(
                    at.clone(),
                    "type cannot be set to null, use nullable as an alternative",
                ));
                Type::Any
            }
            other => {
                let known = ["array", "boolean", "integer", "number", "object", "string"];
                self.errors.push(FieldError::not_supported(at.clone(), &other.into(), known));
                Type::Any
            }
        };
        let int_or_string = flag(object, "x-kubernetes-int-or-string");
        // A type beside the extension is stricter and wins; stock definitions have such pairs.
        if int_or_string && name.is_empty() {
            schema.ty = Type::IntOrString;
        }
        let free = int_or_string || flag(object, "x-kubernetes-preserve-unknown-fields");
        match place {
            Place::Root if name.is_empty() => {
                self.errors.push(FieldError::required(at, "must not be empty at the root"));
            }
            Place::Root if name != "object" => {
                self.errors.push(FieldError::invalid(at, &name.into(), "must be object at the root"));
            }
            Place::Shape(what) if name.is_empty() && !free => {
                self.errors.push(FieldError::required(at, &format!("must not be empty for specified {what}")));
            }
            _ => {}
        }
    }

    fn children(&mut self, object: &Map<String, Value>, path: &str, place: Place<'_>, schema: &mut Schema) {
        let properties = object.get("properties").and_then(Value::as_object);
        for (name, value) in properties.into_iter().flatten() {
            let at = format!("{path}.properties[{name}]");
            let inner = match place {
                Place::Rule { shape, .. } => {
                    let core = shape.and_then(|shape| shape.get("properties")?.get(name));
                    if core.is_none() && !implied(name, path) {
                        self.unshaped(&at, shape);
                    }
                    Place::Rule { shape: core, int_or_string: false }
                }
                _ => Place::Shape("object fields"),
            };
            if matches!(place, Place::Root) && name == "metadata" {
                self.metadata(value, &at);
            }
            let compiled = self.schema(value, &at, inner);
            schema.properties.insert(name.as_str().into(), Arc::new(compiled));
        }
        let at = child(path, "additionalProperties");
        match object.get("additionalProperties") {
            None | Some(Value::Null) => {}
            Some(Value::Bool(true)) => {
                schema.additional =
                    Some(Arc::new(Schema { preserve_unknown: true, nullable: true, ..Schema::default() }));
            }
            Some(Value::Bool(false)) => {
                self.errors.push(FieldError::forbidden(at.clone(), "additionalProperties cannot be set to false"));
            }
            Some(value) => {
                let inner = match place {
                    Place::Rule { .. } => Place::Rule { shape: None, int_or_string: false },
                    _ => Place::Shape("object fields"),
                };
                schema.additional = Some(Arc::new(self.schema(value, &at, inner)));
            }
        }
        if schema.additional.is_some() && !schema.properties.is_empty() {
            self.errors.push(FieldError::forbidden(at, "additionalProperties and properties are mutual exclusive"));
        }
        let at = child(path, "items");
        match object.get("items") {
            None | Some(Value::Null) => {
                if schema.ty == Type::Array && !matches!(place, Place::Rule { .. }) {
                    self.errors.push(FieldError::required(at, "must be specified"));
                }
            }
            Some(Value::Array(_)) => {
                self.errors.push(FieldError::forbidden(at, "items must be a schema object and not an array"));
            }
            Some(value) => {
                let inner = match place {
                    Place::Rule { shape, .. } => {
                        let core = shape.and_then(|shape| shape.get("items"));
                        if core.is_none() {
                            self.unshaped(&at, shape);
                        }
                        Place::Rule { shape: core, int_or_string: false }
                    }
                    _ => Place::Shape("array items"),
                };
                schema.items = Some(Arc::new(self.schema(value, &at, inner)));
            }
        }
        schema.required = object
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(Into::into)
            .collect();
    }

    /// Something below `allOf` and its kin that the shape does not know. Below an open shape anything goes.
    fn unshaped(&mut self, path: &str, shape: Option<&Value>) {
        let open = shape.is_some_and(|shape| shape.get("additionalProperties").is_some_and(|value| !value.is_null()));
        if !open {
            self.errors
                .push(FieldError::required(path, "must be defined outside of allOf, anyOf, oneOf and not as well"));
        }
    }

    /// `metadata` may only restrict name and generateName.
    fn metadata(&mut self, value: &Value, path: &str) {
        let Some(object) = value.as_object() else { return };
        let names = object.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
        let restricts_names = names.clone().all(|name| name == "name" || name == "generateName");
        let other = object.keys().any(|keyword| !matches!(keyword.as_str(), "type" | "properties" | "description"));
        if !restricts_names || other {
            let detail =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.errors.push(FieldError::forbidden(path, detail));
        }
    }

    fn extensions(&mut self, object: &Map<String, Value>, path: &str, schema: &mut Schema) {
        schema.preserve_unknown = flag(object, "x-kubernetes-preserve-unknown-fields");
        schema.embedded = flag(object, "x-kubernetes-embedded-resource");
        if schema.embedded {
            if schema.ty == Type::Object {
                resource(schema);
                for name in ["apiVersion", "kind"] {
                    if !schema.required.iter().any(|required| &**required == name) {
                        schema.required.push(name.into());
                    }
                }
            } else {
                let at = child(path, "type");
                self.errors.push(FieldError::invalid(
                    at,
                    &schema.ty.name().into(),
                    "must be object if x-kubernetes-embedded-resource is true",
                ));
            }
        }
        self.list_type(object, path, schema);
        let at = child(path, "x-kubernetes-map-type");
        match object.get("x-kubernetes-map-type").and_then(Value::as_str) {
            None => {}
            Some(kind @ ("granular" | "atomic")) => {
                if schema.ty != Type::Object {
                    let at = child(path, "type");
                    self.errors.push(FieldError::invalid(
                        at,
                        &schema.ty.name().into(),
                        "must be object if x-kubernetes-map-type is specified",
                    ));
                }
                if kind == "atomic" {
                    schema.map = MapKind::Atomic;
                }
            }
            Some(other) => self.errors.push(FieldError::not_supported(at, &other.into(), ["atomic", "granular"])),
        }
        let rules = object.get("x-kubernetes-validations").and_then(Value::as_array);
        for (index, rule) in rules.into_iter().flatten().enumerate() {
            let at = format!("{path}.x-kubernetes-validations[{index}]");
            let rule_text = rule.get("rule").and_then(Value::as_str).unwrap_or_default().trim();
            if rule_text.is_empty() {
                self.errors.push(FieldError::required(child(&at, "rule"), "rule is not specified"));
            }
            let word = |name: &str| rule.get(name).and_then(Value::as_str).map(Into::into);
            schema.validations.push(CelRule {
                rule: rule_text.into(),
                message: word("message"),
                message_expression: word("messageExpression"),
                reason: word("reason"),
                field_path: word("fieldPath"),
                optional_old_self: rule.get("optionalOldSelf") == Some(&Value::Bool(true)),
            });
        }
    }

    fn list_type(&mut self, object: &Map<String, Value>, path: &str, schema: &mut Schema) {
        let keys: Vec<Box<str>> = object
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(Into::into)
            .collect();
        let keys_at = child(path, "x-kubernetes-list-map-keys");
        let kind = object.get("x-kubernetes-list-type").and_then(Value::as_str);
        if kind != Some("map") && !keys.is_empty() {
            self.errors
                .push(FieldError::forbidden(keys_at.clone(), "may only be set if x-kubernetes-list-type is map"));
        }
        if kind.is_some() && schema.ty != Type::Array {
            let at = child(path, "type");
            self.errors.push(FieldError::invalid(
                at,
                &schema.ty.name().into(),
                "must be array if x-kubernetes-list-type is specified",
            ));
            return;
        }
        match kind {
            None | Some("atomic") => {}
            Some("set") => schema.list = ListKind::Set,
            Some("map") => {
                let items = schema.items.clone().unwrap_or_default();
                if items.ty != Type::Object {
                    let at = format!("{path}.items.type");
                    self.errors.push(FieldError::invalid(
                        at,
                        &items.ty.name().into(),
                        "must be object if parent array's x-kubernetes-list-type is map",
                    ));
                }
                if keys.is_empty() {
                    self.errors
                        .push(FieldError::required(keys_at, "must not be empty if x-kubernetes-list-type is map"));
                    return;
                }
                for key in &keys {
                    match items.properties.get(key) {
                        None => {
                            let detail = "entries must all be names of item properties";
                            self.errors.push(FieldError::invalid(keys_at.clone(), &(&**key).into(), detail));
                        }
                        Some(property) if property.default.is_none() && !items.required.contains(key) => {
                            let at = format!("{path}.items.properties[{key}].default");
                            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                            self.errors.push(FieldError::required(at, detail));
                        }
                        Some(_) => {}
                    }
                }
                schema.list = ListKind::Map { keys };
            }
            Some(other) => {
                let at = child(path, "x-kubernetes-list-type");
                self.errors.push(FieldError::not_supported(at, &other.into(), ["atomic", "map", "set"]));
            }
        }
    }

    fn rules(
        &mut self,
        object: &Map<String, Value>,
        path: &str,
        shape: Option<&Value>,
        int_or_string: bool,
    ) -> Option<Rules> {
        let count = |name: &str| object.get(name).and_then(Value::as_u64);
        let number = |name: &str| object.get(name).and_then(Value::as_f64);
        let mut rules = Rules {
            allowed: object.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            minimum: number("minimum"),
            exclusive_minimum: flag(object, "exclusiveMinimum"),
            maximum: number("maximum"),
            exclusive_maximum: flag(object, "exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            ..Rules::default()
        };
        if let Some(source) = object.get("pattern").and_then(Value::as_str).filter(|source| !source.is_empty()) {
            match Pattern::new(source) {
                Ok(pattern) => rules.pattern = Some(pattern),
                Err(error) => {
                    let detail = format!("must be a valid regular expression, but isn't: {error}");
                    self.errors.push(FieldError::invalid(child(path, "pattern"), &source.into(), &detail));
                }
            }
        }
        let place = Place::Rule { shape, int_or_string };
        let mut many = |keyword: &str| -> Vec<Arc<Schema>> {
            let list = object.get(keyword).and_then(Value::as_array);
            list.into_iter()
                .flatten()
                .enumerate()
                .map(|(index, value)| Arc::new(self.schema(value, &format!("{path}.{keyword}[{index}]"), place)))
                .collect()
        };
        rules.all_of = many("allOf");
        rules.any_of = many("anyOf");
        rules.one_of = many("oneOf");
        rules.not = object
            .get("not")
            .filter(|value| !value.is_null())
            .map(|value| Arc::new(self.schema(value, &child(path, "not"), place)));
        rules.is_some().then_some(rules)
    }

    /// Default values must be what the schema allows.
    fn defaults(&mut self, schema: &Schema, path: &str) {
        if let Some(default) = &schema.default {
            let definitions = &builtin().definitions;
            let at = child(path, "default");
            let below = |field: &str| if field.is_empty() || field == "<nil>" { at.clone() } else { child(&at, field) };
            let mut pruned = default.clone();
            for unknown in prune(schema, definitions, &mut pruned) {
                self.errors.push(FieldError::invalid(below(&unknown), default, "must not have unknown fields"));
            }
            apply_defaults(schema, definitions, &mut pruned);
            for error in validate(schema, definitions, &pruned, None) {
                self.errors.push(FieldError { field: below(&error.field), ..error });
            }
        }
        for (name, inner) in &schema.properties {
            self.defaults(inner, &format!("{path}.properties[{name}]"));
        }
        if let Some(inner) = &schema.items {
            self.defaults(inner, &child(path, "items"));
        }
        if let Some(inner) = &schema.additional {
            self.defaults(inner, &child(path, "additionalProperties"));
        }
    }
}

/// Fields that a resource has without its schema naming them; rules may speak of them.
fn implied(name: &str, path: &str) -> bool {
    matches!(name, "metadata" | "apiVersion" | "kind") || path.contains(".properties[metadata]")
}

fn flag(object: &Map<String, Value>, name: &str) -> bool {
    object.get(name) == Some(&Value::Bool(true))
}

fn text(object: &Map<String, Value>, name: &str) -> Option<Box<str>> {
    object.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(Into::into)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests;
