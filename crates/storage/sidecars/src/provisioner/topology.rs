//! Where a volume may and should be: the accessibility requirements of `CreateVolume`, and the node affinity of the answer.
//!
//! *Requisite* is the set of segments in which the volume may be; *preferred* is the same set in the order of preference.
//! Here both are one sorted list of terms plus the index at which the preferred order starts, because preferred is always a
//! rotation of requisite.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, VolumeNodeAffinity};
use outrigger_csi::proto;
use serde::{Deserialize, Serialize};

/// One topology segment: the values of all topology keys of a driver.
pub type Term = BTreeMap<String, String>;

/// One entry of a class's `allowedTopologies`: keys (AND) with their allowed values (OR).
pub type AllowedTerm = Vec<(String, Vec<String>)>;

/// Why no requirement can be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The selected node has no CSINode object: it left the cluster, or its kubelet has not registered. The scheduler has to choose again.
    #[error("failed to get selected CSINode {node}: csinode.storage.k8s.io {node:?} not found")]
    CsiNodeMissing {
        /// Name of the node.
        node: String,
    },
    /// The selected node is gone. The scheduler has to choose again.
    #[error("failed to get selected Node {node}: node {node:?} not found")]
    NodeMissing {
        /// Name of the node.
        node: String,
    },
    /// The driver is not registered on the selected node, or reported no topology there.
    #[error("error generating accessibility requirements: no topology key found for node {node}")]
    NoKeys {
        /// Name of the node.
        node: String,
    },
    /// The node lacks labels for some of the driver's topology keys.
    #[error(
        "error generating accessibility requirements: topology labels from selected node {node} do not have all topology keys from CSINode {keys:?}"
    )]
    LabelsMissing {
        /// Name of the node.
        node: String,
        /// The keys that the driver reported there.
        keys: Vec<String>,
    },
    /// The class does not allow the selected node's segment.
    #[error(
        "error generating accessibility requirements: selected node {node:?} topology {segment:?} is not in allowed topologies: {allowed:?}"
    )]
    NotAllowed {
        /// Name of the node.
        node: String,
        /// The segment of the node.
        segment: Term,
        /// All segments that the class allows.
        allowed: Vec<Term>,
    },
    /// No node offers a segment.
    #[error("error generating accessibility requirements: no available topology found")]
    NoSegments,
}

impl TopologyError {
    /// Whether the scheduler should choose another node.
    pub fn reschedules(&self) -> bool {
        matches!(self, Self::CsiNodeMissing { .. } | Self::NodeMissing { .. })
    }
}

/// What the cluster looks like to one driver.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// CSINode name → topology keys of this driver there; absent driver = empty list.
    pub csi_nodes: BTreeMap<String, Vec<String>>,
    /// Node name → its labels.
    pub nodes: BTreeMap<String, BTreeMap<String, String>>,
}

/// The settings and the claim's side of the computation.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Name of the claim; decides the rotation of the preferred order for immediate binding.
    pub claim_name: &'a str,
    /// `allowedTopologies` of the class.
    pub allowed: &'a [AllowedTerm],
    /// The scheduler's choice, for classes that wait for the first consumer.
    pub selected_node: Option<&'a str>,
    /// With a selected node: offer only its segment.
    pub strict: bool,
    /// Without a selected node: offer the whole cluster, rather than nothing.
    pub immediate: bool,
}

/// An accessibility requirement: `terms` is sorted and free of duplicates; the preferred order starts at `first` and wraps around.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// The requisite segments.
    pub terms: Vec<Term>,
    /// Index of the most preferred segment.
    pub first: usize,
}

impl Requirement {
    /// The CSI message.
    pub fn to_proto(&self) -> proto::TopologyRequirement {
        let topology = |term: &Term| proto::Topology {
            segments: term.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        };
        let (before, from) = self.terms.split_at(self.first.min(self.terms.len()));
        proto::TopologyRequirement {
            requisite: self.terms.iter().map(topology).collect(),
            preferred: from.iter().chain(before).map(topology).collect(),
        }
    }
}

