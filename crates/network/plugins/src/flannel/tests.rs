//! What the delegate gets, and what is kept for it.

use std::cell::RefCell;
use std::path::Path;

use outrigger_cni_sdk::{CniArgs, Command, Conf, DynPlugin, Environment, Key, Version};

use super::*;

/// Delegates that remember how they were called.
#[derive(Default)]
struct Recorder(RefCell<Vec<(Command, String, Value)>>);

struct Recording<'a>(&'a Recorder, String);

impl outrigger_cni_sdk::Delegates for Recorder {
    fn builtin(&self, name: &str) -> Option<Box<dyn DynPlugin + '_>> {
        Some(Box::new(Recording(self, name.to_owned())))
    }
}

impl DynPlugin for Recording<'_> {
    fn about(&self) -> &'static str {
        "recorder"
    }
    fn versions(&self) -> &'static [Version] {
        &[Version::NEWEST]
    }
    fn summary(&self) -> &'static str {
        ""
    }
    fn keys(&self) -> &'static [Key] {
        FlannelConf::KEYS
    }
    fn documentation(&self) -> &'static Documentation {
        &Documentation::EMPTY
    }
    fn call(
        &self,
        env: &Environment,
        config: &Map,
        _: &dyn outrigger_cni_sdk::Delegates,
    ) -> Result<Option<AddResult>, Error> {
        self.0.0.borrow_mut().push((env.command, self.1.clone(), Value::Object(config.clone())));
        Ok(Some(AddResult::default()))
    }
}

const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn environment(command: Command) -> Environment {
    Environment {
        command,
        container_id: "id".into(),
        ifname: "eth0".into(),
        netns: Some("/nowhere".into()),
        args: CniArgs::default(),
        path: "/nowhere".into(),
        netns_override: false,
    }
}

fn config(dir: &Path, more: Value) -> Map {
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "flannel-net", "type": "flannel",
        "subnetFile": dir.join("subnet.env"), "dataDir": dir.join("state"),
    });
    let Value::Object(more) = more else { panic!("an object") };
    config.as_object_mut().unwrap().extend(more);
    config.as_object().unwrap().clone()
}

fn call(recorder: &Recorder, command: Command, config: &Map) -> Result<Option<AddResult>, Error> {
    Flannel.call(&environment(command), config, recorder)
}

#[test]
fn a_bridge_from_the_daemons_file() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("subnet.env"), ENV).unwrap();
    let recorder = Recorder::default();
    let config = config(dir.path(), json!({ "delegate": { "hairpinMode": true }, "runtimeConfig": { "mac": "x" } }));
    call(&recorder, Command::Add, &config).unwrap();
    let wanted = json!({
        "name": "flannel-net", "type": "bridge", "cniVersion": "1.1.0", "hairpinMode": true, "ipMasq": false, "mtu": 1450,
        "isGateway": true, "runtimeConfig": { "mac": "x" },
        "ipam": {
            "type": "host-local", "ranges": [[{ "subnet": "10.244.1.0/24" }]], "routes": [{ "dst": "10.244.0.0/16" }],
        },
    });
    assert_eq!(*recorder.0.borrow(), [(Command::Add, "bridge".into(), wanted.clone())]);
    let file = dir.path().join("state/id");
    assert_eq!(serde_json::from_slice::<Value>(&fs_err::read(&file).unwrap()).unwrap(), wanted);

    // DEL takes what was kept, whatever the daemon says by then.
    fs_err::remove_file(dir.path().join("subnet.env")).unwrap();
    recorder.0.borrow_mut().clear();
    call(&recorder, Command::Del, &config).unwrap();
    assert_eq!(*recorder.0.borrow(), [(Command::Del, "bridge".into(), wanted)]);
    assert!(!file.exists());
    call(&recorder, Command::Del, &config).unwrap();
    assert_eq!(recorder.0.borrow().len(), 1);
    // What an ADD left that was killed as it wrote.
    let aside = dir.path().join("state/.id.tmp");
    fs_err::write(&aside, "{").unwrap();
    call(&recorder, Command::Del, &config).unwrap();
    assert!(!aside.exists());
}

#[test]
fn not_ready_without_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::default();
    let config = config(dir.path(), json!({}));
    assert_eq!(call(&recorder, Command::Add, &config).unwrap_err().code, Code::TryAgain);
    assert_eq!(call(&recorder, Command::Status, &config).unwrap_err().code, Code::NotAvailable);
    fs_err::write(dir.path().join("subnet.env"), "FLANNEL_MTU=1").unwrap();
    assert_eq!(call(&recorder, Command::Add, &config).unwrap_err().code, Code::InvalidConfig);
    assert!(recorder.0.borrow().is_empty());
    fs_err::write(dir.path().join("subnet.env"), ENV).unwrap();
    call(&recorder, Command::Status, &config).unwrap();
}

#[test]
fn what_is_filled_in_cannot_be_given() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("subnet.env"), ENV).unwrap();
    for delegate in [json!({ "name": "x" }), json!({ "ipam": {} }), json!({ "type": 1 }), json!({ "type": "flannel" })]
    {
        let config = config(dir.path(), json!({ "delegate": delegate }));
        let error = call(&Recorder::default(), Command::Add, &config).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{error}");
        assert!(!dir.path().join("state").exists(), "{error}");
    }
}

#[test]
fn garbage_of_this_network_only() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::create_dir(dir.path().join("state")).unwrap();
    let file = |name: &str| dir.path().join("state").join(name);
    for (name, content) in [
        ("keep", r#"{"name":"flannel-net","type":"bridge"}"#),
        ("stale", r#"{"name":"flannel-net","type":"bridge"}"#),
        ("other", r#"{"name":"other-net","type":"bridge"}"#),
        ("empty", ""),
        (".killed.tmp", r#"{"name":"flannel-net","type":"bridge"}"#),
    ] {
        fs_err::write(file(name), content).unwrap();
    }
    let recorder = Recorder::default();
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "keep", "ifname": "eth0" }] });
    call(&recorder, Command::Gc, &config(dir.path(), valid.clone())).unwrap();
    let calls = recorder.0.borrow();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].2["cni.dev/valid-attachments"], valid["cni.dev/valid-attachments"]);
    assert!(file("keep").exists() && file("other").exists() && file("empty").exists() && !file("stale").exists());
    assert!(!file(".killed.tmp").exists());
}
