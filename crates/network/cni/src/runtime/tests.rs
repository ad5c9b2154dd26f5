use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use serde_json::json;

use super::*;
use crate::Code;

mod garbage;

/// Notes what it got, and answers what a test put ready.
const PLUGIN: &str = r#"#!/bin/sh
name=${0##*/}
dir=${0%/bin/*}
count=$(ls "$dir/calls" | wc -l)
call=$(printf '%s/calls/%03d %s %s' "$dir" "$count" "$CNI_COMMAND" "$name")
mkdir "$call"
env | grep '^CNI_' | sort > "$call/env"
cat > "$call/stdin"
answer="$dir/answers/$name.$CNI_COMMAND"
[ ! -e "$answer.err" ] || cat "$answer.err" >&2
[ ! -e "$answer" ] || cat "$answer"
[ ! -e "$answer.exit" ] || exit "$(cat "$answer.exit")"
"#;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(plugins: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bin", "calls", "answers"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let bench = Self { dir };
        for plugin in plugins {
            bench.put(&format!("bin/{plugin}"), PLUGIN);
            fs::set_permissions(bench.path(&format!("bin/{plugin}")), fs::Permissions::from_mode(0o755)).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        File::create(self.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn make_cache(&self) {
        fs::DirBuilder::new().recursive(true).create(self.path("cni/results")).unwrap();
    }

    /// What a plugin will print for a command.
    fn answer(&self, plugin: &str, command: &str, value: &Value) {
        self.put(&format!("answers/{plugin}.{command}"), &value.to_string());
    }

    fn fails(&self, plugin: &str, command: &str, stdout: &str, stderr: &str) {
        self.put(&format!("answers/{plugin}.{command}"), stdout);
        self.put(&format!("answers/{plugin}.{command}.err"), stderr);
        self.put(&format!("answers/{plugin}.{command}.exit"), "1");
    }

    fn recovers(&self, plugin: &str, command: &str) {
        for end in ["", ".err", ".exit"] {
            let _ = rustix::fs::unlink(self.path(&format!("answers/{plugin}.{command}{end}")));
        }
    }

    fn builder(&self) -> Builder {
        Runtime::builder().plugin_dirs([self.path("none"), self.path("bin")]).cache_dir(self.path("cni"))
    }

    fn runtime(&self) -> Runtime {
        self.builder().build()
    }

    /// The calls since the last look: `ADD a`.
    fn calls(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path("calls"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| self.path(&format!("calls/{name}/stdin")).exists())
            .collect();
        names.sort();
        names.into_iter().map(|name| name[4..].to_owned()).collect()
    }

    fn forget(&self) {
        fs::remove_dir_all(self.path("calls")).unwrap();
        fs::create_dir(self.path("calls")).unwrap();
    }

    fn got(&self, call: usize, file: &str) -> String {
        let prefix = format!("{call:03} ");
        let names = fs::read_dir(self.path("calls")).unwrap().map(|entry| entry.unwrap().path());
        let call =
            names.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix)).unwrap();
        text(&call.join(file))
    }

    fn stdin(&self, call: usize) -> Value {
        serde_json::from_str(&self.got(call, "stdin")).unwrap()
    }
}

fn text(path: &Path) -> String {
    let mut text = String::new();
    File::open(path).unwrap().read_to_string(&mut text).unwrap();
    text
}

fn list(version: &str) -> NetworkList {
    list_with(&json!({ "cniVersion": version }))
}

fn list_with(more: &Value) -> NetworkList {
    let mut list = json!({ "name": "net", "plugins": [
        { "type": "a", "ipam": { "type": "x" }, "Name": "other" },
        { "type": "b", "capabilities": { "portMappings": true, "mac": false } },
    ]});
    list.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    NetworkList::parse(list.to_string().as_bytes()).unwrap()
}

fn result(version: &str, address: &str) -> Value {
    match version {
        "0.2.0" => json!({ "cniVersion": version, "ip4": { "ip": address } }),
        "0.3.1" | "0.4.0" => {
            json!({ "cniVersion": version, "ips": [{ "version": "4", "address": address }], "dns": {} })
        }
        _ => json!({ "cniVersion": version, "ips": [{ "address": address }] }),
    }
}

fn pod() -> Attachment {
    Attachment::new("c1", "eth0")
        .netns("/run/netns/c1")
        .arg("IgnoreUnknown", "1")
        .arg("K8S_POD_NAME", "web")
        .capability("portMappings", json!([{ "hostPort": 80 }]))
        .capability("mac", json!("02:00:00:00:00:01"))
}

#[test]
fn add_hands_results_on_and_del_goes_back() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    let list = list("1.0.0");
    let (first, last) = (result("1.0.0", "10.0.0.2/24"), result("1.0.0", "10.0.0.3/24"));
    bench.answer("a", "ADD", &first);
    bench.answer("b", "ADD", &last);
    let added = runtime.add(&list, &pod()).unwrap();
    assert_eq!(added.json, last);
    assert_eq!(added.result.ips[0].address.to_string(), "10.0.0.3/24");
    assert_eq!(bench.calls(), ["ADD a", "ADD b"]);
    assert_eq!(
        bench.stdin(0),
        json!({ "type": "a", "ipam": { "type": "x" }, "name": "net", "cniVersion": "1.0.0" }),
        "and no second spelling of a key that the runtime sets"
    );
    let ports = json!({ "portMappings": [{ "hostPort": 80 }] });
    assert_eq!(
        bench.stdin(1),
        json!({ "type": "b", "capabilities": { "portMappings": true, "mac": false }, "name": "net", "cniVersion": "1.0.0",
                "prevResult": first, "runtimeConfig": ports })
    );
    let path = format!("{}:{}", bench.path("none").display(), bench.path("bin").display());
    let expected = format!(
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web\nCNI_COMMAND=ADD\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0\n\
         CNI_NETNS=/run/netns/c1\nCNI_PATH={path}\n"
    );
    assert_eq!(bench.got(0, "env"), expected);
    let cached = runtime.cached("net", &pod()).unwrap().unwrap();
    assert_eq!((cached.attachment, cached.result), (pod(), Some(last.clone())));
    assert_eq!(cached.config, list.bytes);

    bench.forget();
    runtime.check(&list, &pod()).unwrap();
    assert_eq!(bench.calls(), ["CHECK a", "CHECK b"]);
    assert_eq!((&bench.stdin(0)["prevResult"], &bench.stdin(1)["prevResult"]), (&last, &last));
    assert_eq!(bench.stdin(1)["runtimeConfig"], ports);
    bench.forget();
    runtime.check(&list, &Attachment::new("c1", "eth0").netns("/run/netns/c1")).unwrap();
    assert_eq!(bench.stdin(1)["runtimeConfig"], ports, "what the caller left out is remembered");
    assert!(bench.got(0, "env").contains("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web\n"));

    // The caller has forgotten everything but the names: the cache has not.
    bench.forget();
    runtime.del(&list, &Attachment::new("c1", "eth0")).unwrap();
    assert_eq!(bench.calls(), ["DEL b", "DEL a"]);
    assert_eq!((&bench.stdin(0)["prevResult"], &bench.stdin(1)["prevResult"]), (&last, &last));
    assert_eq!(bench.stdin(0)["runtimeConfig"], ports);
    assert!(bench.got(0, "env").contains("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web\n"));
    assert!(bench.got(0, "env").contains("CNI_NETNS=\n"), "a namespace is not made up");
    assert_eq!(runtime.cached("net", &pod()).unwrap(), None);
    runtime.del(&list, &Attachment::new("c1", "eth0")).unwrap();
    assert_eq!(bench.stdin(2).get("prevResult"), None);
}

#[test]
fn a_failure_stops_and_is_told_with_code_and_plugin() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    let list = list("1.0.0");
    bench.answer("a", "ADD", &result("1.0.0", "10.0.0.2/24"));
    bench.fails("b", "ADD", r#"{"code":11,"msg":"busy","details":"try later"}"#, "");
    let error = runtime.add(&list, &pod()).unwrap_err();
    assert_eq!(error.code(), Some(Code::TryAgain));
    assert_eq!(error.report(), "plugin \"b\" failed to ADD: busy; try later");
    assert!(runtime.attachments(None).unwrap().is_empty(), "a failed ADD is not remembered");

    bench.recovers("b", "ADD");
    bench.answer("b", "ADD", &result("1.0.0", "10.0.0.2/24"));
    runtime.add(&list, &pod()).unwrap();
    bench.fails("b", "DEL", "", "it\n  hurts\n");
    bench.forget();
    let error = runtime.del(&list, &pod()).unwrap_err().report();
    assert_eq!(error, "plugin \"b\" failed to DEL: it hurts (exit code 1)");
    assert_eq!(bench.calls(), ["DEL b"], "the address stays taken while rules lead to it");
    assert!(runtime.cached("net", &pod()).unwrap().is_some(), "a failed DEL is not forgotten");
    bench.recovers("b", "DEL");
    runtime.del(&list, &pod()).unwrap();
}

#[test]
fn failures_without_an_error_object_have_words_too() {
    let bench = Bench::new(&["a", "b"]);
    for (stdout, stderr, expected) in [
        ("", "", "no error message (exit code 1)"),
        ("panic!", "more", "what it printed is no CNI error (exit code 1): panic!"),
        ("{\"ips\":[]}", "", "what it printed is no CNI error"),
        ("{\"msg\":\"only\"}", "", "failed to ADD: only"),
    ] {
        bench.fails("a", "ADD", stdout, stderr);
        let error = bench.runtime().add(&list("1.0.0"), &pod()).unwrap_err().report();
        assert!(error.contains(expected), "{error}");
    }
    bench.recovers("a", "ADD");
    for (stdout, expected) in [
        ("oops", "plugin \"a\", ADD: the result is not JSON"),
        ("[1]", "the result is not an object: [1]"),
        ("{\"cniVersion\":\"8.0.0\"}", "the result: "),
        ("{\"cniVersion\":\"1.0.0\",\"ips\":5}", "the result: "),
    ] {
        bench.put("answers/a.ADD", stdout);
        let error = bench.runtime().add(&list("1.0.0"), &pod()).unwrap_err().report();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn results_are_converted_to_the_version_of_the_list() {
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        for answered in ["0.2.0", "0.3.1", "1.0.0", "1.1.0"] {
            let bench = Bench::new(&["a", "b"]);
            bench.answer("a", "ADD", &result(answered, "10.0.0.2/24"));
            bench.answer("b", "ADD", &result(version, "10.0.0.2/24"));
            bench.runtime().add(&list(version), &pod()).unwrap();
            let previous = &bench.stdin(1)["prevResult"];
            assert_eq!(previous["cniVersion"], version);
            let address = if version == "0.2.0" { &previous["ip4"]["ip"] } else { &previous["ips"][0]["address"] };
            assert_eq!(address, "10.0.0.2/24", "{answered} to {version}: {previous}");
            // The configuration was changed while the container ran.
            let newer = list("1.1.0");
            bench.runtime().check(&newer, &pod()).unwrap();
            assert_eq!(bench.stdin(2)["prevResult"]["cniVersion"], "1.1.0");
        }
    }
}

#[test]
fn no_result_is_an_empty_one() {
    for nothing in ["", "null", "{}", "\n"] {
        let bench = Bench::new(&["a", "b"]);
        bench.put("answers/a.ADD", nothing);
        bench.put("answers/b.ADD", nothing);
        let added = bench.runtime().add(&list("1.0.0"), &pod()).unwrap();
        assert_eq!(added.json, json!({ "cniVersion": "1.0.0" }));
        assert_eq!(bench.stdin(1)["prevResult"], json!({ "cniVersion": "1.0.0" }));
    }
}

#[test]
fn prev_result_of_del_came_with_0_4_0() {
    for (version, handed) in [("0.3.1", false), ("0.4.0", true)] {
        let bench = Bench::new(&["a", "b"]);
        for plugin in ["a", "b"] {
            bench.answer(plugin, "ADD", &result(version, "10.0.0.2/24"));
        }
        bench.runtime().add(&list(version), &pod()).unwrap();
        bench.forget();
        bench.runtime().del(&list(version), &pod()).unwrap();
        assert_eq!(bench.stdin(0).get("prevResult").is_some(), handed, "{version}");
    }
}

#[test]
fn the_file_that_a_namespace_left_is_no_namespace() {
    let bench = Bench::new(&["a", "b"]);
    bench.put("left", "");
    for (netns, told) in [("left", ""), ("gone", "gone")] {
        bench.forget();
        bench.runtime().del(&list("1.0.0"), &Attachment::new("c1", "eth0").netns(bench.path(netns))).unwrap();
        let told = if told.is_empty() { String::new() } else { bench.path(told).display().to_string() };
        assert!(bench.got(0, "env").contains(&format!("CNI_NETNS={told}\n")), "{netns}: {}", bench.got(0, "env"));
    }
}

/// A plugin of this process.
struct Inside;

impl crate::Plugin for Inside {
    type Conf = NoConf;
    const ABOUT: &'static str = "a plugin in the process of its runtime";

    fn add(&self, call: &crate::Call<'_, NoConf>) -> Result<AddResult, crate::Error> {
        let mut result = call.net.prev_result.clone().unwrap_or_default();
        result.interfaces.push(crate::Interface::new(call.ifname, "", "inside"));
        Ok(result)
    }

    fn del(&self, _: &crate::Call<'_, NoConf>) -> Result<(), crate::Error> {
        Err(crate::Error::new(Code::TryAgain, "later"))
    }

    fn check(&self, _: &crate::Call<'_, NoConf>) -> Result<(), crate::Error> {
        Ok(())
    }
}

crate::conf! {
    /// Nothing to configure.
    struct NoConf {}
}

struct InsideOnly;

impl Delegates for InsideOnly {
    fn builtin(&self, name: &str) -> Option<Box<dyn crate::DynPlugin + '_>> {
        (name == "inside" || name == "a").then(|| Box::new(Inside) as Box<dyn crate::DynPlugin>)
    }
}

#[test]
fn plugins_of_the_process_stand_in_for_those_that_are_not_installed() {
    let bench = Bench::new(&["a"]);
    let runtime = bench.builder().in_process(|| Box::new(InsideOnly)).build();
    bench.answer("a", "ADD", &result("1.0.0", "10.0.0.2/24"));
    let text = br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},{"type":"inside"}]}"#;
    let list = NetworkList::parse(text).unwrap();
    let added = runtime.add(&list, &pod()).unwrap();
    assert_eq!(bench.calls(), ["ADD a"], "what is installed goes first");
    assert_eq!(added.json["interfaces"], json!([{ "name": "eth0", "sandbox": "inside" }]));
    assert_eq!(added.json["ips"][0]["address"], "10.0.0.2/24");
    assert_eq!(runtime.del(&list, &pod()).unwrap_err().report(), "plugin \"inside\" failed to DEL: later");
    assert_eq!(runtime.versions("inside").unwrap().len(), Version::ALL.len());
}

#[test]
fn a_damaged_cache_does_not_stop_del() {
    for damage in ["", "{\"kind\":", "{\"kind\":\"cniCacheV1\"}", "{\"cniVersion\":\"7\"}"] {
        let bench = Bench::new(&["a", "b"]);
        let runtime = bench.runtime();
        for plugin in ["a", "b"] {
            bench.answer(plugin, "ADD", &result("1.0.0", "10.0.0.2/24"));
        }
        runtime.add(&list("1.0.0"), &pod()).unwrap();
        bench.put("cni/results/net-c1-eth0", damage);
        let error = runtime.check(&list("1.0.0"), &pod()).unwrap_err().report();
        assert!(error.starts_with("no usable result of an earlier ADD of c1/eth0 to network \"net\""), "{error}");
        bench.forget();
        runtime.del(&list("1.0.0"), &pod()).unwrap();
        assert_eq!(bench.calls(), ["DEL b", "DEL a"]);
        assert!(!bench.path("cni/results/net-c1-eth0").exists());
    }
}

#[test]
fn check_has_its_conditions() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    let error = runtime.check(&list("0.3.1"), &pod()).unwrap_err().report();
    assert_eq!(error, "network \"net\" has version 0.3.1: CHECK needs 0.4.0 or newer");
    let quiet = list_with(&json!({ "cniVersion": "1.0.0", "disableCheck": true }));
    runtime.check(&quiet, &pod()).unwrap();
    let error = runtime.check(&list("1.0.0"), &pod()).unwrap_err();
    assert!(matches!(&error, Error::NotCached { damage: None, .. }), "{error}");
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn status_is_the_first_complaint() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    bench.fails("b", "STATUS", r#"{"code":50,"msg":"no daemon"}"#, "");
    runtime.status(&list("1.0.0")).unwrap();
    assert_eq!(bench.calls(), [""; 0]);
    assert_eq!(runtime.status(&list("1.1.0")).unwrap_err().code(), Some(Code::NotAvailable));
    assert_eq!(bench.calls(), ["STATUS a", "STATUS b"]);
    bench.forget();
    rustix::fs::unlink(bench.path("bin/b")).unwrap();
    for version in ["1.0.0", "1.1.0"] {
        assert!(matches!(runtime.status(&list(version)), Err(Error::NoSuchPlugin { .. })), "{version}");
    }
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn versions_of_any_age_are_told() {
    let bench = Bench::new(&["a"]);
    let runtime = bench.runtime();
    for (answer, expected) in [
        (r#"{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}"#, &["0.4.0", "1.0.0"][..]),
        (r#"{"cniVersion":"0.2.0"}"#, &["0.1.0", "0.2.0"]),
    ] {
        bench.put("answers/a.VERSION", answer);
        assert_eq!(runtime.versions("a").unwrap(), expected);
    }
    assert_eq!(bench.stdin(0), json!({ "cniVersion": "1.1.0" }));
    assert!(bench.got(0, "env").contains("CNI_NETNS=dummy\n"));
    for (answer, expected) in
        [("{}", "no \"cniVersion\""), (r#"{"cniVersion":"1.0.0"}"#, "no \"supported"), ("x", "JSON")]
    {
        bench.put("answers/a.VERSION", answer);
        assert!(runtime.versions("a").unwrap_err().report().contains(expected));
    }
    bench.fails("a", "VERSION", r#"{"cniVersion":"0.1.0","code":100,"msg":"unknown CNI_COMMAND: VERSION"}"#, "");
    assert_eq!(runtime.versions("a").unwrap(), ["0.1.0"]);
}

#[test]
fn validation_looks_at_every_plugin() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    for plugin in ["a", "b"] {
        bench.put(&format!("answers/{plugin}.VERSION"), r#"{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}"#);
    }
    assert_eq!(runtime.validate(&list("1.0.0")).unwrap(), ["portMappings"]);
    rustix::fs::unlink(bench.path("bin/b")).unwrap();
    let error = runtime.validate(&list("0.4.0")).unwrap_err().report();
    assert!(
        error.contains("plugin \"a\", VERSION: it does not support version 0.4.0")
            && error.contains("\"b\" is in none"),
        "{error}"
    );
}

#[test]
fn plugins_are_searched_in_order() {
    let bench = Bench::new(&["a", "b"]);
    let error = bench.runtime().find("zz").unwrap_err().report();
    assert!(error.contains("\"zz\" is in none of the plugin directories (") && error.contains("/none, "), "{error}");
    fs::create_dir(bench.path("none")).unwrap();
    fs::create_dir(bench.path("none/a")).unwrap();
    assert_eq!(bench.runtime().find("a").unwrap(), bench.path("bin/a"), "a directory is no plugin");
    for bad in ["", "..", "../bin/a", "/bin/true"] {
        assert!(matches!(bench.runtime().find(bad), Err(Error::Argument { .. })), "{bad:?}");
    }
}

#[test]
fn wrong_arguments_are_refused_before_anybody_is_called() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    for (attachment, expected) in [
        (Attachment::new("c1", "eth0"), "its network namespace is missing"),
        (Attachment::new("../c1", "eth0").netns("/x"), "container id \"../c1\""),
        (Attachment::new("", "eth0").netns("/x"), "container id \"\": it is empty"),
        (Attachment::new("c1", "a-name-that-is-16").netns("/x"), "longer than 15 bytes"),
        (Attachment::new("c1", "eth 0").netns("/x"), "white space"),
        (Attachment::new("c1", "..").netns("/x"), "it must not be . or .."),
        (Attachment::new("c".repeat(300), "eth0").netns("/x"), "longer than 255 bytes"),
        (Attachment::new("c1", "eth0").netns("/x").arg("K", "a;b"), "CNI argument \"K=a;b\""),
    ] {
        let error = runtime.add(&list("1.0.0"), &attachment).unwrap_err().report();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(bench.calls(), [""; 0]);
    rustix::fs::unlink(bench.path("bin/b")).unwrap();
    let error = runtime.add(&list("1.0.0"), &pod()).unwrap_err().report();
    assert!(error.contains("\"b\" is in none of the plugin directories"), "{error}");
    assert_eq!(bench.calls(), [""; 0], "the first plugin's work would have to be undone");
}

#[test]
fn what_add_would_refuse_is_deleted_all_the_same() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    let odd = || Attachment::new("c1", "eth0").netns("/run/netns/c1").arg("K", "a=b").arg("L", "c;d");
    let error = runtime.add(&list("1.0.0"), &odd()).unwrap_err().report();
    assert!(error.contains("CNI argument \"K=a=b\": neither side"), "{error}");
    // Another runtime let it pass.
    runtime.cache.put(&Cached { network: "net".into(), attachment: odd(), config: Vec::new(), result: None }).unwrap();
    runtime.del(&list("1.0.0"), &Attachment::new("c1", "eth0")).unwrap();
    assert!(bench.got(0, "env").contains("CNI_ARGS=K=a=b;L=c;d\n"), "{}", bench.got(0, "env"));
}

#[test]
fn an_observer_hears_everything_and_a_hanging_plugin_is_killed() {
    let bench = Bench::new(&["a", "b"]);
    bench.put("bin/b", "#!/bin/sh\necho wait >&2\nexec sleep 1000\n");
    bench.answer("a", "ADD", &result("1.0.0", "10.0.0.2/24"));
    bench.put("answers/a.ADD.err", "a word\n");
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ears = Arc::clone(&heard);
    let runtime = bench.builder().time_limit(Duration::from_secs(2)).observer(move |event| {
        ears.lock().unwrap().push(match event {
            Event::Call(call) => format!("call {} {}", call.plugin, call.command()),
            Event::Stderr(call, text) => format!("{}: {}", call.plugin, String::from_utf8_lossy(text).trim()),
            Event::Done(call, _, result) => format!("{} {}", call.plugin, if result.is_ok() { "ok" } else { "failed" }),
        });
    });
    let runtime = runtime.build();
    let error = runtime.add(&list("1.0.0"), &pod()).unwrap_err();
    assert!(matches!(&error, Error::Timeout { plugin, .. } if plugin == "b"), "{error}");
    assert!(error.to_string().ends_with("delete the attachment before another attempt"), "{error}");
    assert_eq!(*heard.lock().unwrap(), ["call a ADD", "a: a word", "a ok", "call b ADD", "b: wait", "b failed"]);
    // Only ADD leaves something that has to go first.
    let error = runtime.del(&list("1.0.0"), &pod()).unwrap_err().to_string();
    assert!(error.ends_with("what is left is not known: do it again"), "{error}");
}

#[test]
fn explaining_calls_nobody() {
    let bench = Bench::new(&["a", "b"]);
    let runtime = bench.runtime();
    let calls = runtime.explain(Command::Add, &list("1.0.0"), &pod(), &[]).unwrap();
    assert_eq!(calls.iter().map(|call| call.plugin.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(calls[0].path, Some(bench.path("bin/a")));
    assert_eq!((calls[0].stdin.get("prevResult"), &calls[1].stdin["prevResult"]), (None, &json!("(result of a)")));
    runtime.cache.put(&Cached { network: "net".into(), attachment: pod(), config: Vec::new(), result: None }).unwrap();
    for (command, remembered) in [(Command::Add, false), (Command::Check, true), (Command::Del, true)] {
        let calls = runtime.explain(command, &list("1.0.0"), &Attachment::new("c1", "eth0"), &[]).unwrap();
        assert_eq!(calls[0].environment.args.as_str().contains("web"), remembered, "{command}");
    }
    let calls = runtime.explain(Command::Del, &list("1.0.0"), &pod(), &[]).unwrap();
    assert_eq!(calls.iter().map(|call| call.plugin.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    let calls = runtime.explain(Command::Gc, &list("1.1.0"), &pod(), &[pod().id()]).unwrap();
    assert_eq!(calls[0].stdin["cni.dev/valid-attachments"][0]["containerID"], "c1");
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn a_runtime_serves_many_threads() {
    fn shared<T: Send + Sync + Clone + 'static>(value: T) -> T {
        value
    }
    let bench = Bench::new(&[]);
    bench.put("bin/a", "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\"}'\n");
    fs::set_permissions(bench.path("bin/a"), fs::Permissions::from_mode(0o755)).unwrap();
    let runtime = shared(bench.runtime());
    let list = NetworkList::parse(br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}"#).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (runtime, list) = (runtime.clone(), &list);
            scope.spawn(move || {
                for count in 0..5 {
                    let pod = Attachment::new(format!("c{thread}-{count}"), "eth0").netns("/x");
                    runtime.add(list, &pod).unwrap();
                    if count > 0 {
                        runtime.del(list, &pod).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(runtime.attachments(None).unwrap().len(), 8);
}
