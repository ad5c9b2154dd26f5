//! Plugins called as a runtime calls them: ours in this process, the originals as programs.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use outrigger_cni_sdk::{DynPlugin, run};
use serde_json::Value;

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    pub(crate) command: &'static str,
    pub(crate) id: String,
    pub(crate) netns: String,
    pub(crate) args: String,
    pub(crate) config: Value,
}

/// What came of a call: the result, or the error.
pub(crate) type Outcome = Result<Value, Value>;

impl Invocation {
    pub(crate) fn new(command: &'static str, id: &str, config: Value) -> Self {
        Self { command, id: id.to_owned(), netns: "/run/netns/none".to_owned(), args: String::new(), config }
    }

    pub(crate) fn args(mut self, args: &str) -> Self {
        self.args = args.to_owned();
        self
    }

    fn variables(&self) -> [(&'static str, String); 6] {
        [
            ("CNI_COMMAND", self.command.to_owned()),
            ("CNI_CONTAINERID", self.id.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_ARGS", self.args.clone()),
            ("CNI_PATH", "/usr/lib/cni".to_owned()),
        ]
    }

    /// Of our plugin.
    pub(crate) fn ours(&self, plugin: &dyn DynPlugin) -> Outcome {
        let variables = self.variables();
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        let mut stdout = Vec::new();
        let config = self.config.to_string();
        let code = run(plugin, &(), &variable, &mut config.as_bytes(), &mut stdout, &mut Vec::new());
        let value = if stdout.is_empty() { Value::Null } else { serde_json::from_slice(&stdout).unwrap() };
        if code == 0 { Ok(value) } else { Err(value) }
    }

    /// Of the original; see [`original`].
    pub(crate) fn theirs(&self, plugin: &PathBuf) -> Outcome {
        let mut child = Command::new(plugin)
            .env_clear()
            .envs(self.variables())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(self.config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() { Ok(value) } else { Err(value) }
    }
}

/// Debian's original plugin of a name, if it is installed.
pub(crate) fn original(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from("/usr/lib/cni").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: no {} (install containernetworking-plugins)", path.display());
    None
}

/// Fails unless the outcomes are the same: both refused, or the same result but for an empty `dns`, which newer and older
/// originals print or leave out.
pub(crate) fn same(ours: &Outcome, theirs: &Outcome, what: &Invocation) {
    let strip = |outcome: &Outcome| {
        let mut value = outcome.clone().ok()?;
        if value["dns"].as_object().is_some_and(serde_json::Map::is_empty) {
            value.as_object_mut()?.remove("dns");
        }
        Some(value)
    };
    assert_eq!(strip(ours), strip(theirs), "{what:?}\nours: {ours:?}\ntheirs: {theirs:?}");
}
