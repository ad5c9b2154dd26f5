use std::cell::RefCell;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::{Call, CniArgs, IpConfig, Plugin, conf};

conf! {
    /// Nothing.
    struct NoConf {}
}

/// An IPAM plugin that notes what it is asked.
struct Pool<'a>(&'a RefCell<Vec<Command>>);

impl Pool<'_> {
    fn note(&self, call: &Call<'_, NoConf>) {
        assert_eq!(call.net.name, "net");
        self.0.borrow_mut().push(call.command);
    }
}

impl Plugin for Pool<'_> {
    type Conf = NoConf;
    const ABOUT: &'static str = "";

    fn add(&self, call: &Call<'_, NoConf>) -> Result<AddResult, Error> {
        self.note(call);
        let ips = ["10.0.0.2/24", "10.0.1.2/24"].map(|ip| IpConfig::new(ip.parse().unwrap()));
        let empty = call.config().contains_key("empty");
        Ok(AddResult { ips: if empty { vec![] } else { ips.to_vec() }, ..AddResult::default() })
    }

    fn del(&self, call: &Call<'_, NoConf>) -> Result<(), Error> {
        self.note(call);
        Ok(())
    }

    fn check(&self, call: &Call<'_, NoConf>) -> Result<(), Error> {
        self.note(call);
        Ok(())
    }

    fn status(&self, call: &Call<'_, NoConf>) -> Result<(), Error> {
        self.note(call);
        Err(Error::new(Code::NotAvailable, "full"))
    }
}

#[derive(Default)]
struct Pools(RefCell<Vec<Command>>);

impl Delegates for Pools {
    fn builtin(&self, name: &str) -> Option<Box<dyn DynPlugin + '_>> {
        (name == "pool").then(|| Box::new(Pool(&self.0)) as _)
    }
}

fn environment(path: &Path) -> Environment {
    Environment {
        command: Command::Add,
        container_id: "id".to_owned(),
        ifname: "eth0".to_owned(),
        netns: Some("/run/netns/x".into()),
        args: CniArgs::new("A=b"),
        path: format!(":{}", path.display()),
        netns_override: false,
    }
}

fn ipam<'a>(config: &'a Map, env: &'a Environment, delegates: &'a dyn Delegates, version: Version) -> Ipam<'a> {
    let name = config["ipam"]["type"].as_str();
    Ipam::new(name, Delegate::borrowed("", config, version, env, delegates))
}

fn config(version: Version, ipam: &str) -> Map {
    json!({"cniVersion": version.as_str(), "name": "net", "ipam": {"type": ipam}, "prevResult": {}})
        .as_object()
        .unwrap()
        .clone()
}

fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs_write(&path, &format!("#!/bin/sh\n{text}\n"));
    path
}

