use proptest::prelude::*;
use serde_json::json;

use super::*;

conf! {
    /// A part.
    pub(crate) struct Part {
        /// The least.
        #[key = "minID"]
        min: u16,
        /// A name.
        name: Option<String>,
    }
}

conf_enum! {
    /// A mode.
    pub(crate) enum Mode {
        /// One.
        #[default]
        Bridge = "bridge",
        /// Other.
        Vepa = "vepa",
    }
}

conf! {
    /// The whole.
    ///
    /// In two paragraphs.
    pub(crate) struct Whole {
        /// Name of it.
        bridge: String = "cni0".to_owned(),
        /// Whether.
        is_default_gateway: bool,
        /// Default on.
        on: bool = true,
        /// Size.
        mtu: u32,
        /// Parts.
        parts: Vec<Part>,
        /// A part.
        part: Part,
        /// Limit.
        limit: i64 = -1,
        /// Address.
        gateway: Option<IpAddr>,
        /// Network.
        subnet: Option<IpNet>,
        /// Hardware address.
        mac: Option<MacAddr>,
        /// Mode.
        mode: Mode,
        /// Sysctls.
        sysctl: BTreeMap<String, String>,
        /// Loose.
        loose: LooseBool,
        /// Flags.
        raw: Map,
    }
}

fn decode(value: &Value) -> Result<Whole, Error> {
    <Whole as Conf>::decode(value.as_object().unwrap())
}

#[test]
fn defaults() {
    let whole = decode(&json!({})).unwrap();
    assert_eq!(whole, Whole::default());
    assert_eq!((whole.bridge.as_str(), whole.on, whole.limit), ("cni0", true, -1));
    // Null and, where the original takes it so, the empty string are as if absent.
    let nulls: Map = Whole::KEYS.iter().map(|key| (key.name.to_owned(), Value::Null)).collect();
    assert_eq!(decode(&Value::Object(nulls)).unwrap(), Whole::default());
    let blank = decode(&json!({"gateway": "", "subnet": "", "mac": "", "mode": ""}));
    assert_eq!(blank.unwrap(), Whole::default());
    assert_eq!(decode(&json!({"bridge": ""})).unwrap().bridge, "");
}

