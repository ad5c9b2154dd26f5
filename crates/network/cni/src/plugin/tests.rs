use proptest::prelude::*;

use super::*;
use crate::{IpConfig, conf};

conf! {
    /// A plugin for tests.
    struct TestConf {
        /// Makes ADD and DEL fail.
        fail: bool,
        /// Makes ADD give no address.
        empty: bool,
        /// Makes ADD pass on the result before.
        chained: bool,
    }
}

struct Test;

impl Plugin for Test {
    type Conf = TestConf;
    const ABOUT: &'static str = "CNI test plugin";

    fn add(&self, call: &Call<'_, TestConf>) -> Result<AddResult, Error> {
        if call.conf.chained {
            return call.prev().cloned();
        }
        if call.conf.fail {
            return Err(Error::new(Code::TryAgain, "failed").details("as asked"));
        }
        let mut result = AddResult::default();
        if !call.conf.empty {
            result.ips.push(IpConfig::new("10.0.0.2/24".parse().unwrap()));
        }
        Ok(result)
    }

    fn del(&self, call: &Call<'_, TestConf>) -> Result<(), Error> {
        if call.conf.fail { Err(Error::internal("failed")) } else { Ok(()) }
    }

    fn check(&self, call: &Call<'_, TestConf>) -> Result<(), Error> {
        call.prev().map(drop)
    }
}

/// Supports what firewall supports.
struct Newer;

impl Plugin for Newer {
    type Conf = TestConf;
    const ABOUT: &'static str = "";
    const VERSIONS: RangeInclusive<Version> = Version::V0_4_0..=Version::V1_0_0;

    fn add(&self, _: &Call<'_, TestConf>) -> Result<AddResult, Error> {
        Ok(AddResult::default())
    }

    fn del(&self, _: &Call<'_, TestConf>) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, _: &Call<'_, TestConf>) -> Result<(), Error> {
        Ok(())
    }
}

struct Said {
    code: u8,
    stdout: String,
    stderr: String,
}

impl Said {
    fn value(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{:?}", self.stdout))
    }

    /// Code, message and version of the error.
    fn error(&self) -> (u64, String, String) {
        assert_eq!(self.code, 1);
        let value = self.value();
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        (value["code"].as_u64().unwrap(), text("msg"), text("cniVersion"))
    }
}

fn say(plugin: &dyn DynPlugin, variables: &[(&str, &str)], stdin: &[u8]) -> Said {
    let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let code = run(plugin, &(), &variable, &mut &*stdin, &mut stdout, &mut stderr);
    Said { code, stdout: String::from_utf8(stdout).unwrap(), stderr: String::from_utf8(stderr).unwrap() }
}

fn ask(command: &str, config: &Value) -> Said {
    ask_of(&Test, command, config)
}

fn ask_of(plugin: &dyn DynPlugin, command: &str, config: &Value) -> Said {
    let variables = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "id"),
        ("CNI_NETNS", "/nowhere"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/nowhere"),
    ];
    say(plugin, &variables, config.to_string().as_bytes())
}

#[test]
fn without_a_command_it_says_what_it_is() {
    for variables in [&[][..], &[("CNI_COMMAND", "")]] {
        let said = say(&Test, variables, b"");
        assert_eq!((said.code, said.stdout.as_str()), (0, ""));
        let versions = "0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
        assert_eq!(said.stderr, format!("CNI test plugin\nCNI protocol versions supported: {versions}\n"));
    }
}

#[test]
fn version_needs_nothing() {
    let said = say(&Newer, &[("CNI_COMMAND", "VERSION")], b"not JSON");
    assert_eq!(said.code, 0);
    assert_eq!(said.value(), json!({"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0"]}));
}

#[test]
fn output_has_four_spaces_and_no_final_newline() {
    let said = ask("ADD", &json!({"cniVersion": "1.0.0", "name": "net"}));
    let expected = r#"{
    "cniVersion": "1.0.0",
    "ips": [
        {
            "address": "10.0.0.2/24"
        }
    ]
}"#;
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, expected, ""));
    for command in ["DEL", "GC", "STATUS"] {
        let said = ask(command, &json!({"cniVersion": "1.1.0", "name": "net", "cni.dev/valid-attachments": null}));
        assert_eq!((said.code, said.stdout.as_str()), (0, ""), "{command}");
    }
}

