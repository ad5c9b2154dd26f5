//! Messages as text for the log, with secrets left out.

use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, OneofDescriptor, ReflectMessage, Value};
use serde_json::{Map, Value as Json, json};

/// The number of the extension of `google.protobuf.FieldOptions` that marks a secret field (`csi_secret` in
/// csi.proto).
const SECRET: u32 = 1059;

/// The kubelet puts service account tokens under this key into `volume_context`, a field that is not secret.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// What stands in place of a secret.
pub const STRIPPED: &str = "***stripped***";

/// Renders a message as the JSON that Go CSI drivers log, on one line.
///
/// Names are those of the proto file, keys are sorted, zero values are left out, enums and 64-bit integers are
/// numbers, bytes are base64. A oneof is an object named in camel case with its choice inside, `null` if nothing is
/// chosen: `{"AccessType":{"Mount":{"fs_type":"ext4"}}}`. A field with the option `csi_secret` is replaced as a whole by [`STRIPPED`],
/// and so are the service account tokens that Kubernetes hands over in a field without it.
pub fn render(message: &DynamicMessage) -> String {
    message_json(message).to_string()
}

fn message_json(message: &DynamicMessage) -> Json {
    let descriptor = message.descriptor();
    let mut object = Map::new();
    for oneof in descriptor.oneofs().filter(|oneof| !oneof.is_synthetic()) {
        object.insert(go_name(oneof.name()), Json::Null);
    }
    for (field, value) in message.fields() {
        let json = if is_secret(&field) { STRIPPED.into() } else { value_json(value) };
        match field.containing_oneof().filter(|oneof: &OneofDescriptor| !oneof.is_synthetic()) {
            Some(oneof) => object.insert(go_name(oneof.name()), json!({ go_name(field.name()): json })),
            None => object.insert(field.name().to_owned(), json),
        };
    }
    object.sort_keys();
    Json::Object(object)
}

/// Whether the field carries the option `csi_secret`, found by its number: the name may differ between copies of the file.
fn is_secret(field: &FieldDescriptor) -> bool {
    let options = field.options();
    options.extensions().any(|(extension, value)| extension.number() == SECRET && !matches!(value, Value::Bool(false)))
        || options.unknown_fields().any(|unknown| unknown.number() == SECRET)
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::Bool(v) => (*v).into(),
        Value::I32(v) | Value::EnumNumber(v) => (*v).into(),
        Value::I64(v) => (*v).into(),
        Value::U32(v) => (*v).into(),
        Value::U64(v) => (*v).into(),
        Value::F32(v) => (*v).into(),
        Value::F64(v) => (*v).into(),
        Value::String(v) => v.as_str().into(),
        Value::Bytes(v) => base64::Engine::encode(&base64::engine::general_purpose::STANDARD, v).into(),
        Value::Message(v) => message_json(v),
        Value::List(values) => values.iter().map(value_json).collect(),
        Value::Map(entries) => {
            let entry = |(key, value)| {
                let key = key_text(key);
                let value = if key == TOKENS { STRIPPED.into() } else { value_json(value) };
                (key, value)
            };
            let mut object: Map<String, Json> = entries.iter().map(entry).collect();
            object.sort_keys();
            Json::Object(object)
        }
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(v) => v.to_string(),
        MapKey::I32(v) => v.to_string(),
        MapKey::I64(v) => v.to_string(),
        MapKey::U32(v) => v.to_string(),
        MapKey::U64(v) => v.to_string(),
        MapKey::String(v) => v.clone(),
    }
}

/// The name that the Go generator makes of a proto name: `access_type` becomes `AccessType`.
fn go_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = true;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else if upper {
            out.extend(c.to_uppercase());
            upper = false;
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests;
