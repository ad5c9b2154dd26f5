//! Who asks ([`Authenticator`]) and whether they may ([`Authorizer`]).

mod impersonate;
mod rbac;
mod review;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, header};

pub(crate) use impersonate::impersonate;
pub(crate) use rbac::{Rbac, seeds};
pub(crate) use review::review;
pub(crate) use token::{Bound, ISSUER, TokenIssuer, TokenSubject};

use crate::request::Verb;
use crate::status::ApiError;

/// An authenticated identity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// Name, such as `kubernetes-admin`.
    pub name: String,
    /// UID; empty for users that are only a name.
    pub uid: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` included.
    pub groups: Vec<String>,
    /// Further attributes, such as the pod of a service account token.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The group that every check lets pass.
pub(crate) const MASTERS: &str = "system:masters";

impl User {
    /// A named user that is authenticated.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        groups.push("system:authenticated".to_owned());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// A part of the lab itself, such as a controller: passes every check.
    pub fn system(name: impl Into<String>) -> Self {
        Self::new(name, &[MASTERS])
    }

    pub(crate) fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }

    /// Whether authorisation is skipped.
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}

/// A client certificate's user: CN is the name, each O a group. `None` if it cannot be read or has no CN.
pub(crate) fn certificate_user(der: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups: Vec<&str> = subject.iter_organization().filter_map(|part| part.as_str().ok()).collect();
    (!name.is_empty()).then(|| User::new(name, &groups))
}

/// Turns credentials into a user.
pub(crate) struct Authenticator {
    /// Static bearer tokens.
    tokens: Vec<(String, User)>,
    issuer: Arc<TokenIssuer>,
}

impl Authenticator {
    pub(crate) fn new(tokens: Vec<(String, User)>, issuer: Arc<TokenIssuer>) -> Self {
        Self { tokens, issuer }
    }

    /// The user of a request: client certificate, then bearer token, then anonymous. Bad credentials are a 401 even
    /// where anonymous access would do. `exists` tells whether the objects that a token is bound to are still there.
    pub(crate) fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&User>,
        now: i64,
        exists: &dyn Fn(&TokenSubject) -> bool,
    ) -> Result<User, ApiError> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(User::anonymous()) };
        let value = value.to_str().map_err(|_| ApiError::unauthorized())?;
        let token = match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            // Basic authentication is long gone; what is sent that way cannot be right.
            _ => return Err(ApiError::unauthorized()),
        };
        self.token_user(token, now, &[], exists).map(|(user, _)| user).ok_or_else(ApiError::unauthorized)
    }

    /// The user of a bearer token and the audiences it is good for; `audiences` empty means the API server's own.
    pub(crate) fn token_user(
        &self,
        token: &str,
        now: i64,
        audiences: &[String],
        exists: &dyn Fn(&TokenSubject) -> bool,
    ) -> Option<(User, Vec<String>)> {
        for (known, user) in &self.tokens {
            if constant_time_eq(known.as_bytes(), token.as_bytes()) {
                return Some((user.clone(), audiences.to_vec()));
            }
        }
        let subject = self.issuer.verify(token, now, audiences)?;
        exists(&subject).then(|| (subject.user(), subject.audiences.clone()))
    }
}

/// Compares without telling by its duration where the first difference is.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differences, (x, y)| differences | (x ^ y)) == 0
}

/// What a user wants to do.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a User,
    /// `get`, `list`, ...
    pub verb: &'a str,
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural resource; empty for a path that is no resource.
    pub resource: &'a str,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Namespace, empty for cluster scope or all namespaces.
    pub namespace: &'a str,
    /// Object name or empty.
    pub name: &'a str,
    /// Path, if this is no resource.
    pub path: &'a str,
}

impl Attributes<'_> {
    /// The 403 that a refusal answers with.
    pub(crate) fn refusal(&self) -> ApiError {
        let user = &self.user.name;
        let verb = self.verb;
        if self.resource.is_empty() {
            return ApiError::new(
                http::StatusCode::FORBIDDEN,
                "Forbidden",
                format!("forbidden: User \"{user}\" cannot {verb} path \"{}\"", self.path),
            );
        }
        let resource = if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let place = if self.namespace.is_empty() || self.resource == "namespaces" {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", self.namespace)
        };
        ApiError::forbidden(
            self.group,
            self.resource,
            self.name,
            format!("User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{}\" {place}", self.group),
        )
    }
}

/// Decides whether a request may go on. Implementations see every request, discovery included.
pub trait Authorizer: Send + Sync {
    /// Whether the attributes are allowed.
    fn allowed(&self, attributes: &Attributes<'_>) -> bool;
}

/// The attributes' verb of a request to a path that is no resource.
pub(crate) fn path_verb(verb: Option<Verb>) -> &'static str {
    match verb {
        Some(Verb::Create) => "post",
        Some(Verb::Update) => "put",
        Some(Verb::Patch) => "patch",
        Some(Verb::Delete | Verb::DeleteCollection) => "delete",
        _ => "get",
    }
}
