use super::*;
use crate::builtin::{Scope, builtin};
use crate::structural;

/// Every built-in resource with the usual verbs, and one custom resource.
fn served() -> Vec<ServedResource> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).into()).collect::<Vec<Box<str>>>();
    let verbs = words(&["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]);
    let mut resources: Vec<ServedResource> = builtin()
        .kinds
        .values()
        .filter(|kind| kind.scope != Scope::Subresource && !kind.list_kind.is_empty())
        .map(|kind| ServedResource {
            group: kind.group.clone(),
            version: kind.version.clone(),
            kind: kind.kind.clone(),
            list_kind: kind.list_kind.clone(),
            plural: kind.plural.clone(),
            namespaced: kind.scope == Scope::Namespaced,
            verbs: verbs.clone(),
            subresources: vec![
                Subresource { name: "status".into(), kind: None, verbs: words(&["get", "update", "patch"]) },
                Subresource {
                    name: "scale".into(),
                    kind: Some(("autoscaling".into(), "v1".into(), "Scale".into())),
                    verbs: words(&["get", "patch"]),
                },
                Subresource { name: "log".into(), kind: None, verbs: words(&["get"]) },
            ],
            source: Source::Builtin((&*kind.definition).into()),
        })
        .collect();
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1, "description": "How many."},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}},
            "port": {"x-kubernetes-int-or-string": true},
            "maybe": {"type": "string", "nullable": true, "enum": ["a", "b"]},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "any": {"type": "object", "additionalProperties": true},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string", "pattern": "^a"}}}},
        }, "x-kubernetes-validations": [{"rule": "self.size < 3", "message": "too big"}]}}});
    resources.push(ServedResource {
        group: "stable.example.com".into(),
        version: "v1".into(),
        kind: "Widget".into(),
        list_kind: "WidgetList".into(),
        plural: "widgets".into(),
        namespaced: true,
        verbs,
        subresources: Vec::new(),
        source: Source::Custom(Arc::new(structural::compile(&schema, "").unwrap())),
    });
    resources
}

