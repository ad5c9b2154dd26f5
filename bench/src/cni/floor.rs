//! The floor: what is left when no process starts. Our plugins are called in this process, with a session of its own for
//! each call, so they send the same netlink messages; and the messages that a bridge attachment cannot do without are sent
//! by themselves.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use outrigger_cni_plugins::{Session, plugin};
use outrigger_cni_sdk::{Environment, Map, Version};
use outrigger_netlink::NetNs;
use outrigger_netlink::route::{Handle, LinkChange, NewAddress, NewLink, NewLinkKind, Route};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::Options;
use super::driver::{Attachment, Host, Sample, Target, create_netns, netns_path, plain, remove_netns};
use super::rows::{ROWS, Row};
use super::table::{Series, Table, time_ratio};

pub(crate) fn run(options: &Options, targets: &[Target]) -> Result<()> {
    let head = ["chain", "command", "processes", "this process", "CPU: processes", "messages alone"];
    let title = format!("Without starting processes, ours, N = {}: CPU / p50 / p99 in ms", options.n);
    let mut table = Table::new(title, head.map(str::to_owned).into());
    let chosen = |row: &&Row| !matches!(row.key, "loopback" | "masq-nft" | "portmap-nft" | "full-nft" | "fast-nft");
    for row in ROWS.iter().filter(chosen).filter(|row| options.wants_row(row.key)) {
        let mut started = measure(options, targets, row, &started)?;
        let mut inside = measure(options, targets, row, &in_process)?;
        let mut alone = if row.key == "bridge" { Some(messages(options)?) } else { None };
        for (number, command) in ["ADD", "DEL"].iter().enumerate() {
            let ratio = time_ratio(inside[number].cpu(), started[number].cpu());
            table.row(vec![
                if number == 0 { row.title.to_owned() } else { String::new() },
                (*command).to_owned(),
                started[number].cell(),
                inside[number].cell(),
                ratio,
                alone.as_mut().map_or_else(String::new, |alone| alone[number].cell()),
            ]);
        }
    }
    table.print();
    Ok(())
}

/// How a chain's command is run: with the result so far, giving the next.
type Caller = dyn Fn(&Attachment<'_>, &str, &Value) -> Result<(Sample, Value)>;

fn started(attachment: &Attachment<'_>, command: &str, result: &Value) -> Result<(Sample, Value)> {
    match command {
        "ADD" => attachment.add(&plain),
        _ => Ok((attachment.del(&plain, result)?, Value::Null)),
    }
}

fn in_process(attachment: &Attachment<'_>, command: &str, result: &Value) -> Result<(Sample, Value)> {
    let env = Environment::read(&|name: &str| {
        Some(match name {
            "CNI_COMMAND" => OsString::from(command),
            "CNI_CONTAINERID" => OsString::from(&attachment.id),
            "CNI_NETNS" => attachment.netns.clone().into_os_string(),
            "CNI_IFNAME" => OsString::from("eth0"),
            // Nothing is there, so IPAM is done in this process too.
            "CNI_PATH" => OsString::from("/run/bench"),
            _ => return None,
        })
    })?;
    let mut chain: Vec<&Value> = attachment.chain.iter().collect();
    if command != "ADD" {
        chain.reverse();
    }
    let configs: Vec<Map> = chain.iter().filter_map(|plugin| plugin.as_object().cloned()).collect();
    let mut previous = result.clone();
    let (begin, cpu) = (Instant::now(), cpu());
    for mut config in configs {
        config.insert("cniVersion".into(), "1.0.0".into());
        config.insert("name".into(), "bench".into());
        if !previous.is_null() {
            config.insert("prevResult".into(), previous.clone());
        }
        let session = Session::default();
        let name = config.get("type").and_then(Value::as_str).context("type")?.to_owned();
        let plugin = plugin(&name, &session).with_context(|| format!("there is no plugin {name}"))?;
        if let Some(added) = plugin.call(&env, &config, &session)? {
            previous = added.to_value(Version::V1_0_0)?;
        }
    }
    Ok((Sample { wall: begin.elapsed(), cpu: self::cpu().saturating_sub(cpu), error: None }, previous))
}

/// Time that this process used so far, all its threads together.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

fn measure(options: &Options, targets: &[Target], row: &Row, call: &Caller) -> Result<[Series; 2]> {
    let ours = targets.first().context("ours")?;
    let host = Host::new(&format!("floor-{}", row.key))?;
    host.enter()?;
    let mut series = <[Series; 2]>::default();
    for index in 0..=options.n {
        let attachment = Attachment::new(ours, &host, row, index);
        create_netns(&attachment.id)?;
        let (added, result) = call(&attachment, "ADD", &Value::Null)?;
        let (deleted, _) = call(&attachment, "DEL", &result)?;
        remove_netns(&attachment.id)?;
        // The first makes what all share.
        if index > 0 {
            series[0].push(&added);
            series[1].push(&deleted);
        }
    }
    Ok(series)
}

/// The least that attaches a container to a bridge, and detaches it: a pair of links, an address, two routes.
fn messages(options: &Options) -> Result<[Series; 2]> {
    let host = Host::new("floor-messages")?;
    host.enter()?;
    let here = Handle::open()?;
    here.create_link(&NewLink {
        name: "cni0",
        kind: NewLinkKind::Bridge { vlan_filtering: false },
        up: true,
        ..NewLink::default()
    })?;
    let bridge = here.link("cni0")?.index;
    let mut series = <[Series; 2]>::default();
    for _ in 0..options.n {
        create_netns("floor-container")?;
        let timed = |work: &dyn Fn() -> Result<()>| -> Result<Sample> {
            let (begin, before) = (Instant::now(), cpu());
            work()?;
            Ok(Sample { wall: begin.elapsed(), cpu: cpu().saturating_sub(before), error: None })
        };
        series[0].push(&timed(&|| attach(bridge))?);
        series[1].push(&timed(&|| Ok(Handle::open()?.delete_link("floor0")?))?);
        remove_netns("floor-container")?;
    }
    Ok(series)
}

fn attach(bridge: u32) -> Result<()> {
    let netns = NetNs::open(netns_path("floor-container"))?;
    let (outside, inside) = (Handle::open()?, Handle::in_netns(&netns)?);
    let peer = NewLink { name: "eth0", netns: Some(&netns), ..NewLink::default() };
    outside.create_link(&NewLink {
        name: "floor0",
        kind: NewLinkKind::Veth { peer: Box::new(peer) },
        up: true,
        master: Some(bridge),
        ..NewLink::default()
    })?;
    let index = inside.link("eth0")?.index;
    let mut batch = inside.batch();
    batch.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() });
    batch.add_address(index, &NewAddress::new("10.5.0.2/16".parse()?));
    batch.add_route(&Route { gateway: Some("10.5.0.1".parse()?), oif: Some(index), ..Route::default() });
    batch.commit()?;
    Ok(())
}