#[test]
fn results_have_the_configurations_version() {
    for version in Version::ALL {
        let value = ask("ADD", &json!({"cniVersion": version.as_str(), "name": "net"})).value();
        assert_eq!(value["cniVersion"], version.as_str());
        assert_eq!(value.get("ip4").is_some(), *version < Version::V0_3_0);
    }
    assert_eq!(ask("ADD", &json!({"name": "net"})).value()["cniVersion"], "0.1.0");
    let (code, msg, version) = ask("ADD", &json!({"cniVersion": "0.2.0", "name": "net", "empty": true})).error();
    assert!(code == 999 && msg.contains("IP address") && version == "0.2.0", "{msg}");
}

#[test]
fn errors_have_the_configurations_version() {
    let error = |config| ask("ADD", &config).error();
    let (code, msg, version) = error(json!({"cniVersion": "0.3.1", "name": "net", "fail": true}));
    assert_eq!((code, msg.as_str(), version.as_str()), (11, "failed", "0.3.1"));
    // What is not known, or not yet, is answered in the newest.
    assert_eq!(error(json!({"cniVersion": "9.9.9", "name": "net"})).2, "1.1.0");
    assert_eq!(say(&Test, &[("CNI_COMMAND", "ADD")], b"{}").error().2, "1.1.0");
}

