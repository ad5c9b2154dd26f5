//! Custom kinds: from a CustomResourceDefinition to rows of the registry, and what becomes of their objects.
//!
//! A definition takes effect within the write that stores it: before the answer is sent, its kinds are served, listed
//! by discovery and described by OpenAPI.

use std::sync::Arc;

use outrigger_lab_machinery::{names, table};
use outrigger_lab_schema::{FieldError, structural};
use serde_json::{Value, json};

use crate::api::Api;
use crate::delete::DeleteOptions;
use crate::kinds::{Custom, Generation, HookContext, KindInfo, Rules, Subresource, SubresourceKind, Verbs};
use crate::object::{self, at, fields, meta, section, text};
use crate::ownership::Ownership;
use crate::part::Part;
use crate::scale::simple_path;
use crate::shape;
use crate::status::ApiError;
use crate::write::{Actor, Target};

/// Holds a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
const PREFIX: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";

fn list<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Normalises a definition: names that follow from others, and the finalizer that waits for the objects.
pub(crate) fn prepare(new: &mut Value, old: Option<&Value>, _: &HookContext<'_>) {
    let spec = section(new, "spec");
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        for (field, value) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
            if names.get(field).and_then(Value::as_str).is_none_or(str::is_empty) && !kind.is_empty() {
                names.insert(field.to_owned(), Value::String(value));
            }
        }
    }
    spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    if old.is_none() {
        object::add_finalizer(new, CLEANUP);
    }
}

/// The rules of a definition that stand by themselves.
pub(crate) fn check(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let group = text(new, &["spec", "group"]);
    let plural = text(new, &["spec", "names", "plural"]);
    if names::dns1123_subdomain(group).is_err() || !group.contains('.') {
        errors.push(FieldError::invalid("spec.group", &Value::from(group), "should be a domain with at least one dot"));
    }
    let expected = format!("{plural}.{group}");
    if meta(new, "name") != expected {
        errors.push(FieldError::invalid(
            "metadata.name",
            &Value::from(meta(new, "name")),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    for field in ["plural", "singular"] {
        let name = text(new, &["spec", "names", field]);
        if let Err(error) = names::dns1035_label(name) {
            errors.push(FieldError::invalid(format!("spec.names.{field}"), &Value::from(name), &error.to_string()));
        }
    }
    for field in ["kind", "listKind"] {
        let name = text(new, &["spec", "names", field]);
        if let Err(error) = names::dns1035_label(&name.to_lowercase()) {
            errors.push(FieldError::invalid(format!("spec.names.{field}"), &Value::from(name), &error.to_string()));
        }
    }
    if text(new, &["spec", "names", "kind"]) == text(new, &["spec", "names", "listKind"]) {
        errors.push(FieldError::invalid(
            "spec.names.listKind",
            &new["spec"]["names"]["listKind"],
            "kind and listKind may not be the same",
        ));
    }
    let scope = text(new, &["spec", "scope"]);
    if !["Cluster", "Namespaced"].contains(&scope) {
        errors.push(FieldError::not_supported("spec.scope", &Value::from(scope), ["Cluster", "Namespaced"]));
    }
    if at(new, &["spec", "preserveUnknownFields"]) == Some(&Value::Bool(true)) {
        errors.push(FieldError::invalid(
            "spec.preserveUnknownFields",
            &Value::Bool(true),
            "must be false in order to use defaults in the schema",
        ));
    }
    let strategy = text(new, &["spec", "conversion", "strategy"]);
    if !["None", "Webhook"].contains(&strategy) {
        errors.push(FieldError::not_supported("spec.conversion.strategy", &Value::from(strategy), ["None", "Webhook"]));
    }
    versions(new, errors);
    if let Some(old) = old {
        for path in
            [["spec", "group"].as_slice(), &["spec", "names", "plural"], &["spec", "names", "kind"], &["spec", "scope"]]
        {
            if at(old, path) != at(new, path) {
                errors.push(FieldError::invalid(
                    path.join("."),
                    at(new, path).unwrap_or(&Value::Null),
                    "field is immutable",
                ));
            }
        }
        for (index, stored) in list(new, &["status", "storedVersions"]).iter().enumerate() {
            if !list(new, &["spec", "versions"]).iter().any(|version| version["name"] == *stored) {
                errors.push(FieldError::invalid(
                    format!("status.storedVersions[{index}]"),
                    stored,
                    "missing from spec.versions; objects may be stored in this version",
                ));
            }
        }
    }
}

fn versions(new: &Value, errors: &mut Vec<FieldError>) {
    let versions = list(new, &["spec", "versions"]);
    let storage = versions.iter().filter(|version| version["storage"] == true).count();
    if storage != 1 {
        errors.push(FieldError::invalid(
            "spec.versions",
            &Value::from(storage),
            "must have exactly one version marked as storage version",
        ));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = text(version, &["name"]);
        if let Err(error) = names::dns1035_label(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), &Value::from(name), &error.to_string()));
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &Value::from(name)));
        }
        seen.push(name);
        let schema_path = format!("{path}.schema.openAPIV3Schema");
        match at(version, &["schema", "openAPIV3Schema"]) {
            None | Some(Value::Null) => errors.push(FieldError::required(schema_path, "schemas are required")),
            Some(schema) => {
                if let Err(found) = structural::compile(schema, &schema_path) {
                    errors.extend(found);
                }
            }
        }
        if let Some(scale) = at(version, &["subresources", "scale"]).filter(|scale| !scale.is_null()) {
            for (field, root) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
                let value = text(scale, &[field]);
                if !value.starts_with(root) || !simple_path(value) {
                    errors.push(FieldError::invalid(
                        format!("{path}.subresources.scale.{field}"),
                        &Value::from(value),
                        &format!("should be a json path under {}", root.trim_end_matches('.')),
                    ));
                }
            }
            let selector = text(scale, &["labelSelectorPath"]);
            if !selector.is_empty() && !simple_path(selector) {
                errors.push(FieldError::invalid(
                    format!("{path}.subresources.scale.labelSelectorPath"),
                    &Value::from(selector),
                    "should be a json path under either .spec or .status",
                ));
            }
        }
        for (column, definition) in list(version, &["additionalPrinterColumns"]).iter().enumerate() {
            let path = format!("{path}.additionalPrinterColumns[{column}]");
            let one = Value::Array(vec![definition.clone()]);
            if let Err(error) = table::Definition::custom(Some(&one)) {
                errors.push(FieldError::invalid(
                    format!("{path}.jsonPath"),
                    &definition["jsonPath"],
                    &error.to_string(),
                ));
            }
            let types = ["boolean", "date", "integer", "number", "string"];
            if !types.contains(&text(definition, &["type"])) {
                errors.push(FieldError::not_supported(format!("{path}.type"), &definition["type"], types));
            }
        }
    }
}

