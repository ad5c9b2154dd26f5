//! The end of the process.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Tells all parts of a daemon to end. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::trigger`] starts.
    pub fn new() -> Self {
        Self::default()
    }

    /// A shutdown that SIGTERM and SIGINT start. Must be called within a tokio runtime.
    ///
    /// The second signal ends the process at once, with the code that shells give to the signal: 143 for SIGTERM, 130 for SIGINT.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mine = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let (name, code) = tokio::select! {
                    Some(()) = term.recv() => ("SIGTERM", 143),
                    Some(()) = interrupt.recv() => ("SIGINT", 130),
                    else => return,
                };
                if mine.is_triggered() {
                    tracing::warn!("{name} again, ending at once");
                    exit(code);
                }
                tracing::info!("{name}, shutting down");
                mine.trigger();
            }
        });
        Ok(shutdown)
    }

    /// Starts the shutdown.
    pub fn trigger(&self) {
        self.token.cancel();
    }

    /// Whether the shutdown has started.
    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until the shutdown starts; at once if it has.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// The token behind this, to make children of it.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

#[expect(clippy::exit, reason = "the user asked twice: nothing more may be waited for")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_starts_it_for_all_clones() {
        let shutdown = Shutdown::on_signals().unwrap();
        let clone = shutdown.clone();
        assert!(!clone.is_triggered());
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        clone.cancelled().await;
        assert!(shutdown.is_triggered() && shutdown.token().is_cancelled());
    }
}
