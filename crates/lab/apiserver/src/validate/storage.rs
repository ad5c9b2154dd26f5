//! Rules of the storage kinds.

use outrigger_lab_machinery::names;
use outrigger_lab_machinery::quantity::Quantity;
use outrigger_lab_schema::FieldError;
use serde_json::Value;

use super::require_text;
use crate::object::{annotation, at, fields, meta, text};

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn list<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

fn access_modes(object: &Value, errors: &mut Vec<FieldError>) {
    let modes = list(object, &["spec", "accessModes"]);
    if modes.is_empty() {
        errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
    }
    for mode in modes {
        if !mode.as_str().is_some_and(|mode| ACCESS_MODES.contains(&mode)) {
            errors.push(FieldError::not_supported("spec.accessModes", mode, ACCESS_MODES));
        }
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.push(FieldError::forbidden("spec.accessModes", "may not use ReadWriteOncePod with other access modes"));
    }
}

fn volume_mode(object: &Value, errors: &mut Vec<FieldError>) {
    let mode = text(object, &["spec", "volumeMode"]);
    if !mode.is_empty() && !["Block", "Filesystem"].contains(&mode) {
        errors.push(FieldError::not_supported("spec.volumeMode", &Value::from(mode), ["Block", "Filesystem"]));
    }
}

/// A positive amount of storage at `path`; `None` if it is missing or wrong (which is reported).
fn storage(value: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) -> Option<Quantity> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        errors.push(FieldError::required(path, ""));
        return None;
    };
    let Some(amount) = quantity(value) else {
        errors.push(FieldError::invalid(path, value, "must be a quantity such as 1Gi"));
        return None;
    };
    if amount.nanos() <= 0 {
        errors.push(FieldError::invalid(path, value, "must be greater than zero"));
        return None;
    }
    Some(amount)
}

