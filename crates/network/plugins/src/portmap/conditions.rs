//! Conditions that an administrator adds to mappings: arguments of iptables, or expressions of nft.
//!
//! The original hands them to the tools as they are. Here they are translated; what cannot be is refused by name.

use std::net::IpAddr;

use ipnet::IpNet;
use outrigger_cni_sdk::Error;
use outrigger_netlink::nft::xt::{self, AddressTypes, Ports, address_type, state};
use outrigger_netlink::nft::{Expr, MetaKey};

use crate::rules::Backend;
use crate::rules::iptables::{self as rules, Spec};
use crate::rules::own;

/// Conditions, translated.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions {
    spec: Spec,
}

impl Conditions {
    /// Reads the arguments of a back end; those of the other one are an error.
    pub(super) fn parse(backend: Backend, v6: bool, arguments: &[String]) -> Result<Self, Error> {
        let words: Vec<&str> = arguments.iter().flat_map(|text| text.split_whitespace()).collect();
        let Some(first) = words.first() else { return Ok(Self::default()) };
        let written_for = if first.starts_with(['-', '!']) { Backend::Iptables } else { Backend::Nftables };
        if written_for != backend {
            return Err(Error::config(format!(
                "the conditions are in the syntax of {written_for}, but backend is {backend}: change one of them"
            )));
        }
        let mut spec = Spec::default();
        let mut words = Words { words: &words, at: 0 };
        let parsed = match backend {
            Backend::Iptables => iptables(&mut words, v6, &mut spec),
            Backend::Nftables => nftables(&mut words, v6, &mut spec),
        };
        parsed.map_err(Error::config)?;
        Ok(Self { spec })
    }

    /// Adds them to a rule of the iptables layout.
    pub(super) fn apply(&self, mut spec: Spec) -> Spec {
        let Spec { input, output, source, destination, matches, .. } = self.spec.clone();
        (spec.input, spec.output) = (input, output);
        (spec.source, spec.destination) = (source, destination);
        spec.matches.extend(matches);
        spec
    }

    /// As expressions of the nftables layout.
    pub(super) fn expressions(&self) -> &[Expr] {
        &self.spec.matches
    }
}

struct Words<'a> {
    words: &'a [&'a str],
    at: usize,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.at += 1;
        self.words.get(self.at - 1).copied()
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn value(&mut self, of: &str) -> Result<&'a str, String> {
        self.next().ok_or_else(|| format!("{of}: its value is missing"))
    }
}

/// Modules whose options are known here.
const MODULES: [&str; 9] = ["addrtype", "comment", "conntrack", "state", "mark", "multiport", "iprange", "tcp", "udp"];

fn iptables(words: &mut Words<'_>, v6: bool, spec: &mut Spec) -> Result<(), String> {
    let mut types: Option<AddressTypes> = None;
    let mut ranges = (None, None);
    while let Some(mut word) = words.next() {
        let invert = word == "!";
        if invert {
            word = words.value("!")?;
        }
        // `--option=value` is one word.
        let (option, mut given) = match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value)),
            _ => (word, None),
        };
        let mut value = || given.take().map_or_else(|| words.value(option), Ok);
        match option {
            "-m" | "--match" => {
                let module = value()?;
                if !MODULES.contains(&module) {
                    return Err(format!(
                        "-m {module}: this module is not supported: use one of {}",
                        MODULES.join(", ")
                    ));
                }
            }
            "-s" | "--source" | "--src" => spec.source = Some((network(value()?, v6, option)?, invert)),
            "-d" | "--destination" | "--dst" => spec.destination = Some((network(value()?, v6, option)?, invert)),
            "-i" | "--in-interface" => spec.input = Some((interface(value()?, option)?, invert)),
            "-o" | "--out-interface" => spec.output = Some((interface(value()?, option)?, invert)),
            "--src-type" => {
                let types = types.get_or_insert_default();
                (types.source, types.not_source) = (address_types(value()?, option)?, invert);
            }
            "--dst-type" => {
                let types = types.get_or_insert_default();
                (types.destination, types.not_destination) = (address_types(value()?, option)?, invert);
            }
            "--comment" if !invert => spec.matches.push(xt::comment(value()?)),
            "--ctstate" | "--state" => spec.matches.push(xt::conntrack_state(states(value()?, option)?, invert)),
            "--mark" => {
                let (mark, mask) = masked(value()?, option)?;
                spec.matches.extend(rules::mark(mark, mask, invert));
            }
            "--sport" | "--source-port" => {
                let range = range(value()?, ':', option)?;
                spec.matches.extend(rules::port(rules::TCP, false, range, invert));
            }
            "--dport" | "--destination-port" => {
                let range = range(value()?, ':', option)?;
                spec.matches.extend(rules::port(rules::TCP, true, range, invert));
            }
            "--sports" | "--source-ports" => spec.matches.push(ports(Ports::Source, value()?, invert, option)?),
            "--dports" | "--destination-ports" => {
                spec.matches.push(ports(Ports::Destination, value()?, invert, option)?);
            }
            "--ports" => spec.matches.push(ports(Ports::Either, value()?, invert, option)?),
            "--src-range" => ranges.0 = Some((address_range(value()?, v6, option)?, invert)),
            "--dst-range" => ranges.1 = Some((address_range(value()?, v6, option)?, invert)),
            _ => return Err(format!("{option}: this argument is not supported")),
        }
        if given.is_some() {
            return Err(format!("{word}: this argument takes no value"));
        }
    }
    spec.matches.extend(types.map(xt::addrtype));
    if ranges != (None, None) {
        spec.matches.push(xt::iprange(ranges.0, ranges.1));
    }
    Ok(())
}

