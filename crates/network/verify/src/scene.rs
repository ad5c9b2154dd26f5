//! The stage of one case: a private host with what a plugin needs to be called, and calls with little to write.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_verify_report::Unmet;
use serde_json::{Map, Value, json};

use crate::call::{Call, Output};
use crate::host::{Container, Host, Inventory, OWN, eventually};
use crate::profile::{Kind, Profile, device};
use crate::result::{VERSIONS, at_least, make};

/// The network's name in all cases.
pub const NETWORK: &str = "verify-net";

/// The IPAM plugin that the suite brings: hands out what it is told to, and writes down how it was called.
pub const IPAM: &str = "verify-ipam";

const IPAM_SCRIPT: &str = r#"#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
here=/run/verify
call=$here/log/$CNI_COMMAND.$CNI_CONTAINERID.$CNI_IFNAME.$$
mkdir -p "$here/log" "$here/held" "$call"
cat > "$call/stdin"
env > "$call/env"
network() { tr -d ' \n' < "$call/stdin" | grep -o '"name":"[^"]*"' | head -n 1; }
if [ -e "$here/fail.$CNI_COMMAND" ]; then cat "$here/fail.$CNI_COMMAND"; exit 1; fi
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}' ;;
ADD)
    network > "$here/held/$CNI_CONTAINERID.$CNI_IFNAME"
    if [ -e "$here/result.$CNI_CONTAINERID" ]; then cat "$here/result.$CNI_CONTAINERID"; else cat "$here/result"; fi ;;
DEL) rm -f "$here/held/$CNI_CONTAINERID.$CNI_IFNAME" ;;
GC)
    grep -q '"name":"verify-net"' "$call/stdin" || exit 0
    for held in "$here/held/"*; do
        id=${held##*/}
        # What other networks hold is not its to collect.
        [ "$(cat "$held")" = "$(network)" ] || continue
        grep -q "\"containerID\":\"${id%.*}\"" "$call/stdin" || rm -f "$held"
    done ;;
esac
exit 0
"#;

/// What is verified: one plugin and how to call it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The plugin's name.
    pub name: String,
    /// Its directory; delegates are looked for there too.
    pub directory: PathBuf,
    /// How to call it.
    pub profile: Arc<Profile>,
    /// The versions that it says it supports; empty if it does not say.
    pub versions: Vec<String>,
}

impl Subject {
    /// The newest of the released versions that the plugin says it supports; 0.1.0 if it says nothing.
    pub fn newest(&self) -> &str {
        let known = VERSIONS.iter().rev().find(|known| self.versions.iter().any(|version| version == *known));
        known.copied().unwrap_or("0.1.0")
    }

    /// True if it says that it supports a version.
    pub fn supports(&self, version: &str) -> bool {
        self.versions.iter().any(|supported| supported == version)
    }
}

/// The stage.
#[derive(Debug)]
pub struct Scene {
    /// The private host.
    pub host: Host,
    /// What is verified.
    pub subject: Arc<Subject>,
    /// The version that configurations are written in.
    pub version: String,
}

/// One attachment: a container, its interface and the configuration it is to be called with.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// The network namespace.
    pub container: Container,
    /// The configuration, with prevResult if the plugin is chained.
    pub config: Value,
    /// `CNI_ARGS`, if any.
    pub args: Option<String>,
}

impl Scene {
    /// Enters a private host and prepares it for the subject.
    pub fn new(subject: &Arc<Subject>) -> Result<Self, Unmet> {
        Self::in_version(subject, subject.newest())
    }

    /// The same, configurations being of a certain version.
    pub fn in_version(subject: &Arc<Subject>, version: &str) -> Result<Self, Unmet> {
        let scene = Self::bare(subject, version)?;
        (subject.profile.prepare)(&scene)?;
        Ok(scene)
    }

    /// A private host without what the subject needs for a successful ADD: enough to see what it refuses.
    pub fn bare(subject: &Arc<Subject>, version: &str) -> Result<Self, Unmet> {
        let host = Host::enter(&subject.directory)?;
        let scene = Self { host, subject: Arc::clone(subject), version: version.to_owned() };
        let script = Path::new(OWN).join("bin").join(IPAM);
        fs_err::write(&script, IPAM_SCRIPT)?;
        fs_err::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        scene.ipam_hands_out("result", &[("10.77.0.5/24", "10.77.0.1", None)], &[("0.0.0.0/0", "")])?;
        Ok(scene)
    }

