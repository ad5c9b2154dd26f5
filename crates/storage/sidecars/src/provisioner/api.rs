//! The provisioner's reads and writes of single objects.
//!
//! Finalizers and annotations are changed by JSON patches that first test what they replace: a merge patch made from a stale
//! cache could bring back what somebody else has just removed.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, SecretReference};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};

use super::names;
use super::objects::Claim;

/// Why a secret's contents cannot accompany a call.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    /// It cannot be read.
    #[error("error getting secret {name} in namespace {namespace}: {text}")]
    Get {
        name: String,
        namespace: String,
        /// The API server's answer.
        text: String,
        /// Whether the secret does not exist.
        missing: bool,
    },
    /// CSI secrets are text.
    #[error("secret {name} in namespace {namespace}: the value of key {key:?} is not UTF-8")]
    NotText { name: String, namespace: String, key: String },
}

/// Access to the API server.
#[derive(Clone)]
pub(super) struct Objects {
    client: Client,
}

/// Whether an error says that the object does not exist.
pub(super) fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether a patch met an object that had changed: a failed `test` operation or another UID.
fn is_stale(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 || status.code == 422)
}

/// The text of an API error as users know it: the server's message alone, where there is one.
pub(super) fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

impl Objects {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(super) fn all<K>(&self) -> Api<K>
    where
        K: Resource,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }

    pub(super) fn config_maps(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The contents of a secret. They go into the call and nowhere else.
    pub(super) async fn secret(
        &self,
        reference: Option<&SecretReference>,
    ) -> Result<HashMap<String, String>, SecretError> {
        let Some((name, namespace)) =
            reference.and_then(|reference| Some((reference.name.clone()?, reference.namespace.clone()?)))
        else {
            return Ok(HashMap::new());
        };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let secret = match api.get(&name).await {
            Ok(secret) => secret,
            Err(error) => {
                return Err(SecretError::Get { name, namespace, text: text(&error), missing: is_missing(&error) });
            }
        };
        let mut contents = HashMap::new();
        for (key, value) in secret.data.unwrap_or_default() {
            match String::from_utf8(value.0) {
                Ok(value) => {
                    contents.insert(key, value);
                }
                Err(_) => return Err(SecretError::NotText { name, namespace, key }),
            }
        }
        Ok(contents)
    }

    pub(super) async fn attributes_class(&self, name: &str) -> Result<VolumeAttributesClass, kube::Error> {
        self.all::<VolumeAttributesClass>().get(name).await
    }

    pub(super) async fn claim(&self, namespace: &str, name: &str) -> Result<PersistentVolumeClaim, kube::Error> {
        self.claims(namespace).get(name).await
    }

    pub(super) async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, kube::Error> {
        self.all::<PersistentVolume>().get_opt(name).await
    }

    /// Saves a volume. `Ok(false)`: one of that name exists already.
    pub(super) async fn create_volume(&self, volume: &PersistentVolume) -> Result<bool, kube::Error> {
        match self.all::<PersistentVolume>().create(&PostParams::default(), volume).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes a volume object. Returns what is left of it: an object that waits for its finalizers.
    pub(super) async fn delete_volume(&self, name: &str, uid: &str) -> Result<Option<PersistentVolume>, kube::Error> {
        let parameters = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.all::<PersistentVolume>().delete(name, &parameters).await {
            Ok(outcome) => Ok(outcome.left()),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds or removes our finalizer on a volume as it was read. `Ok(false)`: it has changed meanwhile.
    pub(super) async fn guard_volume(&self, volume: &PersistentVolume, guard: bool) -> Result<bool, kube::Error> {
        let path = format!("/api/v1/persistentvolumes/{}", volume.name_any());
        self.finalizer::<PersistentVolume>(&path, volume, names::VOLUME_FINALIZER, guard).await
    }

    /// Adds or removes the finalizer that keeps the source of a clone. `Ok(false)`: it has changed meanwhile.
    pub(super) async fn guard_source(&self, claim: &PersistentVolumeClaim, guard: bool) -> Result<bool, kube::Error> {
        let path = format!(
            "/api/v1/namespaces/{}/persistentvolumeclaims/{}",
            claim.namespace().unwrap_or_default(),
            claim.name_any()
        );
        self.finalizer::<PersistentVolumeClaim>(&path, claim, names::CLONING_FINALIZER, guard).await
    }

    async fn finalizer<K>(&self, path: &str, object: &K, name: &str, wanted: bool) -> Result<bool, kube::Error>
    where
        K: ResourceExt,
    {
        let Some(patch) =
            finalizer_patch(object.uid().as_deref(), object.resource_version(), object.finalizers(), name, wanted)
        else {
            return Ok(true);
        };
        match self.json_patch(path, &patch).await {
            Ok(()) => Ok(true),
            // Gone: what was to be protected or freed is no more.
            Err(error) if is_missing(&error) => Ok(true),
            Err(error) if is_stale(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes back the scheduler's choice of a node, so that it chooses anew. A claim that has changed is left alone.
    pub(super) async fn unselect_node(&self, claim: &Claim) -> Result<(), kube::Error> {
        let Some(node) = claim.selected_node() else {
            return Ok(());
        };
        let key = format!("/metadata/annotations/{}", names::SELECTED_NODE.replace('/', "~1"));
        let patch = json!([
            { "op": "test", "path": "/metadata/uid", "value": claim.uid },
            { "op": "test", "path": key, "value": node },
            { "op": "remove", "path": key },
        ]);
        let path = format!("/api/v1/namespaces/{}/persistentvolumeclaims/{}", claim.namespace, claim.name);
        match self.json_patch(&path, &patch).await {
            Err(error) if !is_missing(&error) && !is_stale(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn json_patch(&self, path: &str, patch: &Value) -> Result<(), kube::Error> {
        let request = http::Request::patch(path)
            .header(http::header::CONTENT_TYPE, "application/json-patch+json")
            .body(patch.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request::<BTreeMap<String, Value>>(request).await.map(drop)
    }
}

/// The patch that adds or removes a finalizer, or nothing if it is as wanted.
fn finalizer_patch(
    uid: Option<&str>,
    version: Option<String>,
    finalizers: &[String],
    name: &str,
    wanted: bool,
) -> Option<Value> {
    let position = finalizers.iter().position(|finalizer| finalizer == name);
    let same = json!({ "op": "test", "path": "/metadata/uid", "value": uid });
    match (position, wanted) {
        (Some(_), true) | (None, false) => None,
        (Some(index), false) => {
            let path = format!("/metadata/finalizers/{index}");
            Some(json!([same, { "op": "test", "path": path, "value": name }, { "op": "remove", "path": path }]))
        }
        (None, true) if finalizers.is_empty() => Some(json!([
            same,
            { "op": "test", "path": "/metadata/resourceVersion", "value": version },
            { "op": "add", "path": "/metadata/finalizers", "value": [name] },
        ])),
        (None, true) => Some(json!([
            same,
            { "op": "test", "path": "/metadata/resourceVersion", "value": version },
            { "op": "add", "path": "/metadata/finalizers/-", "value": name },
        ])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finalizers_change_only_where_they_were_seen() {
        let patch = |finalizers: &[&str], wanted| {
            let finalizers: Vec<_> = finalizers.iter().map(|name| (*name).to_owned()).collect();
            finalizer_patch(Some("u"), Some("7".to_owned()), &finalizers, "ours", wanted)
        };
        assert_eq!(patch(&["ours"], true), None);
        assert_eq!(patch(&["theirs"], false), None);
        assert_eq!(
            patch(&["theirs", "ours"], false),
            Some(json!([
                { "op": "test", "path": "/metadata/uid", "value": "u" },
                { "op": "test", "path": "/metadata/finalizers/1", "value": "ours" },
                { "op": "remove", "path": "/metadata/finalizers/1" },
            ]))
        );
        assert_eq!(patch(&[], true).unwrap()[2]["value"], json!(["ours"]));
        assert_eq!(patch(&["theirs"], true).unwrap()[2]["path"], "/metadata/finalizers/-");
    }
}