/// The rows of a definition, one for each served version.
fn kinds(definition: &Value) -> Vec<Arc<KindInfo>> {
    let group = text(definition, &["spec", "group"]);
    let names = at(definition, &["spec", "names"]).cloned().unwrap_or_default();
    let plural = text(&names, &["plural"]);
    let versions = list(definition, &["spec", "versions"]);
    let stored = versions
        .iter()
        .find(|version| version["storage"] == true)
        .map(|version| text(version, &["name"]))
        .unwrap_or_default();
    let boxed = |field: &str| -> Vec<Box<str>> {
        list(&names, &[field]).iter().filter_map(Value::as_str).map(Into::into).collect()
    };
    let terminating = object::is_terminating(definition);
    let mut rows = Vec::new();
    // Conversion webhooks are not called: of such a definition only the stored version is served.
    let by_webhook = text(definition, &["spec", "conversion", "strategy"]) == "Webhook";
    let served = |version: &Value| version["served"] == true && (!by_webhook || version["name"] == stored);
    for (index, version) in versions.iter().enumerate().filter(|(_, version)| served(version)) {
        let name = text(version, &["name"]);
        let Some(schema) = at(version, &["schema", "openAPIV3Schema"]) else { continue };
        let Ok(schema) = structural::compile(schema, &format!("spec.versions[{index}].schema.openAPIV3Schema")) else {
            continue;
        };
        let has = |sub: &str| at(version, &["subresources", sub]).filter(|value| !value.is_null());
        let mut subresources = Vec::new();
        let change = Verbs::GET.and(Verbs::PATCH).and(Verbs::UPDATE);
        if let Some(scale) = has("scale") {
            let selector = text(scale, &["labelSelectorPath"]);
            subresources.push(Subresource {
                name: "scale".into(),
                foreign: Some(("autoscaling", "v1", "Scale")),
                verbs: change,
                kind: SubresourceKind::Scale {
                    spec: text(scale, &["specReplicasPath"]).into(),
                    status: text(scale, &["statusReplicasPath"]).into(),
                    selector: (!selector.is_empty()).then(|| selector.into()),
                },
            });
        }
        let status = has("status").is_some();
        if status {
            subresources.push(Subresource {
                name: "status".into(),
                foreign: None,
                verbs: change,
                kind: SubresourceKind::Status,
            });
        }
        let api_version = format!("{group}/{name}");
        let deprecation = (version["deprecated"] == true).then(|| {
            let own = text(version, &["deprecationWarning"]);
            if own.is_empty() {
                format!("{api_version} {} is deprecated", text(&names, &["kind"]))
            } else {
                own.to_owned()
            }
        });
        rows.push(Arc::new(KindInfo {
            group: group.into(),
            version: name.into(),
            kind: text(&names, &["kind"]).into(),
            list_kind: text(&names, &["listKind"]).into(),
            plural: plural.into(),
            singular: text(&names, &["singular"]).into(),
            short_names: boxed("shortNames"),
            categories: boxed("categories"),
            namespaced: text(definition, &["spec", "scope"]) == "Namespaced",
            // Nothing new comes into being once the definition is on its way out.
            verbs: if terminating { Verbs::ALL.without(Verbs::CREATE) } else { Verbs::ALL },
            status,
            subresources,
            rules: Rules {
                generation: if status { Generation::Content } else { Generation::ContentAndStatus },
                ..Rules::CUSTOM
            },
            prefix: format!("/registry/{group}/{plural}/").into(),
            storage_api_version: format!("{group}/{stored}").into(),
            api_version: api_version.into(),
            custom: Some(Custom {
                definition: meta(definition, "name").to_owned(),
                schema: Arc::new(schema),
                columns: list(version, &["additionalPrinterColumns"]).to_vec(),
                selectable: list(version, &["selectableFields"])
                    .iter()
                    .map(|field| text(field, &["jsonPath"]).to_owned())
                    .collect(),
                deprecation,
            }),
        }));
    }
    rows
}

