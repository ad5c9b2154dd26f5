//! `outrigger`: a whole list of plugins in one call. One process and one transaction of rules for each direction, with
//! the result that the list would have.

use outrigger_cni_sdk::{AddResult, Attachment, Call, Delegate, Documentation, Error, Errors, Map, Plugin, conf};
use serde_json::{Value, json};

use crate::session::Session;

conf! {
    /// Runs the plugins of a list one after another in one process, so that the list costs one start instead of one for
    /// each plugin, and all their rules take effect at once. Write one plugin of this type in the list, and in its
    /// `plugins` what the list held before; the `capabilities` of all of them belong at this plugin too, since the runtime
    /// gives values only to plugins of its own list.
    pub struct ChainConf {
        /// The plugins in order, as objects of a list. `outrigger` itself cannot be among them. Plugins of others are
        /// executed as usual.
        pub plugins: Vec<Map>,
    }
}

/// The plugin.
pub struct Chain<'s>(pub &'s Session);

/// The type that this plugin goes by.
const TYPE: &str = "outrigger";

/// Keys of our own configuration that the runtime adds and that every plugin of a list gets.
const FROM_RUNTIME: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

impl Plugin for Chain<'_> {
    type Conf = ChainConf;
    const ABOUT: &'static str = "outrigger: a list of plugins in one call";
    const DOC: Documentation = DOC;

    fn add(&self, call: &Call<'_, ChainConf>) -> Result<AddResult, Error> {
        let members = members(call)?;
        for (index, member) in members.iter().enumerate() {
            let found = member.delegate(call, None).and_then(|delegate| delegate.look_up());
            found.map_err(|error| error.during(format_args!("{} (plugins[{index}])", member.kind)))?;
        }
        let gathering = self.0.gather_rules();
        let mut previous = call.net.prev_result.clone();
        for (index, member) in members.iter().enumerate() {
            let added = member.delegate(call, previous.as_ref()).and_then(|delegate| {
                self.settle_before(delegate.is_builtin()?)?;
                delegate.add()
            });
            match added {
                Ok(result) => previous = Some(result),
                Err(error) => {
                    drop(gathering);
                    let error = error.during(format_args!("{} (plugins[{index}])", member.kind));
                    // If the first one fails since the attachment exists, that must not be taken away. What it did
                    // itself it undoes, or the runtime's DEL does.
                    let done = if index == 0 { &[] } else { &members[..=index] };
                    return Err(self.roll_back(call, done, previous.as_ref(), error));
                }
            }
        }
        if let Err(error) = gathering.commit() {
            return Err(self.roll_back(call, &members, previous.as_ref(), error));
        }
        Ok(previous.unwrap_or_default())
    }

    fn del(&self, call: &Call<'_, ChainConf>) -> Result<(), Error> {
        self.del_members(call, &members(call)?, call.net.prev_result.as_ref())
    }

    fn check(&self, call: &Call<'_, ChainConf>) -> Result<(), Error> {
        for member in members(call)? {
            let checked = member.delegate(call, call.net.prev_result.as_ref()).and_then(|delegate| delegate.check());
            checked.map_err(|error| error.during(member.kind))?;
        }
        Ok(())
    }

    fn gc(&self, call: &Call<'_, ChainConf>, _: &[Attachment]) -> Result<(), Error> {
        self.take_away(&members(call)?, |member| member.delegate(call, None), Delegate::gc)
    }

    fn status(&self, call: &Call<'_, ChainConf>) -> Result<(), Error> {
        for member in members(call)? {
            let ready = member.delegate(call, None).and_then(|delegate| delegate.status());
            ready.map_err(|error| error.during(member.kind))?;
        }
        Ok(())
    }
}

