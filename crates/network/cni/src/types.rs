//! Results, in the form of 1.1.0, and their conversion to and from every version (section 5, "Result types").

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::conf::lookup;
use crate::{Code, Error, Map, Version, conf};

conf! {
    /// An interface that a plugin made or changed.
    pub struct Interface {
        /// Its name.
        pub name: String,
        /// Its hardware address; may be empty.
        pub mac: String,
        /// Its MTU; since 1.1.0.
        pub mtu: Option<u32>,
        /// The network namespace that it is in; empty for the host's.
        pub sandbox: String,
        /// A socket that stands for it; since 1.1.0.
        pub socket_path: String,
        /// The PCI device; since 1.1.0.
        #[key = "pciID"]
        pub pci_id: String,
    }
}

/// An address that a plugin gave.
#[derive(Debug, Clone, PartialEq)]
pub struct IpConfig {
    /// The address with the prefix length of its network.
    pub address: IpNet,
    /// The gateway, if there is one.
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it: an index into [`AddResult::interfaces`].
    pub interface: Option<i64>,
}

impl IpConfig {
    /// An address without gateway and interface.
    pub fn new(address: IpNet) -> Self {
        Self { address, gateway: None, interface: None }
    }
}

/// A route that a plugin made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop, if there is one.
    pub gw: Option<IpAddr>,
    /// MTU along it; since 1.1.0, as all that follows.
    pub mtu: Option<u32>,
    /// Maximal segment size to announce.
    pub advmss: Option<u32>,
    /// Priority; lower is better.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// Scope: 0 global, 253 link, 254 host.
    pub scope: Option<u8>,
}

impl Route {
    /// A route without further attributes.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

conf! {
    /// What a resolver should use.
    pub struct Dns {
        /// Addresses of name servers, by priority.
        pub nameservers: Vec<String>,
        /// The local domain.
        pub domain: String,
        /// Domains to search, by priority.
        pub search: Vec<String>,
        /// Options for the resolver.
        pub options: Vec<String>,
    }
}

/// The result of ADD.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AddResult {
    /// Interfaces; new ones are appended, so that indices stay right.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Name resolution.
    pub dns: Dns,
}

impl Interface {
    /// An interface with a name in a sandbox (empty: the host).
    pub fn new(name: impl Into<String>, mac: impl Into<String>, sandbox: impl Into<String>) -> Self {
        Self { name: name.into(), mac: mac.into(), sandbox: sandbox.into(), ..Self::default() }
    }

    fn to_value(&self, version: Version) -> Value {
        let mut map = Map::new();
        map.insert("name".to_owned(), json!(self.name));
        put(&mut map, "mac", &self.mac);
        put(&mut map, "sandbox", &self.sandbox);
        if version >= Version::V1_1_0 {
            if let Some(mtu) = self.mtu.filter(|mtu| *mtu != 0) {
                map.insert("mtu".to_owned(), json!(mtu));
            }
            put(&mut map, "socketPath", &self.socket_path);
            put(&mut map, "pciID", &self.pci_id);
        }
        Value::Object(map)
    }
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As JSON; what is empty is left out.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (key, list) in [("nameservers", &self.nameservers), ("search", &self.search), ("options", &self.options)] {
            if !list.is_empty() {
                map.insert(key.to_owned(), json!(list));
            }
        }
        put(&mut map, "domain", &self.domain);
        Value::Object(map)
    }
}

fn put(map: &mut Map, key: &str, text: &str) {
    if !text.is_empty() {
        map.insert(key.to_owned(), json!(text));
    }
}

/// A list under a key, left out if empty.
fn put_list(map: &mut Map, key: &str, list: Vec<Value>) {
    if !list.is_empty() {
        map.insert(key.to_owned(), Value::Array(list));
    }
}

impl conf::Field for IpConfig {
    fn kind() -> String {
        "object".to_owned()
    }

    fn from_json(value: &Value) -> Result<Self, conf::DecodeError> {
        let map = conf::object(value)?;
        Ok(Self {
            address: required(map, "address")?,
            gateway: conf::optional(map, "gateway")?,
            interface: conf::optional(map, "interface")?,
        })
    }
}

impl conf::Field for Route {
    fn kind() -> String {
        "object".to_owned()
    }

    fn from_json(value: &Value) -> Result<Self, conf::DecodeError> {
        let map = conf::object(value)?;
        let number = |key| conf::optional::<u32>(map, key).map(|number| number.filter(|number| *number != 0));
        Ok(Self {
            dst: required(map, "dst")?,
            gw: conf::optional(map, "gw")?,
            mtu: number("mtu")?,
            advmss: number("advmss")?,
            priority: number("priority")?,
            table: conf::optional(map, "table")?,
            scope: conf::optional(map, "scope")?,
        })
    }
}

fn required<T: conf::Field>(map: &Map, key: &str) -> Result<T, conf::DecodeError> {
    conf::optional(map, key)?.ok_or_else(|| {
        let mut error = conf::DecodeError::invalid(format!("{} is required", T::kind()));
        error.code = Code::Decode;
        error.under(key)
    })
}

impl IpConfig {
    fn to_value(&self, version: Version) -> Value {
        let mut value = json!({ "address": self.address.to_string() });
        if let Some(gateway) = self.gateway {
            value["gateway"] = json!(gateway.to_string());
        }
        if let Some(interface) = self.interface {
            value["interface"] = json!(interface);
        }
        if version < Version::V1_0_0 {
            value["version"] = json!(if self.address.addr().is_ipv4() { "4" } else { "6" });
        }
        value
    }
}