/// The requirement for one claim; `None` = the call carries none.
pub fn requirement(cluster: &Cluster, question: &Question<'_>) -> Result<Option<Requirement>, TopologyError> {
    let Some(node) = question.selected_node else {
        let terms = if !question.allowed.is_empty() {
            flatten(question.allowed)
        } else if question.immediate {
            // One node speaks for all: a driver uses the same keys everywhere, apart from the time of an upgrade.
            match cluster.csi_nodes.values().find(|keys| !keys.is_empty()) {
                Some(keys) => aggregate(cluster, keys),
                None => Vec::new(),
            }
        } else {
            return Ok(None);
        };
        let terms = sorted(terms);
        if terms.is_empty() {
            return Err(TopologyError::NoSegments);
        }
        let first = spread(question.claim_name, terms.len());
        return Ok(Some(Requirement { terms, first }));
    };

    let keys = cluster.csi_nodes.get(node).ok_or_else(|| TopologyError::CsiNodeMissing { node: node.to_owned() })?;
    if keys.is_empty() {
        return Err(TopologyError::NoKeys { node: node.to_owned() });
    }
    let labels = cluster.nodes.get(node).ok_or_else(|| TopologyError::NodeMissing { node: node.to_owned() })?;
    let selected = segment(labels, keys)
        .ok_or_else(|| TopologyError::LabelsMissing { node: node.to_owned(), keys: keys.clone() })?;
    let terms = if question.allowed.is_empty() {
        if question.strict { vec![selected.clone()] } else { sorted(aggregate(cluster, keys)) }
    } else {
        let allowed = sorted(flatten(question.allowed));
        if question.strict && allowed.iter().any(|term| is_subset(term, &selected)) {
            vec![selected.clone()]
        } else {
            allowed
        }
    };
    match terms.iter().position(|term| is_subset(term, &selected)) {
        Some(first) => Ok(Some(Requirement { terms, first })),
        None => Err(TopologyError::NotAllowed { node: node.to_owned(), segment: selected, allowed: terms }),
    }
}

/// The segments of all nodes that have every key.
fn aggregate(cluster: &Cluster, keys: &[String]) -> Vec<Term> {
    cluster.nodes.values().filter_map(|labels| segment(labels, keys)).collect()
}

/// A node's segment, if it has all keys.
fn segment(labels: &BTreeMap<String, String>, keys: &[String]) -> Option<Term> {
    keys.iter().map(|key| labels.get(key).map(|value| (key.clone(), value.clone()))).collect()
}

/// Whether all of `term` is in `other`.
fn is_subset(term: &Term, other: &Term) -> bool {
    term.iter().all(|(key, value)| other.get(key) == Some(value))
}

/// All combinations that a class allows: the cartesian product of the values within an entry, the union over entries.
fn flatten(allowed: &[AllowedTerm]) -> Vec<Term> {
    let mut all = Vec::new();
    for entry in allowed {
        let mut combinations: Vec<Term> = Vec::new();
        for (index, (key, values)) in entry.iter().enumerate() {
            combinations = if index == 0 {
                values.iter().map(|value| Term::from([(key.clone(), value.clone())])).collect()
            } else {
                values
                    .iter()
                    .flat_map(|value| {
                        combinations.iter().map(move |term| {
                            let mut term = term.clone();
                            term.insert(key.clone(), value.clone());
                            term
                        })
                    })
                    .collect()
            };
        }
        all.append(&mut combinations);
    }
    all
}

/// Sorted as the original sorts (shorter terms first, then by key and value), without duplicates.
fn sorted(mut terms: Vec<Term>) -> Vec<Term> {
    terms.sort_unstable_by(compare);
    terms.dedup();
    terms
}

fn compare(a: &Term, b: &Term) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.iter().cmp(b.iter()))
}

