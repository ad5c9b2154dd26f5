//! Kubernetes' protobuf bodies as JSON values.
//!
//! A body is the magic bytes `k8s\0` and a `runtime.Unknown` message that names the type and carries the object. The
//! object is decoded with the committed field tables; no message has code of its own but those whose JSON form
//! differs from their fields (quantities, times, raw JSON and the like).

mod special;
mod wire;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use serde_json::{Map, Value};

use crate::builtin::{builtin, unpack};
use crate::error::Error;
use wire::{Reader, Token};

/// The bytes that a protobuf body starts with.
const MAGIC: &[u8] = b"k8s\0";

/// Message tables; the form is described where they are written, in xtask.
const TABLE: &[u8] = include_bytes!("../data/protobuf.tsv.gz");

/// How deep messages may nest. The API's own types need about 20; a schema within a schema may need more.
const MAX_DEPTH: usize = 100;

/// Tells whether a body is Kubernetes protobuf, by its first four bytes.
pub fn is_protobuf(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

/// Decodes a body (`application/vnd.kubernetes.protobuf`) to the JSON value that the same object has, with apiVersion
/// and kind.
///
/// Go writes the zero of every scalar that is not a pointer, set or not. Those zeros are dropped where Go's JSON would
/// drop them too, so that defaulting and validation see an absent field.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    decode_at(body, 0)
}

fn decode_at(body: &[u8], depth: usize) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::NotProtobuf)?;
    let mut api_version = String::new();
    let mut kind = String::new();
    let mut raw: &[u8] = &[];
    let mut content_type = String::new();
    let mut encoding = String::new();
    let mut reader = Reader::new("runtime.Unknown", envelope);
    while let Some((tag, token)) = reader.next()? {
        match tag {
            1 => {
                let mut inner = Reader::new("runtime.TypeMeta", reader.bytes(token)?);
                while let Some((tag, token)) = inner.next()? {
                    match tag {
                        1 => api_version = inner.string(token)?,
                        2 => kind = inner.string(token)?,
                        _ => {}
                    }
                }
            }
            2 => raw = reader.bytes(token)?,
            3 => encoding = reader.string(token)?,
            4 => content_type = reader.string(token)?,
            _ => {}
        }
    }
    if !encoding.is_empty() {
        return Err(Error::UnsupportedContent(format!("encoding {encoding}")));
    }
    let mut value = match content_type.as_str() {
        "" | "application/vnd.kubernetes.protobuf" => {
            let message = message_of(&api_version, &kind)?;
            message_value(message, raw, depth)?
        }
        "application/json" => special::json("runtime.Unknown", "raw", raw)?,
        other => return Err(Error::UnsupportedContent(format!("type {other}"))),
    };
    if let Value::Object(object) = &mut value {
        object.insert("apiVersion".to_owned(), api_version.into());
        object.insert("kind".to_owned(), kind.into());
    }
    Ok(value)
}

/// Options and statuses are registered in every group and version, under the same name.
const EVERYWHERE: &[&str] =
    &["DeleteOptions", "CreateOptions", "UpdateOptions", "PatchOptions", "GetOptions", "ListOptions", "Status"];

fn message_of(api_version: &str, kind: &str) -> Result<&'static Message, Error> {
    let unknown = || Error::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() };
    if EVERYWHERE.contains(&kind) {
        return table().get(format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}").as_str()).ok_or_else(unknown);
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let known = builtin();
    let of_kind = |kind: &str| known.kind(group, version, kind).map(|kind| kind.definition.to_string());
    // Lists have no definition of their own; their message stands beside that of their items.
    let definition = of_kind(kind).or_else(|| {
        let item = of_kind(kind.strip_suffix("List")?)?;
        Some(format!("{item}List"))
    });
    definition.and_then(|definition| table().get(definition.as_str())).ok_or_else(unknown)
}

/// One protobuf message.
struct Message {
    name: Box<str>,
    /// The message only wraps a list, which JSON shows bare.
    wraps: bool,
    fields: BTreeMap<u32, Field>,
}

struct Field {
    wire: Wire,
    /// The JSON name; empty for a member whose fields stand in its place.
    name: Box<str>,
    /// A zero is a value.
    keeps_zero: bool,
}

enum Wire {
    String,
    Bytes,
    Bool,
    Int,
    Double,
    Message(Box<str>),
    Repeated(Box<Wire>),
    Map(Box<Wire>),
}

type Table = BTreeMap<Box<str>, Message>;

/// The tables, read when the first protobuf body arrives.
fn table() -> &'static Table {
    static MESSAGES: LazyLock<Table> = LazyLock::new(|| parse(&unpack(TABLE)));
    &MESSAGES
}

