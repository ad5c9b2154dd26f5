use super::*;
use outrigger_lab_schema::{ListKind, Type, builtin, structural};
use proptest::prelude::*;
use serde_json::json;
use std::sync::LazyLock;

static NOTHING: LazyLock<Set> = LazyLock::new(Set::new);

/// A writer of a built-in kind; `second` is the second of the minute it writes at.
fn writer<'a>(gvk: (&str, &str, &str), api_version: &'a str, manager: &'a str, second: i8) -> Write<'a> {
    let kind = builtin().kind(gvk.0, gvk.1, gvk.2).unwrap_or_else(|| panic!("{gvk:?} is built in"));
    Write {
        schema: &kind.schema,
        definitions: &builtin().definitions,
        api_version,
        manager,
        subresource: "",
        now: format!("2026-01-01T00:00:{second:02}Z").parse().expect("stamp"),
        reset: &NOTHING,
    }
}

fn config_map(manager: &str, second: i8) -> Write<'_> {
    writer(("", "v1", "ConfigMap"), "v1", manager, second)
}

fn deployment(manager: &str, second: i8) -> Write<'_> {
    writer(("apps", "v1", "Deployment"), "apps/v1", manager, second)
}

fn cm(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn applied(live: Option<&Value>, config: &Value, write: &Write<'_>) -> Value {
    apply(live, config, false, write).unwrap_or_else(|e| panic!("{e}"))
}

fn managed(object: &Value) -> &Value {
    &object["metadata"]["managedFields"]
}

fn fields<'v>(object: &'v Value, manager: &str) -> &'v Value {
    managed(object)
        .as_array()
        .and_then(|all| all.iter().find(|e| e["manager"] == manager))
        .map_or(&Value::Null, |e| &e["fieldsV1"])
}

#[test]
fn applying_creates() {
    let object = applied(None, &cm(json!({"a": "1"})), &config_map("me", 1));
    assert_eq!(
        object,
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"},
            "metadata": {"name": "c", "managedFields": [{
                "manager": "me", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-01T00:00:01Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:a": {}}},
            }]},
        })
    );
}

#[test]
fn applying_again_changes_nothing() {
    let object = applied(None, &cm(json!({"a": "1"})), &config_map("me", 1));
    assert_eq!(applied(Some(&object), &cm(json!({"a": "1"})), &config_map("me", 30)), object);
}

#[test]
fn fields_no_longer_applied_go() {
    let object = applied(None, &cm(json!({"a": "1", "b": "2"})), &config_map("me", 1));
    let object = applied(Some(&object), &cm(json!({"b": "2"})), &config_map("me", 2));
    assert_eq!(object["data"], json!({"b": "2"}));
    assert_eq!(managed(&object)[0]["time"], "2026-01-01T00:00:02Z");
    let bare = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let object = applied(Some(&object), &bare, &config_map("me", 3));
    assert_eq!(object, bare);
}

#[test]
fn same_values_are_shared_and_stay() {
    let object = applied(None, &cm(json!({"a": "1", "b": "2"})), &config_map("me", 1));
    let object = applied(Some(&object), &cm(json!({"a": "1"})), &config_map("you", 2));
    assert_eq!(fields(&object, "you"), &json!({"f:data": {"f:a": {}}}));
    let object = applied(Some(&object), &cm(json!({})), &config_map("me", 3));
    assert_eq!(object["data"], json!({"a": "1"}));
    assert_eq!(fields(&object, "me"), &json!({"f:data": {}}));
}

#[test]
fn other_values_conflict_until_forced() {
    let object = applied(None, &cm(json!({"a": "1", "b": "1", "c": "1"})), &config_map("me", 1));
    let theirs = cm(json!({"a": "2", "b": "1"}));
    let error = apply(Some(&object), &theirs, false, &config_map("you", 2)).expect_err("conflict");
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"me\": .data.a");
    let ApplyError::Conflicts(conflicts) = error else { panic!("conflicts expected") };
    assert_eq!(
        conflicts,
        [Conflict { manager: "\"me\"".into(), field: ".data.a".into(), message: "conflict with \"me\"".into() }]
    );
    let object = apply(Some(&object), &theirs, true, &config_map("you", 2)).expect("forced");
    assert_eq!(object["data"], json!({"a": "2", "b": "1", "c": "1"}));
    assert_eq!(fields(&object, "me"), &json!({"f:data": {"f:b": {}, "f:c": {}}}));
    assert_eq!(fields(&object, "you"), &json!({"f:data": {"f:a": {}, "f:b": {}}}));
}

