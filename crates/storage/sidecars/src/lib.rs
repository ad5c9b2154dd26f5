//! The Kubernetes side of CSI: the controllers that drive a plugin from API objects.
//!
//! One process runs them all, over one set of watches. So far there is the [`provisioner`], which makes and deletes volumes
//! for claims. [`run`] is what the command line starts.

mod options;
pub mod provisioner;
pub mod quantity;
mod run;

pub use options::Options;
pub use run::{Error, run};
