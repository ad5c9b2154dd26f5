//! The API without the network: what the lab's own controllers use.

use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream;
use outrigger_lab_store::Revision;
use serde_json::Value;

use crate::api::Api;
use crate::auth::{Attributes, User};
use crate::delete::DeleteOptions;
use crate::kinds::{KindInfo, Resource};
use crate::ownership::Ownership;
use crate::part::Part;
use crate::patch::Patch;
use crate::request::{ListOptions, Verb, WriteOptions};
use crate::shape;
use crate::status::ApiError;
use crate::watch::{EventType, Watch};
use crate::write::{Actor, Target, Written};

/// A client in the process of the server. Its requests take the same path as those from the network, from
/// authorisation on. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    api: Api,
    user: Arc<User>,
    agent: Arc<str>,
}

/// A list and the revision at which it was read.
#[derive(Debug, Clone)]
pub struct List {
    /// The objects.
    pub items: Vec<Value>,
    /// Where a watch continues.
    pub revision: Revision,
    /// Token of the next page, if the list was cut by its limit.
    pub continue_token: Option<String>,
}

/// A change seen by a watch.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// What happened.
    pub ty: EventType,
    /// The object, shared with everybody who watches it; of an error, its Status.
    pub object: Arc<Value>,
}

impl Client {
    /// A client acting as `user` with the program name `agent`.
    pub fn new(api: Api, user: User, agent: &str) -> Self {
        Self { api, user: Arc::new(user), agent: agent.into() }
    }

    /// The API behind the client.
    pub fn api(&self) -> &Api {
        &self.api
    }

    fn actor(&self) -> Actor<'_> {
        Actor { user: &self.user, agent: &self.agent }
    }

    fn kind(&self, resource: &Resource) -> Result<Arc<KindInfo>, ApiError> {
        let registry = self.api.registry();
        registry
            .resource(&resource.group, &resource.version, &resource.plural)
            .cloned()
            .ok_or_else(ApiError::no_resource)
    }

    /// `namespace` is empty for cluster-scoped kinds.
    fn target(
        &self,
        verb: Verb,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
    ) -> Result<Target, ApiError> {
        let attributes = Attributes {
            user: &self.user,
            verb: verb.name(),
            group: &resource.group,
            resource: &resource.plural,
            subresource,
            namespace,
            name,
            path: "",
        };
        self.api.authorize(&attributes)?;
        Ok(Target { kind: self.kind(resource)?, namespace: namespace.to_owned(), name: name.to_owned() })
    }

    async fn finish(&self, written: Written) -> Result<Value, ApiError> {
        self.api.store().durable(written.revision).await?;
        serde_json::from_slice(&written.bytes).map_err(ApiError::internal)
    }

    /// One object.
    pub fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Value, ApiError> {
        let target = self.target(Verb::Get, resource, namespace, name, "")?;
        let version = self.api.read(&target)?;
        shape::parse(&target.kind, &version)
    }

    /// Objects of a namespace, or of all if `namespace` is empty.
    pub async fn list(&self, resource: &Resource, namespace: &str, options: &ListOptions) -> Result<List, ApiError> {
        let target = self.target(Verb::List, resource, namespace, "", "")?;
        let page = self.api.list(&target, options, true).await?;
        let items = page.items.into_iter().filter_map(|item| item.value).collect();
        Ok(List { items, revision: page.revision, continue_token: page.continue_token })
    }

    /// Changes from `options.resource_version` on (what is there first, if that is not set). The stream ends when the
    /// watch times out or the server stops, and after an event of type [`EventType::Error`].
    pub async fn watch(
        &self,
        resource: &Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<WatchStream, ApiError> {
        let mut options = options.clone();
        options.watch = true;
        let target = self.target(Verb::Watch, resource, namespace, "", "")?;
        Ok(WatchStream { watch: self.api.watch(&target, &options).await? })
    }

    /// Creates an object.
    pub async fn create(
        &self,
        resource: &Resource,
        namespace: &str,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let target = self.target(Verb::Create, resource, namespace, "", "")?;
        self.finish(self.api.create(self.actor(), &target, object, options, Ownership::Open)?).await
    }

    pub(crate) fn create_now(
        &self,
        resource: &Resource,
        namespace: &str,
        object: Value,
        options: &WriteOptions,
    ) -> Result<(), ApiError> {
        let target = self.target(Verb::Create, resource, namespace, "", "")?;
        self.api.create(self.actor(), &target, object, options, Ownership::Open).map(|_| ())
    }

    /// Replaces an object by its new state, which names it.
    pub async fn update(&self, resource: &Resource, object: Value, options: &WriteOptions) -> Result<Value, ApiError> {
        self.write(resource, object, Part::Main, options).await
    }

    /// Replaces the status of an object.
    pub async fn update_status(
        &self,
        resource: &Resource,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        self.write(resource, object, Part::Status, options).await
    }

    /// Writes the `spec.finalizers` of a namespace; the last one gone, the namespace goes.
    pub async fn finalize(&self, object: Value) -> Result<Value, ApiError> {
        let resource = Resource::new("", "v1", "namespaces");
        self.write(&resource, object, Part::Pointer("/spec/finalizers"), &WriteOptions::default()).await
    }

    async fn write(
        &self,
        resource: &Resource,
        object: Value,
        part: Part,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let namespace = crate::object::meta(&object, "namespace").to_owned();
        let name = crate::object::meta(&object, "name").to_owned();
        let target = self.target(Verb::Update, resource, &namespace, &name, part.subresource())?;
        self.finish(self.api.update(self.actor(), &target, part, object, options)?).await
    }

    /// Patches an object.
    pub async fn patch(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let target = self.target(Verb::Patch, resource, namespace, name, "")?;
        self.finish(self.api.patch(self.actor(), &target, Part::Main, patch, options)?).await
    }

    /// Patches the status of an object.
    pub async fn patch_status(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let target = self.target(Verb::Patch, resource, namespace, name, "status")?;
        self.finish(self.api.patch(self.actor(), &target, Part::Status, patch, options)?).await
    }

    /// Deletes an object, or begins to; the answer is its last or its present state.
    pub async fn delete(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Value, ApiError> {
        let target = self.target(Verb::Delete, resource, namespace, name, "")?;
        let deleted = self.api.delete(self.actor(), &target, options)?;
        self.api.store().durable(deleted.revision).await?;
        serde_json::from_slice(&deleted.bytes).map_err(ApiError::internal)
    }
}

/// A watch of the in-process client.
pub struct WatchStream {
    watch: Watch,
}

impl std::fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchStream").field("kind", &self.watch.kind.kind).finish()
    }
}

impl WatchStream {
    /// The next event; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        let change = self.watch.next().await?;
        let (ty, object) =
            self.watch.decode(&change).unwrap_or_else(|error| (EventType::Error, Arc::new(error.to_status())));
        Some(WatchEvent { ty, object })
    }

    /// The events as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = WatchEvent> + Send {
        stream::unfold(self, |mut watch| async move { watch.next().await.map(|event| (event, watch)) })
    }
}
