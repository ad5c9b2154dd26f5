//! Create, read, replace, patch: codes, reasons, details, what is kept and what is not.

use serde_json::{Value, json};

use crate::lab::{CM, JSON, JSON_PATCH, Lab, MERGE, STRATEGIC};

#[tokio::test]
async fn create_fills_in_metadata_and_ignores_what_is_not_the_clients() {
    let lab = Lab::start().await;
    let body = json!({
        "metadata": {"name": "a", "uid": "mine", "creationTimestamp": "2000-01-01T00:00:00Z", "deletionTimestamp": "2000-01-01T00:00:00Z", "generation": 7},
        "data": {"k": "v"},
    });
    let object = lab.post(CM, &body).await.expect(201);
    assert_eq!((&object["apiVersion"], &object["kind"]), (&json!("v1"), &json!("ConfigMap")));
    let metadata = &object["metadata"];
    assert_eq!(metadata["uid"].as_str().expect("uid").len(), 36);
    assert!(metadata["creationTimestamp"].as_str().expect("time") > "2020");
    assert!(metadata["resourceVersion"].as_str().expect("revision").parse::<u64>().is_ok());
    assert!(metadata.get("deletionTimestamp").is_none());
    assert!(metadata.get("generation").is_none(), "ConfigMaps have no generation");
    assert_eq!(lab.get(&format!("{CM}/a")).await.expect(200), object);

    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Failed"}});
    let pod = lab.post("/api/v1/namespaces/default/pods", &pod).await.expect(201);
    assert_eq!(pod["status"]["phase"], "Pending", "a create does not write status");
    assert_eq!(pod["metadata"]["generation"], 1);
}

#[tokio::test]
async fn refusals_have_the_codes_reasons_and_details_that_clients_test() {
    let lab = Lab::start().await;
    lab.config_map("a", "1").await;
    let status = lab.get(&format!("{CM}/none")).await.fails(404, "NotFound");
    assert_eq!(status["details"], json!({"name": "none", "kind": "configmaps"}));
    assert_eq!(status["message"], "configmaps \"none\" not found");
    let status = lab.get("/apis/apps/v1/namespaces/default/deployments/x").await.fails(404, "NotFound");
    assert_eq!(status["message"], "deployments.apps \"x\" not found");
    assert_eq!(status["details"]["group"], "apps");

    lab.post(CM, &json!({"metadata": {"name": "a"}})).await.fails(409, "AlreadyExists");
    let status = lab
        .post("/api/v1/namespaces/nowhere/configmaps", &json!({"metadata": {"name": "a"}}))
        .await
        .fails(404, "NotFound");
    assert_eq!(status["details"]["kind"], "namespaces");
    lab.post(CM, &json!({"metadata": {"name": "b", "resourceVersion": "5"}})).await.fails(400, "BadRequest");
    let status = lab.post(CM, &json!({"data": {}})).await.fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "metadata.name");
    assert_eq!(status["details"]["kind"], "ConfigMap");
    lab.post(CM, &json!({"metadata": {"name": "b", "namespace": "kube-system"}})).await.fails(400, "BadRequest");
    lab.post(CM, &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "b"}}))
        .await
        .fails(400, "BadRequest");
    lab.post(CM, &json!({"metadata": {"name": "b"}, "data": "text"})).await.fails(400, "BadRequest");
    lab.post(CM, &json!([])).await.fails(400, "BadRequest");
    lab.send("POST", CM, &[("content-type", JSON)], "{").await.fails(400, "BadRequest");
    lab.send("POST", CM, &[("content-type", "application/cbor")], "{}").await.fails(415, "UnsupportedMediaType");
    for name in ["UPPER", "a/b", "-a", "a..b", &"a".repeat(254)] {
        let status = lab.post(CM, &json!({"metadata": {"name": name}})).await;
        assert_eq!(status.code, 422, "{name}: {}", status.text());
    }
    lab.put(&format!("{CM}/none"), &json!({"metadata": {"name": "none"}})).await.fails(404, "NotFound");
    lab.put(&format!("{CM}/a"), &json!({"metadata": {"name": "b"}})).await.fails(400, "BadRequest");
    lab.patch(&format!("{CM}/none"), MERGE, &json!({})).await.fails(404, "NotFound");
    lab.delete(&format!("{CM}/none")).await.fails(404, "NotFound");

    let answer = lab.get("/apis/nothing.example.com/v1/things").await;
    assert_eq!((answer.code, answer.text()), (404, "404 page not found\n"));
    let status = lab.get("/api/v1/namespaces/default/things").await.fails(404, "NotFound");
    assert_eq!(status["message"], "the server could not find the requested resource");
    lab.send("DELETE", "/api/v1/namespaces", &[], "").await.fails(405, "MethodNotAllowed");
    lab.post(&format!("{CM}/a"), &json!({})).await.fails(405, "MethodNotAllowed");
    lab.get_as(CM, "application/json;as=Nothing;v=v1;g=meta.k8s.io").await.fails(406, "NotAcceptable");
}

