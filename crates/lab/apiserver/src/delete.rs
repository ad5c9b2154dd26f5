//! Deletion: preconditions, finalizers, grace, propagation.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use outrigger_lab_store::{Error as StoreError, Expect, Version};
use serde_json::Value;

use crate::api::Api;
use crate::convert;
use crate::kinds::{KindInfo, Propagation};
use crate::object::{self, Sealed, meta, metadata, text};
use crate::part::{grace_is_over, namespace_pending};
use crate::request::{ListOptions, Query, dry_run};
use crate::shape;
use crate::status::{ApiError, success};
use crate::write::{Actor, Removal, Target};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Namespaces that cannot be deleted.
const PROTECTED: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Options of a DELETE.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Nothing is deleted.
    pub dry_run: bool,
    /// Seconds that the object gets; `None` means its own.
    pub grace_seconds: Option<i64>,
    /// What happens to dependents; `None` means the kind's default.
    pub propagation: Option<Propagation>,
    /// Only if this is the object's UID.
    pub uid: Option<String>,
    /// Only if this is the object's resourceVersion.
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Deletion of exactly this incarnation.
    pub fn of_uid(uid: impl Into<String>) -> Self {
        Self { uid: Some(uid.into()), ..Self::default() }
    }

    /// Options from the body (null if there was none) and the query; the body wins.
    pub(crate) fn parse(query: &Query, body: &Value) -> Result<Self, ApiError> {
        let invalid = |reason: &str, field: &str, message: String| {
            ApiError::invalid_field("meta.k8s.io", "DeleteOptions", "", reason, field, message)
        };
        if !body.is_null() && !body.is_object() {
            return Err(ApiError::bad_request("the body of a DELETE must be a DeleteOptions object"));
        }
        if let Some(kind) =
            body.get("kind").and_then(Value::as_str).filter(|kind| !kind.is_empty() && *kind != "DeleteOptions")
        {
            return Err(ApiError::bad_request(format!(
                "the body of a DELETE must be a DeleteOptions object, not a {kind}"
            )));
        }
        let policy = body.get("propagationPolicy").and_then(Value::as_str).or_else(|| query.get("propagationPolicy"));
        let orphan = match body.get("orphanDependents") {
            Some(Value::Bool(orphan)) => Some(*orphan),
            _ => match query.get("orphanDependents") {
                Some(_) => Some(query.flag("orphanDependents")?),
                None => None,
            },
        };
        if policy.is_some() && orphan.is_some() {
            return Err(invalid(
                "FieldValueInvalid",
                "propagationPolicy",
                format!(
                    "Invalid value: {:?}: orphanDependents and deletionPropagation cannot be both set",
                    policy.unwrap_or_default()
                ),
            ));
        }
        let propagation = match (policy, orphan) {
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some(other), _) => {
                return Err(invalid(
                    "FieldValueNotSupported",
                    "propagationPolicy",
                    format!(
                        "Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
                    ),
                ));
            }
            (None, None) => None,
        };
        let grace_seconds =
            match body.get("gracePeriodSeconds") {
                Some(Value::Null) | None => query
                    .get("gracePeriodSeconds")
                    .map(|text| {
                        text.parse()
                            .map_err(|_| ApiError::bad_request(format!("gracePeriodSeconds: {text:?} is not a number")))
                    })
                    .transpose()?,
                Some(value) => Some(value.as_i64().ok_or_else(|| {
                    ApiError::bad_request(format!("gracePeriodSeconds: {value} is not a whole number"))
                })?),
            };
        let in_body =
            body.get("dryRun").and_then(Value::as_array).and_then(|list| list.first()).and_then(Value::as_str);
        let precondition =
            |field: &str| object::at(body, &["preconditions", field]).and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            dry_run: dry_run(in_body.or_else(|| query.get("dryRun")), "DeleteOptions")?,
            grace_seconds,
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
        })
    }
}

/// The outcome of a deletion.
#[derive(Debug)]
pub(crate) struct Deleted {
    /// The object, in its last or its present state.
    pub(crate) bytes: Bytes,
    /// What the request answers: the object, or a Status.
    pub(crate) status: Option<Value>,
    pub(crate) revision: u64,
}

impl Api {
    /// Deletes an object, or begins to.
    pub(crate) fn delete(
        &self,
        actor: Actor<'_>,
        target: &Target,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let kind = &target.kind;
        if kind.group.is_empty() && &*kind.plural == "namespaces" && PROTECTED.contains(&target.name.as_str()) {
            return Err(ApiError::forbidden("", "namespaces", &target.name, "this namespace may not be deleted"));
        }
        let mut version = self.read(target)?;
        loop {
            let current = shape::parse(kind, &version)?;
            check_preconditions(target, &current, options)?;
            let wanted = terminate(kind, &current, options, self.now());
            let stays =
                !object::finalizers(&wanted).is_empty() || !grace_is_over(&wanted) || namespace_pending(kind, &wanted);
            if !stays {
                let last = if kind.rules.graceful { wanted } else { current };
                let uid = meta(&last, "uid").to_owned();
                match self.remove(target, &version, last, options.dry_run) {
                    Ok((bytes, revision)) => {
                        let status = (!kind.rules.returns_deleted)
                            .then(|| success(&kind.group, &kind.plural, &target.name, &uid));
                        return Ok(Deleted { bytes, status, revision });
                    }
                    Err(Removal::Raced(Some(newer))) => version = newer,
                    Err(Removal::Raced(None)) => return Err(target.not_found()),
                    Err(Removal::Failed(error)) => return Err(error),
                }
                continue;
            }
            if wanted == current || options.dry_run {
                return Ok(Deleted {
                    bytes: object::to_bytes(&wanted).into(),
                    status: None,
                    revision: version.modified,
                });
            }
            match self.replace(target, &version, wanted)? {
                Ok(new) => {
                    let deleted = shape::parse(kind, &new)?;
                    self.after_termination(actor, target)?;
                    return Ok(Deleted {
                        bytes: object::to_bytes(&deleted).into(),
                        status: None,
                        revision: new.modified,
                    });
                }
                Err(newer) => version = newer,
            }
        }
    }

