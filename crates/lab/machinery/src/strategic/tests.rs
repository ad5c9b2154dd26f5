use super::*;
use outrigger_lab_schema::{PatchStrategy, Type, builtin};
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;

fn object(fields: impl IntoIterator<Item = (&'static str, Schema)>) -> Schema {
    Schema {
        ty: Type::Object,
        properties: fields.into_iter().map(|(k, v)| (k.into(), Arc::new(v))).collect(),
        ..Schema::default()
    }
}

fn list(items: Schema, key: Option<&str>) -> Schema {
    Schema {
        ty: Type::Array,
        items: Some(Arc::new(items)),
        patch: PatchStrategy { merge: true, merge_key: key.map(Into::into), retain_keys: false },
        ..Schema::default()
    }
}

fn atomic() -> Schema {
    Schema { ty: Type::Array, items: Some(Arc::new(Schema::default())), ..Schema::default() }
}

/// A little of a Pod, with one definition behind a reference.
fn pod() -> (Schema, Definitions) {
    let mut definitions = Definitions::new();
    let container = object([
        ("name", Schema::default()),
        ("image", Schema::default()),
        ("env", list(object([("name", Schema::default()), ("value", Schema::default())]), Some("name"))),
        ("args", atomic()),
    ]);
    definitions.insert("Container", container);
    let spec = object([
        ("containers", list(Schema::reference("Container"), Some("name"))),
        ("tolerations", atomic()),
        ("volumes", list(object([("name", Schema::default())]), Some("name"))),
        ("nodeSelector", Schema { ty: Type::Object, additional: Some(Arc::default()), ..Schema::default() }),
    ]);
    let metadata = object([("finalizers", list(Schema::default(), None))]);
    (object([("metadata", metadata), ("spec", spec)]), definitions)
}

fn patched(live: &Value, patch: &Value) -> Result<Value, PatchError> {
    let (schema, definitions) = pod();
    apply(&schema, &definitions, live, patch)
}

/// Applies a patch to `{"spec": live}` and gives the spec back.
fn spec(live: &Value, patch: &Value) -> Value {
    patched(&json!({"spec": live}), &json!({"spec": patch})).unwrap_or_else(|e| panic!("{e}"))["spec"].clone()
}

#[test]
fn objects_merge_and_null_removes() {
    let live = json!({"nodeSelector": {"a": "1", "b": "2"}, "x": {"y": 1, "z": [1]}});
    assert_eq!(
        spec(&live, &json!({"nodeSelector": {"a": null, "c": "3"}, "x": {"z": [2], "n": null}, "gone": null})),
        json!({"nodeSelector": {"b": "2", "c": "3"}, "x": {"y": 1, "z": [2]}})
    );
}

#[test]
fn keyed_lists_merge_by_key() {
    let live = json!({"containers": [{"name": "a", "image": "a:1", "args": ["x"]}, {"name": "b", "image": "b:1"}]});
    assert_eq!(
        spec(&live, &json!({"containers": [{"name": "b", "image": "b:2", "env": [{"name": "E", "value": "1"}]}]})),
        json!({"containers": [
            {"name": "a", "image": "a:1", "args": ["x"]},
            {"name": "b", "image": "b:2", "env": [{"name": "E", "value": "1"}]},
        ]})
    );
    // New elements come first when no order is given.
    assert_eq!(
        spec(&live, &json!({"containers": [{"name": "c", "image": null, "args": ["y"]}]}))["containers"],
        json!([{"name": "c", "args": ["y"]}, {"name": "a", "image": "a:1", "args": ["x"]}, {"name": "b", "image": "b:1"}])
    );
    // Lists inside elements follow their own strategy; args has none.
    assert_eq!(
        spec(&live, &json!({"containers": [{"name": "a", "args": ["z"]}]}))["containers"][0],
        json!({"name": "a", "image": "a:1", "args": ["z"]})
    );
}

#[test]
fn element_directives() {
    let live = json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
    assert_eq!(
        spec(&live, &json!({"containers": [{"name": "b", "$patch": "delete"}, {"name": "c", "image": "i"}]})),
        json!({"containers": [{"name": "a"}, {"name": "c", "image": "i"}]})
    );
    assert_eq!(
        spec(&live, &json!({"containers": [{"$patch": "replace"}, {"name": "z"}]})),
        json!({"containers": [{"name": "z"}]})
    );
    assert_eq!(
        spec(&json!({}), &json!({"containers": [{"name": "b", "$patch": "delete"}]})),
        json!({"containers": []})
    );
}

#[test]
fn object_directives() {
    let live = json!({"nodeSelector": {"a": "1"}, "x": {"y": 1}});
    assert_eq!(
        spec(&live, &json!({"nodeSelector": {"$patch": "replace", "b": "2"}, "x": {"$patch": "delete"}})),
        json!({"nodeSelector": {"b": "2"}, "x": {}})
    );
    assert_eq!(spec(&live, &json!({"x": {"$patch": "merge", "z": 2}}))["x"], json!({"y": 1, "z": 2}));
    assert!(matches!(patched(&json!({}), &json!({"$patch": "frob"})), Err(PatchError::BadRequest(_))));
}

#[test]
fn retain_keys_drops_the_rest() {
    let live = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    assert_eq!(
        spec(
            &live,
            &json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]})
        ),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})
    );
    let broken = json!({"spec": {"$retainKeys": ["a"], "b": 1}});
    assert!(matches!(patched(&json!({"spec": {}}), &broken), Err(PatchError::BadRequest(_))));
}

