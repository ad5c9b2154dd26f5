//! The configuration, and what else asks for addresses.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use outrigger_cni_sdk::{Call, Code, Dns, Error, Route, Step as _, Version, conf};

use super::range::{RangeConf, RangeSet};
use super::store::DEFAULT_DATA_DIR;
use crate::ipam::later::Later;

conf! {
    /// Hands out addresses of configured ranges, one from each range set, and keeps on this host, in files, which are
    /// taken. It is called by a plugin that makes interfaces.
    pub struct HostLocalConf {
        /// What this plugin reads.
        pub ipam: Option<IpamConf>,
    }
}

conf! {
    /// The part of `host-local`.
    pub struct IpamConf {
        /// Range sets: an address is taken from each. All ranges of a set are of one family.
        pub ranges: Later<Vec<Vec<RangeKeys>>>,
        /// Old form of a set of one range, which is put in front of `ranges`: see there.
        pub subnet: Later<IpNet>,
        /// Goes with `subnet`.
        pub range_start: Later<IpAddr>,
        /// Goes with `subnet`.
        pub range_end: Later<IpAddr>,
        /// Goes with `subnet`.
        pub gateway: Later<IpAddr>,
        /// Routes to put into the result.
        pub routes: Later<Vec<Option<Route>>>,
        /// A file in the form of resolv.conf(5), from which `dns` of the result is taken.
        pub resolv_conf: String,
        /// Where the directories of all networks are.
        pub data_dir: String = DEFAULT_DATA_DIR.to_owned(),
        /// Gives back, at the first ADD after the machine was started, all addresses that were taken before: no network
        /// namespace survives that. Leave it off if several machines share `dataDir`, or if containers are restored from
        /// checkpoints with their old addresses. The original has no such key and ignores it.
        pub reclaim_after_reboot: bool,
    }
}

conf! {
    /// A range of addresses.
    pub struct RangeKeys {
        /// The network, without host bits; at least four addresses.
        pub subnet: Option<IpNet>,
        /// First address to hand out; else the first of the subnet.
        pub range_start: Option<IpAddr>,
        /// Last address to hand out; else the last of the subnet, without the broadcast address.
        pub range_end: Option<IpAddr>,
        /// The gateway, which is never handed out; else the first address of the subnet.
        pub gateway: Option<IpAddr>,
    }
}

impl From<RangeKeys> for RangeConf {
    fn from(keys: RangeKeys) -> Self {
        Self { subnet: keys.subnet, start: keys.range_start, end: keys.range_end, gateway: keys.gateway }
    }
}

/// The part for this plugin; an error if it is missing (code 7).
pub(super) fn ipam<'c>(call: &'c Call<'_, HostLocalConf>) -> Result<&'c IpamConf, Error> {
    call.conf.ipam.as_ref().ok_or_else(|| Error::config("ipam is missing: host-local reads its configuration from it"))
}

/// Where the directories of all networks are.
pub(super) fn data_dir(ipam: &IpamConf) -> PathBuf {
    // An empty name is the default in the original too.
    PathBuf::from(if ipam.data_dir.is_empty() { DEFAULT_DATA_DIR } else { &ipam.data_dir })
}

/// The range sets: those of the capability `ipRanges`, then the old form's, then `ranges`.
pub(super) fn range_sets(call: &Call<'_, HostLocalConf>) -> Result<Vec<RangeSet>, Error> {
    let ipam = ipam(call)?;
    let mut sets: Vec<Vec<RangeKeys>> = call.runtime("ipRanges")?.unwrap_or_default();
    if let Some(subnet) = ipam.subnet.read("ipam.subnet")? {
        sets.push(vec![RangeKeys {
            subnet: Some(subnet),
            range_start: ipam.range_start.read("ipam.rangeStart")?,
            range_end: ipam.range_end.read("ipam.rangeEnd")?,
            gateway: ipam.gateway.read("ipam.gateway")?,
        }]);
    }
    sets.extend(ipam.ranges.read("ipam.ranges")?.unwrap_or_default());
    let sets: Vec<Vec<RangeConf>> =
        sets.into_iter().map(|set| set.into_iter().map(RangeConf::from).collect()).collect();
    let sets = RangeSet::all(&sets).map_err(|error| Error::config(format!("host-local: {error}")))?;
    let v4 = sets.iter().filter(|set| set.is_ipv4()).count();
    if call.net.cni_version < Version::V0_3_0 && (v4 > 1 || sets.len() - v4 > 1) {
        let version = call.net.cni_version;
        return Err(Error::config(format!("CNI version {version} does not support more than 1 address per family")));
    }
    Ok(sets)
}

