//! An API server, its control loops and short ways to write tests with them.

use std::collections::BTreeSet;
use std::time::Duration;

use outrigger_lab_apiserver::kinds::Propagation;
use outrigger_lab_apiserver::{
    ApiError, Client, DeleteOptions, ListOptions, Patch, Resource, Server, ServerOptions, WriteOptions,
};
use outrigger_lab_controllers::{Controllers, Name, Options};
use outrigger_lab_store::{Durability, EventKind, Watch};
use serde_json::{Value, json};

/// Longest time that anything may take; reached only by failures.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Lab {
    pub client: Client,
    controllers: Option<Controllers>,
    server: Server,
    dir: tempfile::TempDir,
}

impl Lab {
    pub(crate) async fn start() -> Self {
        Self::without(&[]).await
    }

    pub(crate) async fn without(disabled: &[Name]) -> Self {
        Self::with_history(disabled, 10_000).await
    }

    /// A server that keeps so few changes that the control loops often have to start over.
    pub(crate) async fn with_history(disabled: &[Name], history: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(&dir, history).await;
        let client = server.client("system:test", "test");
        let mut lab = Self { client, controllers: None, server, dir };
        lab.run_controllers(disabled);
        lab.settle().await;
        lab
    }

    fn run_controllers(&mut self, disabled: &[Name]) {
        self.controllers = Some(self.more_controllers(disabled));
    }

    /// Control loops beside those that run already.
    pub(crate) fn more_controllers(&self, disabled: &[Name]) -> Controllers {
        let disabled: BTreeSet<Name> = disabled.iter().copied().collect();
        let client = self.server.client("system:kube-controller-manager", "outrigger-lab");
        let options = Options { disabled, ..Options::new(self.server.ca_pem()) };
        Controllers::start(client, self.server.api().store().clone(), options)
    }

    /// Stops the control loops, does `meanwhile`, and starts them again.
    pub(crate) async fn restart_controllers(&mut self, meanwhile: impl AsyncFnOnce(&Self)) {
        self.controllers.take().unwrap().stop().await;
        meanwhile(self).await;
        self.run_controllers(&[]);
        self.settle().await;
    }

    pub(crate) async fn settle(&self) {
        let settled = self.controllers.as_ref().unwrap().settle();
        tokio::time::timeout(LIMIT, settled).await.expect("the control loops settle");
    }

    pub(crate) fn revision(&self) -> u64 {
        self.server.api().store().revision()
    }

    pub(crate) fn watch(&self, prefix: &str) -> Watch {
        self.server.api().store().watch(prefix, self.revision()).unwrap()
    }

    pub(crate) async fn create(&self, object: Value) -> Value {
        self.try_create(object).await.unwrap()
    }

    pub(crate) async fn try_create(&self, object: Value) -> Result<Value, ApiError> {
        let namespace = text(&object, "/metadata/namespace").to_owned();
        self.client.create(&resource(&object), &namespace, object, &WriteOptions::default()).await
    }

    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        match self.client.get(&of_kind(kind), namespace, name) {
            Ok(object) => Some(object),
            Err(error) if error.reason == "NotFound" => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        self.client.list(&of_kind(kind), namespace, &ListOptions::default()).await.unwrap().items
    }

    pub(crate) async fn patch(&self, object: &Value, patch: Value) -> Value {
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        self.client
            .patch(&resource(object), namespace, name, &Patch::Merge(patch), &WriteOptions::default())
            .await
            .unwrap()
    }

    pub(crate) async fn patch_status(&self, object: &Value, patch: Value) -> Value {
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let options = WriteOptions::default();
        self.client.patch_status(&resource(object), namespace, name, &Patch::Merge(patch), &options).await.unwrap()
    }

    pub(crate) async fn delete(&self, object: &Value, propagation: Option<Propagation>) {
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let options = DeleteOptions { propagation, grace_seconds: Some(0), ..DeleteOptions::default() };
        self.client.delete(&resource(object), namespace, name, &options).await.unwrap();
    }

    /// Reasons of the events about an object, in order.
    pub(crate) async fn events(&self, about: &Value) -> Vec<String> {
        let uid = text(about, "/metadata/uid");
        let events = self.list("Event", "").await;
        let mut reasons: Vec<(u64, String)> = events
            .iter()
            .filter(|event| text(event, "/involvedObject/uid") == uid)
            .map(|event| (text(event, "/metadata/resourceVersion").parse().unwrap(), text(event, "/reason").to_owned()))
            .collect();
        reasons.sort();
        reasons.into_iter().map(|(_, reason)| reason).collect()
    }

    pub(crate) async fn stop(self) {
        if let Some(controllers) = self.controllers {
            controllers.stop().await;
        }
        self.server.shutdown().await;
        drop(self.dir);
    }
}

async fn serve(dir: &tempfile::TempDir, history: usize) -> Server {
    let options = ServerOptions { durability: Durability::Memory, history, ..ServerOptions::new(dir.path()) };
    Server::start(options).await.unwrap()
}

/// Waits until `done` says so of a change.
pub(crate) async fn until(watch: &mut Watch, mut done: impl FnMut(EventKind, &Value) -> bool) {
    let wait = async {
        loop {
            for event in watch.next().await.unwrap().events {
                if done(event.kind, &serde_json::from_slice(&event.value).unwrap()) {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the change comes");
}

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn resource(object: &Value) -> Resource {
    match text(object, "/apiVersion") {
        "example.com/v1" => Resource::new("example.com", "v1", "widgets"),
        _ => of_kind(text(object, "/kind")),
    }
}

fn of_kind(kind: &str) -> Resource {
    let (group, plural) = match kind {
        "StorageClass" => ("storage.k8s.io", "storageclasses"),
        "CustomResourceDefinition" => ("apiextensions.k8s.io", "customresourcedefinitions"),
        "Widget" => ("example.com", "widgets"),
        "Deployment" => ("apps", "deployments"),
        "ConfigMap" => ("", "configmaps"),
        "Event" => ("", "events"),
        "Namespace" => ("", "namespaces"),
        "PersistentVolume" => ("", "persistentvolumes"),
        "PersistentVolumeClaim" => ("", "persistentvolumeclaims"),
        "Pod" => ("", "pods"),
        "ServiceAccount" => ("", "serviceaccounts"),
        other => panic!("kind {other:?}"),
    };
    Resource::new(group, "v1", plural)
}

pub(crate) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

pub(crate) fn config(namespace: &str, name: &str, owners: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": name, "ownerReferences": owners},
    })
}

/// A reference to `object`.
pub(crate) fn owner(object: &Value, block: bool) -> Value {
    json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"], "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"], "blockOwnerDeletion": block,
    })
}

/// Defines the custom kind Widget.
pub(crate) fn widgets() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

pub(crate) fn widget(namespace: &str, name: &str, owners: &[Value]) -> Value {
    json!({
        "apiVersion": "example.com/v1", "kind": "Widget",
        "metadata": {"namespace": namespace, "name": name, "ownerReferences": owners},
    })
}

pub(crate) fn pod(namespace: &str, name: &str, node: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "nodeName": node, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
        },
    })
}
