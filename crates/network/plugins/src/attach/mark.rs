//! Ownership marks: the alias of a host-side link says which attachment it belongs to, so that DEL finds it without the
//! container's namespace and GC finds it at all. The original plugins leave no such trace.

use std::fmt;

use crate::rules::Owner;

/// An alias may have 255 bytes.
const MAX_LENGTH: usize = 255;

/// Who a link belongs to: `cni:<network>/<container id>/<interface name>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark<'a> {
    pub network: &'a str,
    pub container_id: &'a str,
    pub ifname: &'a str,
}

impl<'a> Mark<'a> {
    /// Reads an alias. None if it is not a mark.
    pub(crate) fn parse(alias: &'a str) -> Option<Self> {
        // None of the three may hold a slash.
        let mut parts = alias.strip_prefix("cni:")?.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(network), Some(container_id), Some(ifname), None) if !network.is_empty() => {
                Some(Self { network, container_id, ifname })
            }
            _ => None,
        }
    }

    /// The alias. None if it would be longer than the kernel allows; such a link can be found through its peer only.
    pub(crate) fn alias(self) -> Option<String> {
        Some(self.to_string()).filter(|alias| alias.len() <= MAX_LENGTH)
    }
}

impl<'a> From<Mark<'a>> for Owner<'a> {
    fn from(mark: Mark<'a>) -> Self {
        Self { network: mark.network, container_id: mark.container_id, ifname: mark.ifname }
    }
}

impl fmt::Display for Mark<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cni:{}/{}/{}", self.network, self.container_id, self.ifname)
    }
}

#[cfg(test)]
mod tests {
    use super::Mark;

    #[test]
    fn round_trip() {
        let mark = Mark { network: "net", container_id: "id", ifname: "eth0" };
        assert_eq!(mark.alias().unwrap(), "cni:net/id/eth0");
        assert_eq!(Mark::parse("cni:net/id/eth0"), Some(mark));
        for other in ["", "cni:", "cni:net/id", "cni:net/id/eth0/x", "other", "cni://x"] {
            assert_eq!(Mark::parse(other), None, "{other:?}");
        }
        assert_eq!(Mark { network: &"n".repeat(250), ..mark }.alias(), None);
    }
}
