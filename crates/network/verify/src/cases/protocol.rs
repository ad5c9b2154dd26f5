//! The protocol itself: parameters, versions, standard input and output, errors. No ADD succeeds here.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use super::{Template, all, template};
use crate::call::Call;
use crate::host::Container;
use crate::result::at_least;
use crate::scene::{Attachment, NETWORK, Scene, Subject};

use Level::{Must, Should};

const PARAMETERS: &str = "2 Parameters";
const ERRORS: &str = "5 Error";
const FORMAT: &str = "1 Network configuration format";

/// The cases.
pub(super) const TEMPLATES: &[Template] = &[
    template(
        "parameters/containerid-missing",
        PARAMETERS,
        Must,
        "ADD without CNI_CONTAINERID is error 4, which names it",
        all,
        |subject| missing(subject, "ADD", "CNI_CONTAINERID"),
    ),
    template(
        "parameters/netns-missing",
        PARAMETERS,
        Must,
        "ADD without CNI_NETNS is error 4, which names it",
        all,
        |subject| missing(subject, "ADD", "CNI_NETNS"),
    ),
    template(
        "parameters/ifname-missing",
        PARAMETERS,
        Must,
        "ADD without CNI_IFNAME is error 4, which names it",
        all,
        |subject| missing(subject, "ADD", "CNI_IFNAME"),
    ),
    template(
        "parameters/path-missing",
        PARAMETERS,
        Should,
        "ADD without CNI_PATH is error 4, which names it",
        all,
        |subject| missing(subject, "ADD", "CNI_PATH"),
    ),
    template(
        "parameters/del-containerid-missing",
        PARAMETERS,
        Must,
        "DEL without CNI_CONTAINERID is error 4, which names it",
        all,
        |subject| missing(subject, "DEL", "CNI_CONTAINERID"),
    ),
    template(
        "parameters/del-ifname-missing",
        PARAMETERS,
        Must,
        "DEL without CNI_IFNAME is error 4, which names it",
        all,
        |subject| missing(subject, "DEL", "CNI_IFNAME"),
    ),
    template(
        "parameters/check-netns-missing",
        PARAMETERS,
        Must,
        "CHECK without CNI_NETNS is error 4, which names it",
        all,
        |subject| missing(subject, "CHECK", "CNI_NETNS"),
    ),
    template(
        "parameters/all-missing-are-named",
        PARAMETERS,
        Should,
        "one error names every missing parameter",
        all,
        all_missing,
    ),
    template(
        "parameters/containerid-invalid",
        PARAMETERS,
        Must,
        "a container id with a path in it is error 4",
        all,
        |subject| invalid(subject, "CNI_CONTAINERID", &["../x", "a/b", "-a", ".", "a b"]),
    ),
    template(
        "parameters/ifname-invalid",
        PARAMETERS,
        Must,
        "an interface name that Linux cannot have is error 4",
        all,
        |subject| invalid(subject, "CNI_IFNAME", &["sixteen-bytes-xx", "a/b", ".", "..", "a b", "a:b"]),
    ),
    template(
        "parameters/netns-nowhere",
        PARAMETERS,
        Must,
        "ADD into a namespace that is not there fails",
        all,
        netns_nowhere,
    ),
    template(
        "parameters/netns-is-no-namespace",
        PARAMETERS,
        Must,
        "ADD into a file that is no network namespace fails",
        touches_netns,
        netns_is_a_file,
    ),
    template("parameters/command-unknown", PARAMETERS, Must, "an unknown command is error 4", all, |subject| {
        command(subject, "FROBNICATE")
    }),
    template(
        "parameters/command-in-lower-case",
        PARAMETERS,
        Should,
        "a command in lower case is error 4",
        all,
        |subject| command(subject, "add"),
    ),
    template(
        "VERSION/answers",
        "2 VERSION",
        Must,
        "VERSION prints cniVersion and supportedVersions",
        all,
        version_answers,
    ),
    template(
        "VERSION/needs-no-parameters",
        "2 VERSION",
        Must,
        "VERSION needs no parameter but the command",
        all,
        version_alone,
    ),
    template(
        "VERSION/empty-stdin",
        "2 VERSION",
        Should,
        "VERSION works with an empty standard input",
        all,
        |subject| version_with(subject, b""),
    ),
    template("VERSION/any-stdin", "2 VERSION", Should, "VERSION does not look at standard input", all, |subject| {
        version_with(subject, b"{\"cniVersion\": 7, ")
    }),
    template(
        "VERSION/old-probe",
        "2 VERSION",
        Must,
        "VERSION works with the dummy parameters of old runtimes",
        all,
        version_probe,
    ),
    template(
        "VERSION/lists-released-versions-once",
        "2 VERSION",
        Must,
        "supportedVersions are released versions, each once",
        all,
        version_list,
    ),
    template(
        "VERSION/newest-listed",
        "2 VERSION",
        Should,
        "cniVersion of the answer is one of the list",
        all,
        version_in_list,
    ),
    template("versions/unknown", FORMAT, Must, "a configuration of an unknown version is error 1", all, |subject| {
        bad_version(subject, "9.9.9")
    }),
    template(
        "versions/malformed",
        FORMAT,
        Must,
        "a configuration whose version is no version is error 1 or 6",
        all,
        |subject| bad_version(subject, "new"),
    ),
    template("versions/prerelease", FORMAT, Must, "a version that was never released is error 1", all, |subject| {
        bad_version(subject, "0.3.9")
    }),
    template("versions/no-string", FORMAT, Must, "a version that is a number is error 6", all, version_is_number),
    template(
        "versions/error-names-what-is-supported",
        ERRORS,
        Should,
        "error 1 names the wanted and the supported versions",
        all,
        version_error_text,
    ),
    template(
        "execution/stdin-empty",
        "2 Overview",
        Must,
        "ADD with an empty standard input is error 6",
        all,
        |subject| bad_stdin(subject, b"", &[6]),
    ),
    template(
        "execution/stdin-junk",
        "2 Overview",
        Must,
        "ADD with junk for a configuration is error 6",
        all,
        |subject| bad_stdin(subject, b"\xff\xfe junk", &[6]),
    ),
    template(
        "execution/stdin-truncated",
        "2 Overview",
        Must,
        "ADD with half a configuration is error 6",
        all,
        |subject| bad_stdin(subject, br#"{"cniVersion":"1.0.0","name":"x","#, &[6]),
    ),
    template("execution/stdin-list", "2 Overview", Must, "ADD with a JSON list is error 6", all, |subject| {
        bad_stdin(subject, b"[]", &[6])
    }),
    template("execution/stdin-text", "2 Overview", Must, "ADD with a JSON string is error 6", all, |subject| {
        bad_stdin(subject, b"\"x\"", &[6])
    }),
    template(
        "execution/stdin-deep",
        "2 Overview",
        Must,
        "ADD with brackets nested 200,000 deep is an error, no crash",
        all,
        stdin_deep,
    ),
    template(
        "execution/del-stdin-junk",
        "2 Overview",
        Must,
        "DEL with junk for a configuration is error 6",
        all,
        bad_del,
    ),
    template("execution/name-missing", FORMAT, Must, "ADD without a network name is error 7", all, |subject| {
        bad_name(subject, &Value::Null)
    }),
    template("execution/name-empty", FORMAT, Must, "ADD with an empty network name is error 7", all, |subject| {
        bad_name(subject, &json!(""))
    }),
    template("execution/name-invalid", FORMAT, Must, "ADD with a path for a network name is error 7", all, |subject| {
        bad_name(subject, &json!("../x"))
    }),
    template(
        "execution/name-no-string",
        FORMAT,
        Must,
        "ADD with a number for a network name is error 6 or 7",
        all,
        |subject| bad_name(subject, &json!(7)),
    ),
    template(
        "errors/on-stdout-only",
        ERRORS,
        Must,
        "an error is one JSON object on standard output, and the exit code is not 0",
        all,
        error_on_stdout,
    ),
    template("errors/has-cniversion", ERRORS, Should, "an error object has cniVersion", all, error_has_version),
    template("errors/one-line", ERRORS, Should, "msg of an error is one line", all, error_one_line),
    template("GC/old-configuration", "2 GC", Must, "GC with a configuration before 1.1.0 is error 1", all, |subject| {
        old_config(subject, "GC")
    }),
    template(
        "STATUS/old-configuration",
        "2 STATUS",
        Must,
        "STATUS with a configuration before 1.1.0 is error 1",
        all,
        |subject| old_config(subject, "STATUS"),
    ),
    template(
        "CHECK/old-configuration",
        "2 CHECK",
        Must,
        "CHECK with a configuration before 0.4.0 is error 1",
        all,
        check_old,
    ),
];

fn touches_netns(subject: &Subject) -> bool {
    subject.profile.kind != crate::profile::Kind::Ipam
}

/// Calls that are to fail use no namespace that is really there.
fn attachment(scene: &Scene) -> Attachment {
    let container = Container { name: "none".into(), path: "/run/netns/none".into() };
    let ifname = scene.subject.profile.ifname.to_owned();
    Attachment { id: "c1".into(), ifname, container, config: scene.config(), args: None }
}

fn bare(subject: &Arc<Subject>) -> Result<Scene, Unmet> {
    Scene::bare(subject, subject.newest())
}

fn missing(subject: &Arc<Subject>, command: &str, name: &str) -> Verdict {
    let scene = bare(subject)?;
    let mut call = scene.call(command, &attachment(&scene));
    call.environment.remove(name);
    let output = call.run()?;
    let error = output.error_code(&[4])?;
    if error.msg.contains(name) || error.details.contains(name) {
        return Ok(());
    }
    Err(output.failure(format!("the error does not name {name}: {}", error.msg)))
}

fn all_missing(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    let output = Call::new(&scene.binary(), "ADD").config(&scene.config()).run()?;
    let error = output.error_code(&[4])?;
    let text = format!("{} {}", error.msg, error.details);
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        if !text.contains(name) {
            return Err(output.failure(format!("the error does not name {name}: {text}")));
        }
    }
    Ok(())
}

