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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> AddResult {
        let ip = |address: &str, gateway: &str, interface| IpConfig {
            address: address.parse().unwrap(),
            gateway: gateway.parse().ok(),
            interface,
        };
        AddResult {
            interfaces: vec![
                Interface::new("cni0", "aa:bb:cc:dd:ee:ff", ""),
                Interface {
                    mtu: Some(1400),
                    socket_path: "/run/s".to_owned(),
                    pci_id: "0000:00:1f.6".to_owned(),
                    ..Interface::new("eth0", "", "/run/netns/x")
                },
            ],
            ips: vec![
                ip("10.1.0.5/16", "10.1.0.1", Some(1)),
                ip("fd00::5/64", "", Some(1)),
                ip("10.2.0.5/16", "10.2.0.1", Some(1)),
            ],
            routes: vec![
                Route::new("0.0.0.0/0".parse().unwrap(), Some("10.1.0.1".parse().unwrap())),
                Route {
                    mtu: Some(1300),
                    advmss: Some(1200),
                    priority: Some(7),
                    table: Some(0),
                    scope: Some(253),
                    ..Route::new("fd01::/64".parse().unwrap(), None)
                },
            ],
            dns: Dns { nameservers: vec!["10.1.0.1".to_owned()], domain: "local".to_owned(), ..Dns::default() },
        }
    }

    #[test]
    fn newest_form() {
        let value = full().to_value(Version::V1_1_0).unwrap();
        let expected = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni0", "mac": "aa:bb:cc:dd:ee:ff"},
                {"name": "eth0", "sandbox": "/run/netns/x", "mtu": 1400, "socketPath": "/run/s", "pciID": "0000:00:1f.6"},
            ],
            "ips": [
                {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
                {"address": "fd00::5/64", "interface": 1},
                {"address": "10.2.0.5/16", "gateway": "10.2.0.1", "interface": 1},
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "10.1.0.1"},
                {"dst": "fd01::/64", "mtu": 1300, "advmss": 1200, "priority": 7, "table": 0, "scope": 253},
            ],
            "dns": {"nameservers": ["10.1.0.1"], "domain": "local"},
        });
        assert_eq!(value, expected);
        assert_eq!(AddResult::from_value(&value).unwrap(), full());
    }

    #[test]
    fn middle_forms() {
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0] {
            let value = full().to_value(version).unwrap();
            assert_eq!(value["cniVersion"], version.as_str());
            // No place for what 1.1.0 brought to interfaces.
            assert_eq!(value["interfaces"][1], json!({"name": "eth0", "sandbox": "/run/netns/x"}));
            let family = value["ips"][1].get("version");
            assert_eq!(family, (version < Version::V1_0_0).then(|| json!("6")).as_ref());
            let mut expected = full();
            expected.interfaces[1] = Interface::new("eth0", "", "/run/netns/x");
            assert_eq!(AddResult::from_value(&value).unwrap(), expected);
        }
    }

    #[test]
    fn oldest_forms() {
        for version in [Version::V0_1_0, Version::V0_2_0] {
            let value = full().to_value(version).unwrap();
            let expected = json!({
                "cniVersion": version.as_str(),
                "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
                "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "fd01::/64"}]},
                "dns": {"nameservers": ["10.1.0.1"], "domain": "local"},
            });
            assert_eq!(value, expected);
            let back = AddResult::from_value(&value).unwrap();
            assert!(back.interfaces.is_empty());
            assert_eq!(back.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(), [None, None]);
            assert_eq!(back.to_value(version).unwrap(), expected);
            // A configuration of this version may have a result that does not say its own.
            let mut unversioned = expected.clone();
            unversioned.as_object_mut().unwrap().remove("cniVersion");
            assert_eq!(AddResult::from_value(&unversioned).unwrap(), back);
            let error = AddResult::default().to_value(version).unwrap_err();
            assert!(error.msg.contains("IP address"), "{error}");
        }
    }

    #[test]
    fn dns_is_printed_empty_before_1_0() {
        for version in Version::ALL {
            let result = AddResult { ips: full().ips, ..AddResult::default() };
            let value = result.to_value(*version).unwrap();
            assert_eq!(value.get("dns"), (*version < Version::V1_0_0).then(|| json!({})).as_ref(), "{version}");
            assert!(value.get("routes").is_none() && value.get("interfaces").is_none());
        }
        assert_eq!(AddResult::default().to_value(Version::V1_0_0).unwrap(), json!({"cniVersion": "1.0.0"}));
    }

    #[test]
    fn tolerant_reading() {
        assert_eq!(AddResult::from_value(&Value::Null), Ok(AddResult::default()));
        let value = json!({"CNIVERSION": "1.0.0", "IPs": [{"Address": "10.0.0.2/24", "gateway": "", "x": 1}, null],
            "routes": null, "interfaces": [null, {"name": "eth0"}]});
        let result = AddResult::from_value(&value).unwrap();
        assert_eq!(result.ips, [IpConfig::new("10.0.0.2/24".parse().unwrap())]);
        assert_eq!(result.interfaces[1].name, "eth0");
        // Without a version: that of the configuration.
        let value = json!({"ips": [{"version": "4", "address": "10.0.0.2/24"}]});
        assert_eq!(AddResult::decode(&value, Version::V0_4_0).unwrap().ips.len(), 1);
        assert_eq!(AddResult::from_value(&value).unwrap().ips.len(), 0);
    }

    #[test]
    fn refused_results() {
        let cases = [
            (json!([]), Code::Decode),
            (json!({"cniVersion": 1}), Code::Decode),
            (json!({"cniVersion": "2.0.0"}), Code::IncompatibleVersion),
            (json!({"cniVersion": "1.0.0", "ips": {}}), Code::Decode),
            (json!({"cniVersion": "1.0.0", "ips": [{}]}), Code::Decode),
            (json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1"}]}), Code::Decode),
            (json!({"cniVersion": "1.0.0", "routes": [{"gw": "10.0.0.1"}]}), Code::Decode),
            (json!({"cniVersion": "0.2.0", "ip4": {"ip": "x"}}), Code::Decode),
        ];
        for (value, code) in cases {
            assert_eq!(AddResult::from_value(&value).unwrap_err().code, code, "{value}");
        }
        let error = AddResult::from_value(&json!({"cniVersion": "1.0.0", "ips": [{"address": 1}]})).unwrap_err();
        assert_eq!(error.msg, "ips[0].address: expected an address with prefix length, got 1");
        let error = AddResult::from_value(&json!({"cniVersion": "0.1.0", "ip6": {}})).unwrap_err();
        assert_eq!(error.msg, "ip6.ip: an address with prefix length is required");
    }

    fn any_result() -> impl Strategy<Value = AddResult> {
        let text = "[a-z0-9]{0,8}";
        let net = prop_oneof![
            (any::<u32>(), 0_u8..=32).prop_map(|(addr, len)| IpNet::new(std::net::Ipv4Addr::from(addr).into(), len)),
            (any::<u128>(), 0_u8..=128).prop_map(|(addr, len)| IpNet::new(std::net::Ipv6Addr::from(addr).into(), len)),
        ]
        .prop_map(Result::unwrap);
        let address = any::<Option<IpAddr>>();
        let positive = prop::option::of(1_u32..);
        let interface = (text, text, positive.clone(), text, text, text).prop_map(
            |(name, mac, mtu, sandbox, socket_path, pci_id)| Interface { name, mac, mtu, sandbox, socket_path, pci_id },
        );
        let ip = (net.clone(), address.clone(), any::<Option<i64>>())
            .prop_map(|(address, gateway, interface)| IpConfig { address, gateway, interface });
        let route =
            (net, address, positive.clone(), positive.clone(), positive, any::<Option<u32>>(), any::<Option<u8>>())
                .prop_map(|(dst, gw, mtu, advmss, priority, table, scope)| Route {
                    dst,
                    gw,
                    mtu,
                    advmss,
                    priority,
                    table,
                    scope,
                });
        let texts = prop::collection::vec(text, 0..3);
        let dns = (texts.clone(), text, texts.clone(), texts).prop_map(|(nameservers, domain, search, options)| Dns {
            nameservers,
            domain,
            search,
            options,
        });
        let vec = 0..4_usize;
        (
            prop::collection::vec(interface, vec.clone()),
            prop::collection::vec(ip, vec.clone()),
            prop::collection::vec(route, vec),
            dns,
        )
            .prop_map(|(interfaces, ips, routes, dns)| AddResult { interfaces, ips, routes, dns })
    }

    proptest! {
        /// The newest form loses nothing; the others lose only once.
        #[test]
        fn conversion_is_stable(result in any_result()) {
            prop_assert_eq!(&AddResult::from_value(&result.to_value(Version::NEWEST).unwrap()).unwrap(), &result);
            for version in Version::ALL {
                if let Ok(value) = result.to_value(*version) {
                    let back = AddResult::from_value(&value).unwrap();
                    prop_assert_eq!(back.to_value(*version).unwrap(), value);
                } else {
                    prop_assert!(*version < Version::V0_3_0 && result.ips.is_empty());
                }
            }
        }
    }
}
