//! Bad input, restarts, limits.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{CM, JSON, Lab, MERGE};

#[tokio::test]
async fn bodies_and_objects_have_limits() {
    let lab = Lab::start().await;
    let huge = json!({"metadata": {"name": "a"}, "data": {"k": "x".repeat(3 * 1024 * 1024)}});
    lab.post(CM, &huge).await.fails(413, "RequestEntityTooLarge");
    let big = json!({"metadata": {"name": "a"}, "data": {"k": "x".repeat(1024 * 1024 + 1)}});
    lab.post(CM, &big).await.fails(422, "Invalid");
    let notes = json!({"metadata": {"name": "a", "annotations": {"k": "x".repeat(256 * 1024)}}});
    let status = lab.post(CM, &notes).await.fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "metadata.annotations");
}

#[tokio::test]
async fn nothing_that_a_client_sends_stops_the_server() {
    let lab = Lab::start().await;
    let deep = "[".repeat(10_000);
    let nested = format!("{}{}", "{\"a\":".repeat(2_000), "}".repeat(2_000));
    let bodies = [
        "",
        "null",
        "0",
        "\"x\"",
        "[]",
        "{}",
        "{\"metadata\":[]}",
        "{\"metadata\":{\"name\":{}}}",
        "{\"metadata\":{\"labels\":[]}}",
        "\u{0}",
        &deep,
        &nested,
    ];
    let paths = [
        CM,
        "/api/v1/namespaces",
        "/api/v1/namespaces/default/pods",
        "/api/v1/namespaces/default/services",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        "/apis/storage.k8s.io/v1/csidrivers",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        "/apis/authentication.k8s.io/v1/tokenreviews",
        "/api/v1/namespaces/default/bindings",
    ];
    for path in paths {
        for body in bodies {
            for content_type in [JSON, "application/yaml", "application/vnd.kubernetes.protobuf", "a/b; c"] {
                let answer = lab.send("POST", path, &[("content-type", content_type)], body.to_owned()).await;
                assert!(answer.code < 500, "POST {path} {content_type} {:.40}: {}", body, answer.text());
            }
        }
    }
    lab.config_map("a", "1").await;
    for (content_type, body) in [
        (MERGE, "null"),
        (MERGE, "[]"),
        (MERGE, "{\"metadata\":null}"),
        (MERGE, "{\"metadata\":1}"),
        (MERGE, "{\"data\":[1]}"),
        ("application/json-patch+json", "null"),
        ("application/json-patch+json", "[{}]"),
        ("application/json-patch+json", "[{\"op\":\"replace\",\"path\":\"\",\"value\":1}]"),
        ("application/strategic-merge-patch+json", "[]"),
        ("application/strategic-merge-patch+json", "{\"$patch\":\"delete\"}"),
        ("application/strategic-merge-patch+json", "{\"data\":{\"$patch\":5}}"),
        ("application/apply-patch+yaml", ": :"),
        ("application/apply-patch+yaml", "[]"),
        ("application/apply-patch+yaml", "a: *b"),
    ] {
        let answer =
            lab.send("PATCH", &format!("{CM}/a?fieldManager=m"), &[("content-type", content_type)], body).await;
        assert!(answer.code < 500, "PATCH {content_type} {body}: {}", answer.text());
    }
    for path in [
        "/api/v1/namespaces/default/configmaps/a%2Fb",
        "/api/v1/namespaces/../configmaps",
        "//",
        "/api/v1/%ff",
        "/apis/%00/v1",
        "/api/v1/namespaces/default/configmaps?limit=-1",
        "/api/v1/configmaps?labelSelector=%00",
        "/api/v1/configmaps?watch=maybe",
        "/api/v1/configmaps?timeoutSeconds=99999999999999999999",
        "/openapi/v3/..",
        "/api/v1/pods?limit=18446744073709551615",
    ] {
        let answer = lab.get(path).await;
        assert!(answer.code < 500, "{path}: {}", answer.text());
    }
    lab.get(&format!("{CM}/a")).await.expect(200);
    lab.config_map("b", "1").await;
}

