//! An API server in memory, as far as the provisioner touches one, with the volume controller's part of the story, and with faults.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::effects::Effects;

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;
/// Resource, namespace, name.
type Key = (String, String, String);

/// How a request goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Not carried out.
    Refuse(u16),
    /// Carried out, but the answer is this.
    Garble(u16),
}

/// What happens to watches that are cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// They may go on where they were.
    Resume,
    /// Their position has expired, says an event.
    ExpireByEvent,
    /// Their position has expired, says the answer's status.
    ExpireByStatus,
}

/// A fault for the next requests of this method whose path contains this text.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) fault: Fault,
    pub(crate) times: u32,
}

#[derive(Default)]
struct State {
    revision: u64,
    uids: u64,
    objects: BTreeMap<Key, Value>,
    /// Revision, kind of change, resource, object.
    log: Vec<(u64, &'static str, String, Value)>,
    /// Watches from before this revision are told that it has expired.
    compacted: u64,
    /// Whether they are told so by an event, rather than by the status of the answer.
    expire_by_event: bool,
    faults: Vec<Planned>,
    /// Whether the volume controller has stopped.
    unbinding: bool,
    /// Reason and message of each event.
    events: Vec<(String, String)>,
    /// `METHOD resource` of each request but watches.
    requests: Vec<String>,
}

/// The server. Clones share the state.
#[derive(Clone)]
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    /// Changing it ends all watches.
    cut: Arc<watch::Sender<u64>>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), changed: Arc::new(watch::Sender::new(0)), cut: Arc::new(watch::Sender::new(0)) }
    }

    /// A client; its writes count as effects.
    pub(crate) fn client(&self, effects: Effects) -> kube::Client {
        kube::Client::new(Service { cluster: self.clone(), effects }, "default")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn plan(&self, method: Method, path: &'static str, fault: Fault, times: u32) {
        self.state().faults.push(Planned { method, path, fault, times });
    }

    /// Ends all watches; with `expire`, their positions are no good any more.
    pub(crate) fn cut_watches(&self, how: Cut) {
        {
            let mut state = self.state();
            state.expire_by_event = how == Cut::ExpireByEvent;
            if how != Cut::Resume {
                // No position is good any more but that of a new list.
                state.revision += 1;
                state.compacted = state.revision;
            }
        }
        self.cut.send_modify(|count| *count += 1);
    }

    /// How often `METHOD resource` was asked for.
    pub(crate) fn requests(&self, what: &str) -> usize {
        self.state().requests.iter().filter(|request| *request == what).count()
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state().objects.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn list(&self, resource: &str) -> Vec<Value> {
        let state = self.state();
        state.objects.iter().filter(|((r, ..), _)| r == resource).map(|(_, object)| object.clone()).collect()
    }

    /// Stops the volume controller, or lets it go on.
    pub(crate) fn stop_binding(&self, stop: bool) {
        self.state().unbinding = stop;
        self.settle();
    }

    /// The messages of the events with this reason.
    pub(crate) fn events(&self, reason: &str) -> Vec<String> {
        let state = self.state();
        state.events.iter().filter(|(r, _)| r == reason).map(|(_, message)| message.clone()).collect()
    }

    /// Creates or replaces an object, as some other program would.
    pub(crate) fn put(&self, resource: &str, mut object: Value) -> Value {
        let mut state = self.state();
        let key = key_of(resource, &object);
        if let Some(old) = state.objects.get(&key) {
            object["metadata"]["uid"] = old["metadata"]["uid"].clone();
        } else {
            state.uids += 1;
            object["metadata"]["uid"] = format!("00000000-0000-4000-8000-{:012}", state.uids).into();
        }
        let object = store(&mut state, key, object);
        drop(state);
        self.settle();
        object
    }

    /// Deletes an object, as a user would.
    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        remove(&mut state, &(resource.to_owned(), namespace.to_owned(), name.to_owned()));
        drop(state);
        self.settle();
    }

    /// Waits until `check` finds what it looks for.
    pub(crate) async fn until<T>(&self, what: &str, check: impl Fn(&Self) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(30), async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = check(self) {
                    return found;
                }
                // Not all that is waited for is a change of the API: look again from time to time.
                let _ = tokio::time::timeout(std::time::Duration::from_millis(50), changed.changed()).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    /// The volume controller: binds claims to the volumes made for them, releases volumes whose claim is gone.
    fn settle(&self) {
        let mut state = self.state();
        if state.unbinding {
            let revision = state.revision;
            drop(state);
            self.changed.send_replace(revision);
            return;
        }
        let volumes: Vec<_> = state
            .objects
            .iter()
            .filter(|((resource, ..), _)| resource == "persistentvolumes")
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        for (key, mut volume) in volumes {
            let wanted = volume["spec"]["claimRef"].clone();
            let claim_key = (
                "persistentvolumeclaims".to_owned(),
                wanted["namespace"].as_str().unwrap_or_default().to_owned(),
                wanted["name"].as_str().unwrap_or_default().to_owned(),
            );
            let claim =
                state.objects.get(&claim_key).filter(|claim| claim["metadata"]["uid"] == wanted["uid"]).cloned();
            let phase = match claim {
                None => "Released",
                Some(mut claim) => {
                    if claim["spec"]["volumeName"].is_null() {
                        claim["spec"]["volumeName"] = key.2.clone().into();
                        claim["status"]["phase"] = "Bound".into();
                        store(&mut state, claim_key, claim);
                    }
                    "Bound"
                }
            };
            if volume["status"]["phase"] != phase {
                volume["status"]["phase"] = phase.into();
                store(&mut state, key, volume);
            }
        }
        let revision = state.revision;
        drop(state);
        self.changed.send_replace(revision);
    }

    fn handle(&self, method: &Method, path: &str, query: &str, content_type: &str, body: &[u8]) -> Reply {
        let Some((resource, namespace, name)) = parse(path) else {
            return status(404, "NotFound", "no such path");
        };
        if query.contains("watch=") {
            return self.watch(&resource, query);
        }
        let mut state = self.state();
        state.requests.push(format!("{method} {resource}"));
        let fault = state
            .faults
            .iter_mut()
            .find(|fault| fault.times > 0 && fault.method == method && path.contains(fault.path))
            .map(|fault| {
                fault.times -= 1;
                fault.fault.clone()
            });
        drop(state);
        if let Some(Fault::Refuse(code)) = fault {
            return status(code, "Injected", "injected fault");
        }
        let reply = self.carry_out(method, &resource, namespace, name, content_type, body);
        self.settle();
        match fault {
            Some(Fault::Garble(code)) => status(code, "Injected", "injected fault"),
            _ => reply,
        }
    }

    fn carry_out(
        &self,
        method: &Method,
        resource: &str,
        namespace: String,
        name: Option<String>,
        content_type: &str,
        body: &[u8],
    ) -> Reply {
        let mut state = self.state();
        let Some(name) = name else {
            if method == Method::GET {
                let items: Vec<_> = state
                    .objects
                    .iter()
                    .filter(|((r, ns, _), _)| r == resource && (namespace.is_empty() || *ns == namespace))
                    .map(|(_, object)| object.clone())
                    .collect();
                let revision = state.revision.to_string();
                return reply(
                    200,
                    &json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": revision }, "items": items }),
                );
            }
            let mut object: Value = serde_json::from_slice(body).unwrap();
            if resource == "events" {
                let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
                state.events.push((text("reason"), text("message")));
                return reply(201, &object);
            }
            if !namespace.is_empty() {
                object["metadata"]["namespace"] = namespace.into();
            }
            let key = key_of(resource, &object);
            if state.objects.contains_key(&key) {
                return status(409, "AlreadyExists", "it exists already");
            }
            state.uids += 1;
            object["metadata"]["uid"] = format!("00000000-0000-4000-8000-{:012}", state.uids).into();
            return reply(201, &store(&mut state, key, object));
        };
        let key = (resource.to_owned(), namespace, name);
        let Some(mut object) = state.objects.get(&key).cloned() else {
            return status(404, "NotFound", &format!("{resource} {:?} not found", key.2));
        };
        match *method {
            Method::GET => reply(200, &object),
            Method::DELETE => {
                let options: Value = serde_json::from_slice(body).unwrap_or_default();
                let uid = &options["preconditions"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return status(409, "Conflict", "another object");
                }
                match remove(&mut state, &key) {
                    Some(left) => reply(200, &left),
                    None => reply(200, &json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })),
                }
            }
            Method::PATCH => {
                if content_type.contains("json-patch") {
                    let patch: json_patch::Patch = serde_json::from_slice(body).unwrap();
                    if json_patch::patch(&mut object, &patch).is_err() {
                        return status(422, "Invalid", "the patch does not apply");
                    }
                } else {
                    json_patch::merge(&mut object, &serde_json::from_slice(body).unwrap());
                }
                let has_finalizers = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
                let object = store(&mut state, key.clone(), object);
                if !object["metadata"]["deletionTimestamp"].is_null() && !has_finalizers {
                    remove(&mut state, &key);
                }
                reply(200, &object)
            }
            _ => status(405, "MethodNotAllowed", "not allowed"),
        }
    }

    fn watch(&self, resource: &str, query: &str) -> Reply {
        let from: u64 = query
            .split('&')
            .find_map(|part| part.strip_prefix("resourceVersion="))
            .and_then(|text| text.parse().ok())
            .unwrap_or_default();
        if from < self.state().compacted {
            let expired = status(410, "Expired", "too old resource version");
            if !self.state().expire_by_event {
                return expired;
            }
            let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410 });
            return reply(200, &json!({ "type": "ERROR", "object": status }));
        }
        let changed = self.changed.subscribe();
        let cut = self.cut.subscribe();
        let start = (self.clone(), resource.to_owned(), from, changed, cut);
        let frames = stream::unfold(start, |(cluster, resource, mut from, mut changed, mut cut)| async move {
            loop {
                changed.borrow_and_update();
                let mut lines = Vec::new();
                {
                    let state = cluster.state();
                    let seen = from;
                    for (revision, kind, _, object) in
                        state.log.iter().filter(|(revision, _, r, _)| *revision > seen && *r == resource)
                    {
                        lines.extend(json!({ "type": kind, "object": object }).to_string().into_bytes());
                        lines.push(b'\n');
                        from = *revision;
                    }
                }
                if !lines.is_empty() {
                    let frame = Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(lines)));
                    return Some((frame, (cluster, resource, from, changed, cut)));
                }
                tokio::select! {
                    _ = cut.changed() => return None,
                    outcome = changed.changed() => outcome.ok()?,
                }
            }
        });
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

