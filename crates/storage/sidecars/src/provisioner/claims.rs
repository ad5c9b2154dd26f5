//! Work on one claim: from the request to a volume that waits to be saved.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use outrigger_csi::proto;
use outrigger_kube::{EventType, Outcome};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::decide::{self, ClaimFacts, ClaimStep, SlowRetry, State};
use super::objects::{Claim, Class};
use super::plan::{Extras, Plan};
use super::shared::{Infeasible, Shared, reference};
use super::topology::{self, Question};
use super::{clone, plan, save, volume};

/// How often the clean-up after an unusable answer is tried before the call is replayed.
const CLEANUP_TRIES: u32 = 5;

/// How long a saved volume may take to show up in the watch.
const SIGHTING: Duration = Duration::from_secs(30);

const FAILED: &str = "ProvisioningFailed";

/// Why no call could be made.
#[derive(Debug)]
pub(super) struct Unprepared {
    /// For the user.
    pub(super) text: String,
    pub(super) next: Next,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Try again, with backoff.
    Retry,
    /// Ask the scheduler for another node.
    Reschedule,
    /// Someone else provides for the claim.
    LeaveToOthers,
}

impl Unprepared {
    pub(super) fn retry(text: impl ToString) -> Self {
        Self { text: text.to_string(), next: Next::Retry }
    }
}

/// The error of a call as Go programs print it, which is what users search for.
pub(super) fn status_text(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", outrigger_rpc::code_name(status.code()), status.message())
}

/// One pass over the claim with this UID.
pub(super) async fn work(shared: Arc<Shared>, uid: String) -> Outcome {
    let in_flight = shared.progress().in_flight.get(&uid).cloned();
    let name = in_flight.map_or_else(|| plan::volume_name(&shared.config.plan, &uid), |plan| plan.name.clone());
    // Waits for a deletion under this name, and keeps a new one waiting.
    let _guard = shared.locks.lock(&name).await;
    // A deletion settles the call; so this is looked at only now.
    let in_flight = shared.progress().in_flight.get(&uid).cloned();
    let (claim, class) = {
        let known = shared.cache.read();
        let claim = known.claims.get(&uid).cloned();
        let class = claim.as_ref().and_then(|claim| known.classes.get(&claim.class).cloned());
        (claim, class)
    };
    if claim.is_none() {
        // Bound, gone, or somebody else's: nothing has to be remembered of it.
        let mut progress = shared.progress();
        progress.settled.remove(&uid);
        progress.bereft.remove(&uid);
        progress.infeasible.remove(&uid);
    }
    if let Some(claim) = &claim
        && shared.progress().bereft.remove(&uid)
    {
        match still_waits(&shared, claim).await {
            Ok(true) => {
                shared.progress().settled.remove(&uid);
            }
            // The watch will tell.
            Ok(false) => return Outcome::Done,
            Err(error) => {
                tracing::warn!(claim = claim.key(), error = &error as &dyn std::error::Error, "failed to read a claim");
                shared.progress().bereft.insert(uid);
                return Outcome::Retry;
            }
        }
    }
    match step(&shared, &uid, &name, claim.as_deref(), class.as_deref(), in_flight.is_some()) {
        ClaimStep::Ignore => Outcome::Done,
        ClaimStep::Settle => {
            let is_volume_known = shared.cache.read().volumes.contains_key(&name);
            let mut progress = shared.progress();
            if progress.unsaved.contains_key(&name) {
                return Outcome::Done;
            }
            if in_flight.is_some() {
                drop(progress);
                shared.settle(&uid);
                return Outcome::Done;
            }
            match progress.settled.get(&uid).map(|since| SIGHTING.saturating_sub(since.elapsed())) {
                // Saved, and then not seen: a watch may have missed all of its short life.
                Some(Duration::ZERO) if !is_volume_known => {
                    progress.bereft.insert(uid);
                    Outcome::Retry
                }
                Some(remaining) if !is_volume_known => Outcome::After(remaining),
                _ => Outcome::Done,
            }
        }
        // The class's arrival brings the claim back.
        ClaimStep::AwaitClass => {
            let claim = claim.as_deref().map(Claim::key);
            tracing::info!(claim, "the claim waits for its storage class, which does not exist");
            Outcome::Done
        }
        ClaimStep::Wait(remaining) => Outcome::After(remaining),
        ClaimStep::Replay => match in_flight {
            Some(plan) => attempt(&shared, &plan, claim.as_deref(), None).await,
            None => Outcome::Done,
        },
        ClaimStep::Provision => match (claim, class) {
            (Some(claim), Some(class)) => Box::pin(provision(&shared, &claim, &class)).await,
            _ => Outcome::Done,
        },
    }
}

