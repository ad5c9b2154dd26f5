//! From an HTTP request to its answer: authentication, authorisation, dispatch, negotiation.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use outrigger_lab_machinery::table::IncludeObject;
use serde_json::Value;

use crate::api::Api;
use crate::auth::{Attributes, TokenIssuer, User, impersonate, path_verb, review};
use crate::body::{Body, failure, json, respond};
use crate::delete::DeleteOptions;
use crate::discovery;
use crate::kinds::{KindInfo, Subresource, SubresourceKind, Verbs};
use crate::negotiate::{self, Encoding, Form, Shape, negotiate};
use crate::openapi::{Tagged, tagged};
use crate::ownership::Ownership;
use crate::part::Part;
use crate::patch::Patch;
use crate::present::{Lines, yaml};
use crate::request::{ListOptions, ObjectRoute, Query, Route, Verb, WriteOptions, parse_revision};
use crate::status::ApiError;
use crate::write::{Actor, Target, Written};

/// Largest request body in bytes.
pub(crate) const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// Content-Type of the protobuf form of `/openapi/v2`. Clients ask for it as `...spec.v2@v1.0+protobuf`, which is no valid
/// media type in an answer: Go's parser refuses the `@`.
const OPENAPI_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Paths that anybody may read.
const PUBLIC: [&str; 4] = ["version", "healthz", "livez", "readyz"];

impl Api {
    /// Answers one request. `certificate` is the user of the connection's verified client certificate.
    pub async fn handle(&self, request: Request<Bytes>, certificate: Option<&User>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let query = Query::parse(parts.uri.query());
        let route = Route::parse(parts.uri.path());
        let now = self.now().as_second();
        // Failures are answered in the encoding that the client reads, whatever shape it asked for.
        let form = negotiate(&parts.headers, false).map_or(Form::JSON, |form| Form { shape: Shape::Whole, ..form });
        let alive = |subject: &_| self.token_is_alive(subject);
        let authenticated = self.0.authenticator.authenticate(&parts.headers, certificate, now, &alive);
        let (verb, resource) = label(&parts.method, &route, &query);
        let call = Call {
            api: self,
            method: &parts.method,
            path: parts.uri.path(),
            headers: &parts.headers,
            query: &query,
            body: &body,
        };
        let result = match authenticated.and_then(|user| impersonate(self, &parts.headers, user)) {
            Ok(user) => call.route(&route, &user).await,
            Err(error) => Err(error),
        };
        let response = result.unwrap_or_else(|error| failure(&error, form));
        self.0.metrics.count(verb, resource, response.status().as_u16());
        response
    }
}

/// Verb and resource of the metrics. Resources that do not exist share one label.
fn label<'a>(method: &Method, route: &'a Route, query: &Query) -> (&'static str, &'a str) {
    match route {
        Route::Object(object) => {
            let watch = query.flag("watch").unwrap_or(false);
            (Verb::of(method, object.name.is_some(), watch).map_or("other", Verb::name), object.plural.as_str())
        }
        _ => ("get", ""),
    }
}

/// One request on its way.
struct Call<'a> {
    api: &'a Api,
    method: &'a Method,
    path: &'a str,
    headers: &'a HeaderMap,
    query: &'a Query,
    body: &'a Bytes,
}

