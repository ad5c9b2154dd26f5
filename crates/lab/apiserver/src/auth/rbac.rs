//! Role-based access control over the Role and ClusterRole objects in the store.

use outrigger_lab_store::Store;
use serde_json::{Value, json};

use super::{Attributes, Authorizer, User};
use crate::object::{at, text};

/// Evaluates the bindings of the moment for each request: there are few of them, and nothing can be stale.
pub(crate) struct Rbac {
    store: Store,
}

const GROUP: &str = "/registry/rbac.authorization.k8s.io";

impl Rbac {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    fn objects(&self, prefix: &str) -> Vec<Value> {
        let Ok(range) = self.store.range(prefix, None, usize::MAX, None) else { return Vec::new() };
        range.versions.iter().filter_map(|version| serde_json::from_slice(&version.value).ok()).collect()
    }

    fn object(&self, key: &str) -> Option<Value> {
        serde_json::from_slice(&self.store.get(key)?.value).ok()
    }

    /// The rules that apply to a user in a namespace (or everywhere, if it is empty).
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> Vec<Value> {
        let mut rules = Vec::new();
        for binding in self.objects(&format!("{GROUP}/clusterrolebindings/")) {
            if binds(&binding, user, "") {
                let role = format!("{GROUP}/clusterroles//{}", text(&binding, &["roleRef", "name"]));
                rules.extend(self.object(&role).as_ref().map(rules_of).unwrap_or_default());
            }
        }
        if !namespace.is_empty() {
            for binding in self.objects(&format!("{GROUP}/rolebindings/{namespace}/")) {
                if binds(&binding, user, namespace) {
                    let name = text(&binding, &["roleRef", "name"]);
                    let role = if text(&binding, &["roleRef", "kind"]) == "ClusterRole" {
                        format!("{GROUP}/clusterroles//{name}")
                    } else {
                        format!("{GROUP}/roles/{namespace}/{name}")
                    };
                    rules.extend(self.object(&role).as_ref().map(rules_of).unwrap_or_default());
                }
            }
        }
        rules
    }
}

/// The cluster roles and bindings that charts and people count on, as (plural, object).
pub(crate) fn seeds() -> Vec<(&'static str, Value)> {
    let everything = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let reading = ["get", "list", "watch"];
    // What a namespace's people work with; rights and the namespace itself are the administrator's.
    let content = json!([
        {"apiGroups": [""], "resources": [
            "configmaps", "endpoints", "events", "persistentvolumeclaims", "persistentvolumeclaims/status", "pods", "pods/status",
            "replicationcontrollers", "replicationcontrollers/scale", "replicationcontrollers/status", "serviceaccounts", "services", "services/status",
        ]},
        {"apiGroups": ["apps", "autoscaling", "batch", "discovery.k8s.io", "networking.k8s.io", "policy", "resource.k8s.io"], "resources": ["*"]},
    ]);
    let rules = |verbs: &[&str], more: Value| {
        let mut rules = content.as_array().cloned().unwrap_or_default();
        for rule in &mut rules {
            rule["verbs"] = json!(verbs);
        }
        rules.extend(more.as_array().cloned().unwrap_or_default());
        Value::Array(rules)
    };
    let secrets = json!({"apiGroups": [""], "resources": ["secrets", "serviceaccounts/token", "pods/eviction"], "verbs": everything});
    let rights = json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": everything});
    let roles = [
        (
            "cluster-admin",
            json!([
                {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                {"nonResourceURLs": ["*"], "verbs": ["*"]},
            ]),
        ),
        ("admin", rules(&everything, json!([secrets, rights]))),
        ("edit", rules(&everything, json!([secrets]))),
        ("view", rules(&reading, json!([]))),
        (
            "system:discovery",
            json!([{
                "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"],
                "verbs": ["get"],
            }]),
        ),
        (
            "system:basic-user",
            json!([
                {"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"], "verbs": ["create"]},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]},
            ]),
        ),
        (
            "system:public-info-viewer",
            json!([{
                "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/version/"],
                "verbs": ["get"],
            }]),
        ),
        (
            "system:service-account-issuer-discovery",
            json!([{
                "nonResourceURLs": ["/.well-known/openid-configuration", "/openid/v1/jwks"],
                "verbs": ["get"],
            }]),
        ),
    ];
    let bindings = [
        ("cluster-admin", &["system:masters"][..]),
        ("system:discovery", &["system:authenticated"]),
        ("system:basic-user", &["system:authenticated"]),
        ("system:public-info-viewer", &["system:authenticated", "system:unauthenticated"]),
        ("system:service-account-issuer-discovery", &["system:serviceaccounts"]),
    ];
    let metadata = |name: &str| {
        json!({
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        })
    };
    let mut seeds: Vec<(&'static str, Value)> = roles
        .into_iter()
        .map(|(name, rules)| ("clusterroles", json!({"metadata": metadata(name), "rules": rules})))
        .collect();
    seeds.extend(bindings.into_iter().map(|(name, groups)| {
        let subjects: Vec<Value> = groups
            .iter()
            .map(|group| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}))
            .collect();
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
        ("clusterrolebindings", json!({"metadata": metadata(name), "roleRef": role, "subjects": subjects}))
    }));
    seeds
}

