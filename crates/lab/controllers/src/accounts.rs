//! Gives each namespace what pods in it need: a default service account and the certificate of the API server's
//! authority.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::Controller;
use crate::access::{Access, Failure, Part};
use crate::feed::{Change, Follower};
use crate::object::{is_terminating, section, text};
use crate::path::Path;
use crate::queue::{Activity, Outcome, Queue};

/// What is kept in each namespace.
enum Kept {
    /// The service account `default`.
    Account,
    /// The ConfigMap `kube-root-ca.crt` with this certificate.
    Certificate(String),
}

impl Kept {
    fn place(&self) -> (&'static str, &'static str) {
        match self {
            Self::Account => ("serviceaccounts", "default"),
            Self::Certificate(_) => ("configmaps", "kube-root-ca.crt"),
        }
    }
}

/// One controller for each of the two, which are switched off apart.
pub(crate) struct Keeper {
    kept: Kept,
    queue: Arc<Queue<String>>,
}

impl Keeper {
    pub(crate) fn of_accounts(activity: &Arc<Activity>) -> Self {
        Self { kept: Kept::Account, queue: Queue::new(Arc::clone(activity)) }
    }

    pub(crate) fn of_certificates(activity: &Arc<Activity>, certificate: String) -> Self {
        Self { kept: Kept::Certificate(certificate), queue: Queue::new(Arc::clone(activity)) }
    }

    async fn keep(&self, access: &Access, namespace: &str) -> Result<(), Failure> {
        let (found, _) = access.read(&Path::core("namespaces", "", namespace)).ok_or(Failure::Gone)?;
        if is_terminating(&found) {
            return Ok(());
        }
        let (plural, name) = self.kept.place();
        let path = Path::core(plural, namespace, name);
        let metadata = json!({"name": name, "namespace": namespace});
        match (&self.kept, access.read(&path)) {
            (Kept::Account, Some(_)) => {}
            (Kept::Account, None) => {
                let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata});
                access.create(&path, account).await?;
            }
            (Kept::Certificate(certificate), Some((config, revision))) => {
                if text(&config, &["data", "ca.crt"]) != certificate {
                    let edit = |config: &mut Value| {
                        section(config, &["data"]).insert("ca.crt".to_owned(), certificate.as_str().into());
                    };
                    access.edit(&path, revision, Part::Main, edit).await?;
                }
            }
            (Kept::Certificate(certificate), None) => {
                let mut metadata = metadata;
                metadata["annotations"] = json!({
                    "kubernetes.io/description": "Certificates to trust when the API server is called from within the cluster."
                });
                let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": certificate}});
                access.create(&path, config).await?;
            }
        }
        Ok(())
    }
}

impl Follower for Keeper {
    fn reset(&self) {}

    fn changed(&self, change: &Change<'_>) {
        let path = change.path;
        let (plural, name) = self.kept.place();
        if path.is_core("namespaces") && change.exists {
            self.queue.add(path.name.to_owned());
        } else if path.is_core(plural) && path.name == name {
            self.queue.add(path.namespace.to_owned());
        }
    }
}

impl Controller for Keeper {
    type Item = String;
    const WORKERS: usize = 2;

    fn queue(&self) -> &Arc<Queue<String>> {
        &self.queue
    }

    async fn work(&self, access: &Access, namespace: &String) -> Outcome {
        match self.keep(access, namespace).await {
            Ok(()) | Err(Failure::Gone) => Outcome::Done,
            Err(Failure::Conflict) => Outcome::Again,
            Err(Failure::Refused(error)) => {
                tracing::warn!(namespace, %error, "namespace could not be furnished");
                Outcome::Failed
            }
        }
    }
}