    /// Compare-and-swap of an object that needs no further checks; the inner error is the version that won.
    fn replace(
        &self,
        target: &Target,
        version: &Version,
        mut wanted: Value,
    ) -> Result<Result<Version, Version>, ApiError> {
        convert::to_stored(&target.kind, &mut wanted);
        let sealed = Sealed::new(&mut wanted);
        match self.store().write(&target.key(), Expect::Modified(version.modified), |revision| sealed.bytes(revision)) {
            Ok(new) => {
                self.after_write(&target.kind);
                Ok(Ok(new))
            }
            Err(StoreError::Conflict { current: Some(newer), .. }) => Ok(Err(newer)),
            Err(StoreError::Conflict { current: None, .. }) => Err(target.not_found()),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes what a list with these options shows; answers those objects. Not atomic.
    pub(crate) async fn delete_collection(
        &self,
        actor: Actor<'_>,
        target: &Target,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<(Vec<Bytes>, u64), ApiError> {
        let page = self.list(target, list, true).await?;
        let mut deleted = Vec::with_capacity(page.items.len());
        for item in page.items {
            let value = item.value.unwrap_or_default();
            let object = Target {
                kind: target.kind.clone(),
                namespace: meta(&value, "namespace").to_owned(),
                name: meta(&value, "name").to_owned(),
            };
            match self.delete(actor, &object, options) {
                Ok(outcome) => deleted.push(outcome.bytes),
                // Somebody else was faster: as good as deleted.
                Err(error) if error.reason == "NotFound" => {}
                Err(error) => return Err(error),
            }
        }
        Ok((deleted, self.store().revision()))
    }
}

fn check_preconditions(target: &Target, current: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    for (what, wanted, field) in
        [("UID", &options.uid, "uid"), ("ResourceVersion", &options.resource_version, "resourceVersion")]
    {
        if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != meta(current, field)) {
            return Err(target.conflict(format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {}",
                meta(current, field)
            )));
        }
    }
    Ok(())
}

/// The object once its deletion has begun. Unchanged if it had begun before and nothing is to be hastened.
fn terminate(kind: &KindInfo, current: &Value, options: &DeleteOptions, now: Timestamp) -> Value {
    let mut wanted = current.clone();
    let grace = if kind.rules.graceful { pod_grace(current, options) } else { 0 };
    if object::is_terminating(current) {
        let before =
            object::at(current, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0);
        if options.grace_seconds.is_some() && grace < before {
            // The period counts from the first request, and only ever gets shorter.
            let began = meta(current, "deletionTimestamp").parse::<Timestamp>().unwrap_or(now)
                - SignedDuration::from_secs(before);
            set_deletion(&mut wanted, (began + SignedDuration::from_secs(grace)).max(now), grace);
        }
        // A later request may still say what happens to the dependents; pods with a grace period have had their say.
        if options.propagation.is_some() && !kind.rules.graceful {
            propagate(kind, current, &mut wanted, options);
        }
        return wanted;
    }
    propagate(kind, current, &mut wanted, options);
    set_deletion(&mut wanted, now + SignedDuration::from_secs(grace), grace);
    if kind.has_generation() {
        let generation = object::at(current, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0) + 1;
        metadata(&mut wanted).insert("generation".to_owned(), Value::from(generation));
    }
    if kind.group.is_empty() && &*kind.plural == "namespaces" {
        object::section(&mut wanted, "status").insert("phase".to_owned(), Value::from("Terminating"));
    }
    wanted
}

/// Puts the finalizer on `wanted` that makes the garbage collector do what the request says about dependents.
fn propagate(kind: &KindInfo, current: &Value, wanted: &mut Value, options: &DeleteOptions) {
    let propagation = options.propagation.unwrap_or(kind.rules.propagation);
    // A finalizer that somebody put there by hand has the say if the request does not.
    let explicit = options.propagation.is_some();
    let has = |name: &str| object::finalizers(current).contains(&name);
    match propagation {
        Propagation::Orphan if explicit || !has(FOREGROUND) => {
            object::remove_finalizer(wanted, FOREGROUND);
            object::add_finalizer(wanted, ORPHAN);
        }
        Propagation::Foreground if explicit || !has(ORPHAN) => {
            object::remove_finalizer(wanted, ORPHAN);
            object::add_finalizer(wanted, FOREGROUND);
        }
        Propagation::Background if explicit => {
            object::remove_finalizer(wanted, ORPHAN);
            object::remove_finalizer(wanted, FOREGROUND);
        }
        _ => {}
    }
}

fn set_deletion(object: &mut Value, at: Timestamp, grace: i64) {
    let metadata = metadata(object);
    metadata.insert("deletionTimestamp".to_owned(), Value::String(object::time(at)));
    metadata.insert("deletionGracePeriodSeconds".to_owned(), Value::from(grace));
}

/// The seconds a pod gets: none if no node has it or it has ended, at least one if the number is negative.
fn pod_grace(pod: &Value, options: &DeleteOptions) -> i64 {
    let unscheduled = text(pod, &["spec", "nodeName"]).is_empty();
    if unscheduled || matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
        return 0;
    }
    let own = object::at(pod, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(30);
    match options.grace_seconds.unwrap_or(own) {
        // Bounded so that a time can always be computed from it.
        seconds @ 0.. => seconds.min(10 * 365 * 86_400),
        _ => 1,
    }
}
