//! Saving volume objects: for ever, because an unsaved volume is storage that nobody can find.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use outrigger_kube::{EventType, Outcome};

use super::api;
use super::shared::Shared;

/// Tries at once; what fails is left to the queue of unsaved volumes.
pub(super) async fn save(shared: &Shared, volume: PersistentVolume) {
    let name = volume.name_any();
    shared.progress().unsaved.insert(name.clone(), Arc::new(volume));
    if !try_save(shared, &name).await {
        shared.unsaved.add_rate_limited(name);
    }
}

/// One pass over the unsaved volume of this name.
pub(super) async fn work(shared: Arc<Shared>, name: String) -> Outcome {
    if try_save(&shared, &name).await { Outcome::Done } else { Outcome::Retry }
}

async fn try_save(shared: &Shared, name: &str) -> bool {
    let Some(volume) = shared.progress().unsaved.get(name).cloned() else {
        return true;
    };
    let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
    match shared.objects.create_volume(&volume).await {
        // If it exists, an earlier attempt got through although its answer did not.
        Ok(_) => {
            shared.settle(claim.uid.as_deref().unwrap_or_default());
            shared.progress().unsaved.remove(name);
            shared.claim_event(
                &claim,
                EventType::Normal,
                "ProvisioningSucceeded",
                format!("Successfully provisioned volume {name}"),
            );
            true
        }
        Err(error) => {
            let text = api::text(&error);
            tracing::error!(volume = name, error = text, "failed to save a volume object, trying again");
            if matches!(&error, kube::Error::Api(status) if (400..429).contains(&status.code)) {
                // The server will hardly change its mind: somebody should know.
                shared.claim_event(
                    &claim,
                    EventType::Warning,
                    "ProvisioningFailed",
                    format!("error saving volume {name}: {text}"),
                );
            }
            false
        }
    }
}
