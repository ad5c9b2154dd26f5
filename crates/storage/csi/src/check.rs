//! Requests as the specification wants them: required fields, sizes, forms, and only what the plugin advertises.
//!
//! The demands on single RPCs are a table ([`table`]); what holds for a type of field or message wherever it appears is
//! found by walking the request along its descriptor. Messages name the field by its path and never show secrets.

pub(crate) mod answer;
pub(crate) mod table;
pub(crate) mod topology;

use std::collections::HashMap;

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};

use self::table::{Gate, Rule};
use crate::Error;
use crate::capability::{Capabilities, ControllerCapability, NodeCapability};
use crate::page::{MAX_MAP, MAX_STRING};
use crate::proto::is_secret;
use crate::proto::volume_capability::access_mode::Mode;

/// Longest path, in bytes: what Linux takes, without the closing zero.
const MAX_PATH: usize = 4095;
/// Longest node id, in bytes.
pub(crate) const MAX_NODE_ID: usize = 256;
/// Keys of what the kubelet adds to a volume's context, for instance `csi.storage.k8s.io/serviceAccount.tokens`.
const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";
/// Mount flags of one capability together, in bytes.
const MAX_MOUNT_FLAGS: usize = 4096;

/// Whether the plugin serves the RPC.
pub(crate) fn gate(rule: &Rule, capabilities: &Capabilities, node: bool) -> Result<(), Error> {
    match rule.gate {
        Gate::Has(capability) if !capabilities.has(capability) => Err(Error::unimplemented(format!(
            "{} needs the capability {capability}, which this plugin does not have",
            rule.name()
        ))),
        Gate::Node if !node => Err(Error::unimplemented(format!(
            "{} needs the Node service, which this plugin does not have",
            rule.name()
        ))),
        _ => Ok(()),
    }
}

/// Checks a request against its rule and against what holds for all.
pub(crate) fn request(rule: &Rule, capabilities: &Capabilities, request: &DynamicMessage) -> Result<(), Error> {
    for field in rule.required {
        if !request.has_field_by_name(field) {
            return Err(invalid(format!("{field} is required")));
        }
    }
    for &(path, capability) in rule.only_with {
        if has_path(request, path) && !capabilities.has(capability) {
            return Err(invalid(format!("{path} needs the capability {capability}, which this plugin does not have")));
        }
    }
    let multi_writer = if rule.on_node() {
        capabilities.has(NodeCapability::SingleNodeMultiWriter)
    } else {
        capabilities.has(ControllerCapability::SingleNodeMultiWriter)
    };
    let mount_group = !rule.on_node() || capabilities.has(NodeCapability::VolumeMountGroup);
    Walk { multi_writer, mount_group }.message("", request)?;
    if rule.method == "/csi.v1.Node/NodePublishVolume"
        && capabilities.has(NodeCapability::StageUnstageVolume)
        && !request.has_field_by_name("staging_target_path")
        && !is_inline(request)
    {
        return Err(Error::failed_precondition(
            "staging_target_path is required, because this plugin has the capability STAGE_UNSTAGE_VOLUME",
        ));
    }
    Ok(())
}

/// Whether the volume is one that Kubernetes defines in the pod itself: it is made when it is published, never staged.
fn is_inline(request: &DynamicMessage) -> bool {
    request.get_field_by_name("volume_context").is_some_and(|context| {
        let key = MapKey::String("csi.storage.k8s.io/ephemeral".to_owned());
        context.as_map().and_then(|map| map.get(&key)).and_then(Value::as_str) == Some("true")
    })
}

fn invalid(message: String) -> Error {
    Error::invalid_argument(message)
}

/// Whether something is set at a path of field names.
fn has_path(message: &DynamicMessage, path: &str) -> bool {
    match path.split_once('.') {
        None => message.has_field_by_name(path),
        Some((first, rest)) => {
            message.has_field_by_name(first)
                && message
                    .get_field_by_name(first)
                    .is_some_and(|value| value.as_message().is_some_and(|inner| has_path(inner, rest)))
        }
    }
}

/// What holds for fields and messages by name or type.
struct Walk {
    /// Whether access modes that tell workloads apart are allowed.
    multi_writer: bool,
    /// Whether `volume_mount_group` is allowed.
    mount_group: bool,
}