pub(crate) fn claim(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    access_modes(new, errors);
    volume_mode(new, errors);
    let size = storage(at(new, &["spec", "resources", "requests", "storage"]), "spec.resources[storage]", errors);
    if let Some(class) =
        at(new, &["spec", "storageClassName"]).and_then(Value::as_str).filter(|class| !class.is_empty())
        && let Err(error) = names::dns1123_subdomain(class)
    {
        errors.push(FieldError::invalid("spec.storageClassName", &Value::from(class), &error.to_string()));
    }
    let Some(old) = old else { return };

    // What may change: the request, the class of attributes, the volume while there is none, the class once from nothing.
    let strip = |claim: &Value| {
        let mut spec = claim.get("spec").cloned().unwrap_or_default();
        let map = fields(&mut spec);
        map.remove("volumeAttributesClassName");
        if let Some(requests) =
            map.get_mut("resources").and_then(|resources| resources.get_mut("requests")).and_then(Value::as_object_mut)
        {
            requests.remove("storage");
        }
        if text(old, &["spec", "volumeName"]).is_empty() {
            map.remove("volumeName");
        }
        let annotated = annotation(old, "volume.beta.kubernetes.io/storage-class").is_some();
        if at(old, &["spec", "storageClassName"]).is_none_or(Value::is_null)
            && (annotated || text(old, &["spec", "volumeName"]).is_empty())
        {
            map.remove("storageClassName");
        }
        spec
    };
    if strip(new) != strip(old) {
        errors.push(FieldError::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let before = at(old, &["spec", "resources", "requests", "storage"]).and_then(quantity);
    if let (Some(size), Some(before)) = (size, before)
        && size.nanos() != before.nanos()
    {
        let bound = text(old, &["status", "phase"]) == "Bound";
        let floor = at(old, &["status", "capacity", "storage"]).and_then(quantity);
        if !bound {
            errors.push(FieldError::forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            ));
        } else if size.nanos() < before.nanos() && floor.is_none_or(|floor| size.nanos() <= floor.nanos()) {
            // Shrinking back is only the way out of a failed expansion, and only above what there is.
            errors.push(FieldError::forbidden(
                "spec.resources.requests.storage",
                "field can not be less than status.capacity",
            ));
        }
    }
}

/// Members of a volume's spec that are no source.
const NOT_A_SOURCE: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn sources(volume: &Value) -> Vec<(&String, &Value)> {
    volume
        .get("spec")
        .and_then(Value::as_object)
        .map(|spec| {
            spec.iter().filter(|(key, value)| !NOT_A_SOURCE.contains(&key.as_str()) && !value.is_null()).collect()
        })
        .unwrap_or_default()
}

pub(crate) fn volume(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    access_modes(new, errors);
    volume_mode(new, errors);
    match at(new, &["spec", "capacity"]).and_then(Value::as_object).filter(|capacity| !capacity.is_empty()) {
        None => errors.push(FieldError::required("spec.capacity", "")),
        Some(capacity) => {
            if capacity.len() > 1 || !capacity.contains_key("storage") {
                errors.push(FieldError::not_supported("spec.capacity", &new["spec"]["capacity"], ["storage"]));
            }
            storage(capacity.get("storage"), "spec.capacity[storage]", errors);
        }
    }
    let policy = text(new, &["spec", "persistentVolumeReclaimPolicy"]);
    if !["Delete", "Recycle", "Retain"].contains(&policy) {
        errors.push(FieldError::not_supported(
            "spec.persistentVolumeReclaimPolicy",
            &Value::from(policy),
            ["Delete", "Recycle", "Retain"],
        ));
    }
    let found = sources(new);
    match found.as_slice() {
        [] => errors.push(FieldError::required("spec", "must specify a volume type")),
        [(name, source)] => source_rules(name, source, policy, errors),
        [_, rest @ ..] => {
            for (name, _) in rest {
                errors.push(FieldError::forbidden(format!("spec.{name}"), "may not specify more than 1 volume type"));
            }
        }
    }
    let Some(old) = old else { return };
    // Secret references of a CSI volume may be put in later, everything else of the source stays.
    if found != sources(old) && !only_secret_added(&found, &sources(old)) {
        errors.push(FieldError::forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        ));
    }
    if at(old, &["spec", "volumeMode"]).is_some()
        && at(new, &["spec", "volumeMode"]) != at(old, &["spec", "volumeMode"])
    {
        errors.push(FieldError::invalid("spec.volumeMode", &new["spec"]["volumeMode"], "field is immutable"));
    }
    if let Some(affinity) = at(old, &["spec", "nodeAffinity"]).filter(|affinity| !affinity.is_null())
        && at(new, &["spec", "nodeAffinity"]) != Some(affinity)
    {
        errors.push(FieldError::invalid(
            "spec.nodeAffinity",
            &new["spec"]["nodeAffinity"],
            "field is immutable, except for updating from beta label to GA",
        ));
    }
}

fn only_secret_added(new: &[(&String, &Value)], old: &[(&String, &Value)]) -> bool {
    let ([(new_name, new)], [(old_name, old)]) = (new, old) else { return false };
    if new_name != old_name || *new_name != "csi" {
        return false;
    }
    let mut stripped = (*new).clone();
    for field in [
        "controllerPublishSecretRef",
        "nodeStageSecretRef",
        "nodePublishSecretRef",
        "controllerExpandSecretRef",
        "nodeExpandSecretRef",
    ] {
        if old.get(field).is_none() {
            fields(&mut stripped).remove(field);
        }
    }
    stripped == **old
}