#[test]
fn plain_writes_own_what_they_change() {
    let mut object = cm(json!({"a": "1", "b": "1"}));
    object["metadata"]["labels"] = json!({"x": "y"});
    update(None, &mut object, &config_map("kubectl-create", 1));
    assert_eq!(
        managed(&object),
        &json!([{
            "manager": "kubectl-create", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:01Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {".": {}, "f:a": {}, "f:b": {}}, "f:metadata": {"f:labels": {".": {}, "f:x": {}}}},
        }])
    );
    let mut edited = object.clone();
    edited["data"] = json!({"a": "2", "c": "1"});
    update(Some(&object), &mut edited, &config_map("kubectl-edit", 2));
    assert_eq!(fields(&edited, "kubectl-create")["f:data"], json!({}));
    assert_eq!(fields(&edited, "kubectl-edit"), &json!({"f:data": {"f:a": {}, "f:c": {}}}));
    let error = apply(Some(&edited), &cm(json!({"a": "3", "c": "4", "d": "5"})), false, &config_map("me", 3))
        .expect_err("conflict");
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-edit\" using v1:\n- .data.a\n- .data.c"
    );
    // Nothing changed: nothing is recorded, the time stays.
    let mut same = edited.clone();
    update(Some(&edited), &mut same, &config_map("kubectl-edit", 50));
    assert_eq!(same, edited);
    // A client that drops managedFields does not clear them.
    let mut ignorant = cm(json!({"a": "2", "c": "1"}));
    ignorant["metadata"]["labels"] = json!({"x": "y"});
    update(Some(&edited), &mut ignorant, &config_map("old", 50));
    assert_eq!(ignorant, edited);
}

#[test]
fn an_update_takes_from_the_applier_who_then_conflicts() {
    let object = applied(None, &cm(json!({"a": "1"})), &config_map("me", 1));
    let mut edited = object.clone();
    edited["data"]["a"] = json!("2");
    update(Some(&object), &mut edited, &config_map("kubectl-client-side-apply", 2));
    assert_eq!(managed(&edited).as_array().map(Vec::len), Some(1));
    let error = apply(Some(&edited), &cm(json!({"a": "1"})), false, &config_map("me", 3)).expect_err("conflict");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: .data.a"
    );
}

fn deploy(containers: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": {
            "metadata": {"labels": {"app": "d"}}, "spec": {"containers": containers}}},
    })
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|v| v["name"].as_str()).collect()
}

#[test]
fn keyed_lists_are_owned_by_element() {
    let mine = deploy(json!([{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]}]));
    let object = applied(None, &mine, &deployment("me", 1));
    assert_eq!(
        fields(&object, "me")["f:spec"]["f:template"]["f:spec"]["f:containers"],
        json!({"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:image": {}, "f:ports": {
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}})
    );
    // The selector is atomic.
    assert_eq!(fields(&object, "me")["f:spec"]["f:selector"], json!({}));
    // The server defaults the protocol; the key is the same.
    let mut defaulted = object.clone();
    defaulted["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"] = json!("TCP");
    assert_eq!(applied(Some(&defaulted), &mine, &deployment("me", 2)), defaulted);
    // Somebody else's element stays, where it was put.
    let theirs = deploy(json!([{"name": "b", "image": "b:1"}]));
    let object = applied(Some(&object), &theirs, &deployment("you", 3));
    assert_eq!(names(&object["spec"]["template"]["spec"]["containers"]), ["a", "b"]);
    let mine = deploy(json!([{"name": "z", "image": "z"}]));
    let object = applied(Some(&object), &mine, &deployment("me", 4));
    assert_eq!(names(&object["spec"]["template"]["spec"]["containers"]), ["b", "z"]);
}

