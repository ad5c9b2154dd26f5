//! Reads the source text of `k8s-pb`: message fields, with the markers that the original types carry in their comments.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use regex::Regex;

/// The protobuf form of a field's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wire {
    String,
    Bytes,
    Bool,
    Int,
    Double,
    /// A message: module path and type, such as `api/core/v1::Pod`.
    Message(String),
    Repeated(Box<Wire>),
    /// A map from string.
    Map(Box<Wire>),
}

/// A field of a message.
pub(super) struct Field {
    /// The Rust name, without `r#`.
    pub(super) name: String,
    pub(super) tag: u32,
    pub(super) wire: Wire,
    /// `listType`, `patchMergeKey` and so on with their values, in order.
    pub(super) markers: Vec<(String, String)>,
}

impl Field {
    pub(super) fn marker(&self, name: &str) -> Option<&str> {
        self.markers.iter().find(|(marker, _)| marker == name).map(|(_, value)| value.as_str())
    }
}

/// A message.
#[derive(Default)]
pub(super) struct Message {
    pub(super) fields: Vec<Field>,
    /// The type is marked as one that is merged as a whole.
    pub(super) atomic: bool,
}

/// Reads one module into the table, keyed `module::Type`.
pub(super) fn read(text: &str, module: &str, messages: &mut BTreeMap<String, Message>) -> Result<()> {
    let marker = Regex::new(r"^\s*/// ?\+(\w+)=?(.*)$")?;
    let tag = Regex::new(r#"tag = "(\d+)""#)?;
    let mut lines = text.lines();
    let mut markers = Vec::new();
    let mut current: Option<String> = None;
    while let Some(line) = lines.next() {
        let code = line.trim();
        if let Some(found) = marker.captures(line) {
            markers.push((found[1].to_owned(), found[2].trim().trim_matches('"').to_owned()));
        } else if let Some(rest) = code.strip_prefix("pub struct ") {
            let name = rest.split([' ', '{']).next().unwrap_or_default();
            let key = format!("{module}::{name}");
            let atomic =
                markers.iter().any(|(name, value)| (name == "structType" || name == "mapType") && value == "atomic");
            messages.insert(key.clone(), Message { fields: Vec::new(), atomic });
            markers.clear();
            current = (!rest.ends_with("{}")).then_some(key);
        } else if code.starts_with("#[prost(") {
            let mut attribute = code.to_owned();
            while !attribute.ends_with(")]") {
                attribute.push_str(lines.next().context("an unfinished attribute")?.trim());
            }
            let mut declaration = String::new();
            while !declaration.ends_with(',') || declaration.matches('<').count() != declaration.matches('>').count() {
                declaration.push_str(lines.next().context("an unfinished field")?.trim());
            }
            let Some(message) = &current else { bail!("a field outside of a message: {declaration}") };
            let (name, ty) = declaration
                .strip_prefix("pub ")
                .and_then(|field| field.split_once(':'))
                .with_context(|| declaration.clone())?;
            let field = Field {
                name: name.trim_start_matches("r#").to_owned(),
                tag: tag.captures(&attribute).context("a field without a tag")?[1].parse()?,
                wire: wire(&attribute, ty, module)?,
                markers: std::mem::take(&mut markers),
            };
            messages.get_mut(message).context("the current message is in the table")?.fields.push(field);
        } else if code == "}" && line == "}" {
            current = None;
            markers.clear();
        }
    }
    Ok(())
}

fn wire(attribute: &str, ty: &str, module: &str) -> Result<Wire> {
    let inner = attribute.trim_start_matches("#[prost(");
    if let Some(map) = inner.strip_prefix("btree_map = \"string, ") {
        let value = map.split('"').next().unwrap_or_default();
        return Ok(Wire::Map(Box::new(scalar(value, ty, module)?)));
    }
    let kind = inner.split([',', ' ']).next().unwrap_or_default();
    let wire = scalar(kind, ty, module)?;
    Ok(if inner.contains("repeated") { Wire::Repeated(Box::new(wire)) } else { wire })
}

fn scalar(kind: &str, ty: &str, module: &str) -> Result<Wire> {
    Ok(match kind {
        "string" => Wire::String,
        "bytes" => Wire::Bytes,
        "bool" => Wire::Bool,
        "int32" | "int64" => Wire::Int,
        "double" => Wire::Double,
        "message" => Wire::Message(message_path(ty, module)?),
        other => bail!("unknown field type {other}"),
    })
}

/// The key of the message that a Rust type names, seen from a module.
fn message_path(ty: &str, module: &str) -> Result<String> {
    let compact: String = ty.chars().filter(|c| !c.is_whitespace()).collect();
    // The innermost type argument, or the last one of a map.
    let path = compact.trim_end_matches([',', '>']).rsplit(['<', ',']).next().context("a type has a name")?;
    let mut segments: Vec<&str> = module.split('/').collect();
    let mut parts: Vec<&str> = path.split("::").collect();
    let name = parts.pop().context("a type has a name")?;
    for part in parts {
        if part == "super" {
            segments.pop();
        } else {
            segments.push(part);
        }
    }
    Ok(format!("{}::{name}", segments.join("/")))
}
