use prost::Message;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, MessageOptions,
    MethodDescriptorProto, OneofDescriptorProto, ServiceDescriptorProto,
};
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::json;

use super::*;

fn field(name: &str, number: i32, kind: Type, of: Option<&str>) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.into()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(kind.into()),
        type_name: of.map(|of| format!(".demo.v1.{of}")),
        ..Default::default()
    }
}

fn repeated(mut field: FieldDescriptorProto) -> FieldDescriptorProto {
    field.label = Some(Label::Repeated.into());
    field
}

fn chosen(mut field: FieldDescriptorProto) -> FieldDescriptorProto {
    field.oneof_index = Some(0);
    field
}

fn message(name: &str, field: Vec<FieldDescriptorProto>) -> DescriptorProto {
    DescriptorProto { name: Some(name.into()), field, ..Default::default() }
}

fn map_entry(name: &str) -> DescriptorProto {
    DescriptorProto {
        options: Some(MessageOptions { map_entry: Some(true), ..Default::default() }),
        ..message(name, vec![field("key", 1, Type::String, None), field("value", 2, Type::String, None)])
    }
}

/// A protobuf field of wire type 2.
fn delimited(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

/// Whether the pool knows the extension that marks secrets, or has to find it among unknown fields.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Extension {
    Declared,
    Unknown,
}

/// A service with one call `demo.v1.Demo/Make`, whose request has the shapes that matter.
pub(crate) fn pool(extension: Extension) -> DescriptorPool {
    let mut request = message(
        "MakeRequest",
        vec![
            field("name", 1, Type::String, None),
            repeated(field("capabilities", 2, Type::Message, Some("Capability"))),
            repeated(field("parameters", 3, Type::Message, Some("MakeRequest.ParametersEntry"))),
            field("required_bytes", 5, Type::Int64, None),
            field("raw", 6, Type::Bytes, None),
        ],
    );
    request.nested_type = vec![map_entry("ParametersEntry"), map_entry("SecretsEntry")];
    let mut capability = message(
        "Capability",
        vec![
            chosen(field("block", 1, Type::Message, Some("Empty"))),
            chosen(field("mount", 2, Type::Message, Some("Mount"))),
            field("access_mode", 3, Type::Int32, None),
        ],
    );
    capability.oneof_decl = vec![OneofDescriptorProto { name: Some("access_type".into()), options: None }];
    let mount = message("Mount", vec![field("fs_type", 1, Type::String, None)]);
    let file = FileDescriptorProto {
        name: Some("demo.proto".into()),
        package: Some("demo.v1".into()),
        syntax: Some("proto3".into()),
        dependency: match extension {
            Extension::Declared => vec!["google/protobuf/descriptor.proto".into()],
            Extension::Unknown => vec![],
        },
        extension: match extension {
            Extension::Declared => vec![FieldDescriptorProto {
                extendee: Some(".google.protobuf.FieldOptions".into()),
                ..field("demo_secret", 1059, Type::Bool, None)
            }],
            Extension::Unknown => vec![],
        },
        message_type: vec![capability, mount, message("Empty", vec![])],
        service: vec![ServiceDescriptorProto {
            name: Some("Demo".into()),
            method: ["Make", "Probe"]
                .map(|name| MethodDescriptorProto {
                    name: Some(name.into()),
                    input_type: Some(".demo.v1.MakeRequest".into()),
                    output_type: Some(".demo.v1.Mount".into()),
                    ..Default::default()
                })
                .into(),
            options: None,
        }],
        ..Default::default()
    };
    // The typed structs drop extension options, hence the secret fields are written as bytes: the option (field 8) of
    // a FieldDescriptorProto (field 2 of the message, which is field 4 of the file) is `1059: true`.
    let mut option = Vec::new();
    prost::encoding::bool::encode(1059, &true, &mut option);
    let secret = |field: FieldDescriptorProto| {
        let mut bytes = field.encode_to_vec();
        bytes.extend(delimited(8, &option));
        delimited(2, &bytes)
    };
    let mut request = request.encode_to_vec();
    request.extend(secret(repeated(field("secrets", 4, Type::Message, Some("MakeRequest.SecretsEntry")))));
    request.extend(secret(field("token", 7, Type::String, None)));
    let mut file = file.encode_to_vec();
    file.extend(delimited(4, &request));
    let mut set = match extension {
        Extension::Declared => DescriptorPool::global()
            .get_file_by_name("google/protobuf/descriptor.proto")
            .map(|file| FileDescriptorSet { file: vec![file.file_descriptor_proto().clone()] }.encode_to_vec())
            .unwrap(),
        Extension::Unknown => vec![],
    };
    set.extend(delimited(1, &file));
    DescriptorPool::decode(set.as_slice()).unwrap()
}

pub(crate) fn request(pool: &DescriptorPool, json: serde_json::Value) -> DynamicMessage {
    let descriptor = pool.get_message_by_name("demo.v1.MakeRequest").unwrap();
    DynamicMessage::deserialize(descriptor, json).unwrap()
}

#[test]
fn the_form_is_that_of_go_drivers() {
    let pool = pool(Extension::Declared);
    let message = request(
        &pool,
        json!({
            "name": "pvc-1", "requiredBytes": "1073741824", "raw": "AAE=",
            "parameters": {"b": "2", "a": ""},
            "capabilities": [{"mount": {"fsType": "ext4"}, "accessMode": 1}, {"block": {}}, {}],
        }),
    );
    assert_eq!(
        render(&message),
        concat!(
            r#"{"capabilities":[{"AccessType":{"Mount":{"fs_type":"ext4"}},"access_mode":1},{"AccessType":{"Block":{}}},"#,
            r#"{"AccessType":null}],"name":"pvc-1","parameters":{"a":"","b":"2"},"raw":"AAE=","required_bytes":1073741824}"#
        )
    );
    assert_eq!(render(&request(&pool, json!({}))), "{}");
}

#[test]
fn secrets_are_stripped_as_a_whole() {
    for extension in [Extension::Declared, Extension::Unknown] {
        let message = request(
            &pool(extension),
            json!({"name": "n", "secrets": {"user": "hunter2", "password": "swordfish"}, "token": "opensesame"}),
        );
        assert_eq!(render(&message), r#"{"name":"n","secrets":"***stripped***","token":"***stripped***"}"#);
    }
}

#[test]
fn service_account_tokens_are_stripped_from_maps_that_are_not_secret() {
    let tokens = json!({"csi.storage.k8s.io/serviceAccount.tokens": "opensesame", "pod": "p"});
    let message = request(&pool(Extension::Declared), json!({ "parameters": tokens }));
    assert_eq!(
        render(&message),
        r#"{"parameters":{"csi.storage.k8s.io/serviceAccount.tokens":"***stripped***","pod":"p"}}"#
    );
}