#[test]
fn services_default_the_protocol_of_their_keys() {
    let service = |port: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [port]}});
    let write = |manager: &'static str, second| writer(("", "v1", "Service"), "v1", manager, second);
    let object = applied(None, &service(json!({"port": 53, "protocol": "TCP"})), &write("me", 1));
    let both = applied(Some(&object), &service(json!({"port": 53, "protocol": "UDP"})), &write("you", 2));
    assert_eq!(both["spec"]["ports"], json!([{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]));
    let error = apply(Some(&both), &service(json!({"port": 53, "name": "dns"})), false, &write("new", 3));
    assert_eq!(error.expect("a new name is nobody's")["spec"]["ports"][0]["name"], "dns");
}

#[test]
fn long_lists_take_no_quadratic_time() {
    let containers = |from: usize| deploy((from..from + 4_000).map(|i| json!({"name": i.to_string()})).collect());
    let object = applied(None, &containers(0), &deployment("me", 1));
    let object = applied(Some(&object), &containers(2_000), &deployment("you", 2));
    assert_eq!(object["spec"]["template"]["spec"]["containers"].as_array().map(Vec::len), Some(6_000));
}

#[test]
fn objects_left_empty_go_unless_stated() {
    let labelled = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "1"}}});
    let bare = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    let object = applied(None, &labelled, &config_map("me", 1));
    assert_eq!(applied(Some(&object), &bare, &config_map("me", 2)), bare);
    let stated = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {}}});
    assert_eq!(applied(Some(&object), &stated, &config_map("me", 2))["metadata"]["labels"], json!({}));
    // Nulls count as not said.
    let null =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": null}, "data": null});
    assert_eq!(applied(Some(&object), &null, &config_map("me", 2)), bare);
}

#[test]
fn applied_order_wins() {
    let list = |names: &[&str]| deploy(names.iter().map(|n| json!({"name": n, "image": "i"})).collect());
    let object = applied(None, &list(&["a", "b", "c"]), &deployment("me", 1));
    let theirs = applied(Some(&object), &list(&["x", "a"]), &deployment("you", 2));
    let containers = |o: &Value| names(&o["spec"]["template"]["spec"]["containers"]).join("");
    assert_eq!(containers(&theirs), "xabc");
    assert_eq!(containers(&applied(Some(&theirs), &list(&["c", "b", "a"]), &deployment("me", 3))), "xcba");
}

#[test]
fn quantities_compare_by_amount() {
    let with = |cpu: &str| deploy(json!([{"name": "a", "image": "i", "resources": {"requests": {"cpu": cpu}}}]));
    let object = applied(None, &with("1"), &deployment("me", 1));
    assert_eq!(applied(Some(&object), &with("1000m"), &deployment("me", 2)), object);
    assert!(apply(Some(&object), &with("1000m"), false, &deployment("you", 2)).is_ok());
    assert!(apply(Some(&object), &with("1001m"), false, &deployment("you", 2)).is_err());
}

#[test]
fn metadata_has_sets_and_keyed_lists() {
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": "c", "creationTimestamp": null, "finalizers": ["e.io/a"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}],
    }});
    let object = applied(None, &config, &config_map("me", 1));
    assert_eq!(
        fields(&object, "me"),
        &json!({"f:metadata": {"f:finalizers": {"v:\"e.io/a\"": {}}, "f:ownerReferences": {"k:{\"uid\":\"u\"}": {}}}})
    );
}

#[test]
fn managers_are_named_by_the_request_or_the_client() {
    assert_eq!(manager_name("me", "kubectl/v1.32"), "me");
    assert_eq!(manager_name("", "kubectl/v1.32.4 (linux/amd64)"), "kubectl");
    assert_eq!(manager_name("", "a\nb"), "ab");
    assert_eq!(manager_name("", ""), "unknown");
    assert_eq!(manager_name("", &"é".repeat(100)).len(), MANAGER_MAX);
}

