//! A runtime in miniature for tests: calls the plugins of a chain as libcni does, with any directory of plugins.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use outrigger_testing::{NetHost, PluginOutput};
use serde_json::{Value, json};

/// The chain of a network, and where its plugins are.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) chain: Vec<Value>,
    pub(crate) version: &'static str,
}

impl Network {
    pub(crate) fn new(name: &str, dir: &Path, chain: Vec<Value>) -> Self {
        Self { name: name.to_owned(), dir: dir.to_owned(), chain, version: "1.0.0" }
    }

    /// The same network in a newer or older version of the specification.
    pub(crate) fn version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// The same network served by another directory's plugins.
    pub(crate) fn served_by(&self, dir: &Path) -> Self {
        Self { dir: dir.to_owned(), ..self.clone() }
    }

    /// What a plugin of the chain gets on its standard input.
    pub(crate) fn config(&self, plugin: &Value, previous: &Value) -> Value {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.into();
        config["name"] = self.name.as_str().into();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        config
    }

    /// Attaches a container `id`, whose namespace has the same name.
    pub(crate) fn add(&self, host: &NetHost, id: &str, ifname: &str) -> Result<Value> {
        let mut previous = Value::Null;
        for plugin in &self.chain {
            previous =
                self.call(host, "ADD", plugin, id, ifname, &previous)?.ok().with_context(|| describe("ADD", plugin))?;
        }
        Ok(previous)
    }

    pub(crate) fn check(&self, host: &NetHost, id: &str, ifname: &str, result: &Value) -> Result<()> {
        for plugin in &self.chain {
            self.call(host, "CHECK", plugin, id, ifname, result)?.ok().with_context(|| describe("CHECK", plugin))?;
        }
        Ok(())
    }

    /// Detaches it, in reverse order; `result` may be null. Goes on after an error, which it reports at the end.
    pub(crate) fn del(&self, host: &NetHost, id: &str, ifname: &str, result: &Value) -> Result<()> {
        let mut errors = Vec::new();
        for plugin in self.chain.iter().rev() {
            let outcome = self.call(host, "DEL", plugin, id, ifname, result)?.ok();
            errors.extend(outcome.with_context(|| describe("DEL", plugin)).err());
        }
        report(&errors)
    }

    /// Removes everything of this network but these attachments (container id, interface name).
    pub(crate) fn gc(&self, host: &NetHost, valid: &[(&str, &str)]) -> Result<()> {
        let valid: Vec<Value> =
            valid.iter().map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname })).collect();
        let mut errors = Vec::new();
        for plugin in &self.chain {
            let mut config = self.config(plugin, &Value::Null);
            config["cniVersion"] = "1.1.0".into();
            config["cni.dev/valid-attachments"] = valid.clone().into();
            let binary = self.binary(plugin)?;
            let mut process = host.command(&binary);
            process.env("CNI_COMMAND", "GC").env("CNI_PATH", &self.dir);
            errors.extend(NetHost::call(&mut process, &config)?.ok().with_context(|| describe("GC", plugin)).err());
        }
        report(&errors)
    }

    pub(crate) fn call(
        &self,
        host: &NetHost,
        command: &str,
        plugin: &Value,
        id: &str,
        ifname: &str,
        previous: &Value,
    ) -> Result<PluginOutput> {
        let netns = PathBuf::from(format!("/run/netns/{id}"));
        let mut process = host.plugin(&self.binary(plugin)?, command, id, &netns, ifname);
        NetHost::call(&mut process, &self.config(plugin, previous))
    }

    pub(crate) fn binary(&self, plugin: &Value) -> Result<PathBuf> {
        let binary = self.dir.join(plugin["type"].as_str().context("type")?);
        ensure!(binary.exists(), "there is no plugin {}", binary.display());
        Ok(binary)
    }
}

fn describe(command: &str, plugin: &Value) -> String {
    format!("{command} of {}", plugin["type"])
}

fn report(errors: &[anyhow::Error]) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    bail!("{}", errors.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; "))
}

/// The address of this family in a result, without the prefix length.
pub(crate) fn address(result: &Value, v6: bool) -> Result<std::net::IpAddr> {
    let ips = result["ips"].as_array().context("ips")?;
    let addresses =
        ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse::<std::net::IpAddr>().ok());
    addresses.into_iter().find(|address| address.is_ipv6() == v6).context("an address of this family")
}
