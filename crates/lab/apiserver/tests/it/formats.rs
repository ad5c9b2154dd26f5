//! Discovery, OpenAPI, tables, metadata-only, YAML and protobuf.

use serde_json::json;

use crate::lab::{CM, Lab};

const TABLE: &str =
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

#[tokio::test]
async fn legacy_and_aggregated_discovery_tell_the_same() {
    let lab = Lab::start().await;
    let versions = lab.get("/api").await.expect(200);
    assert_eq!((&versions["kind"], &versions["versions"]), (&json!("APIVersions"), &json!(["v1"])));
    let groups = lab.get("/apis").await.expect(200);
    assert_eq!(groups["groups"][0]["name"], "apps");
    assert_eq!(groups["groups"][0]["preferredVersion"]["groupVersion"], "apps/v1");
    assert_eq!(lab.get("/apis/apps").await.expect(200)["kind"], "APIGroup");
    let mut legacy = Vec::new();
    let mut paths = vec![("/api/v1".to_owned(), String::new())];
    for group in groups["groups"].as_array().expect("groups") {
        let name = group["name"].as_str().expect("a name");
        for version in group["versions"].as_array().expect("versions") {
            paths.push((format!("/apis/{}", version["groupVersion"].as_str().expect("text")), name.to_owned()));
        }
    }
    for (path, group) in paths {
        let list = lab.get(&path).await.expect(200);
        for resource in list["resources"].as_array().expect("resources") {
            legacy.push(format!("{group}:{}:{}", resource["name"].as_str().expect("a name"), resource["verbs"]));
        }
    }
    for version in ["v2", "v2beta1"] {
        let accept =
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList,application/json");
        let mut aggregated = Vec::new();
        for path in ["/api", "/apis"] {
            let answer = lab.get_as(path, &accept).await;
            assert!(
                answer.headers["content-type"]
                    .to_str()
                    .expect("text")
                    .contains(&format!("v={version};as=APIGroupDiscoveryList"))
            );
            let document = answer.expect(200);
            for group in document["items"].as_array().expect("items") {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                for resource in group["versions"][0]["resources"].as_array().expect("resources") {
                    let plural = resource["resource"].as_str().expect("a name");
                    aggregated.push(format!("{name}:{plural}:{}", resource["verbs"]));
                    for sub in resource["subresources"].as_array().into_iter().flatten() {
                        aggregated.push(format!(
                            "{name}:{plural}/{}:{}",
                            sub["subresource"].as_str().expect("a name"),
                            sub["verbs"]
                        ));
                    }
                }
            }
        }
        aggregated.sort();
        legacy.sort();
        assert_eq!(aggregated, legacy);
    }
    // Unknown forms fall through to the plain one.
    let answer = lab
        .get_as("/apis", "application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList,application/json")
        .await;
    assert_eq!(answer.expect(200)["kind"], "APIGroupList");
}

