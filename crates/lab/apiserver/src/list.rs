//! Get and list: reads at one revision, in pages, filtered by selectors.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use outrigger_lab_machinery::selector;
use outrigger_lab_store::{Error as StoreError, Revision, Version};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

use crate::api::Api;
use crate::kinds::KindInfo;
use crate::object;
use crate::request::{ListOptions, VersionMatch};
use crate::shape;
use crate::status::ApiError;
use crate::write::Target;

/// How long a read waits for a revision that has not happened yet.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// Label and field selector of a list or watch, checked against the kind.
#[derive(Debug, Clone)]
pub(crate) struct Selectors {
    label: Option<selector::Label>,
    field: Option<selector::Field>,
    /// `metadata.name=x`: one object at most.
    pub(crate) name: Option<String>,
}

impl Selectors {
    pub(crate) fn parse(kind: &KindInfo, options: &ListOptions) -> Result<Self, ApiError> {
        let label = match &options.label_selector {
            None => None,
            Some(text) => Some(selector::Label::parse(text).map_err(|error| ApiError::bad_request(error.to_string()))?)
                .filter(|label| !label.is_everything()),
        };
        let field = match &options.field_selector {
            None => None,
            Some(text) => Some(selector::Field::parse(text).map_err(|error| ApiError::bad_request(error.to_string()))?)
                .filter(|field| !field.is_everything()),
        };
        if let Some(field) = &field {
            for requirement in field.requirements() {
                let path = requirement.path.as_str();
                let known = path == "metadata.name"
                    || (path == "metadata.namespace" && kind.namespaced)
                    || kind.rules.selectable.contains(&path)
                    || kind.custom.as_ref().is_some_and(|custom| {
                        custom.selectable.iter().any(|known| known.trim_start_matches('.') == path)
                    });
                if !known {
                    return Err(ApiError::bad_request(format!(
                        "Unable to find {:?} that match label selector {:?}, field selector {:?}: field label not supported: {path}",
                        kind.qualified(),
                        options.label_selector.as_deref().unwrap_or_default(),
                        options.field_selector.as_deref().unwrap_or_default(),
                    )));
                }
            }
        }
        let name = field.as_ref().and_then(|field| field.exact("metadata.name")).map(str::to_owned);
        Ok(Self { label, field, name })
    }

    /// Whether everything matches.
    pub(crate) fn is_everything(&self) -> bool {
        self.label.is_none() && self.field.is_none()
    }

    /// Whether an object (as served) matches.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        if self.label.as_ref().is_some_and(|label| !label.matches_object(object)) {
            return false;
        }
        self.field.as_ref().is_none_or(|field| {
            field
                .requirements()
                .iter()
                .all(|requirement| (field_value(object, &requirement.path) == requirement.value) == requirement.equal)
        })
    }
}

/// The text that a field selector compares with: absent is empty, booleans and numbers are their JSON text.
fn field_value(object: &Value, path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let found = match (parts.as_slice(), object.get("kind").and_then(Value::as_str)) {
        // Kept by name in the API, a structure in the object.
        (["source"], Some("Event")) => object::at(object, &["source", "component"]),
        (["status", "podIPs"], _) => object::at(object, &["status", "podIP"]),
        (parts, _) => object::at(object, parts),
    };
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
        _ => match path {
            "spec.unschedulable" | "spec.hostNetwork" => "false".to_owned(),
            "status.replicas" | "status.successful" => "0".to_owned(),
            _ => String::new(),
        },
    }
}

/// A continue token: where the next page starts, at which revision.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    v: String,
    /// 0 or less: at whatever is newest (the token of an expired list).
    rv: i64,
    start: String,
}

impl Continue {
    fn encode(revision: i64, start: &str) -> String {
        let token = Self { v: "meta.k8s.io/v1".to_owned(), rv: revision, start: start.to_owned() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("a struct of strings serialises"))
    }

    fn decode(text: &str) -> Result<Self, ApiError> {
        let bad = || ApiError::bad_request("continue key is not valid");
        let token: Self =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?).map_err(|_| bad())?;
        if token.v != "meta.k8s.io/v1" || token.start.is_empty() {
            return Err(bad());
        }
        Ok(token)
    }
}

/// An item of a list: stored bytes, and the object if it had to be decoded.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) bytes: Bytes,
    pub(crate) value: Option<Value>,
}

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) items: Vec<Item>,
    pub(crate) revision: Revision,
    pub(crate) continue_token: Option<String>,
    pub(crate) remaining: Option<usize>,
}

impl Api {
    /// One object.
    pub(crate) fn read(&self, target: &Target) -> Result<Version, ApiError> {
        self.store().get(&target.key()).ok_or_else(|| target.not_found())
    }

    /// The JSON of one object as served.
    pub(crate) fn served(&self, target: &Target) -> Result<Bytes, ApiError> {
        let version = self.read(target)?;
        if shape::verbatim(&target.kind) {
            return Ok(version.value);
        }
        Ok(object::to_bytes(&shape::parse(&target.kind, &version)?).into())
    }

