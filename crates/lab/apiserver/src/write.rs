//! Create and update: the one path on which every object, built-in or custom, gets into the store.
//!
//! decode checks -> identity -> defaults -> admission -> ownership -> validation -> compare-and-swap. An update is a
//! function from the current object to the wanted one and is repeated when another writer was faster, unless the
//! request named the revision it is based on.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_lab_machinery::names;
use outrigger_lab_store::{Error as StoreError, Expect, Revision, Version};
use ring::rand::SecureRandom;
use serde_json::Value;
use uuid::Uuid;

use crate::admit;
use crate::api::Api;
use crate::auth::User;
use crate::convert;
use crate::kinds::{HookContext, KindInfo};
use crate::object::{self, Sealed, fields, meta, metadata};
use crate::ownership::{self, Ownership};
use crate::part::{Part, generation_changes, grace_is_over, metadata_field, namespace_pending, select_part};
use crate::request::WriteOptions;
use crate::shape;
use crate::status::ApiError;
use crate::validate;

/// Most attempts of an update that races with others.
const ATTEMPTS: usize = 64;
/// Largest object in bytes, as etcd would accept.
const OBJECT_LIMIT: usize = 1_572_864;

/// Who writes, and with which program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Actor<'a> {
    pub(crate) user: &'a User,
    /// User-Agent of the request; the default field manager is its part before the first `/`.
    pub(crate) agent: &'a str,
}

/// What is written to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kind: Arc<KindInfo>,
    /// Empty for cluster-scoped kinds (and for all namespaces, in lists).
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Target {
    pub(crate) fn key(&self) -> String {
        self.kind.key(&self.namespace, &self.name)
    }

    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.kind.group, &self.kind.plural, &self.name)
    }

    pub(crate) fn modified(&self) -> ApiError {
        ApiError::modified(&self.kind.group, &self.kind.plural, &self.name)
    }

    pub(crate) fn conflict(&self, why: impl std::fmt::Display) -> ApiError {
        ApiError::conflict(&self.kind.group, &self.kind.plural, &self.name, why)
    }
}

/// The outcome of a write.
#[derive(Debug)]
pub(crate) struct Written {
    /// The object as served, JSON.
    pub(crate) bytes: Bytes,
    /// Its revision; 0 for a dry run of a create.
    pub(crate) revision: Revision,
    /// Whether it is new.
    pub(crate) created: bool,
    /// Texts for Warning headers.
    pub(crate) warnings: Vec<String>,
}

