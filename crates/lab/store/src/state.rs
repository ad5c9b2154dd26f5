//! The multi-version map, its history and the watchers' topics: values in, values out, no I/O.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{Error, Event, EventKind, Lagged, Revision, Version};

/// Bytes of values that the history may hold, however few changes that are: a thousand updates of a large object must
/// not fill the memory. The newest change is kept in any case.
const HISTORY_BYTES: u64 = 128 << 20;

/// One version of a key; `value` is none if the key was deleted at `modified`.
#[derive(Clone)]
struct Stored {
    value: Option<Bytes>,
    created: Revision,
    modified: Revision,
}

/// The versions of a key. Nearly all keys have one, hence the newest stands apart and needs no allocation.
#[derive(Clone)]
struct Chain {
    newest: Stored,
    older: VecDeque<Stored>,
}

impl Chain {
    fn at(&self, revision: Revision) -> Option<&Stored> {
        if self.newest.modified <= revision {
            return Some(&self.newest);
        }
        let newer = self.older.partition_point(|version| version.modified <= revision);
        self.older.get(newer.checked_sub(1)?)
    }
}

/// The part of the key space that a group of watchers waits for: all keys that begin with the topic's name.
struct Topic {
    /// Newest change in the topic, or any later revision.
    last: Revision,
    wake: Arc<Notify>,
    watches: usize,
}

/// Revisions in `after < revision < start` were skipped when the store was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub after: Revision,
    pub start: Revision,
}

/// The state of a store at its newest revision, with as much of its past as is kept.
pub(crate) struct State {
    keys: BTreeMap<Arc<str>, Chain>,
    /// Oldest first. The first `dead` ones are at or below the floor and only wait for a pin to go.
    events: VecDeque<Arc<Event>>,
    dead: usize,
    /// Bytes of the values of the events that are not dead.
    event_bytes: u64,
    revision: Revision,
    floor: Revision,
    history: usize,
    gaps: Vec<Gap>,
    /// Revisions whose versions must stay although the floor may have passed them.
    pins: Vec<Revision>,
    topics: HashMap<Box<str>, Topic>,
    live: usize,
    versions: usize,
    value_bytes: u64,
}

/// What is known of a key when it is about to be written.
pub(crate) struct Present {
    /// The key as the map holds it, to be shared.
    pub key: Arc<str>,
    /// Its present version, if it exists.
    pub version: Option<Version>,
}

impl State {
    /// An empty state at `revision`, which is also its floor.
    pub(crate) fn new(revision: Revision, history: usize) -> Self {
        Self {
            keys: BTreeMap::new(),
            events: VecDeque::new(),
            dead: 0,
            event_bytes: 0,
            revision,
            floor: revision,
            history,
            gaps: Vec::new(),
            pins: Vec::new(),
            topics: HashMap::new(),
            live: 0,
            versions: 0,
            value_bytes: 0,
        }
    }