#[tokio::test]
async fn openapi_documents_have_etags_and_the_parameters_kubectl_looks_for() {
    let lab = Lab::start().await;
    let answer = lab.get_as("/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf").await;
    assert_eq!(answer.code, 200);
    assert!(answer.body.len() > 100_000, "{} bytes", answer.body.len());
    let etag = answer.headers["etag"].to_str().expect("text").to_owned();
    let accept = ("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf");
    let again = lab.send("GET", "/openapi/v2", &[accept, ("if-none-match", &etag)], "").await;
    assert_eq!((again.code, again.body.len()), (304, 0));
    let document = lab.get_as("/openapi/v2", "application/json").await.expect(200);
    assert_eq!(document["swagger"], "2.0");
    let index = lab.get("/openapi/v3").await.expect(200);
    let paths = index["paths"].as_object().expect("paths");
    assert!(paths.len() > 15);
    for entry in paths.values() {
        let url = entry["serverRelativeURL"].as_str().expect("a URL");
        let document = lab.get(url).await.expect(200);
        assert!(document["openapi"].as_str().expect("a version").starts_with("3."));
    }
    let core = lab.get("/openapi/v3/api/v1").await.expect(200);
    let patch = &core["paths"]["/api/v1/namespaces/{namespace}/configmaps/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "ConfigMap");
    assert!(
        patch["parameters"]
            .as_array()
            .expect("parameters")
            .iter()
            .any(|parameter| parameter["name"] == "fieldValidation"),
        "{patch}"
    );
    assert_eq!(lab.get("/openapi/v3/apis/none/v1").await.code, 404);
}

#[tokio::test]
async fn every_served_kind_is_known_to_the_schema_and_lists() {
    let lab = Lab::start().await;
    let registry = lab.server.api().registry();
    for kind in registry.kinds() {
        let known = outrigger_lab_schema::builtin().kind(&kind.group, &kind.version, &kind.kind);
        assert!(known.is_some(), "{} {}", kind.api_version, kind.kind);
        if kind.rules.virtual_kind {
            continue;
        }
        let base = if kind.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", kind.api_version) };
        let path = format!("{base}/{}", kind.plural);
        assert_eq!(lab.get(&path).await.expect(200)["kind"], *kind.list_kind);
        let table = lab.get_as(&path, TABLE).await.expect(200);
        assert_eq!(table["kind"], "Table");
        assert!(!table["columnDefinitions"].as_array().expect("columns").is_empty(), "{path}");
    }
}

#[tokio::test]
async fn tables_lists_and_watches_carry_columns_rows_and_metadata() {
    let lab = Lab::start().await;
    lab.config_map("a", "1").await;
    let table = lab.get_as(CM, TABLE).await.expect(200);
    assert_eq!(table["apiVersion"], "meta.k8s.io/v1");
    let columns: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .expect("columns")
        .iter()
        .map(|column| column["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(columns, ["Name", "Data", "Age"]);
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["cells"][1], 1);
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let whole = lab.get_as(&format!("{CM}?includeObject=Object"), TABLE).await.expect(200);
    assert_eq!(whole["rows"][0]["object"]["data"]["k"], "1");
    let one = lab.get_as(&format!("{CM}/a"), TABLE).await.expect(200);
    assert_eq!(one["rows"].as_array().expect("rows").len(), 1);
    lab.get_as(&format!("{CM}?includeObject=Some"), TABLE).await.fails(400, "BadRequest");

    let revision = table["metadata"]["resourceVersion"].as_str().expect("a revision");
    let mut events = lab.watch_as(&format!("{CM}?watch=true&resourceVersion={revision}"), TABLE).await;
    lab.config_map("b", "1").await;
    lab.config_map("c", "1").await;
    let first = events.next().await.expect("an event");
    assert_eq!((&first["type"], &first["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
    assert_eq!(first["object"]["columnDefinitions"].as_array().expect("columns").len(), 3);
    assert_eq!(first["object"]["rows"][0]["cells"][0], "b");
    let second = events.next().await.expect("an event");
    assert!(second["object"]["columnDefinitions"].as_array().is_none_or(Vec::is_empty));
    assert_eq!(second["object"]["rows"][0]["cells"][0], "c");
}

#[tokio::test]
async fn metadata_only_answers() {
    let lab = Lab::start().await;
    lab.config_map("a", "1").await;
    let list = lab.get_as(CM, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").await.expect(200);
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
    assert!(list["items"][0].get("data").is_none());
    let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    assert_eq!(lab.get_as(&format!("{CM}/a"), accept).await.expect(200)["kind"], "PartialObjectMetadata");
    let mut events = lab.watch_as(&format!("{CM}?watch=true"), accept).await;
    let event = events.next().await.expect("an event");
    assert_eq!((&event["object"]["kind"], event["object"].get("data")), (&json!("PartialObjectMetadata"), None));
}

#[tokio::test]
async fn yaml_and_protobuf_bodies() {
    let lab = Lab::start().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: text\ndata:\n  k: 'text'\n";
    let made = lab.send("POST", CM, &[("content-type", "application/yaml")], yaml).await.expect(201);
    assert_eq!(made["data"]["k"], "text");
    let answer = lab.get_as(&format!("{CM}/text"), "application/yaml").await;
    assert_eq!(answer.headers["content-type"], "application/yaml");
    assert!(answer.text().contains("kind: ConfigMap"), "{}", answer.text());
    lab.get_as(CM, "application/vnd.kubernetes.protobuf").await.fails(406, "NotAcceptable");

    // A Lease as client-go encodes it: envelope, type, then the message.
    let field = |number: u8, bytes: &[u8]| {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("short")];
        out.extend_from_slice(bytes);
        out
    };
    let metadata = field(1, &field(1, b"l"));
    let spec = field(2, &[field(1, b"me"), vec![2 << 3, 15]].concat());
    let type_meta = [field(1, b"coordination.k8s.io/v1"), field(2, b"Lease")].concat();
    let unknown = [field(1, &type_meta), field(2, &[metadata, spec].concat())].concat();
    let body = [b"k8s\0".to_vec(), unknown].concat();
    let headers = [
        ("content-type", "application/vnd.kubernetes.protobuf"),
        ("accept", "application/vnd.kubernetes.protobuf,application/json"),
    ];
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = lab.send("POST", leases, &headers, body).await.expect(201);
    assert_eq!(lease["spec"], json!({"holderIdentity": "me", "leaseDurationSeconds": 15}));
    lab.send("POST", leases, &headers, "k8s\0garbage").await.fails(400, "BadRequest");
}