impl Route {
    /// As JSON, with all that is set.
    pub fn to_value(&self) -> Value {
        let mut value = json!({ "dst": self.dst.to_string() });
        if let Some(gw) = self.gw {
            value["gw"] = json!(gw.to_string());
        }
        for (key, number) in [("mtu", self.mtu), ("advmss", self.advmss), ("priority", self.priority)] {
            if let Some(number) = number.filter(|number| *number != 0) {
                value[key] = json!(number);
            }
        }
        if let Some(table) = self.table {
            value["table"] = json!(table);
        }
        if let Some(scope) = self.scope {
            value["scope"] = json!(scope);
        }
        value
    }
}

impl AddResult {
    /// Appends an interface and gives its index.
    pub fn push_interface(&mut self, interface: Interface) -> i64 {
        self.interfaces.push(interface);
        i64::try_from(self.interfaces.len() - 1).unwrap_or(i64::MAX)
    }

    /// The interface that an address is on, if its index says one.
    pub fn interface_of(&self, ip: &IpConfig) -> Option<&Interface> {
        self.interfaces.get(usize::try_from(ip.interface?).ok()?)
    }

    /// The form of a version. What the version has no place for is left out. 0.1.0 and 0.2.0 have place for one address
    /// of each family, and need one.
    pub fn to_value(&self, version: Version) -> Result<Value, Error> {
        let mut map = Map::new();
        map.insert("cniVersion".to_owned(), json!(version.as_str()));
        if version < Version::V0_3_0 {
            return self.oldest(map);
        }
        put_list(&mut map, "interfaces", self.interfaces.iter().map(|each| each.to_value(version)).collect());
        put_list(&mut map, "ips", self.ips.iter().map(|each| each.to_value(version)).collect());
        put_list(&mut map, "routes", self.routes.iter().map(Route::to_value).collect());
        if version < Version::V1_0_0 || !self.dns.is_empty() {
            map.insert("dns".to_owned(), self.dns.to_value());
        }
        Ok(Value::Object(map))
    }

    fn oldest(&self, mut map: Map) -> Result<Value, Error> {
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4) else { continue };
            let mut family = json!({ "ip": ip.address.to_string() });
            if let Some(gateway) = ip.gateway {
                family["gateway"] = json!(gateway.to_string());
            }
            let routes = self.routes.iter().filter(|route| route.dst.addr().is_ipv4() == v4);
            let routes: Vec<_> = routes.map(|route| Route::new(route.dst, route.gw).to_value()).collect();
            if !routes.is_empty() {
                family["routes"] = Value::Array(routes);
            }
            map.insert(key.to_owned(), family);
        }
        if !map.contains_key("ip4") && !map.contains_key("ip6") {
            return Err(Error::internal(
                "a result of version 0.1.0 or 0.2.0 needs an IP address, and this one has none",
            ));
        }
        map.insert("dns".to_owned(), self.dns.to_value());
        Ok(Value::Object(map))
    }

    /// Reads a result of any version; `cniVersion` in it says which, and 0.1.0 if it is not there.
    pub fn from_value(value: &Value) -> Result<Self, Error> {
        Self::decode(value, Version::V0_1_0)
    }

    /// Reads a result of any version, of the given one if it does not say its own. Null is an empty result.
    pub fn decode(value: &Value, default: Version) -> Result<Self, Error> {
        if value.is_null() {
            return Ok(Self::default());
        }
        let map = conf::object(value)?;
        let version = match crate::net::version_text(map)? {
            "" => default,
            text => text.parse().map_err(|error: crate::version::UnknownVersion| {
                Error::new(Code::IncompatibleVersion, error.to_string())
            })?,
        };
        if version < Version::V0_3_0 {
            return Self::from_oldest(map);
        }
        Ok(Self {
            // A null item keeps its place: addresses refer to interfaces by index.
            interfaces: conf::field(map, "interfaces", Vec::new)?,
            ips: list(map, "ips")?,
            routes: list(map, "routes")?,
            dns: conf::field(map, "dns", Dns::default)?,
        })
    }

    fn from_oldest(map: &Map) -> Result<Self, Error> {
        let mut result = Self { dns: conf::field(map, "dns", Dns::default)?, ..Self::default() };
        for key in ["ip4", "ip6"] {
            let Some(value) = lookup(map, key).filter(|value| !value.is_null()) else { continue };
            let family = conf::object(value).map_err(|error| error.under(key))?;
            let ip = IpConfig {
                address: required(family, "ip").map_err(|error| error.under(key))?,
                gateway: conf::optional(family, "gateway").map_err(|error| error.under(key))?,
                interface: None,
            };
            result.ips.push(ip);
            result.routes.extend(list::<Route>(family, "routes").map_err(|error| error.under(key))?);
        }
        Ok(result)
    }
}

/// A list under a key; null items are left out.
fn list<T: conf::Field>(map: &Map, key: &str) -> Result<Vec<T>, conf::DecodeError> {
    let Some(value) = lookup(map, key).filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let items = value.as_array().ok_or_else(|| conf::DecodeError::expected("a list", value).under(key))?;
    let decode = |(index, item): (usize, &Value)| {
        if item.is_null() {
            return None;
        }
        Some(T::from_json(item).map_err(|error| error.under(&format!("[{index}]")).under(key)))
    };
    items.iter().enumerate().filter_map(decode).collect()
}

#[cfg(test)]
mod tests;
