//! Who gets in and who may do what.

use serde_json::json;

use crate::lab::{CM, JSON, Lab};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";

async fn token(lab: &Lab, name: &str) -> String {
    lab.post(ACCOUNTS, &json!({"metadata": {"name": name}})).await.expect(201);
    let answer =
        lab.post(&format!("{ACCOUNTS}/{name}/token"), &json!({"spec": {"expirationSeconds": 600}})).await.expect(201);
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

#[tokio::test]
async fn anonymous_sees_versions_and_health_only() {
    let lab = Lab::start().await;
    for path in ["/version", "/healthz", "/livez", "/readyz", "/readyz?verbose"] {
        assert_eq!(lab.send("GET", path, &[("authorization", "")], "").await.code, 200, "{path}");
    }
    let status = lab.send("GET", "/api", &[("authorization", "")], "").await.fails(403, "Forbidden");
    assert_eq!(status["message"], "forbidden: User \"system:anonymous\" cannot get path \"/api\"");
    let status = lab.send("GET", CM, &[("authorization", "")], "").await.fails(403, "Forbidden");
    assert_eq!(
        status["message"],
        "configmaps is forbidden: User \"system:anonymous\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    for credentials in ["Bearer wrong", "Basic dTpw", "Bearer", "nonsense"] {
        let status =
            lab.send("GET", "/version", &[("authorization", credentials)], "").await.fails(401, "Unauthorized");
        assert_eq!(status["message"], "Unauthorized");
    }
    assert!(lab.get("/readyz?verbose").await.text().contains("[+]store ok"));
    assert!(
        lab.get("/metrics")
            .await
            .text()
            .contains("apiserver_request_total{verb=\"list\",resource=\"configmaps\",code=\"403\"} 1")
    );
}

#[tokio::test]
async fn service_account_tokens_work_until_their_account_is_gone() {
    let lab = Lab::start().await;
    let token = token(&lab, "robot").await;
    let bearer = format!("Bearer {token}");
    let me = lab
        .send(
            "POST",
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &[("authorization", &bearer), ("content-type", JSON)],
            "{}",
        )
        .await
        .expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:default:robot");
    let review = |token: &str| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = lab.post(reviews, &review(&token)).await.expect(201);
    assert_eq!(answer["status"]["authenticated"], true);
    assert_eq!(answer["status"]["user"]["username"], "system:serviceaccount:default:robot");
    assert!(
        answer["status"]["user"]["groups"]
            .as_array()
            .expect("groups")
            .contains(&json!("system:serviceaccounts:default"))
    );
    let answer = lab.post(reviews, &review("garbage")).await.expect(201);
    assert!(answer["status"].get("authenticated").is_none_or(|value| value == false));

    let keys = lab.get("/openid/v1/jwks").await.expect(200);
    assert_eq!((&keys["keys"][0]["kty"], &keys["keys"][0]["alg"]), (&json!("EC"), &json!("ES256")));
    assert!(lab.get("/.well-known/openid-configuration").await.expect(200)["jwks_uri"].is_string());
    lab.post(&format!("{ACCOUNTS}/robot/token"), &json!({"spec": {"expirationSeconds": 10}}))
        .await
        .fails(422, "Invalid");
    lab.post(&format!("{ACCOUNTS}/nobody/token"), &json!({})).await.fails(404, "NotFound");

    lab.send("GET", CM, &[("authorization", &bearer)], "").await.fails(403, "Forbidden");
    lab.delete(&format!("{ACCOUNTS}/robot")).await.expect(200);
    lab.send("GET", CM, &[("authorization", &bearer)], "").await.fails(401, "Unauthorized");
}

#[tokio::test]
async fn roles_grant_what_they_say_and_nothing_else() {
    let lab = Lab::start().await;
    let bearer = format!("Bearer {}", token(&lab, "robot").await);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    lab.post(
        &format!("{rbac}/namespaces/default/roles"),
        &json!({"metadata": {"name": "reader"}, "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["configmaps"]}]}),
    )
    .await
    .expect(201);
    lab.post(
        &format!("{rbac}/namespaces/default/rolebindings"),
        &json!({
            "metadata": {"name": "robot-reads"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}],
        }),
    )
    .await
    .expect(201);
    lab.config_map("a", "1").await;
    let auth = [("authorization", bearer.as_str()), ("content-type", JSON)];
    lab.send("GET", CM, &auth, "").await.expect(200);
    lab.send("GET", &format!("{CM}/a"), &auth, "").await.expect(200);
    lab.send("GET", &format!("{CM}?watch=true"), &auth, "").await.fails(403, "Forbidden");
    lab.send("DELETE", &format!("{CM}/a"), &auth, "").await.fails(403, "Forbidden");
    lab.send("GET", "/api/v1/namespaces/kube-system/configmaps", &auth, "").await.fails(403, "Forbidden");
    lab.send("GET", "/api/v1/configmaps", &auth, "").await.fails(403, "Forbidden");
    lab.send("GET", "/apis", &auth, "").await.expect(200);

    let ask = |verb: &str| {
        json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": "system:serviceaccount:default:robot", "resourceAttributes": {"namespace": "default", "verb": verb, "resource": "configmaps"}},
        })
    };
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(lab.post(reviews, &ask("get")).await.expect(201)["status"]["allowed"], true);
    assert_eq!(lab.post(reviews, &ask("delete")).await.expect(201)["status"]["allowed"], false);
}

