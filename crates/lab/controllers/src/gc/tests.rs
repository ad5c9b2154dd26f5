//! The graph's decisions, without I/O.

use serde_json::{Value, json};

use super::graph::{Graph, Head, Plan, Uid};

/// A graph in which each object is named by its UID.
#[derive(Default)]
struct World {
    graph: Graph,
    revision: u64,
}

fn owner(of: &str, block: bool) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": of, "uid": of, "blockOwnerDeletion": block})
}

impl World {
    fn put_at(&mut self, key: &str, metadata: Value) -> Vec<Uid> {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
        self.revision += 1;
        let head: Head = serde_json::from_value(object).unwrap();
        self.graph.put(&key.into(), self.revision, head)
    }

    fn put(&mut self, name: &str, owners: Vec<Value>) -> Vec<Uid> {
        self.put_at(&key(name), json!({"name": name, "uid": name, "ownerReferences": owners}))
    }

    fn begin(&mut self, name: &str, owners: Vec<Value>, finalizers: &[&str]) -> Vec<Uid> {
        let metadata = json!({
            "name": name, "uid": name, "ownerReferences": owners, "finalizers": finalizers, "deletionTimestamp": "2026-01-01T00:00:00Z",
        });
        self.put_at(&key(name), metadata)
    }

    fn plan(&self, name: &str) -> Plan {
        self.graph.plan(Uid::new(name), |_, kind| kind != "Unknown")
    }
}

fn key(name: &str) -> String {
    format!("/registry/core/configmaps/default/{name}")
}

fn uids(names: &[&str]) -> Vec<Uid> {
    names.iter().map(|name| Uid::new(name)).collect()
}

fn sorted(mut uids: Vec<Uid>) -> Vec<Uid> {
    uids.sort_unstable();
    uids.dedup();
    uids
}

#[test]
fn background_deletion_follows_the_owner() {
    let mut world = World::default();
    world.put("owner", vec![]);
    assert_eq!(world.put("child", vec![owner("owner", false)]), uids(&["child"]));
    assert_eq!(world.plan("child"), Plan::Nothing);
    assert_eq!(world.graph.delete(&key("owner")), uids(&["child"]));
    assert_eq!(world.plan("child"), Plan::Delete);
    world.begin("child", vec![owner("owner", false)], &["other"]);
    assert_eq!(world.plan("child"), Plan::Nothing, "it is being deleted");
}

#[test]
fn owner_that_never_was_counts_as_gone() {
    let mut world = World::default();
    world.put("child", vec![owner("dangling", false)]);
    assert_eq!(world.plan("child"), Plan::Delete);
    // The right UID under the wrong name or kind is no owner.
    world.put("real", vec![]);
    let mut wrong = owner("real", false);
    wrong["name"] = "other".into();
    world.put("child", vec![wrong]);
    assert_eq!(world.plan("child"), Plan::Delete);
    // A kind that the server does not know cannot be looked up.
    let mut unknown = owner("somewhere", false);
    unknown["kind"] = "Unknown".into();
    world.put("child", vec![unknown]);
    assert_eq!(world.plan("child"), Plan::Nothing);
}

#[test]
fn owner_seen_to_go_is_gone_even_if_its_kind_went_too() {
    let mut world = World::default();
    world.put("owner", vec![]);
    let mut reference = owner("owner", false);
    reference["kind"] = "Unknown".into();
    world.put("child", vec![reference.clone()]);
    assert_eq!(world.plan("child"), Plan::Nothing);
    world.graph.delete(&key("owner"));
    assert_eq!(world.plan("child"), Plan::Delete);
    // What nobody refers to any more is forgotten.
    world.graph.delete(&key("child"));
    world.put("late", vec![reference]);
    assert_eq!(world.plan("late"), Plan::Nothing);
}

#[test]
fn one_remaining_owner_keeps_the_child_and_loses_the_other_reference() {
    let mut world = World::default();
    world.put("a", vec![]);
    world.put("b", vec![]);
    world.put("child", vec![owner("a", false), owner("b", false)]);
    world.graph.delete(&key("a"));
    assert_eq!(world.plan("child"), Plan::Release(uids(&["a"])));
    assert_eq!(sorted(world.put("child", vec![owner("b", false)])), sorted(uids(&["a", "child"])));
    assert_eq!(world.plan("child"), Plan::Nothing);
    world.graph.delete(&key("b"));
    assert_eq!(world.plan("child"), Plan::Delete);
}

