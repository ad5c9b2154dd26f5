//! Every RPC by name with JSON in and out, for command lines and scripts.

use std::time::Duration;

use futures_util::StreamExt as _;
use prost::Message;
use prost::bytes::Buf;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde_json::{Map, Value as Json};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::check::table::RULES;
use crate::client::{CallError, Client};
use crate::proto::{descriptor_pool, is_secret};

/// Why a call by name failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// There is no such RPC.
    #[error("there is no RPC {name:?}; did you mean {nearest}?")]
    UnknownRpc {
        /// The name asked for.
        name: String,
        /// The most similar name.
        nearest: String,
    },
    /// The text is not JSON.
    #[error("the request is not JSON: {problem}")]
    Syntax {
        /// What and where.
        problem: String,
    },
    /// A part of the request is not what the message has there. Values of secret fields are not shown.
    #[error("{path}: {problem}")]
    Field {
        /// Path of the part from the request's root, such as `volume_capabilities[0].mount`.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The call itself failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// One RPC of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RpcName {
    /// The service, such as `Controller`.
    pub service: &'static str,
    /// The RPC, such as `CreateVolume`.
    pub rpc: &'static str,
    /// Whether it answers with a stream of messages.
    pub streaming: bool,
    method: &'static str,
}

impl RpcName {
    /// The name as command lines have it, such as `create-volume`.
    pub fn kebab(&self) -> String {
        let mut kebab = String::new();
        for c in self.rpc.chars() {
            if c.is_ascii_uppercase() && !kebab.is_empty() {
                kebab.push('-');
            }
            kebab.push(c.to_ascii_lowercase());
        }
        kebab
    }
}

/// All RPCs, service by service.
pub fn rpc_names() -> Vec<RpcName> {
    RULES
        .iter()
        .map(|rule| {
            let service =
                rule.method.split('/').nth(1).and_then(|service| service.rsplit('.').next()).unwrap_or_default();
            let streaming = service == "SnapshotMetadata";
            RpcName { service, rpc: rule.name(), streaming, method: rule.method }
        })
        .collect()
}

/// Calls an RPC by its name (`create-volume`, `CreateVolume`, `Controller/CreateVolume`, `csi.v1.Controller/CreateVolume`)
/// with a request in JSON, and gives the answer in JSON.
///
/// Fields have their names of the specification or lowerCamelCase; the choices of a oneof stand beside the other fields;
/// enums are names or numbers; 64-bit numbers are numbers or strings. An empty text is an empty request. Answers have
/// the specification's names and all fields; those of a streaming RPC are one line each.
///
/// # Errors
/// An unknown RPC or field, a value of the wrong type (with its path), or the call's own failure.
pub async fn call_json(client: &Client, rpc: &str, json: &str, deadline: Duration) -> Result<String, JsonError> {
    let name = find(rpc)?;
    let method = descriptor(&name);
    let request = parse(method.input(), json)?;
    let codec = DynamicCodec { answer: method.output() };
    if !name.streaming {
        return Ok(print(&client.unary(name.method, codec, request, deadline).await?));
    }
    let mut messages = client.streaming(name.method, codec, request, deadline).await?;
    let mut lines = String::new();
    while let Some(message) = messages.next().await {
        lines.push_str(&print(&message?));
        lines.push('\n');
    }
    Ok(lines)
}

/// A request in JSON with every field of an RPC, to be edited. Of a oneof it has one choice.
///
/// # Errors
/// [`JsonError::UnknownRpc`].
pub fn request_template(rpc: &str) -> Result<String, JsonError> {
    let template = message_template(&descriptor(&find(rpc)?).input());
    Ok(format!("{template:#}"))
}

fn find(rpc: &str) -> Result<RpcName, JsonError> {
    let plain = |text: &str| text.chars().filter(|c| !matches!(c, '-' | '_')).collect::<String>().to_ascii_lowercase();
    let wanted = plain(rpc.trim_start_matches('/'));
    let (service, wanted) =
        wanted.rsplit_once(['/', '.']).map_or((None, wanted.as_str()), |(service, rpc)| (Some(service), rpc));
    let fits = |name: &&RpcName| {
        plain(name.rpc) == wanted
            && service.is_none_or(|service| {
                let known = plain(name.service);
                service == known || service == format!("csi.v1.{known}")
            })
    };
    let names = rpc_names();
    names.iter().find(fits).copied().ok_or_else(|| {
        let nearest = names.iter().map(RpcName::kebab).min_by_key(|name| distance(&plain(name), wanted));
        JsonError::UnknownRpc { name: rpc.to_owned(), nearest: nearest.unwrap_or_default() }
    })
}

