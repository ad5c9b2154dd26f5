//! Rust for the Container Storage Interface: messages, gRPC clients and servers, and the raw descriptor set.
//!
//! The descriptor set keeps the custom options (`csi_secret`), which prost drops. Messages that hold secrets get no
//! derived `Debug` but one that leaves the secrets out, made here from the same marks.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use fs_err as fs;
use prost_reflect::{DescriptorPool, MessageDescriptor, Value};
use protox::Compiler;

use crate::{Output, root};

const PROTO_DIRECTORY: &str = "crates/storage/csi/proto";
const OUT_DIRECTORY: &str = "crates/storage/csi/src/proto";

/// The files of `outrigger_csi::proto`.
pub(crate) fn outputs() -> Result<Vec<Output>> {
    let pool = compiler(false)?.descriptor_pool();
    let secretive = messages_with_secrets(&pool)?;

    let scratch = tempfile::tempdir().context("creating a scratch directory")?;
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug(secretive.iter().map(|(message, _)| format!(".{}", message.full_name())))
        .out_dir(scratch.path())
        .compile_fds(compiler(true)?.file_descriptor_set())
        .context("generating Rust")?;

    let mut code = fs::read_to_string(scratch.path().join("csi.v1.rs"))?;
    for (message, secrets) in &secretive {
        write_debug(&mut code, message, secrets)?;
    }
    Ok(vec![
        Output { path: PathBuf::from(OUT_DIRECTORY).join("csi.v1.rs"), content: code.into_bytes() },
        Output {
            path: PathBuf::from(OUT_DIRECTORY).join("csi.v1.bin"),
            content: compiler(false)?.encode_file_descriptor_set(),
        },
    ])
}

/// A compiler that has read csi.proto. Comments are wanted for the code, but not in the descriptor set.
fn compiler(comments: bool) -> Result<Compiler> {
    let mut compiler = Compiler::new([root().join(PROTO_DIRECTORY)])?;
    compiler.include_imports(true).include_source_info(comments).open_file("csi.proto")?;
    Ok(compiler)
}

/// All messages that have fields marked `csi_secret`, with the names of these fields.
fn messages_with_secrets(pool: &DescriptorPool) -> Result<Vec<(MessageDescriptor, Vec<String>)>> {
    let mark = pool.get_extension_by_name("csi.v1.csi_secret").context("csi.proto has no csi_secret option")?;
    let mut found = Vec::new();
    for message in pool.all_messages() {
        let secrets: Vec<String> = message
            .fields()
            .filter(|field| field.options().get_extension(&mark).as_ref() == &Value::Bool(true))
            .map(|field| field.name().to_owned())
            .collect();
        if !secrets.is_empty() {
            anyhow::ensure!(
                message.parent_message().is_none(),
                "{} is nested: write_debug does not expect that",
                message.full_name()
            );
            found.push((message, secrets));
        }
    }
    Ok(found)
}

/// Appends a `Debug` implementation that shows whether there are secrets, but not which.
fn write_debug(code: &mut String, message: &MessageDescriptor, secrets: &[String]) -> Result<()> {
    let name = message.name();
    writeln!(code, "/// Leaves secrets out.")?;
    writeln!(code, "impl ::core::fmt::Debug for {name} {{")?;
    writeln!(code, "    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{")?;
    writeln!(code, "        f.debug_struct(\"{name}\")")?;
    for field in message.fields() {
        let field = field.name();
        if secrets.iter().any(|secret| secret == field) {
            writeln!(code, "            .field(\"{field}\", &super::Stripped(self.{field}.is_empty()))")?;
        } else {
            writeln!(code, "            .field(\"{field}\", &self.{field})")?;
        }
    }
    writeln!(code, "            .finish()\n    }}\n}}")?;
    Ok(())
}
