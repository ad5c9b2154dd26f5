//! Names of kernel settings.

use outrigger_cni_sdk::Error;

/// The path below `/proc/sys/net` of a key as a configuration writes it. `IFNAME` (the first) stands for the interface.
///
/// As sysctl(8) has it, the first separator decides: after a slash, dots are part of names; after a dot, dots separate.
/// Then slashes separate too, which is how the original plugin reads such keys.
pub(super) fn path(key: &str, ifname: &str) -> Result<String, Error> {
    let invalid = |why: &str| Error::config(format!("sysctl: {key:?} {why}"));
    let first = key.find(['.', '/']).map(|at| key.as_bytes()[at]);
    let path = if first == Some(b'/') { key.to_owned() } else { key.replace('.', "/") };
    let path = path.replacen("IFNAME", ifname, 1);
    let parts: Vec<&str> = path.split('/').collect();
    match parts.split_first() {
        Some((&"net", rest)) if !rest.is_empty() => {
            if rest.iter().any(|part| part.is_empty() || *part == "." || *part == "..") {
                return Err(invalid("is no path of names"));
            }
            Ok(rest.join("/"))
        }
        _ => Err(invalid("is not a setting of the network: keys begin with net")),
    }
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn both_separators() {
        for (key, expected) in [
            ("net.core.somaxconn", "core/somaxconn"),
            ("net/core/somaxconn", "core/somaxconn"),
            ("net.ipv4.conf.IFNAME.arp_filter", "ipv4/conf/eth0.7/arp_filter"),
            ("net/ipv4/conf/IFNAME/arp_filter", "ipv4/conf/eth0.7/arp_filter"),
            ("net/ipv4/conf/eth0.1/arp_filter", "ipv4/conf/eth0.1/arp_filter"),
            ("net.ipv4/conf/all/arp_filter", "ipv4/conf/all/arp_filter"),
            ("net.IFNAME.IFNAME", "eth0.7/IFNAME"),
        ] {
            assert_eq!(path(key, "eth0.7").unwrap(), expected, "{key}");
        }
    }

    #[test]
    fn only_the_network() {
        for key in [
            "",
            "net",
            "net.",
            "net..x",
            "kernel.hostname",
            "net/../kernel/hostname",
            "net.core/../../kernel",
            "/net/x",
            "network.x",
        ] {
            assert_eq!(path(key, "eth0").unwrap_err().code.number(), 7, "{key:?}");
        }
    }
}