/// Index of the first preferred of `count` segments. Claims of one StatefulSet (`<claim>-<set>-<ordinal>`) start at the set's
/// hash plus the ordinal, so replicas spread, and the several claims of one replica meet in one segment.
fn spread(claim_name: &str, count: usize) -> usize {
    let (hashed, ordinal) = match claim_name.rsplit_once('-') {
        Some((base, digits)) => match digits.parse::<u32>() {
            // A sign is no part of an ordinal.
            Ok(ordinal) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                (base.rsplit_once('-').map_or(base, |(_, set)| set), ordinal)
            }
            _ => (claim_name, 0),
        },
        None => (claim_name, 0),
    };
    let start = fnv1_32(hashed.as_bytes()).wrapping_add(ordinal);
    // The remainder is below `count`, hence fits.
    usize::try_from(u64::from(start) % count.max(1) as u64).unwrap_or(0)
}

/// The 32-bit FNV-1 hash (multiply, then xor), which the original uses here.
fn fnv1_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte))
}

/// The node affinity of a volume: it is reachable from nodes in any of the segments. `None` when the driver gave none.
pub fn node_affinity(accessible: &[proto::Topology]) -> Option<VolumeNodeAffinity> {
    let terms: Vec<_> = accessible
        .iter()
        .filter(|topology| !topology.segments.is_empty())
        .map(|topology| {
            let segments: BTreeMap<_, _> = topology.segments.iter().collect();
            NodeSelectorTerm {
                match_expressions: Some(
                    segments
                        .into_iter()
                        .map(|(key, value)| NodeSelectorRequirement {
                            key: key.clone(),
                            operator: "In".to_owned(),
                            values: Some(vec![value.clone()]),
                        })
                        .collect(),
                ),
                match_fields: None,
            }
        })
        .collect();
    if terms.is_empty() {
        return None;
    }
    Some(VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: terms }) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn term(pairs: &[(&str, &str)]) -> Term {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// Nodes n0… in zones z0…, two nodes a zone.
    fn cluster(zones: usize) -> Cluster {
        let mut cluster = Cluster::default();
        for index in 0..zones * 2 {
            let name = format!("n{index}");
            let zone = format!("z{}", index / 2);
            cluster.csi_nodes.insert(name.clone(), vec!["zone".to_owned()]);
            cluster.nodes.insert(name, term(&[("zone", &zone), ("other", "x")]));
        }
        cluster
    }

    fn question<'a>(node: Option<&'a str>, allowed: &'a [AllowedTerm]) -> Question<'a> {
        Question { claim_name: "data-db-0", allowed, selected_node: node, strict: false, immediate: true }
    }

    #[test]
    fn immediate_offers_every_segment_once() {
        let found = requirement(&cluster(3), &question(None, &[])).unwrap().unwrap();
        assert_eq!(found.terms, [term(&[("zone", "z0")]), term(&[("zone", "z1")]), term(&[("zone", "z2")])]);
        let message = found.to_proto();
        assert_eq!(message.requisite.len(), 3);
        assert_eq!(message.preferred.len(), 3);
        assert_eq!(message.preferred[0], message.requisite[found.first]);
    }

    #[test]
    fn immediate_may_be_switched_off_and_needs_nodes() {
        let off = Question { immediate: false, ..question(None, &[]) };
        assert_eq!(requirement(&cluster(3), &off), Ok(None));
        assert_eq!(requirement(&Cluster::default(), &question(None, &[])), Err(TopologyError::NoSegments));
    }

    #[test]
    fn delayed_begins_with_the_selected_node() {
        let found = requirement(&cluster(3), &question(Some("n3"), &[])).unwrap().unwrap();
        assert_eq!(found.terms.len(), 3);
        assert_eq!(found.terms[found.first], term(&[("zone", "z1")]));
        let strict = Question { strict: true, ..question(Some("n3"), &[]) };
        let found = requirement(&cluster(3), &strict).unwrap().unwrap();
        assert_eq!(found.terms, [term(&[("zone", "z1")])]);
    }

    #[test]
    fn allowed_topologies_replace_the_cluster() {
        let allowed = [
            vec![
                ("zone".to_owned(), vec!["z1".to_owned(), "z0".to_owned()]),
                ("rack".to_owned(), vec!["a".to_owned(), "b".to_owned()]),
            ],
            vec![("zone".to_owned(), vec!["z1".to_owned()])],
        ];
        let found = requirement(&cluster(1), &question(None, &allowed)).unwrap().unwrap();
        assert_eq!(
            found.terms,
            [
                term(&[("zone", "z1")]),
                term(&[("rack", "a"), ("zone", "z0")]),
                term(&[("rack", "a"), ("zone", "z1")]),
                term(&[("rack", "b"), ("zone", "z0")]),
                term(&[("rack", "b"), ("zone", "z1")]),
            ]
        );
        // A node outside of what is allowed is an error in both modes.
        let allowed = [vec![("zone".to_owned(), vec!["z1".to_owned()])]];
        for strict in [false, true] {
            let q = Question { strict, ..question(Some("n0"), &allowed) };
            assert!(matches!(requirement(&cluster(2), &q), Err(TopologyError::NotAllowed { .. })));
            let q = Question { strict, ..question(Some("n2"), &allowed) };
            assert_eq!(requirement(&cluster(2), &q).unwrap().unwrap().terms, [term(&[("zone", "z1")])]);
        }
    }

    #[test]
    fn a_vanished_node_goes_back_to_the_scheduler() {
        let mut cluster = cluster(2);
        let gone = requirement(&cluster, &question(Some("n9"), &[])).unwrap_err();
        assert!(gone.reschedules(), "{gone}");
        cluster.nodes.remove("n0");
        assert!(requirement(&cluster, &question(Some("n0"), &[])).unwrap_err().reschedules());
        cluster.nodes.insert("n0".to_owned(), term(&[]));
        assert!(!requirement(&cluster, &question(Some("n0"), &[])).unwrap_err().reschedules());
        cluster.csi_nodes.insert("n0".to_owned(), Vec::new());
        assert_eq!(
            requirement(&cluster, &question(Some("n0"), &[])),
            Err(TopologyError::NoKeys { node: "n0".to_owned() })
        );
    }

    #[test]
    fn fnv1_known_answers() {
        // Published test vectors of FNV-1, 32 bits.
        assert_eq!(fnv1_32(b""), 0x811c_9dc5);
        assert_eq!(fnv1_32(b"a"), 0x050c_5d7e);
        assert_eq!(fnv1_32(b"foobar"), 0x31f0_b262);
    }

    #[test]
    fn claims_of_one_replica_meet_and_replicas_spread() {
        for count in 1..20 {
            assert_eq!(spread("data-db-1", count), spread("log-db-1", count));
            assert_eq!((spread("data-db-1", count) + 1) % count, spread("data-db-2", count) % count);
            assert_eq!(spread("db-1", count), spread("data-db-1", count));
        }
        assert_eq!(spread("db-+1", 1000), usize::try_from(fnv1_32(b"db-+1") % 1000).unwrap());
    }

    #[test]
    fn affinity_is_one_term_a_segment() {
        assert_eq!(node_affinity(&[]), None);
        assert_eq!(node_affinity(&[proto::Topology::default()]), None);
        let segments = [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())];
        let affinity = node_affinity(&[proto::Topology { segments: segments.into_iter().collect() }]).unwrap();
        let terms = affinity.required.unwrap().node_selector_terms;
        let keys: Vec<_> = terms[0].match_expressions.as_ref().unwrap().iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["a", "b"]);
    }

    proptest! {
        #[test]
        fn preferred_is_a_rotation_of_requisite(zones in 1_usize..8, node in proptest::option::of(0_usize..16), name in "[a-z]{1,4}(-[0-9]{1,3})?") {
            let cluster = cluster(zones);
            let node = node.map(|index| format!("n{}", index % (zones * 2)));
            let question = Question { claim_name: &name, ..question(node.as_deref(), &[]) };
            let found = requirement(&cluster, &question).unwrap().unwrap();
            let message = found.to_proto();
            prop_assert_eq!(message.requisite.len(), zones);
            let mut rotated = message.requisite.clone();
            rotated.rotate_left(found.first);
            prop_assert_eq!(rotated, message.preferred);
        }
    }
}