impl Walk {
    fn message(&self, path: &str, message: &DynamicMessage) -> Result<(), Error> {
        match message.descriptor().full_name() {
            "csi.v1.CapacityRange" => return capacity_range(path, message),
            "csi.v1.VolumeCapability" => self.capability(path, message)?,
            "csi.v1.VolumeContentSource" => content_source(path, message)?,
            "csi.v1.TopologyRequirement" => topology_requirement(path, message)?,
            "csi.v1.Topology" => return topology(path, message),
            _ => {}
        }
        for (field, value) in message.fields() {
            let path = join(path, field.name());
            match value {
                Value::String(text) => string(&path, field.name(), text)?,
                Value::Map(map) => map_size(&path, &field, map)?,
                Value::List(list) => self.list(&path, &field, list)?,
                Value::Message(inner) => self.message(&path, inner)?,
                Value::I32(number) if *number < 0 => {
                    return Err(negative(&path, i64::from(*number)));
                }
                Value::I64(number) if *number < 0 && field.name() == "starting_offset" => {
                    return Err(Error::out_of_range(format!("{path} is negative: {number}")));
                }
                Value::I64(number) if *number < 0 => return Err(negative(&path, *number)),
                _ => {}
            }
        }
        Ok(())
    }

    fn list(&self, path: &str, field: &FieldDescriptor, list: &[Value]) -> Result<(), Error> {
        if field.name() == "mount_flags" {
            let bytes: usize = list.iter().filter_map(Value::as_str).map(str::len).sum();
            return limit(path, "flags", bytes, MAX_MOUNT_FLAGS);
        }
        for (index, value) in list.iter().enumerate() {
            let path = format!("{path}[{index}]");
            match value {
                Value::String(text) if text.is_empty() => {
                    return Err(invalid(format!("{path} is empty")));
                }
                Value::String(text) => string(&path, field.name(), text)?,
                Value::Message(inner) => self.message(&path, inner)?,
                _ => {}
            }
        }
        if matches!(field.kind(), Kind::String) || field.name() == "volume_capabilities" {
            no_repetition(path, list)?;
        }
        if field.name() == "volume_capabilities" {
            one_file_system(path, list)?;
        }
        Ok(())
    }

