//! The execution protocol beside an original plugin: the same environment and standard input, the same exit code, error
//! code and result. `static` is asked, since it changes nothing.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking, and say what they skip")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_outrigger-cni");

/// The original: `OUTRIGGER_CNI_PEERS`, else where Debian's package containernetworking-plugins puts it.
fn original() -> Option<PathBuf> {
    let dir = std::env::var_os("OUTRIGGER_CNI_PEERS").map_or_else(|| PathBuf::from("/usr/lib/cni"), PathBuf::from);
    let path = dir.join("static");
    if !path.is_file() {
        eprintln!("SKIPPED: the peers' plugins are not installed (Debian: containernetworking-plugins)");
    }
    path.is_file().then_some(path)
}

#[derive(Debug, PartialEq)]
struct Answer {
    exit: Option<i32>,
    /// Of an error, its code.
    code: Option<u64>,
    /// Of a success, what was printed.
    printed: Option<Value>,
}

fn ask(program: &Path, variables: &[(&str, &str)], stdin: &[u8]) -> Answer {
    let mut command = Command::new(program);
    if program == Path::new(BINARY) {
        command.arg("static");
    }
    command.env_clear().envs(variables.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // A plugin that answers without reading is right to.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    let mut printed: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    if output.status.success() {
        // 1.0.0 leaves out what is empty; originals of that time printed it.
        if let Some(result) = printed.as_mut().and_then(Value::as_object_mut)
            && result.get("dns") == Some(&json!({}))
        {
            result.remove("dns");
        }
        return Answer { exit: output.status.code(), code: None, printed };
    }
    let code = printed.as_ref().and_then(|error| error["code"].as_u64());
    Answer { exit: output.status.code(), code, printed: None }
}

const ENVIRONMENT: [(&str, &str); 5] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "id"),
    ("CNI_NETNS", "/nowhere"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_PATH", "/nowhere"),
];

/// The full environment with changes; an empty value stands for a variable that is not set.
fn environment<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let unchanged = ENVIRONMENT.into_iter().filter(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
    unchanged.chain(changes.iter().copied().filter(|(_, value)| !value.is_empty())).collect()
}

fn config(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "net", "type": "static",
        "ipam": {
            "type": "static",
            "addresses": [
                {"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}, {"address": "10.0.1.2/24"}
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "fd01::/64"}],
            "dns": {"nameservers": ["192.0.2.53"], "search": ["example"]}
        }
    })
}

fn same(original: &Path, name: &str, changes: &[(&str, &str)], stdin: &[u8]) -> Option<String> {
    let variables = environment(changes);
    let (theirs, mut ours) = (ask(original, &variables, stdin), ask(Path::new(BINARY), &variables, stdin));
    // The original's word for "something else"; ours may know better.
    if theirs.code == Some(999) && ours.code.is_some() {
        ours.code = theirs.code;
    }
    (theirs != ours).then(|| format!("{name}:\n  theirs {theirs:?}\n  ours   {ours:?}"))
}

#[test]
fn environments() {
    let Some(original) = original() else { return };
    let good = config("0.4.0").to_string();
    let cases: &[&[(&str, &str)]] = &[
        &[],
        &[("CNI_COMMAND", "")],
        &[("CNI_COMMAND", "FOO")],
        &[("CNI_COMMAND", "add")],
        &[("CNI_CONTAINERID", "")],
        &[("CNI_CONTAINERID", "a/b")],
        &[("CNI_CONTAINERID", "-a")],
        &[("CNI_CONTAINERID", "a\n")],
        &[("CNI_CONTAINERID", "a.b_c-D9")],
        &[("CNI_NETNS", "")],
        &[("CNI_IFNAME", "")],
        &[("CNI_IFNAME", "abcdefghijklmno")],
        &[("CNI_IFNAME", "abcdefghijklmnop")],
        &[("CNI_IFNAME", ".")],
        &[("CNI_IFNAME", "..")],
        &[("CNI_IFNAME", "a/b")],
        &[("CNI_IFNAME", "a:b")],
        &[("CNI_IFNAME", "a b")],
        &[("CNI_IFNAME", "a\u{2003}b")],
        &[("CNI_PATH", "")],
        &[("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_PATH", "")],
        &[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")],
        &[("CNI_COMMAND", "DEL"), ("CNI_IFNAME", "")],
        &[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "")],
        &[("CNI_COMMAND", "DEL"), ("CNI_PATH", "")],
        &[("CNI_COMMAND", "CHECK"), ("CNI_NETNS", "")],
        &[("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=a")],
        &[("CNI_ARGS", "IP=10.0.0.9/24;GATEWAY=10.0.0.1")],
    ];
    let wrong: Vec<_> =
        cases.iter().filter_map(|case| same(&original, &format!("{case:?}"), case, good.as_bytes())).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn configurations() {
    let Some(original) = original() else { return };
    let change = |key: &str, value: Value| {
        let mut config = config("0.4.0");
        config[key] = value;
        config.to_string().into_bytes()
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let mut cases = vec![
        text(""), text(" "), text("{"), text("[]"), text("null"), text("1"), text("\"x\""), text("{}"), text("{} {}"),
        b"\xff".to_vec(), b"\xef\xbb\xbf{}".to_vec(),
        change("name", json!("")), change("name", json!(null)), change("name", json!(1)), change("name", json!("a b")),
        change("name", json!("-a")), change("name", json!("a/b")), change("name", json!("A.b_9-")),
        change("cniVersion", json!(1)), change("cniVersion", json!("x")), change("cniVersion", json!("1.0")),
        change("cniVersion", json!("9.9.9")), change("cniVersion", json!(null)), change("unknown", json!({"a": [1]})),
        change("capabilities", json!({"portMappings": true})), change("prevResult", json!(null)), change("dns", json!(null)),
        change("args", json!(null)), change("runtimeConfig", json!(null)), change("ipam", json!(null)),
        change("ipam", json!(1)), change("ipam", json!({"type": "static", "addresses": {}})),
        change("ipam", json!({"TYPE": "static", "Addresses": [{"ADDRESS": "10.0.0.9/24"}], "addressesx": 1})),
        // Of duplicates the last counts; bytes that are no text are replaced where they do not matter.
        text(r#"{"cniVersion": "9", "cniVersion": "0.4.0", "name": "a b", "name": "net", "ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}]}}"#),
        b"{\"x\": \"\xff\", \"name\": \"net\", \"cniVersion\": \"0.3.1\", \"ipam\": {\"type\": \"static\", \"addresses\": [{\"address\": \"10.0.0.2/24\"}]}}".to_vec(),
    ];
    cases.push(text(&config("0.4.0").to_string().replace("\"name\"", "\"NAME\"").replace("cniVersion", "CNIVERSION")));
    let wrong: Vec<_> =
        cases.iter().filter_map(|case| same(&original, &String::from_utf8_lossy(case), &[], case)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn versions() {
    let Some(original) = original() else { return };
    let mut wrong = Vec::new();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "0.5.0", "x"] {
        for command in ["ADD", "CHECK", "DEL"] {
            let mut config = config(version);
            if command == "CHECK" {
                let added = ask(&original, &environment(&[]), config.to_string().as_bytes()).printed;
                config["prevResult"] = added.unwrap_or(json!({"cniVersion": version}));
            }
            let name = format!("{command} {version}");
            wrong.extend(same(&original, &name, &[("CNI_COMMAND", command)], config.to_string().as_bytes()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