fn source_rules(name: &str, source: &Value, policy: &str, errors: &mut Vec<FieldError>) {
    let mut required = |field: &str| {
        let path = format!("spec.{name}.{field}");
        if text(source, &[field]).is_empty() && !errors.iter().any(|error| error.field == path) {
            errors.push(FieldError::required(path, ""));
        }
    };
    match name {
        "csi" => {
            required("driver");
            required("volumeHandle");
        }
        "hostPath" => {
            required("path");
            let path = text(source, &["path"]);
            if path.split('/').any(|part| part == "..") {
                errors.push(FieldError::invalid("spec.hostPath.path", &source["path"], "must not contain '..'"));
            }
            if path == "/" && policy == "Recycle" {
                errors.push(FieldError::forbidden(
                    "spec.persistentVolumeReclaimPolicy",
                    "may not be 'recycle' for a hostPath mount of '/'",
                ));
            }
        }
        "local" => required("path"),
        "nfs" => {
            required("server");
            required("path");
        }
        _ => {}
    }
}

pub(crate) fn class(new: &Value, _: Option<&Value>, errors: &mut Vec<FieldError>) {
    if require_text(new, "provisioner", errors) {
        let provisioner = text(new, &["provisioner"]);
        if let Err(error) = names::label_key(&provisioner.to_lowercase()) {
            errors.push(FieldError::invalid("provisioner", &new["provisioner"], &error.to_string()));
        }
    }
    let policy = text(new, &["reclaimPolicy"]);
    if !policy.is_empty() && !["Delete", "Retain"].contains(&policy) {
        errors.push(FieldError::not_supported("reclaimPolicy", &new["reclaimPolicy"], ["Delete", "Retain"]));
    }
    let mode = text(new, &["volumeBindingMode"]);
    if mode.is_empty() {
        errors.push(FieldError::required("volumeBindingMode", ""));
    } else if !["Immediate", "WaitForFirstConsumer"].contains(&mode) {
        errors.push(FieldError::not_supported(
            "volumeBindingMode",
            &new["volumeBindingMode"],
            ["Immediate", "WaitForFirstConsumer"],
        ));
    }
    parameters(new, "parameters", 512, 256 * 1024, errors);
}

fn parameters(object: &Value, field: &str, most: usize, bytes: usize, errors: &mut Vec<FieldError>) {
    let Some(map) = object.get(field).and_then(Value::as_object) else { return };
    if map.len() > most {
        errors.push(FieldError::too_long(field, most as u64));
    }
    if map.keys().any(String::is_empty) {
        errors.push(FieldError::invalid(field, &Value::from(""), "field can not be empty."));
    }
    let size: usize = map.iter().map(|(key, value)| key.len() + value.as_str().unwrap_or_default().len()).sum();
    if size > bytes {
        errors.push(FieldError::too_long(field, bytes as u64));
    }
}

pub(crate) fn csi_driver(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let name = meta(new, "name");
    if name.len() > 63 {
        errors.push(FieldError::too_long("metadata.name", 63));
    }
    let policy = text(new, &["spec", "fsGroupPolicy"]);
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    if !policy.is_empty() && !policies.contains(&policy) {
        errors.push(FieldError::not_supported("spec.fsGroupPolicy", &new["spec"]["fsGroupPolicy"], policies));
    }
    for mode in list(new, &["spec", "volumeLifecycleModes"]) {
        if !mode.as_str().is_some_and(|mode| ["Ephemeral", "Persistent"].contains(&mode)) {
            errors.push(FieldError::not_supported("spec.volumeLifecycleModes", mode, ["Ephemeral", "Persistent"]));
        }
    }
    let mut audiences: Vec<&str> = Vec::new();
    for (index, request) in list(new, &["spec", "tokenRequests"]).iter().enumerate() {
        let audience = text(request, &["audience"]);
        if audiences.contains(&audience) {
            errors.push(FieldError::duplicate(format!("spec.tokenRequests[{index}].audience"), &Value::from(audience)));
        }
        audiences.push(audience);
        if let Some(seconds) = request.get("expirationSeconds").and_then(Value::as_i64).filter(|seconds| *seconds < 600)
        {
            errors.push(FieldError::invalid(
                format!("spec.tokenRequests[{index}].expirationSeconds"),
                &Value::from(seconds),
                "may not specify a duration less than 10 minutes",
            ));
        }
    }
    if let Some(old) = old {
        for field in ["attachRequired", "fsGroupPolicy", "volumeLifecycleModes"] {
            if at(new, &["spec", field]) != at(old, &["spec", field]) {
                errors.push(FieldError::invalid(format!("spec.{field}"), &new["spec"][field], "field is immutable"));
            }
        }
    }
}