fn network(text: &str, v6: bool, option: &str) -> Result<IpNet, String> {
    let wrong = || format!("{option}: {text:?} is not an {} address or network", if v6 { "IPv6" } else { "IPv4" });
    let net = match text.split_once('/') {
        None => text.parse::<IpAddr>().map(IpNet::from).map_err(|_| wrong())?,
        Some((address, mask)) => match mask.parse::<IpAddr>() {
            Ok(mask) => IpNet::with_netmask(address.parse().map_err(|_| wrong())?, mask).map_err(|_| wrong())?,
            Err(_) => text.parse().map_err(|_| wrong())?,
        },
    };
    if net.addr().is_ipv6() == v6 { Ok(net.trunc()) } else { Err(wrong()) }
}

fn interface(text: &str, option: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 15 || text.contains(['/', '"']) {
        return Err(format!("{option}: {text:?} is not a name of an interface"));
    }
    Ok(text.to_owned())
}

fn address_types(text: &str, option: &str) -> Result<u16, String> {
    text.split(',').try_fold(0, |bits, name| {
        let at = address_type::NAMES.iter().position(|known| known.eq_ignore_ascii_case(name));
        at.map(|at| bits | 1 << at).ok_or_else(|| format!("{option}: {name:?} is not a type of address"))
    })
}

fn states(text: &str, option: &str) -> Result<u16, String> {
    text.split(',').try_fold(0, |bits, name| {
        let known = state::NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map(|(_, bit)| bits | bit).ok_or_else(|| format!("{option}: {name:?} is not a state"))
    })
}

fn number(text: &str, option: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{option}: {text:?} is not a number of 32 bits"))
}

fn masked(text: &str, option: &str) -> Result<(u32, u32), String> {
    match text.split_once('/') {
        Some((value, mask)) => Ok((number(value, option)?, number(mask, option)?)),
        None => Ok((number(text, option)?, u32::MAX)),
    }
}

fn range(text: &str, separator: char, option: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("{option}: {text:?} is not a port or a range of ports");
    let (first, last) = text.split_once(separator).unwrap_or((text, text));
    // iptables takes an open end.
    let first = if first.is_empty() { 0 } else { first.parse().map_err(|_| wrong())? };
    let last = if last.is_empty() { u16::MAX } else { last.parse().map_err(|_| wrong())? };
    if first <= last { Ok((first, last)) } else { Err(wrong()) }
}

fn ports(which: Ports, text: &str, invert: bool, option: &str) -> Result<Expr, String> {
    let list = text.split(',').map(|port| range(port, ':', option)).collect::<Result<Vec<_>, _>>()?;
    xt::multiport(which, &list, invert)
        .ok_or_else(|| format!("{option}: at most 15 ports, where a range counts as two, not {text:?}"))
}

fn address_range(text: &str, v6: bool, option: &str) -> Result<(IpAddr, IpAddr), String> {
    let wrong = || format!("{option}: {text:?} is not a range of addresses");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (IpAddr, IpAddr) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first.is_ipv6() == v6 && last.is_ipv6() == v6 && first <= last { Ok((first, last)) } else { Err(wrong()) }
}

fn nftables(words: &mut Words<'_>, v6: bool, spec: &mut Spec) -> Result<(), String> {
    while let Some(word) = words.next() {
        let word = if word == "meta" { words.value("meta")? } else { word };
        match word {
            "ip" | "ip6" => {
                let field = words.value(word)?;
                let destination = match field {
                    "saddr" => false,
                    "daddr" => true,
                    _ => return Err(format!("{word} {field}: only saddr and daddr are supported")),
                };
                let (invert, text) = comparison(words, field)?;
                let net = network(text, v6, field)?;
                spec.matches.extend(own::in_network(net, destination, invert));
            }
            "iifname" | "oifname" => {
                let key = if word == "iifname" { MetaKey::INPUT_INTERFACE } else { MetaKey::OUTPUT_INTERFACE };
                let (invert, text) = comparison(words, word)?;
                let name = interface(text.trim_matches('"'), word)?;
                if let Some(prefix) = name.strip_suffix('*') {
                    spec.matches.extend(Expr::meta_is(key, prefix.as_bytes(), invert));
                } else {
                    let mut padded = name.into_bytes();
                    padded.resize(16, 0);
                    spec.matches.extend(Expr::meta_is(key, &padded, invert));
                }
            }
            "mark" => {
                let mut mask = u32::MAX;
                if matches!(words.peek(), Some("and" | "&")) {
                    words.next();
                    mask = number(words.value(word)?, word)?;
                }
                let (invert, text) = comparison(words, word)?;
                spec.matches.extend(rules::mark(number(text, word)?, mask, invert));
            }
            "tcp" | "udp" | "sctp" | "th" => {
                let field = words.value(word)?;
                let destination = match field {
                    "sport" => false,
                    "dport" => true,
                    _ => return Err(format!("{word} {field}: only sport and dport are supported")),
                };
                let protocol = match word {
                    "tcp" => Some(rules::TCP),
                    "udp" => Some(rules::UDP),
                    "sctp" => Some(rules::SCTP),
                    _ => None,
                };
                if let Some(protocol) = protocol {
                    spec.matches.extend(Expr::meta_is(MetaKey::TRANSPORT_PROTOCOL, &[protocol], false));
                }
                let (invert, text) = comparison(words, field)?;
                spec.matches.extend(rules::port(rules::TCP, destination, range(text, '-', field)?, invert));
            }
            _ => return Err(format!("{word}: this expression is not supported")),
        }
    }
    Ok(())
}