#[tokio::test]
async fn replace_checks_revision_and_uid() {
    let lab = Lab::start().await;
    let first = lab.config_map("a", "1").await;
    let path = format!("{CM}/a");
    let mut second = first.clone();
    second["data"]["k"] = json!("2");
    let second = lab.put(&path, &second).await.expect(200);
    assert_ne!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    lab.put(&path, &first).await.fails(409, "Conflict");
    let mut other = second.clone();
    other["metadata"]["uid"] = json!("00000000-0000-0000-0000-000000000000");
    lab.put(&path, &other).await.fails(409, "Conflict");
    // Without a revision most kinds are overwritten, storage kinds are not.
    lab.put(&path, &json!({"metadata": {"name": "a"}, "data": {"k": "3"}})).await.expect(200);
    let drivers = "/apis/storage.k8s.io/v1/csidrivers";
    lab.post(drivers, &json!({"metadata": {"name": "d"}, "spec": {}})).await.expect(201);
    let status =
        lab.put(&format!("{drivers}/d"), &json!({"metadata": {"name": "d"}, "spec": {}})).await.fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "metadata.resourceVersion");
    // Leases come into being by PUT.
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me", "leaseDurationSeconds": 15}});
    lab.put("/apis/coordination.k8s.io/v1/namespaces/default/leases/l", &lease).await.expect(201);
}

#[tokio::test]
async fn a_write_that_changes_nothing_is_not_one() {
    let lab = Lab::start().await;
    let object = lab.config_map("a", "1").await;
    let revision = &object["metadata"]["resourceVersion"];
    let path = format!("{CM}/a");
    assert_eq!(&lab.put(&path, &object).await.expect(200)["metadata"]["resourceVersion"], revision);
    for (content_type, patch) in [
        (MERGE, json!({"data": {"k": "1"}})),
        (STRATEGIC, json!({"data": {"k": "1"}})),
        (JSON_PATCH, json!([{"op": "replace", "path": "/data/k", "value": "1"}])),
    ] {
        assert_eq!(&lab.patch(&path, content_type, &patch).await.expect(200)["metadata"]["resourceVersion"], revision);
    }
    let mut events = lab.watch(&format!("{CM}?watch=true&resourceVersion={}", revision.as_str().expect("text"))).await;
    lab.patch(&path, MERGE, &json!({"data": {"k": "2"}})).await.expect(200);
    let event = events.next().await.expect("the first change");
    assert_eq!(event["object"]["data"]["k"], "2");
}

