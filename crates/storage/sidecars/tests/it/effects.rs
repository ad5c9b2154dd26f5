//! Counts what a process does to the outside, and kills it at a chosen point.

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

/// Where in its last effect a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// Before it takes place.
    Before,
    /// After it took place, before the answer.
    After,
}

/// The effects of one process. Clones count together.
#[derive(Clone, Default)]
pub(crate) struct Effects {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    count: AtomicU64,
    last: Option<(u64, Death)>,
    dead: CancellationToken,
}

impl Effects {
    /// Dies at effect number `last`, from 0.
    pub(crate) fn dying(last: u64, death: Death) -> Self {
        Self { inner: Arc::new(Inner { last: Some((last, death)), ..Inner::default() }) }
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.inner.count.load(Ordering::SeqCst)
    }

    /// Waits for the death.
    pub(crate) async fn died(&self) {
        self.inner.dead.cancelled().await;
    }

    /// Whether the effect that is about to take place does take place.
    pub(crate) fn next(&self) -> Fate {
        let number = self.inner.count.fetch_add(1, Ordering::SeqCst);
        match self.inner.last {
            Some((last, Death::After)) if number == last => {
                self.inner.dead.cancel();
                Fate::Unanswered
            }
            Some((last, _)) if number >= last => {
                self.inner.dead.cancel();
                Fate::Lost
            }
            _ => Fate::Normal,
        }
    }

    /// Performs an effect, unless the process is dead. The dead get no answers.
    pub(crate) async fn perform<T>(&self, effect: impl Future<Output = T>) -> T {
        match self.next() {
            Fate::Normal => effect.await,
            Fate::Unanswered => {
                effect.await;
                pending().await
            }
            Fate::Lost => pending().await,
        }
    }
}

/// What becomes of an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It takes place.
    Normal,
    /// It takes place, but nobody is there to hear of it.
    Unanswered,
    /// It does not take place.
    Lost,
}
