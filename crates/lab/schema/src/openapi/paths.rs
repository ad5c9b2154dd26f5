//! The paths of a document: what can be done with each resource, and with which parameters.

use serde_json::{Map, Value, json};

use super::definitions::{META, gvk, list_name_of, name_of};
use super::{Dialect, ServedResource, Subresource};
use crate::builtin::builtin;

/// The path of a group and version.
pub(super) fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// A query parameter: name, type and what it does.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "If 'true', then the output is indented.");
const DRY_RUN: Parameter = ("dryRun", "string", "With 'All', everything is done but nothing is stored.");
const FIELD_MANAGER: Parameter = ("fieldManager", "string", "The name of the actor that makes the change.");
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore, Warn (the default) or Strict.",
);
const FORCE: Parameter = ("force", "boolean", "Takes over conflicting fields; for apply patches only.");
const WRITE: &[Parameter] = &[PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const READ: &[Parameter] = &[PRETTY];
const DELETE: &[Parameter] = &[
    PRETTY,
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "How long the object may take to end; 0 means at once."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
];
const LIST: &[Parameter] = &[
    PRETTY,
    ("allowWatchBookmarks", "boolean", "Asks for events of type BOOKMARK."),
    ("continue", "string", "The token with which the former page of a list ended."),
    ("fieldSelector", "string", "Restricts the list by fields."),
    ("labelSelector", "string", "Restricts the list by labels."),
    ("limit", "integer", "The greatest number of items in a page."),
    ("resourceVersion", "string", "The resource version that the answer is to be based on."),
    ("resourceVersionMatch", "string", "How resourceVersion is applied to lists."),
    ("sendInitialEvents", "boolean", "Starts a watch with the objects that are there."),
    ("timeoutSeconds", "integer", "Ends the call after this time."),
    ("watch", "boolean", "Streams changes instead of answering with a list."),
];

/// Subresources whose body is the resource itself.
const SAME_BODY: &[&str] = &["status", "resize", "ephemeralcontainers", "finalize", "approval"];

const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// Custom resources know no strategic merge patch. `kubectl apply` reads from here which patch it may send.
const CUSTOM_PATCH_TYPES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// One operation, before it is written in a dialect.
struct Operation<'a> {
    /// The HTTP method, in lower case.
    method: &'static str,
    /// The verb in the operation's name and in `x-kubernetes-action`.
    verb: &'static str,
    description: String,
    id: String,
    tag: String,
    parameters: Vec<&'a Parameter>,
    body: Option<String>,
    body_types: &'static [&'static str],
    /// The name of the answer's definition; `None` for plain text.
    answer: Option<String>,
    created: bool,
    kind: Value,
}

/// The paths of all resources.
pub(super) fn all(resources: &[&ServedResource], dialect: Dialect) -> Map<String, Value> {
    let mut paths = Map::new();
    for resource in resources {
        let root = root(&resource.group, &resource.version);
        let base = if resource.namespaced {
            format!("{root}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{root}/{}", resource.plural)
        };
        let serves = |verb: &str| resource.verbs.iter().any(|served| &**served == verb);
        let collection: Vec<_> =
            ["list", "create", "deletecollection"].into_iter().filter(|verb| serves(verb)).collect();
        add(
            &mut paths,
            &base,
            dialect,
            resource.namespaced,
            false,
            collection.iter().map(|verb| operation(resource, verb, None)),
        );
        let item: Vec<_> = ["get", "update", "patch", "delete"].into_iter().filter(|verb| serves(verb)).collect();
        let one = format!("{base}/{{name}}");
        add(
            &mut paths,
            &one,
            dialect,
            resource.namespaced,
            true,
            item.iter().map(|verb| operation(resource, verb, None)),
        );
        if resource.namespaced && serves("list") {
            let mut everywhere = operation(resource, "list", None);
            everywhere.id = format!("list{}{}ForAllNamespaces", prefix(resource), resource.kind);
            add(&mut paths, &format!("{root}/{}", resource.plural), dialect, false, false, [everywhere].into_iter());
        }
        for subresource in &resource.subresources {
            let path = format!("{one}/{}", subresource.name);
            let operations = subresource.verbs.iter().map(|verb| operation(resource, verb, Some(subresource)));
            add(&mut paths, &path, dialect, resource.namespaced, true, operations);
        }
    }
    paths
}

fn add<'a>(
    paths: &mut Map<String, Value>,
    path: &str,
    dialect: Dialect,
    namespaced: bool,
    named: bool,
    operations: impl Iterator<Item = Operation<'a>>,
) {
    let mut item = Map::new();
    for operation in operations {
        item.insert(operation.method.to_owned(), operation.write(dialect));
    }
    if item.is_empty() {
        return;
    }
    let mut parameters = Vec::new();
    for (wanted, name, description) in
        [(named, "name", "The object's name."), (namespaced, "namespace", "The object's namespace.")]
    {
        if wanted {
            parameters.push(parameter(dialect, "path", &(name, "string", description)));
        }
    }
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), parameters.into());
    }
    paths.insert(path.to_owned(), item.into());
}

