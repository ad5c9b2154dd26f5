//! What every plugin's configuration holds (section 1, "Plugin configuration objects").

use std::borrow::Cow;

use crate::conf::lookup;
use crate::{AddResult, Code, Dns, Error, Map, Version, conf, names};

/// The parts of a plugin's configuration that the specification defines.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// `cniVersion`; 0.1.0 if it is not there.
    pub cni_version: Version,
    /// `name` of the network.
    pub name: String,
    /// `type`: the plugin's name; may be empty.
    pub type_: String,
    /// `ipam`, if it is there.
    pub ipam: Option<Map>,
    /// `dns`
    pub dns: Dns,
    /// `prevResult`, converted to the newest form.
    pub prev_result: Option<AddResult>,
    /// `runtimeConfig`: values for capabilities.
    pub runtime_config: Map,
    /// `args`: an old way to pass values (`args.cni`).
    pub args: Map,
    /// `capabilities`
    pub capabilities: Map,
    /// `cni.dev/valid-attachments`, for GC.
    pub valid_attachments: Vec<Attachment>,
}

conf! {
    /// A container's interface that a network made: what GC must keep.
    pub struct Attachment {
        /// The container.
        #[key = "containerID"]
        pub container_id: String,
        /// The interface in it.
        pub ifname: String,
    }
}

impl Attachment {
    /// The attachment of a container's interface.
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self { container_id: container_id.into(), ifname: ifname.into() }
    }

    /// Whether this is it.
    pub fn is(&self, container_id: &str, ifname: &str) -> bool {
        self.container_id == container_id && self.ifname == ifname
    }
}

/// The object that a configuration is (code 6 if it is none). Bytes that are not UTF-8 are replaced, as the original
/// does.
pub fn parse_config(bytes: &[u8]) -> Result<Map, Error> {
    let text: Cow<'_, str> = String::from_utf8_lossy(bytes);
    if text.trim_ascii().is_empty() {
        return Err(Error::new(Code::Decode, "the network configuration is empty; it is expected on standard input"));
    }
    match serde_json::from_str(&text) {
        Ok(conf::Value::Object(map)) => Ok(map),
        Ok(conf::Value::Null) => Ok(Map::new()),
        Ok(other) => Err(Error::new(Code::Decode, format!("the network configuration is {}", kind(&other)))
            .details("a JSON object is expected")),
        Err(error) => Err(Error::new(Code::Decode, format!("the network configuration is not JSON: {error}"))),
    }
}

fn kind(value: &conf::Value) -> &'static str {
    match value {
        conf::Value::Array(_) => "a list",
        conf::Value::String(_) => "a string",
        _ => "a plain value",
    }
}

/// The network's name, checked (code 7).
pub(crate) fn network_name(map: &Map) -> Result<String, Error> {
    let name: String = conf::field(map, "name", String::new)?;
    if name.is_empty() {
        return Err(Error::config("missing network name"));
    }
    if names::identifier(&name).is_err() {
        return Err(Error::config("invalid characters found in network name").details(name));
    }
    Ok(name)
}

/// `cniVersion` as it is written; empty if it is not there.
pub(crate) fn version_text(map: &Map) -> Result<&str, Error> {
    match lookup(map, "cniVersion") {
        None | Some(conf::Value::Null) => Ok(""),
        Some(value) => conf::string(value).map_err(|error| error.under("cniVersion").into()),
    }
}

impl NetConf {
    /// Reads the common keys. With `lenient`, what cannot be read counts as absent as far as undoing does not depend on
    /// it: to undo must always be possible, also after somebody broke the configuration.
    pub fn decode(map: &Map, lenient: bool) -> Result<Self, Error> {
        let name = network_name(map)?;
        let cni_version: Version = version_text(map)?.parse().map_err(|error: crate::version::UnknownVersion| {
            Error::new(Code::IncompatibleVersion, error.to_string())
        })?;
        let prev_result = match lookup(map, "prevResult") {
            None | Some(conf::Value::Null) => None,
            Some(value) => match AddResult::decode(value, cni_version) {
                Ok(result) => Some(result),
                Err(_) if lenient => None,
                Err(error) => return Err(error.during("prevResult")),
            },
        };
        let read = Reader { map, lenient };
        let ipam: Option<Map> = conf::optional(map, "ipam")?;
        if let Some(ipam) = ipam.as_ref().filter(|_| !lenient) {
            conf::field(ipam, "type", String::new).map_err(|error| error.under("ipam"))?;
        }
        Ok(Self {
            cni_version,
            name,
            type_: read.field("type")?,
            ipam,
            dns: read.field("dns")?,
            prev_result,
            runtime_config: read.field("runtimeConfig")?,
            args: read.field("args")?,
            capabilities: read.field("capabilities")?,
            // Never taken for an empty list: GC removes what is not in it.
            valid_attachments: conf::field(map, "cni.dev/valid-attachments", Vec::new)?,
        })
    }

    /// The IPAM plugin's name; none if there is no `ipam` or it names none.
    pub fn ipam_type(&self) -> Option<&str> {
        lookup(self.ipam.as_ref()?, "type")?.as_str().filter(|name| !name.is_empty())
    }
}

struct Reader<'a> {
    map: &'a Map,
    lenient: bool,
}

impl Reader<'_> {
    fn field<T: conf::Field + Default>(&self, key: &str) -> Result<T, Error> {
        match conf::field(self.map, key, T::default) {
            Err(_) if self.lenient => Ok(T::default()),
            result => Ok(result?),
        }
    }
}