/// Written by another process: a file that this one has open for writing, and a fork of another test keeps open, could
/// not be executed.
fn fs_write(path: &Path, text: &str) {
    let mut child = process::Command::new("sh")
        .args(["-c", "cat > \"$0\"; chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn();
    let child = child.as_mut().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_lease_goes_back_unless_it_is_kept() {
    let (dir, pools) = (tempfile::tempdir().unwrap(), Pools::default());
    let (env, config) = (environment(dir.path()), config(Version::V1_1_0, "pool"));
    let ipam = || ipam(&config, &env, &pools, Version::V1_1_0);
    assert_eq!(ipam().add().unwrap().keep().ips.len(), 2);
    assert_eq!(pools.0.take(), [Command::Add]);
    drop(ipam().add().unwrap());
    assert_eq!(pools.0.take(), [Command::Add, Command::Del]);
    assert_eq!(ipam().status().unwrap_err().code, Code::NotAvailable);
    ipam().check().unwrap();
    assert_eq!(pools.0.take(), [Command::Status, Command::Check]);
}

#[test]
fn a_lease_without_addresses_is_refused_and_goes_back() {
    let (dir, pools) = (tempfile::tempdir().unwrap(), Pools::default());
    let (env, mut config) = (environment(dir.path()), config(Version::V1_0_0, "pool"));
    config.insert("empty".to_owned(), true.into());
    let error = ipam(&config, &env, &pools, Version::V1_0_0).add().err().unwrap();
    assert!(error.msg.contains("no IP address"), "{error}");
    assert_eq!(pools.0.take(), [Command::Add, Command::Del]);
}

#[test]
fn the_oldest_versions_have_one_address_in_process_too() {
    let (dir, pools) = (tempfile::tempdir().unwrap(), Pools::default());
    let (env, config) = (environment(dir.path()), config(Version::V0_2_0, "pool"));
    assert_eq!(ipam(&config, &env, &pools, Version::V0_2_0).add().unwrap().keep().ips.len(), 1);
}

#[test]
fn without_ipam_only_add_fails() {
    let (dir, env, config) = (tempfile::tempdir().unwrap(), environment(Path::new("/")), Map::new());
    let ipam = || Ipam::new(None, Delegate::borrowed("", &config, Version::NEWEST, &env, &()));
    assert!(!ipam().is_configured());
    assert_eq!(ipam().add().err().unwrap().code, Code::InvalidConfig);
    for result in [ipam().del(), ipam().check(), ipam().gc(&[]), ipam().status()] {
        result.unwrap();
    }
    drop(dir);
}

#[test]
fn what_is_on_the_path_comes_before_what_is_built_in() {
    let (dir, pools) = (tempfile::tempdir().unwrap(), Pools::default());
    let result = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.9.9.9/24"}]}"#;
    script(dir.path(), "pool", &format!("echo '{result}'"));
    let (env, config) = (environment(dir.path()), config(Version::V1_0_0, "pool"));
    let ipam = || ipam(&config, &env, &pools, Version::V1_0_0);
    assert_eq!(ipam().add().unwrap().keep().ips[0].address.to_string(), "10.9.9.9/24");
    assert!(pools.0.take().is_empty());
    // Unless it is this very program, under whatever name.
    std::fs::remove_dir_all(dir.path()).unwrap();
    std::fs::create_dir(dir.path()).unwrap();
    std::os::unix::fs::symlink("/proc/self/exe", dir.path().join("pool")).unwrap();
    ipam().del().unwrap();
    assert_eq!(pools.0.take(), [Command::Del]);
}

#[test]
fn foreign_plugins_are_told_everything() {
    let dir = tempfile::tempdir().unwrap();
    let text =
        "echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS\" > $CNI_PATH/env; cat > $CNI_PATH/in";
    script(dir.path(), "other", text);
    let mut env = environment(dir.path());
    env.path = dir.path().display().to_string();
    let delegate = Delegate::new("other", config(Version::V1_0_0, "x"), Version::V1_0_0, &env, &());
    assert_eq!(delegate.check(), Ok(()));
    let read = |name: &str| String::from_utf8(File::open(dir.path().join(name)).map(bytes).unwrap()).unwrap();
    assert_eq!(read("env"), "CHECK id /run/netns/x eth0 A=b\n");
    let told: Value = serde_json::from_str(&read("in")).unwrap();
    assert_eq!(told.as_object(), Some(&config(Version::V1_0_0, "x")));
}

fn bytes(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn results_of_foreign_plugins() {
    let dir = tempfile::tempdir().unwrap();
    let env = environment(dir.path());
    let add = |output: &str, version| {
        script(dir.path(), "other", &format!("printf '%s' '{output}'"));
        Delegate::new("other", Map::new(), version, &env, &()).add()
    };
    // Without a version it has that of the configuration.
    let unversioned = r#"{"ips": [{"version": "4", "address": "10.0.0.2/24"}]}"#;
    assert_eq!(add(unversioned, Version::V0_4_0).unwrap().ips.len(), 1);
    assert_eq!(add(r#"{"ip4": {"ip": "10.0.0.2/24"}}"#, Version::V0_1_0).unwrap().ips.len(), 1);
    for nothing in ["", "null", "{}"] {
        assert_eq!(add(nothing, Version::NEWEST), Ok(AddResult::default()));
    }
    assert_eq!(add("hello", Version::NEWEST).unwrap_err().code, Code::Decode);
    assert_eq!(add("[]", Version::NEWEST).unwrap_err().code, Code::Decode);
}

#[test]
fn errors_of_foreign_plugins() {
    let dir = tempfile::tempdir().unwrap();
    let env = environment(dir.path());
    let del = |text: &str| {
        script(dir.path(), "other", text);
        Delegate::new("other", Map::new(), Version::NEWEST, &env, &()).del().unwrap_err()
    };
    let error = del(r#"echo '{"code": 11, "msg": "later", "details": "d"}'; exit 1"#);
    assert_eq!(error, Error::new(Code::TryAgain, "later").details("d"));
    let error = del("echo oh >&2; exit 3");
    assert_eq!((error.code, error.msg.contains("exit code 3"), error.msg.contains("oh")), (Code::Internal, true, true));
    let error = del("kill -9 $$");
    assert!(error.msg.contains("signal 9"), "{error}");
    let error = del("yes | head -c 100000; exit 1");
    assert!(error.msg.len() < 2000, "{error}");
}

#[test]
fn plugins_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let env = environment(dir.path());
    let delegate = |name: &str| Delegate::new(name, Map::new(), Version::NEWEST, &env, &());
    let error = delegate("other").del().unwrap_err();
    assert_eq!(error.code, Code::InvalidConfig);
    // Runtimes take these words for success.
    assert!(!error.to_string().contains("not found") && !error.to_string().contains("no such file"), "{error}");
    assert_eq!(delegate("other").status().unwrap_err().code, Code::NotAvailable);
    for name in ["", "a/b", "/bin/true", ".", ".."] {
        assert_eq!(delegate(name).add().unwrap_err().code, Code::InvalidConfig, "{name}");
    }
    std::fs::create_dir(dir.path().join("directory")).unwrap();
    assert!(find_in_path("directory", &env).unwrap().is_none());
    let plain = dir.path().join("plain");
    fs_write(&plain, "x");
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(delegate("plain").add().unwrap_err().code, Code::Io);
}

#[test]
fn a_program_that_is_being_replaced_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = script(dir.path(), "other", "echo '{}'");
    let env = environment(dir.path());
    // Held open for writing by another process until that is told to stop.
    let mut holder = process::Command::new("sh")
        .args(["-c", "exec 3>>\"$0\"; echo ready; read line"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let error = process::Command::new(&path).spawn().map(drop).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ExecutableFileBusy);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| Delegate::new("other", Map::new(), Version::NEWEST, &env, &()).add());
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert_eq!(call.join().unwrap(), Ok(AddResult::default()));
    });
}

#[test]
fn large_configurations_and_what_is_left_running_do_not_block() {
    let dir = tempfile::tempdir().unwrap();
    // It prints more than a pipe holds before it reads, and leaves a process that keeps its output open.
    script(dir.path(), "other", "head -c 300000 /dev/zero >&2; sleep 20 & echo $! > $0.pid; cat");
    let mut env = environment(dir.path());
    env.command = Command::Add;
    let mut config = Map::new();
    config.insert("x".to_owned(), "y".repeat(1 << 20).into());
    let started = Instant::now();
    let output = execute(&dir.path().join("other"), &env, &serde_json::to_vec(&config).unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Map>(&output).unwrap(), config);
    assert!(started.elapsed() < Duration::from_secs(10));
    let pid = bytes(File::open(dir.path().join("other.pid")).unwrap());
    let pid: i32 = String::from_utf8(pid).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}