#[tokio::test]
async fn generation_follows_the_spec() {
    let lab = Lab::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    });
    let created = lab.post(deployments, &deployment).await.expect(201);
    assert_eq!(created["metadata"]["generation"], 1);
    assert_eq!(created["spec"]["replicas"], 1);
    let path = format!("{deployments}/d");
    let generation = |object: Value| object["metadata"]["generation"].as_i64().expect("a number");
    assert_eq!(generation(lab.patch(&path, MERGE, &json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200)), 1);
    assert_eq!(
        generation(lab.patch(&path, MERGE, &json!({"metadata": {"annotations": {"x": "y"}}})).await.expect(200)),
        2
    );
    assert_eq!(generation(lab.patch(&path, MERGE, &json!({"spec": {"replicas": 3}})).await.expect(200)), 3);
    assert_eq!(
        generation(lab.patch(&format!("{path}/status"), MERGE, &json!({"status": {"replicas": 3}})).await.expect(200)),
        3
    );
    let scale = lab.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!(3), &json!("a=b"))
    );
    assert_eq!(
        lab.patch(&format!("{path}/scale"), MERGE, &json!({"spec": {"replicas": 5}})).await.expect(200)["spec"]["replicas"],
        5
    );
    assert_eq!(generation(lab.get(&path).await.expect(200)), 4);
    lab.patch(&format!("{path}/scale"), MERGE, &json!({"spec": {"replicas": -1}})).await.fails(422, "Invalid");
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let lab = Lab::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = lab
        .post(pods, &json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}))
        .await
        .expect(201);
    let mut wanted = pod.clone();
    wanted["status"]["phase"] = json!("Running");
    wanted["metadata"]["labels"] = json!({"x": "y"});
    let main = lab.put(&format!("{pods}/p"), &wanted).await.expect(200);
    assert_eq!((&main["status"]["phase"], &main["metadata"]["labels"]["x"]), (&json!("Pending"), &json!("y")));
    let mut wanted = main.clone();
    wanted["status"]["phase"] = json!("Running");
    wanted["spec"]["containers"][0]["image"] = json!("other");
    let status = lab.put(&format!("{pods}/p/status"), &wanted).await.expect(200);
    assert_eq!(
        (&status["status"]["phase"], &status["spec"]["containers"][0]["image"]),
        (&json!("Running"), &json!("i"))
    );
}

#[tokio::test]
async fn patches_that_cannot_be_applied_say_so() {
    let lab = Lab::start().await;
    lab.config_map("a", "1").await;
    let path = format!("{CM}/a");
    lab.patch(&path, JSON_PATCH, &json!([{"op": "test", "path": "/data/k", "value": "no"}]))
        .await
        .fails(422, "Invalid");
    lab.patch(&path, JSON_PATCH, &json!([{"op": "remove", "path": "/data/none"}])).await.fails(422, "Invalid");
    lab.patch(&path, JSON_PATCH, &json!({"op": "remove"})).await.fails(400, "BadRequest");
    lab.patch(&path, MERGE, &json!({"metadata": {"resourceVersion": "1"}})).await.fails(409, "Conflict");
    lab.patch(&path, MERGE, &json!({"metadata": {"name": "b"}})).await.fails(400, "BadRequest");
    lab.patch(&path, "application/json", &json!({})).await.fails(415, "UnsupportedMediaType");
    let many: Vec<Value> = (0..10_001).map(|_| json!({"op": "test", "path": "/data/k", "value": "1"})).collect();
    lab.patch(&path, JSON_PATCH, &json!(many)).await.fails(413, "RequestEntityTooLarge");
    let merged = lab.patch(&path, MERGE, &json!({"data": {"k": null, "n": "1"}})).await.expect(200);
    assert_eq!(merged["data"], json!({"n": "1"}));
    let pods = "/api/v1/namespaces/default/pods";
    lab.post(pods, &json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}))
        .await
        .expect(201);
    lab.patch(&format!("{pods}/p"), STRATEGIC, &json!({"spec": {"containers": [{"image": "x"}]}}))
        .await
        .fails(400, "BadRequest");
    let patched = lab
        .patch(&format!("{pods}/p"), STRATEGIC, &json!({"spec": {"containers": [{"name": "c", "image": "x"}]}}))
        .await
        .expect(200);
    assert_eq!(patched["spec"]["containers"][0]["image"], "x");
    assert_eq!(patched["spec"]["containers"][0]["terminationMessagePath"], "/dev/termination-log");
}

#[tokio::test]
async fn unknown_fields_follow_the_validation_level() {
    let lab = Lab::start().await;
    let body = |name: &str| json!({"metadata": {"name": name}, "data": {"k": "v"}, "bogus": 1});
    let status = lab.post(&format!("{CM}?fieldValidation=Strict"), &body("a")).await.fails(400, "BadRequest");
    assert!(status["message"].as_str().expect("text").contains("unknown field \"bogus\""), "{status}");
    let answer = lab.post(&format!("{CM}?fieldValidation=Warn"), &body("b")).await;
    assert_eq!(answer.headers["warning"], "299 - \"unknown field \\\"bogus\\\"\"");
    assert!(answer.expect(201).get("bogus").is_none());
    let answer = lab.post(&format!("{CM}?fieldValidation=Ignore"), &body("c")).await;
    assert!(answer.headers.get("warning").is_none());
    answer.expect(201);
    lab.post(&format!("{CM}?fieldValidation=Maybe"), &body("d")).await.fails(422, "Invalid");
}