impl Api {
    fn definitions(&self) -> Vec<Value> {
        let Ok(range) = self.store().range(PREFIX, None, usize::MAX, None) else { return Vec::new() };
        range.versions.iter().filter_map(|version| serde_json::from_slice(&version.value).ok()).collect()
    }

    /// Serves exactly the custom kinds of the definitions in the store.
    pub(crate) fn reload_definitions(&self) {
        let _kinds = self.lock_kinds();
        let definitions = self.definitions();
        let accepted = definitions.iter().filter(|definition| condition(definition, "Established") == Some("True"));
        self.set_custom(accepted.flat_map(kinds).collect());
    }

    /// Status of a definition: accepted names, conditions and stored versions. Runs before the definition is written.
    pub(crate) fn admit_definition(&self, target: &Target, new: &mut Value) {
        let now = object::time(self.now());
        let names = at(new, &["spec", "names"]).cloned().unwrap_or_default();
        let conflict = self.name_conflict(target, new, &names);
        let stored = list(new, &["spec", "versions"])
            .iter()
            .find(|version| version["storage"] == true)
            .map(|version| version["name"].clone());
        let accepted = conflict.is_none();
        let (reason, message) = match &conflict {
            None => ("NoConflicts", "no conflicts found"),
            Some(message) => ("MultipleNamesNotAllowed", message.as_str()),
        };
        set_condition(new, "NamesAccepted", accepted, reason, message, &now);
        let was = condition(new, "Established") == Some("True");
        if accepted || was {
            set_condition(
                new,
                "Established",
                true,
                "InitialNamesAccepted",
                "the initial names have been accepted",
                &now,
            );
        } else {
            set_condition(new, "Established", false, "NotAccepted", "not all names are accepted", &now);
        }
        let status = section(new, "status");
        if accepted {
            status.insert("acceptedNames".to_owned(), names);
        } else {
            status.entry("acceptedNames").or_insert_with(|| json!({"plural": "", "kind": ""}));
        }
        let versions = status.entry("storedVersions").or_insert_with(|| json!([]));
        if let (Some(list), Some(stored)) = (versions.as_array_mut(), stored)
            && !list.contains(&stored)
        {
            list.push(stored);
        }
    }

    /// What another definition of the same group has already taken.
    fn name_conflict(&self, target: &Target, new: &Value, names: &Value) -> Option<String> {
        let group = text(new, &["spec", "group"]);
        let registry = self.registry();
        let others = self.definitions();
        let taken = others
            .iter()
            .filter(|other| meta(other, "name") != target.name && text(other, &["spec", "group"]) == group);
        let taken: Vec<&Value> = taken.filter_map(|other| at(other, &["status", "acceptedNames"])).collect();
        let builtin: Vec<&Arc<KindInfo>> =
            registry.kinds().filter(|kind| kind.custom.is_none() && *kind.group == *group).collect();
        for field in ["plural", "singular", "kind", "listKind"] {
            let wanted = text(names, &[field]);
            let by_builtin = builtin.iter().any(|kind| match field {
                "plural" => *kind.plural == *wanted,
                "singular" => *kind.singular == *wanted,
                "kind" => *kind.kind == *wanted,
                _ => *kind.list_kind == *wanted,
            });
            if by_builtin || taken.iter().any(|names| text(names, &[field]) == wanted) {
                return Some(format!("{wanted:?} is already in use"));
            }
        }
        let short: Vec<&Value> = list(names, &["shortNames"]).iter().collect();
        let clash =
            short.into_iter().find(|name| taken.iter().any(|names| list(names, &["shortNames"]).contains(name)));
        clash.map(|name| format!("{name} is already in use"))
    }

