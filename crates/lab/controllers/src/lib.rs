//! The control loops that the lab runs beside its API server.
//!
//! Each of them does what its counterpart in kube-controller-manager does, with the same annotations, finalizers,
//! conditions and event reasons, so that one can be replaced by the other. They are woken by changes, never by a
//! clock, and write through the API like everybody else.
//!
//! | name | keeps |
//! |---|---|
//! | `namespace` | empties namespaces that are being deleted, then lets them go |
//! | `garbagecollector` | deletes what lost its owners; foreground and orphaning deletion |
//! | `serviceaccount` | the service account `default` in each namespace |
//! | `root-ca-cert-publisher` | the ConfigMap `kube-root-ca.crt` in each namespace |
//! | `persistentvolume-binder` | claims bound to volumes, claims marked for their provisioner |
//! | `pvc-protection` | claims in use are not deleted |
//! | `pv-protection` | bound volumes are not deleted |
//!
//! All of them follow one watch of the store, which has one order of changes over all kinds. That makes
//! [`Controllers::settle`] possible: it returns when everything that follows from what is stored has been done.

mod access;
mod accounts;
mod binder;
mod events;
mod feed;
mod gc;
mod namespaces;
mod object;
mod path;
mod protection;
mod queue;

use std::any::type_name;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::FutureExt;
use jiff::Timestamp;
use outrigger_lab_apiserver::Client;
use outrigger_lab_store::{Revision, Store};
use tokio::sync::{RwLock, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::accounts::Keeper;
use crate::binder::Binder;
use crate::feed::{Follower, Gate};
use crate::gc::Collector;
use crate::namespaces::Namespaces;
use crate::protection::{ClaimProtection, VolumeProtection};
use crate::queue::{Activity, Outcome, Queue};

/// The time, for the timestamps that controllers write.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A control loop, by the name that kube-controller-manager gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// `namespace`
    Namespace,
    /// `garbagecollector`
    GarbageCollector,
    /// `serviceaccount`
    ServiceAccount,
    /// `root-ca-cert-publisher`
    RootCa,
    /// `persistentvolume-binder`
    Binder,
    /// `pvc-protection`
    ClaimProtection,
    /// `pv-protection`
    VolumeProtection,
}

impl Name {
    /// All control loops.
    pub const ALL: [Self; 7] = [
        Self::Namespace,
        Self::GarbageCollector,
        Self::ServiceAccount,
        Self::RootCa,
        Self::Binder,
        Self::ClaimProtection,
        Self::VolumeProtection,
    ];

    /// The name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::GarbageCollector => "garbagecollector",
            Self::ServiceAccount => "serviceaccount",
            Self::RootCa => "root-ca-cert-publisher",
            Self::Binder => "persistentvolume-binder",
            Self::ClaimProtection => "pvc-protection",
            Self::VolumeProtection => "pv-protection",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A control loop of this name does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no controller is named {name:?}; there are: {}", Name::ALL.map(Name::as_str).join(", "))]
pub struct UnknownName {
    /// The name.
    pub name: String,
}

impl FromStr for Name {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == name);
        found.ok_or_else(|| UnknownName { name: name.to_owned() })
    }
}

/// How to run the control loops.
#[derive(Clone)]
pub struct Options {
    /// Control loops to leave out.
    pub disabled: BTreeSet<Name>,
    /// Certificate of the authority that signed the API server's, PEM; published to all namespaces.
    pub root_ca: String,
    /// The time.
    pub clock: Clock,
}

impl Options {
    /// All control loops, on the system's time.
    pub fn new(root_ca: impl Into<String>) -> Self {
        Self { disabled: BTreeSet::new(), root_ca: root_ca.into(), clock: Arc::new(Timestamp::now) }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("disabled", &self.disabled).finish_non_exhaustive()
    }
}

