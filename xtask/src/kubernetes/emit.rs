//! Writes what was read as two tables of tab-separated lines.
//!
//! `schema.tsv`:
//! ```text
//! K <group> <version> <kind> <plural> <N|C|-> <list kind> <definition>
//! D <definition> <type> <attributes> <default> <description>
//! P <property>   <type> <attributes> <default> <description>     properties of the D line above
//! ```
//! Types: `a`ny, `o`bject, `s`tring, `i`nteger, `n`umber, `b`oolean, `x` integer or string, each with `/format`;
//! `[T` list of T, `{T` map to T, `@name` reference. Attributes, separated by blanks: `r`equired, `u`nknown fields kept,
//! `m` map owned as a whole, `l:set`, `l:map:<key>,<key>`, `p:merge`, `p:merge:<key>`, `p:retain`, `e:<value>|<value>` allowed
//! values, `n:<least>..<greatest>`.
//!
//! `protobuf.tsv`:
//! ```text
//! M <message> <W when it only wraps a list>
//! F <tag> <wire> <JSON name> <flags>
//! ```
//! Wires: `s`tring, b`y`tes, `b`ool, `i`nteger, `d`ouble, `m<message>`, with `[` and `{` as above. Flags: `z` zero is a
//! value, `~` the message's fields stand in the place of the field.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::openapi::Schemas;
use super::prost::{Field, Message, Wire};
use super::{Overlays, Tables};

/// Definitions that hold JSON of any or of unknown shape, with the type that says so.
const OPEN: &[(&str, &str)] = &[
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "a"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray", "a"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool", "a"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray", "a"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "o"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "o"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Patch", "o"),
];

pub(super) fn tables(schemas: &Schemas, messages: &BTreeMap<String, Message>, overlays: &Overlays) -> Result<Tables> {
    let mut emitter =
        Emitter { schemas, messages, overlays, definition_of_message: BTreeMap::new(), notes: Vec::new() };
    emitter.pair_messages();
    let schema = emitter.schema_table()?;
    let protobuf = emitter.protobuf_table()?;
    Ok(Tables { schema, protobuf, notes: emitter.notes })
}

struct Emitter<'a> {
    schemas: &'a Schemas,
    messages: &'a BTreeMap<String, Message>,
    overlays: &'a Overlays,
    /// Message key to definition name.
    definition_of_message: BTreeMap<String, String>,
    notes: Vec<String>,
}

/// How a definition's property is found in its message.
type PropertyFields<'a> = BTreeMap<String, &'a Field>;

impl<'a> Emitter<'a> {
    /// Pairs messages with definitions; the generators spell acronyms differently, so case does not count.
    fn pair_messages(&mut self) {
        let definitions: BTreeMap<String, &String> =
            self.schemas.definitions.keys().map(|name| (name.to_lowercase(), name)).collect();
        for key in self.messages.keys() {
            if let Some(name) = definitions.get(&message_name(key).to_lowercase()) {
                self.definition_of_message.insert(key.clone(), (*name).clone());
            }
        }
    }