    /// Waits until the store has reached `revision`; 504 after a while.
    pub(crate) async fn reach(&self, revision: Revision) -> Result<(), ApiError> {
        if self.store().revision() >= revision {
            return Ok(());
        }
        let deadline = tokio::time::Instant::now() + FUTURE_WAIT;
        let mut changes = self.store().watch("/registry/", self.store().revision())?;
        while self.store().revision() < revision {
            match tokio::time::timeout_at(deadline, changes.next()).await {
                Ok(Ok(_)) => {}
                // It would fail again at once, for ever: a new one starts from what is newest.
                Ok(Err(_)) => changes = self.store().watch("/registry/", self.store().revision())?,
                Err(_) => return Err(ApiError::future_revision(revision, self.store().revision())),
            }
        }
        Ok(())
    }

    /// A page of the objects of a kind in `target.namespace` (all if empty), by the rules of resourceVersion,
    /// resourceVersionMatch, limit and continue. `decode` asks for objects even where bytes would do.
    pub(crate) async fn list(&self, target: &Target, options: &ListOptions, decode: bool) -> Result<Page, ApiError> {
        options.check()?;
        let kind = &target.kind;
        let selectors = Selectors::parse(kind, options)?;
        let namespace = (kind.namespaced && !target.namespace.is_empty()).then_some(target.namespace.as_str());
        let prefix = kind.key_prefix(namespace);

        let mut at = None;
        let mut after: Option<String> = None;
        if let Some(token) = &options.continue_token {
            let token = Continue::decode(token)?;
            if token.start.contains("..") {
                return Err(ApiError::bad_request("continue key is not valid"));
            }
            after = Some(format!("{}{}", kind.prefix, token.start));
            at = u64::try_from(token.rv).ok().filter(|revision| *revision > 0);
        } else {
            match (options.resource_version, options.version_match) {
                (None | Some(0), _) => {}
                (Some(revision), Some(VersionMatch::Exact)) => at = Some(revision),
                // A page of old asks for what it names; everything else is served from what is newest.
                (Some(revision), None) if options.limit > 0 => at = Some(revision),
                (Some(revision), _) => self.reach(revision).await?,
            }
            if let Some(revision) = at {
                self.reach(revision).await?;
            }
        }
        let plain = selectors.is_everything();
        let decode = decode || !plain || !shape::verbatim(kind);

        if let Some(name) = &selectors.name
            && at.is_none()
            && after.is_none()
            && (namespace.is_some() || !kind.namespaced)
        {
            return self.list_one(target, name, &selectors, decode);
        }

        let limit = if options.limit == 0 { usize::MAX } else { options.limit };
        let mut items = Vec::new();
        let mut continue_token = None;
        let mut remaining = None;
        // With selectors, pages are filled by reading on until enough objects match.
        let chunk = if plain { limit } else { limit.saturating_mul(4).max(500) };
        loop {
            let range = match self.store().range(&prefix, after.as_deref(), chunk, at) {
                Ok(range) => range,
                Err(StoreError::Compacted { .. }) if options.continue_token.is_some() => {
                    let start = after.as_deref().and_then(|key| key.strip_prefix(&*kind.prefix)).unwrap_or_default();
                    let mut error = ApiError::expired(
                        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
                         the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
                         Continuing with the provided token results in an inconsistent list.",
                    );
                    error.continue_token = Some(Continue::encode(-1, start));
                    return Err(error);
                }
                Err(error) => return Err(error.into()),
            };
            let revision = range.revision;
            at = Some(revision);
            let last_chunk = !range.more;
            let count = range.versions.len();
            for (index, version) in range.versions.into_iter().enumerate() {
                after = Some(version.key.to_string());
                let value = if decode { Some(shape::parse(kind, &version)?) } else { None };
                if value.as_ref().is_some_and(|value| !plain && !selectors.matches(value)) {
                    continue;
                }
                items.push(Item { bytes: version.value, value });
                if items.len() == limit && (!last_chunk || index + 1 < count) {
                    let start = after.as_deref().and_then(|key| key.strip_prefix(&*kind.prefix)).unwrap_or_default();
                    let revision = i64::try_from(revision).unwrap_or(i64::MAX);
                    continue_token = Some(Continue::encode(revision, start));
                    remaining = plain.then_some(range.remaining + (count - index - 1));
                    break;
                }
            }
            if last_chunk || continue_token.is_some() {
                return Ok(Page { items, revision, continue_token, remaining });
            }
        }
    }

    /// A list that can only have one object.
    fn list_one(&self, target: &Target, name: &str, selectors: &Selectors, decode: bool) -> Result<Page, ApiError> {
        // The revision is read first: the object may be newer than the list says, never older.
        let revision = self.store().revision();
        let key = target.kind.key(&target.namespace, name);
        let mut items = Vec::new();
        if let Some(version) = self.store().get(&key) {
            let revision = revision.max(version.modified);
            let value = shape::parse(&target.kind, &version)?;
            if selectors.matches(&value) {
                items.push(Item { bytes: version.value, value: decode.then_some(value) });
            }
            return Ok(Page { items, revision, continue_token: None, remaining: None });
        }
        Ok(Page { items, revision, continue_token: None, remaining: None })
    }
}
