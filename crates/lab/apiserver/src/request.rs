//! What a request asks for: its path as a route, its query as typed options.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use http::Method;
use outrigger_lab_store::Revision;

use crate::status::ApiError;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`
    Resources { group: String, version: String },
    /// Anything below a group version.
    Object(ObjectRoute),
    /// Other known paths, without leading slash: `version`, `healthz`, `openapi/v2`, ...
    Other(String),
    /// Nothing that is served.
    Unknown,
}

/// A resource path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ObjectRoute {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    /// `None` means all namespaces or cluster scope.
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
    /// Path below the subresource, for proxies and connects.
    pub(crate) rest: Option<String>,
}

impl Route {
    /// Parses a request path. Segments are percent-decoded; empty ones (doubled slashes) lead nowhere.
    pub(crate) fn parse(path: &str) -> Self {
        let trimmed = path.strip_prefix('/').unwrap_or(path);
        let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
        let mut segments = Vec::new();
        for raw in trimmed.split('/') {
            match percent_decode(raw) {
                Some(segment) if !segment.is_empty() => segments.push(segment.into_owned()),
                _ => return Self::Unknown,
            }
        }
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["api"] => Self::CoreVersions,
            ["apis"] => Self::Groups,
            ["apis", group] => Self::Group((*group).to_owned()),
            ["api", version] => Self::Resources { group: String::new(), version: (*version).to_owned() },
            ["apis", group, version] => Self::Resources { group: (*group).to_owned(), version: (*version).to_owned() },
            ["api", version, rest @ ..] => Self::object("", version, rest),
            ["apis", group, version, rest @ ..] => Self::object(group, version, rest),
            _ => Self::Other(parts.join("/")),
        }
    }

    fn object(group: &str, version: &str, rest: &[&str]) -> Self {
        let owned = |text: &&str| Some((*text).to_owned());
        let base = ObjectRoute { group: group.to_owned(), version: version.to_owned(), ..ObjectRoute::default() };
        let route = match rest {
            // A namespace's own subresources look like resources inside it.
            ["namespaces", name, sub @ ("status" | "finalize")] => {
                ObjectRoute { plural: "namespaces".to_owned(), name: owned(name), subresource: owned(sub), ..base }
            }
            ["namespaces", namespace, plural, tail @ ..] => ObjectRoute {
                plural: (*plural).to_owned(),
                namespace: owned(namespace),
                name: tail.first().and_then(owned),
                subresource: tail.get(1).and_then(owned),
                rest: (tail.len() > 2).then(|| tail[2..].join("/")),
                ..base
            },
            [plural, tail @ ..] => ObjectRoute {
                plural: (*plural).to_owned(),
                name: tail.first().and_then(owned),
                subresource: tail.get(1).and_then(owned),
                rest: (tail.len() > 2).then(|| tail[2..].join("/")),
                ..base
            },
            [] => return Self::Unknown,
        };
        Self::Object(route)
    }
}

/// Decodes `%XX`; `None` for malformed escapes or bytes that are not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = text.get(at + 1..at + 3)?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// Query parameters, the first of each name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(HashMap<String, String>);

impl Query {
    /// Parses a query string. Malformed escapes are kept as they are.
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let mut map = HashMap::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| {
                let spaced = text.replace('+', " ");
                percent_decode(&spaced).map_or_else(|| spaced.clone(), Cow::into_owned)
            };
            map.entry(decode(key)).or_insert_with(|| decode(value));
        }
        Self(map)
    }

    /// The value of a parameter, `None` if it is absent or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a parameter is there, with or without value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A boolean parameter in the spellings that Go's strconv accepts; anything else is a 400.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.0.get(name).map(String::as_str) {
            None | Some("0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
            Some("" | "1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("query parameter {name}: {other:?} is not a boolean"))),
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    ApiError::bad_request(format!("query parameter {name}: {text:?} is not a valid number"))
                })
            })
            .transpose()
    }
}

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    /// Exactly that revision.
    Exact,
    /// That revision or a later one.
    NotOlderThan,
}

/// Options of list and watch.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Label selector in its text form.
    pub label_selector: Option<String>,
    /// Field selector in its text form.
    pub field_selector: Option<String>,
    /// Page size; 0 means no limit.
    pub limit: usize,
    /// Token of the page before.
    pub continue_token: Option<String>,
    /// Revision asked for.
    pub resource_version: Option<Revision>,
    /// How [`Self::resource_version`] is meant.
    pub version_match: Option<VersionMatch>,
    /// Whether this is a watch.
    pub watch: bool,
    /// Whether a watch may get bookmarks.
    pub bookmarks: bool,
    /// Whether a watch starts with what is there, followed by an annotated bookmark.
    pub send_initial_events: Option<bool>,
    /// When a watch ends.
    pub timeout: Option<Duration>,
}

impl ListOptions {
    /// Parses and cross-checks the query of a list or watch; `kind` and `group` are for error texts.
    pub(crate) fn parse(query: &Query) -> Result<Self, ApiError> {
        let mut options = Self {
            label_selector: query.get("labelSelector").map(str::to_owned),
            field_selector: query.get("fieldSelector").map(str::to_owned),
            limit: query.number("limit")?.unwrap_or(0),
            continue_token: query.get("continue").map(str::to_owned),
            resource_version: parse_revision(query.get("resourceVersion"))?,
            version_match: None,
            watch: query.flag("watch")?,
            bookmarks: query.flag("allowWatchBookmarks")?,
            send_initial_events: None,
            timeout: query.number::<u64>("timeoutSeconds")?.map(Duration::from_secs),
        };
        if query.get("sendInitialEvents").is_some() {
            options.send_initial_events = Some(query.flag("sendInitialEvents")?);
        }
        options.version_match = match query.get("resourceVersionMatch") {
            None => None,
            Some("Exact") => Some(VersionMatch::Exact),
            Some("NotOlderThan") => Some(VersionMatch::NotOlderThan),
            Some(other) => {
                return Err(invalid(
                    "resourceVersionMatch",
                    "FieldValueNotSupported",
                    &format!("Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""),
                ));
            }
        };
        options.check()?;
        Ok(options)
    }

    /// The rules between the parameters.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        let forbidden = |field: &str, why: &str| invalid(field, "FieldValueForbidden", &format!("Forbidden: {why}"));
        if self.watch {
            match (self.version_match, self.send_initial_events) {
                (Some(_), None) => {
                    return Err(forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    ));
                }
                (None, Some(_)) => {
                    return Err(forbidden(
                        "resourceVersionMatch",
                        "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                    ));
                }
                (Some(VersionMatch::Exact), Some(_)) => {
                    return Err(invalid(
                        "resourceVersionMatch",
                        "FieldValueNotSupported",
                        "Unsupported value: \"Exact\": supported values: \"NotOlderThan\"",
                    ));
                }
                (Some(VersionMatch::NotOlderThan), Some(true)) if !self.bookmarks => {
                    return Err(forbidden("sendInitialEvents", "sendInitialEvents requires allowWatchBookmarks"));
                }
                _ => {}
            }
            return Ok(());
        }
        if self.send_initial_events.is_some() {
            return Err(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        if let Some(matching) = self.version_match {
            if self.resource_version.is_none() {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if self.continue_token.is_some() {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if matching == VersionMatch::Exact && self.resource_version == Some(0) {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if self.continue_token.is_some() && self.resource_version.is_some_and(|revision| revision != 0) {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        Ok(())
    }
}

fn invalid(field: &str, reason: &str, message: &str) -> ApiError {
    ApiError::invalid_field("meta.k8s.io", "ListOptions", "", reason, field, message)
}

/// A resourceVersion as text; empty and absent are the same.
pub(crate) fn parse_revision(text: Option<&str>) -> Result<Option<Revision>, ApiError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!("resourceVersion: Invalid value: {text:?}: must be a decimal number"))
        }),
    }
}

/// What happens to unknown and doubled fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// They are dropped in silence.
    Ignore,
    /// They are dropped, the answer has a warning for each.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

/// Options of create, update and patch.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Nothing is stored.
    pub dry_run: bool,
    /// Name of the field manager; server-side apply demands it, others fall back to the user agent.
    pub field_manager: Option<String>,
    /// What happens to unknown fields.
    pub field_validation: FieldValidation,
    /// Server-side apply takes ownership of fields in conflict.
    pub force: bool,
}

impl WriteOptions {
    /// Parses the query of a write.
    pub(crate) fn parse(query: &Query, apply: bool) -> Result<Self, ApiError> {
        let kind = if apply { "PatchOptions" } else { "CreateOptions" };
        let field_manager = query.get("fieldManager").map(str::to_owned);
        if let Some(manager) = &field_manager {
            if manager.chars().count() > 128 {
                return Err(ApiError::invalid_field(
                    "meta.k8s.io",
                    kind,
                    "",
                    "FieldValueTooLong",
                    "fieldManager",
                    "Too long: may not be more than 128 bytes",
                ));
            }
            if manager.chars().any(char::is_control) {
                return Err(ApiError::invalid_field(
                    "meta.k8s.io",
                    kind,
                    "",
                    "FieldValueInvalid",
                    "fieldManager",
                    format!("Invalid value: {manager:?}: should only contain printable characters"),
                ));
            }
        }
        let force = query.flag("force")?;
        if force && !apply {
            return Err(ApiError::invalid_field(
                "meta.k8s.io",
                "PatchOptions",
                "",
                "FieldValueForbidden",
                "force",
                "Forbidden: may not be specified for non-apply patch",
            ));
        }
        if apply && field_manager.is_none() {
            return Err(ApiError::invalid_field(
                "meta.k8s.io",
                "PatchOptions",
                "",
                "FieldValueRequired",
                "fieldManager",
                "Required value: is required for apply patch",
            ));
        }
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(ApiError::invalid_field(
                    "meta.k8s.io",
                    kind,
                    "",
                    "FieldValueNotSupported",
                    "fieldValidation",
                    format!("Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""),
                ));
            }
        };
        Ok(Self { dry_run: dry_run(query.get("dryRun"), kind)?, field_manager, field_validation, force })
    }
}

/// `dryRun`: absent or `All`.
pub(crate) fn dry_run(value: Option<&str>, kind: &str) -> Result<bool, ApiError> {
    match value {
        None => Ok(false),
        Some("All") => Ok(true),
        Some(other) => Err(ApiError::invalid_field(
            "meta.k8s.io",
            kind,
            "",
            "FieldValueNotSupported",
            "dryRun",
            format!("Unsupported value: {other:?}: supported values: \"All\""),
        )),
    }
}

/// What the user wants done; the verb of authorisation and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The verb of a method on a path with or without object name.
    pub(crate) fn of(method: &Method, named: bool, watch: bool) -> Option<Self> {
        Some(match (method.as_str(), named) {
            // One object by its name is read, never watched: a watch of one is a list with a field selector.
            ("GET" | "HEAD", true) => Self::Get,
            ("GET" | "HEAD", false) if watch => Self::Watch,
            ("GET" | "HEAD", false) => Self::List,
            ("POST", _) => Self::Create,
            ("PUT", _) => Self::Update,
            ("PATCH", _) => Self::Patch,
            ("DELETE", true) => Self::Delete,
            ("DELETE", false) => Self::DeleteCollection,
            _ => return None,
        })
    }

    /// Its name in rules and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(path: &str) -> ObjectRoute {
        match Route::parse(path) {
            Route::Object(route) => route,
            other => panic!("{path} parsed as {other:?}"),
        }
    }

    #[test]
    fn paths_parse_to_routes() {
        let route = object("/api/v1/namespaces/default/pods/x/log");
        assert_eq!(
            (route.namespace.as_deref(), route.name.as_deref(), route.subresource.as_deref()),
            (Some("default"), Some("x"), Some("log"))
        );
        let route = object("/api/v1/namespaces/default");
        assert_eq!((&*route.plural, route.namespace, route.name.as_deref()), ("namespaces", None, Some("default")));
        let route = object("/api/v1/namespaces/x/finalize");
        assert_eq!((&*route.plural, route.subresource.as_deref()), ("namespaces", Some("finalize")));
        let route = object("/apis/storage.k8s.io/v1/csidrivers/a%2Eb");
        assert_eq!((&*route.group, route.name.as_deref()), ("storage.k8s.io", Some("a.b")));
        assert_eq!(Route::parse("/apis/apps/v1/"), Route::Resources { group: "apps".into(), version: "v1".into() });
        assert_eq!(Route::parse("/api/v1//pods"), Route::Unknown);
        assert_eq!(Route::parse("/api/v1/pods/%zz"), Route::Unknown);
        assert_eq!(Route::parse("/openapi/v2"), Route::Other("openapi/v2".into()));
    }

    #[test]
    fn list_options_are_cross_checked() {
        let parse = |text: &str| ListOptions::parse(&Query::parse(Some(text)));
        assert!(parse("limit=500&resourceVersion=0").is_ok());
        for (query, code) in [
            ("resourceVersionMatch=Exact", 422),
            ("resourceVersionMatch=Exact&resourceVersion=0", 422),
            ("resourceVersionMatch=Bogus&resourceVersion=1", 422),
            ("sendInitialEvents=true", 422),
            ("watch=true&sendInitialEvents=true", 422),
            ("watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", 422),
            ("watch=true&resourceVersionMatch=NotOlderThan", 422),
            ("continue=x&resourceVersion=5", 400),
            ("resourceVersion=abc", 400),
            ("limit=many", 400),
        ] {
            assert_eq!(parse(query).expect_err(query).code, code, "{query}");
        }
        assert!(
            parse("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true").is_ok()
        );
    }
}