fn invalid(subject: &Arc<Subject>, name: &str, values: &[&str]) -> Verdict {
    let scene = bare(subject)?;
    for value in values {
        let output = scene.call("ADD", &attachment(&scene)).env(name, *value).run()?;
        output.error_code(&[4])?;
    }
    Ok(())
}

fn netns_nowhere(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    if !touches_netns(subject) {
        return Err(Unmet::skip("an IPAM plugin need not look at the namespace"));
    }
    let mut attachment = attachment(&scene);
    if subject.profile.kind == crate::profile::Kind::Meta {
        // A result must be there for the plugin to get as far as the namespace.
        let container = scene.host.container("other")?;
        attachment.config["prevResult"] = scene.upstream(&container, "eth0")?;
        if ["portmap", "firewall"].contains(&subject.profile.name) {
            return Err(Unmet::skip("this plugin works on the host only"));
        }
    }
    scene.add_fails(&attachment).map(drop)
}

fn netns_is_a_file(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    let mut attachment = attachment(&scene);
    if subject.profile.kind == crate::profile::Kind::Meta {
        let container = scene.host.container("other")?;
        attachment.config["prevResult"] = scene.upstream(&container, "eth0")?;
        if ["portmap", "firewall"].contains(&subject.profile.name) {
            return Err(Unmet::skip("this plugin works on the host only"));
        }
    }
    fs_err::write("/run/netns/none", "not a namespace")?;
    scene.add_fails(&attachment).map(drop)
}