#[tokio::test]
async fn dry_run_stores_nothing() {
    let lab = Lab::start().await;
    let before = lab.get(CM).await.expect(200)["metadata"]["resourceVersion"].clone();
    let made = lab.post(&format!("{CM}?dryRun=All"), &json!({"metadata": {"name": "a"}})).await.expect(201);
    assert!(made["metadata"].get("resourceVersion").is_none());
    assert!(made["metadata"]["uid"].is_string());
    lab.get(&format!("{CM}/a")).await.fails(404, "NotFound");
    lab.post(&format!("{CM}?dryRun=Some"), &json!({"metadata": {"name": "a"}})).await.fails(422, "Invalid");
    assert_eq!(lab.get(CM).await.expect(200)["metadata"]["resourceVersion"], before);
    lab.config_map("a", "1").await;
    let patched = lab.patch(&format!("{CM}/a?dryRun=All"), MERGE, &json!({"data": {"k": "2"}})).await.expect(200);
    assert_eq!(patched["data"]["k"], "2");
    lab.delete(&format!("{CM}/a?dryRun=All")).await.expect(200);
    assert_eq!(lab.get(&format!("{CM}/a")).await.expect(200)["data"]["k"], "1");
}

#[tokio::test]
async fn generated_names_are_short_and_unique() {
    let lab = Lab::start().await;
    let mut names = Vec::new();
    for _ in 0..50 {
        let object = lab.post(CM, &json!({"metadata": {"generateName": "x".repeat(100)}})).await.expect(201);
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        assert_eq!(name.len(), 63);
        assert!(name[58..].bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte)), "{name}");
        names.push(name);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 50);
}

