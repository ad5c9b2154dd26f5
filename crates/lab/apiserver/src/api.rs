//! The API as a value: store, kinds and policies, shared by the HTTPS server and the in-process clients.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use outrigger_lab_schema::{Definitions, Schema, builtin};
use outrigger_lab_store::{Error as StoreError, Store, Version};
use ring::rand::SystemRandom;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::auth::{Authenticator, Authorizer, TokenIssuer, TokenSubject};
use crate::cache::EventCache;
use crate::convert;
use crate::expire::Expiry;
use crate::kinds::{KindInfo, Registry};
use crate::metrics::Metrics;
use crate::object::meta;
use crate::openapi::Documents;
use crate::status::ApiError;

/// How the lab's API presents itself.
#[derive(Debug, Clone)]
pub struct Config {
    /// `gitVersion` of `/version`, such as `v1.37.0`; the features served are those of this version.
    pub version: String,
    /// `https://host:port` of the server, for documents that name it.
    pub server: String,
    /// How often a watch that allows bookmarks gets one.
    pub bookmark_interval: Duration,
    /// How long a watch lasts that names no timeout; each gets up to twice this.
    pub watch_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: "v1.37.0".to_owned(),
            server: "https://127.0.0.1:6443".to_owned(),
            bookmark_interval: Duration::from_secs(60),
            watch_timeout: Duration::from_secs(1800),
        }
    }
}

/// The API: every request, from the network or from within, goes through one of these. Cheap to clone.
#[derive(Clone)]
pub struct Api(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) config: Config,
    registry: RwLock<Arc<Registry>>,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorizer: Box<dyn Authorizer>,
    pub(crate) issuer: Arc<TokenIssuer>,
    pub(crate) events: EventCache,
    pub(crate) documents: Documents,
    pub(crate) metrics: Metrics,
    pub(crate) expiry: Expiry,
    pub(crate) random: SystemRandom,
    pub(crate) stopping: CancellationToken,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("server", &self.0.config.server).field("revision", &self.0.store.revision()).finish()
    }
}

impl Api {
    /// An API over a store. Custom kinds found in the store are served at once.
    pub(crate) fn new(
        store: Store,
        config: Config,
        authenticator: Authenticator,
        authorizer: Box<dyn Authorizer>,
        issuer: Arc<TokenIssuer>,
        stopping: CancellationToken,
    ) -> Self {
        let api = Self(Arc::new(Inner {
            store,
            config,
            registry: RwLock::new(Arc::new(Registry::builtin())),
            authenticator,
            authorizer,
            issuer,
            events: EventCache::default(),
            documents: Documents::default(),
            metrics: Metrics::default(),
            expiry: Expiry::default(),
            random: SystemRandom::new(),
            stopping,
        }));
        api.reload_definitions();
        api.adopt_expiring();
        api
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn random(&self) -> &SystemRandom {
        &self.0.random
    }

    /// The time of a request.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// The kinds served now.
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.0.registry.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the custom kinds.
    pub(crate) fn set_custom(&self, custom: Vec<Arc<KindInfo>>) {
        let mut registry = self.0.registry.write().unwrap_or_else(PoisonError::into_inner);
        *registry = Arc::new(registry.with_custom(custom));
    }

    /// The schema of a kind with the definitions it refers to; `None` if nothing is known of its shape.
    pub(crate) fn schema<'a>(&self, kind: &'a KindInfo) -> Option<(&'a Schema, &'static Definitions)> {
        let builtin = builtin();
        match &kind.custom {
            Some(custom) => Some((&custom.schema, &builtin.definitions)),
            None => builtin.kind(&kind.group, &kind.version, &kind.kind).map(|known| (&known.schema, &builtin.definitions)),
        }
    }

    /// A stored object as its kind serves it. Custom kinds get their defaults on reading too, since their schema may
    /// have changed since the object was written.
    pub(crate) fn parse(&self, kind: &KindInfo, version: &Version) -> Result<Value, ApiError> {
        self.parse_bytes(kind, &version.value)
    }

    pub(crate) fn parse_bytes(&self, kind: &KindInfo, bytes: &[u8]) -> Result<Value, ApiError> {
        let mut value: Value =
            serde_json::from_slice(bytes).map_err(|error| ApiError::internal(format!("stored {} is damaged: {error}", kind.qualified())))?;
        convert::to_served(kind, &mut value);
        if kind.custom.is_some() {
            self.default(kind, &mut value);
        }
        Ok(value)
    }

    /// Whether stored bytes of this kind are what clients get.
    pub(crate) fn verbatim(&self, kind: &KindInfo) -> bool {
        kind.custom.is_none() && kind.stored_as_served()
    }

    pub(crate) fn store_error(&self, error: StoreError) -> ApiError {
        match error {
            StoreError::Compacted { requested, compacted } => {
                ApiError::expired(format!("The resourceVersion for the provided list is too old: {requested} ({compacted})"))
            }
            StoreError::Future { requested, current } => ApiError::future_revision(requested, current),
            StoreError::TooLarge { .. } => ApiError::too_large(error.to_string()),
            StoreError::Closed => ApiError::new(http::StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "the server is stopping"),
            other => {
                tracing::error!(error = &other as &dyn std::error::Error, "store operation failed");
                ApiError::internal(other)
            }
        }
    }

    /// Whether the account and the object that a token is bound to are still those it was issued for.
    pub(crate) fn token_is_alive(&self, subject: &TokenSubject) -> bool {
        let same = |key: String, uid: &str| {
            self.store()
                .get(&key)
                .and_then(|version| serde_json::from_slice::<Value>(&version.value).ok())
                .is_some_and(|object| meta(&object, "uid") == uid)
        };
        let account = same(format!("/registry/core/serviceaccounts/{}/{}", subject.namespace, subject.name), &subject.uid);
        account
            && subject.bound.as_ref().is_none_or(|bound| match bound.claim.as_str() {
                "node" => same(format!("/registry/core/nodes//{}", bound.name), &bound.uid),
                claim => same(format!("/registry/core/{claim}s/{}/{}", subject.namespace, bound.name), &bound.uid),
            })
    }

    /// Follow-up of a write that changed the store: custom kinds follow their definitions before the write is answered.
    pub(crate) fn after_write(&self, kind: &KindInfo, _revision: u64) -> Result<(), ApiError> {
        if &*kind.plural == "customresourcedefinitions" && &*kind.group == "apiextensions.k8s.io" {
            self.reload_definitions();
        }
        Ok(())
    }
}