/// Number of letters to insert, remove or change to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn descriptor(name: &RpcName) -> MethodDescriptor {
    let service = descriptor_pool().services().find(|service| service.name() == name.service);
    service
        .and_then(|service| service.methods().find(|method| method.name() == name.rpc))
        .expect("a test holds the table of RPCs against the descriptors")
}

fn parse(message: MessageDescriptor, json: &str) -> Result<DynamicMessage, JsonError> {
    let json = if json.trim().is_empty() { "{}" } else { json };
    let value: Json = serde_json::from_str(json).map_err(|error| JsonError::Syntax { problem: error.to_string() })?;
    check(&message, &value, "")?;
    DynamicMessage::deserialize_with_options(message, value, &DeserializeOptions::new())
        .map_err(|error| field("request", error.to_string()))
}

fn field(path: &str, problem: impl Into<String>) -> JsonError {
    let path = if path.is_empty() { "request" } else { path };
    JsonError::Field { path: path.to_owned(), problem: problem.into() }
}

/// Finds the first part that the message does not have, or has otherwise.
fn check(message: &MessageDescriptor, value: &Json, path: &str) -> Result<(), JsonError> {
    let object = value.as_object().ok_or_else(|| field(path, format!("is {}, not an object", kind(value))))?;
    let mut chosen: Vec<(String, String)> = Vec::new();
    for (name, value) in object {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let found =
            message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name)).ok_or_else(|| {
                let known: Vec<_> = message.fields().map(|field| field.name().to_owned()).collect();
                let known = if known.is_empty() { "no fields".to_owned() } else { known.join(", ") };
                field(&path, format!("unknown field; {} has {known}", message.name()))
            })?;
        if value.is_null() {
            continue;
        }
        if let Some(oneof) = found.containing_oneof() {
            if let Some((_, other)) = chosen.iter().find(|(known, _)| known == oneof.name()) {
                return Err(field(&path, format!("excludes {other}: set one of them")));
            }
            chosen.push((oneof.name().to_owned(), found.name().to_owned()));
        }
        check_field(&found, value, &path)?;
    }
    Ok(())
}

fn check_field(found: &FieldDescriptor, value: &Json, path: &str) -> Result<(), JsonError> {
    match found.kind() {
        Kind::Message(inner) if !found.is_map() && !inner.full_name().starts_with("google.protobuf.") => {
            if !found.is_list() {
                return check(&inner, value, path);
            }
            let list = value.as_array().ok_or_else(|| field(path, format!("is {}, not a list", kind(value))))?;
            list.iter().enumerate().try_for_each(|(index, value)| check(&inner, value, &format!("{path}[{index}]")))
        }
        _ => {
            let alone = Json::Object(Map::from_iter([(found.name().to_owned(), value.clone())]));
            match DynamicMessage::deserialize(found.parent_message().clone(), alone) {
                Ok(_) => Ok(()),
                // The parser's message would show the value.
                Err(_) if is_secret(found) => Err(field(path, "is not an object of strings")),
                Err(error) => Err(field(path, error.to_string())),
            }
        }
    }
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

fn print(message: &DynamicMessage) -> String {
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false).skip_default_fields(false);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .unwrap_or_else(|error| Json::String(error.to_string()))
        .to_string()
}

fn message_template(message: &MessageDescriptor) -> Json {
    let mut object = Map::new();
    for field in message.fields() {
        let chosen = field.containing_oneof().is_none_or(|oneof| {
            let fields: Vec<_> = oneof.fields().collect();
            let rich =
                |field: &&FieldDescriptor| matches!(field.kind(), Kind::Message(inner) if inner.fields().len() > 0);
            fields.iter().find(rich).or(fields.first()) == Some(&field)
        });
        if chosen {
            object.insert(field.name().to_owned(), field_template(&field));
        }
    }
    Json::Object(object)
}

fn field_template(field: &FieldDescriptor) -> Json {
    if field.is_map() {
        return Json::Object(Map::from_iter([("key".to_owned(), Json::String("value".to_owned()))]));
    }
    let one = match field.kind() {
        Kind::Message(inner) if inner.full_name().starts_with("google.protobuf.") => Json::Null,
        Kind::Message(inner) => message_template(&inner),
        Kind::Enum(kind) => kind.values().nth(1).map_or(Json::Null, |value| Json::String(value.name().to_owned())),
        Kind::String => Json::String(String::new()),
        Kind::Bool => Json::Bool(false),
        _ => Json::Number(0.into()),
    };
    if field.is_list() { Json::Array(vec![one]) } else { one }
}

/// Messages by descriptor instead of by type.
struct DynamicCodec {
    answer: MessageDescriptor,
}

