//! The written form of plans under way.
//!
//! # Why there is a record
//!
//! A `CreateVolume` call whose outcome is unknown (a timeout, a crash) may leave a volume behind. CSI offers one way out:
//! repeat the identical call until the answer is definite. Within one process that is a matter of memory. Across a restart it
//! is not: if the claim was deleted meanwhile, nothing in the API tells that there ever was a call, let alone its arguments, and
//! drivers do not list volumes by name. So the arguments are written down before the first call, and crossed out after
//! the volume object is saved or the outcome is a definite failure.
//!
//! # Where it is kept, and why there
//!
//! In one ConfigMap in the provisioner's own namespace, one key for each claim's UID. The alternatives were weighed:
//!
//! - *A finalizer and an annotation on the claim* cost two writes for every claim, keep deleted claims (and their namespaces)
//!   `Terminating` while a driver is down, and leave claims stuck for ever when another provisioner takes over.
//! - *One record object for each call* costs two writes for every claim as well.
//! - *The ConfigMap* is written by one task for all workers: whatever begins or ends while a write is under way goes into the
//!   next one. A lone claim costs two small patches, a hundred at once cost a handful. Merge patches touch only their own
//!   keys, so that two writers (a deposed leader and its successor) do no harm to each other.
//!
//! Other provisioners ignore the ConfigMap. When one takes over for good, calls recorded at that moment are lost to it as its
//! own would be; the keys tell an administrator which volumes (by CSI name) to look for, after which the object may be
//! deleted. A record that cannot be read is left alone and reported.
//!
//! # Form
//!
//! `data[<claim uid>]` is the plan as JSON. The segments of accessibility requirements can be large and are the same for many
//! claims, so they are written once under `segments.<uuid v5 of their text>` and shared. A ConfigMap holds 1 MiB; what does not
//! fit has to wait for its turn.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::plan::Plan;
use super::topology::{Requirement, Term};

/// Bytes of keys and values that the ConfigMap may hold; Kubernetes allows 1 MiB, the rest is for the envelope.
pub const CAPACITY: usize = 1000 << 10;

const SEGMENTS_PREFIX: &str = "segments.";
const FORMAT: u32 = 1;

/// A record that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The text is not a record.
    #[error("failed to read the record of claim {uid}")]
    Malformed {
        /// UID of the claim.
        uid: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by a later release.
    #[error("the record of claim {uid} has format {format}, this release knows {FORMAT}")]
    Format {
        /// UID of the claim.
        uid: String,
        /// The format it claims to have.
        format: u32,
    },
    /// The segments it refers to are not there.
    #[error("the record of claim {uid} refers to {key}, which does not exist")]
    Segments {
        /// UID of the claim.
        uid: String,
        /// The missing key.
        key: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segments: Option<SegmentsRef>,
    plan: Plan,
}

/// What can be read of a record in any format.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    format: u32,
    segments: Option<SegmentsRef>,
}

#[derive(Serialize, Deserialize)]
struct SegmentsRef {
    key: String,
    first: usize,
}

/// One plan, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// UID of the claim.
    pub uid: String,
    /// The text under that key.
    pub text: String,
    /// Key and text of the shared segments, if any.
    pub segments: Option<(String, String)>,
}

