//! Messages, clients and servers of `csi.v1`, generated from `proto/csi.proto`, and their descriptors.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, FieldDescriptor, Value};

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the documentation is the comments of csi.proto"
)]
mod generated {
    include!("proto/csi.v1.rs");
}
pub use generated::*;

/// The `FileDescriptorSet` of csi.proto and its imports, with all custom options (`csi_secret`, `alpha_*`).
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("proto/csi.v1.bin");

/// The descriptors, parsed once.
pub fn descriptor_pool() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the committed descriptor set is well-formed")
    });
    &POOL
}

/// Whether the specification marks the field `csi_secret`.
pub(crate) fn is_secret(field: &FieldDescriptor) -> bool {
    let mark = descriptor_pool().get_extension_by_name("csi.v1.csi_secret");
    mark.is_some_and(|mark| field.options().get_extension(&mark).as_ref() == &Value::Bool(true))
}

/// How `Debug` shows a field of secrets: whether it is empty, and no more.
struct Stripped(bool);

impl std::fmt::Debug for Stripped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0 { "{}" } else { "***stripped***" })
    }
}