/// Whether the claim exists as the cache has it, unbound. Asked where a cache that lags behind would mislead: the volume of a
/// claim usually goes because the claim did.
async fn still_waits(shared: &Shared, claim: &Claim) -> Result<bool, kube::Error> {
    match shared.objects.claim(&claim.namespace, &claim.name).await {
        Ok(live) => {
            let live = Claim::from(live);
            Ok(live.uid == claim.uid && live.volume_name.is_empty())
        }
        Err(error) if super::api::is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn step(
    shared: &Shared,
    uid: &str,
    name: &str,
    claim: Option<&Claim>,
    class: Option<&Class>,
    in_flight: bool,
) -> ClaimStep {
    let is_volume_known = shared.cache.read().volumes.contains_key(name);
    let progress = shared.progress();
    // A claim that left the cache is bound or gone: only then may its mark be lifted.
    let is_settled = claim.is_some() && progress.settled.contains_key(uid);
    let facts = ClaimFacts {
        driver: &shared.config.plan.driver,
        claim,
        class,
        in_flight,
        has_volume: is_volume_known || is_settled || progress.unsaved.contains_key(name),
        slow: progress.infeasible.get(uid).map(|slow| SlowRetry {
            class_uid: &slow.class_uid,
            remaining: slow.until.saturating_duration_since(Instant::now()),
        }),
    };
    decide::claim_step(&facts)
}

/// A first call for a claim.
async fn provision(shared: &Arc<Shared>, claim: &Claim, class: &Class) -> Outcome {
    let object = reference(claim);
    shared.claim_event(
        &object,
        EventType::Normal,
        "Provisioning",
        format!("External provisioner is provisioning volume for claim {:?}", claim.key()),
    );
    match prepare(shared, claim, class).await {
        Ok((plan, secrets)) => {
            let plan = Arc::new(plan);
            if let Err(error) = shared.journal.begin(&plan).await {
                fail(shared, &object, &claim.class, source_kind(claim), &error.to_string());
                return Outcome::Retry;
            }
            shared.progress().in_flight.insert(claim.uid.clone(), plan.clone());
            attempt(shared, &plan, Some(claim), Some(secrets)).await
        }
        Err(Unprepared { text, next: Next::LeaveToOthers }) => {
            shared.claim_event(&object, EventType::Normal, "Provisioning", text);
            Outcome::Done
        }
        Err(unprepared) => {
            fail(shared, &object, &claim.class, source_kind(claim), &unprepared.text);
            if unprepared.next == Next::Reschedule { reschedule(shared, claim).await } else { Outcome::Retry }
        }
    }
}

fn source_kind(claim: &Claim) -> &str {
    claim.source.as_ref().map_or("", |source| source.kind.as_str())
}

/// Reports a failed attempt.
fn fail(shared: &Shared, claim: &ObjectReference, class: &str, source: &str, text: &str) {
    tracing::warn!(
        claim =
            format!("{}/{}", claim.namespace.as_deref().unwrap_or_default(), claim.name.as_deref().unwrap_or_default()),
        class,
        error = text,
        "failed to provision a volume"
    );
    shared.claim_event(
        claim,
        EventType::Warning,
        FAILED,
        format!("failed to provision volume with StorageClass {class:?}: {text}"),
    );
    shared.metrics.provisioned(class, source, None);
}

/// The contents of a secret.
type Secrets = HashMap<String, String>;

/// Everything that has to be known before the first call.
async fn prepare(shared: &Shared, claim: &Claim, class: &Class) -> Result<(Plan, Secrets), Unprepared> {
    let config = &shared.config;
    let source = match &claim.source {
        Some(source) => clone::content_source(shared, claim, source).await?,
        None => None,
    };
    let mutable_parameters = match &claim.attributes_class {
        None => BTreeMap::new(),
        Some(name) => {
            if !config.driver.modify_volume {
                return Err(Unprepared::retry(
                    "CSI driver does not support VolumeAttributesClass: controller MODIFY_VOLUME capability is not reported",
                ));
            }
            let attributes = shared
                .objects
                .attributes_class(name)
                .await
                .map_err(|error| Unprepared::retry(super::api::text(&error)))?;
            if attributes.driver_name != config.plan.driver {
                return Err(Unprepared::retry(format!(
                    "VAC {name} referenced in PVC is for driver {} which does not match driver name {}",
                    attributes.driver_name, config.plan.driver
                )));
            }
            attributes.parameters.unwrap_or_default()
        }
    };
    let topology = if config.driver.topology {
        let question = Question {
            claim_name: &claim.name,
            allowed: &class.allowed_topologies,
            selected_node: claim.selected_node(),
            strict: config.strict_topology,
            immediate: config.immediate_topology,
        };
        topology::requirement(&shared.cache.read().cluster, &question).map_err(|error| Unprepared {
            text: error.to_string(),
            next: if error.reschedules() { Next::Reschedule } else { Next::Retry },
        })?
    } else {
        None
    };
    let extras = Extras { topology, source, mutable_parameters };
    let plan = plan::plan(&config.plan, claim, class, extras).map_err(Unprepared::retry)?;
    // A missing secret is found before the call goes on record.
    let secrets = shared.objects.secret(plan.secret.as_ref()).await.map_err(Unprepared::retry)?;
    Ok((plan, secrets))
}

/// One call of a plan, first or repeated. `claim` is the claim if it still waits; `secrets` are those that were read just now.
async fn attempt(shared: &Arc<Shared>, plan: &Arc<Plan>, claim: Option<&Claim>, secrets: Option<Secrets>) -> Outcome {
    let started = Instant::now();
    let object = plan.claim_ref().cloned().unwrap_or_default();
    let source = match plan.source {
        Some(plan::ContentSource::Volume(_)) => "PersistentVolumeClaim",
        Some(plan::ContentSource::Snapshot(_)) => "VolumeSnapshot",
        None => "",
    };
    let report = |text: &str| fail(shared, &object, plan.class(), source, text);

    let secrets = match secrets {
        Some(secrets) => Ok(secrets),
        None => shared.objects.secret(plan.secret.as_ref()).await,
    };
    let secrets = match secrets {
        Ok(secrets) => secrets,
        Err(error) => {
            // Without it the call would be another one: its outcome would say nothing about the one under way.
            report(&error.to_string());
            return Outcome::Retry;
        }
    };
    let mut request = plan.request();
    request.secrets.clone_from(&secrets);
    let answer = match shared.driver.create_volume(request, shared.config.timeout).await {
        Ok(answer) => answer.volume.unwrap_or_default(),
        Err(error) => {
            let status = &error.status;
            let text = status_text(status);
            let may_reschedule = shared.config.driver.topology && plan.selected_node.is_some();
            return match decide::after_error(status, may_reschedule) {
                State::InBackground | State::NoChange => {
                    report(&text);
                    Outcome::Retry
                }
                State::Finished => {
                    shared.forget_call(plan.claim_uid());
                    finish(shared, plan, claim, status, &text, report)
                }
                State::Reschedule => {
                    shared.forget_call(plan.claim_uid());
                    report(&text);
                    match claim {
                        Some(claim) => reschedule(shared, claim).await,
                        None => Outcome::Done,
                    }
                }
            };
        }
    };
    match volume::complete(plan, &answer, &shared.config.identity) {
        Ok(object) => {
            tracing::info!(volume = plan.name, volume_id = answer.volume_id, "volume made");
            shared.metrics.provisioned(plan.class(), source, Some(started.elapsed()));
            save::save(shared, object).await;
            Outcome::Done
        }
        Err(error) => {
            let cleaned = clean_up(shared, &answer, &secrets).await;
            match &cleaned {
                Ok(()) => report(&error.to_string()),
                Err(cause) => {
                    report(&format!("{error}. Cleanup of volume {} failed, volume is orphaned: {cause}", plan.name));
                    let key = format!(
                        "{}/{}",
                        object.namespace.as_deref().unwrap_or_default(),
                        object.name.as_deref().unwrap_or_default()
                    );
                    shared.claim_event(
                        &object,
                        EventType::Warning,
                        "ProvisioningCleanupFailed",
                        format!("Error cleaning provisioned volume for claim {key}: {cause}. It is tried again."),
                    );
                }
            }
            if cleaned.is_ok() && claim.is_none() {
                // Nobody wants it any more, and nothing is left.
                shared.forget_call(plan.claim_uid());
                return Outcome::Done;
            }
            // Replayed: the next answer may be better, or its clean-up succeed.
            Outcome::Retry
        }
    }
}

/// A definite failure: reported, and tried again while the claim wants it.
fn finish(
    shared: &Shared,
    plan: &Plan,
    claim: Option<&Claim>,
    status: &Status,
    text: &str,
    report: impl Fn(&str),
) -> Outcome {
    let class = shared.cache.read().classes.get(plan.class()).cloned();
    if !decide::is_infeasible(status.code()) {
        report(text);
        return if claim.is_some() { Outcome::Retry } else { Outcome::Done };
    }
    shared.metrics.provisioned(plan.class(), "", None);
    shared.claim_event(
        &plan.claim_ref().cloned().unwrap_or_default(),
        EventType::Warning,
        FAILED,
        format!("Volume provisioning failed with infeasible error. Retries will be delayed. {text}"),
    );
    if claim.is_none() {
        return Outcome::Done;
    }
    let delay = shared.config.backoff.max;
    shared.progress().infeasible.insert(
        plan.claim_uid().to_owned(),
        Infeasible {
            class_uid: class.map(|class| class.uid.clone()).unwrap_or_default(),
            until: Instant::now() + delay,
        },
    );
    Outcome::After(delay)
}

/// Hands the claim back to the scheduler.
async fn reschedule(shared: &Shared, claim: &Claim) -> Outcome {
    if claim.selected_node().is_none() {
        return Outcome::Retry;
    }
    match shared.objects.unselect_node(claim).await {
        Ok(()) => Outcome::Done,
        Err(error) => {
            tracing::warn!(
                claim = claim.key(),
                error = &error as &dyn std::error::Error,
                "failed to ask for another node"
            );
            Outcome::Retry
        }
    }
}

/// Deletes what an unusable answer describes. The error is for the user.
async fn clean_up(shared: &Shared, answer: &proto::Volume, secrets: &Secrets) -> Result<(), String> {
    if answer.volume_id.is_empty() {
        return Err("the driver did not name the volume".to_owned());
    }
    let mut last = Status::new(Code::Unknown, "");
    for _ in 0..CLEANUP_TRIES {
        let request = proto::DeleteVolumeRequest { volume_id: answer.volume_id.clone(), secrets: secrets.clone() };
        match shared.driver.delete_volume(request, shared.config.timeout).await {
            Ok(_) => return Ok(()),
            Err(error) => last = error.status,
        }
    }
    Err(status_text(&last))
}