impl Api {
    /// Creates an object. `target.name` is the name in the URL, if any; the body's name or `generateName` counts.
    pub(crate) fn create(
        &self,
        actor: Actor<'_>,
        target: &Target,
        body: Value,
        options: &WriteOptions,
        ownership: Ownership,
    ) -> Result<Written, ApiError> {
        let kind = &target.kind;
        let mut warnings = Vec::new();
        let mut object = body;
        shape::check_identity(target, &mut object, true)?;
        if !meta(&object, "resourceVersion").is_empty() {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let generate = meta(&object, "name").is_empty() && !meta(&object, "generateName").is_empty();
        if meta(&object, "name").is_empty() && !generate {
            return Err(ApiError::invalid_field(
                &kind.group,
                &kind.kind,
                "",
                "FieldValueRequired",
                "metadata.name",
                "Required value: name or generateName is required",
            ));
        }
        if kind.namespaced {
            self.check_namespace(target)?;
        }
        // A generated name that is taken is drawn again, as servers since 1.31 do.
        let attempts = if generate { 8 } else { 1 };
        for attempt in 1..=attempts {
            let mut candidate = if attempt == attempts { std::mem::take(&mut object) } else { object.clone() };
            if generate {
                let mut random = [0_u8; names::SUFFIX_LEN];
                self.random().fill(&mut random).map_err(|_| ApiError::internal("the system gave no random bytes"))?;
                let name = names::generate(meta(&candidate, "generateName"), random);
                metadata(&mut candidate).insert("name".to_owned(), Value::String(name));
            }
            warnings.clear();
            match self.create_named(actor, target, candidate, options, ownership, &mut warnings) {
                Err(error) if error.reason == "AlreadyExists" && attempt < attempts => {}
                other => {
                    return other.map(|(bytes, revision)| Written { bytes, revision, created: true, warnings });
                }
            }
        }
        Err(ApiError::internal("no free name could be generated"))
    }

    fn create_named(
        &self,
        actor: Actor<'_>,
        target: &Target,
        mut object: Value,
        options: &WriteOptions,
        ownership: Ownership,
        warnings: &mut Vec<String>,
    ) -> Result<(Bytes, Revision), ApiError> {
        let kind = &target.kind;
        let now = self.now();
        let time = object::time(now);
        shape::check_fields(kind, &mut object, options.field_validation, warnings)?;
        let name = meta(&object, "name").to_owned();
        let target = Target { name, ..target.clone() };
        {
            let metadata = metadata(&mut object);
            for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
                metadata.remove(field);
            }
            metadata.insert("uid".to_owned(), Value::String(Uuid::new_v4().to_string()));
            metadata.insert("creationTimestamp".to_owned(), Value::String(time.clone()));
            object::put(metadata, "generation", kind.has_generation().then(|| Value::from(1)));
        }
        // Kubelets bring a node's status along; everybody else's comes later through the subresource.
        if kind.status && &*kind.plural != "nodes" {
            fields(&mut object).remove("status");
        }
        shape::default(kind, &mut object);
        let context = hook_context(actor, &time, "");
        if let Some(prepare) = kind.rules.prepare {
            prepare(&mut object, None, &context);
        }
        if let Some(finalizer) = kind.rules.finalizer {
            object::add_finalizer(&mut object, finalizer);
        }
        let _allocation = self.lock_allocation(kind);
        admit::create(self, &target, &mut object)?;
        if ownership == Ownership::Open {
            ownership::update(kind, None, &mut object, actor, options, Part::Main, now);
        }
        validate::object(kind, &target, &object, None)?;

        let response = self.store_new(&target, object, options.dry_run)?;
        if !options.dry_run {
            self.after_write(kind);
        }
        Ok(response)
    }

