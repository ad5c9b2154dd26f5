//! Packet filter rules of the plugins: planned against what is there, committed as one batch.
//!
//! There are two layouts. `iptables` has the chains, comments and binary forms that the original plugins make through
//! iptables-nft: each side can list, check and remove what the other made. `nftables` has one own table,
//! `inet outrigger_cni`, with sets and maps keyed by address or port, in which nothing gets slower with more containers.

pub mod iptables;
pub(crate) mod legacy;
pub mod macspoof;
pub mod masquerade;
pub(crate) mod own;
mod view;

use std::fmt;

use outrigger_cni_sdk::{Attachment, Error};
use outrigger_netlink::nft::{Rule, userdata};
use sha2::{Digest as _, Sha512};

pub(crate) use self::masquerade::Saved;
pub use self::view::{RuleSet, RuleView};

/// Whose rules they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// Name of the network.
    pub network: &'a str,
    /// The container.
    pub container_id: &'a str,
    /// The interface in the container.
    pub ifname: &'a str,
}

/// Which layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// As iptables-nft makes them.
    Iptables,
    /// The own table.
    Nftables,
}

impl Backend {
    /// By its name in configurations; none if there is no name, see [`RuleView::default_backend`].
    pub fn parse(name: Option<&str>, key: &str) -> Result<Option<Self>, Error> {
        match name {
            None | Some("") => Ok(None),
            Some("iptables") => Ok(Some(Self::Iptables)),
            Some("nftables") => Ok(Some(Self::Nftables)),
            Some(other) => Err(Error::config(format!("{key}: {other:?} is unknown: use iptables or nftables"))),
        }
    }

    /// The one that it is not.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Iptables => Self::Nftables,
            Self::Nftables => Self::Iptables,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// The beginning of the SHA-512 of a text in hex.
fn hash(text: &str, len: usize) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = Sha512::digest(text.as_bytes());
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.take(len).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// A chain's name: `CNI-`, a prefix, and as much of the hash of network and container as 28 characters hold.
pub(crate) fn chain_name(prefix: &str, network: &str, container_id: &str) -> String {
    let prefix = format!("CNI-{prefix}");
    let digits = hash(&format!("{network}{container_id}"), 28 - prefix.len());
    prefix + &digits
}

/// What the keys of a network's owners begin with.
pub(crate) fn network_key(network: &str) -> String {
    hash(network, 16)
}

impl Owner<'_> {
    /// The comment of the original plugins' nftables rules: two hashes to find it by, then the names.
    pub(crate) fn comment(self) -> String {
        let mut comment =
            format!("{}, net: {}, if: {}, id: {}", self.key(), self.network, self.ifname, self.container_id);
        // Where the original cuts, or a byte or two before it, lest half a character is left.
        comment.truncate(comment.floor_char_boundary(128));
        comment
    }

    /// What the comment begins with.
    pub(crate) fn key(self) -> String {
        format!("{}-{}", network_key(self.network), hash(&format!("{}:{}", self.ifname, self.container_id), 16))
    }

    /// User data that says whose a rule is without showing in listings.
    pub(crate) fn user_data(self) -> Vec<u8> {
        userdata::attribute(userdata::OWNER, self.key().as_bytes())
    }
}

/// The attachments of a network that are to be kept, for GC.
pub(crate) struct Kept<'a> {
    network: &'a str,
    prefix: String,
    keys: Vec<String>,
    valid: &'a [Attachment],
}

impl<'a> Kept<'a> {
    pub(crate) fn new(network: &'a str, valid: &'a [Attachment]) -> Self {
        let owner = |each: &'a Attachment| Owner { network, container_id: &each.container_id, ifname: &each.ifname };
        Self {
            network,
            prefix: format!("{}-", network_key(network)),
            keys: valid.iter().map(|each| owner(each).key()).collect(),
            valid,
        }
    }

    /// True if a key (see [`Owner::key`]), or a comment that begins with one, is of this network and of no attachment.
    pub(crate) fn is_stale(&self, text: &str) -> bool {
        text.starts_with(&self.prefix) && !self.keys.iter().any(|key| text.starts_with(key.as_str()))
    }

    /// True if the rule's user data says that it is of this network and of no attachment.
    pub(crate) fn is_stale_rule(&self, rule: &Rule) -> bool {
        userdata::find_text(&rule.user_data, userdata::OWNER).is_some_and(|key| self.is_stale(key))
    }

    /// True if a comment of the iptables layout, after this prefix, names this network and a container that has no
    /// attachment.
    pub(crate) fn is_stale_comment(&self, prefix: &str, comment: &str) -> bool {
        let Some(names) = comment.strip_prefix(prefix).and_then(|rest| rest.strip_prefix("name: \"")) else {
            return false;
        };
        let Some((network, id)) = names.split_once("\" id: \"") else { return false };
        let Some(id) = id.strip_suffix('"') else { return false };
        network == self.network && !self.valid.iter().any(|each| each.container_id == id)
    }

    /// Owned copies of what a planner needs, which may run more than once.
    pub(crate) fn into_owned(self) -> (String, Vec<Attachment>) {
        (self.network.to_owned(), self.valid.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that the original plugins gave for the same input.
    #[test]
    fn names_are_those_of_the_originals() {
        assert_eq!(chain_name("", "test", "1234"), "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(chain_name("", "testalongnamethatdoesnotmakesense", "1234"), "CNI-374f33fe84ab0ed84dcdebe3");
        assert_eq!(chain_name("PREFIX-", "test", "1234"), "CNI-PREFIX-2bbe0c48b91a7d1b8");
        let owner = Owner { network: "unit-test", container_id: "one", ifname: "eth0" };
        assert_eq!(owner.comment(), "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one");
    }

    #[test]
    fn comments_are_cut_between_characters() {
        let network = "n".repeat(81);
        let owner = Owner { network: &network, container_id: "one", ifname: "ééééééé" };
        let comment = owner.comment();
        assert!((126..=128).contains(&comment.len()) && comment.starts_with(&owner.key()), "{comment}");
    }

    #[test]
    fn stale_is_what_is_of_the_network_and_of_no_attachment() {
        let valid = [Attachment::new("a", "eth0")];
        let kept = Kept::new("net", &valid);
        let owner = |network, container_id, ifname| Owner { network, container_id, ifname }.comment();
        assert!(!kept.is_stale(&owner("net", "a", "eth0")));
        assert!(kept.is_stale(&owner("net", "a", "eth1")));
        assert!(kept.is_stale(&owner("net", "b", "eth0")));
        assert!(!kept.is_stale(&owner("other", "b", "eth0")));
        assert!(kept.is_stale_comment("", "name: \"net\" id: \"b\""));
        assert!(!kept.is_stale_comment("", "name: \"net\" id: \"a\""));
        assert!(!kept.is_stale_comment("", "name: \"other\" id: \"b\""));
        assert!(kept.is_stale_comment("dnat ", "dnat name: \"net\" id: \"b\""));
        assert!(!kept.is_stale_comment("dnat ", "name: \"net\" id: \"b\""));
    }
}