    /// A copy without watchers. Keys, values and events are shared.
    pub(crate) fn fork(&self) -> Self {
        let mut fork = Self {
            keys: self.keys.clone(),
            events: self.events.clone(),
            gaps: self.gaps.clone(),
            pins: Vec::new(),
            topics: HashMap::new(),
            ..*self
        };
        fork.trim();
        fork
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn versions(&self) -> usize {
        self.versions
    }

    pub(crate) fn value_bytes(&self) -> u64 {
        self.value_bytes
    }

    pub(crate) fn events(&self) -> usize {
        self.events.len() - self.dead
    }

    pub(crate) fn watches(&self) -> usize {
        self.topics.values().map(|topic| topic.watches).sum()
    }

    /// Takes over a key from a snapshot of the floor.
    pub(crate) fn load(&mut self, version: Version) {
        self.live += 1;
        self.versions += 1;
        self.value_bytes += version.value.len() as u64;
        let newest = Stored { value: Some(version.value), created: version.created, modified: version.modified };
        self.keys.insert(version.key, Chain { newest, older: VecDeque::new() });
    }

    /// Continues at `start`: the revisions in between were perhaps used and lost, and count as compacted.
    pub(crate) fn skip(&mut self, start: Revision) {
        if start > self.revision {
            self.gaps.push(Gap { after: self.revision, start });
            self.revision = start;
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Version> {
        let (key, chain) = self.keys.get_key_value(key)?;
        version(key, &chain.newest)
    }

    pub(crate) fn present(&self, key: &str) -> Present {
        match self.keys.get_key_value(key) {
            Some((key, chain)) => Present { key: Arc::clone(key), version: version(key, &chain.newest) },
            None => Present { key: key.into(), version: None },
        }
    }

    /// Refuses revisions that cannot be read or watched from.
    pub(crate) fn check(&self, requested: Revision) -> Result<(), Error> {
        if requested > self.revision {
            return Err(Error::Future { requested, current: self.revision });
        }
        let skipped = self.gaps.iter().find(|gap| gap.after < requested && requested < gap.start);
        if requested < self.floor || skipped.is_some() {
            let compacted = skipped.map_or(self.floor, |gap| gap.start);
            return Err(Error::Compacted { requested, compacted });
        }
        Ok(())
    }

    /// The versions at `revision` of keys that begin with `prefix` and come after `after`, in key order.
    pub(crate) fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        revision: Revision,
    ) -> impl Iterator<Item = Version> + 'a {
        self.entries(prefix, after).filter_map(move |(key, chain)| version(key, chain.at(revision)?))
    }

    /// Number of keys that [`scan`](Self::scan) would give.
    pub(crate) fn count(&self, prefix: &str, after: Option<&str>, revision: Revision) -> usize {
        let exists = |chain: &Chain| chain.at(revision).is_some_and(|stored| stored.value.is_some());
        self.entries(prefix, after).filter(|(_, chain)| exists(chain)).count()
    }

    fn entries<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Chain)> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.keys.range::<str, _>((from, Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Makes the next change. `revision` must be above the present one. Returns the new version, and whom to wake
    /// once the state is visible.
    pub(crate) fn apply(
        &mut self,
        key: Arc<str>,
        kind: EventKind,
        value: Bytes,
        revision: Revision,
    ) -> (Version, Vec<Arc<Notify>>) {
        debug_assert!(revision > self.revision);
        self.revision = revision;
        let chain = self.keys.get_mut(&key);
        let previous = chain.as_ref().and_then(|chain| chain.newest.value.clone());
        let created = match (&chain, &previous) {
            (Some(chain), Some(_)) => chain.newest.created,
            _ => revision,
        };
        if let Some(previous) = &previous {
            self.live -= 1;
            self.value_bytes -= previous.len() as u64;
        }
        let kept = (kind == EventKind::Put).then(|| value.clone());
        if let Some(kept) = &kept {
            self.live += 1;
            self.value_bytes += kept.len() as u64;
        }
        let newest = Stored { value: kept, created, modified: revision };
        self.versions += 1;
        if let Some(chain) = chain {
            let older = std::mem::replace(&mut chain.newest, newest);
            chain.older.push_back(older);
        } else {
            self.keys.insert(Arc::clone(&key), Chain { newest, older: VecDeque::new() });
        }
        let wakes = self.announce(&key, revision);
        let event = Event { revision, key: Arc::clone(&key), kind, value: value.clone(), previous };
        self.event_bytes += event.value.len() as u64;
        self.events.push_back(Arc::new(event));
        let mut trim = false;
        while self.events() > self.history || (self.event_bytes > HISTORY_BYTES && self.events() > 1) {
            let oldest = &self.events[self.dead];
            self.floor = oldest.revision;
            self.event_bytes -= oldest.value.len() as u64;
            self.dead += 1;
            trim = true;
        }
        if trim {
            self.trim();
        }
        (Version { key, value, created, modified: revision }, wakes)
    }

    fn announce(&mut self, key: &str, revision: Revision) -> Vec<Arc<Notify>> {
        if self.topics.is_empty() {
            return Vec::new();
        }
        let folders = key.match_indices('/').map(|(at, _)| &key[..=at]);
        let mut wakes = Vec::new();
        for name in std::iter::once("").chain(folders) {
            if let Some(topic) = self.topics.get_mut(name) {
                topic.last = revision;
                wakes.push(Arc::clone(&topic.wake));
            }
        }
        wakes
    }

    /// Raises the floor to `floor`.
    pub(crate) fn compact(&mut self, floor: Revision) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        let dead = self.events.partition_point(|event| event.revision <= floor);
        self.event_bytes -= self.events.range(self.dead..dead).map(|event| event.value.len() as u64).sum::<u64>();
        self.dead = dead;
        self.trim();
    }

    /// Drops dead events, and with each the versions that its change replaced, as far as no pin needs them.
    fn trim(&mut self) {
        let pin = self.pins.iter().copied().min().unwrap_or(Revision::MAX);
        while self.dead > 0 && self.events.front().is_some_and(|event| event.revision <= pin) {
            let Some(event) = self.events.pop_front() else {
                break;
            };
            self.dead -= 1;
            self.prune(&event.key, event.revision);
        }
        let floor = self.floor;
        self.gaps.retain(|gap| gap.start > floor);
    }

    /// Drops what cannot be seen at `revision` or later, given that `key` changed at `revision`.
    fn prune(&mut self, key: &str, revision: Revision) {
        let Some(chain) = self.keys.get_mut(key) else {
            return;
        };
        while chain.older.front().is_some_and(|version| {
            version.modified < revision || (version.modified == revision && version.value.is_none())
        }) {
            chain.older.pop_front();
            self.versions -= 1;
        }
        if chain.older.is_empty() {
            chain.older.shrink_to_fit();
            if chain.newest.value.is_none() && chain.newest.modified <= revision {
                self.keys.remove(key);
                self.versions -= 1;
            }
        }
    }

    /// Keeps what is needed to read at `revision` until [`unpin`](Self::unpin).
    pub(crate) fn pin(&mut self, revision: Revision) {
        self.pins.push(revision);
    }

    pub(crate) fn unpin(&mut self, revision: Revision) {
        if let Some(at) = self.pins.iter().position(|pin| *pin == revision) {
            self.pins.swap_remove(at);
        }
        self.trim();
    }

    /// Joins the topic that covers `prefix`.
    pub(crate) fn subscribe(&mut self, topic: &str) -> Arc<Notify> {
        let last = self.revision;
        let entry = self.topics.entry(topic.into()).or_insert_with(|| Topic {
            last,
            wake: Arc::new(Notify::new()),
            watches: 0,
        });
        entry.watches += 1;
        Arc::clone(&entry.wake)
    }

    pub(crate) fn unsubscribe(&mut self, topic: &str) {
        if let Some(entry) = self.topics.get_mut(topic) {
            entry.watches -= 1;
            if entry.watches == 0 {
                self.topics.remove(topic);
            }
        }
    }

    /// Collects at most `limit` changes after `position` whose keys begin with `prefix`, and returns the revision
    /// up to which all changes were considered.
    pub(crate) fn collect(
        &self,
        topic: &str,
        prefix: &str,
        position: Revision,
        limit: usize,
        into: &mut Vec<Arc<Event>>,
    ) -> Result<Revision, Lagged> {
        // A watcher of a quiet topic is not woken, so its position may be below the floor. It missed nothing.
        if self.topics.get(topic).is_some_and(|topic| topic.last <= position) {
            return Ok(self.revision);
        }
        if position < self.floor {
            return Err(Lagged { position, compacted: self.floor });
        }
        let first = self.events.partition_point(|event| event.revision <= position);
        for event in self.events.range(first..) {
            if event.key.starts_with(prefix) {
                if into.len() == limit {
                    return Ok(event.revision - 1);
                }
                into.push(Arc::clone(event));
            }
        }
        Ok(self.revision)
    }
}

fn version(key: &Arc<str>, stored: &Stored) -> Option<Version> {
    let value = stored.value.clone()?;
    Some(Version { key: Arc::clone(key), value, created: stored.created, modified: stored.modified })
}

/// The topic for watchers of `prefix`: the longest folder that contains all its keys.
pub(crate) fn topic(prefix: &str) -> &str {
    prefix.rfind('/').map_or("", |at| &prefix[..=at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_bounded_in_bytes_too() {
        static LARGE: [u8; 1 << 20] = [0; 1 << 20];
        let mut state = State::new(1, 10_000);
        let large = || Bytes::from_static(&LARGE);
        for revision in 2..=1000 {
            state.apply("/a/x".into(), EventKind::Put, large(), revision);
        }
        assert_eq!(state.events(), 128);
        assert_eq!(state.versions(), 129, "as many as can still be read, and the one at the floor");
        assert_eq!(state.floor(), 1000 - 128);
        assert!(matches!(state.check(state.floor() - 1), Err(Error::Compacted { .. })));
        assert!(state.scan("/a/", None, state.floor()).next().is_some());
        // Small changes after it do not suffer for ever.
        for revision in 1001..=2000 {
            state.apply("/a/y".into(), EventKind::Put, Bytes::new(), revision);
        }
        assert_eq!(state.events(), 1128);
        state.compact(1500);
        assert_eq!((state.events(), state.event_bytes), (500, 0));
        let huge = Bytes::from(vec![0; usize::try_from(HISTORY_BYTES).unwrap() + 1]);
        state.apply("/a/z".into(), EventKind::Put, huge, 2001);
        assert_eq!(state.events(), 1, "the newest change is always kept");
    }
}
