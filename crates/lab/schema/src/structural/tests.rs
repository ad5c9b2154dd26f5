use super::*;
use crate::error::Reason;
use crate::{check_types, prune};
use serde_json::json;

const PATH: &str = "spec.versions[0].schema.openAPIV3Schema";

fn compiled(schema: Value) -> Schema {
    compile(&schema, PATH).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

/// The fields (below the root) and reasons of what is wrong with a schema.
fn complaints(schema: Value) -> Vec<(String, Reason)> {
    let errors = compile(&schema, PATH).expect_err("the schema has a fault");
    errors
        .into_iter()
        .map(|error| (error.field.trim_start_matches(PATH).trim_start_matches('.').to_owned(), error.reason))
        .collect()
}

fn causes(schema: &Schema, value: &Value) -> Vec<String> {
    validate(schema, &builtin().definitions, value, None).iter().map(ToString::to_string).collect()
}

fn stock(name: &str) -> Vec<Schema> {
    let text = fs_err::read_to_string(format!("{}/tests/data/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let definition: Value = serde_json::from_str(&text).unwrap();
    let versions = definition["spec"]["versions"].as_array().unwrap();
    versions.iter().map(|version| compiled(version["schema"]["openAPIV3Schema"].clone())).collect()
}

#[test]
fn stock_definitions_compile() {
    for name in [
        "snapshot.storage.k8s.io_volumesnapshots",
        "snapshot.storage.k8s.io_volumesnapshotcontents",
        "snapshot.storage.k8s.io_volumesnapshotclasses",
        "cluster.x-k8s.io_machines",
    ] {
        assert!(!stock(name).is_empty(), "{name}");
    }
    let snapshot = &stock("snapshot.storage.k8s.io_volumesnapshots")[0];
    assert!(
        !snapshot.properties["spec"].validations.is_empty()
            || !snapshot.properties["spec"].properties["source"].validations.is_empty()
    );
    let definitions = &builtin().definitions;
    let mut value = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": "s", "finalizers": ["a"], "bogus": 1}, "spec": {"source": {"persistentVolumeClaimName": "p"}, "extra": true}});
    assert_eq!(prune(snapshot, definitions, &mut value), ["metadata.bogus", "spec.extra"]);
    assert_eq!(validate(snapshot, definitions, &value, None), []);
    assert!(check_types(snapshot, definitions, &json!({"spec": []})).is_err());
    assert_eq!(causes(snapshot, &json!({"metadata": {}})), ["spec: Required value"]);
}

#[test]
fn schemas_without_a_clear_shape_are_refused() {
    assert_eq!(complaints(json!({})), [("type".into(), Reason::Required)]);
    assert_eq!(complaints(json!({"type": "string"})), [("type".into(), Reason::Invalid)]);
    let property = |schema: Value| json!({"type": "object", "properties": {"a": schema}});
    assert_eq!(complaints(property(json!({}))), [("properties[a].type".into(), Reason::Required)]);
    assert_eq!(complaints(property(json!({"type": "text"}))), [("properties[a].type".into(), Reason::NotSupported)]);
    assert_eq!(complaints(property(json!({"type": "array"}))), [("properties[a].items".into(), Reason::Required)]);
    assert_eq!(
        complaints(property(json!({"type": "string", "$ref": "x"}))),
        [("properties[a].$ref".into(), Reason::Forbidden)]
    );
    assert_eq!(
        complaints(property(json!({"type": "string", "pattern": "("}))),
        [("properties[a].pattern".into(), Reason::Invalid)]
    );
    assert_eq!(
        complaints(property(json!({"type": "string", "anyOf": [{"type": "string"}]}))),
        [("properties[a].anyOf[0].type".into(), Reason::Forbidden)]
    );
    assert_eq!(
        complaints(property(json!({"type": "object", "oneOf": [{"properties": {"b": {"minLength": 1}}}]}))),
        [("properties[a].oneOf[0].properties[b]".into(), Reason::Required)]
    );
    assert_eq!(
        complaints(property(
            json!({"type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": {"type": "string"}})
        )),
        [("properties[a].additionalProperties".into(), Reason::Forbidden)]
    );
    assert_eq!(
        complaints(
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}})
        ),
        [("properties[metadata]".into(), Reason::Forbidden)]
    );
    let list = |keys: Value, item: Value| {
        property(
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys, "items": item}),
        )
    };
    assert_eq!(
        complaints(list(json!(["k"]), json!({"type": "object", "properties": {"k": {"type": "string"}}}))),
        [("properties[a].items.properties[k].default".into(), Reason::Required)]
    );
    assert_eq!(
        complaints(list(json!(["z"]), json!({"type": "object", "properties": {"k": {"type": "string"}}}))),
        [("properties[a].x-kubernetes-list-map-keys".into(), Reason::Invalid)]
    );
    assert_eq!(
        complaints(property(json!({"type": "integer", "default": "x"}))),
        [("properties[a].default".into(), Reason::TypeInvalid)]
    );
}