    /// Deletion of a definition has begun: its objects go first.
    pub(crate) fn after_termination(&self, actor: Actor<'_>, target: &Target) -> Result<(), ApiError> {
        if is_definition(&target.kind) {
            self.purge(actor, target)?;
        }
        Ok(())
    }

    /// Deletes the objects of a definition; when none is left, lets the definition go.
    fn purge(&self, actor: Actor<'_>, target: &Target) -> Result<(), ApiError> {
        let Ok(version) = self.read(target) else { return Ok(()) };
        let definition = shape::parse(&target.kind, &version)?;
        if !object::is_terminating(&definition) {
            return Ok(());
        }
        let registry = self.registry();
        let kind = registry
            .kinds()
            .find(|kind| kind.custom.as_ref().is_some_and(|custom| custom.definition == target.name))
            .cloned();
        let mut left = 0;
        if let Some(kind) = kind {
            let range = self.store().range(&kind.prefix, None, usize::MAX, None)?;
            for version in range.versions {
                let Some((namespace, name)) =
                    version.key.strip_prefix(&*kind.prefix).and_then(|rest| rest.split_once('/'))
                else {
                    continue;
                };
                let object = Target { kind: Arc::clone(&kind), namespace: namespace.to_owned(), name: name.to_owned() };
                match self.delete(actor, &object, &DeleteOptions::default()) {
                    Ok(_) => left += usize::from(self.store().get(&object.key()).is_some()),
                    Err(error) if error.reason == "NotFound" => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if left == 0 {
            self.release_definition(actor, target)?;
        }
        Ok(())
    }

    fn release_definition(&self, actor: Actor<'_>, target: &Target) -> Result<(), ApiError> {
        let released = self.modify(
            actor,
            target,
            Part::Main,
            &crate::request::WriteOptions::default(),
            Ownership::Open,
            |current| {
                let mut wanted = current.clone();
                object::remove_finalizer(&mut wanted, CLEANUP);
                Ok(wanted)
            },
        );
        match released {
            Err(error) if error.reason != "NotFound" => Err(error),
            _ => Ok(()),
        }
    }

    /// The last object of a definition that is on its way out takes the definition with it.
    pub(crate) fn after_removal(&self, kind: &KindInfo) -> Result<(), ApiError> {
        let Some(custom) = &kind.custom else { return Ok(()) };
        let registry = self.registry();
        let Some(definitions) = registry.resource("apiextensions.k8s.io", "v1", "customresourcedefinitions") else {
            return Ok(());
        };
        let target =
            Target { kind: Arc::clone(definitions), namespace: String::new(), name: custom.definition.clone() };
        let Some(version) = self.store().get(&target.key()) else { return Ok(()) };
        if !object::is_terminating(&shape::parse(definitions, &version)?) {
            return Ok(());
        }
        let left = self.store().range(&kind.prefix, None, 1, None)?;
        if left.versions.is_empty() {
            let user = crate::auth::User::system("system:apiserver");
            self.release_definition(Actor { user: &user, agent: "kube-apiserver" }, &target)?;
        }
        Ok(())
    }
}

/// Whether the kind is CustomResourceDefinition.
pub(crate) fn is_definition(kind: &KindInfo) -> bool {
    &*kind.group == "apiextensions.k8s.io" && &*kind.plural == "customresourcedefinitions"
}

fn condition<'a>(definition: &'a Value, ty: &str) -> Option<&'a str> {
    list(definition, &["status", "conditions"])
        .iter()
        .find(|condition| condition["type"] == ty)?
        .get("status")?
        .as_str()
}

fn set_condition(definition: &mut Value, ty: &str, status: bool, reason: &str, message: &str, now: &str) {
    let status = if status { "True" } else { "False" };
    let conditions = section(definition, "status").entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    let wanted = json!({"type": ty, "status": status, "reason": reason, "message": message, "lastTransitionTime": now});
    match list.iter_mut().find(|condition| condition["type"] == ty) {
        Some(condition) => {
            let since =
                if condition["status"] == status { condition["lastTransitionTime"].clone() } else { json!(now) };
            *condition = wanted;
            fields(condition).insert("lastTransitionTime".to_owned(), since);
        }
        None => list.push(wanted),
    }
}