/// A control loop: listens to changes, and works on what they made it ask for.
trait Controller: Follower + 'static {
    type Item: Clone + Eq + Hash + Send + Sync + 'static;
    /// Items worked on at the same time.
    const WORKERS: usize = 1;

    fn queue(&self) -> &Arc<Queue<Self::Item>>;

    fn work(&self, access: &Access, item: &Self::Item) -> impl Future<Output = Outcome> + Send;
}

/// The running control loops. They stop when this is dropped.
pub struct Controllers {
    store: Store,
    activity: Arc<Activity>,
    progress: watch::Receiver<Revision>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Controllers {
    /// Starts the control loops. `store` is the one behind `client`; it is only read.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(client: Client, store: Store, options: Options) -> Self {
        let activity = Arc::new(Activity::default());
        let (advance, progress) = watch::channel(0);
        let access = Access::new(client, store.clone(), Arc::clone(&activity), progress.clone(), options.clock);
        let gate: Gate = Arc::default();
        let closed = Arc::clone(&gate).try_write_owned().expect("nobody else has the gate yet");
        let mut crew = Crew {
            access: Arc::new(access),
            disabled: options.disabled,
            gate: Arc::clone(&gate),
            followers: Vec::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        crew.hire(Name::Namespace, || Namespaces::new(&activity));
        crew.hire(Name::GarbageCollector, || Collector::new(&activity));
        crew.hire(Name::ServiceAccount, || Keeper::of_accounts(&activity));
        crew.hire(Name::RootCa, || Keeper::of_certificates(&activity, options.root_ca));
        crew.hire(Name::Binder, || Binder::new(&activity));
        crew.hire(Name::ClaimProtection, || ClaimProtection::new(&activity));
        crew.hire(Name::VolumeProtection, || VolumeProtection::new(&activity));
        let Crew { followers, stop, tasks, .. } = crew;
        let feed = feed::run(store.clone(), followers, gate, closed, advance);
        tasks.spawn(stop.clone().run_until_cancelled_owned(feed));
        tasks.close();
        Self { store, activity, progress, stop, tasks }
    }

    /// Waits until the control loops have done everything that follows from what is stored at the time of the call,
    /// and from what they did about it.
    ///
    /// Work that keeps failing (five times in a row) is not waited for; it goes on in the background.
    pub async fn settle(&self) {
        let mut progress = self.progress.clone();
        loop {
            let writes = self.activity.writes();
            let revision = self.store.revision();
            if progress.wait_for(|known| *known >= revision).await.is_err() {
                return; // They were stopped.
            }
            self.activity.idle().await;
            if self.activity.writes() == writes {
                return;
            }
        }
    }

    /// Stops the control loops and waits for the work in hand to end.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controllers").field("known", &*self.progress.borrow()).finish_non_exhaustive()
    }
}

/// What it takes to start control loops.
struct Crew {
    access: Arc<Access>,
    disabled: BTreeSet<Name>,
    gate: Arc<RwLock<()>>,
    followers: Vec<Arc<dyn Follower>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Crew {
    fn hire<C: Controller>(&mut self, name: Name, make: impl FnOnce() -> C) {
        if self.disabled.contains(&name) {
            return;
        }
        let controller = Arc::new(make());
        for _ in 0..C::WORKERS {
            let work = serve(Arc::clone(&controller), Arc::clone(&self.access), Arc::clone(&self.gate));
            self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(work));
        }
        self.followers.push(controller);
    }
}

async fn serve<C: Controller>(controller: Arc<C>, access: Arc<Access>, gate: Gate) {
    let queue = Arc::clone(controller.queue());
    loop {
        let item = queue.next().await;
        let outcome = {
            let _open = gate.read().await;
            // A panic must not leave the item in work for ever.
            AssertUnwindSafe(controller.work(&access, &item)).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(controller = type_name::<C>(), "work panicked");
                Outcome::Failed
            })
        };
        queue.done(item, outcome);
        if outcome == Outcome::Again {
            // What made the object change has to be taken in first.
            tokio::task::yield_now().await;
        }
    }
}