/// Every `$ref` below a value leads into the document.
fn check_references(value: &Value, document: &Value) {
    match value {
        Value::Object(object) => {
            for (name, inner) in object {
                if let (true, Some(target)) = (name == "$ref", inner.as_str()) {
                    let place = target.strip_prefix("#/").unwrap();
                    let found = place.split('/').try_fold(document, |value, segment| value.get(segment));
                    assert!(found.is_some(), "{target} leads nowhere");
                }
                check_references(inner, document);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| check_references(item, document)),
        _ => {}
    }
}

#[test]
fn v2_has_what_kubectl_looks_for() {
    let document = v2(&served(), "v1.37.0");
    check_references(&document, &document);
    let pod_spec = &document["definitions"]["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(pod_spec["properties"]["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(pod_spec["properties"]["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
    assert!(pod_spec["properties"]["nodeName"]["description"].as_str().is_some_and(|text| !text.is_empty()));
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().filter_map(|parameter| parameter["name"].as_str()).collect();
    assert_eq!(names, ["pretty", "dryRun", "fieldManager", "fieldValidation", "force", "body"]);
    assert_eq!(document["definitions"]["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
    assert_eq!(
        document["definitions"]["io.k8s.api.core.v1.PodList"]["properties"]["items"]["items"]["$ref"],
        "#/definitions/io.k8s.api.core.v1.Pod"
    );
    // A custom resource: reduced where v2 cannot say it.
    let spec = &document["definitions"]["com.example.stable.v1.Widget"]["properties"]["spec"]["properties"];
    assert_eq!(spec["open"], json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    assert_eq!(spec["port"], json!({"x-kubernetes-int-or-string": true}));
    assert!(spec["maybe"].get("type").is_none());
    assert_eq!(
        document["definitions"]["com.example.stable.v1.Widget"]["properties"]["metadata"]["$ref"],
        "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    );
}

#[test]
fn v3_documents_stand_alone() {
    let resources = served();
    let documents = [("apps", "v1"), ("", "v1"), ("stable.example.com", "v1")]
        .map(|(group, version)| v3(group, version, &resources, "v1.37.0"));
    assert_eq!(documents[1].path, "api/v1");
    for document in &documents {
        let value: Value = serde_json::from_slice(&document.body).unwrap();
        check_references(&value, &value);
    }
    let custom: Value = serde_json::from_slice(&documents[2].body).unwrap();
    let spec = &custom["components"]["schemas"]["com.example.stable.v1.Widget"]["properties"]["spec"];
    assert_eq!(spec["x-kubernetes-validations"], json!([{"rule": "self.size < 3", "message": "too big"}]));
    assert_eq!(spec["properties"]["size"], json!({"type": "integer", "description": "How many.", "minimum": 1}));
    assert_eq!(spec["properties"]["maybe"], json!({"type": "string", "nullable": true, "enum": ["a", "b"]}));
    let index = v3_index(&documents);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(url, format!("/openapi/v3/apis/apps/v1?hash={}", documents[0].hash));
    assert_eq!(v3("apps", "v1", &resources, "v1.37.0").hash, documents[0].hash, "the same content has the same hash");
}

/// gnostic's messages, from its OpenAPIv2.proto: message, field number, JSON name, and how the field is read:
/// `s`tring, `b`ool, `i`nteger, `d`ouble, `any`, a message name, each with `*` when repeated; `{` before a message for
/// entries of a map; `=` when the value stands for the whole message.
const MESSAGES: &[(&str, u32, &str, &str)] = &[
    ("Document", 1, "swagger", "s"),
    ("Document", 2, "info", "Info"),
    ("Document", 8, "paths", "Paths"),
    ("Document", 9, "definitions", "Definitions"),
    ("Document", 12, "security", "SecurityRequirement*"),
    ("Document", 13, "securityDefinitions", "SecurityDefinitions"),
    ("Info", 1, "title", "s"),
    ("Info", 2, "version", "s"),
    ("Paths", 2, "", "{PathItem"),
    ("Definitions", 1, "", "{Schema"),
    ("SecurityRequirement", 1, "", "{StringArray"),
    ("StringArray", 1, "", "=s*"),
    ("SecurityDefinitions", 1, "", "{SecurityDefinitionsItem"),
    ("SecurityDefinitionsItem", 2, "", "=ApiKeySecurity"),
    ("ApiKeySecurity", 1, "type", "s"),
    ("ApiKeySecurity", 2, "name", "s"),
    ("ApiKeySecurity", 3, "in", "s"),
    ("ApiKeySecurity", 4, "description", "s"),
    ("PathItem", 2, "get", "Operation"),
    ("PathItem", 3, "put", "Operation"),
    ("PathItem", 4, "post", "Operation"),
    ("PathItem", 5, "delete", "Operation"),
    ("PathItem", 8, "patch", "Operation"),
    ("PathItem", 9, "parameters", "ParametersItem*"),
    ("Operation", 1, "tags", "s*"),
    ("Operation", 3, "description", "s"),
    ("Operation", 5, "operationId", "s"),
    ("Operation", 6, "produces", "s*"),
    ("Operation", 7, "consumes", "s*"),
    ("Operation", 8, "parameters", "ParametersItem*"),
    ("Operation", 9, "responses", "Responses"),
    ("Operation", 10, "schemes", "s*"),
    ("Operation", 13, "", "{any"),
    ("ParametersItem", 1, "", "=Parameter"),
    ("Parameter", 1, "", "=BodyParameter"),
    ("Parameter", 2, "", "=NonBodyParameter"),
    ("NonBodyParameter", 3, "", "=QueryParameterSubSchema"),
    ("NonBodyParameter", 4, "", "=PathParameterSubSchema"),
    ("BodyParameter", 2, "name", "s"),
    ("BodyParameter", 3, "in", "s"),
    ("BodyParameter", 4, "required", "b"),
    ("BodyParameter", 5, "schema", "Schema"),
    ("QueryParameterSubSchema", 2, "in", "s"),
    ("QueryParameterSubSchema", 3, "description", "s"),
    ("QueryParameterSubSchema", 4, "name", "s"),
    ("QueryParameterSubSchema", 6, "type", "s"),
    ("QueryParameterSubSchema", 20, "uniqueItems", "b"),
    ("PathParameterSubSchema", 1, "required", "b"),
    ("PathParameterSubSchema", 2, "in", "s"),
    ("PathParameterSubSchema", 3, "description", "s"),
    ("PathParameterSubSchema", 4, "name", "s"),
    ("PathParameterSubSchema", 5, "type", "s"),
    ("PathParameterSubSchema", 19, "uniqueItems", "b"),
    ("Responses", 1, "", "{ResponseValue"),
    ("ResponseValue", 1, "", "=Response"),
    ("Response", 1, "description", "s"),
    ("Response", 2, "schema", "SchemaItem"),
    ("SchemaItem", 1, "", "=Schema"),
    ("Schema", 1, "$ref", "s"),
    ("Schema", 2, "format", "s"),
    ("Schema", 4, "description", "s"),
    ("Schema", 5, "default", "any"),
    ("Schema", 9, "minimum", "d"),
    ("Schema", 13, "pattern", "s"),
    ("Schema", 19, "required", "s*"),
    ("Schema", 20, "enum", "any*"),
    ("Schema", 21, "additionalProperties", "AdditionalPropertiesItem"),
    ("Schema", 22, "type", "TypeItem"),
    ("Schema", 23, "items", "ItemsItem"),
    ("Schema", 25, "properties", "Definitions"),
    ("Schema", 31, "", "{any"),
    ("AdditionalPropertiesItem", 1, "", "=Schema"),
    ("TypeItem", 1, "", "=s"),
    ("ItemsItem", 1, "", "=Schema"),
];

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

/// A field's value by the letter or message name of the table.
fn read(kind: &str, wire: u64, bytes: &mut &[u8]) -> Value {
    match (kind, wire) {
        ("b", 0) => (varint(bytes) == 1).into(),
        ("i", 0) => varint(bytes).into(),
        ("d", 1) => {
            let number = f64::from_le_bytes(take(bytes, 8).try_into().unwrap());
            // The JSON form writes whole numbers without a fraction.
            serde_json::from_str(&number.to_string()).unwrap()
        }
        (_, 2) => {
            let length = usize::try_from(varint(bytes)).unwrap();
            let inner = take(bytes, length);
            match kind {
                "s" => std::str::from_utf8(inner).unwrap().into(),
                "any" => {
                    let mut inner = inner;
                    assert_eq!(varint(&mut inner), 2 << 3 | 2);
                    let length = usize::try_from(varint(&mut inner)).unwrap();
                    serde_json::from_slice(take(&mut inner, length)).unwrap()
                }
                message => decode(message, inner),
            }
        }
        other => panic!("{other:?} does not fit"),
    }
}

fn decode(message: &str, mut bytes: &[u8]) -> Value {
    let mut whole = if message == "StringArray" { json!([]) } else { json!({}) };
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let (_, _, name, kind) = MESSAGES
            .iter()
            .find(|(known, tag, ..)| *known == message && u64::from(*tag) == key >> 3)
            .unwrap_or_else(|| panic!("{message} has no field {}", key >> 3));
        let single = kind.trim_start_matches(['=', '{']).trim_end_matches('*');
        if kind.starts_with('{') {
            let length = usize::try_from(varint(&mut bytes)).unwrap();
            let mut entry = take(&mut bytes, length);
            let mut name = Value::Null;
            while !entry.is_empty() {
                match varint(&mut entry) >> 3 {
                    1 => name = read("s", 2, &mut entry),
                    _ => whole[name.as_str().unwrap()] = read(single, 2, &mut entry),
                }
            }
            continue;
        }
        let value = read(single, key & 7, &mut bytes);
        let place = if kind.starts_with('=') { &mut whole } else { &mut whole[*name] };
        if kind.ends_with('*') {
            if place.is_null() {
                *place = json!([]);
            }
            place.as_array_mut().unwrap().push(value);
        } else {
            *place = value;
        }
    }
    whole
}

#[test]
fn the_protobuf_form_says_the_same_as_the_json_form() {
    let document = v2(&served(), "v1.37.0");
    let bytes = v2_protobuf(&document);
    let decoded = decode("Document", &bytes);
    for section in ["info", "security", "securityDefinitions"] {
        assert_eq!(decoded[section], document[section], "{section}");
    }
    for section in ["definitions", "paths"] {
        let (left, right) = (decoded[section].as_object().unwrap(), document[section].as_object().unwrap());
        assert_eq!(left.len(), right.len());
        for (name, value) in right {
            assert_eq!(left[name], *value, "{name}");
        }
    }
}
