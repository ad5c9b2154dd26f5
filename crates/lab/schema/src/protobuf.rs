//! Kubernetes' protobuf bodies as JSON values.

use serde_json::Value;

use crate::error::Error;

/// The bytes that a protobuf body starts with.
const MAGIC: &[u8] = b"k8s\0";

/// Tells whether a body is Kubernetes protobuf, by its first four bytes.
pub fn is_protobuf(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

/// Decodes a body (`application/vnd.kubernetes.protobuf`) to the JSON value that the same object has, with apiVersion and kind.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    if !is_protobuf(body) {
        return Err(Error::NotProtobuf);
    }
    Err(Error::UnsupportedContent("not read yet".to_owned()))
}
