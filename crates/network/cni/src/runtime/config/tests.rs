use std::io::Write as _;

use super::*;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true,"x":false}}]}"#;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = dir.path(name);
            if let Some(parent) = path.parent() {
                std::fs::DirBuilder::new().recursive(true).create(parent).unwrap();
            }
            File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
        }
        dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(text: &str) -> Result<NetworkList, Error> {
        NetworkList::load(Self::new(&[("a.conflist", text)]).path("a.conflist"))
    }

    fn names(&self, order: Order) -> Vec<String> {
        let found = networks(self.0.path(), order).unwrap();
        found.into_iter().map(|found| found.network.map_or("broken".to_owned(), |network| network.name)).collect()
    }
}

#[test]
fn the_runtime_reads_a_key_as_the_plugin_does() {
    for text in [r#"{"name":"n","TYPE":"a","Type":"b"}"#, r#"{"name":"n","TYPE":"a","type":"b","Type":"c"}"#] {
        let list = NetworkList::parse_single(text.as_bytes()).unwrap();
        let conf = crate::NetConf::decode(&crate::parse_config(text.as_bytes()).unwrap(), false).unwrap();
        assert_eq!((list.plugins[0].kind.as_str(), conf.type_.as_str()), ("b", "b"), "{text}");
    }
}

#[test]
fn a_list_is_read() {
    let list = Dir::load(LIST).unwrap();
    assert_eq!((list.name.as_str(), list.version), ("net", Version::V1_0_0));
    assert_eq!(list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect::<Vec<_>>(), ["bridge", "portmap"]);
    assert_eq!(list.capabilities(), ["portMappings"]);
    assert_eq!(list.bytes, LIST.as_bytes());
    assert!(!list.disable_check && !list.disable_gc && !list.load_only_inlined_plugins);
    assert_eq!(NetworkList::parse_any(LIST.as_bytes()).unwrap().plugins, list.plugins);
}