fn command(subject: &Arc<Subject>, command: &str) -> Verdict {
    let scene = bare(subject)?;
    scene.call(command, &attachment(&scene)).run()?.error_code(&[4]).map(drop)
}

fn version_of(call: &Call) -> Result<Value, Unmet> {
    let output = call.run()?;
    let answer = output.result()?;
    let list = answer["supportedVersions"].as_array();
    if !answer["cniVersion"].is_string() {
        return Err(output.failure("the answer has no cniVersion"));
    }
    match list {
        Some(list) if !list.is_empty() && list.iter().all(Value::is_string) => Ok(answer),
        _ => Err(output.failure("the answer has no list supportedVersions of texts")),
    }
}

fn version_call(scene: &Scene) -> Call {
    Call::new(&scene.binary(), "VERSION").config(&json!({ "cniVersion": scene.version }))
}

fn version_answers(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    version_of(&version_call(&scene).env("CNI_PATH", scene.cni_path())).map(drop)
}

fn version_alone(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    version_of(&version_call(&scene)).map(drop)
}

fn version_with(subject: &Arc<Subject>, stdin: &[u8]) -> Verdict {
    let scene = bare(subject)?;
    version_of(&version_call(&scene).stdin(stdin)).map(drop)
}

fn version_probe(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    let call = version_call(&scene).env("CNI_NETNS", "dummy").env("CNI_IFNAME", "dummy");
    version_of(&call.env("CNI_CONTAINERID", "dummy").env("CNI_PATH", "dummy")).map(drop)
}

fn version_list(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    let answer = version_of(&version_call(&scene))?;
    let mut seen = std::collections::BTreeSet::new();
    for version in answer["supportedVersions"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !at_least(version, "0.1.0") {
            return Err(Unmet::fail(format!("{version} was never released")));
        }
        if !seen.insert(version.to_owned()) {
            return Err(Unmet::fail(format!("{version} is listed twice")));
        }
    }
    Ok(())
}