#[tokio::test]
async fn raw_connections_cannot_hurt() {
    let lab = Lab::start().await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\xff\xff garbage", b""] {
        let mut stream = tokio::net::TcpStream::connect(lab.server.address()).await.expect("listening");
        stream.write_all(bytes).await.expect("sent");
        stream.shutdown().await.expect("half closed");
        let mut rest = Vec::new();
        // The server hangs up, with a TLS alert or without a word.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(20), stream.read_to_end(&mut rest))
            .await
            .expect("it hangs up");
    }
    assert_eq!(lab.get("/readyz").await.text(), "ok");
}

#[tokio::test]
async fn a_restart_keeps_objects_keys_and_revisions() {
    let lab = Lab::start().await;
    let made = lab.config_map("a", "1").await;
    lab.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crate::crd::definition()).await.expect(201);
    let (token, ca) = (lab.server.admin_token().to_owned(), lab.server.ca_pem().to_owned());
    let mut events = lab.watch(&format!("{CM}?watch=true")).await;
    events.next().await.expect("an event");
    let Lab { server, dir, .. } = lab;
    server.shutdown().await;
    assert!(events.next().await.is_none(), "a stop ends watches cleanly");

    let lab = Lab::at(dir, |_| {}).await;
    assert_eq!((lab.server.admin_token(), lab.server.ca_pem()), (&*token, &*ca));
    assert_eq!(lab.get(&format!("{CM}/a")).await.expect(200), made);
    lab.get("/apis/example.com/v1/namespaces/default/widgets").await.expect(200);
    let revision = |value: &serde_json::Value| {
        value["metadata"]["resourceVersion"].as_str().expect("text").parse::<u64>().expect("a number")
    };
    let next = lab.config_map("b", "1").await;
    assert!(revision(&next) > revision(&made));
    // A watch goes on where it was before the restart.
    let mut events = lab.watch(&format!("{CM}?watch=true&resourceVersion={}", revision(&made))).await;
    assert_eq!(events.name().await, ("ADDED".to_owned(), "b".to_owned()));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs_err::metadata(lab.server.kubeconfig_path()).expect("written").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let second =
        outrigger_lab_apiserver::Server::start(outrigger_lab_apiserver::ServerOptions::new(lab.dir.path())).await;
    assert!(second.is_err(), "one server a directory");
}

#[tokio::test]
async fn what_can_be_stored_can_be_read_listed_and_deleted_however_deep() {
    let lab = Lab::start().await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "deeps.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "deeps", "kind": "Deep"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    });
    lab.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.expect(201);
    let path = "/apis/example.com/v1/namespaces/default/deeps";
    let (mut stored, mut refused) = (0, 0);
    for depth in 100..127 {
        let spec = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let name = format!("d{depth}");
        let body = format!(
            "{{\"apiVersion\":\"example.com/v1\",\"kind\":\"Deep\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{spec}}}"
        );
        let dry = lab.send("POST", &format!("{path}?dryRun=All"), &[("content-type", JSON)], body.clone()).await.code;
        let answer = lab.send("POST", path, &[("content-type", JSON)], body).await;
        assert_eq!(dry, answer.code, "a dry run says what would happen");
        if answer.code == 201 {
            stored += 1;
            lab.get(&format!("{path}/{name}")).await.expect(200);
            let list = lab.get(&format!("{path}?labelSelector=x!%3Dy")).await.expect(200);
            assert_eq!(list["items"].as_array().expect("items").len(), 1);
            let table = lab.get_as(path, "application/json;as=Table;v=v1;g=meta.k8s.io").await;
            assert_eq!(table.code, 200);
            lab.delete(&format!("{path}/{name}")).await.expect(200);
        } else {
            refused += 1;
            let status = answer.fails(400, "BadRequest");
            assert!(status["message"].as_str().expect("text").contains("nests deeper"), "{status}");
        }
    }
    assert!(stored > 5 && refused > 5, "{stored} stored, {refused} refused");
    lab.get(path).await.expect(200);
}
