//! `flannel`: a bridge (or another plugin) configured from what flannel's daemon says of this node.

mod env;
mod state;

use std::time::SystemTime;

use outrigger_cni_sdk::{
    AddResult, Attachment, Call, Code, Delegate, Documentation, Error, Errors, Map, Plugin, Step as _, conf,
};
use serde_json::{Value, json};

use self::env::SubnetEnv;
use self::state::State;

conf! {
    /// Attaches containers to flannel's network: reads which subnet the node has from the file that flannel's daemon
    /// writes, and hands a configuration for it to another plugin, `bridge` unless `delegate.type` says otherwise.
    pub struct FlannelConf {
        /// The daemon's file.
        pub subnet_file: String = "/run/flannel/subnet.env".into(),
        /// Where the delegate's configuration is kept until DEL, one file for each container.
        pub data_dir: String = "/var/lib/cni/flannel".into(),
        /// Keys for the delegate. `name` and `ipam` are filled in, and so are, where they are missing: `type` (`bridge`),
        /// `mtu`, `ipMasq` (the opposite of the daemon's), `isGateway` (true, for a bridge).
        pub delegate: Option<Map>,
    }
}

/// The plugin.
pub struct Flannel;

/// The configuration for the delegate: its keys completed by the daemon's file and the network's own.
fn delegate_conf(call: &Call<'_, FlannelConf>, env: &SubnetEnv) -> Result<Map, Error> {
    let mut delegate = call.conf.delegate.clone().unwrap_or_default();
    for key in ["name", "ipam"] {
        if delegate.contains_key(key) {
            return Err(Error::config(format!("delegate holds {key}, which flannel fills in: remove it")));
        }
    }
    if !call.net.runtime_config.is_empty() {
        delegate.insert("runtimeConfig".into(), Value::Object(call.net.runtime_config.clone()));
    }
    delegate.insert("name".into(), json!(call.net.name));
    let kind = match delegate.entry("type").or_insert_with(|| json!("bridge")) {
        Value::String(kind) => kind.clone(),
        other => return Err(Error::config(format!("delegate.type is {other}: give it the name of a plugin"))),
    };
    if kind == "flannel" {
        return Err(Error::config("delegate.type is flannel itself: give it the name of another plugin"));
    }
    delegate.entry("ipMasq").or_insert_with(|| json!(!env.masquerades));
    delegate.entry("mtu").or_insert_with(|| json!(env.mtu));
    if kind == "bridge" {
        delegate.entry("isGateway").or_insert(json!(true));
    }
    delegate.insert("cniVersion".into(), json!(call.net.cni_version.as_str()));

    let mut ipam = call.net.ipam.clone().unwrap_or_default();
    ipam.entry("type").or_insert_with(|| json!("host-local"));
    let range = |subnet: &ipnet::IpNet| json!([{ "subnet": subnet.trunc().to_string() }]);
    ipam.insert("ranges".into(), env.subnets.iter().map(range).collect());
    let mut routes = match ipam.remove("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(routes)) => routes,
        Some(other) => return Err(Error::config(format!("ipam.routes is {other}: make it a list"))),
    };
    routes.extend(env.networks.iter().map(|network| json!({ "dst": network.to_string() })));
    ipam.insert("routes".into(), Value::Array(routes));
    delegate.insert("ipam".into(), Value::Object(ipam));
    Ok(delegate)
}

