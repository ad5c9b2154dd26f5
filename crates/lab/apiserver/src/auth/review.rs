//! The virtual kinds that answer questions about users and rights.

use serde_json::{Map, Value, json};

use super::{Attributes, Rbac, User};
use crate::api::Api;
use crate::kinds::KindInfo;
use crate::object::{at, fields, metadata, text};
use crate::status::ApiError;

fn user_value(user: &User) -> Value {
    let mut value = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        value["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

/// Answers a review: the body with its status filled in.
pub(crate) fn review(
    api: &Api,
    kind: &KindInfo,
    namespace: &str,
    user: &User,
    mut body: Value,
) -> Result<Value, ApiError> {
    if !body.is_object() {
        return Err(ApiError::bad_request("the body must be an object"));
    }
    if let Some(found) =
        body.get("kind").and_then(Value::as_str).filter(|found| !found.is_empty() && **found != *kind.kind)
    {
        return Err(ApiError::bad_request(format!(
            "the kind in the data ({found}) does not match the expected one ({})",
            kind.kind
        )));
    }
    let status = match &*kind.kind {
        "TokenReview" => token_review(api, &body),
        "SelfSubjectReview" => json!({"userInfo": user_value(user)}),
        "SelfSubjectRulesReview" => rules_review(api, user, text(&body, &["spec", "namespace"]))?,
        "SelfSubjectAccessReview" => access_review(api, user, &body)?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let asked = text(&body, &["spec", "resourceAttributes", "namespace"]);
            if &*kind.kind == "LocalSubjectAccessReview" && asked != namespace {
                return Err(ApiError::bad_request(format!(
                    "spec.resourceAttributes.namespace must match namespace: {namespace}"
                )));
            }
            let list = |field: &str| {
                at(&body, &["spec", field])
                    .and_then(Value::as_array)
                    .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>())
                    .unwrap_or_default()
            };
            let subject =
                User { name: text(&body, &["spec", "user"]).to_owned(), groups: list("groups"), ..User::default() };
            if subject.name.is_empty() && subject.groups.is_empty() {
                return Err(ApiError::invalid_field(
                    &kind.group,
                    &kind.kind,
                    "",
                    "FieldValueInvalid",
                    "spec.user",
                    "Invalid value: \"\": at least one of user or group must be specified",
                ));
            }
            access_review(api, &subject, &body)?
        }
        _ => return Err(ApiError::no_resource()),
    };
    let map = fields(&mut body);
    map.insert("status".to_owned(), status);
    map.insert("kind".to_owned(), json!(kind.kind));
    map.insert("apiVersion".to_owned(), json!(kind.api_version));
    metadata(&mut body).insert("creationTimestamp".to_owned(), Value::Null);
    Ok(body)
}

fn token_review(api: &Api, body: &Value) -> Value {
    let audiences: Vec<String> = at(body, &["spec", "audiences"])
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    let token = text(body, &["spec", "token"]);
    let alive = |subject: &_| api.token_is_alive(subject);
    match api.0.authenticator.token_user(token, api.now().as_second(), &audiences, &alive) {
        Some((user, audiences)) => json!({"authenticated": true, "user": user_value(&user), "audiences": audiences}),
        None => json!({"user": {}, "error": "invalid bearer token"}),
    }
}

fn access_review(api: &Api, user: &User, body: &Value) -> Result<Value, ApiError> {
    let resource = at(body, &["spec", "resourceAttributes"]).and_then(Value::as_object);
    let path = at(body, &["spec", "nonResourceAttributes"]).and_then(Value::as_object);
    let field =
        |map: &Map<String, Value>, name: &str| map.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (verb, group, plural, subresource, namespace, name, url) = match (resource, path) {
        (Some(map), None) => (
            field(map, "verb"),
            field(map, "group"),
            field(map, "resource"),
            field(map, "subresource"),
            field(map, "namespace"),
            field(map, "name"),
            String::new(),
        ),
        (None, Some(map)) => (
            field(map, "verb"),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            field(map, "path"),
        ),
        _ => {
            return Err(ApiError::bad_request(
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    let attributes = Attributes {
        user,
        verb: &verb,
        group: &group,
        resource: &plural,
        subresource: &subresource,
        namespace: &namespace,
        name: &name,
        path: &url,
    };
    let allowed = user.is_master() || api.0.authorizer.allowed(&attributes);
    Ok(json!({"allowed": allowed}))
}

fn rules_review(api: &Api, user: &User, namespace: &str) -> Result<Value, ApiError> {
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let mut rules = Rbac::new(api.store().clone()).rules(user, namespace);
    if user.is_master() {
        rules.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        rules.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    let probe = |rule: &&Value| rule.get("nonResourceURLs").is_none();
    let resources: Vec<&Value> = rules.iter().filter(probe).collect();
    let paths: Vec<&Value> = rules.iter().filter(|rule| !probe(rule)).collect();
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}
