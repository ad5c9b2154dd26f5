//! Rules of pods and pod templates.

use outrigger_lab_machinery::names;
use outrigger_lab_schema::FieldError;
use serde_json::Value;

use crate::object::{at, fields, section, text};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A whole pod.
pub(crate) fn pod(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let empty = Value::Null;
    spec(new.get("spec").unwrap_or(&empty), "spec", errors);
    if let Some(old) = old {
        unchanged(new, old, errors);
    }
}

/// A pod's spec at `path`.
pub(crate) fn spec(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let containers = list(spec, "containers");
    if containers.is_empty() {
        // The schema may have said so already.
        let field = format!("{path}.containers");
        if !errors.iter().any(|error| error.field == field) {
            errors.push(FieldError::required(field, ""));
        }
    }
    let policy = text(spec, &["restartPolicy"]);
    if !["Always", "OnFailure", "Never"].contains(&policy) {
        errors.push(FieldError::not_supported(
            format!("{path}.restartPolicy"),
            &Value::from(policy),
            ["Always", "OnFailure", "Never"],
        ));
    }
    let mut volumes: Vec<&str> = Vec::new();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let name = text(volume, &["name"]);
        let field = format!("{path}.volumes[{index}].name");
        name_rule(name, &field, errors);
        if volumes.contains(&name) {
            errors.push(FieldError::duplicate(field, &Value::from(name)));
        }
        volumes.push(name);
        let sources = volume
            .as_object()
            .map_or(0, |map| map.iter().filter(|(key, value)| *key != "name" && !value.is_null()).count());
        if sources > 1 {
            errors.push(FieldError::forbidden(
                format!("{path}.volumes[{index}]"),
                "may not specify more than 1 volume type",
            ));
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for field in CONTAINER_LISTS {
        for (index, container) in list(spec, field).iter().enumerate() {
            let path = format!("{path}.{field}[{index}]");
            let name = text(container, &["name"]);
            name_rule(name, &format!("{path}.name"), errors);
            if !name.is_empty() && seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &Value::from(name)));
            }
            seen.push(name);
            if text(container, &["image"]).is_empty() {
                errors.push(FieldError::required(format!("{path}.image"), ""));
            }
            self::container(container, &path, &volumes, errors);
        }
    }
}

fn name_rule(name: &str, field: &str, errors: &mut Vec<FieldError>) {
    if name.is_empty() {
        if !errors.iter().any(|error| error.field == field) {
            errors.push(FieldError::required(field, ""));
        }
    } else if let Err(error) = names::dns1123_label(name) {
        errors.push(FieldError::invalid(field, &Value::from(name), &error.to_string()));
    }
}

fn container(container: &Value, path: &str, volumes: &[&str], errors: &mut Vec<FieldError>) {
    for (index, port) in list(container, "ports").iter().enumerate() {
        let number = port["containerPort"].as_i64().unwrap_or(0);
        if !(1..=65535).contains(&number) {
            errors.push(FieldError::invalid(
                format!("{path}.ports[{index}].containerPort"),
                &port["containerPort"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        if !["TCP", "UDP", "SCTP"].contains(&text(port, &["protocol"])) {
            errors.push(FieldError::not_supported(
                format!("{path}.ports[{index}].protocol"),
                &port["protocol"],
                ["SCTP", "TCP", "UDP"],
            ));
        }
    }
    for (index, variable) in list(container, "env").iter().enumerate() {
        let name = text(variable, &["name"]);
        let field = format!("{path}.env[{index}].name");
        if name.is_empty() {
            if !errors.iter().any(|error| error.field == field) {
                errors.push(FieldError::required(field, ""));
            }
        } else if name.contains('=') || name.chars().any(char::is_control) {
            errors.push(FieldError::invalid(
                field,
                &variable["name"],
                "a valid environment variable name must consist only of printable ASCII characters other than '='",
            ));
        }
        if variable.get("valueFrom").is_some_and(|from| !from.is_null()) && !text(variable, &["value"]).is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.env[{index}].valueFrom"),
                &Value::from(""),
                "may not be specified when `value` is not empty",
            ));
        }
    }
    let mut mounted: Vec<&str> = Vec::new();
    for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let name = text(mount, &["name"]);
        if !volumes.contains(&name) {
            errors.push(FieldError::not_found(format!("{path}.name"), &mount["name"]));
        }
        let place = text(mount, &["mountPath"]);
        if place.is_empty() {
            let field = format!("{path}.mountPath");
            if !errors.iter().any(|error| error.field == field) {
                errors.push(FieldError::required(field, ""));
            }
        } else if mounted.contains(&place) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), &mount["mountPath"], "must be unique"));
        }
        mounted.push(place);
    }
    for (index, device) in list(container, "volumeDevices").iter().enumerate() {
        if !volumes.contains(&text(device, &["name"])) {
            errors.push(FieldError::not_found(format!("{path}.volumeDevices[{index}].name"), &device["name"]));
        }
    }
    if !["Always", "IfNotPresent", "Never"].contains(&text(container, &["imagePullPolicy"])) {
        errors.push(FieldError::not_supported(
            format!("{path}.imagePullPolicy"),
            &container["imagePullPolicy"],
            ["Always", "IfNotPresent", "Never"],
        ));
    }
    for probe in ["livenessProbe", "startupProbe"] {
        if let Some(threshold) =
            at(container, &[probe, "successThreshold"]).filter(|threshold| threshold.as_i64() != Some(1))
        {
            errors.push(FieldError::invalid(format!("{path}.{probe}.successThreshold"), threshold, "must be 1"));
        }
    }
}

/// Of a pod's spec only a few fields may change.
fn unchanged(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let mut new_spec = new.get("spec").cloned().unwrap_or_default();
    let mut old_spec = old.get("spec").cloned().unwrap_or_default();
    // The node is assigned once, by the binding.
    if text(&old_spec, &["nodeName"]).is_empty() {
        let node = new_spec.get("nodeName").cloned();
        crate::object::put(fields(&mut old_spec), "nodeName", node);
    }
    let kept = |spec: &mut Value| {
        for field in [
            "activeDeadlineSeconds",
            "tolerations",
            "terminationGracePeriodSeconds",
            "schedulingGates",
            "ephemeralContainers",
        ] {
            fields(spec).remove(field);
        }
        for field in CONTAINER_LISTS {
            if let Some(list) = spec.get_mut(field).and_then(Value::as_array_mut) {
                for container in list {
                    fields(container).remove("image");
                    fields(container).remove("resources");
                }
            }
        }
    };
    let old_tolerations = list(&old_spec, "tolerations").to_vec();
    if !old_tolerations.iter().all(|toleration| list(&new_spec, "tolerations").contains(toleration)) {
        errors.push(FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    kept(&mut new_spec);
    kept(&mut old_spec);
    // Sections made on the way must not count as a difference.
    section(&mut new_spec, "securityContext");
    section(&mut old_spec, "securityContext");
    if new_spec != old_spec {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
             `spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}