impl Call<'_> {
    async fn route(&self, route: &Route, user: &User) -> Result<Response<Body>, ApiError> {
        match route {
            Route::Object(object) => self.object(object, user).await,
            Route::Unknown => {
                self.authorize_path(user)?;
                Err(ApiError::no_path())
            }
            other => {
                if !matches!(other, Route::Other(path) if PUBLIC.contains(&path.split('/').next().unwrap_or_default()))
                {
                    self.authorize_path(user)?;
                }
                self.document(other)
            }
        }
    }

    fn authorize_path(&self, user: &User) -> Result<(), ApiError> {
        let verb = path_verb(Verb::of(self.method, true, false));
        self.api.authorize(&Attributes {
            user,
            verb,
            group: "",
            resource: "",
            subresource: "",
            namespace: "",
            name: "",
            path: self.path,
        })
    }

    /// Everything that is not about objects.
    fn document(&self, route: &Route) -> Result<Response<Body>, ApiError> {
        if !matches!(*self.method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        let registry = self.api.registry();
        match route {
            Route::CoreVersions | Route::Groups => {
                let core = matches!(route, Route::CoreVersions);
                if let Some(version) = discovery::aggregated_version(self.headers) {
                    let document = discovery::aggregated(&registry, core, version);
                    return Ok(
                        self.etag(tagged(document.to_string().into()), discovery::aggregated_content_type(version))
                    );
                }
                let document = if core {
                    discovery::core_versions(&registry, &self.api.0.config.server)
                } else {
                    discovery::groups(&registry)
                };
                self.value(&document)
            }
            Route::Group(name) => {
                let group =
                    registry.group(name).filter(|group| !group.name.is_empty()).ok_or_else(ApiError::no_path)?;
                self.value(&discovery::group(group, true))
            }
            Route::Resources { group, version } => {
                let kinds = registry.version(group, version).ok_or_else(ApiError::no_path)?;
                self.value(&discovery::resources(group, version, kinds.values().map(Arc::as_ref)))
            }
            Route::Other(path) => self.other(path),
            Route::Object(_) | Route::Unknown => Err(ApiError::no_path()),
        }
    }

    fn other(&self, path: &str) -> Result<Response<Body>, ApiError> {
        let api = self.api;
        match path {
            "version" => Ok(json(StatusCode::OK, &discovery::version(&api.0.config.version))),
            "healthz" | "livez" | "readyz" => {
                let stopping = path == "readyz" && api.0.stopping.is_cancelled();
                Ok(health(path, self.query.has("verbose"), stopping))
            }
            "metrics" => Ok(respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", api.metrics_text())),
            "openapi/v2" => {
                let protobuf = negotiate::clauses(&negotiate::accept(self.headers))
                    .into_iter()
                    .find_map(|clause| match clause.media {
                        media if media.starts_with("application/com.github.proto-openapi.spec.v2") => Some(true),
                        "application/json" | "*/*" | "application/*" => Some(false),
                        _ => None,
                    })
                    .unwrap_or(false);
                let document = api.openapi_v2(protobuf);
                Ok(self.etag(document, if protobuf { OPENAPI_PROTOBUF } else { "application/json" }))
            }
            "openapi/v3" => self.value(&api.openapi_v3_index()),
            "openid/v1/jwks" => Ok(json(StatusCode::OK, &api.0.issuer.key_set())),
            ".well-known/openid-configuration" => {
                Ok(json(StatusCode::OK, &TokenIssuer::configuration(&api.0.config.server)))
            }
            path => {
                let document = path
                    .strip_prefix("openapi/v3/")
                    .and_then(|path| api.openapi_v3(path))
                    .ok_or_else(ApiError::no_path)?;
                Ok(self.etag(document, "application/json"))
            }
        }
    }

    /// A document in JSON or YAML.
    fn value(&self, value: &Value) -> Result<Response<Body>, ApiError> {
        let form = negotiate(self.headers, false).or_else(|error| {
            // Discovery clients may name only forms of it that are not for this path.
            if negotiate::accept(self.headers).contains("application/json") { Ok(Form::JSON) } else { Err(error) }
        })?;
        Ok(match form.encoding {
            Encoding::Json => json(StatusCode::OK, value),
            Encoding::Yaml => respond(StatusCode::OK, "application/yaml", yaml(value)),
        })
    }

    /// A document with an ETag, or 304 if the client has it.
    fn etag(&self, document: Tagged, content_type: &'static str) -> Response<Body> {
        let quoted = format!("\"{}\"", document.etag);
        let known =
            self.headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
                value.split(',').any(|tag| tag.trim().trim_start_matches("W/").trim_matches('"') == document.etag)
            });
        let mut response = if known {
            let mut response = Response::new(Body::Full(None));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            respond(StatusCode::OK, content_type, document.bytes)
        };
        if let Ok(value) = HeaderValue::from_str(&quoted) {
            response.headers_mut().insert(header::ETAG, value);
        }
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        response
    }

    /// Requests about objects.
    async fn object(&self, route: &ObjectRoute, user: &User) -> Result<Response<Body>, ApiError> {
        let watch = self.query.flag("watch").unwrap_or(false) && route.subresource.is_none();
        let verb = Verb::of(self.method, route.name.is_some(), watch).ok_or_else(ApiError::method_not_allowed)?;
        // Rights are looked at first: who may not know of a resource is not told whether it exists.
        // A selector names what is read; what is created or deleted it does not.
        let selected = match &route.name {
            Some(name) => Some(name.clone()),
            None if !matches!(verb, Verb::List | Verb::Watch) => None,
            None => self
                .query
                .get("fieldSelector")
                .and_then(|text| text.strip_prefix("metadata.name="))
                .filter(|name| !name.contains(','))
                .map(str::to_owned),
        };
        self.api.authorize(&Attributes {
            user,
            verb: verb.name(),
            group: &route.group,
            resource: &route.plural,
            subresource: route.subresource.as_deref().unwrap_or_default(),
            namespace: match (&*route.plural, &route.name) {
                ("namespaces", Some(name)) if route.group.is_empty() => name,
                _ => route.namespace.as_deref().unwrap_or_default(),
            },
            name: selected.as_deref().unwrap_or_default(),
            path: self.path,
        })?;
        let registry = self.api.registry();
        let kinds = registry.version(&route.group, &route.version).ok_or_else(ApiError::no_path)?;
        let kind = kinds.get(route.plural.as_str()).ok_or_else(ApiError::no_resource)?;
        let mut response = self.resource(kind, route, verb, user).await?;
        if let Some(warning) = kind.custom.as_ref().and_then(|custom| custom.deprecation.as_ref()) {
            add_warnings(&mut response, std::slice::from_ref(warning));
        }
        Ok(response)
    }

    async fn resource(
        &self,
        kind: &Arc<KindInfo>,
        route: &ObjectRoute,
        verb: Verb,
        user: &User,
    ) -> Result<Response<Body>, ApiError> {
        if route.namespace.is_some() && !kind.namespaced {
            return Err(ApiError::no_resource());
        }
        let target = Target {
            kind: Arc::clone(kind),
            namespace: route.namespace.clone().unwrap_or_default(),
            name: route.name.clone().unwrap_or_default(),
        };
        // A name without a namespace is no object of a namespaced kind.
        let whole = route.name.is_none() && matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
        if kind.namespaced && route.namespace.is_none() && !whole {
            return Err(if verb == Verb::Create { ApiError::method_not_allowed() } else { ApiError::no_resource() });
        }
        let agent = self.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let actor = Actor { user, agent };
        if let Some(name) = &route.subresource {
            let sub = kind.subresource(name).filter(|_| route.rest.is_none()).ok_or_else(ApiError::no_resource)?;
            return self.subresource(&target, sub, verb, actor).await;
        }
        let nameless = route.name.is_none() && matches!(verb, Verb::Update | Verb::Patch);
        if nameless || !kind.verbs.has(offered(verb)) {
            return Err(ApiError::method_not_allowed());
        }
        if kind.rules.virtual_kind {
            let body = negotiate::decode(self.headers, self.body)?;
            return self.virtual_kind(&target, body, actor);
        }
        match verb {
            Verb::Get => self.get(&target).await,
            Verb::List => self.list(&target).await,
            Verb::Watch => self.watch(&target).await,
            Verb::Create => {
                if route.name.is_some() {
                    return Err(ApiError::method_not_allowed());
                }
                let options = WriteOptions::parse(self.query, false)?;
                let form = negotiate(self.headers, false)?;
                let body = negotiate::decode(self.headers, self.body)?;
                self.written(&target, form, self.api.create(actor, &target, body, &options, Ownership::Open)?).await
            }
            Verb::Update => {
                let options = WriteOptions::parse(self.query, false)?;
                let form = negotiate(self.headers, false)?;
                let body = negotiate::decode(self.headers, self.body)?;
                self.written(&target, form, self.api.update(actor, &target, Part::Main, body, &options)?).await
            }
            Verb::Patch => self.patch(&target, Part::Main, actor).await,
            Verb::Delete => {
                let options = self.delete_options()?;
                let form = negotiate(self.headers, false)?;
                let deleted = self.api.delete(actor, &target, &options)?;
                self.durable(deleted.revision).await?;
                match deleted.status {
                    Some(status) => Ok(match form.encoding {
                        Encoding::Json => json(StatusCode::OK, &status),
                        Encoding::Yaml => respond(StatusCode::OK, "application/yaml", yaml(&status)),
                    }),
                    None => self.present(&target, StatusCode::OK, deleted.bytes, form),
                }
            }
            Verb::DeleteCollection => {
                let options = self.delete_options()?;
                let mut list = ListOptions::parse(self.query)?;
                list.watch = false;
                let (objects, revision) = self.api.delete_collection(actor, &target, &list, &options).await?;
                self.durable(revision).await?;
                let items = objects.into_iter().map(|bytes| crate::list::Item { bytes, value: None }).collect();
                let page = crate::list::Page { items, revision, continue_token: None, remaining: None };
                Ok(respond(
                    StatusCode::OK,
                    "application/json",
                    self.api.present_list(kind, page, Form::JSON, IncludeObject::None),
                ))
            }
        }
    }

    fn include(&self) -> Result<IncludeObject, ApiError> {
        let text = self.query.get("includeObject").unwrap_or_default();
        IncludeObject::parse(text).ok_or_else(|| {
            ApiError::bad_request(format!("includeObject: {text:?} must be \"None\", \"Metadata\" or \"Object\""))
        })
    }

    fn present(&self, target: &Target, code: StatusCode, bytes: Bytes, form: Form) -> Result<Response<Body>, ApiError> {
        let bytes = self.api.present(&target.kind, bytes, form, self.include()?)?;
        Ok(respond(code, form.content_type(), bytes))
    }

    async fn durable(&self, revision: u64) -> Result<(), ApiError> {
        self.api.store().durable(revision).await.map_err(ApiError::from)
    }

    async fn written(&self, target: &Target, form: Form, written: Written) -> Result<Response<Body>, ApiError> {
        self.durable(written.revision).await?;
        let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
        let mut response = self.present(target, code, written.bytes, form)?;
        add_warnings(&mut response, &written.warnings);
        Ok(response)
    }

    async fn get(&self, target: &Target) -> Result<Response<Body>, ApiError> {
        let form = negotiate(self.headers, false)?;
        if let Some(revision) = parse_revision(self.query.get("resourceVersion"))? {
            self.api.reach(revision).await?;
        }
        let bytes = self.api.served(target)?;
        self.present(target, StatusCode::OK, bytes, form)
    }

    async fn list(&self, target: &Target) -> Result<Response<Body>, ApiError> {
        let form = negotiate(self.headers, false)?;
        let options = ListOptions::parse(self.query)?;
        let include = self.include()?;
        let page = self.api.list(target, &options, Api::needs_values(form)).await?;
        Ok(respond(StatusCode::OK, form.content_type(), self.api.present_list(&target.kind, page, form, include)))
    }

    async fn watch(&self, target: &Target) -> Result<Response<Body>, ApiError> {
        let form = negotiate(self.headers, true)?;
        let options = ListOptions::parse(self.query)?;
        let include = self.include()?;
        let watch = self.api.watch(target, &options).await?;
        let lines = Lines::new(watch, form, include);
        let stream = stream::unfold(lines, |mut lines| async move { lines.next().await.map(|chunk| (chunk, lines)) });
        let mut response = Response::new(Body::Stream(Box::pin(stream)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(response)
    }

    async fn patch(&self, target: &Target, part: Part, actor: Actor<'_>) -> Result<Response<Body>, ApiError> {
        let form = negotiate(self.headers, false)?;
        let patch = Patch::decode(&negotiate::content_type(self.headers)?, self.body)?;
        let options = WriteOptions::parse(self.query, patch.is_apply())?;
        let written = self.api.patch(actor, target, part, &patch, &options)?;
        self.written(target, form, written).await
    }

    fn delete_options(&self) -> Result<DeleteOptions, ApiError> {
        let body = if self.body.is_empty() { Value::Null } else { negotiate::decode(self.headers, self.body)? };
        DeleteOptions::parse(self.query, &body)
    }

    fn virtual_kind(&self, target: &Target, body: Value, actor: Actor<'_>) -> Result<Response<Body>, ApiError> {
        let answer = if &*target.kind.kind == "Binding" {
            self.api.bind(actor, target, &body)?
        } else {
            review(self.api, &target.kind, &target.namespace, actor.user, body)?
        };
        Ok(json(StatusCode::CREATED, &answer))
    }

    async fn subresource(
        &self,
        target: &Target,
        sub: &Subresource,
        verb: Verb,
        actor: Actor<'_>,
    ) -> Result<Response<Body>, ApiError> {
        if !sub.verbs.has(offered(verb)) {
            return Err(ApiError::method_not_allowed());
        }
        let form = negotiate(self.headers, false)?;
        let body = || negotiate::decode(self.headers, self.body);
        let part = match &sub.kind {
            SubresourceKind::Status => Part::Status,
            SubresourceKind::Finalize => Part::Pointer("/spec/finalizers"),
            SubresourceKind::Part { pointer } => Part::Pointer(pointer),
            SubresourceKind::Scale { spec, status, selector } => {
                let paths = crate::scale::Paths { spec, status, selector: selector.as_deref() };
                let scale = match verb {
                    Verb::Get => self.api.scale(target, &paths)?,
                    Verb::Update => {
                        let options = WriteOptions::parse(self.query, false)?;
                        let wanted = body()?;
                        self.api.set_scale(actor, target, &paths, &options, |_| Ok(wanted.clone()))?
                    }
                    _ => {
                        let patch = Patch::decode(&negotiate::content_type(self.headers)?, self.body)?;
                        let options = WriteOptions::parse(self.query, patch.is_apply())?;
                        self.api.set_scale(actor, target, &paths, &options, |scale| {
                            Api::patched_scale(target, scale, &patch)
                        })?
                    }
                };
                return Ok(match form.encoding {
                    Encoding::Json => json(StatusCode::OK, &scale),
                    Encoding::Yaml => respond(StatusCode::OK, "application/yaml", yaml(&scale)),
                });
            }
            SubresourceKind::Binding => return Ok(json(StatusCode::CREATED, &self.api.bind(actor, target, &body()?)?)),
            SubresourceKind::Eviction => {
                return Ok(json(StatusCode::CREATED, &self.api.evict(actor, target, self.query, &body()?)?));
            }
            SubresourceKind::Token => return Ok(json(StatusCode::CREATED, &self.api.request_token(target, body()?)?)),
        };
        if verb == Verb::Get {
            return self.get(target).await;
        }
        let written = if verb == Verb::Update {
            let options = WriteOptions::parse(self.query, false)?;
            self.api.update(actor, target, part, body()?, &options)?
        } else {
            let patch = Patch::decode(&negotiate::content_type(self.headers)?, self.body)?;
            let options = WriteOptions::parse(self.query, patch.is_apply())?;
            self.api.patch(actor, target, part, &patch, &options)?
        };
        self.written(target, form, written).await
    }
}

fn offered(verb: Verb) -> Verbs {
    match verb {
        Verb::Get => Verbs::GET,
        Verb::List => Verbs::LIST,
        Verb::Watch => Verbs::WATCH,
        Verb::Create => Verbs::CREATE,
        Verb::Update => Verbs::UPDATE,
        Verb::Patch => Verbs::PATCH,
        Verb::Delete => Verbs::DELETE,
        Verb::DeleteCollection => Verbs::DELETE_COLLECTION,
    }
}

/// Adds `Warning: 299` headers, bounded as real servers do.
fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings.iter().take(32) {
        let text: String = warning.chars().filter(|c| !c.is_control()).take(256).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

fn health(path: &str, verbose: bool, stopping: bool) -> Response<Body> {
    let checks = [("ping", true), ("log", true), ("store", true), ("shutdown", !stopping)];
    let good = checks.iter().all(|(_, good)| *good);
    let code = if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    if good && !verbose {
        return respond(code, "text/plain; charset=utf-8", "ok");
    }
    let mut text = String::new();
    for (name, good) in checks {
        let _ = if good { writeln!(text, "[+]{name} ok") } else { writeln!(text, "[-]{name} failed") };
    }
    let _ = writeln!(text, "{path} check {}", if good { "passed" } else { "failed" });
    respond(code, "text/plain; charset=utf-8", text)
}
