//! Objects, lists and watch events in the form that the client asked for.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use outrigger_lab_machinery::table::{self, IncludeObject, TableOptions};
use serde_json::{Value, json};

use crate::api::Api;
use crate::kinds::KindInfo;
use crate::list::Page;
use crate::negotiate::{Encoding, Form, Shape};
use crate::object::{self, meta};
use crate::shape;
use crate::status::ApiError;
use crate::watch::{Change, EventType, Watch};

/// YAML text of a value.
pub(crate) fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_else(|error| format!("# cannot be written as YAML: {error}\n"))
}

fn encode(value: &Value, encoding: Encoding) -> Bytes {
    match encoding {
        Encoding::Json => object::to_bytes(value).into(),
        Encoding::Yaml => yaml(value).into(),
    }
}

fn version(v1: bool) -> &'static str {
    if v1 { "v1" } else { "v1beta1" }
}

/// The columns of a kind.
pub(crate) fn columns(kind: &KindInfo) -> table::Definition {
    match &kind.custom {
        None => table::builtin(&kind.group, &kind.kind),
        Some(custom) => {
            let columns = Value::Array(custom.columns.clone());
            // Paths are checked when the definition is created; should one slip through, the plain table remains.
            table::Definition::custom(Some(&columns)).unwrap_or_else(|_| table::builtin("", "\u{0}"))
        }
    }
}

impl Api {
    fn table(
        &self,
        kind: &KindInfo,
        items: &[&Value],
        metadata: &Value,
        v1: bool,
        include: IncludeObject,
        definitions: bool,
    ) -> Value {
        let options = TableOptions { version: version(v1), include, definitions, now: self.now() };
        table::to_table(&columns(kind), items.iter().copied(), metadata, &options)
    }

    /// One object. `bytes` is its JSON as served.
    pub(crate) fn present(
        &self,
        kind: &KindInfo,
        bytes: Bytes,
        form: Form,
        include: IncludeObject,
    ) -> Result<Bytes, ApiError> {
        if form == Form::JSON {
            return Ok(bytes);
        }
        let value: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
        Ok(match form.shape {
            Shape::Whole => encode(&value, form.encoding),
            Shape::Metadata { v1 } => encode(&table::partial_metadata(&value, version(v1)), form.encoding),
            Shape::Table { v1 } => {
                let metadata = json!({"resourceVersion": meta(&value, "resourceVersion")});
                encode(&self.table(kind, &[&value], &metadata, v1, include, true), form.encoding)
            }
        })
    }

    /// A list. Stored bytes are put together as they are where that is what the client gets.
    pub(crate) fn present_list(&self, kind: &KindInfo, page: Page, form: Form, include: IncludeObject) -> Bytes {
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        if let Some(token) = &page.continue_token {
            metadata["continue"] = json!(token);
        }
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        match form.shape {
            Shape::Table { v1 } => {
                let items: Vec<&Value> = page.items.iter().filter_map(|item| item.value.as_ref()).collect();
                encode(&self.table(kind, &items, &metadata, v1, include, true), form.encoding)
            }
            Shape::Metadata { v1 } => {
                let items: Vec<Value> = page
                    .items
                    .iter()
                    .filter_map(|item| item.value.as_ref())
                    .map(|value| table::partial_metadata(value, version(v1)))
                    .collect();
                let list = json!({
                    "kind": "PartialObjectMetadataList",
                    "apiVersion": format!("meta.k8s.io/{}", version(v1)),
                    "metadata": metadata,
                    "items": items,
                });
                encode(&list, form.encoding)
            }
            Shape::Whole => {
                let verbatim = shape::verbatim(kind);
                let size: usize = page.items.iter().map(|item| item.bytes.len() + 1).sum();
                let mut out = BytesMut::with_capacity(size + 256);
                let head = format!(
                    "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
                    json!(&*kind.list_kind),
                    json!(&*kind.api_version)
                );
                out.extend_from_slice(head.as_bytes());
                for (index, item) in page.items.iter().enumerate() {
                    if index > 0 {
                        out.extend_from_slice(b",");
                    }
                    match &item.value {
                        Some(value) if !verbatim => out.extend_from_slice(&object::to_bytes(value)),
                        _ => out.extend_from_slice(&item.bytes),
                    }
                }
                out.extend_from_slice(b"]}");
                let bytes = out.freeze();
                match form.encoding {
                    Encoding::Json => bytes,
                    Encoding::Yaml => serde_json::from_slice(&bytes)
                        .map_or_else(|_| bytes.clone(), |value: Value| encode(&value, Encoding::Yaml)),
                }
            }
        }
    }

