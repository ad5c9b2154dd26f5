//! Validation of a value by the rules of its schema, with the messages of the Kubernetes API server.

use std::collections::HashSet;

use serde_json::Value;

use crate::error::FieldError;
use crate::formats;
use crate::types::{Definitions, ListKind, Rules, Schema, Type};
use crate::walk::{child, fits, index, type_name};

/// Checks the rules of the schema: types, required fields, enums, ranges, patterns, lengths, formats, `allOf` and its kin,
/// and, in custom resources, the uniqueness of set elements and list-map keys. `null` counts as absent where it is not allowed.
///
/// With `old`, parts that did not change since are not complained about (ratcheting): fields and the elements of list
/// maps are paired with their former values, elements of other lists are not.
///
/// Rules in the Common Expression Language are not evaluated here.
pub fn validate(schema: &Schema, definitions: &Definitions, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut validator = Validator { definitions, errors: Vec::new(), builtin: false };
    validator.at(schema, value, old, "");
    validator.errors
}

struct Validator<'a> {
    definitions: &'a Definitions,
    errors: Vec<FieldError>,
    /// Within a built-in definition: only those are referred to.
    builtin: bool,
}

impl Validator<'_> {
    fn at(&mut self, place: &Schema, value: &Value, old: Option<&Value>, path: &str) {
        if old == Some(value) {
            return;
        }
        let outside = self.builtin;
        self.builtin |= place.reference.is_some();
        self.inside(place, value, old, path);
        self.builtin = outside;
    }

    fn inside(&mut self, place: &Schema, value: &Value, old: Option<&Value>, path: &str) {
        let schema = self.definitions.resolve(place);
        if value.is_null() {
            if !schema.nullable && schema.ty != Type::Any {
                self.wrong_type(schema, value, path);
            }
            return;
        }
        if !fits(schema, value) {
            self.wrong_type(schema, value, path);
            return;
        }
        if place.reference.is_some() {
            for (name, inner) in &place.properties {
                if let Some(value) = value.get(&**name) {
                    self.at(inner, value, old.and_then(|old| old.get(&**name)), &child(path, name));
                }
            }
        }
        self.format(schema, value, path);
        if let Some(rules) = &schema.rules {
            self.rules(rules, value, path);
        }
        match value {
            Value::Object(object) => {
                for name in &schema.required {
                    // A null that is not allowed is pruned or defaulted before; what is left of it is absent.
                    if !object.contains_key(&**name) {
                        self.errors.push(FieldError::required(child(path, name), ""));
                    }
                }
                for (name, value) in object {
                    if let Some(inner) = schema.properties.get(name.as_str()).or(schema.additional.as_ref()) {
                        self.at(inner, value, old.and_then(|old| old.get(name)), &child(path, name));
                    }
                }
            }
            Value::Array(items) => {
                // The list facts stand at the place of use.
                // Of built-in lists the keys need not be unique: twice the same variable in `env`, say, is allowed.
                if !self.builtin {
                    self.list(&place.list, items, path);
                }
                if let Some(inner) = &schema.items {
                    let former = old.and_then(Value::as_array);
                    for (at, item) in items.iter().enumerate() {
                        let old = former.and_then(|former| paired(&place.list, former, item));
                        self.at(inner, item, old, &index(path, at));
                    }
                }
            }
            _ => {}
        }
    }

    fn wrong_type(&mut self, schema: &Schema, value: &Value, path: &str) {
        let expected = if schema.ty == Type::IntOrString { "integer,string" } else { schema.ty.name() };
        let found = type_name(value);
        let detail = format!("{path} in body must be of type {expected}: {found:?}");
        self.errors.push(FieldError::type_invalid(path, found, &detail));
    }

    fn invalid(&mut self, value: &Value, path: &str, complaint: impl AsRef<str>) {
        let detail = format!("{path} in body {}", complaint.as_ref());
        self.errors.push(FieldError::invalid(path, value, &detail));
    }

    fn format(&mut self, schema: &Schema, value: &Value, path: &str) {
        if let (Some(format), Some(text)) = (schema.format.as_deref(), value.as_str())
            && schema.ty == Type::String
            && !formats::is_valid(format, text)
        {
            self.invalid(value, path, format!("must be of type {format}: {}", Value::from(text)));
        }
    }

    fn rules(&mut self, rules: &Rules, value: &Value, path: &str) {
        // An empty string is absent in built-in types.
        let absent = self.builtin && value == "";
        if !rules.allowed.is_empty() && !absent && !rules.allowed.contains(value) {
            let allowed: Vec<String> = rules
                .allowed
                .iter()
                .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                .collect();
            self.errors.push(FieldError::not_supported(path, value, allowed.iter().map(String::as_str)));
        }
        match value {
            Value::Number(number) => self.number(rules, number.as_f64().unwrap_or_default(), value, path),
            Value::String(text) => self.string(rules, text, value, path),
            Value::Array(items) => self.array(rules, items, value, path),
            Value::Object(object) => {
                let size = object.len() as u64;
                if let Some(least) = rules.min_properties.filter(|least| size < *least) {
                    self.invalid(value, path, format!("should have at least {least} properties"));
                }
                if let Some(most) = rules.max_properties.filter(|most| size > *most) {
                    self.errors.push(FieldError::too_many(path, size, most));
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
        self.combined(rules, value, path);
    }

    fn number(&mut self, rules: &Rules, number: f64, value: &Value, path: &str) {
        if let Some(least) = rules.minimum {
            if rules.exclusive_minimum && number <= least {
                self.invalid(value, path, format!("should be greater than {least}"));
            } else if !rules.exclusive_minimum && number < least {
                self.invalid(value, path, format!("should be greater than or equal to {least}"));
            }
        }
        if let Some(most) = rules.maximum {
            if rules.exclusive_maximum && number >= most {
                self.invalid(value, path, format!("should be less than {most}"));
            } else if !rules.exclusive_maximum && number > most {
                self.invalid(value, path, format!("should be less than or equal to {most}"));
            }
        }
        if let Some(unit) = rules.multiple_of.filter(|unit| *unit != 0.0 && (number / unit).fract() != 0.0) {
            self.invalid(value, path, format!("should be a multiple of {unit}"));
        }
    }

    fn string(&mut self, rules: &Rules, text: &str, value: &Value, path: &str) {
        let length = text.chars().count() as u64;
        if let Some(most) = rules.max_length.filter(|most| length > *most) {
            self.errors.push(FieldError::too_long(path, most));
        }
        if let Some(least) = rules.min_length.filter(|least| length < *least) {
            self.invalid(value, path, format!("should be at least {least} chars long"));
        }
        if let Some(pattern) = rules.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            self.invalid(value, path, format!("should match '{}'", pattern.as_str()));
        }
    }

    fn array(&mut self, rules: &Rules, items: &[Value], value: &Value, path: &str) {
        let length = items.len() as u64;
        if let Some(least) = rules.min_items.filter(|least| length < *least) {
            self.invalid(value, path, format!("should have at least {least} items"));
        }
        if let Some(most) = rules.max_items.filter(|most| length > *most) {
            self.errors.push(FieldError::too_many(path, length, most));
        }
        if rules.unique_items {
            let mut seen = HashSet::new();
            if !items.iter().all(|item| seen.insert(item)) {
                self.invalid(value, path, "shouldn't contain duplicates");
            }
        }
    }

    /// `allOf`, `anyOf`, `oneOf` and `not`. Their complaints name no field, as upstream.
    fn combined(&mut self, rules: &Rules, value: &Value, path: &str) {
        let holds = |schema: &Schema| {
            let mut trial = Validator { definitions: self.definitions, errors: Vec::new(), builtin: self.builtin };
            trial.at(schema, value, None, path);
            trial.errors
        };
        let mut found = Vec::new();
        for schema in &rules.all_of {
            found.extend(holds(schema));
        }
        let failed_all = !found.is_empty();
        if !rules.any_of.is_empty() {
            let trials: Vec<_> = rules.any_of.iter().map(|schema| holds(schema)).collect();
            if trials.iter().all(|errors| !errors.is_empty()) {
                found.push(composite(path, "must validate at least one schema (anyOf)"));
                found.extend(best(trials));
            }
        }
        if !rules.one_of.is_empty() {
            let trials: Vec<_> = rules.one_of.iter().map(|schema| holds(schema)).collect();
            match trials.iter().filter(|errors| errors.is_empty()).count() {
                0 => {
                    found.push(composite(path, "must validate one and only one schema (oneOf). Found none valid"));
                    found.extend(best(trials));
                }
                1 => {}
                many => {
                    let complaint =
                        format!("must validate one and only one schema (oneOf). Found {many} valid alternatives");
                    found.push(composite(path, &complaint));
                }
            }
        }
        if failed_all {
            found.push(composite(path, "must validate all the schemas (allOf)"));
        }
        if rules.not.as_ref().is_some_and(|schema| holds(schema).is_empty()) {
            found.push(composite(path, "must not validate the schema (not)"));
        }
        self.errors.extend(found);
    }

    fn list(&mut self, kind: &ListKind, items: &[Value], path: &str) {
        let mut seen = HashSet::new();
        match kind {
            ListKind::Atomic => {}
            ListKind::Set => {
                for (at, item) in items.iter().enumerate() {
                    if !seen.insert(item.clone()) {
                        self.errors.push(FieldError::duplicate(index(path, at), item));
                    }
                }
            }
            ListKind::Map { keys } => {
                for (at, item) in items.iter().enumerate() {
                    let key = key_of(keys, item);
                    if !seen.insert(key.clone()) {
                        self.errors.push(FieldError::duplicate(index(path, at), &key));
                    }
                }
            }
        }
    }
}

/// The complaint of a combined schema. It names no field and no value.
fn composite(path: &str, complaint: &str) -> FieldError {
    FieldError::invalid("<nil>", &Value::from(""), &format!("{path:?} {complaint}"))
}

/// The complaints of the alternative that came closest, as upstream reports them.
fn best(trials: Vec<Vec<FieldError>>) -> Vec<FieldError> {
    trials.into_iter().min_by_key(Vec::len).unwrap_or_default()
}

/// The key fields of a list-map's element as an object.
fn key_of(keys: &[Box<str>], item: &Value) -> Value {
    keys.iter()
        .filter_map(|key| Some((key.to_string(), item.get(&**key)?.clone())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// The former value of a list-map's element.
fn paired<'a>(kind: &ListKind, former: &'a [Value], item: &Value) -> Option<&'a Value> {
    let ListKind::Map { keys } = kind else { return None };
    let key = key_of(keys, item);
    former.iter().find(|old| key_of(keys, old) == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use serde_json::json;

    fn causes(group: &str, kind: &str, value: Value) -> Vec<String> {
        let schema = &builtin().kind(group, "v1", kind).unwrap().schema;
        validate(schema, &builtin().definitions, &value, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn built_in_kinds_are_validated_by_table() {
        let pod = json!({"spec": {"restartPolicy": "Sometimes", "dnsPolicy": "", "containers": [
            {"name": "c", "env": [{"name": "A"}, {"name": "A"}], "ports": [{"containerPort": 70000}, {}]}]}});
        assert_eq!(
            causes("", "Pod", pod),
            [
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: spec.containers[0].ports[0].containerPort in body should be less than or equal to 65535",
                "spec.containers[0].ports[1].containerPort: Required value",
                r#"spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#,
            ]
        );
        assert_eq!(causes("", "Pod", json!({"spec": {}})), ["spec.containers: Required value"]);
        assert_eq!(
            causes("storage.k8s.io", "StorageClass", json!({"reclaimPolicy": "Keep"})),
            [
                "provisioner: Required value",
                r#"reclaimPolicy: Unsupported value: "Keep": supported values: "Delete", "Retain""#
            ]
        );
    }
}