fn rules_of(role: &Value) -> Vec<Value> {
    role.get("rules").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn binds(binding: &Value, user: &User, namespace: &str) -> bool {
    binding.get("subjects").and_then(Value::as_array).is_some_and(|subjects| {
        subjects.iter().any(|subject| {
            let name = text(subject, &["name"]);
            match text(subject, &["kind"]) {
                "User" => name == user.name,
                "Group" => user.groups.iter().any(|group| group == name),
                "ServiceAccount" => {
                    let place =
                        Some(text(subject, &["namespace"])).filter(|place| !place.is_empty()).unwrap_or(namespace);
                    user.name == format!("system:serviceaccount:{place}:{name}")
                }
                _ => false,
            }
        })
    })
}

fn strings<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    at(rule, &[field])
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// Whether one rule allows a request.
pub(crate) fn rule_allows(rule: &Value, attributes: &Attributes<'_>) -> bool {
    let has = |field: &str, wanted: &str| strings(rule, field).iter().any(|entry| *entry == "*" || *entry == wanted);
    if !has("verbs", attributes.verb) {
        return false;
    }
    if attributes.resource.is_empty() {
        return strings(rule, "nonResourceURLs").iter().any(|url| {
            *url == attributes.path || url.strip_suffix('*').is_some_and(|prefix| attributes.path.starts_with(prefix))
        });
    }
    let full = if attributes.subresource.is_empty() {
        attributes.resource.to_owned()
    } else {
        format!("{}/{}", attributes.resource, attributes.subresource)
    };
    let resource = strings(rule, "resources").iter().any(|entry| {
        *entry == "*"
            || *entry == full
            || (!attributes.subresource.is_empty() && entry.strip_prefix("*/") == Some(attributes.subresource))
    });
    let names = strings(rule, "resourceNames");
    resource && has("apiGroups", attributes.group) && (names.is_empty() || names.contains(&attributes.name))
}

impl Authorizer for Rbac {
    fn allowed(&self, attributes: &Attributes<'_>) -> bool {
        self.rules(attributes.user, attributes.namespace).iter().any(|rule| rule_allows(rule, attributes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes<'a>(
        user: &'a User,
        verb: &'a str,
        resource: &'a str,
        subresource: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        Attributes { user, verb, group: "", resource, subresource, namespace: "d", name, path: "" }
    }

    #[test]
    fn rules_match_verbs_resources_subresources_and_names() {
        let user = User::new("u", &[]);
        let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"], "resourceNames": []});
        assert!(rule_allows(&rule, &attributes(&user, "get", "pods", "", "x")));
        assert!(rule_allows(&rule, &attributes(&user, "get", "pods", "log", "x")));
        assert!(rule_allows(&rule, &attributes(&user, "get", "anything", "scale", "x")));
        assert!(!rule_allows(&rule, &attributes(&user, "get", "pods", "exec", "x")));
        assert!(!rule_allows(&rule, &attributes(&user, "list", "pods", "", "")));
        let named = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["a"]});
        assert!(rule_allows(&named, &attributes(&user, "update", "pods", "", "a")));
        assert!(!rule_allows(&named, &attributes(&user, "update", "pods", "", "b")));
    }

    #[test]
    fn paths_match_with_a_trailing_star() {
        let user = User::new("u", &[]);
        let rule = json!({"verbs": ["get"], "nonResourceURLs": ["/metrics", "/logs/*"]});
        let path = |path: &'static str| Attributes { path, ..attributes(&user, "get", "", "", "") };
        assert!(rule_allows(&rule, &path("/metrics")));
        assert!(rule_allows(&rule, &path("/logs/x")));
        assert!(!rule_allows(&rule, &path("/metrics/x")));
    }
}