#[test]
fn configurations_that_do_not_fit() {
    let bad = |config: &Value, part: &str| {
        let error = apply(None, config, false, &deployment("me", 1)).expect_err(part);
        assert!(matches!(&error, ApplyError::BadRequest(text) if text.contains(part)), "{error}");
    };
    bad(&json!([]), "must be an object");
    bad(&json!({"metadata": {"managedFields": []}}), "metadata.managedFields must be nil");
    bad(&json!({"spec": {"replcas": 1}}), ".spec.replcas: field not declared in schema");
    bad(&json!({"spec": {"replicas": "1"}}), ".spec.replicas: expected integer, got \"1\"");
    bad(&json!({"spec": {"template": []}}), ".spec.template: expected object, got []");
    bad(&deploy(json!([{"image": "i"}])), "omits key field \"name\"");
    bad(&deploy(json!([{"name": "a"}, {"name": "a"}])), "containers[name=\"a\"]: duplicate entries for key");
    bad(&deploy(json!(["a"])), "element that's not a map");
    let two = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "a": 1, "b": 2});
    assert_eq!(
        apply(None, &two, false, &deployment("me", 1)).expect_err("unknown fields").to_string(),
        "failed to create typed patch object (/d; apps/v1, Kind=Deployment): errors:\n  \
         .a: field not declared in schema\n  .b: field not declared in schema"
    );
}

#[test]
fn ownership_can_be_reset() {
    let object = applied(None, &cm(json!({"a": "1"})), &config_map("me", 1));
    for reset in [json!([]), json!([{}])] {
        let mut cleared = object.clone();
        cleared["metadata"]["managedFields"] = reset;
        update(Some(&object), &mut cleared, &config_map("you", 2));
        assert_eq!(cleared, cm(json!({"a": "1"})));
        // What the same write changes is recorded anew.
        cleared["metadata"]["managedFields"] = json!([{}]);
        cleared["data"]["b"] = json!("2");
        update(Some(&object), &mut cleared, &config_map("you", 2));
        assert_eq!(names_of_managers(&cleared), ["you"]);
    }
    // Null, and what cannot be read, count as not said.
    let mut null = object.clone();
    null["metadata"]["managedFields"] = Value::Null;
    update(Some(&object), &mut null, &config_map("you", 2));
    assert_eq!(null, object);
    let mut broken = object.clone();
    broken["metadata"]["managedFields"][0]["fieldsV1"] = json!({"bad": {}});
    update(Some(&object), &mut broken, &config_map("you", 2));
    assert_eq!(broken, object);
}

fn names_of_managers(object: &Value) -> Vec<&str> {
    managed(object).as_array().into_iter().flatten().filter_map(|e| e["manager"].as_str()).collect()
}

#[test]
fn the_oldest_updaters_fold() {
    let mut object = cm(json!({"k": "0"}));
    update(None, &mut object, &config_map("m00", 0));
    for i in 1..14_i8 {
        let mut next = object.clone();
        next["data"][format!("k{i}")] = json!("1");
        let manager = format!("m{i:02}");
        update(Some(&object), &mut next, &config_map(&manager, i));
        object = next;
    }
    let managers = names_of_managers(&object);
    assert_eq!(managers.len(), MAX_UPDATE_MANAGERS);
    assert_eq!(managers[0], ANCIENT_CHANGES);
    assert_eq!(managers[9], "m13");
    assert_eq!(fields(&object, ANCIENT_CHANGES)["f:data"].as_object().map(Map::len), Some(6));
}

#[test]
fn subresources_are_managers_of_their_own() {
    let main_reset = Set::of_fields([&["status"][..]]);
    let status_reset = Set::of_fields([&["spec"][..], &["metadata"][..]]);
    let mut object = deploy(json!([]));
    object["status"] = json!({"replicas": 9});
    update(None, &mut object, &Write { reset: &main_reset, ..deployment("m", 1) });
    assert!(fields(&object, "m").get("f:status").is_none());
    let mut written = object.clone();
    written["status"] = json!({"replicas": 1});
    written["metadata"]["managedFields"] = json!([{}]);
    let through_status = Write { subresource: "status", reset: &status_reset, ..deployment("m", 2) };
    update(Some(&object), &mut written, &through_status);
    assert_eq!(managed(&written)[1]["subresource"], "status");
    assert_eq!(managed(&written)[1]["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
    assert_eq!(managed(&written)[0], managed(&object)[0]);
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 7}, "status": {"replicas": 2}});
    let error = apply(Some(&written), &config, false, &Write { manager: "x", ..through_status }).expect_err("conflict");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"m\" with subresource \"status\" using apps/v1: .status.replicas"
    );
    let forced = apply(Some(&written), &config, true, &Write { manager: "x", ..through_status }).expect("forced");
    assert_eq!(forced["spec"], written["spec"]);
    assert_eq!(fields(&forced, "x"), &json!({"f:status": {"f:replicas": {}}}));
}