#[test]
fn configurations_that_are_none() {
    let decode = |stdin: &[u8]| {
        let variables = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "id"),
            ("CNI_NETNS", "/nowhere"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/"),
        ];
        say(&Test, &variables, stdin).error().0
    };
    for stdin in [&b""[..], b" \n", b"{", b"[]", b"\"x\"", b"1", b"{} x", b"\xff", b"\xef\xbb\xbf{}"] {
        assert_eq!(decode(stdin), 6, "{stdin:?}");
    }
    assert_eq!(decode(b"null"), 7);
    assert_eq!(decode(br#"{"name": 1}"#), 6);
    assert_eq!(decode(br#"{"name": "net", "cniVersion": 1}"#), 6);
    assert_eq!(decode(br#"{"name": "net", "cniVersion": "0.3.1", "prevResult": 1}"#), 6);
    let deep = format!("{{\"name\": \"net\", \"x\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(decode(deep.as_bytes()), 6);
    let huge = format!("{{\"name\": \"{}\"}}", "x".repeat(17 << 20));
    assert_eq!(decode(huge.as_bytes()), 6);
    // Bytes that are no text are replaced where they do not matter.
    assert_eq!(decode(b"{\"name\": \"net\", \"x\": \"\xff\", \"fail\": true}"), 11);
    for (name, code) in [("", 7), ("-x", 7), ("a b", 7), ("a/b", 7)] {
        assert_eq!(ask("ADD", &json!({"cniVersion": "1.0.0", "name": name})).error().0, code);
    }
}

#[test]
fn versions_and_commands() {
    let refused = |plugin: &dyn DynPlugin, command: &str, version: &str| {
        let said = ask_of(plugin, command, &json!({"cniVersion": version, "name": "net", "prevResult": {}}));
        let (code, msg, _) = said.error();
        let details = said.value()["details"].as_str().unwrap_or_default().to_owned();
        (code, msg, details)
    };
    let (code, msg, details) = refused(&Newer, "ADD", "0.3.1");
    assert_eq!((code, msg.as_str()), (1, "incompatible CNI versions"));
    assert_eq!(details, r#"config is "0.3.1", plugin supports ["0.4.0" "1.0.0"]"#);
    assert_eq!(refused(&Test, "DEL", "2.0.0").0, 1);
    let (code, msg, _) = refused(&Test, "CHECK", "0.3.1");
    assert_eq!((code, msg.as_str()), (1, "config version does not allow CHECK"));
    for command in ["GC", "STATUS"] {
        let (code, msg, _) = refused(&Test, command, "1.0.0");
        assert_eq!((code, msg), (1, format!("config version does not allow {command}")));
        let (code, msg, _) = refused(&Newer, command, "1.1.0");
        assert_eq!((code, msg), (1, format!("plugin version does not allow {command}")));
    }
    assert_eq!(refused(&Test, "CHECK", "2.0.0").1, "plugin version does not allow CHECK");
    assert_eq!(refused(&Test, "CHECK", "x").0, 6);
    assert_eq!(ask("CHECK", &json!({"cniVersion": "0.4.0", "name": "net", "prevResult": {}})).code, 0);
}

#[test]
fn results_before() {
    let config = |prev: Value| json!({"cniVersion": "0.4.0", "name": "net", "chained": true, "prevResult": prev});
    // Of any version, and without one.
    for prev in [
        json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.3/24"}]}),
        json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.3/24"}}),
        json!({"ips": [{"address": "10.0.0.3/24"}]}),
    ] {
        assert_eq!(ask("ADD", &config(prev)).value()["ips"][0]["address"], "10.0.0.3/24");
    }
    assert_eq!(ask("ADD", &config(Value::Null)).error().0, 7);
    assert_eq!(ask("CHECK", &json!({"cniVersion": "0.4.0", "name": "net"})).error().0, 7);
    // One that cannot be read must not stand in the way of DEL.
    let broken = config(json!({"ips": 1}));
    assert_eq!(ask("ADD", &broken).error().0, 6);
    assert_eq!(ask("DEL", &broken).code, 0);
    // Nor must what somebody broke since ADD.
    for key in ["dns", "runtimeConfig", "args", "capabilities", "type"] {
        let mut broken = json!({"cniVersion": "0.4.0", "name": "net"});
        broken[key] = json!(1.5);
        assert_eq!(ask("ADD", &broken).error().0, 6, "{key}");
        assert_eq!(ask("DEL", &broken).code, 0, "{key}");
    }
    let gc = json!({"cniVersion": "1.1.0", "name": "net", "cni.dev/valid-attachments": 1});
    assert_eq!(ask("GC", &gc).error().0, 6);
}

#[test]
fn gc_without_a_list_is_refused() {
    let said = ask("GC", &json!({"cniVersion": "1.1.0", "name": "net"}));
    let (code, msg, _) = said.error();
    assert!(code == 7 && msg.contains("cni.dev/valid-attachments"), "{msg}");
    let list = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b"}]);
    let config = json!({"name": "n", "cni.dev/valid-attachments": list});
    let valid = NetConf::decode(config.as_object().unwrap(), true).unwrap().valid_attachments;
    assert_eq!(valid, [Attachment::new("a", "eth0"), Attachment::new("b", "")]);
    assert!(valid[0].is("a", "eth0") && !valid[0].is("a", "eth1"));
}

#[test]
fn the_plugins_own_namespace_is_refused() {
    let ask = |command: &str, over: &str| {
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "id"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/"),
            ("CNI_NETNS_OVERRIDE", over),
        ];
        say(&Test, &variables, br#"{"cniVersion": "0.4.0", "name": "net", "prevResult": {}}"#)
    };
    assert_eq!(ask("ADD", "").error().0, 8);
    assert_eq!(ask("DEL", "no").error().0, 8);
    assert_eq!(ask("CHECK", "").code, 0);
    for over in ["1", "true", "TRUE"] {
        assert_eq!(ask("ADD", over).code, 0);
        assert_eq!(ask("DEL", over).code, 0);
    }
}

#[test]
fn values_of_capabilities_and_old_arguments() {
    struct Values;
    impl Plugin for Values {
        type Conf = TestConf;
        const ABOUT: &'static str = "";

        fn add(&self, call: &Call<'_, TestConf>) -> Result<AddResult, Error> {
            assert_eq!(call.runtime::<String>("mac")?.as_deref(), Some("m"));
            assert_eq!(call.runtime::<String>("other")?, None);
            assert_eq!(call.cni_arg::<Vec<String>>("ips")?, Some(vec!["a".to_owned()]));
            assert_eq!(call.cni_arg::<String>("mac")?, None);
            assert_eq!(call.runtime::<u32>("mac").unwrap_err().msg.split(',').next(), {
                Some("runtimeConfig.mac: expected an integer from 0 to 4294967295")
            });
            call.netns().map(drop)?;
            Ok(AddResult::default())
        }

        fn del(&self, call: &Call<'_, TestConf>) -> Result<(), Error> {
            call.netns().map(drop)
        }

        fn check(&self, _: &Call<'_, TestConf>) -> Result<(), Error> {
            Ok(())
        }
    }
    let config = json!({"cniVersion": "1.0.0", "name": "net",
        "runtimeConfig": {"MAC": "m", "other": null}, "args": {"cni": {"IPs": ["a"]}}});
    let said = ask_of(&Values, "ADD", &config);
    assert_eq!(said.code, 0, "{}", said.stdout);
}

proptest! {
    /// Whatever it is told, a plugin answers: nothing, a result, or an error with a code and a message.
    #[test]
    fn any_call_is_answered(
        command in prop::sample::select(vec!["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "add", "x"]),
        id in "[a-z/ -]{0,4}",
        netns in "[a-z/]{0,4}",
        ifname in "[a-z:. ]{0,17}",
        args in "[A-Z=;]{0,6}",
        config in prop_oneof![
            conf::tests::any_json().prop_map(|value| value.to_string().into_bytes()),
            prop::collection::vec(any::<u8>(), 0..50),
            prop::sample::select(vec!["0.1.0", "0.4.0", "1.1.0", "7"])
                .prop_map(|version| format!("{{\"name\":\"net\",\"cniVersion\":\"{version}\"}}").into_bytes()),
        ],
    ) {
        let variables = [
            ("CNI_COMMAND", command), ("CNI_CONTAINERID", &id), ("CNI_NETNS", &netns), ("CNI_IFNAME", &ifname),
            ("CNI_ARGS", &args), ("CNI_PATH", "/nowhere"),
        ];
        let said = say(&Test, &variables, &config);
        match said.code {
            0 if said.stdout.is_empty() => {}
            0 => prop_assert!(said.value()["cniVersion"].is_string()),
            _ => prop_assert!(!said.error().1.is_empty()),
        }
    }
}

/// Not a test but the program of the next one: a plugin that panics.
#[test]
fn panicking_plugin() {
    struct Panics;
    impl Plugin for Panics {
        type Conf = TestConf;
        const ABOUT: &'static str = "";

        fn add(&self, _: &Call<'_, TestConf>) -> Result<AddResult, Error> {
            // Not on the thread that answers: work in a namespace is done on threads of its own.
            std::thread::scope(|scope| {
                scope.spawn(|| panic!("on purpose: {}", 7)).join().unwrap();
            });
            Ok(AddResult::default())
        }

        fn del(&self, _: &Call<'_, TestConf>) -> Result<(), Error> {
            Ok(())
        }

        fn check(&self, _: &Call<'_, TestConf>) -> Result<(), Error> {
            Ok(())
        }
    }
    if std::env::var_os("OUTRIGGER_TEST_PANIC").is_some() {
        main(&Panics);
    }
}

#[test]
fn a_panic_is_an_error_to_the_runtime() {
    use std::process::{Command, Stdio};

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plugin::tests::panicking_plugin", "--nocapture"])
        .env("OUTRIGGER_TEST_PANIC", "1")
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "id"), ("CNI_NETNS", "/nowhere"), ("CNI_IFNAME", "eth0")])
        .env("CNI_PATH", "/nowhere")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(br#"{"cniVersion": "1.0.0", "name": "net"}"#).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8(output.stdout).unwrap();
    // The test harness prints its own lines before.
    let error: Value = serde_json::from_str(&stdout[stdout.find('{').unwrap()..]).unwrap();
    assert_eq!(error["code"], 999);
    let msg = error["msg"].as_str().unwrap();
    assert!(msg.contains("on purpose: 7") && msg.contains("tests.rs"), "{msg}");
}
