//! The store from outside: against a model, across kills and damage, under concurrency.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod bench;
mod crash;
mod damage;
mod full;
mod model;
mod parallel;
mod semantics;

use bytes::Bytes;
use outrigger_lab_store::{Event, Expect, Options, Store, Version, Watch};

fn value(text: impl AsRef<str>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref().as_bytes())
}

fn put(store: &Store, key: &str, text: &str) -> Version {
    store.write(key, Expect::Any, |_| value(text)).unwrap()
}

fn memory(history: usize) -> Store {
    Store::open(Options { history, ..Options::memory() }).unwrap()
}

/// Everything that a watch can deliver now.
fn drain(watch: &mut Watch) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(batch) = watch.try_next().unwrap() {
        events.extend(batch.events.iter().map(|event| Event::clone(event)));
    }
    events
}
