//! Rules of the core kinds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_lab_machinery::names;
use outrigger_lab_schema::FieldError;
use serde_json::{Map, Value};

use crate::object::{at, meta, text};

/// Most bytes in the data of a ConfigMap or Secret.
const DATA_LIMIT: u64 = 1 << 20;

fn map<'a>(object: &'a Value, field: &str) -> Option<&'a Map<String, Value>> {
    object.get(field).and_then(Value::as_object)
}

/// Keys are file names: letters, digits, `-`, `_`, `.`, and not `.` or `..`.
fn data_keys(object: &Value, field: &str, errors: &mut Vec<FieldError>) {
    for key in map(object, field).into_iter().flat_map(Map::keys) {
        let characters = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if key.is_empty() || key.len() > names::SUBDOMAIN_MAX || !characters || key == "." || key.starts_with("..") {
            errors.push(FieldError::invalid(
                format!("{field}[{key}]"),
                &Value::from(key.as_str()),
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name', or 'KEY_NAME', or 'key-name')",
            ));
        }
    }
}

/// An object marked immutable stays as it is.
fn frozen(new: &Value, old: Option<&Value>, fields: &[&str], errors: &mut Vec<FieldError>) {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    if new["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if new.get(*field) != old.get(*field) {
            errors.push(FieldError::forbidden(*field, "field is immutable when `immutable` is set"));
        }
    }
}

pub(crate) fn config_map(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    data_keys(new, "data", errors);
    data_keys(new, "binaryData", errors);
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in map(new, field).into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            size += key.len() + if field == "data" { text.len() } else { text.len() / 4 * 3 };
            if field == "binaryData" {
                if STANDARD.decode(text).is_err() {
                    errors.push(FieldError::invalid(format!("binaryData[{key}]"), value, "illegal base64 data"));
                }
                if map(new, "data").is_some_and(|data| data.contains_key(key)) {
                    errors.push(FieldError::invalid(
                        format!("data[{key}]"),
                        &Value::from(key.as_str()),
                        &format!("duplicate of key present in binaryData: {key}"),
                    ));
                }
            }
        }
    }
    if size as u64 > DATA_LIMIT {
        errors.push(FieldError::too_long("", DATA_LIMIT));
    }
    frozen(new, old, &["data", "binaryData"], errors);
}

pub(crate) fn secret(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    data_keys(new, "data", errors);
    let mut size = 0;
    for (key, value) in map(new, "data").into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        size += text.len() / 4 * 3;
        if STANDARD.decode(text).is_err() {
            errors.push(FieldError::invalid(format!("data[{key}]"), &Value::from("***"), "illegal base64 data"));
        }
    }
    if size as u64 > DATA_LIMIT {
        errors.push(FieldError::too_long("data", DATA_LIMIT));
    }
    let needed: &[&str] = match text(new, &["type"]) {
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if map(new, "data").is_none_or(|data| !data.contains_key(*key)) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
    if text(new, &["type"]) == "kubernetes.io/service-account-token"
        && at(new, &["metadata", "annotations", "kubernetes.io/service-account.name"]).is_none()
    {
        errors.push(FieldError::required("metadata.annotations[kubernetes.io/service-account.name]", ""));
    }
    frozen(new, old, &["data"], errors);
}

/// An event lives where its object lives; events of cluster-scoped objects live in `default`.
pub(crate) fn event(new: &Value, _: Option<&Value>, errors: &mut Vec<FieldError>) {
    let place = text(new, &["involvedObject", "namespace"]);
    let own = meta(new, "namespace");
    let fits = if place.is_empty() { own == "default" || own == "kube-system" } else { place == own };
    if !fits {
        errors.push(FieldError::invalid(
            "involvedObject.namespace",
            &Value::from(place),
            "does not match event.namespace",
        ));
    }
}

pub(crate) fn lease(new: &Value, _: Option<&Value>, errors: &mut Vec<FieldError>) {
    let number = |field: &str| at(new, &["spec", field]).and_then(Value::as_i64);
    if let Some(seconds) = number("leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", &Value::from(seconds), "must be greater than 0"));
    }
    if let Some(count) = number("leaseTransitions").filter(|count| *count < 0) {
        errors.push(FieldError::invalid(
            "spec.leaseTransitions",
            &Value::from(count),
            "must be greater than or equal to 0",
        ));
    }
}

pub(crate) fn service(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let kind = text(new, &["spec", "type"]);
    if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind) {
        errors.push(FieldError::not_supported(
            "spec.type",
            &new["spec"]["type"],
            ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        ));
    }
    if kind == "ExternalName" && text(new, &["spec", "externalName"]).is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    let ports = at(new, &["spec", "ports"]).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && kind != "ExternalName" && text(new, &["spec", "clusterIP"]) != "None" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    let mut names_seen: Vec<&str> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let number = port["port"].as_i64().unwrap_or(0);
        if !(1..=65535).contains(&number) {
            errors.push(FieldError::invalid(
                format!("{path}.port"),
                &port["port"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        let name = text(port, &["name"]);
        if ports.len() > 1 && name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        if !name.is_empty() {
            if let Err(error) = names::dns1123_label(name) {
                errors.push(FieldError::invalid(format!("{path}.name"), &port["name"], &error.to_string()));
            }
            if names_seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
            }
            names_seen.push(name);
        }
        if !["TCP", "UDP", "SCTP"].contains(&text(port, &["protocol"])) {
            errors.push(FieldError::not_supported(
                format!("{path}.protocol"),
                &port["protocol"],
                ["SCTP", "TCP", "UDP"],
            ));
        }
    }
    if let Some(old) = old {
        let (before, after) = (text(old, &["spec", "clusterIP"]), text(new, &["spec", "clusterIP"]));
        if kind != "ExternalName"
            && text(old, &["spec", "type"]) != "ExternalName"
            && !before.is_empty()
            && before != after
        {
            errors.push(FieldError::invalid("spec.clusterIPs[0]", &Value::from(after), "may not change once set"));
        }
    }
}