#[test]
fn set_element_order() {
    let live = json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "server"}, {"name": "c"}]});
    let patch = json!({
        "$setElementOrder/containers": [{"name": "c"}, {"name": "new"}, {"name": "a"}],
        "containers": [{"name": "new", "image": "i"}],
    });
    let names: Vec<_> = spec(&live, &patch)["containers"]
        .as_array()
        .expect("list")
        .iter()
        .map(|c| c["name"].as_str().expect("name").to_owned())
        .collect();
    // The named ones in the order given; b and server stay before c, which the server has after them.
    assert_eq!(names, ["b", "server", "c", "new", "a"]);
    // The order alone, and on a list that is not there.
    let order = json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]});
    assert_eq!(spec(&json!({"containers": [{"name": "a"}, {"name": "b"}]}), &order)["containers"][0]["name"], "b");
    assert_eq!(spec(&json!({}), &order), json!({}));
    // What kubectl apply sends to add a list.
    let patch = json!({
        "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
        "containers": [{"name": "a"}, {"name": "b"}],
    });
    assert_eq!(spec(&json!({}), &patch), json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let wrong = json!({"spec": {
        "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
        "containers": [{"name": "b"}, {"name": "a"}],
    }});
    assert!(matches!(patched(&json!({"spec": {}}), &wrong), Err(PatchError::BadRequest(_))));
}

#[test]
fn scalar_sets() {
    let live = json!({"metadata": {"finalizers": ["a", "b"]}});
    let finalizers = |patch: Value| {
        patched(&live, &json!({"metadata": patch})).unwrap_or_else(|e| panic!("{e}"))["metadata"]["finalizers"].clone()
    };
    assert_eq!(finalizers(json!({"finalizers": ["c", "a"]})), json!(["c", "a", "b"]));
    assert_eq!(finalizers(json!({"$deleteFromPrimitiveList/finalizers": ["a", "x"]})), json!(["b"]));
    assert_eq!(
        finalizers(json!({
            "$deleteFromPrimitiveList/finalizers": ["a"],
            "$setElementOrder/finalizers": ["b", "c"],
            "finalizers": ["c"],
        })),
        json!(["b", "c"])
    );
    assert_eq!(finalizers(json!({"finalizers": null})), Value::Null);
}

#[test]
fn lists_without_strategy_are_replaced() {
    let live = json!({"tolerations": [{"key": "a"}, {"key": "b"}]});
    assert_eq!(spec(&live, &json!({"tolerations": [{"key": "c"}]})), json!({"tolerations": [{"key": "c"}]}));
}

