//! The API as a value: store, kinds and policies, shared by the HTTPS server and the in-process clients.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use outrigger_lab_store::Store;
use ring::rand::SystemRandom;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auth::{Attributes, Authenticator, Authorizer, TokenIssuer, TokenSubject};
use crate::cache::EventCache;
use crate::crd::is_definition;
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
    /// Where the time of objects, tokens and ages comes from.
    pub clock: fn() -> Timestamp,
    /// How long a watch lasts that names no timeout; each gets up to twice this.
    pub watch_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: "v1.37.0".to_owned(),
            server: "https://127.0.0.1:6443".to_owned(),
            bookmark_interval: Duration::from_mins(1),
            clock: Timestamp::now,
            watch_timeout: Duration::from_mins(30),
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
    /// Signals that the custom kinds were replaced, to their watches.
    pub(crate) kinds_changed: watch::Sender<()>,
    /// Held from reading the definitions until the kinds they make are served: the last to read is the last to set.
    reloading: Mutex<()>,
    /// Held from choosing a service's addresses and ports until the service is stored.
    allocating: Mutex<()>,
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
        f.debug_struct("Api")
            .field("server", &self.0.config.server)
            .field("revision", &self.0.store.revision())
            .finish()
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
            kinds_changed: watch::Sender::new(()),
            reloading: Mutex::default(),
            allocating: Mutex::default(),
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

    /// What is stored; for readers in the same process, such as the control loops.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn random(&self) -> &SystemRandom {
        &self.0.random
    }

    /// The time of a request.
    pub(crate) fn now(&self) -> Timestamp {
        (self.0.config.clock)()
    }

    /// The kinds served now.
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.0.registry.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// For a kind whose objects get addresses or ports that no other has: keeps others from choosing the same until
    /// this one is stored.
    pub(crate) fn lock_allocation(&self, kind: &KindInfo) -> Option<MutexGuard<'_, ()>> {
        (kind.group.is_empty() && &*kind.plural == "services")
            .then(|| self.0.allocating.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps others from changing the custom kinds.
    pub(crate) fn lock_kinds(&self) -> MutexGuard<'_, ()> {
        self.0.reloading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the custom kinds. To be called under [`Self::lock_kinds`].
    pub(crate) fn set_custom(&self, custom: Vec<Arc<KindInfo>>) {
        let mut registry = self.0.registry.write().unwrap_or_else(PoisonError::into_inner);
        *registry = Arc::new(registry.with_custom(custom));
        drop(registry);
        self.0.kinds_changed.send_replace(());
    }

    /// Whether the account and the object that a token is bound to are still those it was issued for.
    pub(crate) fn token_is_alive(&self, subject: &TokenSubject) -> bool {
        let same = |key: String, uid: &str| {
            self.store()
                .get(&key)
                .and_then(|version| serde_json::from_slice::<Value>(&version.value).ok())
                .is_some_and(|object| meta(&object, "uid") == uid)
        };
        let account =
            same(format!("/registry/core/serviceaccounts/{}/{}", subject.namespace, subject.name), &subject.uid);
        account
            && subject.bound.as_ref().is_none_or(|bound| match bound.claim.as_str() {
                "node" => same(format!("/registry/core/nodes//{}", bound.name), &bound.uid),
                claim => same(format!("/registry/core/{claim}s/{}/{}", subject.namespace, bound.name), &bound.uid),
            })
    }

    /// Refuses what the user may not do.
    pub(crate) fn authorize(&self, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        if attributes.user.is_master() || self.0.authorizer.allowed(attributes) {
            Ok(())
        } else {
            Err(attributes.refusal())
        }
    }

    /// Follow-up of a write that changed the store: custom kinds follow their definitions before the write is answered.
    pub(crate) fn after_write(&self, kind: &KindInfo) {
        if is_definition(kind) {
            self.reload_definitions();
        }
    }
}
