//! The `/openapi/v2` document in the protobuf form of gnostic (`openapi.v2.Document`).
//!
//! Field numbers are those of gnostic's OpenAPIv2.proto. Only what [`super::v2`] writes is covered.

use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Map, Value};

/// Encodes a whole document.
pub(super) fn document(value: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.string(1, value.get("swagger"));
    out.inner(2, value.get("info"), |info, value| {
        info.string(1, value.get("title"));
        info.string(2, value.get("version"));
    });
    out.inner(8, value.get("paths"), |paths, value| {
        for (path, item) in fields(value) {
            paths.named(2, path, item, path_item);
        }
    });
    out.inner(9, value.get("definitions"), named_schemas);
    for requirement in items(value.get("security")) {
        out.inner(12, Some(requirement), |message, value| {
            for (name, scopes) in fields(value) {
                message.named(1, name, scopes, |list, scopes| list.strings(1, Some(scopes)));
            }
        });
    }
    out.inner(13, value.get("securityDefinitions"), |message, value| {
        for (name, definition) in fields(value) {
            message.named(1, name, definition, |item, definition| {
                // Of the kinds of security, only the API key is used.
                item.inner(2, Some(definition), |key, value| {
                    for (tag, name) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
                        key.string(tag, value.get(name));
                    }
                });
            });
        }
    });
    out.extensions(16, value);
    out.0
}