/// Grants the account `robot` of the namespace `default` these rules in the whole cluster.
async fn grant(lab: &Lab, rules: serde_json::Value) {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    lab.post(&format!("{rbac}/clusterroles"), &json!({"metadata": {"name": "robots"}, "rules": rules}))
        .await
        .expect(201);
    lab.post(
        &format!("{rbac}/clusterrolebindings"),
        &json!({
            "metadata": {"name": "robots"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "robots"},
            "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}],
        }),
    )
    .await
    .expect(201);
}

#[tokio::test]
async fn a_selector_gives_no_right_to_create_or_delete() {
    let lab = Lab::start().await;
    let bearer = format!("Bearer {}", token(&lab, "robot").await);
    let auth = [("authorization", bearer.as_str()), ("content-type", JSON)];
    grant(&lab, json!([{"verbs": ["*"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"]}]))
        .await;
    let selected = format!("{CM}?fieldSelector=metadata.name%3Dmine");
    lab.send("GET", &selected, &auth, "").await.expect(200);
    lab.send("GET", CM, &auth, "").await.fails(403, "Forbidden");
    let other = json!({"metadata": {"name": "other"}}).to_string();
    lab.send("POST", &selected, &auth, other).await.fails(403, "Forbidden");
    lab.send("DELETE", &selected, &auth, "").await.fails(403, "Forbidden");
    lab.get(&format!("{CM}/other")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn whoever_acts_as_somebody_else_has_their_rights_only() {
    let lab = Lab::start().await;
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let json = ("content-type", JSON);
    let as_jane =
        [("impersonate-user", "jane"), ("impersonate-group", "dev"), ("impersonate-extra-scopes", "view"), json];
    let me = lab.send("POST", whoami, &as_jane, "{}").await.expect(201);
    assert_eq!(
        me["status"]["userInfo"],
        json!({"username": "jane", "groups": ["dev", "system:authenticated"], "extra": {"scopes": ["view"]}})
    );
    let status = lab.send("GET", CM, &as_jane, "").await.fails(403, "Forbidden");
    assert!(status["message"].as_str().expect("text").contains("User \"jane\""), "{status}");
    let account = [("impersonate-user", "system:serviceaccount:default:x"), json];
    let me = lab.send("POST", whoami, &account, "{}").await.expect(201);
    assert_eq!(
        me["status"]["userInfo"]["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"])
    );
    let masters = [("impersonate-user", "boss"), ("impersonate-group", "system:masters")];
    lab.send("GET", CM, &masters, "").await.expect(200);
    for headers in [[("impersonate-group", "dev")], [("impersonate-who", "x")]] {
        lab.send("GET", CM, &headers, "").await.fails(400, "BadRequest");
    }

    let bearer = format!("Bearer {}", token(&lab, "robot").await);
    let robot = ("authorization", bearer.as_str());
    let status = lab.send("GET", CM, &[robot, ("impersonate-user", "jane")], "").await.fails(403, "Forbidden");
    assert_eq!(
        status["message"],
        "users \"jane\" is forbidden: User \"system:serviceaccount:default:robot\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    grant(
        &lab,
        json!([{"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["jane"]}]),
    )
    .await;
    let me = lab.send("POST", whoami, &[robot, ("impersonate-user", "jane"), json], "{}").await.expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "jane");
    for more in [("impersonate-group", "system:masters"), ("impersonate-uid", "1"), ("impersonate-extra-a", "b")] {
        lab.send("GET", CM, &[robot, ("impersonate-user", "jane"), more], "").await.fails(403, "Forbidden");
    }
}
