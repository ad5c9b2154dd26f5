//! Stopping the driver after its n-th outside effect, for crash sweeps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the driver's outside effects (everything that outlives the process: files, mounts, devices) and can stop the
/// driver between two of them.
///
/// Each effect asks [`Fault::effect`] for leave first. A sweep runs a flow once for every n, stopped after n effects,
/// and demands that the next start and a repeated call put everything right. [`Fault::default`] never stops anything.
#[derive(Debug, Clone, Default)]
pub struct Fault(Option<Arc<State>>);

#[derive(Debug)]
struct State {
    allowed: u64,
    asked: AtomicU64,
    abort: bool,
}

impl Fault {
    /// Every effect after the first `effects` fails, as if the process were gone.
    pub fn after(effects: u64) -> Self {
        Self::new(effects, false)
    }

    /// The process aborts instead of beginning the effect after the first `effects`.
    pub fn abort_after(effects: u64) -> Self {
        Self::new(effects, true)
    }

    fn new(allowed: u64, abort: bool) -> Self {
        Self(Some(Arc::new(State { allowed, asked: AtomicU64::new(0), abort })))
    }

    /// How many effects asked for leave so far; more than allowed if the driver was stopped. Always 0 without a limit.
    pub fn asked(&self) -> u64 {
        self.0.as_ref().map_or(0, |state| state.asked.load(Ordering::SeqCst))
    }

    /// Leave to begin the effect named `what`.
    pub(crate) fn effect(&self, what: &'static str) -> io::Result<()> {
        let Some(state) = &self.0 else { return Ok(()) };
        if state.asked.fetch_add(1, Ordering::SeqCst) < state.allowed {
            return Ok(());
        }
        if state.abort {
            tracing::error!(effect = what, after = state.allowed, "stopping here, as OUTRIGGER_CRASH_AFTER asks for");
            std::process::abort();
        }
        Err(io::Error::other(format!("stopped before: {what}")))
    }
}
