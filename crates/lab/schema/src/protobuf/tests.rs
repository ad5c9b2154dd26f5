//! Bodies are written here by hand, as Go's encoder writes them, so that reading is not tested against itself.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
    out
}

fn field(tag: u64, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [varint(tag << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn int(tag: u64, value: i64) -> Vec<u8> {
    [varint(tag << 3), varint(value.cast_unsigned())].concat()
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = [field(1, api_version), field(2, kind)].concat();
    [MAGIC.to_vec(), field(1, type_meta), field(2, raw), field(3, ""), field(4, "")].concat()
}

#[test]
fn a_lease_as_client_go_writes_it() {
    let meta = [field(1, "leader"), field(3, "kube-system"), field(8, [])].concat();
    let spec = [
        field(1, "me"),
        int(2, 15),
        field(3, [int(1, 1_700_000_000), int(2, 123_456_000)].concat()),
        field(4, [int(1, 1_700_000_000), int(2, 0)].concat()),
        int(5, 0),
    ]
    .concat();
    let lease = decode(&body("coordination.k8s.io/v1", "Lease", &[field(1, meta), field(2, spec)].concat())).unwrap();
    assert_eq!(
        lease,
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "leader", "namespace": "kube-system"},
            "spec": {"holderIdentity": "me", "leaseDurationSeconds": 15, "acquireTime": "2023-11-14T22:13:20.123456Z",
                "renewTime": "2023-11-14T22:13:20.000000Z", "leaseTransitions": 0}})
    );
}

#[test]
fn a_volume_inlines_its_source_and_drops_unset_zeros() {
    let csi =
        [field(1, "d"), field(2, "h"), int(3, 0), field(4, ""), field(5, [field(1, "k"), field(2, "v")].concat())]
            .concat();
    let source = field(22, csi);
    let capacity = [field(1, "storage"), field(2, field(1, "1Gi"))].concat();
    let spec = [
        field(1, capacity),
        field(2, source),
        field(3, "ReadWriteOnce"),
        field(5, "Delete"),
        field(6, ""),
        field(8, ""),
    ]
    .concat();
    let pv =
        decode(&body("v1", "PersistentVolume", &[field(1, field(1, "pv")), field(2, spec), field(3, [])].concat()))
            .unwrap();
    assert_eq!(
        pv,
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"},
            "spec": {"capacity": {"storage": "1Gi"}, "csi": {"driver": "d", "volumeHandle": "h", "volumeAttributes": {"k": "v"}},
                "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Delete", "volumeMode": ""},
            "status": {}})
    );
}

#[test]
fn zeros_behind_pointers_stay() {
    let spec = int(1, 0);
    let set = decode(&body("apps/v1", "ReplicaSet", &field(2, spec))).unwrap();
    assert_eq!(set["spec"], json!({"replicas": 0}));
    let driver = [int(1, 0), int(2, 0)].concat();
    let driver = decode(&body("storage.k8s.io/v1", "CSIDriver", &field(2, driver))).unwrap();
    assert_eq!(driver["spec"], json!({"attachRequired": false, "podInfoOnMount": false}));
    // PodSpec.hostNetwork is no pointer; dnsPolicy neither.
    let pod = decode(&body("v1", "Pod", &field(2, [int(11, 0), field(6, "")].concat()))).unwrap();
    assert_eq!(pod["spec"], json!({}));
}

#[test]
fn delete_options_come_in_any_group() {
    let raw = [int(1, 0), field(2, [field(1, "uid-1")].concat()), field(4, "Foreground"), field(5, "All")].concat();
    for group in ["v1", "storage.k8s.io/v1", "meta.k8s.io/v1"] {
        let options = decode(&body(group, "DeleteOptions", &raw)).unwrap();
        assert_eq!(
            options,
            json!({"apiVersion": group, "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": "uid-1"},
                "propagationPolicy": "Foreground", "dryRun": ["All"]})
        );
    }
}