impl Plugin for Flannel {
    type Conf = FlannelConf;
    const ABOUT: &'static str = "flannel";
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, FlannelConf>) -> Result<AddResult, Error> {
        let config = delegate_conf(call, &subnet_env(call)?)?;
        let bytes = serde_json::to_vec(&config).step("write the delegate's configuration")?;
        let (state, id) = (state(call), call.container_id);
        let keeping = || format!("keep the delegate's configuration in {}", call.conf.data_dir);
        let known = state.load(id).step(keeping())?.is_some();
        // Before the delegate makes anything: DEL needs it to know what there is to undo.
        state.save(id, &bytes).step(keeping())?;
        let delegate = delegate(call, config);
        delegate.add().map_err(|error| {
            // Our plugins undo what they did, so DEL need not. Unless it was an ADD too many: that attachment lives on.
            if !known && delegate.is_builtin().is_ok_and(|own| own) {
                let _ = state.remove(id);
            }
            error.during("flannel's delegate")
        })
    }

    fn del(&self, call: &Call<'_, FlannelConf>) -> Result<(), Error> {
        let state = state(call);
        let reading = || format!("read {}/{}", call.conf.data_dir, call.container_id);
        let removing = || format!("remove {}/{}", call.conf.data_dir, call.container_id);
        let Some(bytes) = state.load(call.container_id).step(reading())? else {
            // A crash may have left what was to become the file.
            return state.remove(call.container_id).step(removing());
        };
        let saved = state::parse(&bytes).or_else(|| {
            // What a crash left of the file is of no use; what the daemon says now is the next best.
            delegate_conf(call, &subnet_env(call).ok()?).ok()
        });
        let Some(mut config) = saved else {
            return Err(Error::new(
                Code::Decode,
                format!(
                    "{}/{} is damaged and {} cannot be read: start flannel's daemon, or remove the first file if the \
                     container's interface is gone",
                    call.conf.data_dir, call.container_id, call.conf.subnet_file
                ),
            ));
        };
        if let Some(previous) = &call.net.prev_result {
            config.insert("prevResult".into(), previous.to_value(call.net.cni_version)?);
        }
        delegate(call, config).del().map_err(|error| error.during("flannel's delegate"))?;
        state.remove(call.container_id).step(removing())
    }

    fn check(&self, call: &Call<'_, FlannelConf>) -> Result<(), Error> {
        let previous = call.prev()?;
        let saved = state(call).load(call.container_id).ok().flatten().and_then(|bytes| state::parse(&bytes));
        let mut config = match saved {
            Some(config) => config,
            None => delegate_conf(call, &subnet_env(call)?)?,
        };
        config.insert("prevResult".into(), previous.to_value(call.net.cni_version)?);
        delegate(call, config).check().map_err(|error| error.during("flannel's delegate"))
    }

    fn gc(&self, call: &Call<'_, FlannelConf>, valid: &[Attachment]) -> Result<(), Error> {
        let state = state(call);
        let listing = || format!("list {}", call.conf.data_dir);
        let is_valid = |id: &str| valid.iter().any(|attachment| attachment.container_id == id);
        state.sweep(&call.net.name, is_valid, SystemTime::now()).step(listing())?;
        let containers = state.containers(&call.net.name).step(listing())?;
        let stale = |id: &&String| !is_valid(id);
        let stale: Vec<&String> = containers.iter().filter(stale).collect();
        // The daemon may be down, or have another subnet now: a file of ours tells as well what the delegate was.
        let config = match subnet_env(call).and_then(|env| delegate_conf(call, &env)) {
            Ok(config) => config,
            Err(error) => {
                let load = |id: &String| state.load(id).ok().flatten().and_then(|bytes| state::parse(&bytes));
                match containers.iter().find_map(load) {
                    Some(config) => config,
                    None if containers.is_empty() => return Ok(()),
                    None => return Err(error),
                }
            }
        };
        let mut config = config;
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            if let Some(value) = call.config().get(key) {
                config.insert(key.into(), value.clone());
            }
        }
        config.insert("cniVersion".into(), json!(call.net.cni_version.as_str()));
        delegate(call, config).gc().map_err(|error| error.during("flannel's delegate"))?;
        let mut errors = Errors::new();
        for id in stale {
            errors.push(state.remove(id).step(format_args!("remove {}/{id}", call.conf.data_dir)));
        }
        errors.finish()
    }

    fn status(&self, call: &Call<'_, FlannelConf>) -> Result<(), Error> {
        let not_available = |error: Error| Error { code: Code::NotAvailable, ..error };
        let config = delegate_conf(call, &subnet_env(call).map_err(not_available)?)?;
        delegate(call, config).status().map_err(|error| error.during("flannel's delegate"))
    }
}

fn state(call: &Call<'_, FlannelConf>) -> State {
    State::new(&call.conf.data_dir)
}

/// The delegate of a configuration.
fn delegate<'a>(call: &Call<'a, FlannelConf>, config: Map) -> Delegate<'a> {
    let kind = config.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    call.delegate(&kind, config)
}

/// Reads the daemon's file.
fn subnet_env(call: &Call<'_, FlannelConf>) -> Result<SubnetEnv, Error> {
    let path = &call.conf.subnet_file;
    let text = match std::fs::File::open(path).and_then(std::io::read_to_string) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(
                Code::TryAgain,
                format!("{path} is missing: flannel's daemon has not written it yet; start it or wait"),
            ));
        }
        Err(error) => return Err(error).step(format_args!("read {path}")),
    };
    SubnetEnv::parse(&text).map_err(|problem| {
        Error::config(format!("{path} cannot be used: {problem}; restart flannel's daemon, which writes it"))
    })
}

const DOC: Documentation = Documentation {
    add: "Reads the daemon's file (code 11, try again, while it is missing), completes `delegate` with it and with `ipam` \
          (`host-local`, unless `ipam.type` says otherwise, with the node's subnets as `ranges` and routes to the \
          networks), keeps that as a file named after the container in `dataDir`, and calls the delegate. The result is \
          the delegate's.",
    del: "Calls the delegate with the configuration that was kept, then removes the file. Succeeds if there is none. \
          Neither the daemon nor its file is needed.",
    check: "Calls the delegate.",
    gc: "Calls the delegate, then removes the files of this network's containers that have no valid attachment.",
    status: "Not ready while the daemon's file is missing or wrong; asks the delegate.",
    capabilities: &[("any", "What the runtime gives is passed on to the delegate.")],
    args: &[],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "cbr0",
    "plugins": [
        { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
        { "type": "portmap", "capabilities": { "portMappings": true } }
    ]
}"#,
};

#[cfg(test)]
mod tests;