    fn capability(&self, path: &str, message: &DynamicMessage) -> Result<(), Error> {
        let mount = message.has_field_by_name("mount");
        if !mount && !message.has_field_by_name("block") {
            return Err(invalid(format!("{path}: an access type, block or mount, is required")));
        }
        if !self.mount_group && has_path(message, "mount.volume_mount_group") {
            return Err(invalid(format!(
                "{path}.mount.volume_mount_group needs the capability VOLUME_MOUNT_GROUP, which this plugin does not have"
            )));
        }
        let mode = message.get_field_by_name("access_mode").and_then(|access_mode| {
            access_mode
                .as_message()
                .and_then(|inner| inner.get_field_by_name("mode").and_then(|mode| mode.as_enum_number()))
        });
        let number = mode.unwrap_or_default();
        match Mode::try_from(number) {
            Ok(Mode::Unknown) => Err(invalid(format!("{path}.access_mode is required"))),
            Ok(mode @ (Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter)) if !self.multi_writer => {
                Err(invalid(format!(
                    "{path}.access_mode {} needs the capability SINGLE_NODE_MULTI_WRITER, which this plugin does not have",
                    mode.as_str_name()
                )))
            }
            Ok(_) => Ok(()),
            Err(_) => Err(invalid(format!("{path}.access_mode {number} is not known to this plugin"))),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn negative(path: &str, number: i64) -> Error {
    invalid(format!("{path} is negative: {number}"))
}

fn limit(path: &str, what: &str, bytes: usize, limit: usize) -> Result<(), Error> {
    if bytes > limit {
        return Err(invalid(format!("{path} has {bytes} bytes of {what}, more than the allowed {limit}")));
    }
    Ok(())
}

fn string(path: &str, name: &str, text: &str) -> Result<(), Error> {
    if name.ends_with("_path") {
        limit(path, "text", text.len(), MAX_PATH)?;
        // A plugin makes something at the other paths; at this one it looks for a volume. That there is none at a relative
        // path is for the plugin to say, with NOT_FOUND: csi-sanity asks for `some/path` and expects that code.
        if name != "volume_path" && !text.starts_with('/') {
            return Err(invalid(format!("{path} {text:?} is not an absolute path")));
        }
        return contained(path, text);
    }
    limit(path, "text", text.len(), if name == "node_id" { MAX_NODE_ID } else { MAX_STRING })?;
    // The control characters that the specification forbids in names are all but common white space.
    let forbidden = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    match text.chars().find(|&c| forbidden(c)) {
        Some(c) => Err(invalid(format!("{path} contains the control character U+{:04X}", u32::from(c)))),
        None => Ok(()),
    }
}

fn contained(path: &str, text: &str) -> Result<(), Error> {
    if text.split('/').any(|part| part == "..") {
        return Err(invalid(format!("{path} {text:?} leads upwards: it must not contain \"..\"")));
    }
    if text.contains('\0') {
        return Err(invalid(format!("{path} contains the control character U+0000")));
    }
    Ok(())
}

/// Holds a map against the specification's limit, except for what the limit cannot be meant for.
///
/// Secrets are Kubernetes Secrets, which the kubelet and the sidecars pass on whole: up to 1 MiB, and a certificate or two
/// are more than 4 KiB. To the context of a volume, which the driver itself kept within the limit, the kubelet adds facts
/// about the pod, and the tokens of its service account, which alone may be longer. Neither the user nor the driver could
/// do anything about a refusal, and other drivers take both.
fn map_size(path: &str, field: &FieldDescriptor, map: &HashMap<MapKey, Value>) -> Result<(), Error> {
    let added = |key: &str| field.name() == "volume_context" && key.starts_with(KUBELET_PREFIX);
    let bytes = map
        .iter()
        .filter_map(|(key, value)| Some((key.as_str()?, value.as_str()?)))
        .filter(|(key, _)| !added(key))
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if bytes > MAX_MAP && is_secret(field) {
        return Ok(());
    }
    limit(path, "keys and values", bytes, MAX_MAP)
}

fn no_repetition(path: &str, list: &[Value]) -> Result<(), Error> {
    // By their bytes, which are the same for equal values, since none of these messages has a map: a request may hold
    // hundreds of thousands, too many to compare each with each.
    let mut seen: HashMap<Vec<u8>, usize> = HashMap::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let bytes = match value {
            Value::String(text) => text.clone().into_bytes(),
            Value::Message(message) => message.encode_to_vec(),
            _ => continue,
        };
        if let Some(first) = seen.insert(bytes, index) {
            return Err(invalid(format!("{path}[{index}] repeats {path}[{first}]")));
        }
    }
    Ok(())
}

/// A volume has one file system, so capabilities that name different ones contradict each other.
fn one_file_system(path: &str, list: &[Value]) -> Result<(), Error> {
    let mut first: Option<(usize, String)> = None;
    for (index, value) in list.iter().enumerate() {
        let fs_type = value
            .as_message()
            .and_then(|capability| {
                capability.get_field_by_name("mount").and_then(|mount| {
                    mount.as_message().and_then(|mount| {
                        mount.get_field_by_name("fs_type").and_then(|fs_type| fs_type.as_str().map(str::to_owned))
                    })
                })
            })
            .filter(|fs_type| !fs_type.is_empty());
        match (&first, fs_type) {
            (Some((place, known)), Some(other)) if *known != other => {
                return Err(invalid(format!(
                    "{path}[{index}].mount.fs_type {other:?} contradicts {path}[{place}].mount.fs_type {known:?}"
                )));
            }
            (None, Some(fs_type)) => first = Some((index, fs_type)),
            _ => {}
        }
    }
    Ok(())
}

fn capacity_range(path: &str, message: &DynamicMessage) -> Result<(), Error> {
    let bytes = |name| message.get_field_by_name(name).and_then(|value| value.as_i64()).unwrap_or_default();
    let (required, limit) = (bytes("required_bytes"), bytes("limit_bytes"));
    for (name, bytes) in [("required_bytes", required), ("limit_bytes", limit)] {
        if bytes < 0 {
            return Err(negative(&join(path, name), bytes));
        }
    }
    if required == 0 && limit == 0 {
        return Err(invalid(format!("{path} needs required_bytes or limit_bytes")));
    }
    if limit != 0 && limit < required {
        return Err(invalid(format!("{path}.limit_bytes {limit} is less than required_bytes {required}")));
    }
    Ok(())
}

fn content_source(path: &str, message: &DynamicMessage) -> Result<(), Error> {
    for (choice, id) in [("snapshot", "snapshot_id"), ("volume", "volume_id")] {
        if message.has_field_by_name(choice) {
            if has_path(message, &format!("{choice}.{id}")) {
                return Ok(());
            }
            return Err(invalid(format!("{path}.{choice}.{id} is required")));
        }
    }
    Err(invalid(format!("{path}: a source, snapshot or volume, is required")))
}

fn topology_requirement(path: &str, message: &DynamicMessage) -> Result<(), Error> {
    if message.has_field_by_name("requisite") || message.has_field_by_name("preferred") {
        return Ok(());
    }
    Err(invalid(format!("{path} needs requisite or preferred")))
}

fn topology(path: &str, message: &DynamicMessage) -> Result<(), Error> {
    let segments = message.get_field_by_name("segments");
    let map = segments.as_ref().and_then(|segments| segments.as_map());
    let pairs = map.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str()?, value.as_str()?)));
    topology::check(&join(path, "segments"), pairs)
}