    fn message_of(&self, definition: &str) -> Option<&'a Message> {
        let key = self.definition_of_message.iter().find(|(_, name)| *name == definition).map(|(key, _)| key)?;
        self.messages.get(key)
    }

    /// The definition's name if the message has one, else one in the same style.
    fn name_of_message(&self, key: &str) -> String {
        self.definition_of_message.get(key).cloned().unwrap_or_else(|| message_name(key))
    }

    /// Finds the message field of each property, following members that JSON inlines.
    fn property_fields(
        &self,
        message: &'a Message,
        properties: &[&String],
        found: &mut PropertyFields<'a>,
        unmatched: &mut Vec<String>,
    ) {
        for field in &message.fields {
            match property_of(field, properties) {
                Some(property) => {
                    found.insert(property.to_owned(), field);
                }
                None => match &field.wire {
                    Wire::Message(inner) if self.is_inlined(inner, properties) => {
                        self.property_fields(&self.messages[inner], properties, found, unmatched);
                    }
                    _ => unmatched.push(field.name.clone()),
                },
            }
        }
    }

    /// Tells whether JSON holds the fields of this message in the place of a member of its type: all of them are properties there.
    fn is_inlined(&self, message: &str, properties: &[&String]) -> bool {
        let inlined = |field: &Field| match &field.wire {
            Wire::Message(inner) if inner != message => self.is_inlined(inner, properties),
            _ => false,
        };
        self.messages.get(message).is_some_and(|found| {
            found.fields.iter().all(|field| property_of(field, properties).is_some() || inlined(field))
        })
    }

    fn schema_table(&mut self) -> Result<String> {
        let mut out = String::new();
        let mut kinds: Vec<_> = self.schemas.kinds.iter().collect();
        kinds.sort_by_key(|kind| (&kind.group, &kind.version, &kind.kind));
        let mut roots = BTreeSet::new();
        for kind in kinds {
            writeln!(
                out,
                "K\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
                kind.group, kind.version, kind.kind, kind.plural, kind.scope, kind.list_kind, kind.definition
            )?;
            roots.insert(kind.definition.as_str());
        }
        let mut used = BTreeSet::new();
        for (name, schema) in &self.schemas.definitions {
            let message = self.message_of(name);
            let description = first_sentence(schema["description"].as_str().unwrap_or_default());
            let mut attributes = Vec::new();
            let ty = if let Some((_, ty)) = OPEN.iter().find(|(open, _)| open == name) {
                attributes.push("u".to_owned());
                (*ty).to_owned()
            } else {
                self.type_of(schema).with_context(|| name.clone())?
            };
            if message.is_some_and(|message| message.atomic) {
                attributes.push("m".to_owned());
            }
            writeln!(out, "D\t{name}\t{ty}\t{}\t\t{description}", attributes.join(" "))?;
            let Some(properties) = schema["properties"].as_object() else { continue };
            let names: Vec<&String> = properties.keys().collect();
            let mut fields = PropertyFields::new();
            let mut unmatched = Vec::new();
            if let Some(message) = message {
                self.property_fields(message, &names, &mut fields, &mut unmatched);
            }
            self.notes
                .extend(unmatched.into_iter().map(|field| format!("{name}: message field {field} has no property")));
            let required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            for (property, schema) in properties {
                if !self.is_served(schema) {
                    self.notes.push(format!(
                        "{name}: property {property} is left out, its type is of a version that is not served"
                    ));
                    continue;
                }
                let mut attributes = Vec::new();
                // Every request carries metadata in one way or another; upstream does not demand it in the body.
                if required.contains(&property.as_str()) && !(roots.contains(name.as_str()) && property == "metadata") {
                    attributes.push("r".to_owned());
                }
                self.merge_attributes(
                    name,
                    property,
                    fields.get(property).copied(),
                    message.is_some(),
                    &mut attributes,
                );
                let key = (name.clone(), property.clone());
                if let Some(rule) = self.overlays.rules.get(&key) {
                    attributes.push(rule.clone());
                    used.insert(key.clone());
                }
                let default = match self.overlays.defaults.get(&key) {
                    Some(value) => {
                        used.insert(key);
                        value.to_string()
                    }
                    None => String::new(),
                };
                let ty = self.type_of(schema).with_context(|| format!("{name}.{property}"))?;
                let description = first_sentence(schema["description"].as_str().unwrap_or_default());
                writeln!(out, "P\t{property}\t{ty}\t{}\t{default}\t{description}", attributes.join(" "))?;
            }
        }
        if let Some((definition, property)) =
            self.overlays.defaults.keys().chain(self.overlays.rules.keys()).find(|key| !used.contains(key))
        {
            bail!("an overlay table is wrong: {definition} has no property {property}");
        }
        Ok(out)
    }

    fn merge_attributes(
        &mut self,
        definition: &str,
        property: &str,
        field: Option<&Field>,
        has_message: bool,
        attributes: &mut Vec<String>,
    ) {
        let published = self
            .schemas
            .merges
            .get(definition)
            .into_iter()
            .flatten()
            .find(|(name, _)| normal(name) == normal(property))
            .map(|(_, keys)| keys.as_slice());
        let Some(field) = field else {
            // A field that is newer than the protobuf source, or a type without protobuf form.
            match published {
                Some([]) => attributes.extend(["l:set".to_owned(), "p:merge".to_owned()]),
                Some(keys) => {
                    let keys: Vec<String> = keys.iter().map(|key| camel(key)).collect();
                    attributes.push(format!("l:map:{}", keys.join(",")));
                    attributes.push(format!("p:merge:{}", keys[0]));
                }
                None => {}
            }
            if has_message && !matches!(property, "apiVersion" | "kind") {
                self.notes.push(format!("{definition}: property {property} has no message field"));
            }
            return;
        };
        let strategy = field.marker("patchStrategy").unwrap_or_default();
        let merge = strategy.split(',').any(|word| word == "merge");
        let merge_key = field.marker("patchMergeKey").filter(|_| merge);
        match field.marker("listType") {
            Some("map") => {
                let keys: Vec<_> = field
                    .markers
                    .iter()
                    .filter(|(name, _)| name == "listMapKey")
                    .map(|(_, key)| key.as_str())
                    .collect();
                attributes.push(format!("l:map:{}", keys.join(",")));
            }
            Some("set") => attributes.push("l:set".to_owned()),
            Some(_) => {}
            // Without a list type, server-side apply goes by the patch strategy.
            None => match (merge, merge_key) {
                (true, Some(key)) => attributes.push(format!("l:map:{key}")),
                (true, None) if matches!(field.wire, Wire::Repeated(_)) => attributes.push("l:set".to_owned()),
                _ => {}
            },
        }
        if field.marker("mapType") == Some("atomic") || field.marker("structType") == Some("atomic") {
            attributes.push("m".to_owned());
        }
        match merge_key {
            Some(key) => attributes.push(format!("p:merge:{key}")),
            None if merge => attributes.push("p:merge".to_owned()),
            None => {}
        }
        if strategy.split(',').any(|word| word == "retainKeys") {
            attributes.push("p:retain".to_owned());
        }
        if let (Some([first, ..]), Some(key)) = (published, merge_key)
            && normal(first) != normal(key)
        {
            self.notes.push(format!("merge key of {definition}.{property}: {first} and {key}"));
        }
        if merge_key.is_some() && published.is_none() {
            self.notes.push(format!("merge key of {definition}.{property}: none and {merge_key:?}"));
        }
    }

    /// Fields behind alpha gates refer to types of alpha versions.
    fn is_served(&self, schema: &Value) -> bool {
        match schema["$ref"].as_str() {
            Some(path) => self.schemas.definition_of(path).is_some(),
            None => [&schema["items"], &schema["additionalProperties"]]
                .iter()
                .all(|inner| inner.is_null() || self.is_served(inner)),
        }
    }

    fn type_of(&self, schema: &Value) -> Result<String> {
        if let Some(path) = schema["$ref"].as_str() {
            let name = self.schemas.definition_of(path).with_context(|| format!("{path} was not read"))?;
            return Ok(format!("@{name}"));
        }
        if schema["x-kubernetes-int-or-string"] == true {
            return Ok("x".to_owned());
        }
        let letter = match schema["type"].as_str() {
            Some("string") => "s",
            Some("integer") => "i",
            Some("number") => "n",
            Some("boolean") => "b",
            Some("array") => return Ok(format!("[{}", self.type_of(&schema["items"])?)),
            Some("object") => match &schema["additionalProperties"] {
                Value::Null => "o",
                values => return Ok(format!("{{{}", self.type_of(values)?)),
            },
            None => "a",
            Some(other) => bail!("unknown type {other}"),
        };
        Ok(match schema["format"].as_str() {
            Some(format) => format!("{letter}/{format}"),
            None => letter.to_owned(),
        })
    }

    fn protobuf_table(&mut self) -> Result<String> {
        // Members that JSON inlines get their names from the definitions around them.
        let mut names: BTreeMap<(String, String), String> = BTreeMap::new();
        let mut required: BTreeSet<(String, String)> = BTreeSet::new();
        let mut inlined: BTreeSet<(String, String)> = BTreeSet::new();
        for (key, definition) in &self.definition_of_message {
            let schema = &self.schemas.definitions[definition];
            let properties: Vec<&String> =
                schema["properties"].as_object().into_iter().flat_map(|properties| properties.keys()).collect();
            let demanded: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            self.name_fields(key, &properties, &demanded, &mut names, &mut required, &mut inlined);
        }
        let mut out = String::new();
        for (key, message) in self.messages {
            let name = self.name_of_message(key);
            let wraps = message.fields.len() == 1
                && message.fields[0].name == "items"
                && message.fields[0].wire == Wire::Repeated(Box::new(Wire::String))
                && !self.definition_of_message.contains_key(key);
            writeln!(out, "M\t{name}\t{}", if wraps { "W" } else { "" })?;
            for [json, tag, wire] in self.overlays.fields.get(&name).into_iter().flatten() {
                let keep = self.overlays.presence.contains(&(name.clone(), json.clone()));
                writeln!(out, "F\t{tag}\t{wire}\t{json}\t{}", if keep { "z" } else { "" })?;
            }
            for field in &message.fields {
                let at = (key.clone(), field.name.clone());
                let inline = inlined.contains(&at);
                let json =
                    if inline { String::new() } else { names.get(&at).cloned().unwrap_or_else(|| camel(&field.name)) };
                let keep = required.contains(&at) || self.overlays.presence.contains(&(name.clone(), json.clone()));
                let flags = if inline {
                    "~"
                } else if keep {
                    "z"
                } else {
                    ""
                };
                writeln!(out, "F\t{}\t{}\t{json}\t{flags}", field.tag, self.wire(&field.wire))?;
            }
        }
        Ok(out)
    }

    fn name_fields(
        &self,
        key: &str,
        properties: &[&String],
        demanded: &[&str],
        names: &mut BTreeMap<(String, String), String>,
        required: &mut BTreeSet<(String, String)>,
        inlined: &mut BTreeSet<(String, String)>,
    ) {
        for field in &self.messages[key].fields {
            let at = (key.to_owned(), field.name.clone());
            if let Some(property) = property_of(field, properties) {
                if demanded.contains(&property) {
                    required.insert(at.clone());
                }
                names.insert(at, property.to_owned());
            } else if let Wire::Message(inner) = &field.wire
                && self.is_inlined(inner, properties)
            {
                inlined.insert(at);
                if !self.definition_of_message.contains_key(inner) {
                    self.name_fields(inner, properties, demanded, names, required, inlined);
                }
            }
        }
    }

    fn wire(&self, wire: &Wire) -> String {
        match wire {
            Wire::String => "s".to_owned(),
            Wire::Bytes => "y".to_owned(),
            Wire::Bool => "b".to_owned(),
            Wire::Int => "i".to_owned(),
            Wire::Double => "d".to_owned(),
            Wire::Message(key) => format!("m{}", self.name_of_message(key)),
            Wire::Repeated(inner) => format!("[{}", self.wire(inner)),
            Wire::Map(inner) => format!("{{{}", self.wire(inner)),
        }
    }
}

fn property_of<'p>(field: &Field, properties: &[&'p String]) -> Option<&'p str> {
    properties.iter().find(|property| normal(property) == normal(&field.name)).map(|property| property.as_str())
}

/// A name without what the naming styles differ in.
fn normal(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// `api/core/v1::Pod` as `io.k8s.api.core.v1.Pod`.
fn message_name(key: &str) -> String {
    let name = key.replace("::", ".").replace('/', ".").replace("apiextensions_apiserver", "apiextensions-apiserver");
    format!("io.k8s.{name}")
}

fn camel(name: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else {
            out.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    out
}

/// The first sentence, on one line.
fn first_sentence(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut from = 0;
    while let Some(at) = line[from..].find(". ") {
        let end = from + at;
        // Abbreviations do not end a sentence.
        if ["e.g", "i.e", "etc", "vs"].iter().any(|short| line[..end].to_lowercase().ends_with(short)) {
            from = end + 2;
            continue;
        }
        return line[..=end].to_owned();
    }
    line
}
