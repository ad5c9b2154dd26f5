//! What ADD and DEL cost on a host that has much already.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use super::driver::{Attachment, Host, Target, create_netns, netns_path, plain, remove_netns};
use super::rows::{Row, Scope, host_local, row};
use super::table::{Series, Table, time_ratio};

const ADDRESSES: [usize; 3] = [0, 1_000, 10_000];
const MAPPINGS: [usize; 3] = [0, 500, 5_000];
/// Mappings of one container of the filling.
const EACH: usize = 50;
/// The filling's ports start here, above those of the measured containers.
const FIRST_PORT: usize = 20_000;

pub(crate) fn run(options: &Options, targets: &[Target]) -> Result<()> {
    let mut head = vec!["case".to_owned(), "command".to_owned()];
    head.extend(targets.iter().map(|target| target.label.clone()));
    head.extend(targets[1..].iter().map(|peer| format!("{}: CPU", peer.label)));
    let mut table = Table::new("On a filled host: CPU / p50 / p99 in ms; peers' CPU in multiples of ours", head);
    if options.wants_row("host-local") {
        for taken in ADDRESSES {
            let mut measured = Vec::new();
            for target in targets {
                measured.push(Some(addresses(options, target, taken)?));
            }
            rows(&mut table, targets, &format!("host-local alone, {taken} addresses taken"), measured);
        }
    }
    for key in ["portmap", "portmap-nft"].into_iter().filter(|key| options.wants_row(key)) {
        let row = row(key).context("a row")?;
        let backend = if key == "portmap" { "iptables" } else { "nftables" };
        for count in MAPPINGS {
            let mut measured = Vec::new();
            for target in targets {
                measured.push(mappings(options, target, row, count)?);
            }
            rows(&mut table, targets, &format!("bridge + portmap(2), {backend}, {count} mappings"), measured);
        }
    }
    table.print();
    Ok(())
}

fn rows(table: &mut Table, targets: &[Target], title: &str, mut measured: Vec<Option<[Series; 2]>>) {
    for (number, command) in ["ADD", "DEL"].iter().enumerate() {
        let mut cells = vec![if number == 0 { title.to_owned() } else { String::new() }, (*command).to_owned()];
        for series in &mut measured {
            cells.push(series.as_mut().map_or("–".to_owned(), |series| series[number].cell()));
        }
        let cpu = |series: &Option<[Series; 2]>| series.as_ref().and_then(|series| series[number].cpu());
        cells.extend(measured[1..].iter().map(|peer| time_ratio(cpu(&measured[0]), cpu(peer))));
        table.row(cells);
        for (target, series) in targets.iter().zip(&measured) {
            if let Some(error) = series.as_ref().and_then(|series| series[number].error.as_ref()) {
                table.note(format!("{title}, {}, {command}: {error}", target.label));
            }
        }
    }
}

/// host-local alone, with this many addresses taken by others.
fn addresses(options: &Options, target: &Target, taken: usize) -> Result<[Series; 2]> {
    let host = filled(target, taken, "fill")?;
    let mut series = <[Series; 2]>::default();
    for index in 0..=options.n.min(30) {
        let attachment = alone(target, &host, index);
        let (added, result) = attachment.add(&plain)?;
        let deleted = attachment.del(&plain, &result)?;
        if index > 0 {
            series[0].push(&added);
            series[1].push(&deleted);
        }
    }
    Ok(series)
}

/// A host with this many addresses taken by others: files as host-local and others write them.
pub(super) fn filled(target: &Target, taken: usize, prefix: &str) -> Result<Host> {
    let host = Host::new(&format!("{prefix}-{taken}-{}", target.label))?;
    let directory = format!("{}/bench", host.data_dir);
    fs_err::create_dir_all(&directory)?;
    for number in 0..taken {
        let address = std::net::Ipv4Addr::from_bits(0x0a05_0002 + u32::try_from(number)?);
        fs_err::write(format!("{directory}/{address}"), format!("filling-{number}\r\neth0"))?;
        if number + 1 == taken {
            fs_err::write(format!("{directory}/last_reserved_ip.0"), address.to_string())?;
        }
    }
    Ok(host)
}

