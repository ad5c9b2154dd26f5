//! An API server in memory, for tests: GET, POST, PUT and PATCH of objects, with resource versions.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

#[derive(Clone, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Objects by path.
    pub(crate) objects: BTreeMap<String, Value>,
    /// The methods and paths asked for.
    pub(crate) log: Vec<String>,
    /// Whether requests fail with 500.
    pub(crate) broken: bool,
    version: u64,
}

impl Fake {
    pub(crate) fn client(&self) -> Client {
        let this = self.clone();
        Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let this = this.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(this.lock().answer(&parts.method, parts.uri.path(), &body))
                }
            }),
            "default",
        )
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn response(code: u16, body: &Value) -> Response<Full<Bytes>> {
    Response::builder().status(code).body(Full::new(body.to_string().into())).unwrap()
}

fn failure(code: u16, reason: &str) -> Response<Full<Bytes>> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code,
        "metadata": {},
    });
    response(code, &status)
}

impl State {
    fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> Response<Full<Bytes>> {
        self.log.push(format!("{method} {path}"));
        if self.broken {
            return failure(500, "InternalError");
        }
        let object: Value = serde_json::from_slice(body).unwrap_or_default();
        match *method {
            Method::GET => match self.objects.get(path) {
                Some(object) => response(200, object),
                None => failure(404, "NotFound"),
            },
            Method::POST => {
                let path = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    return failure(409, "AlreadyExists");
                }
                response(201, &self.store(path, object))
            }
            Method::PUT => match self.objects.get(path) {
                None => failure(404, "NotFound"),
                Some(old) if old["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => {
                    failure(409, "Conflict")
                }
                Some(_) => response(200, &self.store(path.to_owned(), object)),
            },
            Method::PATCH => match self.objects.get(path).cloned() {
                None => failure(404, "NotFound"),
                Some(mut old) => {
                    // Good enough for flat patches.
                    for (key, value) in object.as_object().unwrap() {
                        old[key] = value.clone();
                    }
                    response(200, &self.store(path.to_owned(), old))
                }
            },
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn store(&mut self, path: String, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path, object.clone());
        object
    }
}