fn path_item(out: &mut Message, value: &Value) {
    for (tag, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")]
    {
        out.inner(tag, value.get(method), operation);
    }
    parameters(out, 9, value);
    out.extensions(10, value);
}

fn operation(out: &mut Message, value: &Value) {
    out.strings(1, value.get("tags"));
    out.string(2, value.get("summary"));
    out.string(3, value.get("description"));
    out.string(5, value.get("operationId"));
    out.strings(6, value.get("produces"));
    out.strings(7, value.get("consumes"));
    parameters(out, 8, value);
    out.inner(9, value.get("responses"), |responses, value| {
        for (code, response) in fields(value) {
            responses.named(1, code, response, |choice, response| choice.inner(1, Some(response), response_message));
        }
    });
    out.strings(10, value.get("schemes"));
    out.boolean(11, value.get("deprecated"));
    out.extensions(13, value);
}

fn response_message(out: &mut Message, value: &Value) {
    out.string(1, value.get("description"));
    out.inner(2, value.get("schema"), |choice, value| choice.inner(1, Some(value), schema));
    out.extensions(5, value);
}

fn parameters(out: &mut Message, tag: u32, value: &Value) {
    for parameter in items(value.get("parameters")) {
        out.inner(tag, Some(parameter), |item, value| item.inner(1, Some(value), parameter_message));
    }
}

fn parameter_message(out: &mut Message, value: &Value) {
    match value.get("in").and_then(Value::as_str) {
        Some("body") => out.inner(1, Some(value), |body, value| {
            body.string(1, value.get("description"));
            body.string(2, value.get("name"));
            body.string(3, value.get("in"));
            body.boolean(4, value.get("required"));
            body.inner(5, value.get("schema"), schema);
            body.extensions(6, value);
        }),
        place => out.inner(2, Some(value), |choice, value| {
            let is_query = place == Some("query");
            // A query parameter has one field (allowEmptyValue) that a path parameter lacks: its tags are one higher from there.
            let shift = u32::from(is_query);
            choice.inner(if is_query { 3 } else { 4 }, Some(value), |message, value| {
                message.boolean(1, value.get("required"));
                for (tag, name) in
                    [(2, "in"), (3, "description"), (4, "name"), (5 + shift, "type"), (6 + shift, "format")]
                {
                    message.string(tag, value.get(name));
                }
                message.boolean(19 + shift, value.get("uniqueItems"));
                message.extensions(22 + shift, value);
            });
        }),
    }
}

fn named_schemas(out: &mut Message, value: &Value) {
    for (name, value) in fields(value) {
        out.named(1, name, value, schema);
    }
}

fn schema(out: &mut Message, value: &Value) {
    out.string(1, value.get("$ref"));
    out.string(2, value.get("format"));
    out.string(3, value.get("title"));
    out.string(4, value.get("description"));
    if let Some(default) = value.get("default") {
        out.any(5, default);
    }
    out.double(6, value.get("multipleOf"));
    out.double(7, value.get("maximum"));
    out.boolean(8, value.get("exclusiveMaximum"));
    out.double(9, value.get("minimum"));
    out.boolean(10, value.get("exclusiveMinimum"));
    out.integer(11, value.get("maxLength"));
    out.integer(12, value.get("minLength"));
    out.string(13, value.get("pattern"));
    out.integer(14, value.get("maxItems"));
    out.integer(15, value.get("minItems"));
    out.boolean(16, value.get("uniqueItems"));
    out.integer(17, value.get("maxProperties"));
    out.integer(18, value.get("minProperties"));
    out.strings(19, value.get("required"));
    for allowed in items(value.get("enum")) {
        out.any(20, allowed);
    }
    out.inner(21, value.get("additionalProperties"), |choice, value| match value {
        Value::Bool(_) => choice.boolean(2, Some(value)),
        _ => choice.inner(1, Some(value), schema),
    });
    out.inner(22, value.get("type"), |message, value| message.string(1, Some(value)));
    out.inner(23, value.get("items"), |message, value| message.inner(1, Some(value), schema));
    for part in items(value.get("allOf")) {
        out.inner(24, Some(part), schema);
    }
    out.inner(25, value.get("properties"), named_schemas);
    out.extensions(31, value);
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// A message being written. Absent and empty values are left out, as proto3 has it.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        encode_key(tag, WireType::LengthDelimited, &mut self.0);
        encode_varint(bytes.len() as u64, &mut self.0);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, tag: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(tag, text.as_bytes());
        }
    }

    fn string(&mut self, tag: u32, value: Option<&Value>) {
        self.text(tag, value.and_then(Value::as_str).unwrap_or_default());
    }

    fn strings(&mut self, tag: u32, value: Option<&Value>) {
        for text in items(value).filter_map(Value::as_str) {
            self.bytes(tag, text.as_bytes());
        }
    }

    fn boolean(&mut self, tag: u32, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            encode_key(tag, WireType::Varint, &mut self.0);
            self.0.push(1);
        }
    }

    fn integer(&mut self, tag: u32, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_i64).filter(|number| *number != 0) {
            encode_key(tag, WireType::Varint, &mut self.0);
            encode_varint(number.cast_unsigned(), &mut self.0);
        }
    }

    fn double(&mut self, tag: u32, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_f64).filter(|number| *number != 0.0) {
            encode_key(tag, WireType::SixtyFourBit, &mut self.0);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// A message inside; nothing when there is no value.
    fn inner(&mut self, tag: u32, value: Option<&Value>, write: impl FnOnce(&mut Self, &Value)) {
        if let Some(value) = value {
            let mut inner = Self::default();
            write(&mut inner, value);
            self.bytes(tag, &inner.0);
        }
    }

    /// An entry of an ordered map: name and message.
    fn named(&mut self, tag: u32, name: &str, value: &Value, write: impl FnOnce(&mut Self, &Value)) {
        let mut entry = Self::default();
        entry.text(1, name);
        entry.inner(2, Some(value), write);
        self.bytes(tag, &entry.0);
    }

    /// A value of any kind, as YAML text; JSON is YAML.
    fn any(&mut self, tag: u32, value: &Value) {
        let mut any = Self::default();
        any.text(2, &format!("{value}\n"));
        self.bytes(tag, &any.0);
    }

    /// All fields that start with `x-`.
    fn extensions(&mut self, tag: u32, value: &Value) {
        for (name, value) in fields(value).filter(|(name, _)| name.starts_with("x-")) {
            let mut entry = Self::default();
            entry.text(1, name);
            entry.any(2, value);
            self.bytes(tag, &entry.0);
        }
    }
}
