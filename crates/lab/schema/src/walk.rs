//! Pruning, type checks and defaults: walks over a value and its schema side by side.

use serde_json::Value;

use crate::defaults;
use crate::error::TypeError;
use crate::types::{Definitions, Schema, Type};

/// The path of a field below another, as Kubernetes writes it: `spec.containers[0].name`.
pub(crate) fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The path of a list's element.
pub(crate) fn index(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// Whether every field of an object with this schema is allowed.
fn keeps_unknown(schema: &Schema) -> bool {
    schema.preserve_unknown || schema.ty != Type::Object && schema.properties.is_empty()
}

/// Removes every field that the schema does not know and returns their paths, such as `spec.template.foo`, sorted.
/// Fields below `preserve_unknown`, and of values of any type, stay. An embedded resource keeps apiVersion, kind and
/// metadata even where the schema does not name them.
pub fn prune(schema: &Schema, definitions: &Definitions, value: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    prune_at(schema, definitions, value, "", &mut removed);
    removed.sort();
    removed
}

fn prune_at(schema: &Schema, definitions: &Definitions, value: &mut Value, path: &str, removed: &mut Vec<String>) {
    let schema = definitions.resolve(schema);
    match value {
        Value::Object(object) => {
            object.retain(|name, _| {
                let keep = schema.properties.contains_key(name.as_str())
                    || schema.is_map()
                    || keeps_unknown(schema)
                    || schema.embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
                if !keep {
                    removed.push(child(path, name));
                }
                keep
            });
            for (name, value) in object.iter_mut() {
                if let Some(inner) = schema.properties.get(name.as_str()).or(schema.additional.as_ref()) {
                    prune_at(inner, definitions, value, &child(path, name), removed);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = &schema.items {
                for (at, item) in items.iter_mut().enumerate() {
                    prune_at(inner, definitions, item, &index(path, at), removed);
                }
            }
        }
        _ => {}
    }
}

/// Checks that each value has the JSON type that the schema demands; `null` is taken for absent. Numbers must fit their
/// format (`int32`, `int64`). Answers the first misfit.
pub fn check_types(schema: &Schema, definitions: &Definitions, value: &Value) -> Result<(), TypeError> {
    check_at(schema, definitions, value, "")
}

/// The definition of amounts such as `1Gi`: strings with a grammar, which Kubernetes checks when it decodes.
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

fn check_at(schema: &Schema, definitions: &Definitions, value: &Value, path: &str) -> Result<(), TypeError> {
    if schema.reference.as_deref() == Some(QUANTITY)
        && let Value::String(text) = value
        && !is_quantity(text)
    {
        let expected = "a quantity such as 1Gi (quantities must match the regular expression \
                        '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$')";
        return Err(TypeError { path: path.to_owned(), expected, found: "string" });
    }
    let schema = definitions.resolve(schema);
    if value.is_null() {
        return Ok(());
    }
    if !fits(schema, value) {
        let expected = match schema.ty {
            Type::IntOrString => "integer or string",
            ty => ty.name(),
        };
        return Err(TypeError { path: path.to_owned(), expected, found: type_name(value) });
    }
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                if let Some(inner) = schema.properties.get(name.as_str()).or(schema.additional.as_ref()) {
                    check_at(inner, definitions, value, &child(path, name))?;
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = &schema.items {
                for (at, item) in items.iter().enumerate() {
                    check_at(inner, definitions, item, &index(path, at))?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// A decimal number with one of the suffixes, or with a decimal exponent.
fn is_quantity(text: &str) -> bool {
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    let (digits, suffix) = number.split_at(end);
    if !digits.contains(|c: char| c.is_ascii_digit()) || digits.matches('.').count() > 1 {
        return false;
    }
    let exponent = |text: &str| {
        let text = text.strip_prefix(['+', '-']).unwrap_or(text);
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    matches!(suffix, "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei")
        || suffix.strip_prefix(['e', 'E']).is_some_and(exponent)
}

/// Tells whether a value has the type of the schema, not looking inside.
pub(crate) fn fits(schema: &Schema, value: &Value) -> bool {
    match schema.ty {
        Type::Any => true,
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::String => value.is_string(),
        Type::Boolean => value.is_boolean(),
        Type::Number => value.is_number(),
        Type::Integer => is_integer(value, schema.format.as_deref()),
        // Quantities may be written as numbers with a fraction.
        Type::IntOrString if schema.properties.is_empty() => value.is_string() || value.is_number(),
        Type::IntOrString => false,
    }
}

fn is_integer(value: &Value, format: Option<&str>) -> bool {
    match value.as_i64() {
        Some(number) => format != Some("int32") || i32::try_from(number).is_ok(),
        // Numbers such as 1.0 and 1e3 are whole; JSON does not tell them from integers.
        None => value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0 && number.abs() < 9e15),
    }
}

/// The name that messages give to the type of a value.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Gives absent fields their defaults, from the root down, including the built-in kinds' conditional ones (for instance
/// `imagePullPolicy`, which depends on the image's tag).
///
/// A `null` where the schema has a default and does not allow `null` counts as absent. Nothing is defaulted inside
/// objects that are absent, unless they have a default themselves.
pub fn apply_defaults(schema: &Schema, definitions: &Definitions, value: &mut Value) {
    let resolved = definitions.resolve(schema);
    match value {
        Value::Object(object) => {
            if let Some(name) = &schema.reference {
                defaults::before(name, object);
            }
            for (name, property) in &resolved.properties {
                let Some(default) = &property.default else { continue };
                match object.get(&**name) {
                    None => {}
                    Some(Value::Null) if !property.nullable => {}
                    Some(_) => continue,
                }
                object.insert(name.to_string(), default.clone());
            }
            if let Some(default) = resolved.additional.as_ref().and_then(|inner| inner.default.as_ref()) {
                object.values_mut().filter(|value| value.is_null()).for_each(|value| *value = default.clone());
            }
            for (name, value) in object.iter_mut() {
                if let Some(inner) = resolved.properties.get(name.as_str()).or(resolved.additional.as_ref()) {
                    apply_defaults(inner, definitions, value);
                }
            }
            if let Some(name) = &schema.reference {
                defaults::after(name, object);
            }
        }
        Value::Array(items) => {
            if let Some(inner) = &resolved.items {
                for item in items {
                    if item.is_null()
                        && !inner.nullable
                        && let Some(default) = &inner.default
                    {
                        *item = default.clone();
                    }
                    apply_defaults(inner, definitions, item);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use serde_json::json;

    fn schema(group: &str, kind: &str) -> &'static Schema {
        &builtin().kind(group, "v1", kind).unwrap().schema
    }

    #[test]
    fn prune_names_what_it_removes() {
        let mut pod = json!({
            "spec": {"foo": 1, "containers": [{"name": "a", "bar": {}}], "nodeSelector": {"any": "thing"}},
            "status": {"phase": "x"}, "oops": true,
        });
        let removed = prune(schema("", "Pod"), &builtin().definitions, &mut pod);
        assert_eq!(removed, ["oops", "spec.containers[0].bar", "spec.foo"]);
        assert_eq!(pod["spec"], json!({"containers": [{"name": "a"}], "nodeSelector": {"any": "thing"}}));
        let mut revision = json!({"data": {"anything": {"goes": 1}}, "revision": 1});
        assert!(prune(schema("apps", "ControllerRevision"), &builtin().definitions, &mut revision).is_empty());
    }

    #[test]
    fn check_types_names_the_misfit() {
        let check = |value| check_types(schema("apps", "Deployment"), &builtin().definitions, &value);
        assert_eq!(check(json!({"spec": {"replicas": 3, "selector": null}})), Ok(()));
        let error = check(json!({"spec": {"replicas": "3"}})).unwrap_err();
        assert_eq!(error.to_string(), "spec.replicas: expected integer, found string");
        assert!(check(json!({"spec": {"replicas": 3_000_000_000_u64}})).is_err());
        assert!(
            check(json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}}}})).is_ok()
        );
        assert!(check(json!({"spec": {"template": {"spec": {"containers": {}}}}})).is_err());
        assert!(check(json!("text")).is_err());
    }

    #[test]
    fn amounts_have_a_grammar() {
        for good in ["1", "1Gi", "+1.5M", "-3", "1e3", "2E-2", ".5", "100m", "1E"] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in ["", "much", "1gi", "1.2.3", "Gi", "1e", "1 Gi", "0x1", "1GiB"] {
            assert!(!is_quantity(bad), "{bad}");
        }
        let claim = json!({"spec": {"resources": {"requests": {"storage": "much"}}}});
        let error = check_types(schema("", "PersistentVolumeClaim"), &builtin().definitions, &claim).unwrap_err();
        assert_eq!(error.path, "spec.resources.requests.storage");
    }
}