/// An operator, equality if there is none, and the right side.
fn comparison<'a>(words: &mut Words<'a>, of: &str) -> Result<(bool, &'a str), String> {
    match words.value(of)? {
        operator @ ("==" | "eq" | "!=" | "ne") => Ok((matches!(operator, "!=" | "ne"), words.value(of)?)),
        operator @ ("<" | ">" | "<=" | ">=" | "lt" | "gt" | "le" | "ge" | "vmap" | "map") => {
            Err(format!("{of} {operator}: only == and != are supported"))
        }
        text if text.starts_with(['{', '@']) => Err(format!("{of} {text}: sets are not supported")),
        text => Ok((false, text)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(backend: Backend, v6: bool, text: &str) -> Result<Conditions, String> {
        let words: Vec<String> = text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        Conditions::parse(backend, v6, &words).map_err(|error| error.msg)
    }

    #[test]
    fn arguments_of_iptables() {
        let iptables = |text: &str| parse(Backend::Iptables, false, text).unwrap().spec;
        let spec = iptables("! -s 10.0.0.0/8 -d 1.2.3.4/255.255.0.0 -i eth+ ! -o eth1");
        assert_eq!(spec.source, Some(("10.0.0.0/8".parse().unwrap(), true)));
        assert_eq!(spec.destination, Some(("1.2.0.0/16".parse().unwrap(), false)));
        assert_eq!((spec.input, spec.output), (Some(("eth+".into(), false)), Some(("eth1".into(), true))));
        let spec = iptables("-m conntrack ! --ctstate NEW,invalid -m addrtype --src-type=LOCAL --comment x");
        assert_eq!(spec.matches.len(), 3);
        assert_eq!(spec.matches[0], xt::conntrack_state(9, true));
        assert_eq!(iptables("--mark 0x1/0xff").matches, rules::mark(1, 255, false));
        assert_eq!(iptables("--sport 10:").matches, rules::port(6, false, (10, 65535), false));
        assert!(parse(Backend::Iptables, true, "-s fd00::/8 --dst-range fd00::1-fd00::2").is_ok());
    }

    #[test]
    fn what_cannot_be_translated_is_named() {
        for (backend, text, word) in [
            (Backend::Iptables, "-m set --match-set x src", "-m set"),
            (Backend::Iptables, "--tcp-flags x y", "--tcp-flags"),
            (Backend::Iptables, "-s fd00::1", "-s"),
            (Backend::Iptables, "-s", "value is missing"),
            (Backend::Iptables, "--ctstate OLD", "OLD"),
            (Backend::Iptables, "! ", "!"),
            (Backend::Iptables, "ip saddr 1.2.3.4", "syntax of nftables"),
            (Backend::Nftables, "-s 1.2.3.4", "syntax of iptables"),
            (Backend::Nftables, "ip ttl 5", "ip ttl"),
            (Backend::Nftables, "ip saddr @set", "sets"),
            (Backend::Nftables, "tcp dport > 5", "only == and !="),
            (Backend::Nftables, "ct state new", "ct"),
        ] {
            let error = parse(backend, false, text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn expressions_of_nft() {
        let nft = |text: &str| parse(Backend::Nftables, false, text).unwrap().spec.matches;
        assert_eq!(nft("ip saddr != 10.0.0.0/8"), own::in_network("10.0.0.0/8".parse().unwrap(), false, true));
        assert_eq!(nft("meta mark & 0xf == 1"), rules::mark(1, 15, false));
        assert_eq!(nft("iifname \"eth0\" tcp sport 1-5").len(), 2 + 2 + 2);
    }

    proptest! {
        #[test]
        fn no_words_panic(words in prop::collection::vec("[-!a-z0-9./:,=@{<>\"]{0,12}|--[a-z]{1,12}|-[a-z]|(ip|ip6) [sd]addr", 0..8), v6: bool) {
            for backend in [Backend::Iptables, Backend::Nftables] {
                let _ = Conditions::parse(backend, v6, &words);
            }
        }
    }
}