    fn store_new(&self, target: &Target, mut object: Value, dry_run: bool) -> Result<(Bytes, Revision), ApiError> {
        let kind = &target.kind;
        let key = target.key();
        let taken = |current: Option<&Version>| {
            let terminating = current
                .and_then(|version| shape::parse(kind, version).ok())
                .is_some_and(|value| object::is_terminating(&value));
            ApiError::already_exists(&kind.group, &kind.plural, &target.name, terminating)
        };
        if dry_run {
            if let Some(current) = self.store().get(&key) {
                return Err(taken(Some(&current)));
            }
            return Ok((object::to_bytes(&object).into(), 0));
        }
        let mut served = (!kind.stored_as_served()).then(|| object.clone());
        convert::to_stored(kind, &mut object);
        let sealed = seal(&mut object, kind, &target.name)?;
        match self.store().write(&key, Expect::Absent, |revision| sealed.bytes(revision)) {
            Ok(version) => {
                self.expire_later(kind, &version);
                let bytes = match &mut served {
                    None => version.value,
                    Some(value) => Sealed::new(value).bytes(version.modified),
                };
                Ok((bytes, version.modified))
            }
            Err(StoreError::Conflict { current, .. }) => Err(taken(current.as_ref())),
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces an object by `body` (PUT).
    pub(crate) fn update(
        &self,
        actor: Actor<'_>,
        target: &Target,
        part: Part,
        mut body: Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let kind = &target.kind;
        shape::check_identity(target, &mut body, false)?;
        let unconditional = meta(&body, "resourceVersion").is_empty();
        if self.store().get(&target.key()).is_none() && kind.rules.create_on_update && part == Part::Main {
            if unconditional {
                return self.create(actor, target, body, options, Ownership::Open);
            }
            return Err(target.conflict("StorageError: invalid object, Code: 4, the object has been deleted"));
        }
        let mut warnings = Vec::new();
        shape::check_fields(kind, &mut body, options.field_validation, &mut warnings)?;
        let mut written = self.modify(actor, target, part, options, Ownership::Open, |current| {
            let mut wanted = body.clone();
            if unconditional {
                if !kind.rules.unconditional_update {
                    return Err(ApiError::invalid_field(
                        &kind.group,
                        &kind.kind,
                        &target.name,
                        "FieldValueInvalid",
                        "metadata.resourceVersion",
                        "Invalid value: 0x0: must be specified for an update",
                    ));
                }
                let revision = metadata_field(current, "resourceVersion");
                object::put(metadata(&mut wanted), "resourceVersion", revision);
            }
            Ok(wanted)
        })?;
        written.warnings.splice(0..0, warnings);
        Ok(written)
    }

    /// Changes an object by a function from its current state to the wanted one. The function may run several times.
    pub(crate) fn modify(
        &self,
        actor: Actor<'_>,
        target: &Target,
        part: Part,
        options: &WriteOptions,
        ownership: Ownership,
        mut change: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        let kind = &target.kind;
        let key = target.key();
        let _allocation = self.lock_allocation(kind);
        let mut version = self.store().get(&key).ok_or_else(|| target.not_found())?;
        for _ in 0..ATTEMPTS {
            let current = shape::parse(kind, &version)?;
            let mut wanted = change(&current)?;
            let mut warnings = Vec::new();
            self.settle(actor, target, part, options, ownership, &current, &mut wanted, &mut warnings)?;

            if object::is_terminating(&wanted)
                && object::finalizers(&wanted).is_empty()
                && grace_is_over(&wanted)
                && !namespace_pending(kind, &wanted)
            {
                match self.remove(target, &version, wanted, options.dry_run) {
                    Ok((bytes, revision)) => return Ok(Written { bytes, revision, created: false, warnings }),
                    Err(Removal::Raced(Some(newer))) => {
                        version = newer;
                        continue;
                    }
                    Err(Removal::Raced(None)) => return Err(target.not_found()),
                    Err(Removal::Failed(error)) => return Err(error),
                }
            }
            if wanted == current {
                let bytes =
                    if kind.stored_as_served() { version.value.clone() } else { object::to_bytes(&current).into() };
                return Ok(Written { bytes, revision: version.modified, created: false, warnings });
            }
            if options.dry_run {
                return Ok(Written {
                    bytes: object::to_bytes(&wanted).into(),
                    revision: version.modified,
                    created: false,
                    warnings,
                });
            }
            let mut served = (!kind.stored_as_served()).then(|| wanted.clone());
            convert::to_stored(kind, &mut wanted);
            let sealed = seal(&mut wanted, kind, &target.name)?;
            match self.store().write(&key, Expect::Modified(version.modified), |revision| sealed.bytes(revision)) {
                Ok(new) => {
                    self.expire_later(kind, &new);
                    self.after_write(kind);
                    let bytes = match &mut served {
                        None => new.value,
                        Some(value) => Sealed::new(value).bytes(new.modified),
                    };
                    return Ok(Written { bytes, revision: new.modified, created: false, warnings });
                }
                Err(StoreError::Conflict { current: Some(newer), .. }) => version = newer,
                Err(StoreError::Conflict { current: None, .. }) => return Err(target.not_found()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(target.modified())
    }

    /// Everything between what the client wants and what is stored, for an update.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    fn settle(
        &self,
        actor: Actor<'_>,
        target: &Target,
        part: Part,
        options: &WriteOptions,
        ownership: Ownership,
        current: &Value,
        wanted: &mut Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let kind = &target.kind;
        let uid = meta(wanted, "uid");
        if !uid.is_empty() && uid != meta(current, "uid") {
            return Err(target.conflict(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                meta(current, "uid")
            )));
        }
        let revision = meta(wanted, "resourceVersion");
        if !revision.is_empty() && revision != meta(current, "resourceVersion") {
            return Err(target.modified());
        }
        // A patch may have touched kind and apiVersion too: what is stored under a kind has to say that kind.
        shape::check_identity(target, wanted, false)?;
        shape::check_fields(kind, wanted, options.field_validation, warnings)?;

        // What clients cannot change.
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
        ] {
            let value = metadata_field(current, field);
            object::put(metadata(wanted), field, value);
        }
        metadata(wanted).remove("selfLink");
        if let Some(name) = metadata_field(current, "generateName") {
            metadata(wanted).entry("generateName").or_insert(name);
        }
        select_part(kind, part, current, wanted);
        shape::default(kind, wanted);
        let now = self.now();
        let time = object::time(now);
        if let Some(prepare) = kind.rules.prepare {
            let context = hook_context(actor, &time, part.subresource());
            prepare(wanted, Some(current), &context);
        }
        if object::is_terminating(current) {
            let before: HashSet<&str> = object::finalizers(current).into_iter().collect();
            let added: Vec<&str> =
                object::finalizers(wanted).into_iter().filter(|name| !before.contains(name)).collect();
            if !added.is_empty() {
                return Err(ApiError::invalid_field(
                    &kind.group,
                    &kind.kind,
                    &target.name,
                    "FieldValueForbidden",
                    "metadata.finalizers",
                    format!(
                        "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                    ),
                ));
            }
        }
        if generation_changes(kind.rules.generation, current, wanted) {
            let generation = object::at(current, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0) + 1;
            metadata(wanted).insert("generation".to_owned(), Value::from(generation));
        }
        admit::update(self, target, part, current, wanted)?;
        if ownership == Ownership::Open {
            ownership::update(kind, Some(current), wanted, actor, options, part, now);
        }
        validate::object(kind, target, wanted, Some(current))
    }

    /// The namespace must exist and not be on its way out.
    fn check_namespace(&self, target: &Target) -> Result<(), ApiError> {
        let kind = &target.kind;
        let Some(version) = self.store().get(&format!("/registry/core/namespaces//{}", target.namespace)) else {
            return Err(ApiError::not_found("", "namespaces", &target.namespace));
        };
        // Almost all namespaces live: look closer only if the bytes can hold a deletion.
        let terminating = memchr_contains(&version.value, b"\"deletionTimestamp\"")
            && serde_json::from_slice::<Value>(&version.value)
                .is_ok_and(|namespace| object::is_terminating(&namespace));
        if terminating {
            let namespace = &target.namespace;
            return Err(ApiError::forbidden(
                &kind.group,
                &kind.plural,
                &target.name,
                format!("unable to create new content in namespace {namespace} because it is being terminated"),
            )
            .cause(
                "NamespaceTerminating",
                "metadata.namespace",
                format!("namespace {namespace} is being terminated"),
            ));
        }
        Ok(())
    }

    /// Takes an object out of the store; `last` is its final state.
    pub(crate) fn remove(
        &self,
        target: &Target,
        version: &Version,
        mut last: Value,
        dry_run: bool,
    ) -> Result<(Bytes, Revision), Removal> {
        let kind = &target.kind;
        if dry_run {
            return Ok((object::to_bytes(&last).into(), version.modified));
        }
        let mut served = (!kind.stored_as_served()).then(|| last.clone());
        convert::to_stored(kind, &mut last);
        let sealed = Sealed::new(&mut last);
        match self.store().delete(&target.key(), Expect::Modified(version.modified), |revision| sealed.bytes(revision))
        {
            Ok(gone) => {
                self.after_write(kind);
                self.after_removal(kind).map_err(Removal::Failed)?;
                let bytes = match &mut served {
                    None => gone.value,
                    Some(value) => Sealed::new(value).bytes(gone.modified),
                };
                Ok((bytes, gone.modified))
            }
            Err(StoreError::Conflict { current, .. }) => Err(Removal::Raced(current)),
            Err(error) => Err(Removal::Failed(error.into())),
        }
    }
}

/// Why an object was not removed.
pub(crate) enum Removal {
    /// Somebody else changed (or removed) it first.
    Raced(Option<Version>),
    Failed(ApiError),
}

fn seal(object: &mut Value, kind: &KindInfo, name: &str) -> Result<Sealed, ApiError> {
    let sealed = Sealed::new(object);
    if sealed.len() > OBJECT_LIMIT {
        return Err(ApiError::too_large(format!(
            "{} \"{name}\" is too large: {} bytes of at most {OBJECT_LIMIT}",
            kind.qualified(),
            sealed.len()
        )));
    }
    Ok(sealed)
}

fn hook_context<'a>(actor: Actor<'a>, now: &'a str, subresource: &'a str) -> HookContext<'a> {
    HookContext { now, user: &actor.user.name, user_uid: &actor.user.uid, groups: &actor.user.groups, subresource }
}

/// Whether `needle` occurs in `haystack`.
pub(crate) fn memchr_contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