/// Group and version as they stand in an operation's name: `CoreV1`, `StorageV1`.
fn prefix(resource: &ServedResource) -> String {
    let group = if resource.group.is_empty() { "core" } else { resource.group.trim_end_matches(".k8s.io") };
    group.split(['.', '-']).chain([&*resource.version]).map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

fn operation<'a>(resource: &ServedResource, verb: &str, subresource: Option<&Subresource>) -> Operation<'a> {
    let own = name_of(resource);
    // The body of a subresource is the resource itself, a kind of its own, or (for streams and logs) nothing known.
    let foreign = subresource.and_then(|subresource| subresource.kind.as_ref());
    let definition = match foreign {
        Some((group, version, kind)) => builtin().kind(group, version, kind).map(|kind| kind.definition.to_string()),
        None if subresource.is_some_and(|subresource| !SAME_BODY.contains(&&*subresource.name)) => None,
        None => Some(own),
    };
    let kind = match foreign {
        Some((group, version, kind)) => gvk(group, version, kind),
        None => gvk(&resource.group, &resource.version, &resource.kind),
    };
    let (method, action, parameters): (_, _, &[Parameter]) = match verb {
        "list" => ("get", "list", LIST),
        "create" => ("post", "create", WRITE),
        "update" => ("put", "replace", WRITE),
        "patch" => ("patch", "patch", PATCH),
        "delete" => ("delete", "delete", DELETE),
        "deletecollection" => ("delete", "deleteCollection", DELETE),
        _ => ("get", "read", READ),
    };
    let status = Some(format!("{META}Status"));
    let (body, body_types, answer): (_, &[&str], _) = match verb {
        "list" => (None, &[], Some(list_name_of(resource))),
        "create" | "update" => (definition.clone(), &["*/*"], definition),
        "patch" => {
            let types =
                if matches!(resource.source, super::Source::Custom(_)) { CUSTOM_PATCH_TYPES } else { PATCH_TYPES };
            (Some(format!("{META}Patch")), types, definition)
        }
        "delete" | "deletecollection" => (Some(format!("{META}DeleteOptions")), &["*/*"], status),
        _ => (None, &[], definition),
    };
    let scope = if resource.namespaced { "Namespaced" } else { "" };
    let tail = subresource.map(|subresource| capital(&subresource.name)).unwrap_or_default();
    let what = subresource
        .map_or_else(|| resource.plural.to_string(), |subresource| format!("{}/{}", resource.plural, subresource.name));
    let mut all: Vec<&'static Parameter> = parameters.iter().collect();
    if verb == "deletecollection" {
        all.extend(LIST.iter().filter(|(name, ..)| !matches!(*name, "pretty" | "watch" | "allowWatchBookmarks")));
    }
    Operation {
        method,
        verb: match action {
            "read" => "get",
            "replace" => "put",
            "create" => "post",
            "deleteCollection" => "deletecollection",
            other => other,
        },
        description: format!("{action} {what}"),
        id: format!("{action}{}{scope}{}{tail}", prefix(resource), resource.kind),
        tag: prefix(resource),
        parameters: all,
        body,
        body_types,
        answer,
        created: matches!(verb, "create" | "patch" | "update"),
        kind,
    }
}

fn parameter(dialect: Dialect, place: &str, (name, ty, description): &Parameter) -> Value {
    let mut out = match dialect {
        Dialect::V2 => json!({"in": place, "name": name, "type": ty, "uniqueItems": true, "description": description}),
        Dialect::V3 => {
            json!({"in": place, "name": name, "schema": {"type": ty, "uniqueItems": true}, "description": description})
        }
    };
    if place == "path" {
        out["required"] = true.into();
    }
    out
}

const ANSWER_TYPES: [&str; 2] = ["application/json", "application/yaml"];

impl Operation<'_> {
    fn write(&self, dialect: Dialect) -> Value {
        let mut parameters: Vec<Value> =
            self.parameters.iter().map(|known| parameter(dialect, "query", known)).collect();
        let required = !self.verb.starts_with("delete");
        let answers =
            [("200", "OK"), ("201", "Created")].into_iter().filter(|(code, _)| *code == "200" || self.created);
        let mut responses = Map::new();
        for (code, text) in answers.chain([("401", "Unauthorized")]) {
            let mut response = json!({ "description": text });
            if let Some(answer) = self.answer.as_ref().filter(|_| code != "401") {
                let schema = dialect.reference(answer);
                match dialect {
                    Dialect::V2 => response["schema"] = schema,
                    Dialect::V3 => response["content"] = content(&ANSWER_TYPES, &schema),
                }
            }
            responses.insert(code.to_owned(), response);
        }
        let mut out = json!({
            "description": self.description,
            "operationId": self.id,
            "tags": [self.tag],
            "responses": responses,
            "x-kubernetes-action": self.verb,
            "x-kubernetes-group-version-kind": self.kind,
        });
        match dialect {
            Dialect::V2 => {
                if let Some(body) = &self.body {
                    let mut parameter = json!({"in": "body", "name": "body", "schema": dialect.reference(body)});
                    if required {
                        parameter["required"] = true.into();
                    }
                    parameters.push(parameter);
                    out["consumes"] = json!(self.body_types);
                }
                out["produces"] = json!(ANSWER_TYPES);
                out["schemes"] = json!(["https"]);
            }
            Dialect::V3 => {
                if let Some(body) = &self.body {
                    out["requestBody"] =
                        json!({"required": required, "content": content(self.body_types, &dialect.reference(body))});
                }
            }
        }
        out["parameters"] = parameters.into();
        out
    }
}

fn content(types: &[&str], schema: &Value) -> Value {
    types.iter().map(|ty| ((*ty).to_owned(), json!({ "schema": schema }))).collect::<Map<_, _>>().into()
}
