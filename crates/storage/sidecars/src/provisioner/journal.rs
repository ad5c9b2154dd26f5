//! Writes the [record](super::record) of plans under way: one task, whatever waits goes into the next write.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::api;
use super::plan::Plan;
use super::record::{self, Ledger};

/// How long removals wait for company. A removal that never happens does no harm, so there is no hurry.
const REMOVAL_DELAY: Duration = Duration::from_secs(1);

/// Why a plan is not on record.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// The API server did not take the write.
    #[error("failed to record the call before making it: {0}")]
    Write(String),
    /// Too many calls are under way.
    #[error("failed to record the call before making it: the record of calls under way is full")]
    Full,
    /// A plan that cannot be written down.
    #[error("failed to encode the call for the record")]
    Encode(#[source] serde_json::Error),
}

type Answer = Result<(), String>;

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// Those who wait for the next write.
    waiting: Vec<oneshot::Sender<Answer>>,
}

/// The record and its writer. See the [module](self).
pub(super) struct Journal {
    api: Api<ConfigMap>,
    name: String,
    state: Mutex<State>,
    wake: Notify,
}

impl Journal {
    /// Reads the record that is there. Returns the plans of calls which an earlier process may have left under way.
    pub(super) async fn open(api: Api<ConfigMap>, name: String) -> Result<(Arc<Self>, Vec<Plan>), kube::Error> {
        let data = match api.get_opt(&name).await? {
            Some(map) => map.data.unwrap_or_default(),
            None => BTreeMap::new(),
        };
        let (plans, errors) = record::decode(&data);
        for error in errors {
            tracing::error!(
                config_map = name,
                error = &error as &dyn std::error::Error,
                "a recorded CreateVolume call cannot be replayed; check the storage for a volume of this claim, then remove the key"
            );
        }
        let journal = Self {
            api,
            name,
            state: Mutex::new(State { ledger: Ledger::from_data(&data), waiting: Vec::new() }),
            wake: Notify::new(),
        };
        Ok((Arc::new(journal), plans))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The ledger is consistent after each of its operations.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a plan on record; returns when that is durable.
    pub(super) async fn begin(&self, plan: &Plan) -> Result<(), JournalError> {
        let entry = record::encode(plan).map_err(JournalError::Encode)?;
        if !Ledger::can_hold(&entry) {
            // Thousands of segments for one claim: no place can hold them, and the user wants a volume.
            tracing::warn!(
                volume = plan.name,
                "the call is too large for the record: if this process dies before its end, the volume may be orphaned"
            );
            return Ok(());
        }
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.state();
            if !state.ledger.has_room_for(&entry) {
                return Err(JournalError::Full);
            }
            if !state.ledger.put(entry) {
                return Ok(());
            }
            state.waiting.push(sender);
        }
        self.wake.notify_one();
        match answer.await {
            Ok(outcome) => outcome.map_err(JournalError::Write),
            Err(_) => Err(JournalError::Write("the writer has stopped".to_owned())),
        }
    }

    /// Crosses a plan out, some time soon.
    pub(super) fn end(&self, uid: &str) {
        self.state().ledger.remove(uid);
        self.wake.notify_one();
    }

    /// Writes until cancelled, then writes what is left.
    pub(super) async fn run(&self, cancel: CancellationToken) {
        loop {
            let (is_clean, is_urgent) = {
                let state = self.state();
                (state.ledger.is_clean(), state.ledger.is_urgent())
            };
            if cancel.is_cancelled() {
                if !is_clean {
                    self.write().await;
                }
                return;
            }
            if is_urgent {
                if !self.write().await {
                    // The callers repeat their requests at their own pace; removals alone need no haste.
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep(REMOVAL_DELAY) => {}
                    }
                }
            } else if is_clean {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = self.wake.notified() => {}
                }
            } else {
                let deadline = tokio::time::Instant::now() + REMOVAL_DELAY;
                while !self.state().ledger.is_urgent() {
                    tokio::select! {
                        () = cancel.cancelled() => break,
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(deadline) => break,
                    }
                }
                self.write().await;
            }
        }
    }

    /// One write of all that waits; whether it succeeded.
    async fn write(&self) -> bool {
        let (batch, waiting) = {
            let mut state = self.state();
            (state.ledger.take(), std::mem::take(&mut state.waiting))
        };
        let outcome = if batch.changes.is_empty() { Ok(()) } else { self.send(&batch.changes).await };
        let answer = match outcome {
            Ok(()) => {
                self.state().ledger.done(batch);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(
                    config_map = self.name,
                    error = &error as &dyn std::error::Error,
                    "failed to write the record of calls"
                );
                self.state().ledger.failed(batch);
                Err(api::text(&error))
            }
        };
        for sender in waiting {
            // Who has gone away needs no answer.
            let _ = sender.send(answer.clone());
        }
        answer.is_ok()
    }

    async fn send(&self, changes: &record::Changes) -> Result<(), kube::Error> {
        let patch = serde_json::json!({ "data": changes });
        match self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
        let kept = changes.iter().filter_map(|(key, text)| Some((key.clone(), text.clone()?)));
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            data: Some(kept.collect()),
            ..ConfigMap::default()
        };
        self.api.create(&PostParams::default(), &map).await.map(drop)
    }
}