impl Chain<'_> {
    /// Before a plugin is called: another's program acts on the host by itself, and must find in force what was planned.
    fn settle_before(&self, own: bool) -> Result<(), Error> {
        if own { Ok(()) } else { self.0.commit_gathered() }
    }

    /// Undoes what the members of a failed ADD did, by their own DEL. Gives the error of the ADD; what failed now is in
    /// its details.
    fn roll_back(
        &self,
        call: &Call<'_, ChainConf>,
        done: &[Member<'_>],
        previous: Option<&AddResult>,
        mut error: Error,
    ) -> Error {
        if let Err(undoing) = self.del_members(call, done, previous) {
            let undoing = format!("undoing it failed too: {undoing}");
            error.details = if error.details.is_empty() { undoing } else { format!("{}; {undoing}", error.details) };
        }
        error
    }

    /// DEL of these members.
    fn del_members(
        &self,
        call: &Call<'_, ChainConf>,
        members: &[Member<'_>],
        previous: Option<&AddResult>,
    ) -> Result<(), Error> {
        self.take_away(members, |member| member.delegate(call, previous), Delegate::del)
    }

    /// Has these members take away what is theirs, in reverse. One whose rules cannot be removed must not keep those of the
    /// others: then each is called again by itself.
    fn take_away<'c>(
        &self,
        members: &[Member<'_>],
        delegate: impl Fn(&Member<'_>) -> Result<Delegate<'c>, Error>,
        command: impl Fn(&Delegate<'c>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let each = || {
            let mut errors = Errors::new();
            for member in members.iter().rev() {
                let taken = delegate(member).and_then(|delegate| {
                    self.settle_before(delegate.is_builtin()?)?;
                    command(&delegate)
                });
                errors.push(taken.map_err(|error| error.during(member.kind)));
            }
            errors.finish()
        };
        let gathering = self.0.gather_rules();
        let taken = each();
        if gathering.commit().and(taken).is_ok() { Ok(()) } else { each() }
    }
}

/// One plugin of the chain.
struct Member<'a> {
    kind: &'a str,
    object: &'a Map,
}

/// The plugins of the chain, their configurations checked before the first is called.
fn members<'a>(call: &'a Call<'_, ChainConf>) -> Result<Vec<Member<'a>>, Error> {
    let plugins = &call.conf.plugins;
    if plugins.is_empty() {
        return Err(Error::config("plugins is empty: give outrigger the plugins of the list"));
    }
    let member = |(index, object): (usize, &'a Map)| match conf::lookup(object, "type").and_then(Value::as_str) {
        Some(TYPE) => Err(Error::config(format!("plugins[{index}] is of type outrigger again: put its plugins here"))),
        Some(kind) if !kind.is_empty() => Ok(Member { kind, object }),
        _ => Err(Error::config(format!("plugins[{index}] has no type: give it the name of a plugin"))),
    };
    plugins.iter().enumerate().map(member).collect()
}

impl Member<'_> {
    /// The plugin with the configuration that a runtime would give it.
    fn delegate<'c>(&self, call: &Call<'c, ChainConf>, previous: Option<&AddResult>) -> Result<Delegate<'c>, Error> {
        let version = call.net.cni_version;
        let mut config = self.object.clone();
        config.insert("name".into(), json!(call.net.name));
        config.insert("cniVersion".into(), json!(version.as_str()));
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.to_value(version)?);
        }
        let values = capability_values(self.object, &call.net.runtime_config);
        if !values.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(values));
        }
        if !call.net.args.is_empty() && !config.contains_key("args") {
            config.insert("args".into(), Value::Object(call.net.args.clone()));
        }
        for key in FROM_RUNTIME {
            if let Some(value) = call.config().get(key) {
                config.insert(key.into(), value.clone());
            }
        }
        Ok(call.delegate(self.kind, config))
    }
}

/// The values for the capabilities that a plugin has.
fn capability_values(plugin: &Map, values: &Map) -> Map {
    let Some(capabilities) = conf::lookup(plugin, "capabilities").and_then(Value::as_object) else { return Map::new() };
    let wanted = |name: &String| capabilities.get(name).and_then(Value::as_bool) == Some(true);
    values.iter().filter(|(name, _)| wanted(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

const DOC: Documentation = Documentation {
    add: "Looks whether all plugins are there. Calls ADD of each in order, as a runtime would: with the name and version of the list, the result of the \
          plugin before, and the values for its own `capabilities`. The result is that of the last. The rules of all \
          plugins take effect together at the end. If one after the first fails, DEL is called for it and those before \
          it, in reverse, so that nothing stays. A plugin that is not of this program is executed; rules that were planned before it take \
          effect before.",
    del: "Calls DEL of each plugin in reverse, and goes on after errors.",
    check: "Calls CHECK of each plugin in order.",
    gc: "Calls GC of each plugin in reverse, as DEL, and goes on after errors.",
    status: "Asks each plugin in order; the first that is not ready gives the error.",
    capabilities: &[("any", "Those of the plugins in `plugins`, which must be named at this plugin too.")],
    args: &[],
    example: r#"{
    "cniVersion": "1.1.0",
    "name": "mynet",
    "plugins": [
        {
            "type": "outrigger",
            "capabilities": { "portMappings": true, "bandwidth": true },
            "plugins": [
                {
                    "type": "bridge",
                    "isGateway": true,
                    "ipMasq": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                        "routes": [{ "dst": "0.0.0.0/0" }]
                    }
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
                { "type": "bandwidth", "capabilities": { "bandwidth": true } }
            ]
        }
    ]
}"#,
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::capability_values;

    #[test]
    fn values_go_where_they_are_wanted() {
        let plugin = json!({ "type": "portmap", "capabilities": { "portMappings": true, "mac": false } });
        let values = json!({ "portMappings": [1], "mac": "x", "bandwidth": {} });
        let chosen = capability_values(plugin.as_object().unwrap(), values.as_object().unwrap());
        assert_eq!(json!(chosen), json!({ "portMappings": [1] }));
        assert!(capability_values(json!({}).as_object().unwrap(), values.as_object().unwrap()).is_empty());
    }
}
