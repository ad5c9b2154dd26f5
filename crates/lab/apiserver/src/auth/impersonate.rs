//! Acting as somebody else: the `Impersonate-*` headers, as `kubectl --as` sends them.

use std::collections::BTreeMap;

use http::HeaderMap;

use super::{Attributes, User};
use crate::api::Api;
use crate::request::percent_decode;
use crate::status::ApiError;

const PREFIX: &str = "impersonate-";
const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// The user that the request acts as: `user`, or whom the headers name, if `user` may `impersonate` that user and each
/// of its groups and attributes. Headers that cannot be followed are refused: ignored, they would give the rights of `user`.
pub(crate) fn impersonate(api: &Api, headers: &HeaderMap, user: User) -> Result<User, ApiError> {
    if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return Ok(user);
    }
    let texts = |name: &str| -> Result<Vec<String>, ApiError> {
        let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned);
        headers
            .get_all(name)
            .iter()
            .map(text)
            .collect::<Result<_, _>>()
            .map_err(|_| ApiError::bad_request(format!("the header {name} holds more than printable ASCII")))
    };
    let name = texts(USER)?.into_iter().next().unwrap_or_default();
    let uid = texts(UID)?.into_iter().next().unwrap_or_default();
    let mut groups = texts(GROUP)?;
    let mut extra = BTreeMap::new();
    for header in headers.keys().filter(|name| name.as_str().starts_with(PREFIX)) {
        match header.as_str() {
            USER | GROUP | UID => {}
            text => {
                let key = text.strip_prefix(EXTRA).filter(|key| !key.is_empty()).and_then(percent_decode);
                let key = key.ok_or_else(|| ApiError::bad_request(format!("the header {text} is not known")))?;
                extra.insert(key.into_owned(), texts(text)?);
            }
        }
    }
    if name.is_empty() {
        return Err(ApiError::bad_request(
            "Impersonate-* headers need Impersonate-User: groups are impersonated with a user only",
        ));
    }

    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let attributes =
            Attributes { user: &user, verb: "impersonate", group, resource, subresource, namespace, name, path: "" };
        api.authorize(&attributes)
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => may("", "serviceaccounts", "", namespace, account)?,
        None => may("", "users", "", "", &name)?,
    }
    for group in &groups {
        may("", "groups", "", "", group)?;
    }
    if !uid.is_empty() {
        may("authentication.k8s.io", "uids", "", "", &uid)?;
    }
    for (key, values) in &extra {
        for value in values {
            may("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }

    if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
        groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let known = if name == "system:anonymous" { UNAUTHENTICATED } else { AUTHENTICATED };
    if !groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED) {
        groups.push(known.to_owned());
    }
    Ok(User { name, uid, groups, extra })
}
