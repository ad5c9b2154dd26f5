//! Subresources with a body of their own kind: scale, binding, eviction, token.

use jiff::SignedDuration;
use outrigger_lab_machinery::{json as json_patch, merge, selector, table::JsonPath};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::Api;
use crate::auth::{Bound, ISSUER, TokenSubject};
use crate::delete::DeleteOptions;
use crate::object::{self, at, fields, meta, metadata, section, text};
use crate::ownership::Ownership;
use crate::part::Part;
use crate::patch::{Patch, patch_error};
use crate::request::{Query, WriteOptions};
use crate::shape;
use crate::status::ApiError;
use crate::write::{Actor, Target};

/// Where the parts of a Scale are in the object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paths<'a> {
    pub(crate) spec: &'a str,
    pub(crate) status: &'a str,
    pub(crate) selector: Option<&'a str>,
}

fn find<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let parts: Vec<&str> = path.split('.').filter(|part| !part.is_empty()).collect();
    at(object, &parts)
}

/// Sets a value at a dotted path, making the maps on the way.
fn set(object: &mut Value, path: &str, value: Value) {
    let parts: Vec<&str> = path.split('.').filter(|part| !part.is_empty()).collect();
    let Some((leaf, parents)) = parts.split_last() else { return };
    let mut place = object;
    for parent in parents {
        place = fields(place).entry(*parent).or_insert_with(|| json!({}));
    }
    fields(place).insert((*leaf).to_owned(), value);
}

/// The Scale of an object.
fn scale_of(object: &Value, paths: &Paths<'_>) -> Value {
    let number = |path: &str| find(object, path).and_then(Value::as_i64).unwrap_or(0);
    let selector = match paths.selector.and_then(|path| find(object, path)) {
        Some(Value::String(text)) => text.clone(),
        Some(value @ Value::Object(map)) => {
            // A ReplicationController's selector is a plain map of labels.
            let parsed = if map.contains_key("matchLabels") || map.contains_key("matchExpressions") {
                selector::Label::from_object(value)
            } else {
                Ok(selector::Label::from_map(
                    map.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())),
                ))
            };
            parsed.map(|selector| selector.to_string()).unwrap_or_default()
        }
        _ => String::new(),
    };
    let mut status = json!({"replicas": number(paths.status)});
    if !selector.is_empty() {
        status["selector"] = json!(selector);
    }
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = at(object, &["metadata", field]) {
            metadata[field] = value.clone();
        }
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": number(paths.spec)},
        "status": status,
    })
}

impl Api {
    /// Reads a Scale.
    pub(crate) fn scale(&self, target: &Target, paths: &Paths<'_>) -> Result<Value, ApiError> {
        let version = self.read(target)?;
        Ok(scale_of(&shape::parse(&target.kind, &version)?, paths))
    }