/// A container with an address and nothing else.
pub(super) fn alone<'a>(target: &'a Target, host: &Host, index: usize) -> Attachment<'a> {
    let scope = Scope { data_dir: &host.data_dir, index, ours: target.ours };
    // The IPAM plugin looks at `ipam` only; it is called here as a main plugin would.
    let chain = vec![json!({ "type": "host-local", "ipam": host_local(&scope, &["10.5.0.0/16"]) })];
    let id = format!("fill-c{index}");
    Attachment { target, chain, netns: netns_path(&id), id }
}

/// A chain with portmap, with this many ports mapped by others; none if the target refuses the chain.
fn mappings(options: &Options, target: &Target, row: &Row, count: usize) -> Result<Option<[Series; 2]>> {
    if row.key != "portmap" && !target.knows_nftables()? {
        return Ok(None);
    }
    let host = Host::new(&format!("fill-{}-{count}-{}", row.key, target.label))?;
    // The first container makes what all share, and stays.
    let first = Attachment::new(target, &host, row, 0);
    create_netns(&first.id)?;
    let (added, result) = first.add(&plain)?;
    if added.error.is_some() {
        return Ok(None);
    }
    if row.key == "portmap" {
        feed("iptables-restore", &["--noflush"], &iptables(count))?;
    } else if target.ours {
        through_plugin(target, &result, count)?;
    } else {
        feed("nft", &["-f", "-"], &nftables(count))?;
    }
    let mut series = <[Series; 2]>::default();
    for index in 1..=options.n.min(20) {
        let attachment = Attachment::new(target, &host, row, index);
        create_netns(&attachment.id)?;
        let (added, result) = attachment.add(&plain)?;
        series[0].push(&added);
        series[1].push(&attachment.del(&plain, &result)?);
        remove_netns(&attachment.id)?;
    }
    remove_netns(&first.id)?;
    Ok(Some(series))
}

fn feed(program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    child.stdin.take().context("stdin")?.write_all(text.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "{program} refuses the filling: {status}");
    Ok(())
}

/// The rules of the iptables back end, which both sides read and write.
fn iptables(count: usize) -> String {
    let mut text = "*nat\n".to_owned();
    let containers = count.div_ceil(EACH);
    for container in 0..containers {
        let _ = writeln!(text, ":CNI-DN-filling{container:014} - [0:0]");
    }
    for container in 0..containers {
        let chain = format!("CNI-DN-filling{container:014}");
        let ports: Vec<String> = ports(container, count).map(|port| port.to_string()).collect();
        for some in ports.chunks(15) {
            let _ = writeln!(
                text,
                "-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"bench\\\" id: \\\"filling{container}\\\"\" \
                 -m multiport --dports {} -j {chain}",
                some.join(",")
            );
        }
        for port in ports {
            for source in ["10.5.0.0/16", "127.0.0.1"] {
                let _ = writeln!(text, "-A {chain} -s {source} -p tcp -m tcp --dport {port} -j CNI-HOSTPORT-SETMARK");
            }
            let _ = writeln!(text, "-A {chain} -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.5.9.9:80");
        }
    }
    text + "COMMIT\n"
}

/// The rules of the peers' nftables back end.
fn nftables(count: usize) -> String {
    let mut text = String::new();
    for container in 0..count.div_ceil(EACH) {
        for port in ports(container, count) {
            let rule = format!("tcp dport {port} dnat to 10.5.9.9:80 comment \"filling{container}\"");
            let _ = writeln!(text, "add rule ip cni_hostport hostports {rule}");
        }
    }
    text
}

/// Our nftables back end is filled by our plugin.
fn through_plugin(target: &Target, result: &Value, count: usize) -> Result<()> {
    for container in 0..count.div_ceil(EACH) {
        let mappings: Vec<Value> = ports(container, count)
            .map(|port| json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp" }))
            .collect();
        let plugin = json!({ "type": "portmap", "backend": "nftables", "prevResult": result,
            "runtimeConfig": { "portMappings": mappings } });
        let id = format!("filling{container}");
        let attachment = Attachment { target, chain: vec![plugin], netns: netns_path(&id), id };
        let (added, _) = attachment.add(&plain)?;
        ensure!(added.error.is_none(), "cannot fill: {:?}", added.error);
    }
    Ok(())
}

fn ports(container: usize, count: usize) -> impl Iterator<Item = usize> {
    (FIRST_PORT + container * EACH..FIRST_PORT + count).take(EACH)
}