#[test]
fn special_forms() {
    // A probe with its handler inlined and a named port; a service with a numbered one.
    let http = [field(1, "/ok"), field(2, [int(1, 1), int(2, 0), field(3, "web")].concat())].concat();
    let container = [field(1, "c"), field(10, field(1, field(2, http)))].concat();
    let pod = decode(&body("v1", "Pod", &field(2, field(2, container)))).unwrap();
    assert_eq!(
        pod["spec"]["containers"][0],
        json!({"name": "c", "livenessProbe": {"httpGet": {"path": "/ok", "port": "web"}}})
    );
    let secret = decode(&body("v1", "Secret", &field(2, [field(1, "k"), field(2, [0xff, 0])].concat()))).unwrap();
    assert_eq!(secret["data"], json!({"k": "/wA="}));
    let revision =
        decode(&body("apps/v1", "ControllerRevision", &[field(2, field(1, br#"{"a":[1]}"#)), int(3, 1)].concat()))
            .unwrap();
    assert_eq!(revision["data"], json!({"a": [1]}));
    // A review carries a user's extra values in a list wrapper.
    let extra = [field(1, "scopes"), field(2, [field(1, "a"), field(1, "b")].concat())].concat();
    let review = decode(&body(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        &field(2, [field(3, "u"), field(5, extra)].concat()),
    ))
    .unwrap();
    assert_eq!(review["spec"], json!({"user": "u", "extra": {"scopes": ["a", "b"]}}));
    let entry = [field(1, "m"), field(7, field(1, br#"{"f:spec":{}}"#))].concat();
    let map = decode(&body("v1", "ConfigMap", &field(1, field(17, entry)))).unwrap();
    assert_eq!(map["metadata"]["managedFields"], json!([{"manager": "m", "fieldsV1": {"f:spec": {}}}]));
}

#[test]
fn a_custom_resource_definition_with_its_schema() {
    let inner = [field(5, "string"), field(4, "")].concat();
    let entry = [field(1, "a"), field(2, inner)].concat();
    let schema =
        [field(5, "object"), field(29, entry), field(30, int(1, 1)), field(8, field(1, br#"{"a":"b"}"#))].concat();
    let version = [field(1, "v1"), int(2, 1), int(3, 0), field(4, field(1, schema))].concat();
    let definition =
        decode(&body("apiextensions.k8s.io/v1", "CustomResourceDefinition", &field(2, field(7, version)))).unwrap();
    assert_eq!(
        definition["spec"]["versions"][0],
        json!({"name": "v1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"a": {"type": "string"}}, "additionalProperties": true, "default": {"a": "b"}}}})
    );
}

#[test]
fn errors_say_what_is_wrong() {
    assert_eq!(decode(b"{}"), Err(Error::NotProtobuf));
    let unknown = decode(&body("example.org/v1", "Foo", &[])).unwrap_err();
    assert_eq!(unknown.to_string(), "no protobuf message is known for example.org/v1, kind Foo");
    let cut = decode(&body("v1", "Pod", &[0x0a, 0x05, 0x01])).unwrap_err();
    assert!(cut.to_string().contains("io.k8s.api.core.v1.Pod at byte 2"), "{cut}");
    // A schema within itself, deeper than any stack should go.
    let mut schema = field(5, "object");
    for _ in 0..400 {
        schema = field(28, schema);
    }
    let version = field(4, field(1, schema));
    let deep =
        decode(&body("apiextensions.k8s.io/v1", "CustomResourceDefinition", &field(2, field(7, version)))).unwrap_err();
    assert!(deep.to_string().contains("nested too deeply"), "{deep}");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(kind in 0_usize..6, raw in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (group, kind) = [("v1", "Pod"), ("v1", "PersistentVolume"), ("coordination.k8s.io/v1", "Lease"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"), ("v1", "DeleteOptions"), ("resource.k8s.io/v1", "ResourceSlice")][kind];
        let _ = decode(&body(group, kind, &raw));
        let _ = decode(&[MAGIC, &raw].concat());
    }

    #[test]
    fn a_flipped_byte_does_not_either(at in 0_usize..200, byte: u8) {
        let container = [field(1, "c"), field(2, "image"), field(10, field(1, field(2, field(2, int(2, 80)))))].concat();
        let meta = [field(1, "name"), field(8, [int(1, 1_700_000_000), int(2, 5)].concat()), field(11, [field(1, "a"), field(2, "b")].concat())].concat();
        let mut bytes = body("v1", "Pod", &[field(1, meta), field(2, [field(2, container), int(4, 30)].concat())].concat());
        let length = bytes.len();
        bytes[at % length] = byte;
        let _ = decode(&bytes);
    }
}