    /// Writes the replicas of the Scale that `change` makes of the present one.
    pub(crate) fn set_scale(
        &self,
        actor: Actor<'_>,
        target: &Target,
        paths: &Paths<'_>,
        options: &WriteOptions,
        mut change: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Value, ApiError> {
        let written = self.modify(actor, target, Part::Main, options, Ownership::Open, |current| {
            let present = scale_of(current, paths);
            let wanted = change(&present)?;
            let invalid = |field: &str, message: String| {
                ApiError::invalid_field("autoscaling", "Scale", &target.name, "FieldValueInvalid", field, message)
            };
            let name = meta(&wanted, "name");
            if !name.is_empty() && name != target.name {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    target.name
                )));
            }
            let replicas = match at(&wanted, &["spec", "replicas"]) {
                None | Some(Value::Null) => 0,
                Some(value) => value
                    .as_i64()
                    .ok_or_else(|| ApiError::bad_request(format!("spec.replicas: {value} is not a whole number")))?,
            };
            if !(0..=i64::from(i32::MAX)).contains(&replicas) {
                return Err(invalid(
                    "spec.replicas",
                    format!("Invalid value: {replicas}: must be greater than or equal to 0"),
                ));
            }
            let revision = meta(&wanted, "resourceVersion");
            if !revision.is_empty() && revision != meta(current, "resourceVersion") {
                return Err(target.modified());
            }
            let mut object = current.clone();
            set(&mut object, paths.spec, Value::from(replicas));
            Ok(object)
        })?;
        let object: Value = serde_json::from_slice(&written.bytes).map_err(ApiError::internal)?;
        Ok(scale_of(&object, paths))
    }

    /// The Scale that a patch makes of the present one.
    pub(crate) fn patched_scale(target: &Target, scale: &Value, patch: &Patch) -> Result<Value, ApiError> {
        match patch {
            Patch::Json(document) => json_patch::apply(scale, document),
            // A Scale has no lists: all merging formats mean the same.
            Patch::Merge(document) | Patch::Strategic(document) | Patch::Apply(document) => {
                merge::apply(scale, document)
            }
        }
        .map_err(|error| patch_error(target, error))
    }

    /// Assigns a pod to a node.
    pub(crate) fn bind(&self, actor: Actor<'_>, target: &Target, body: &Value) -> Result<Value, ApiError> {
        let node = text(body, &["target", "name"]);
        if node.is_empty() {
            return Err(ApiError::invalid_field(
                "",
                "Binding",
                &target.name,
                "FieldValueRequired",
                "target.name",
                "Required value",
            ));
        }
        let name = if target.name.is_empty() { meta(body, "name").to_owned() } else { target.name.clone() };
        let registry = self.registry();
        let pods = registry.resource("", "v1", "pods").ok_or_else(ApiError::no_resource)?;
        let pod = Target { kind: std::sync::Arc::clone(pods), namespace: target.namespace.clone(), name };
        let now = object::time(self.now());
        self.modify(
            actor,
            &pod,
            Part::Pointer("/spec/nodeName"),
            &WriteOptions::default(),
            Ownership::Open,
            |current| {
                let uid = meta(body, "uid");
                if !uid.is_empty() && uid != meta(current, "uid") {
                    return Err(pod.conflict(format!(
                        "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                        meta(current, "uid")
                    )));
                }
                if object::is_terminating(current) {
                    return Err(
                        pod.conflict(format!("pod {} is being deleted, cannot be assigned to a host", pod.name))
                    );
                }
                let assigned = text(current, &["spec", "nodeName"]);
                if !assigned.is_empty() {
                    return Err(pod.conflict(format!("pod {} is already assigned to node {assigned:?}", pod.name)));
                }
                let mut wanted = current.clone();
                section(&mut wanted, "spec").insert("nodeName".to_owned(), Value::from(node));
                Ok(wanted)
            },
        )?;
        // The condition is part of the status, hence a write of its own.
        self.modify(actor, &pod, Part::Status, &WriteOptions::default(), Ownership::Open, |current| {
            let mut wanted = current.clone();
            let conditions = section(&mut wanted, "status").entry("conditions").or_insert_with(|| json!([]));
            if let Some(list) = conditions.as_array_mut() {
                list.retain(|condition| condition["type"] != "PodScheduled");
                list.push(
                    json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}),
                );
            }
            Ok(wanted)
        })?;
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
    }

    /// Deletes a pod on behalf of an Eviction.
    pub(crate) fn evict(
        &self,
        actor: Actor<'_>,
        target: &Target,
        query: &Query,
        body: &Value,
    ) -> Result<Value, ApiError> {
        let name = meta(body, "name");
        if !name.is_empty() && name != target.name {
            return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut options = DeleteOptions::parse(query, body.get("deleteOptions").unwrap_or(&Value::Null))?;
        options.dry_run |= crate::request::dry_run(query.get("dryRun"), "CreateOptions")?;
        self.delete(actor, target, &options)?;
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
    }

    /// Issues a service account token for a TokenRequest.
    pub(crate) fn request_token(&self, target: &Target, mut body: Value) -> Result<Value, ApiError> {
        let invalid = |field: &str, message: String| {
            ApiError::invalid_field(
                "authentication.k8s.io",
                "TokenRequest",
                &target.name,
                "FieldValueInvalid",
                field,
                message,
            )
        };
        if !body.is_object() {
            return Err(ApiError::bad_request("the body must be a TokenRequest"));
        }
        let account: Value = serde_json::from_slice(&self.read(target)?.value).map_err(ApiError::internal)?;
        let seconds = match at(&body, &["spec", "expirationSeconds"]) {
            None | Some(Value::Null) => 3600,
            Some(value) => {
                value.as_i64().ok_or_else(|| ApiError::bad_request("spec.expirationSeconds is not a whole number"))?
            }
        };
        if !(600..=1 << 32).contains(&seconds) {
            return Err(invalid(
                "spec.expirationSeconds",
                format!(
                    "Invalid value: {seconds}: may not specify a duration less than 10 minutes or larger than 2^32 seconds"
                ),
            ));
        }
        let mut audiences: Vec<String> = at(&body, &["spec", "audiences"])
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            .unwrap_or_default();
        if audiences.is_empty() {
            audiences.push(ISSUER.to_owned());
        }
        let bound = match at(&body, &["spec", "boundObjectRef"]).filter(|reference| !reference.is_null()) {
            None => None,
            Some(reference) => Some(self.bound_object(target, reference)?),
        };
        let now = self.now();
        let expires = now + SignedDuration::from_secs(seconds);
        let subject = TokenSubject {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: meta(&account, "uid").to_owned(),
            bound,
            audiences: audiences.clone(),
            id: Uuid::new_v4().to_string(),
        };
        let token = self
            .0
            .issuer
            .issue(&subject, now.as_second(), expires.as_second())
            .ok_or_else(|| ApiError::internal("the system gave no random bytes"))?;
        let spec = section(&mut body, "spec");
        spec.insert("audiences".to_owned(), json!(audiences));
        spec.insert("expirationSeconds".to_owned(), json!(seconds));
        fields(&mut body)
            .insert("status".to_owned(), json!({"token": token, "expirationTimestamp": object::time(expires)}));
        fields(&mut body).insert("kind".to_owned(), json!("TokenRequest"));
        fields(&mut body).insert("apiVersion".to_owned(), json!("authentication.k8s.io/v1"));
        let metadata = metadata(&mut body);
        metadata.insert("name".to_owned(), json!(target.name));
        metadata.insert("namespace".to_owned(), json!(target.namespace));
        metadata.insert("creationTimestamp".to_owned(), json!(object::time(now)));
        Ok(body)
    }

    fn bound_object(&self, target: &Target, reference: &Value) -> Result<Bound, ApiError> {
        let kind = text(reference, &["kind"]);
        let name = text(reference, &["name"]);
        let (plural, namespace) = match kind {
            "Pod" => ("pods", target.namespace.as_str()),
            "Secret" => ("secrets", target.namespace.as_str()),
            "Node" => ("nodes", ""),
            other => {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount to object type {other:?}"
                )));
            }
        };
        let version = self
            .store()
            .get(&format!("/registry/core/{plural}/{namespace}/{name}"))
            .ok_or_else(|| ApiError::not_found("", plural, name))?;
        let object: Value = serde_json::from_slice(&version.value).map_err(ApiError::internal)?;
        let (uid, wanted) = (meta(&object, "uid"), text(reference, &["uid"]));
        if !wanted.is_empty() && wanted != uid {
            return Err(ApiError::conflict(
                "",
                plural,
                name,
                format!("the UID in the bound object reference ({wanted}) does not match the UID in record ({uid})"),
            ));
        }
        Ok(Bound { claim: kind.to_lowercase(), name: name.to_owned(), uid: uid.to_owned() })
    }
}

/// A path of a Scale as it stands in a definition, checked.
pub(crate) fn simple_path(path: &str) -> bool {
    path.starts_with('.')
        && JsonPath::parse(path).is_ok()
        && path[1..].split('.').all(|part| !part.is_empty() && !part.contains('['))
}