#[test]
fn unrecorded_objects_belong_to_before_first_apply() {
    let live = cm(json!({"a": "1", "b": "1"}));
    let object = applied(Some(&live), &cm(json!({"a": "1"})), &config_map("me", 1));
    assert_eq!(names_of_managers(&object), ["me", BEFORE_FIRST_APPLY]);
    assert_eq!(fields(&object, BEFORE_FIRST_APPLY), &json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}));
    assert!(apply(Some(&live), &cm(json!({"a": "2"})), false, &config_map("me", 1)).is_err());
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    let mut live = cm(json!({"a": "1"}));
    let last = cm(json!({"a": "1"})).to_string();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: last});
    update(None, &mut live, &config_map("kubectl-client-side-apply", 1));
    let config = cm(json!({"a": "2"}));
    assert!(apply(Some(&live), &config, false, &config_map("me", 2)).is_err());
    let object = applied(Some(&live), &config, &config_map("kubectl", 2));
    assert_eq!(object["data"], json!({"a": "2"}));
    assert_eq!(object["metadata"]["annotations"][LAST_APPLIED], json!(format!("{config}\n")));
    // Not what somebody else has changed since.
    let mut edited = live.clone();
    edited["data"]["a"] = json!("9");
    update(Some(&live), &mut edited, &config_map("editor", 2));
    assert!(apply(Some(&edited), &config, false, &config_map("kubectl", 3)).is_err());
}

#[test]
fn custom_resources() {
    let schema = structural::compile(
        &json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "plain": {"type": "array", "items": {"type": "string"}},
                "atomic": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
                "rules": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["host"],
                    "items": {"type": "object", "required": ["host"], "properties": {"host": {"type": "string"}, "n": {"type": "integer"}}}},
            }},
        }}),
        "spec.validation.openAPIV3Schema",
    )
    .unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(schema.properties["spec"].properties["set"].list, ListKind::Set);
    assert_eq!(schema.ty, Type::Object);
    let definitions = Definitions::new();
    let write = |manager: &'static str| Write {
        schema: &schema,
        definitions: &definitions,
        api_version: "e.io/v1",
        ..config_map(manager, 1)
    };
    let config = |spec: Value| json!({"apiVersion": "e.io/v1", "kind": "E", "metadata": {"name": "e", "labels": {"l": "1"}}, "spec": spec});
    let object = applied(
        None,
        &config(json!({
            "free": {"a": {"b": [1, 2]}}, "set": ["x"], "plain": ["p"], "atomic": {"k": "v"}, "rules": [{"host": "h", "n": 1}],
        })),
        &write("me"),
    );
    assert_eq!(
        fields(&object, "me"),
        &json!({"f:metadata": {"f:labels": {"f:l": {}}}, "f:spec": {
            "f:free": {"f:a": {".": {}, "f:b": {}}},
            "f:set": {"v:\"x\"": {}},
            "f:plain": {}, "f:atomic": {},
            "f:rules": {"k:{\"host\":\"h\"}": {".": {}, "f:host": {}, "f:n": {}}},
        }})
    );
    let theirs = config(json!({"free": {"c": 1}, "set": ["y"], "rules": [{"host": "g"}]}));
    let object = applied(Some(&object), &theirs, &write("you"));
    assert_eq!(object["spec"]["set"], json!(["x", "y"]));
    assert_eq!(object["spec"]["free"], json!({"a": {"b": [1, 2]}, "c": 1}));
    for (spec, field) in [
        (json!({"plain": ["p", "q"]}), ".spec.plain"),
        (json!({"free": {"a": {"b": [1]}}}), ".spec.free.a.b"),
        (json!({"atomic": {"z": "v"}}), ".spec.atomic"),
        (json!({"rules": [{"host": "h", "n": 2}]}), ".spec.rules[host=\"h\"].n"),
    ] {
        let Err(ApplyError::Conflicts(conflicts)) = apply(Some(&object), &config(spec), false, &write("you")) else {
            panic!("{field} should conflict");
        };
        assert_eq!(conflicts[0].field, field);
    }
    let error = apply(None, &config(json!({"unknown": 1})), false, &write("me")).expect_err("unknown");
    assert!(error.to_string().contains(".spec.unknown: field not declared in schema"), "{error}");
}

