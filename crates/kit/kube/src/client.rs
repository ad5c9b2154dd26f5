//! The client to the API server.

use std::path::{Path, PathBuf};

use http::header::{HeaderValue, USER_AGENT};
use kube::Client;
use kube::client::ClientBuilder;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use crate::rate::RateLimitLayer;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The kubeconfig file named by the flag cannot be used.
    #[error("cannot use the kubeconfig file {path:?}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The file that the environment variable names cannot be used.
    #[error("cannot use the kubeconfig that the environment variable KUBECONFIG names")]
    Environment(#[source] kube::config::KubeconfigError),
    /// No file is named, and this is no pod.
    #[error("no way to the API server: give --kubeconfig, set KUBECONFIG, or run in a pod with a service account")]
    InCluster(#[source] kube::config::InClusterError),
    /// The configuration is readable, but makes no client, for instance because of a bad certificate.
    #[error("cannot make a client for the API server")]
    Build(#[source] kube::Error),
}

/// Makes a client: from the file `kubeconfig`, else from what `KUBECONFIG` names, else with the pod's service account.
///
/// It starts at most `qps` requests a second after a burst of `burst`, all its clones together; a `qps` of zero or
/// less means no limit.
pub async fn client(kubeconfig: Option<&Path>, qps: f32, burst: u32) -> Result<Client, ClientError> {
    let options = KubeConfigOptions::default();
    let mut config = match kubeconfig {
        Some(path) => {
            let fail = |source| ClientError::Kubeconfig { path: path.to_owned(), source };
            let file = Kubeconfig::read_from(path).map_err(fail)?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(fail)?
        }
        None if std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty()) => {
            Config::from_kubeconfig(&options).await.map_err(ClientError::Environment)?
        }
        None => Config::incluster().map_err(ClientError::InCluster)?,
    };
    config.headers.push((USER_AGENT, user_agent()));
    let builder = ClientBuilder::try_from(config).map_err(ClientError::Build)?;
    Ok(if qps > 0.0 {
        builder.with_layer(&RateLimitLayer::new(f64::from(qps), burst)).build()
    } else {
        builder.build()
    })
}

/// `<program>/<version>`, as audit logs and priority rules of the API server see it.
fn user_agent() -> HeaderValue {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or("outrigger");
    HeaderValue::from_str(&format!("{name}/{}", env!("CARGO_PKG_VERSION")))
        .unwrap_or_else(|_| HeaderValue::from_static("outrigger"))
}