#[test]
fn values_are_validated_with_the_known_messages() {
    let schema = compiled(json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"},
        "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
        "mode": {"type": "string", "enum": ["a", "b"]},
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "list": {"type": "array", "maxItems": 2, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 5}}}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "one": {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "string"}},
            "oneOf": [{"required": ["x"]}, {"required": ["y"]}]},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "when": {"type": "string", "format": "date-time"},
    }}}}));
    let spec = |spec: Value| causes(&schema, &json!({ "spec": spec }));
    assert_eq!(spec(json!({"name": "abc", "port": "http", "free": {"x": 1}, "one": {"x": ""}})), Vec::<String>::new());
    assert_eq!(spec(json!({})), ["spec.name: Required value"]);
    assert_eq!(
        spec(json!({"name": "abc", "replicas": 11})),
        ["spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"]
    );
    assert_eq!(
        spec(json!({"name": "abc", "mode": "x"})),
        [r#"spec.mode: Unsupported value: "x": supported values: "a", "b""#]
    );
    assert_eq!(
        spec(json!({"name": "A"})),
        [
            r#"spec.name: Invalid value: "A": spec.name in body should be at least 2 chars long"#,
            r#"spec.name: Invalid value: "A": spec.name in body should match '^[a-z]+$'"#
        ]
    );
    assert_eq!(spec(json!({"name": "abcde"})), ["spec.name: Too long: may not be more than 4 bytes"]);
    assert_eq!(
        spec(json!({"name": 1})),
        [r#"spec.name: Invalid value: "integer": spec.name in body must be of type string: "integer""#]
    );
    assert_eq!(
        spec(json!({"name": "abc", "list": [{"k": "a"}, {"k": "b"}, {"k": "a"}]})),
        ["spec.list: Too many: 3: must have at most 2 items", r#"spec.list[2]: Duplicate value: {"k":"a"}"#]
    );
    assert_eq!(spec(json!({"name": "abc", "set": ["a", "a"]})), [r#"spec.set[1]: Duplicate value: "a""#]);
    let one = spec(json!({"name": "abc", "one": {}}));
    assert_eq!(
        one[0],
        r#"<nil>: Invalid value: "": "spec.one" must validate one and only one schema (oneOf). Found none valid"#
    );
    assert_eq!(
        spec(json!({"name": "abc", "one": {"x": "", "y": ""}})),
        [
            r#"<nil>: Invalid value: "": "spec.one" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
        ]
    );
    assert_eq!(spec(json!({"name": "abc", "port": true})).len(), 1);
    assert_eq!(
        spec(json!({"name": "abc", "when": "now"})),
        [r#"spec.when: Invalid value: "now": spec.when in body must be of type date-time: "now""#]
    );
    // Ratcheting: what was wrong before and did not change is let pass, its neighbours are not.
    let old = json!({"spec": {"name": "A", "list": [{"k": "a", "v": 9}, {"k": "b", "v": 1}]}});
    let new = json!({"spec": {"name": "A", "list": [{"k": "b", "v": 8}, {"k": "a", "v": 9}]}});
    let errors = validate(&schema, &builtin().definitions, &new, Some(&old));
    assert_eq!(errors.iter().map(|error| error.field.as_str()).collect::<Vec<_>>(), ["spec.list[0].v"]);
}

#[test]
fn defaults_and_names() {
    let schema = compiled(json!({"type": "object", "properties": {
    "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}},
    "spec": {"type": "object", "default": {}, "properties": {
        "a": {"type": "string", "default": "x"},
        "n": {"type": "string", "nullable": true, "default": "y"},
        "l": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "integer", "default": 1}}}},
        "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"q": {"type": "boolean", "default": true}}}},
    }}}}));
    let mut value = json!({"metadata": {"name": "long"}, "spec": {"a": null, "n": null, "l": [{}], "m": {"k": {}}}});
    apply_defaults(&schema, &builtin().definitions, &mut value);
    assert_eq!(value["spec"], json!({"a": "x", "n": null, "l": [{"p": 1}], "m": {"k": {"q": true}}}));
    assert_eq!(causes(&schema, &value), ["metadata.name: Too long: may not be more than 3 bytes"]);
    let mut empty = json!({});
    apply_defaults(&schema, &builtin().definitions, &mut empty);
    assert_eq!(empty, json!({"spec": {"a": "x", "n": "y"}}));
}
