//! Custom kinds: usable at once, pruned, defaulted, validated, converted, gone with their definition.

use serde_json::{Value, json};

use crate::lab::{Lab, MERGE, STRATEGIC};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

pub(crate) fn definition() -> Value {
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["replicas"],
                "properties": {
                    "replicas": {"type": "integer", "maximum": 10},
                    "color": {"type": "string", "default": "red", "enum": ["red", "blue"]},
                    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                },
            },
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}},
        },
    });
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.replicas"}],
            "selectableFields": [{"jsonPath": ".spec.color"}],
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [version("v1", true), version("v1beta1", false)],
        },
    })
}

const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_definition_takes_effect_before_its_create_is_answered() {
    let lab = Lab::start().await;
    assert_eq!(lab.get(WIDGETS).await.code, 404);
    let crd = lab.post(CRDS, &definition()).await.expect(201);
    let condition = |ty: &str| {
        crd["status"]["conditions"]
            .as_array()
            .expect("conditions")
            .iter()
            .find(|entry| entry["type"] == ty)
            .expect("set")["status"]
            .clone()
    };
    assert_eq!((condition("Established"), condition("NamesAccepted")), (json!("True"), json!("True")));
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(
        (&crd["spec"]["names"]["listKind"], &crd["spec"]["names"]["singular"]),
        (&json!("WidgetList"), &json!("widget"))
    );
    assert_eq!(lab.get(WIDGETS).await.expect(200)["kind"], "WidgetList");
    let resources = lab.get("/apis/example.com/v1").await.expect(200);
    let names: Vec<&str> = resources["resources"]
        .as_array()
        .expect("resources")
        .iter()
        .map(|entry| entry["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["widgets", "widgets/scale", "widgets/status"]);
    let group = lab.get("/apis/example.com").await.expect(200);
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let document = lab.get("/openapi/v3/apis/example.com/v1").await.expect(200);
    assert!(document["paths"].as_object().expect("paths").keys().any(|path| path.ends_with("/widgets/{name}")));
}

#[tokio::test]
async fn bad_definitions_are_refused_with_the_field() {
    let lab = Lab::start().await;
    for (pointer, value, field) in [
        ("/metadata/name", json!("other.example.com"), "metadata.name"),
        ("/spec/scope", json!("Galaxy"), "spec.scope"),
        ("/spec/versions/1/storage", json!(true), "spec.versions"),
        (
            "/spec/versions/0/schema/openAPIV3Schema",
            json!({"type": "object", "properties": {"spec": {}}}),
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].type",
        ),
        (
            "/spec/versions/0/additionalPrinterColumns/0/jsonPath",
            json!("{.spec"),
            "spec.versions[0].additionalPrinterColumns[0].jsonPath",
        ),
        (
            "/spec/versions/0/subresources/scale/specReplicasPath",
            json!("spec.replicas"),
            "spec.versions[0].subresources.scale.specReplicasPath",
        ),
    ] {
        let mut bad = definition();
        *bad.pointer_mut(pointer).expect("there") = value;
        let status = lab.post(CRDS, &bad).await.fails(422, "Invalid");
        let causes = status["details"]["causes"].as_array().expect("causes");
        assert!(causes.iter().any(|cause| cause["field"] == field), "{field} in {status}");
    }
}

#[tokio::test]
async fn objects_are_pruned_defaulted_and_validated() {
    let lab = Lab::start().await;
    lab.post(CRDS, &definition()).await.expect(201);
    let made =
        lab.post(WIDGETS, &widget("a", json!({"replicas": 3, "bogus": 1, "any": {"kept": true}}))).await.expect(201);
    assert_eq!(made["spec"], json!({"replicas": 3, "color": "red", "any": {"kept": true}}));
    assert_eq!(made["metadata"]["generation"], 1);
    let status = lab.post(WIDGETS, &widget("b", json!({"replicas": 11}))).await.fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "spec.replicas");
    assert_eq!(status["details"]["kind"], "Widget");
    assert!(
        status["message"].as_str().expect("text").contains("spec.replicas in body should be less than or equal to 10"),
        "{status}"
    );
    let status = lab.post(WIDGETS, &widget("b", json!({"replicas": 1, "color": "pink"}))).await.fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["reason"], "FieldValueNotSupported");
    lab.post(WIDGETS, &widget("b", json!({}))).await.fails(422, "Invalid");
    lab.post(WIDGETS, &widget("b", json!({"replicas": "x"}))).await.fails(422, "Invalid");
    lab.post(WIDGETS, &json!({"metadata": {"name": "b"}, "spec": {"replicas": 1}})).await.fails(400, "BadRequest");
    lab.patch(&format!("{WIDGETS}/a"), STRATEGIC, &json!({"spec": {"replicas": 1}}))
        .await
        .fails(415, "UnsupportedMediaType");
    let mut replaced = made.clone();
    replaced["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    lab.put(&format!("{WIDGETS}/a"), &replaced).await.fails(422, "Invalid");
    let found = lab.get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dred")).await.expect(200);
    assert_eq!(found["items"].as_array().expect("items").len(), 1);
    let status = lab
        .post(&format!("{WIDGETS}?fieldValidation=Strict"), &widget("c", json!({"replicas": 1, "bogus": 1})))
        .await
        .fails(400, "BadRequest");
    assert!(status["message"].as_str().expect("text").contains("spec.bogus"));
}

