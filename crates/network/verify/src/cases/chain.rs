//! Chained plugins and `prevResult`, and many containers at once.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use super::lifecycle::without_result;
use super::{Template, all, ipam_plugins, meta_plugins, template};
use crate::result::addresses;
use crate::scene::{Attachment, Scene, Subject};

use Level::{Must, Should};

/// The cases.
pub(super) const TEMPLATES: &[Template] = &[
    template(
        "chain/result-is-passed-on",
        "3 Execution",
        Must,
        "a chained plugin passes on addresses, routes and DNS, and appends interfaces only",
        meta_plugins,
        chain_passes,
    ),
    template(
        "chain/without-result",
        "3 Execution",
        Must,
        "a chained plugin fails ADD without prevResult",
        meta_plugins,
        chain_without,
    ),
    template(
        "chain/null-result",
        "3 Execution",
        Must,
        "a chained plugin fails ADD with a prevResult of null",
        meta_plugins,
        |subject| chain_bad(subject, &Value::Null),
    ),
    template(
        "chain/result-is-a-text",
        "3 Execution",
        Must,
        "a prevResult that is no object is an error",
        meta_plugins,
        |subject| chain_bad(subject, &json!("result")),
    ),
    template(
        "chain/result-has-bad-address",
        "3 Execution",
        Must,
        "a prevResult with an address that is none is an error",
        meta_plugins,
        |subject| chain_bad(subject, &json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.0.0.300/24" }] })),
    ),
    template(
        "chain/unknown-keys-in-result",
        "3 Execution",
        Should,
        "keys in prevResult that a plugin does not know are no error",
        meta_plugins,
        chain_unknown,
    ),
    template(
        "concurrency/containers-at-once",
        "2 Parameters",
        Must,
        "eight containers can be added and deleted at once",
        all,
        at_once,
    ),
];

fn chain_passes(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    let dns = json!({ "nameservers": ["192.0.2.53"], "domain": "d.example", "search": ["s.example"], "options": ["ndots:2"] });
    attachment.config["prevResult"]["dns"] = dns;
    let before = attachment.config["prevResult"].clone();
    let after = scene.add(&attachment)?;
    if addresses(&before) != addresses(&after) {
        return Err(Unmet::fail("the addresses are not those of prevResult")
            .with("before", &before)
            .with("after", &after));
    }
    for key in ["dns", "ips"] {
        if before[key] != after[key] {
            return Err(Unmet::fail(format!("{key} was changed")).with("before", &before).with("after", &after));
        }
    }
    // A chained plugin may add routes of its own; to move routes is what sbr is for.
    let routes = |result: &Value| result["routes"].as_array().cloned().unwrap_or_default();
    if subject.profile.name != "sbr" && !routes(&after).starts_with(&routes(&before)) {
        return Err(Unmet::fail("routes were changed or inserted").with("before", &before).with("after", &after));
    }
    // A later version of the specification may say more about an interface, such as its MTU.
    let interfaces = |result: &Value| -> Vec<[Value; 3]> {
        let of = |interface: &Value| ["name", "mac", "sandbox"].map(|key| interface[key].clone());
        result["interfaces"].as_array().into_iter().flatten().map(of).collect()
    };
    let (old, new) = (interfaces(&before), interfaces(&after));
    if new.starts_with(&old) {
        return Ok(());
    }
    Err(Unmet::fail("interfaces were changed or inserted").with("before", &before).with("after", &after))
}

fn chain_without(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    without_result(&mut attachment);
    scene.add_fails(&attachment).map(drop)
}

fn chain_bad(subject: &Arc<Subject>, result: &Value) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.config["prevResult"] = result.clone();
    scene.add_fails(&attachment).map(drop)
}

fn chain_unknown(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.config["prevResult"]["x.y/z"] = json!({ "a": 1 });
    attachment.config["prevResult"]["interfaces"][0]["x.y/z"] = json!([1]);
    let result = scene.add(&attachment)?;
    scene.del(&attachment, &result)
}

fn at_once(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let mut attachments = Vec::new();
    for number in 0..8 {
        let id = format!("p{number}");
        let address = format!("10.77.0.{}/24", 20 + number);
        scene.ipam_hands_out(&format!("result.{id}"), &[(&address, "10.77.0.1", None)], &[("0.0.0.0/0", "")])?;
        attachments.push(scene.attachment(&id)?);
    }
    let before = scene.host.inventory()?;
    let each = |work: &(dyn Fn(&Attachment) -> Result<Value, Unmet> + Sync)| -> Result<Vec<Value>, Unmet> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = attachments.iter().map(|attachment| scope.spawn(move || work(attachment))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Value, Unmet>>| {
                thread.join().unwrap_or_else(|_| Err(Unmet::fail("a thread of the suite panicked")))
            };
            threads.into_iter().map(join).collect()
        })
    };
    let results = each(&|attachment| scene.add(attachment))?;
    if ipam_plugins(subject) && subject.profile.name != "static" {
        let mut all: Vec<_> = results.iter().flat_map(addresses).collect();
        all.sort();
        let count = all.len();
        all.dedup();
        if all.len() != count {
            return Err(Unmet::fail(format!("an address was handed out twice: {results:?}")));
        }
    }
    for (attachment, result) in attachments.iter().zip(&results) {
        scene.check(attachment, result)?.success()?;
    }
    each(&|attachment| {
        let result = results[attachments.iter().position(|other| other.id == attachment.id).unwrap_or(0)].clone();
        scene.del(attachment, &result).map(|()| Value::Null)
    })?;
    scene.host_is(&before)
}