    /// Whether a list in this form needs decoded objects.
    pub(crate) fn needs_values(form: Form) -> bool {
        form.shape != Shape::Whole
    }
}

/// Turns the changes of a watch into lines of JSON.
pub(crate) struct Lines {
    watch: Watch,
    form: Form,
    include: IncludeObject,
    /// Column definitions go with the first table only.
    first: bool,
    ended: bool,
}

/// Lines of one chunk are put together up to this size.
const CHUNK: usize = 64 * 1024;

impl Lines {
    pub(crate) fn new(watch: Watch, form: Form, include: IncludeObject) -> Self {
        Self { watch, form, include, first: true, ended: false }
    }

    /// The next lines: everything that is there, at least one; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let first = self.watch.next().await?;
        let mut out = self.line(&first);
        let mut more = BytesMut::new();
        while out.len() + more.len() < CHUNK && !self.ended {
            let Some(change) = self.watch.try_next() else { break };
            let line = self.line(&change);
            if more.is_empty() {
                more.reserve(CHUNK.min(out.len() * 8));
            }
            more.extend_from_slice(&line);
        }
        if !more.is_empty() {
            let mut all = BytesMut::with_capacity(out.len() + more.len());
            all.extend_from_slice(&out);
            all.extend_from_slice(&more);
            out = all.freeze();
        }
        Some(out)
    }

    fn line(&mut self, change: &Change) -> Bytes {
        self.ended |= matches!(change, Change::Error(_));
        self.render(change).unwrap_or_else(|error| {
            self.ended = true;
            frame(EventType::Error, &object::to_bytes(&error.to_status()))
        })
    }

    fn render(&mut self, change: &Change) -> Result<Bytes, ApiError> {
        let api = self.watch.api.clone();
        let kind = Arc::clone(&self.watch.kind);
        if self.form == Form::JSON && shape::verbatim(&kind) {
            match change {
                Change::Initial(version) => return Ok(frame(EventType::Added, &version.value)),
                Change::New(ty, event) => return Ok(frame(*ty, &event.value)),
                _ => {}
            }
        }
        // Everything else is made once for all watchers of the same form.
        match change {
            Change::New(ty, event) if !(self.first && matches!(self.form.shape, Shape::Table { .. })) => {
                let mut hasher = DefaultHasher::new();
                (ty, self.form, self.include as u8, &kind.api_version).hash(&mut hasher);
                let revision = event.revision;
                if let Some(bytes) = api.0.events.frame(revision, hasher.finish()) {
                    return Ok(bytes);
                }
                let bytes = self.shape(&api, &kind, change)?;
                api.0.events.remember_frame(revision, hasher.finish(), bytes.clone());
                Ok(bytes)
            }
            change => self.shape(&api, &kind, change),
        }
    }

    fn shape(&mut self, api: &Api, kind: &KindInfo, change: &Change) -> Result<Bytes, ApiError> {
        let (ty, value) = self.watch.decode(change)?;
        let shaped = match (self.form.shape, ty) {
            (Shape::Whole, _) | (_, EventType::Error) => return Ok(frame(ty, &object::to_bytes(&value))),
            (Shape::Metadata { v1 }, _) => table::partial_metadata(&value, version(v1)),
            (Shape::Table { v1 }, EventType::Bookmark) => {
                api.table(kind, &[], &value["metadata"], v1, self.include, false)
            }
            (Shape::Table { v1 }, _) => {
                let metadata = json!({"resourceVersion": meta(&value, "resourceVersion")});
                let definitions = std::mem::replace(&mut self.first, false);
                api.table(kind, &[&*value], &metadata, v1, self.include, definitions)
            }
        };
        Ok(frame(ty, &object::to_bytes(&shaped)))
    }
}

/// One line of a watch.
fn frame(ty: EventType, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(ty.name().as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}