#[tokio::test]
async fn status_and_scale_are_subresources() {
    let lab = Lab::start().await;
    lab.post(CRDS, &definition()).await.expect(201);
    let mut object = widget("a", json!({"replicas": 3}));
    object["status"] = json!({"replicas": 1});
    let made = lab.post(WIDGETS, &object).await.expect(201);
    assert!(made.get("status").is_none());
    let path = format!("{WIDGETS}/a");
    let written = lab
        .patch(&format!("{path}/status"), MERGE, &json!({"status": {"replicas": 2, "selector": "a=b"}, "spec": {"replicas": 9}, "metadata": {"labels": {"x": "y"}}}))
        .await
        .expect(200);
    assert_eq!((&written["spec"]["replicas"], &written["status"]["replicas"]), (&json!(3), &json!(2)));
    assert!(written["metadata"].get("labels").is_none());
    assert_eq!(written["metadata"]["generation"], 1);
    let scale = lab.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (&json!({"replicas": 3}), &json!({"replicas": 2, "selector": "a=b"}))
    );
    let mut wanted = scale.clone();
    wanted["spec"]["replicas"] = json!(4);
    lab.put(&format!("{path}/scale"), &wanted).await.expect(200);
    lab.put(&format!("{path}/scale"), &wanted).await.fails(409, "Conflict");
    lab.patch(&format!("{path}/scale"), MERGE, &json!({"spec": {"replicas": 11}})).await.fails(422, "Invalid");
    let now = lab.get(&path).await.expect(200);
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(4), &json!(2)));
}

#[tokio::test]
async fn versions_are_views_of_one_object() {
    let lab = Lab::start().await;
    lab.post(CRDS, &definition()).await.expect(201);
    let old = "/apis/example.com/v1beta1/namespaces/default/widgets";
    let mut object = widget("a", json!({"replicas": 3}));
    object["apiVersion"] = json!("example.com/v1beta1");
    let made = lab.post(old, &object).await.expect(201);
    assert_eq!(made["apiVersion"], "example.com/v1beta1");
    let same = lab.get(&format!("{WIDGETS}/a")).await.expect(200);
    assert_eq!(same["apiVersion"], "example.com/v1");
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(lab.get(old).await.expect(200)["items"][0]["apiVersion"], "example.com/v1beta1");
    let mut events = lab.watch(&format!("{old}?watch=true")).await;
    assert_eq!(events.next().await.expect("an event")["object"]["apiVersion"], "example.com/v1beta1");
}