/// The written form of a plan.
pub fn encode(plan: &Plan) -> Result<Entry, serde_json::Error> {
    let mut plan = plan.clone();
    let mut segments = None;
    let mut reference = None;
    if let Some(requirement) = plan.topology.take() {
        let text = serde_json::to_string(&requirement.terms)?;
        let key = format!("{SEGMENTS_PREFIX}{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()));
        reference = Some(SegmentsRef { key: key.clone(), first: requirement.first });
        segments = Some((key, text));
    }
    let uid = plan.claim_uid().to_owned();
    let text = serde_json::to_string(&Written { format: FORMAT, segments: reference, plan })?;
    Ok(Entry { uid, text, segments })
}

/// All plans in a ConfigMap's data, and what could not be read.
pub fn decode(data: &BTreeMap<String, String>) -> (Vec<Plan>, Vec<RecordError>) {
    let mut plans = Vec::new();
    let mut errors = Vec::new();
    for (uid, text) in data.iter().filter(|(key, _)| !key.starts_with(SEGMENTS_PREFIX)) {
        match decode_one(uid, text, data) {
            Ok(plan) => plans.push(plan),
            Err(error) => errors.push(error),
        }
    }
    (plans, errors)
}

fn decode_one(uid: &str, text: &str, data: &BTreeMap<String, String>) -> Result<Plan, RecordError> {
    let malformed = |source| RecordError::Malformed { uid: uid.to_owned(), source };
    let head: Head = serde_json::from_str(text).map_err(malformed)?;
    if head.format != FORMAT {
        return Err(RecordError::Format { uid: uid.to_owned(), format: head.format });
    }
    let Written { segments, mut plan, .. } = serde_json::from_str(text).map_err(malformed)?;
    if let Some(SegmentsRef { key, first }) = segments {
        let terms = data.get(&key).ok_or_else(|| RecordError::Segments { uid: uid.to_owned(), key: key.clone() })?;
        let terms: Vec<Term> = serde_json::from_str(terms).map_err(malformed)?;
        plan.topology = Some(Requirement { terms, first });
    }
    Ok(plan)
}

/// What the ConfigMap holds, and what it should hold. Pure book-keeping; the journal does the writing.
#[derive(Debug, Default)]
pub struct Ledger {
    /// What is known to be written.
    written: BTreeMap<String, Line>,
    /// Segments with their size; `None` = they may or may not be there.
    segments: BTreeMap<String, Option<usize>>,
    /// Whose entries the write under way changes.
    flying: BTreeSet<String>,
    /// What has to change: a text, or a removal.
    pending: BTreeMap<String, Option<Entry>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    text: String,
    segments: Option<String>,
}

/// The changes of one write: keys with their new text, or with nothing to be removed.
pub type Changes = BTreeMap<String, Option<String>>;

/// One batch of changes under way.
#[derive(Debug)]
pub struct Batch {
    /// The merge patch for `data`.
    pub changes: Changes,
    entries: BTreeMap<String, Option<Entry>>,
}

impl Ledger {
    /// The ledger of a ConfigMap as it was read.
    pub fn from_data(data: &BTreeMap<String, String>) -> Self {
        let mut ledger = Self::default();
        for (key, text) in data {
            if key.starts_with(SEGMENTS_PREFIX) {
                ledger.segments.insert(key.clone(), Some(text.len()));
                continue;
            }
            // Also unreadable ones keep their segments alive, where these can be made out.
            let head: Option<Head> = serde_json::from_str(text).ok();
            ledger.written.insert(
                key.clone(),
                Line { text: text.clone(), segments: head.and_then(|head| head.segments).map(|segments| segments.key) },
            );
        }
        ledger
    }

    /// Asks for an entry to be written. `false`: it already is, nothing to wait for.
    pub fn put(&mut self, entry: Entry) -> bool {
        let is_written = !self.flying.contains(&entry.uid)
            && self.written.get(&entry.uid).is_some_and(|written| written.text == entry.text);
        if is_written {
            // A removal that is not on its way yet is called off.
            self.pending.remove(&entry.uid);
            return false;
        }
        self.pending.insert(entry.uid.clone(), Some(entry));
        true
    }

    /// Asks for an entry to be removed.
    pub fn remove(&mut self, uid: &str) {
        if self.written.contains_key(uid) || self.pending.contains_key(uid) || self.flying.contains(uid) {
            self.pending.insert(uid.to_owned(), None);
        }
    }

    /// Whether entries wait to be written (rather than only removed).
    pub fn is_urgent(&self) -> bool {
        self.pending.values().any(Option::is_some)
    }

    /// Whether nothing waits.
    pub fn is_clean(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether `entry` fits beside what is there and what waits.
    pub fn has_room_for(&self, entry: &Entry) -> bool {
        let waiting: usize = self.pending.values().flatten().map(size).sum();
        let written: usize = self.written.iter().map(|(uid, written)| uid.len() + written.text.len()).sum();
        let segments: usize = self.segments.iter().map(|(key, size)| key.len() + size.unwrap_or(0)).sum();
        waiting + written + segments + size(entry) <= CAPACITY
    }

    /// Whether `entry` could ever fit.
    pub fn can_hold(entry: &Entry) -> bool {
        size(entry) <= CAPACITY
    }

    /// Takes all that waits as one write.
    pub fn take(&mut self) -> Batch {
        let entries = std::mem::take(&mut self.pending);
        let mut changes = Changes::new();
        // Segments in use after this write.
        let mut used: BTreeSet<&str> = BTreeSet::new();
        for (uid, written) in &self.written {
            if !entries.contains_key(uid) {
                used.extend(written.segments.as_deref());
            }
        }
        for (uid, entry) in &entries {
            if let Some(entry) = entry {
                if let Some((key, text)) = &entry.segments {
                    used.insert(key);
                    if !matches!(self.segments.get(key), Some(Some(_))) {
                        changes.insert(key.clone(), Some(text.clone()));
                    }
                }
                changes.insert(uid.clone(), Some(entry.text.clone()));
            } else {
                changes.insert(uid.clone(), None);
            }
        }
        for key in self.segments.keys() {
            if !used.contains(key.as_str()) {
                changes.insert(key.clone(), None);
            }
        }
        self.flying = entries.keys().cloned().collect();
        Batch { changes, entries }
    }

    /// The write succeeded.
    pub fn done(&mut self, batch: Batch) {
        self.flying.clear();
        for (uid, entry) in batch.entries {
            match entry {
                Some(entry) => {
                    let segments = entry.segments.map(|(key, text)| {
                        self.segments.insert(key.clone(), Some(text.len()));
                        key
                    });
                    self.written.insert(uid, Line { text: entry.text, segments });
                }
                None => {
                    self.written.remove(&uid);
                }
            }
        }
        for (key, change) in batch.changes {
            if change.is_none() {
                self.segments.remove(&key);
            }
        }
    }

    /// The write failed, or its outcome is unknown. Removals are tried again; entries are given up by those who asked for them,
    /// and crossed out in case they did arrive.
    pub fn failed(&mut self, batch: Batch) {
        self.flying.clear();
        for key in batch.changes.into_keys().filter(|key| key.starts_with(SEGMENTS_PREFIX)) {
            self.segments.insert(key, None);
        }
        for (uid, entry) in batch.entries {
            // Unknown contents: any later put must be written.
            let segments = match entry {
                Some(entry) => entry.segments.map(|(key, _)| key),
                None => self.written.remove(&uid).and_then(|line| line.segments),
            };
            let text = String::new();
            self.written.insert(uid.clone(), Line { text, segments });
            self.pending.entry(uid).or_insert(None);
        }
    }
}

fn size(entry: &Entry) -> usize {
    let segments = entry.segments.as_ref().map_or(0, |(key, text)| key.len() + text.len());
    entry.uid.len() + entry.text.len() + segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(uid: u8, text: &str, segments: Option<u8>) -> Entry {
        Entry {
            uid: format!("u{uid}"),
            text: segments.map_or_else(
                || format!("{{\"format\":1,\"t\":\"{text}\"}}"),
                |s| format!("{{\"segments\":{{\"key\":\"segments.{s}\",\"first\":0}},\"t\":\"{text}\"}}"),
            ),
            segments: segments.map(|s| (format!("segments.{s}"), format!("[{s}]"))),
        }
    }

    fn apply(data: &mut BTreeMap<String, String>, changes: &Changes) {
        for (key, change) in changes {
            match change {
                Some(text) => data.insert(key.clone(), text.clone()),
                None => data.remove(key),
            };
        }
    }

    #[test]
    fn what_is_written_already_costs_nothing() {
        let mut ledger = Ledger::default();
        assert!(ledger.put(entry(1, "a", None)));
        let batch = ledger.take();
        ledger.done(batch);
        ledger.remove("u1");
        assert!(!ledger.put(entry(1, "a", None)));
        assert!(ledger.is_clean());
        assert!(ledger.put(entry(1, "b", None)));
    }

    #[test]
    fn a_put_during_its_own_removal_is_written_again() {
        let mut ledger = Ledger::default();
        ledger.put(entry(1, "a", None));
        let batch = ledger.take();
        ledger.done(batch);
        ledger.remove("u1");
        let removal = ledger.take();
        assert!(ledger.put(entry(1, "a", None)));
        ledger.done(removal);
        assert!(ledger.is_urgent());
    }

    #[test]
    fn space_is_bounded() {
        let mut ledger = Ledger::default();
        let large = "x".repeat(CAPACITY / 2);
        assert!(ledger.has_room_for(&entry(1, &large, None)));
        ledger.put(entry(1, &large, None));
        assert!(!ledger.has_room_for(&entry(2, &large, None)));
        assert!(!Ledger::can_hold(&entry(2, &"x".repeat(CAPACITY), None)));
    }

    fn plan(uid: &str, zones: usize) -> Plan {
        let terms: Vec<Term> = (0..zones).map(|zone| Term::from([("zone".to_owned(), zone.to_string())])).collect();
        let topology = (zones > 0).then_some(Requirement { terms, first: zones / 2 });
        let plan = serde_json::json!({
            "name": format!("pvc-{uid}"),
            "requiredBytes": 1,
            "accessModes": [1],
            "access": { "mount": { "fsType": "ext4", "flags": ["ro"] } },
            "parameters": { "kind": "ssd" },
            "topology": topology,
            "secret": { "name": "s", "namespace": "n" },
            "selectedNode": "node",
            "template": { "metadata": { "name": format!("pvc-{uid}") }, "spec": { "claimRef": { "uid": uid } } },
        });
        serde_json::from_value(plan).unwrap()
    }

    #[test]
    fn what_is_recorded_is_what_is_replayed() {
        let plans = [plan("a", 0), plan("b", 5), plan("c", 5), plan("d", 3)];
        let mut ledger = Ledger::default();
        for plan in &plans {
            assert!(ledger.put(encode(plan).unwrap()));
        }
        let mut data = BTreeMap::new();
        apply(&mut data, &ledger.take().changes);
        assert_eq!(data.len(), 4 + 2, "b and c share their segments");
        let (read, errors) = decode(&data);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(read, plans);
    }

    #[test]
    fn unreadable_records_are_reported_and_kept() {
        let mut data = BTreeMap::new();
        let entry = encode(&plan("a", 2)).unwrap();
        data.insert("a".to_owned(), entry.text);
        data.insert("b".to_owned(), "{".to_owned());
        data.insert("c".to_owned(), "{\"format\":2,\"plan\":{}}".to_owned());
        data.insert("d".to_owned(), encode(&plan("d", 0)).unwrap().text);
        let (read, errors) = decode(&data);
        assert_eq!(read, [plan("d", 0)]);
        assert!(
            matches!(
                errors.as_slice(),
                [RecordError::Segments { .. }, RecordError::Malformed { .. }, RecordError::Format { format: 2, .. }]
            ),
            "{errors:?}"
        );
        // The next write removes none of them.
        let mut ledger = Ledger::from_data(&data);
        ledger.put(entry_of("e"));
        assert!(ledger.take().changes.values().all(Option::is_some));
    }

    fn entry_of(uid: &str) -> Entry {
        encode(&plan(uid, 0)).unwrap()
    }

    #[derive(Debug, Clone)]
    enum Op {
        Put(u8, u8, Option<u8>),
        Remove(u8),
        /// A write: succeeds, fails without effect, or fails with effect.
        Write(u8),
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0_u8..4, 0_u8..3, proptest::option::of(0_u8..2)).prop_map(|(u, t, s)| Op::Put(u, t, s)),
            (0_u8..4).prop_map(Op::Remove),
            (0_u8..3).prop_map(Op::Write),
            Just(Op::Restart),
        ]
    }

    proptest! {
        /// Whatever fails in between: in the end the ConfigMap holds exactly what was asked for, and every segment that it refers to.
        #[test]
        fn the_map_follows_the_ledger(ops in proptest::collection::vec(op(), 0..60)) {
            let mut data = BTreeMap::new();
            let mut ledger = Ledger::default();
            // What callers were promised to find after a crash.
            let mut wanted: BTreeMap<String, Entry> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Put(u, t, s) => {
                        let entry = entry(u, &t.to_string(), s);
                        if !ledger.put(entry.clone()) {
                            prop_assert_eq!(data.get(&entry.uid), Some(&entry.text));
                        }
                        wanted.insert(entry.uid.clone(), entry);
                    }
                    Op::Remove(u) => {
                        ledger.remove(&format!("u{u}"));
                        wanted.remove(&format!("u{u}"));
                    }
                    Op::Write(kind) => {
                        let batch = ledger.take();
                        if kind != 1 {
                            apply(&mut data, &batch.changes);
                        }
                        if kind == 0 {
                            ledger.done(batch);
                        } else {
                            // Those who asked for entries see the error and give up.
                            for (uid, entry) in &batch.entries {
                                if entry.is_some() { wanted.remove(uid); }
                            }
                            ledger.failed(batch);
                        }
                    }
                    Op::Restart => {
                        ledger = Ledger::from_data(&data);
                        wanted = data.iter().filter(|(key, _)| key.starts_with('u')).map(|(uid, text)| {
                            let key = serde_json::from_str::<serde_json::Value>(text).ok()
                                .and_then(|v| v["segments"]["key"].as_str().map(str::to_owned));
                            let segments = key.map(|key| { let text = data[&key].clone(); (key, text) });
                            (uid.clone(), Entry { uid: uid.clone(), text: text.clone(), segments })
                        }).collect();
                    }
                }
            }
            let batch = ledger.take();
            apply(&mut data, &batch.changes);
            ledger.done(batch);
            let mut expected = BTreeMap::new();
            for entry in wanted.into_values() {
                expected.insert(entry.uid, entry.text);
                expected.extend(entry.segments);
            }
            prop_assert_eq!(data, expected);
        }
    }
}