fn parse(text: &str) -> Table {
    let mut messages = Table::new();
    let mut current: Option<Message> = None;
    for line in text.lines() {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_default();
        match next() {
            "M" => {
                if let Some(message) = current.take() {
                    messages.insert(message.name.clone(), message);
                }
                current = Some(Message { name: next().into(), wraps: next() == "W", fields: BTreeMap::new() });
            }
            "F" => {
                let tag = next().parse().unwrap_or_default();
                let field = Field { wire: parse_wire(next()), name: next().into(), keeps_zero: next() == "z" };
                if let Some(message) = &mut current {
                    message.fields.insert(tag, field);
                }
            }
            _ => {}
        }
    }
    if let Some(message) = current {
        messages.insert(message.name.clone(), message);
    }
    messages
}

fn parse_wire(text: &str) -> Wire {
    let (letter, rest) = text.split_at(text.len().min(1));
    match letter {
        "y" => Wire::Bytes,
        "b" => Wire::Bool,
        "i" => Wire::Int,
        "d" => Wire::Double,
        "m" => Wire::Message(rest.into()),
        "[" => Wire::Repeated(Box::new(parse_wire(rest))),
        "{" => Wire::Map(Box::new(parse_wire(rest))),
        _ => Wire::String,
    }
}

/// Decodes a message by its table, or by its own code if it has a form of its own in JSON.
fn message_value(message: &Message, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    if let Some(value) = special::value(&message.name, bytes, depth) {
        return value;
    }
    let mut object = Map::new();
    fill(message, bytes, &mut object, depth)?;
    if message.wraps {
        return Ok(object.remove("items").unwrap_or_else(|| Value::Array(Vec::new())));
    }
    Ok(Value::Object(object))
}

fn fill(message: &Message, bytes: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
    let mut reader = Reader::new(&message.name, bytes);
    if depth > MAX_DEPTH {
        return Err(reader.malformed("nested too deeply"));
    }
    while let Some((tag, token)) = reader.next()? {
        // Fields that are newer than the table are dropped, as a server of an older release does.
        let Some(field) = message.fields.get(&tag) else { continue };
        match &field.wire {
            Wire::Message(name) if field.name.is_empty() => {
                let inner = inner(&reader, name)?;
                fill(inner, reader.bytes(token)?, object, depth + 1)?;
            }
            Wire::Repeated(wire) => {
                let list = object.entry(&*field.name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(items) = list else { continue };
                if let (Wire::Int, Token::Bytes(packed)) = (&**wire, token) {
                    let mut packed = Reader::new(&message.name, packed);
                    while let Some(number) = packed.packed_int()? {
                        items.push(number.into());
                    }
                } else {
                    items.push(scalar(&reader, wire, token, depth)?);
                }
            }
            Wire::Map(wire) => {
                let (key, value) = entry(&reader, wire, token, depth)?;
                let map = object.entry(&*field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    map.insert(key, value);
                }
            }
            wire => {
                let value = scalar(&reader, wire, token, depth)?;
                if value.is_null() || !field.keeps_zero && is_zero(&value) {
                    object.remove(&*field.name);
                } else {
                    object.insert(field.name.to_string(), value);
                }
            }
        }
    }
    Ok(())
}

fn inner(reader: &Reader<'_>, name: &str) -> Result<&'static Message, Error> {
    table().get(name).ok_or_else(|| reader.malformed("a member of an unknown message type"))
}

fn scalar(reader: &Reader<'_>, wire: &Wire, token: Token<'_>, depth: usize) -> Result<Value, Error> {
    Ok(match wire {
        Wire::String => reader.string(token)?.into(),
        Wire::Bytes => base64::engine::general_purpose::STANDARD.encode(reader.bytes(token)?).into(),
        Wire::Bool => (reader.int(token)? != 0).into(),
        Wire::Int => reader.int(token)?.into(),
        Wire::Double => reader.double(token)?.into(),
        Wire::Message(name) => message_value(inner(reader, name)?, reader.bytes(token)?, depth + 1)?,
        Wire::Repeated(_) | Wire::Map(_) => return Err(reader.malformed("a list within a list")),
    })
}

/// A map's entry: a message with the key in field 1 and the value in field 2, either of which may be left out when empty.
fn entry(reader: &Reader<'_>, wire: &Wire, token: Token<'_>, depth: usize) -> Result<(String, Value), Error> {
    let mut inner = Reader::new(reader.message(), reader.bytes(token)?);
    let mut key = String::new();
    let mut value = None;
    while let Some((tag, token)) = inner.next()? {
        match tag {
            1 => key = inner.string(token)?,
            2 => value = Some(scalar(&inner, wire, token, depth)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        None => match wire {
            Wire::Int => 0.into(),
            Wire::Bool => false.into(),
            Wire::Double => 0.0.into(),
            Wire::Message(_) => scalar(&inner, wire, Token::Bytes(&[]), depth)?,
            _ => "".into(),
        },
    };
    Ok((key, value))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests;