#[tokio::test]
async fn a_definition_takes_its_objects_with_it() {
    let lab = Lab::start().await;
    lab.post(CRDS, &definition()).await.expect(201);
    lab.post(WIDGETS, &widget("a", json!({"replicas": 3}))).await.expect(201);
    let mut held = widget("b", json!({"replicas": 3}));
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    lab.post(WIDGETS, &held).await.expect(201);
    let path = format!("{CRDS}/widgets.example.com");
    let terminating = lab.delete(&path).await.expect(200);
    assert!(terminating["metadata"]["deletionTimestamp"].is_string());
    lab.get(&format!("{WIDGETS}/a")).await.fails(404, "NotFound");
    lab.post(WIDGETS, &widget("c", json!({"replicas": 3}))).await.fails(405, "MethodNotAllowed");
    lab.patch(&format!("{WIDGETS}/b"), MERGE, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    lab.get(&path).await.fails(404, "NotFound");
    assert_eq!(lab.get(WIDGETS).await.code, 404);
    // The same name may come back with another scope.
    let mut cluster = definition();
    cluster["spec"]["scope"] = json!("Cluster");
    lab.post(CRDS, &cluster).await.expect(201);
    lab.post("/apis/example.com/v1/widgets", &widget("a", json!({"replicas": 1}))).await.expect(201);
}

#[tokio::test]
async fn taken_names_are_not_accepted() {
    let lab = Lab::start().await;
    lab.post(CRDS, &definition()).await.expect(201);
    let mut other = definition();
    other["metadata"]["name"] = json!("gadgets.example.com");
    other["spec"]["names"] =
        json!({"plural": "gadgets", "kind": "Widget", "listKind": "GadgetList", "singular": "gadget"});
    let crd = lab.post(CRDS, &other).await.expect(201);
    let accepted = crd["status"]["conditions"]
        .as_array()
        .expect("conditions")
        .iter()
        .find(|entry| entry["type"] == "NamesAccepted")
        .expect("set")
        .clone();
    assert_eq!(accepted["status"], "False");
    assert_eq!(lab.get("/apis/example.com/v1/namespaces/default/gadgets").await.code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn definitions_made_at_once_are_all_served() {
    let lab = std::sync::Arc::new(Lab::start().await);
    let count = 24;
    let made: Vec<_> = (0..count)
        .map(|index| {
            let lab = std::sync::Arc::clone(&lab);
            tokio::spawn(async move {
                let definition = json!({
                    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                    "metadata": {"name": format!("k{index}s.example.com")},
                    "spec": {
                        "group": "example.com", "scope": "Namespaced",
                        "names": {"plural": format!("k{index}s"), "kind": format!("K{index}")},
                        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
                    },
                });
                lab.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.expect(201);
            })
        })
        .collect();
    for task in made {
        task.await.expect("made");
    }
    for index in 0..count {
        lab.get(&format!("/apis/example.com/v1/k{index}s")).await.expect(200);
    }
}

#[tokio::test]
async fn a_watch_ends_with_its_kind_and_not_with_another() {
    let lab = Lab::start().await;
    lab.post(CRDS, &definition()).await.expect(201);
    lab.post(WIDGETS, &widget("a", json!({"replicas": 1}))).await.expect(201);
    let mut events = lab.watch(&format!("{WIDGETS}?watch=true")).await;
    assert_eq!(events.name().await, ("ADDED".into(), "a".into()));
    let mut other = definition();
    other["metadata"]["name"] = json!("gadgets.example.com");
    other["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget"});
    lab.post(CRDS, &other).await.expect(201);
    lab.delete(&format!("{CRDS}/gadgets.example.com")).await.expect(200);
    lab.post(WIDGETS, &widget("b", json!({"replicas": 1}))).await.expect(201);
    assert_eq!(events.name().await, ("ADDED".into(), "b".into()));
    lab.delete(&format!("{CRDS}/widgets.example.com")).await.expect(200);
    assert_eq!(events.name().await, ("DELETED".into(), "a".into()));
    assert_eq!(events.name().await, ("DELETED".into(), "b".into()));
    assert_eq!(events.next().await, None, "an informer lists again, and learns that the kind is gone");
}