#[test]
fn keys_match_without_regard_to_case() {
    let keys: Vec<_> = Whole::KEYS.iter().map(|key| key.name).collect();
    assert_eq!(keys[..4], ["bridge", "isDefaultGateway", "on", "mtu"]);
    assert!(decode(&json!({"ISDEFAULTGATEWAY": true})).unwrap().is_default_gateway);
    assert!(decode(&json!({"isdefaultgateway": true, "isDefaultGateway": false})).is_ok_and(|w| !w.is_default_gateway));
    assert_eq!(decode(&json!({"Part": {"MINid": 3}})).unwrap().part.min, 3);
    // Duplicates: the last.
    let config = crate::parse_config(br#"{"bridge": "a", "bridge": "b", "x": [1]}"#).unwrap();
    assert_eq!(<Whole as Conf>::decode(&config).unwrap().bridge, "b");
}

#[test]
fn values() {
    let whole = decode(&json!({
        "mtu": 1500, "parts": [{"minID": 1, "name": "x"}, null], "limit": -9, "gateway": "fd00::1",
        "subnet": "10.1.2.3/16", "mac": "0A:58:00:00:00:01", "mode": "vepa", "sysctl": {"a": "1", "b": null},
        "loose": "True", "raw": {"x": [1]}, "unknown": {"x": 1}
    }))
    .unwrap();
    assert_eq!(whole.parts, [Part { min: 1, name: Some("x".to_owned()) }, Part::default()]);
    assert_eq!(whole.subnet.unwrap().to_string(), "10.1.2.3/16");
    assert_eq!(whole.mac.unwrap().to_string(), "0a:58:00:00:00:01");
    assert_eq!((whole.mode, whole.loose.0, whole.sysctl["b"].as_str()), (Mode::Vepa, true, ""));
}

#[test]
fn errors_say_where_and_what() {
    let cases = [
        (json!({"bridge": 1}), "bridge: expected a string, got 1"),
        (json!({"on": "true"}), "on: expected a boolean, got the string \"true\""),
        (json!({"loose": "maybe"}), "loose: expected a boolean, got the string \"maybe\""),
        (json!({"mtu": -1}), "mtu: expected an integer from 0 to 4294967295, got -1"),
        (json!({"mtu": 1.5}), "mtu: expected an integer from 0 to 4294967295, got 1.5"),
        (json!({"mtu": "1500"}), "mtu: expected an integer from 0 to 4294967295, got the string \"1500\""),
        (json!({"mtu": 1_u64 << 32}), "mtu: expected an integer from 0 to 4294967295, got 4294967296"),
        (json!({"PARTS": {}}), "parts: expected a list, got an object"),
        (json!({"parts": [{}, {"minid": 70000}]}), "parts[1].minID: expected an integer from 0 to 65535, got 70000"),
        (json!({"parts": [3]}), "parts[0]: expected an object, got 3"),
        (json!({"sysctl": {"a": 1}}), "sysctl.a: expected a string, got 1"),
        (json!({"gateway": "10.0.0.256"}), "gateway: expected an IP address, got the string \"10.0.0.256\""),
        (json!({"subnet": "10.0.0.1"}), "subnet: expected an address with prefix length, got the string \"10.0.0.1\""),
        (json!({"raw": []}), "raw: expected an object, got a list"),
    ];
    for (config, message) in cases {
        let error = decode(&config).unwrap_err();
        assert_eq!((error.msg.as_str(), error.code), (message, Code::Decode));
    }
    let error = decode(&json!({"mode": "l3"})).unwrap_err();
    assert_eq!(error.msg, "mode: expected one of bridge, vepa, got the string \"l3\"");
    assert_eq!(error.code, Code::InvalidConfig);
    let long = decode(&json!({"mtu": "x".repeat(10_000)})).unwrap_err();
    assert!(long.msg.len() < 200);
}

#[test]
fn keys_document_themselves() {
    let key = |name: &str| *Whole::KEYS.iter().find(|key| key.name == name).unwrap();
    let facts = |name| ((key(name).kind)(), (key(name).default)());
    assert_eq!(facts("bridge"), ("string".to_owned(), "\"cni0\"".to_owned()));
    assert_eq!(facts("on"), ("boolean".to_owned(), "true".to_owned()));
    assert_eq!(facts("mode"), ("`bridge`, `vepa`".to_owned(), "\"bridge\"".to_owned()));
    assert_eq!(facts("parts"), ("list of object".to_owned(), String::new()));
    assert_eq!((key("parts").nested)()[0].name, "minID");
    assert_eq!(Whole::SUMMARY, " The whole.\n\n In two paragraphs.\n");
    assert_eq!(key("on").doc, " Default on.\n");
}

/// Any JSON, with keys that matter more often than not.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9./:]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        let key = prop_oneof![
            "[a-zA-Z]{0,6}",
            prop::sample::select(vec![
                "cniVersion",
                "name",
                "type",
                "ipam",
                "dns",
                "prevResult",
                "runtimeConfig",
                "args",
                "interfaces",
                "ips",
                "routes",
                "address",
                "gateway",
                "interface",
                "dst",
                "gw",
                "ip4",
                "ip6",
                "ip",
                "mtu",
                "parts",
                "part",
                "sysctl",
                "bridge",
                "subnet",
                "cni.dev/valid-attachments",
            ])
            .prop_map(str::to_owned),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..8).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_object_is_read_or_refused(value in any_json()) {
        if let Value::Object(map) = &value {
            let _ = <Whole as Conf>::decode(map);
            let _ = crate::NetConf::decode(map, false);
            let _ = crate::NetConf::decode(map, true);
        }
        let _ = crate::AddResult::from_value(&value);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = crate::parse_config(&bytes);
    }
}