type Data = std::collections::BTreeMap<String, u8>;

fn data() -> impl Strategy<Value = Data> {
    proptest::collection::btree_map("[a-e]", 0_u8..3, 0..5)
}

fn cm_of(data: &Data) -> Value {
    cm(data.iter().map(|(k, v)| (k.clone(), Value::from(v.to_string()))).collect::<Map<_, _>>().into())
}

fn containers_of(data: &Data) -> Value {
    deploy(data.iter().map(|(k, v)| json!({"name": k, "image": v.to_string()})).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn applying_twice_is_a_no_op(before in data(), mine in data(), theirs in data()) {
        for (make, write) in [(cm_of as fn(&Data) -> Value, config_map as fn(&'static str, i8) -> Write<'static>), (containers_of, deployment)] {
            let object = applied(None, &make(&before), &write("me", 1));
            let object = apply(Some(&object), &make(&theirs), true, &write("you", 2)).expect("forced");
            let once = apply(Some(&object), &make(&mine), true, &write("me", 3)).expect("forced");
            prop_assert_eq!(&applied(Some(&once), &make(&mine), &write("me", 4)), &once);
        }
    }

    #[test]
    fn disjoint_appliers_leave_each_other_alone(mine in data(), theirs in data()) {
        let theirs: Data = theirs.into_iter().map(|(k, v)| (format!("x{k}"), v)).collect();
        let object = applied(None, &cm_of(&mine), &config_map("me", 1));
        let both = applied(Some(&object), &cm_of(&theirs), &config_map("you", 2));
        prop_assert_eq!(fields(&both, "me"), fields(&object, "me"));
        for (k, v) in &mine {
            prop_assert_eq!(&both["data"][k], &json!(v.to_string()));
        }
        // And leaving takes away exactly what one brought.
        let alone = applied(Some(&both), &cm_of(&Data::new()), &config_map("you", 3));
        prop_assert_eq!(fields(&alone, "me"), fields(&object, "me"));
        for k in theirs.keys() {
            prop_assert!(alone["data"].get(k).is_none());
        }
    }

    #[test]
    fn conflicts_exactly_where_values_differ(mine in data(), theirs in data()) {
        let mut object = cm_of(&mine);
        update(None, &mut object, &config_map("writer", 1));
        let differ: Vec<String> =
            theirs.iter().filter(|(k, v)| mine.get(*k).is_some_and(|m| m != *v)).map(|(k, _)| format!(".data.{k}")).collect();
        match apply(Some(&object), &cm_of(&theirs), false, &config_map("me", 2)) {
            Ok(_) => prop_assert!(differ.is_empty()),
            Err(ApplyError::Conflicts(conflicts)) => {
                prop_assert_eq!(conflicts.into_iter().map(|c| c.field).collect::<Vec<_>>(), differ);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn what_is_dropped_goes_and_nothing_else(first in data(), second in data(), others in data()) {
        let mut object = applied(None, &cm_of(&first), &config_map("me", 1));
        let before = object.clone();
        for (k, v) in &others {
            object["data"][k] = json!(v.to_string());
        }
        update(Some(&before), &mut object, &config_map("editor", 2));
        let after = apply(Some(&object), &cm_of(&second), true, &config_map("me", 3)).expect("forced");
        for (k, v) in &second {
            prop_assert_eq!(&after["data"][k], &json!(v.to_string()));
        }
        for k in first.keys().filter(|k| !second.contains_key(*k)) {
            let kept = others.get(k).filter(|v| first.get(k) != Some(*v));
            prop_assert_eq!(after["data"].get(k).cloned(), kept.map(|v| json!(v.to_string())));
        }
    }
}
