//! What can go wrong on the node.

use outrigger_csi::CallError;
use outrigger_lab_apiserver::ApiError;
use outrigger_rpc::ConnectError;

/// What the node could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object of the node's is refused.
    #[error("{operation} the {kind} {name}: {}", source.message)]
    Api {
        /// What was tried.
        operation: &'static str,
        /// The object's kind.
        kind: &'static str,
        /// The object's name.
        name: String,
        /// The API server's answer.
        source: Box<ApiError>,
    },
    /// A driver's socket does not answer.
    #[error("reach the CSI driver at {endpoint}")]
    Connect {
        /// The driver's socket.
        endpoint: String,
        /// The cause.
        source: ConnectError,
    },
    /// A driver does not say who the node is.
    #[error("register the CSI driver at {endpoint}")]
    Driver {
        /// The driver's socket.
        endpoint: String,
        /// The driver's answer.
        source: CallError,
    },
    /// A driver's topology contradicts the node's labels.
    #[error("register a CSI driver on node {node}: {why}; remove the label, or correct the driver's configuration")]
    Topology {
        /// The node.
        node: String,
        /// The label and both values.
        why: String,
    },
    /// Somebody else writes the same CSINode all the time.
    #[error("write the CSINode {node}: lost ten races in a row against another writer")]
    Races {
        /// The node.
        node: String,
    },
}