#[tokio::test]
async fn immutable_fields_and_rules_of_the_storage_kinds_hold() {
    let lab = Lab::start().await;
    let storage = "/apis/storage.k8s.io/v1";
    let class = lab
        .post(&format!("{storage}/storageclasses"), &json!({"metadata": {"name": "s"}, "provisioner": "x.io"}))
        .await
        .expect(201);
    assert_eq!((&class["reclaimPolicy"], &class["volumeBindingMode"]), (&json!("Delete"), &json!("Immediate")));
    let status = lab
        .patch(&format!("{storage}/storageclasses/s"), MERGE, &json!({"provisioner": "y.io"}))
        .await
        .fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "provisioner");
    lab.patch(&format!("{storage}/storageclasses/s"), MERGE, &json!({"allowVolumeExpansion": true})).await.expect(200);

    let driver =
        lab.post(&format!("{storage}/csidrivers"), &json!({"metadata": {"name": "d"}, "spec": {}})).await.expect(201);
    assert_eq!(driver["spec"]["attachRequired"], true);
    assert_eq!(driver["spec"]["volumeLifecycleModes"], json!(["Persistent"]));
    lab.patch(&format!("{storage}/csidrivers/d"), MERGE, &json!({"spec": {"attachRequired": false}}))
        .await
        .fails(422, "Invalid");
    // The one kind that a sidecar creates empty to see whether it may.
    let status = lab
        .post(&format!("{storage}/namespaces/default/csistoragecapacities"), &json!({"metadata": {"name": "x"}}))
        .await
        .fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "storageClassName");
    lab.post(
        &format!("{storage}/volumeattachments"),
        &json!({"metadata": {"name": "x"}, "spec": {"attacher": "a", "nodeName": "n", "source": {}}}),
    )
    .await
    .fails(422, "Invalid");

    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = |size: &str| json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    let made = lab.post(claims, &claim("1Gi")).await.expect(201);
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    assert_eq!((&made["status"]["phase"], &made["spec"]["volumeMode"]), (&json!("Pending"), &json!("Filesystem")));
    assert!(made["spec"].get("storageClassName").is_none(), "there is no default class");
    let path = format!("{claims}/c");
    lab.patch(&path, MERGE, &json!({"spec": {"accessModes": ["ReadWriteMany"]}})).await.fails(422, "Invalid");
    lab.patch(&path, MERGE, &json!({"spec": {"volumeName": "v"}})).await.expect(200);
    lab.patch(&path, MERGE, &json!({"spec": {"volumeName": "w"}})).await.fails(422, "Invalid");
    lab.patch(&format!("{path}/status"), MERGE, &json!({"status": {"phase": "Bound"}})).await.expect(200);
    // Growing needs a class that allows it.
    lab.patch(&path, MERGE, &json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}))
        .await
        .fails(403, "Forbidden");
    for (claim, field) in [
        (
            json!({"metadata": {"name": "x"}, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}),
            "spec.accessModes",
        ),
        (
            json!({"metadata": {"name": "x"}, "spec": {"accessModes": ["Foo"], "resources": {"requests": {"storage": "1Gi"}}}}),
            "spec.accessModes",
        ),
        (claim("0").clone(), "spec.resources[storage]"),
        (json!({"metadata": {"name": "x"}, "spec": {"accessModes": ["ReadWriteOnce"]}}), "spec.resources[storage]"),
    ] {
        let mut claim = claim;
        claim["metadata"]["name"] = json!("x");
        let status = lab.post(claims, &claim).await.fails(422, "Invalid");
        assert_eq!(status["details"]["causes"][0]["field"], field, "{status}");
    }

    lab.patch(
        &format!("{storage}/storageclasses/s"),
        MERGE,
        &json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}),
    )
    .await
    .expect(200);
    let mut second = claim("1Gi");
    second["metadata"]["name"] = json!("c2");
    let made = lab.post(claims, &second).await.expect(201);
    assert_eq!(made["spec"]["storageClassName"], "s");

    let volumes = "/api/v1/persistentvolumes";
    let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "csi": {"driver": "d", "volumeHandle": "h"}}});
    let made = lab.post(volumes, &volume).await.expect(201);
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    let status = lab
        .patch(&format!("{volumes}/v"), MERGE, &json!({"spec": {"csi": {"volumeHandle": "other"}}}))
        .await
        .fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["reason"], "FieldValueForbidden");
    let mut bad = volume.clone();
    bad["metadata"]["name"] = json!("w");
    bad["spec"]["csi"]["volumeHandle"] = json!("");
    let status = lab.post(volumes, &bad).await.fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "spec.csi.volumeHandle");
}