    /// What the suite's IPAM plugin answers to ADD from now on; `name` is `result`, or `result.<container id>`.
    pub fn ipam_hands_out(
        &self,
        name: &str,
        ips: &[crate::result::Ip<'_>],
        routes: &[(&str, &str)],
    ) -> Result<(), Unmet> {
        let result = make(&self.version, &[], ips, routes);
        Ok(fs_err::write(Path::new(OWN).join(name), result.to_string())?)
    }

    /// From now on the suite's IPAM plugin fails a command with an error.
    pub fn ipam_fails(&self, command: &str, output: &str) -> Result<(), Unmet> {
        Ok(fs_err::write(Path::new(OWN).join(format!("fail.{command}")), output)?)
    }

    /// The calls of the suite's IPAM plugin for a command: environment and standard input.
    pub fn ipam_calls(&self, command: &str) -> Result<Vec<(String, Value)>, Unmet> {
        let mut calls = Vec::new();
        let Ok(log) = fs_err::read_dir(Path::new(OWN).join("log")) else { return Ok(calls) };
        for entry in log {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if name.split('.').next() == Some(command) {
                let stdin = fs_err::read(path.join("stdin"))?;
                let config = serde_json::from_slice(&stdin).unwrap_or(Value::Null);
                calls.push((fs_err::read_to_string(path.join("env"))?, config));
            }
        }
        Ok(calls)
    }

    /// What `CNI_PATH` is: the suite's IPAM plugin, then the plugin's directory.
    pub fn cni_path(&self) -> String {
        format!("{OWN}/bin:{}", self.host.plugins().display())
    }

    /// The subject's file.
    pub fn binary(&self) -> PathBuf {
        self.host.plugins().join(&self.subject.name)
    }

    /// A configuration as a runtime would hand it to the subject, without prevResult.
    pub fn config(&self) -> Value {
        self.config_for("c1")
    }

    /// The same for a container; where a device or a port can be had only once, each container gets its own.
    pub fn config_for(&self, id: &str) -> Value {
        self.named((self.subject.profile.config)(id))
    }

    /// A plugin object with what the runtime adds.
    pub fn named(&self, object: Value) -> Value {
        let mut config = match object {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        config.insert("cniVersion".into(), self.version.clone().into());
        config.insert("name".into(), NETWORK.into());
        config.entry("type").or_insert_with(|| self.subject.name.clone().into());
        config.into()
    }

    /// A container with an attachment to be made. For a chained plugin the container gets an interface, as an earlier
    /// plugin would have made it, and the configuration its result.
    pub fn attachment(&self, id: &str) -> Result<Attachment, Unmet> {
        self.attachment_as(id, self.subject.profile.ifname)
    }

    /// The same with an interface name.
    pub fn attachment_as(&self, id: &str, ifname: &str) -> Result<Attachment, Unmet> {
        let container = self.host.container(id)?;
        let mut config = self.config_for(id);
        if self.subject.profile.kind == Kind::Meta {
            config["prevResult"] = self.upstream(&container, ifname)?;
        }
        (self.subject.profile.each)(self, &container)?;
        Ok(Attachment { id: id.to_owned(), ifname: ifname.to_owned(), container, config, args: None })
    }

    /// Makes what a main plugin would have made before a chained one: a veth pair with a v4 and a v6 address, and the
    /// result that describes it. Two containers get different addresses.
    pub fn upstream(&self, container: &Container, ifname: &str) -> Result<Value, Unmet> {
        let number = 5 + self.host.ip("link show")?.len();
        let peer = format!("up{number}");
        let (v4, v6) = (format!("10.78.0.{number}/24"), format!("fd78::{number}/64"));
        self.host.sh(&format!(
            "ip link add {peer} type veth peer name {ifname} netns {0}; ip link set {peer} up
             ip addr add 10.78.0.1/24 dev {peer}; ip -n {0} link set lo up; ip -n {0} link set {ifname} up
             ip -n {0} addr add {v4} dev {ifname}; ip -n {0} addr add {v6} dev {ifname} nodad
             ip -n {0} route add default via 10.78.0.1 dev {ifname}",
            container.name
        ))?;
        let mac = |link: Option<Value>| link.map_or(Value::Null, |link| link["address"].clone());
        let interfaces = [
            json!({ "name": peer, "mac": mac(self.host.link(&peer)?) }),
            json!({ "name": ifname, "mac": mac(container.link(ifname)?), "sandbox": container.path }),
        ];
        let ips = [(v4.as_str(), "10.78.0.1", Some(1)), (v6.as_str(), "fd78::1", Some(1))];
        Ok(make(&self.version, &interfaces, &ips, &[("0.0.0.0/0", "10.78.0.1")]))
    }

    /// The links of the host that the suite made for an attachment.
    pub fn own_links(&self, attachment: &Attachment) -> Vec<String> {
        let device = device(&attachment.id);
        let mut own = vec![format!("{device}x"), device];
        let upstream = attachment.config["prevResult"]["interfaces"][0]["name"].as_str();
        own.extend(upstream.filter(|_| self.subject.profile.kind == Kind::Meta).map(str::to_owned));
        own
    }

    /// A call for an attachment, to be changed or run.
    pub fn call(&self, command: &str, attachment: &Attachment) -> Call {
        let mut call = Call::new(&self.binary(), command)
            .env("CNI_CONTAINERID", &attachment.id)
            .env("CNI_NETNS", attachment.container.path.to_string_lossy())
            .env("CNI_IFNAME", &attachment.ifname)
            .env("CNI_PATH", self.cni_path())
            .config(&attachment.config);
        if let Some(args) = &attachment.args {
            call = call.env("CNI_ARGS", args);
        }
        call
    }

    /// ADD that must succeed; its result.
    pub fn add(&self, attachment: &Attachment) -> Result<Value, Unmet> {
        self.call("ADD", attachment).run()?.result()
    }

    /// ADD that must fail.
    pub fn add_fails(&self, attachment: &Attachment) -> Result<(crate::call::CniError, Output), Unmet> {
        let output = self.call("ADD", attachment).run()?;
        Ok((output.error()?, output))
    }

    /// The configuration of a later command, with the result of ADD.
    pub fn with_result(attachment: &Attachment, result: &Value) -> Value {
        let mut config = attachment.config.clone();
        config["prevResult"] = result.clone();
        config
    }

    /// DEL with the result of ADD, as runtimes send it; it must succeed.
    pub fn del(&self, attachment: &Attachment, result: &Value) -> Result<(), Unmet> {
        self.del_output(attachment, result)?.success()
    }

    fn del_output(&self, attachment: &Attachment, result: &Value) -> Result<Output, Unmet> {
        let mut config = Self::with_result(attachment, result);
        if result.is_null() || !at_least(&self.version, "0.4.0") {
            config.as_object_mut().map(|config| config.remove("prevResult"));
        }
        self.call("DEL", attachment).config(&config).run()
    }

    /// CHECK with the result of ADD.
    pub fn check(&self, attachment: &Attachment, result: &Value) -> Result<Output, Unmet> {
        self.call("CHECK", attachment).config(&Self::with_result(attachment, result)).run()
    }

    /// GC with a list of valid attachments.
    pub fn gc(&self, valid: &[&Attachment]) -> Result<Output, Unmet> {
        self.gc_with(self.config(), valid)
    }

    /// The same with another configuration.
    pub fn gc_with(&self, mut config: Value, valid: &[&Attachment]) -> Result<Output, Unmet> {
        let valid: Vec<_> =
            valid.iter().map(|valid| json!({ "containerID": valid.id, "ifname": valid.ifname })).collect();
        config["cni.dev/valid-attachments"] = valid.clone().into();
        config["cni.dev/attachments"] = valid.into();
        Call::new(&self.binary(), "GC").env("CNI_PATH", self.cni_path()).config(&config).run()
    }

    /// STATUS.
    pub fn status(&self) -> Result<Output, Unmet> {
        Call::new(&self.binary(), "STATUS").env("CNI_PATH", self.cni_path()).config(&self.config()).run()
    }

    /// What is on the host after another container came and went: things that are shared and stay, such as a bridge or
    /// the entry chains of rules, are there then.
    pub fn settled(&self) -> Result<Inventory, Unmet> {
        let warm = self.attachment("warm-up")?;
        let result = self.add(&warm)?;
        self.del(&warm, &result)?;
        self.host.remove_container(&warm.container)?;
        self.host.sh("for link in $(ls /sys/class/net | grep '^up[0-9]' || true); do ip link del $link 2>/dev/null || true; done")?;
        let first = self.host.inventory()?;
        // Links of a namespace that went away are taken down by the kernel in its own time.
        eventually(std::time::Duration::from_secs(3), || {
            let now = self.host.inventory()?;
            if now.lines().any(|line| line.contains("warm-up")) {
                return Err(Unmet::fail("DEL left something of the first container behind").with(
                    "left behind",
                    now.lines().filter(|line| line.contains("warm-up")).collect::<Vec<_>>().join("\n"),
                ));
            }
            Ok(())
        })?;
        Ok(first)
    }

    /// Fails if the host is not as it was.
    pub fn host_is(&self, before: &Inventory) -> Result<(), Unmet> {
        eventually(std::time::Duration::from_secs(3), || {
            let difference = before.difference(&self.host.inventory()?);
            if difference.is_empty() {
                return Ok(());
            }
            Err(Unmet::fail(format!("the host is not as it was: {}", difference.join("; "))))
        })
    }

    /// Fails if a container is not as it was.
    pub fn container_is(&self, container: &Container, before: &Inventory) -> Result<(), Unmet> {
        eventually(std::time::Duration::from_secs(3), || {
            let difference = before.difference(&container.inventory()?);
            if difference.is_empty() {
                return Ok(());
            }
            Err(Unmet::fail(format!("the container is not as it was: {}", difference.join("; "))))
        })
    }
}