#[test]
fn foreground_deletion_waits_for_blocking_children_only() {
    let mut world = World::default();
    world.put("owner", vec![]);
    world.put("blocks", vec![owner("owner", true)]);
    world.put("parent", vec![owner("owner", true)]);
    world.put("grandchild", vec![owner("parent", false)]);
    world.put("free", vec![owner("owner", false)]);
    let affected = world.begin("owner", vec![], &["foregroundDeletion"]);
    assert_eq!(sorted(affected), sorted(uids(&["owner", "blocks", "parent", "free"])));
    assert_eq!(world.plan("owner"), Plan::Nothing);
    assert_eq!(world.plan("blocks"), Plan::Delete);
    assert_eq!(world.plan("free"), Plan::Delete);
    assert_eq!(world.plan("parent"), Plan::DeleteForeground);
    assert!(world.graph.delete(&key("blocks")).contains(&Uid::new("owner")));
    assert_eq!(world.plan("owner"), Plan::Nothing);
    world.begin("parent", vec![owner("owner", true)], &["foregroundDeletion"]);
    assert_eq!(world.plan("parent"), Plan::Finish, "its child does not block");
    world.graph.delete(&key("parent"));
    assert_eq!(world.plan("owner"), Plan::Finish, "what does not block is not waited for");
    assert_eq!(world.plan("grandchild"), Plan::Delete);
}

#[test]
fn child_of_a_waiting_and_a_solid_owner_is_released() {
    let mut world = World::default();
    world.put("a", vec![]);
    world.put("b", vec![]);
    world.put("child", vec![owner("a", true), owner("b", true)]);
    world.begin("a", vec![], &["foregroundDeletion"]);
    assert_eq!(world.plan("child"), Plan::Release(uids(&["a"])));
    let affected = world.put("child", vec![owner("b", true)]);
    assert!(affected.contains(&Uid::new("a")));
    assert_eq!(world.plan("a"), Plan::Finish);
}

#[test]
fn circles_do_not_wait_for_themselves() {
    let mut world = World::default();
    world.begin("self", vec![owner("self", true)], &["foregroundDeletion"]);
    assert_eq!(world.plan("self"), Plan::Finish);
    world.put("a", vec![owner("b", true)]);
    world.put("b", vec![owner("a", true)]);
    world.begin("a", vec![owner("b", true)], &["foregroundDeletion"]);
    assert_eq!(world.plan("b"), Plan::DeleteForeground);
    world.begin("b", vec![owner("a", true)], &["foregroundDeletion"]);
    assert_eq!(world.plan("a"), Plan::Finish);
}

#[test]
fn orphaning_releases_all_children_then_finishes() {
    let mut world = World::default();
    world.put("owner", vec![]);
    world.put("x", vec![owner("owner", true)]);
    world.put("y", vec![owner("owner", false)]);
    world.begin("owner", vec![], &["orphan"]);
    let Plan::Orphan(children) = world.plan("owner") else { panic!("{:?}", world.plan("owner")) };
    assert_eq!(sorted(children), sorted(uids(&["x", "y"])));
    assert_eq!(world.plan("x"), Plan::Nothing, "an orphaning owner is no reason to go");
    assert!(world.put("x", vec![]).contains(&Uid::new("owner")));
    assert!(world.graph.delete(&key("y")).contains(&Uid::new("owner")));
    assert_eq!(world.plan("owner"), Plan::Orphan(vec![]));
}

#[test]
fn owners_in_other_namespaces_do_not_count() {
    let mut world = World::default();
    world.put_at("/registry/core/configmaps/elsewhere/o", json!({"name": "o", "uid": "o"}));
    world.put_at("/registry/core/namespaces//cluster", json!({"name": "cluster", "uid": "cluster"}));
    world.put("child", vec![owner("o", false)]);
    assert_eq!(world.plan("child"), Plan::Delete);
    assert_eq!(world.graph.misplaced(Uid::new("child"), |_, _| true).len(), 1);
    // Cluster-scoped owners serve everywhere.
    world.put("fine", vec![owner("cluster", false)]);
    assert_eq!(world.plan("fine"), Plan::Nothing);
    // A cluster-scoped object cannot be owned from within a namespace; it is left alone.
    world.put_at("/registry/core/nodes//n", json!({"name": "n", "uid": "n", "ownerReferences": [owner("o", false)]}));
    assert_eq!(world.plan("n"), Plan::Nothing);
    assert_eq!(world.graph.misplaced(Uid::new("n"), |_, _| true).len(), 1);
}

#[test]
fn recreated_name_is_another_owner() {
    let mut world = World::default();
    world.put_at(&key("o"), json!({"name": "o", "uid": "first"}));
    let mut first = owner("first", false);
    first["name"] = "o".into();
    world.put("child", vec![first]);
    assert_eq!(world.plan("child"), Plan::Nothing);
    let affected = world.put_at(&key("o"), json!({"name": "o", "uid": "second"}));
    assert_eq!(affected, uids(&["child"]));
    assert_eq!(world.plan("child"), Plan::Delete);
}

#[test]
fn uids_are_told_apart() {
    let a = Uid::new("01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(a, Uid::new("01234567-89AB-CDEF-0123-456789abcdef"));
    assert_ne!(a, Uid::new("01234567-89ab-cdef-0123-456789abcdee"));
    assert_ne!(Uid::new(""), Uid::new("x"));
    assert_ne!(Uid::new("not-a-uuid-but-just-as-long-as-one-is"), Uid::new("not-a-uuid-but-just-as-long-as-one-it"));
}