/// Resource, namespace and name of a path.
fn parse(path: &str) -> Option<(String, String, Option<String>)> {
    let mut parts: Vec<_> = path.trim_matches('/').split('/').collect();
    parts.drain(..if parts.first() == Some(&"api") { 2 } else { 3 }.min(parts.len()));
    let namespace = if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        let namespace = parts[1].to_owned();
        parts.drain(..2);
        namespace
    } else {
        String::new()
    };
    let name = parts.get(1).map(|name| (*name).to_owned());
    Some(((*parts.first()?).to_owned(), namespace, name))
}

fn key_of(resource: &str, object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (resource.to_owned(), text("namespace"), text("name"))
}

fn store(state: &mut State, key: Key, mut object: Value) -> Value {
    state.revision += 1;
    object["metadata"]["resourceVersion"] = state.revision.to_string().into();
    let kind = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
    let resource = key.0.clone();
    state.log.push((state.revision, kind, resource, object.clone()));
    state.objects.insert(key, object.clone());
    object
}

/// Deletes, or marks what has finalizers. Returns what is left.
fn remove(state: &mut State, key: &Key) -> Option<Value> {
    let mut object = state.objects.get(key)?.clone();
    let has_finalizers = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    if has_finalizers {
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            object = store(state, key.clone(), object);
        }
        return Some(object);
    }
    state.objects.remove(key);
    state.revision += 1;
    object["metadata"]["resourceVersion"] = state.revision.to_string().into();
    state.log.push((state.revision, "DELETED", key.0.clone(), object));
    None
}

fn reply(code: u16, object: &Value) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(object.to_string())).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn status(code: u16, reason: &str, message: &str) -> Reply {
    reply(
        code,
        &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code }),
    )
}

#[derive(Clone)]
struct Service {
    cluster: Cluster,
    effects: Effects,
}

impl tower::Service<Request<Body>> for Service {
    type Response = Reply;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Reply, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { cluster, effects } = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let query = head.uri.query().unwrap_or_default().to_owned();
            let content_type = head
                .headers
                .get(http::header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned();
            let run = || cluster.handle(&head.method, head.uri.path(), &query, &content_type, &body);
            let is_effect = head.method != Method::GET && !head.uri.path().ends_with("/events");
            Ok(if is_effect { effects.perform(async { run() }).await } else { run() })
        })
    }
}