struct DynamicEncoder;
struct DynamicDecoder(MessageDescriptor);

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = DynamicEncoder;
    type Decoder = DynamicDecoder;

    fn encoder(&mut self) -> DynamicEncoder {
        DynamicEncoder
    }

    fn decoder(&mut self) -> DynamicDecoder {
        DynamicDecoder(self.answer.clone())
    }
}

impl Encoder for DynamicEncoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|error| Status::internal(format!("cannot encode the request: {error}")))
    }
}

impl Decoder for DynamicDecoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        DynamicMessage::decode(self.0.clone(), bytes)
            .map(Some)
            .map_err(|error| Status::internal(format!("cannot decode the answer: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(rpc: &str, json: &str) -> String {
        parse(descriptor(&find(rpc).unwrap()).input(), json).unwrap_err().to_string()
    }

    #[test]
    fn rpcs_have_many_spellings() {
        for name in [
            "create-volume",
            "CreateVolume",
            "create_volume",
            "createVolume",
            "Controller/CreateVolume",
            "csi.v1.Controller/CreateVolume",
            "/csi.v1.Controller/CreateVolume",
            "csi.v1.Controller.CreateVolume",
        ] {
            assert_eq!(find(name).unwrap().method, "/csi.v1.Controller/CreateVolume", "{name}");
        }
        for name in ["creat-volume", "Node/CreateVolume", ""] {
            assert!(matches!(find(name), Err(JsonError::UnknownRpc { .. })), "{name}");
        }
        assert_eq!(
            find("creat-volume").unwrap_err().to_string(),
            "there is no RPC \"creat-volume\"; did you mean create-volume?"
        );
        for name in rpc_names() {
            assert_eq!(find(&name.kebab()).unwrap(), name);
            assert_eq!(descriptor(&name).is_server_streaming(), name.streaming);
        }
    }

    #[test]
    fn every_template_is_a_request() {
        for name in rpc_names() {
            let template = request_template(name.rpc).unwrap();
            parse(descriptor(&name).input(), &template)
                .unwrap_or_else(|error| panic!("{}: {error}\n{template}", name.rpc));
        }
        let template: Json = serde_json::from_str(&request_template("create-volume").unwrap()).unwrap();
        assert_eq!(template["volume_capabilities"][0]["access_mode"]["mode"], "SINGLE_NODE_WRITER");
        assert_eq!(template["volume_capabilities"][0]["mount"]["fs_type"], "");
        assert_eq!(template["capacity_range"]["required_bytes"], 0);
    }

    #[test]
    fn names_and_numbers_are_taken_in_their_forms() {
        let json = r#"{"name": "v", "capacityRange": {"required_bytes": "5", "limitBytes": 6},
            "volume_capabilities": [{"block": {}, "accessMode": {"mode": 1}}, {"mount": {}, "access_mode": {"mode": "MULTI_NODE_MULTI_WRITER"}}]}"#;
        let message = parse(descriptor(&find("create-volume").unwrap()).input(), json).unwrap();
        let request: crate::proto::CreateVolumeRequest = message.transcode_to().unwrap();
        assert_eq!(request.capacity_range.unwrap().required_bytes, 5);
        assert_eq!(request.volume_capabilities[1].access_mode.unwrap().mode, 5);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (json, expected) in [
            ("{", "the request is not JSON: EOF while parsing"),
            ("[]", "request: is a list, not an object"),
            (r#"{"nme": "v"}"#, "nme: unknown field; CreateVolumeRequest has name, capacity_range"),
            (r#"{"volume_capabilities": {}}"#, "volume_capabilities: is an object, not a list"),
            (
                r#"{"volume_capabilities": [{}, {"mont": {}}]}"#,
                "volume_capabilities[1].mont: unknown field; VolumeCapability has block, mount, access_mode",
            ),
            (
                r#"{"volume_capabilities": [{"mount": {"mount_flags": "ro"}}]}"#,
                "volume_capabilities[0].mount.mount_flags: ",
            ),
            (r#"{"volume_capabilities": [{"mount": {}, "block": {}}]}"#, "excludes"),
            (
                r#"{"volume_capabilities": [{"access_mode": {"mode": "WRITER"}}]}"#,
                "volume_capabilities[0].access_mode.mode: ",
            ),
            (r#"{"capacity_range": {"required_bytes": "5Gi"}}"#, "capacity_range.required_bytes: "),
        ] {
            let problem = problem("create-volume", json);
            assert!(problem.contains(expected), "{json}: {problem}");
        }
    }

    #[test]
    fn secrets_are_not_echoed() {
        for json in
            [r#"{"secrets": "swordfish"}"#, r#"{"secrets": ["swordfish"]}"#, r#"{"secrets": {"a": {"swordfish": 1}}}"#]
        {
            let problem = problem("create-volume", json);
            assert_eq!(problem, "secrets: is not an object of strings");
        }
    }
}