#[test]
fn a_missing_merge_key_is_an_error() {
    let error = patched(&json!({}), &json!({"spec": {"containers": [{"image": "x"}]}}));
    // Nothing to merge with: the element is taken as it is and left to validation.
    assert!(error.is_ok());
    let live = json!({"spec": {"containers": [{"name": "a"}]}});
    let error = patched(&live, &json!({"spec": {"containers": [{"image": "x"}]}})).expect_err("no key");
    assert_eq!(error, bad(r#"map: {"image":"x"} does not contain declared merge key: name"#));
    assert!(patched(&live, &json!({"spec": {"containers": ["x"]}})).is_err());
    assert!(patched(&live, &json!([])).is_err());
}

/// Patches an object of a built-in kind.
fn built_in(kind: (&str, &str, &str), live: &Value, patch: &Value) -> Value {
    let kind = builtin().kind(kind.0, kind.1, kind.2).unwrap_or_else(|| panic!("{kind:?} is built in"));
    apply(&kind.schema, &builtin().definitions, live, patch).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn built_in_kinds_know_their_keys() {
    let pod = json!({
        "metadata": {"finalizers": ["a"], "ownerReferences": [{"uid": "1", "name": "x"}]},
        "spec": {
            "containers": [{
                "name": "c", "image": "i",
                "env": [{"name": "E", "value": "1"}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "volumeMounts": [{"mountPath": "/m", "name": "v"}],
                "args": ["a", "b"],
            }],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "tolerations": [{"key": "t"}],
        },
        "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "r"}]},
    });
    let patch = json!({
        "metadata": {"finalizers": ["b"], "ownerReferences": [{"uid": "1", "$patch": "delete"}]},
        "spec": {
            "containers": [{
                "name": "c",
                "env": [{"name": "E", "value": "2"}],
                "ports": [{"containerPort": 80, "name": "http"}],
                "volumeMounts": [{"mountPath": "/m", "readOnly": true}],
                "args": ["c"],
            }],
            "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}],
            "tolerations": [{"key": "u"}],
        },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    assert_eq!(
        built_in(("", "v1", "Pod"), &pod, &patch),
        json!({
            "metadata": {"finalizers": ["b", "a"], "ownerReferences": []},
            "spec": {
                "containers": [{
                    "name": "c", "image": "i",
                    "env": [{"name": "E", "value": "2"}],
                    "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}],
                    "volumeMounts": [{"mountPath": "/m", "name": "v", "readOnly": true}],
                    "args": ["c"],
                }],
                "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
                "tolerations": [{"key": "u"}],
            },
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "r"}]},
        })
    );
    assert_eq!(
        built_in(
            ("", "v1", "Service"),
            &json!({"spec": {"ports": [{"port": 80, "nodePort": 30080}]}}),
            &json!({"spec": {"ports": [{"port": 80, "name": "http"}]}}),
        ),
        json!({"spec": {"ports": [{"port": 80, "nodePort": 30080, "name": "http"}]}})
    );
}

#[test]
fn long_lists_take_no_quadratic_time() {
    let containers = |from: usize| (from..from + 20_000).map(|i| json!({"name": i.to_string()})).collect::<Value>();
    let live = json!({"containers": containers(0)});
    let patch = json!({"containers": containers(10_000), "$setElementOrder/containers": containers(10_000)});
    assert_eq!(spec(&live, &patch)["containers"].as_array().map(Vec::len), Some(30_000));
}

fn elements() -> impl Strategy<Value = Vec<(u8, u8)>> {
    proptest::collection::btree_map(0_u8..8, any::<u8>(), 0..8).prop_map(|m| m.into_iter().collect())
}

fn containers(elements: &[(u8, u8)]) -> Value {
    elements.iter().map(|(name, image)| json!({"name": name.to_string(), "image": image})).collect()
}

proptest! {
    #[test]
    fn merging_is_idempotent_and_keyed(live in elements(), patch in elements()) {
        let live = json!({"containers": containers(&live)});
        let patch = json!({"containers": containers(&patch)});
        let once = spec(&live, &patch);
        prop_assert_eq!(&spec(&once, &patch), &once);
        for wanted in patch["containers"].as_array().expect("list") {
            prop_assert!(once["containers"].as_array().expect("list").contains(wanted));
        }
        let names: BTreeSet<_> =
            once["containers"].as_array().expect("list").iter().map(|c| c["name"].to_string()).collect();
        prop_assert_eq!(names.len(), once["containers"].as_array().expect("list").len());
    }

    #[test]
    fn set_element_order_wins(live in elements(), order in Just((0_u8..8).collect::<Vec<_>>()).prop_shuffle()) {
        let order: Vec<_> = order.iter().map(|n| json!({"name": n.to_string()})).collect();
        let merged = spec(&json!({"containers": containers(&live)}), &json!({"$setElementOrder/containers": order}));
        let places: Vec<_> = merged["containers"]
            .as_array()
            .expect("list")
            .iter()
            .map(|c| order.iter().position(|o| o["name"] == c["name"]))
            .collect();
        prop_assert!(places.is_sorted());
    }

    #[test]
    fn an_empty_patch_changes_nothing(live in elements()) {
        let live = json!({"containers": containers(&live)});
        prop_assert_eq!(spec(&live, &json!({})), live);
    }
}
