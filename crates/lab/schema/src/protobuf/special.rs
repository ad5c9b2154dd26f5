//! Messages whose JSON form is not the object of their fields.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::Reader;
use super::{MAX_DEPTH, decode_at, is_protobuf, message_value, table};
use crate::error::Error;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// The value of a message that has code of its own; `None` for all others. `null` stands for an absent value.
pub(super) fn value(message: &str, bytes: &[u8], depth: usize) -> Option<Result<Value, Error>> {
    Some(match message {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => quantity(message, bytes),
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => int_or_string(message, bytes),
        "io.k8s.apimachinery.pkg.runtime.RawExtension" => raw(message, bytes, depth),
        _ => {
            if let Some(name) = message.strip_prefix(META) {
                match name {
                    "Time" => time(message, bytes, false),
                    "MicroTime" => time(message, bytes, true),
                    "FieldsV1" => raw(message, bytes, depth),
                    _ => return None,
                }
            } else {
                match message.strip_prefix(EXTENSIONS)? {
                    "JSON" => raw(message, bytes, depth),
                    "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
                        alternatives(message, bytes, depth)
                    }
                    _ => return None,
                }
            }
        }
    })
}

/// A quantity is its text; the zero quantity has none.
fn quantity(message: &str, bytes: &[u8]) -> Result<Value, Error> {
    let mut reader = Reader::new(message, bytes);
    let mut text = String::new();
    while let Some((tag, token)) = reader.next()? {
        if tag == 1 {
            text = reader.string(token)?;
        }
    }
    Ok(if text.is_empty() { "0".into() } else { text.into() })
}

fn int_or_string(message: &str, bytes: &[u8]) -> Result<Value, Error> {
    let mut reader = Reader::new(message, bytes);
    let (mut is_string, mut number, mut text) = (false, 0, String::new());
    while let Some((tag, token)) = reader.next()? {
        match tag {
            1 => is_string = reader.int(token)? == 1,
            2 => number = reader.int(token)?,
            3 => text = reader.string(token)?,
            _ => {}
        }
    }
    Ok(if is_string { text.into() } else { number.into() })
}

/// RFC 3339 with seconds, or with six decimals for MicroTime. Go's zero time is empty and has no JSON form.
fn time(message: &str, bytes: &[u8], micros: bool) -> Result<Value, Error> {
    let mut reader = Reader::new(message, bytes);
    let (mut seconds, mut nanos) = (0, 0);
    while let Some((tag, token)) = reader.next()? {
        match tag {
            1 => seconds = reader.int(token)?,
            2 => nanos = reader.int(token)?,
            _ => {}
        }
    }
    if seconds == 0 && nanos == 0 {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(nanos).map_err(|_| reader.malformed("nanoseconds out of range"))?;
    let time = Timestamp::new(seconds, nanos).map_err(|_| reader.malformed("a time out of range"))?;
    let format = if micros { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(format).to_string().into())
}

/// Bytes that hold JSON, or a whole protobuf body of their own.
fn raw(message: &str, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let mut reader = Reader::new(message, bytes);
    let mut raw: &[u8] = &[];
    while let Some((tag, token)) = reader.next()? {
        if tag == 1 {
            raw = reader.bytes(token)?;
        }
    }
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    if is_protobuf(raw) {
        if depth > MAX_DEPTH {
            return Err(reader.malformed("nested too deeply"));
        }
        return decode_at(raw, depth + 1);
    }
    json(message, "raw", raw)
}

/// Parses bytes that must be JSON.
pub(super) fn json(message: &str, field: &str, bytes: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::BadJson {
        message: message.to_owned(),
        field: field.to_owned(),
        problem: error.to_string(),
    })
}

/// A JSON schema, or instead of it a list of schemas, a boolean, or a list of strings.
fn alternatives(message: &str, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let mut reader = Reader::new(message, bytes);
    let is_bool = message.ends_with("OrBool");
    let is_strings = message.ends_with("OrStringArray");
    let schema_tag = if is_bool { 2 } else { 1 };
    let props = table().get(format!("{EXTENSIONS}JSONSchemaProps").as_str());
    let schema = |bytes: &[u8]| match props {
        Some(props) if depth < MAX_DEPTH => message_value(props, bytes, depth + 1),
        Some(_) => Err(Error::Malformed { message: message.to_owned(), offset: 0, problem: "nested too deeply" }),
        None => Ok(Value::Object(Map::new())),
    };
    let mut one = None;
    let mut allows = false;
    let mut many = Vec::new();
    while let Some((tag, token)) = reader.next()? {
        if tag == schema_tag {
            one = Some(schema(reader.bytes(token)?)?);
        } else if is_bool && tag == 1 {
            allows = reader.int(token)? != 0;
        } else if is_strings && tag == 2 {
            many.push(reader.string(token)?.into());
        } else if tag == 2 {
            many.push(schema(reader.bytes(token)?)?);
        }
    }
    Ok(match one {
        Some(schema) => schema,
        None if is_bool => allows.into(),
        None => many.into(),
    })
}
