//! A plugin that can be wrong in many ways, to see that the suite notices. Its flaw is its file name: `sound` has none,
//! `del-fails-twice` fails a second DEL, and so on. With `ipam` in its configuration it hands out addresses, with `peer` it
//! makes an interface, otherwise it is a chained plugin that passes on what it got.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use fs_err as fs;
use serde_json::{Map, Value, json};

const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

struct Refusal {
    code: u64,
    msg: String,
}

type Answer = Result<Option<Value>, Refusal>;

fn refuse<T>(code: u64, msg: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, msg: msg.into() })
}

fn io(error: std::io::Error) -> Refusal {
    Refusal { code: 5, msg: error.to_string() }
}

struct Call {
    flaw: String,
    command: String,
    id: String,
    ifname: String,
    netns: String,
    config: Value,
    version: String,
}

fn main() -> ExitCode {
    let flaw = std::env::args_os().next().map(PathBuf::from);
    let flaw =
        flaw.and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned())).unwrap_or_default();
    let mut out = std::io::stdout();
    if flaw == "talks-on-stdout" {
        let _ = writeln!(out, "starting");
    }
    match run(&flaw) {
        Ok(result) => {
            if let Some(result) = result {
                let _ = write!(out, "{result}");
            } else if flaw == "del-prints" {
                let _ = write!(out, "{{}}");
            }
            ExitCode::SUCCESS
        }
        Err(Refusal { code, msg }) => {
            let code = match flaw.as_str() {
                "error-code-zero" => 0,
                "all-errors-are-999" => 999,
                _ => code,
            };
            let error = json!({ "cniVersion": "1.1.0", "code": code, "msg": msg });
            let error = if flaw == "error-without-code" { json!({ "error": msg }) } else { error };
            if flaw == "error-on-stderr" {
                let _ = write!(std::io::stderr(), "{error}");
            } else {
                let _ = write!(out, "{error}");
            }
            if flaw == "error-exits-zero" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

fn run(flaw: &str) -> Answer {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let command = variable("CNI_COMMAND");
    if command == "VERSION" {
        return match flaw {
            "no-version" => refuse(4, "unknown CNI_COMMAND: VERSION"),
            "version-without-list" => Ok(Some(json!({ "cniVersion": "1.1.0" }))),
            "version-lists-unreleased" => {
                Ok(Some(json!({ "cniVersion": "1.1.0", "supportedVersions": ["1.1.0", "2.0.0"] })))
            }
            _ => Ok(Some(json!({ "cniVersion": "1.1.0", "supportedVersions": VERSIONS }))),
        };
    }
    let wanted: &[&str] = match command.as_str() {
        "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
        "DEL" if flaw == "del-wants-netns" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
        "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
        "GC" | "STATUS" => &["CNI_PATH"],
        _ if flaw == "unknown-command-succeeds" => return Ok(None),
        other => return refuse(4, format!("unknown CNI_COMMAND: {other}")),
    };
    let missing: Vec<_> = wanted.iter().filter(|name| variable(name).is_empty()).copied().collect();
    if !missing.is_empty() && flaw != "parameters-unchecked" {
        return refuse(4, format!("required env variables {} missing", missing.join(", ")));
    }
    let (id, ifname) = (variable("CNI_CONTAINERID"), variable("CNI_IFNAME"));
    let good = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    let starts = id.chars().next().is_none_or(|c| c.is_ascii_alphanumeric());
    if (!good(&id) || !starts) && flaw != "any-container-id" {
        return refuse(4, format!("invalid container id {id:?}"));
    }
    if ifname.len() > 15 || ifname == "." || ifname == ".." || ifname.contains(['/', ':', ' ']) {
        return refuse(4, format!("invalid interface name {ifname:?}"));
    }
    let mut stdin = Vec::new();
    std::io::stdin().read_to_end(&mut stdin).map_err(io)?;
    let config: Value = match serde_json::from_slice(&stdin) {
        Ok(config @ Value::Object(_)) => lower_keys(config),
        _ if flaw == "junk-is-error-7" => return refuse(7, "bad configuration"),
        #[expect(clippy::panic, reason = "this is the flaw")]
        _ if flaw == "panics-on-junk" => panic!("cannot decode"),
        _ => return refuse(6, "the configuration is no JSON object"),
    };
    let version = match &config["cniversion"] {
        Value::String(version) => version.clone(),
        Value::Null => "0.1.0".to_owned(),
        _ => return refuse(6, "cniVersion is no string"),
    };
    if !VERSIONS.contains(&version.as_str()) && flaw != "any-version" {
        return refuse(1, format!("the configuration is of version {version}, supported are {}", VERSIONS.join(" ")));
    }
    let name = config["name"].as_str().unwrap_or_default();
    if name.is_empty() || !good(name) || name.starts_with('.') {
        return refuse(7, "invalid network name");
    }
    if command == "CHECK" && version.starts_with("0.3") {
        return refuse(1, "CHECK came with 0.4.0");
    }
    if (command == "GC" || command == "STATUS") && version != "1.1.0" {
        return refuse(1, format!("{command} came with 1.1.0"));
    }
    if flaw == "hangs-on-add" && command == "ADD" {
        loop {
            std::thread::park();
        }
    }
    let (ipam, main) = (config["ipam"].is_object(), config["peer"].is_string());
    let call = Call { flaw: flaw.to_owned(), command, id, ifname, netns: variable("CNI_NETNS"), config, version };
    match (ipam, main) {
        (true, _) => call.ipam(),
        (_, true) => call.main(),
        _ => call.chained(),
    }
}

/// Keys of the first two levels in lower case, as Go's decoder sees them.
fn lower_keys(config: Value) -> Value {
    let Value::Object(config) = config else { return config };
    config.into_iter().map(|(key, value)| (key.to_lowercase(), value)).collect::<Map<_, _>>().into()
}

impl Call {
    fn flaw(&self, flaw: &str) -> bool {
        self.flaw == flaw
    }

    fn ipam(&self) -> Answer {
        let directory = PathBuf::from("/var/lib/cni/flawed").join(self.config["name"].as_str().unwrap_or_default());
        fs::create_dir_all(&directory).map_err(io)?;
        let me = format!("{} {}", self.id, self.ifname);
        let mut mine = Vec::new();
        let mut all = Vec::new();
        for entry in fs::read_dir(&directory).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let owner = fs::read_to_string(&path).unwrap_or_default();
            if owner == me {
                mine.push(path.clone());
            }
            all.push((path, owner));
        }
        match self.command.as_str() {
            "ADD" => {
                if self.flaw("refuses-unknown-keys") && self.config.get("some.vendor/key").is_some() {
                    return refuse(2, "unknown key some.vendor/key");
                }
                if self.flaw("refuses-kubernetes-args") && std::env::var_os("CNI_ARGS").is_some() {
                    return refuse(4, "unknown args");
                }
                if !mine.is_empty() && !self.flaw("second-add-takes-more") {
                    return refuse(999, "this attachment has an address");
                }
                let result = self.ipam_add(&directory, &me)?;
                if self.flaw("leaks-with-bad-args") && std::env::var_os("CNI_ARGS").is_some() {
                    return refuse(4, "CNI_ARGS are no pairs");
                }
                if self.flaw("blames-others-for-bad-args") && std::env::var_os("CNI_ARGS").is_some() {
                    mine.push(directory.join(address_of(&result)));
                    mine.iter().try_for_each(fs::remove_file).map_err(io)?;
                    return refuse(999, "something went wrong");
                }
                Ok(Some(result))
            }
            "DEL" => {
                if mine.is_empty() && self.flaw("del-fails-twice") {
                    return refuse(999, "nothing to delete");
                }
                if self.flaw("del-wants-result") && self.config["prevresult"].is_null() {
                    return refuse(999, "prevResult is wanted");
                }
                if self.flaw("del-ignores-null-result") && self.config.get("prevresult") == Some(&Value::Null) {
                    return Ok(None);
                }
                if mine.is_empty() && self.flaw("del-litters") {
                    fs::write(directory.join("deleted"), "").map_err(io)?;
                }
                if self.flaw("del-without-netns-leaks") && !PathBuf::from(&self.netns).exists() {
                    return Ok(None);
                }
                if self.flaw("del-removes-all") {
                    mine = all.into_iter().map(|(path, _)| path).collect();
                }
                if !self.flaw("leaks-address") {
                    mine.iter().try_for_each(fs::remove_file).map_err(io)?;
                }
                Ok(None)
            }
            "CHECK" if mine.is_empty() && !self.flaw("check-always-succeeds") => refuse(999, "there is no address"),
            "CHECK" if self.flaw("check-changes") => {
                fs::write(directory.join("checked"), "").map(|()| None).map_err(io)
            }
            "GC" => {
                let valid: Vec<String> = self.config["cni.dev/valid-attachments"]
                    .as_array()
                    .ok_or(Refusal { code: 7, msg: "cni.dev/valid-attachments is missing".into() })?
                    .iter()
                    .map(|one| {
                        format!(
                            "{} {}",
                            one["containerID"].as_str().unwrap_or("?"),
                            one["ifname"].as_str().unwrap_or("?")
                        )
                    })
                    .collect();
                for (path, owner) in all {
                    let keep = self.flaw("gc-does-nothing") || valid.contains(&owner) && !self.flaw("gc-removes-all");
                    if !keep {
                        fs::remove_file(path).map_err(io)?;
                    }
                }
                Ok(None)
            }
            "STATUS" if self.flaw("status-fails") => refuse(50, "not today"),
            "STATUS" if self.flaw("status-prints") => Ok(Some(json!({ "ready": true }))),
            _ => Ok(None),
        }
    }

    fn ipam_add(&self, directory: &std::path::Path, me: &str) -> Result<Value, Refusal> {
        for last in 2..250 {
            let address = format!("10.99.0.{last}");
            let path = directory.join(&address);
            // The flaw: looking first, and creating then.
            let taken = if self.flaw("address-doubled") {
                let taken = last > 3;
                fs::write(&path, me).map_err(io)?;
                taken
            } else {
                let aside = directory.with_extension(format!("{}.{}", std::process::id(), last));
                fs::write(&aside, me).map_err(io)?;
                let linked = fs::hard_link(&aside, &path);
                fs::remove_file(&aside).map_err(io)?;
                linked.is_err()
            };
            if !taken {
                let mut ip = json!({ "address": format!("{address}/24") });
                if self.version.starts_with('0') && !self.flaw("result-in-wrong-form") {
                    ip["version"] = "4".into();
                }
                if self.flaw("address-without-length") {
                    ip["address"] = address.into();
                }
                if self.flaw("interface-out-of-range") {
                    ip["interface"] = 3.into();
                }
                let version = if self.flaw("wrong-version-in-result") { "1.1.0" } else { &self.version };
                return Ok(json!({ "cniVersion": version, "ips": [ip], "dns": {} }));
            }
        }
        refuse(999, "no address left")
    }

    /// A pair of which both ends are in the container, with an address.
    fn main(&self) -> Answer {
        let inside = |line: &str| {
            let mut command = std::process::Command::new("nsenter");
            command.arg(format!("--net={}", self.netns)).args(["--", "sh", "-ec", line]);
            command.output().is_ok_and(|output| output.status.success())
        };
        let link = &self.ifname;
        match self.command.as_str() {
            "ADD" => {
                let peer = self.config["peer"].as_str().unwrap_or_default();
                if !inside(&format!(
                    "ip link add {link} type veth peer name {peer}; ip addr add 10.99.1.2/24 dev {link}; ip link set {link} up"
                )) {
                    return refuse(999, "cannot make the interface");
                }
                let ip = json!({ "address": "10.99.1.2/24", "interface": 0 });
                let interface = json!({ "name": link, "sandbox": self.netns });
                Ok(Some(json!({ "cniVersion": self.version, "interfaces": [interface], "ips": [ip], "dns": {} })))
            }
            "DEL" => {
                inside(&format!("ip link del {link}"));
                Ok(None)
            }
            "CHECK" if !self.config["prevresult"].is_object() => refuse(7, "prevResult is missing"),
            "CHECK"
                if !self.flaw("check-always-succeeds")
                    && !inside(&format!("ip -o addr show dev {link} | grep -q 10.99.1.2/24")) =>
            {
                refuse(999, "the interface is not as it was")
            }
            _ => Ok(None),
        }
    }

    fn chained(&self) -> Answer {
        let previous = &self.config["prevresult"];
        if matches!(self.command.as_str(), "ADD" | "CHECK")
            && !previous.is_object()
            && !self.flaw("ignores-missing-result")
        {
            return refuse(7, "prevResult is missing: this plugin is for chains");
        }
        if previous.is_object() {
            let bad = |ip: &Value| {
                let address = ip["address"].as_str().unwrap_or_default();
                address.split('/').next().is_none_or(|ip| ip.parse::<std::net::IpAddr>().is_err())
            };
            let bad = previous["ips"].as_array().into_iter().flatten().any(bad);
            if bad && matches!(self.command.as_str(), "ADD" | "CHECK") {
                return refuse(6, "prevResult has an address that is none");
            }
        }
        if self.command == "ADD" && !PathBuf::from(&self.netns).join(".").exists() && !is_namespace(&self.netns) {
            return refuse(8, "CNI_NETNS is no network namespace");
        }
        if self.command == "GC" && self.config["cni.dev/valid-attachments"].is_null() {
            return refuse(7, "cni.dev/valid-attachments is missing");
        }
        if self.command != "ADD" {
            return Ok(None);
        }
        let mut result = previous.clone();
        match self.flaw.as_str() {
            "ignores-result" => result = json!({ "cniVersion": self.version, "ips": [], "interfaces": [] }),
            "changes-mac" => result["interfaces"][0]["mac"] = json!("02:00:00:00:00:01"),
            "changes-sandbox" => result["interfaces"][1]["sandbox"] = json!("/run/netns/other"),
            "drops-dns" => result["dns"] = json!({}),
            "inserts-interface" => {
                let mut interfaces = vec![json!({ "name": "x0" })];
                interfaces.extend(result["interfaces"].as_array().cloned().unwrap_or_default());
                result["interfaces"] = interfaces.into();
            }
            _ => {}
        }
        Ok(Some(result))
    }
}

fn address_of(result: &Value) -> &str {
    result["ips"][0]["address"].as_str().and_then(|address| address.split('/').next()).unwrap_or_default()
}

fn is_namespace(path: &str) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // Namespaces are files of a file system of their own, never empty directories' neighbours.
    match (fs::metadata(path), fs::metadata("/proc/self/ns/net")) {
        (Ok(file), Ok(own)) => file.dev() == own.dev(),
        _ => false,
    }
}