/// The addresses that were asked for by name: of `CNI_ARGS`, of `args.cni.ips`, of the capability `ips`. Each once.
pub(super) fn wanted(call: &Call<'_, HostLocalConf>) -> Result<Vec<IpAddr>, Error> {
    let mut wanted = Vec::new();
    let [ip] = call.args.known(["IP"])?;
    // The original takes an empty value for none.
    if let Some(ip) = ip.filter(|ip| !ip.is_empty()) {
        wanted.push(parse(ip).map_err(|msg| Error::new(Code::InvalidEnvironment, format!("CNI_ARGS: IP: {msg}")))?);
    }
    let args: Vec<String> = call.cni_arg("ips")?.unwrap_or_default();
    let capability: Vec<String> = call.runtime("ips")?.unwrap_or_default();
    for (place, texts) in [("args.cni.ips", args), ("runtimeConfig.ips", capability)] {
        for text in texts {
            wanted.push(parse(&text).map_err(|msg| Error::config(format!("{place}: {msg}")))?);
        }
    }
    let mut once = Vec::new();
    for address in wanted {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    Ok(once)
}

/// `ip` or `ip/prefix`
fn parse(text: &str) -> Result<IpAddr, String> {
    let net = text.parse::<IpNet>().map(|net| net.addr()).ok();
    let address = net.or_else(|| text.parse().ok());
    address.map(|address| address.to_canonical()).ok_or_else(|| format!("invalid ip address {text:?}"))
}

/// Routes to put into the result.
pub(super) fn routes(ipam: &IpamConf) -> Result<Vec<Route>, Error> {
    Ok(ipam.routes.read("ipam.routes")?.unwrap_or_default().into_iter().flatten().collect())
}

/// Reads a resolv.conf(5) as the original does: no limits on counts, later `domain` wins, `search` and `options` add up.
pub(super) fn resolv_conf(path: &Path) -> Result<Dns, Error> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read_to_string(&mut file, &mut text))
        .step(format_args!("host-local: cannot read resolvConf {}", path.display()))?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        let Some(key) = words.next().filter(|key| !key.starts_with(['#', ';'])) else { continue };
        match key.as_str() {
            "nameserver" => dns.nameservers.extend(words.next()),
            "domain" => dns.domain = words.next().unwrap_or(dns.domain),
            "search" => dns.search.extend(words),
            "options" => dns.options.extend(words),
            _ => {}
        }
    }
    Ok(dns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_confs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# x\n nameserver 192.0.2.0\n;y\nnameserver\nnameserver 192.0.2.1 more\n\
                    domain a.example\ndomain b.example\nsearch c d\nsearch e\noptions x:1 y\nsortlist z";
        fs_err::write(file.path(), text).unwrap();
        let dns = resolv_conf(file.path()).unwrap();
        assert_eq!(dns.nameservers, ["192.0.2.0", "192.0.2.1"]);
        assert_eq!(dns.domain, "b.example");
        assert_eq!(dns.search, ["c", "d", "e"]);
        assert_eq!(dns.options, ["x:1", "y"]);
        let error = resolv_conf(Path::new("/nonexistent/resolv.conf")).unwrap_err();
        assert_eq!(error.code, Code::Io);
        assert!(error.msg.contains("/nonexistent/resolv.conf"), "{error}");
    }

    #[test]
    fn addresses_with_and_without_prefix() {
        assert_eq!(parse("10.0.0.1/24"), Ok(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(parse("::ffff:10.0.0.1"), Ok(IpAddr::from([10, 0, 0, 1])));
        assert!(parse("10.0.0.1/33").is_err());
        assert!(parse("").is_err());
    }
}