fn version_in_list(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    let answer = version_of(&version_call(&scene))?;
    let listed = answer["supportedVersions"].as_array().is_some_and(|list| list.contains(&answer["cniVersion"]));
    if listed { Ok(()) } else { Err(Unmet::fail(format!("{} is not in the list", answer["cniVersion"]))) }
}

fn bad_version(subject: &Arc<Subject>, version: &str) -> Verdict {
    let scene = bare(subject)?;
    let mut attachment = attachment(&scene);
    attachment.config["cniVersion"] = json!(version);
    let codes: &[u64] = if version.contains('.') { &[1] } else { &[1, 6] };
    scene.call("ADD", &attachment).run()?.error_code(codes).map(drop)
}

fn version_is_number(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    let mut attachment = attachment(&scene);
    attachment.config["cniVersion"] = json!(1);
    scene.call("ADD", &attachment).run()?.error_code(&[6]).map(drop)
}

fn version_error_text(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    let mut attachment = attachment(&scene);
    attachment.config["cniVersion"] = json!("9.9.9");
    let output = scene.call("ADD", &attachment).run()?;
    let error = output.error_code(&[1])?;
    let text = format!("{} {}", error.msg, error.details);
    if text.contains("9.9.9") && text.contains(subject.newest()) {
        return Ok(());
    }
    Err(output.failure(format!("the error names not both 9.9.9 and {}: {text}", subject.newest())))
}

fn bad_stdin(subject: &Arc<Subject>, stdin: &[u8], codes: &[u64]) -> Verdict {
    let scene = bare(subject)?;
    scene.call("ADD", &attachment(&scene)).stdin(stdin).run()?.error_code(codes).map(drop)
}

fn stdin_deep(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    let config = format!("{{\"cniVersion\":\"{}\",\"name\":\"{NETWORK}\",\"x\":{}", scene.version, "[".repeat(200_000));
    scene.call("ADD", &attachment(&scene)).stdin(config).run()?.error().map(drop)
}

fn bad_del(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    scene.call("DEL", &attachment(&scene)).stdin("junk").run()?.error_code(&[6]).map(drop)
}

fn bad_name(subject: &Arc<Subject>, name: &Value) -> Verdict {
    let scene = bare(subject)?;
    let mut attachment = attachment(&scene);
    match (name, attachment.config.as_object_mut()) {
        (Value::Null, Some(config)) => drop(config.remove("name")),
        (name, Some(config)) => drop(config.insert("name".into(), name.clone())),
        _ => {}
    }
    let codes: &[u64] = if name.is_number() { &[6, 7] } else { &[7] };
    scene.call("ADD", &attachment).run()?.error_code(codes).map(drop)
}

/// A call that every plugin must refuse.
fn refused(scene: &Scene) -> Result<crate::call::Output, Unmet> {
    let mut attachment = attachment(scene);
    attachment.config["cniVersion"] = json!("9.9.9");
    scene.call("ADD", &attachment).run()
}

fn error_on_stdout(subject: &Arc<Subject>) -> Verdict {
    refused(&bare(subject)?)?.error().map(drop)
}

fn error_has_version(subject: &Arc<Subject>) -> Verdict {
    let output = refused(&bare(subject)?)?;
    match output.error()?.version {
        Some(_) => Ok(()),
        None => Err(output.failure("the error object has no cniVersion")),
    }
}

fn error_one_line(subject: &Arc<Subject>) -> Verdict {
    let output = refused(&bare(subject)?)?;
    if output.error()?.msg.contains('\n') { Err(output.failure("msg has several lines")) } else { Ok(()) }
}

fn old_config(subject: &Arc<Subject>, command: &str) -> Verdict {
    if !subject.supports("1.1.0") {
        return Err(Unmet::skip("the plugin does not say that it supports version 1.1.0"));
    }
    let scene = bare(subject)?;
    let mut config = scene.config();
    config["cniVersion"] = json!("1.0.0");
    config["cni.dev/valid-attachments"] = json!([]);
    let call = Call::new(&scene.binary(), command).env("CNI_PATH", scene.cni_path()).config(&config);
    call.run()?.error_code(&[1]).map(drop)
}

fn check_old(subject: &Arc<Subject>) -> Verdict {
    let scene = bare(subject)?;
    let Some(old) = ["0.3.1", "0.3.0"].iter().find(|old| subject.supports(old)) else {
        return Err(Unmet::skip("the plugin supports no version from before CHECK"));
    };
    let mut attachment = attachment(&scene);
    attachment.config["cniVersion"] = json!(old);
    scene.call("CHECK", &attachment).run()?.error_code(&[1]).map(drop)
}