pub(crate) fn csi_node(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, driver) in list(new, &["spec", "drivers"]).iter().enumerate() {
        let path = format!("spec.drivers[{index}]");
        let name = text(driver, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if name.len() > 63 {
            errors.push(FieldError::too_long(format!("{path}.name"), 63));
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &Value::from(name)));
        }
        seen.push(name);
        let node = text(driver, &["nodeID"]);
        if node.is_empty() {
            errors.push(FieldError::required(format!("{path}.nodeID"), ""));
        } else if node.len() > 256 {
            errors.push(FieldError::invalid(
                format!("{path}.nodeID"),
                &Value::from(node),
                "must be 256 characters or less",
            ));
        }
        let mut keys: Vec<&Value> = Vec::new();
        for key in list(driver, &["topologyKeys"]) {
            if keys.contains(&key) {
                errors.push(FieldError::duplicate(format!("{path}.topologyKeys"), key));
            }
            keys.push(key);
            if let Err(error) = names::label_key(key.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(format!("{path}.topologyKeys"), key, &error.to_string()));
            }
        }
        if let Some(count) = at(driver, &["allocatable", "count"]).and_then(Value::as_i64).filter(|count| *count < 0) {
            errors.push(FieldError::invalid(
                format!("{path}.allocatable.count"),
                &Value::from(count),
                "must be greater than or equal to 0",
            ));
        }
    }
    // An entry may come or go, and its limit may change; who the driver is on this node may not.
    for before in old.map(|old| list(old, &["spec", "drivers"])).unwrap_or_default() {
        let entries = list(new, &["spec", "drivers"]).iter().enumerate();
        for (index, after) in entries.filter(|(_, after)| after["name"] == before["name"]) {
            if after["nodeID"] != before["nodeID"] || after.get("topologyKeys") != before.get("topologyKeys") {
                errors.push(FieldError::invalid(format!("spec.drivers[{index}]"), after, "field is immutable"));
            }
        }
    }
}

pub(crate) fn capacity(new: &Value, _: Option<&Value>, errors: &mut Vec<FieldError>) {
    require_text(new, "storageClassName", errors);
    for field in ["capacity", "maximumVolumeSize"] {
        if let Some(value) = new.get(field).filter(|value| !value.is_null())
            && quantity(value).is_none_or(|amount| amount.nanos() < 0)
        {
            errors.push(FieldError::invalid(field, value, "must be greater than or equal to 0"));
        }
    }
}

pub(crate) fn attachment(new: &Value, _: Option<&Value>, errors: &mut Vec<FieldError>) {
    require_text(new, "spec.attacher", errors);
    require_text(new, "spec.nodeName", errors);
    let name = at(new, &["spec", "source", "persistentVolumeName"]).filter(|value| !value.is_null() && *value != "");
    let inline = at(new, &["spec", "source", "inlineVolumeSpec"]).filter(|value| !value.is_null());
    match (name, inline) {
        (None, None) => errors
            .push(FieldError::required("spec.source", "must specify either persistentVolumeName or inlineVolumeSpec")),
        (Some(_), Some(_)) => errors.push(FieldError::forbidden(
            "spec.source",
            "only one of persistentVolumeName and inlineVolumeSpec may be set",
        )),
        _ => {}
    }
}

pub(crate) fn attributes_class(new: &Value, _: Option<&Value>, errors: &mut Vec<FieldError>) {
    require_text(new, "driverName", errors);
    if new.get("parameters").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty) {
        errors.push(FieldError::required("parameters", "must contain at least one key/value pair"));
    }
    parameters(new, "parameters", 512, 256 * 1024, errors);
}