#[test]
fn a_single_configuration_becomes_a_list() {
    let text = r#"{"CNIVersion":"0.4.0","Name":"one","Type":"ptp","ipam":{"type":"host-local"}}"#;
    let dir = Dir::new(&[("a.conf", text)]);
    let list = NetworkList::load(dir.path("a.conf")).unwrap();
    assert_eq!((list.name.as_str(), list.version, list.plugins.len()), ("one", Version::V0_4_0, 1));
    assert_eq!(list.plugins[0].config["Type"], "ptp", "it is handed on as it was written");
    let whole: Value = serde_json::from_slice(&list.bytes).unwrap();
    assert_eq!(
        whole,
        json!({"cniVersion":"0.4.0","name":"one","plugins":[serde_json::from_str::<Value>(text).unwrap()]})
    );
    assert_eq!(NetworkList::parse_any(&list.bytes).unwrap().plugins, list.plugins);
    assert_eq!(NetworkList::parse_any(text.as_bytes()).unwrap().plugins, list.plugins);
    let old = NetworkList::parse_single(br#"{"name":"one","type":"ptp"}"#).unwrap();
    assert_eq!(old.version, Version::V0_1_0);
}

#[test]
fn flags_may_be_strings() {
    let list = Dir::load(
        r#"{"name":"n","disableCheck":"TRUE","disableGC":true,"loadOnlyInlinedPlugins":"false","plugins":[{"type":"x"}]}"#,
    );
    let list = list.unwrap();
    assert!(list.disable_check && list.disable_gc && !list.load_only_inlined_plugins);
}

#[test]
fn the_newest_known_version_is_taken() {
    for (versions, expected) in [
        (r#""cniVersion":"0.3.1""#, Version::V0_3_1),
        (r#""cniVersion":"""#, Version::V0_1_0),
        (r#""name":"n""#, Version::V0_1_0),
        (r#""cniVersion":"0.4.0","cniVersions":["1.0.0","0.3.0"]"#, Version::V1_0_0),
        (r#""cniVersion":"1.1.0","cniVersions":["1.0.0","9.0.0"]"#, Version::V1_1_0),
        (r#""cniVersions":["9.9.9","0.4.0"]"#, Version::V0_4_0),
        (r#""cniVersion":"9.0.0","cniVersions":["0.4.0"]"#, Version::V0_4_0),
        (r#""cniVersions":[]"#, Version::V0_1_0),
        (r#""cniVersion":"1.0.0","cniVersions":[]"#, Version::V1_0_0),
    ] {
        let list = Dir::load(&format!(r#"{{{versions},"name":"n","plugins":[{{"type":"x"}}]}}"#)).unwrap();
        assert_eq!(list.version, expected, "{versions}");
    }
}

#[test]
fn plugins_may_be_files_of_their_own() {
    let files = [
        ("10-net.conflist", r#"{"name":"net","cniVersion":"1.1.0","plugins":[{"type":"bridge"}]}"#),
        ("20-files.conflist", r#"{"name":"files","cniVersion":"1.1.0"}"#),
        ("30-inline.conflist", r#"{"name":"inline","loadOnlyInlinedPlugins":true,"plugins":[{"type":"bridge"}]}"#),
        ("net/20-b.conf", r#"{"type":"tuning"}"#),
        ("net/10-a.conf", r#"{"type":"portmap","capabilities":{"portMappings":true}}"#),
        ("net/05-no.json", r#"{"type":"no"}"#),
        ("net/README", "no"),
        ("files/a.conf", r#"{"type":"ptp"}"#),
        ("inline/a.conf", r#"{"type":"ptp"}"#),
    ];
    let dir = Dir::new(&files);
    let kinds = |name: &str| {
        let list = NetworkList::find(dir.0.path(), name).unwrap();
        list.plugins.into_iter().map(|plugin| plugin.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds("net"), ["bridge", "portmap", "tuning"]);
    assert_eq!(kinds("files"), ["ptp"]);
    assert_eq!(kinds("inline"), ["bridge"]);
}

#[test]
fn orders_differ() {
    let single = |name: &str| format!(r#"{{"name":"{name}","type":"x"}}"#);
    let list = |name: &str| format!(r#"{{"name":"{name}","plugins":[{{"type":"x"}}]}}"#);
    let dir = Dir::new(&[
        ("10-a.conf", &single("a")),
        ("20-b.conflist", &list("b")),
        ("30-c.json", &single("c")),
        ("05-d.conflist", &list("d")),
        ("00-e.conflist.bak", "no"),
        ("15-f.conflist", "{"),
        ("40.conflist/x", "a directory"),
    ]);
    assert_eq!(dir.names(Order::Libcni), ["d", "broken", "b", "a", "c"]);
    assert_eq!(dir.names(Order::ByName), ["d", "a", "broken", "b", "c"]);
    assert_eq!(networks(dir.path("nowhere"), Order::ByName).unwrap().len(), 0);
}

#[test]
fn a_network_is_found_by_name_beside_broken_files() {
    let dir = Dir::new(&[
        ("10-a.conflist", "{\n oops"),
        ("20-b.conflist", r#"{"name":"b","plugins":[{"type":"x"}]}"#),
        ("30-c.conflist", r#"{"name":"c","plugins":[{}]}"#),
        ("40-c.conf", r#"{"name":"c","type":"x"}"#),
    ]);
    assert_eq!(NetworkList::find(dir.0.path(), "b").unwrap().plugins[0].kind, "x");
    let error = NetworkList::find(dir.0.path(), "c").unwrap_err().report();
    assert!(error.contains("30-c.conflist: line 1 column 24: \"type\" is missing"), "{error}");
    let error = NetworkList::find(dir.0.path(), "z").unwrap_err().report();
    assert!(error.contains("no network \"z\"") && error.contains("10-a.conflist: line 2"), "{error}");
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (text, expected) in [
        ("", "line 1 column 0: not JSON"),
        ("{\n\"name\": \"n\",\n \"plugins\": [,]}", "line 3 column 14: not JSON: expected value"),
        ("[]", "line 1 column 1: the configuration must be an object, not an array"),
        ("{}", "line 1 column 1: \"name\" is missing"),
        (r#"{"name":5}"#, "line 1 column 9: \"name\" must be a string, not a number"),
        (r#"{"name":""}"#, "network name \"\" is empty"),
        (r#"{"name":"../x"}"#, "network name \"../x\" must begin with a letter or digit"),
        (r#"{"name":"a b"}"#, "only letters, digits"),
        (r#"{"name":"n"}"#, "no plugins, neither in the list nor as n/*.conf beside it"),
        (r#"{"name":"n","type":"bridge"}"#, "name the file *.conf"),
        (r#"{"name":"n","cniVersion":1}"#, "line 1 column 26: \"cniVersion\" must be a string"),
        (r#"{"name":"n","cniVersion":"1.2.0"}"#, "\"cniVersion\" \"1.2.0\" is none that this knows: 0.1.0, "),
        (r#"{"name":"n","cniVersions":"1.0.0"}"#, "must be an array"),
        (r#"{"name":"n","cniVersions":["x"]}"#, "line 1 column 28: \"x\" is not a version"),
        (r#"{"name":"n","cniVersions":["9.0.0"]}"#, "none of the versions"),
        (r#"{"name":"n","disableCheck":1}"#, "line 1 column 28: \"disableCheck\" must be true or false, not 1"),
        (r#"{"name":"n","disableGC":"yes"}"#, "\"disableGC\" must be true or false, not \"yes\""),
        (r#"{"name":"n","loadOnlyInlinedPlugins":true}"#, "there are no \"plugins\""),
        (r#"{"name":"n","plugins":{}}"#, "line 1 column 23: \"plugins\" must be an array"),
        (r#"{"name":"n","plugins":[]}"#, "line 1 column 23: \"plugins\" is empty"),
        (r#"{"name":"n","plugins":[7]}"#, "line 1 column 24: a plugin's configuration must be an object"),
        (r#"{"name":"n","plugins":[{"type":"a"},{"type":""}]}"#, "line 1 column 45: \"type\" is \"\""),
        (
            r#"{"name":"n","plugins":[{"type":"../../bin/sh"}]}"#,
            "line 1 column 32: \"type\" \"../../bin/sh\" is a path",
        ),
        (r#"{"name":"n","plugins":[{"type":".."}]}"#, "it must be the name of a plugin"),
        (r#"{"name":"n","plugins":[{"type":"a","capabilities":{"x":"y"}}]}"#, "capability \"x\" must be true or false"),
        (r#"{"name":"n","plugins":[{"type":"a","capabilities":[]}]}"#, "\"capabilities\" must be an object"),
    ] {
        let error = Dir::load(text).unwrap_err().report();
        assert!(error.contains("a.conflist: ") && error.contains(expected), "{text}\n  {error}\n  {expected}");
    }
    for (text, expected) in [
        (LIST, "name the file *.conflist"),
        (r#"{"type":"x"}"#, "\"name\" is missing"),
        (r#"{"name":"n"}"#, "\"type\" is missing"),
    ] {
        let error = NetworkList::parse_single(text.as_bytes()).unwrap_err().report();
        assert!(error.contains(expected), "{text}\n  {error}");
    }
}

#[test]
fn a_broken_file_of_the_sub_directory_is_named() {
    let dir = Dir::new(&[("a.conflist", r#"{"name":"n","plugins":[{"type":"x"}]}"#), ("n/b.conf", "{\n\"type\": 7}")]);
    let error = NetworkList::load(dir.path("a.conflist")).unwrap_err().report();
    assert!(error.ends_with("n/b.conf: line 2 column 9: \"type\" must be a string, not a number"), "{error}");
}

mod any {
    use proptest::prelude::*;

    use super::super::*;

    proptest! {
        #[test]
        fn text_is_read_or_refused(text in ".{0,200}") {
            let _ = NetworkList::parse(text.as_bytes());
            let _ = NetworkList::parse_single(text.as_bytes());
        }

        #[test]
        fn json_is_read_or_refused(
            name in "[a-z]{0,3}", key in "(name|plugins|type|cniVersions?|disableGC|capabilities)",
            value in "(null|1|\"x\"|\\[\\]|\\{\\}|\\[\\{\\}\\]|\\[\"1.0\"\\]|true|\\{\"a\":1\\})",
        ) {
            let text = format!(r#"{{"name":"{name}","{key}":{value},"plugins":[{{"type":"a","{key}":{value}}}]}}"#);
            let _ = NetworkList::parse(text.as_bytes());
            let _ = NetworkList::parse_single(text.as_bytes());
        }
    }
}