#[tokio::test]
async fn secrets_services_and_events_get_what_their_kinds_need() {
    let lab = Lab::start().await;
    let secret = lab
        .post(
            "/api/v1/namespaces/default/secrets",
            &json!({"metadata": {"name": "s"}, "stringData": {"a": "text"}, "data": {"b": "eA=="}}),
        )
        .await
        .expect(201);
    assert_eq!((&secret["type"], &secret["data"]), (&json!("Opaque"), &json!({"a": "dGV4dA==", "b": "eA=="})));
    assert!(secret.get("stringData").is_none());

    let services = "/api/v1/namespaces/default/services";
    let own = lab.get(&format!("{services}/kubernetes")).await.expect(200);
    assert_eq!(own["spec"]["clusterIP"], "10.96.0.1");
    let service = lab
        .post(services, &json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}))
        .await
        .expect(201);
    assert!(service["spec"]["clusterIP"].as_str().expect("address").starts_with("10."), "{service}");
    let port = service["spec"]["ports"][0]["nodePort"].as_i64().expect("a port");
    assert!((30000..=32767).contains(&port));
    assert_eq!(service["spec"]["ports"][0]["targetPort"], 80);
    let again = lab
        .post(
            services,
            &json!({"metadata": {"name": "web2"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
        )
        .await
        .fails(422, "Invalid");
    assert_eq!(again["details"]["causes"][0]["field"], "spec.clusterIPs");
    // An update that does not mention the address keeps it.
    let put = lab
        .put(
            &format!("{services}/web"),
            &json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
        )
        .await
        .expect(200);
    assert_eq!(put["spec"]["clusterIP"], service["spec"]["clusterIP"]);
    assert_eq!(put["spec"]["ports"][0]["nodePort"], port);

    let event = json!({
        "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Because", "message": "text", "type": "Normal", "source": {"component": "me"}, "count": 1,
    });
    lab.post("/api/v1/namespaces/default/events", &event).await.expect(201);
    let view = lab.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.expect(200);
    assert_eq!(
        (&view["note"], &view["regarding"]["name"], &view["deprecatedCount"]),
        (&json!("text"), &json!("p"), &json!(1))
    );
    assert_eq!(view["apiVersion"], "events.k8s.io/v1");
    let found = lab
        .get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp,source%3Dme")
        .await
        .expect(200);
    assert_eq!(found["items"].as_array().expect("items").len(), 1);
    let mut misplaced = event.clone();
    misplaced["involvedObject"]["namespace"] = json!("elsewhere");
    misplaced["metadata"]["name"] = json!("f");
    lab.post("/api/v1/namespaces/default/events", &misplaced).await.fails(422, "Invalid");
}

#[tokio::test]
async fn a_patch_cannot_turn_an_object_into_another_kind() {
    let lab = Lab::start().await;
    let made = lab.config_map("a", "1").await;
    for (content_type, patch) in [
        (MERGE, json!({"kind": "Secret"})),
        (MERGE, json!({"apiVersion": "v2"})),
        (MERGE, json!({"kind": 7})),
        (STRATEGIC, json!({"kind": "Secret"})),
        (JSON_PATCH, json!([{"op": "replace", "path": "/kind", "value": "Secret"}])),
    ] {
        let answer = lab.patch(&format!("{CM}/a"), content_type, &patch).await;
        assert!(matches!(answer.code, 400 | 422), "{patch}: {} {}", answer.code, answer.text());
    }
    assert_eq!(lab.get(&format!("{CM}/a")).await.expect(200), made);
    // Taking them away is no wish for another kind.
    assert_eq!(lab.patch(&format!("{CM}/a"), MERGE, &json!({"kind": null})).await.expect(200), made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn services_made_at_once_never_share_an_address_or_a_port() {
    let lab = std::sync::Arc::new(Lab::start().await);
    let services = "/api/v1/namespaces/default/services";
    let race = |make: fn(usize) -> Value| {
        let tasks: Vec<_> = (0..16)
            .map(|index| {
                let lab = std::sync::Arc::clone(&lab);
                tokio::spawn(async move { lab.post(services, &make(index)).await.code })
            })
            .collect();
        async {
            let mut codes = Vec::new();
            for task in tasks {
                codes.push(task.await.expect("answered"));
            }
            codes
        }
    };
    let codes = race(
        |index| json!({"metadata": {"name": format!("same-{index}")}, "spec": {"clusterIP": "10.96.7.7", "ports": [{"port": 80}]}}),
    );
    assert_eq!(codes.await.iter().filter(|code| **code == 201).count(), 1, "one gets the address");
    let codes = race(
        |index| json!({"metadata": {"name": format!("port-{index}")}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
    );
    assert!(codes.await.iter().all(|code| *code == 201));
    let list = lab.get(services).await.expect(200);
    let mut ports: Vec<i64> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|service| service["spec"]["ports"][0]["nodePort"].as_i64())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 16, "each has a port of its own");
}

#[tokio::test]
async fn a_service_that_changes_its_type_loses_what_belonged_to_the_old_one() {
    let lab = Lab::start().await;
    let services = "/api/v1/namespaces/default/services";
    let body = json!({"metadata": {"name": "a"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    let made = lab.post(services, &body).await.expect(201);
    assert_eq!(made["spec"]["externalTrafficPolicy"], "Cluster");
    let path = format!("{services}/a");
    let node = lab.patch(&path, MERGE, &json!({"spec": {"type": "NodePort"}})).await.expect(200);
    assert_eq!(node["spec"]["externalTrafficPolicy"], "Cluster");
    assert!(node["spec"].get("allocateLoadBalancerNodePorts").is_none(), "{node}");
    let inner = lab.patch(&path, MERGE, &json!({"spec": {"type": "ClusterIP"}})).await.expect(200);
    assert!(inner["spec"].get("externalTrafficPolicy").is_none(), "{inner}");
    assert!(inner["spec"]["ports"][0].get("nodePort").is_none());
    assert_eq!(inner["spec"]["clusterIP"], made["spec"]["clusterIP"]);
}
