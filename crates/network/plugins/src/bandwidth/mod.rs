//! `bandwidth`: limits what goes to a container and what comes from it.
//!
//! What goes to it is shaped on the host's end of its veth pair. What comes from it arrives there, where nothing can be
//! shaped; so it is redirected to an `ifb`, and shaped as that sends it.

mod limits;

use outrigger_cni_sdk::{
    AddResult, Attachment, Call, Code, Documentation, Error, Errors, Interface, Plugin, Step as _, Version,
};
use outrigger_netlink::MacAddr;
use outrigger_netlink::route::{Filter, Handle, INGRESS, Link, LinkChange, NewLink, NewLinkKind, ROOT, Tbf};
use rustix::io::Errno;
use sha2::{Digest as _, Sha512};

use self::limits::{Limits, same};
use crate::attach::{Mark, mac_text, mark, undo::Undo};
use crate::session::Session;

/// Names of the ifbs begin with this.
const PREFIX: &str = "bwp";
/// The longest name of a link.
const NAME_LENGTH: usize = 15;

/// The plugin.
pub struct Bandwidth<'s>(pub &'s Session);

/// The name that the original plugin gives the ifb. It does not depend on the interface.
fn first_name(mark: Mark<'_>) -> String {
    name_of(&[mark.network, mark.container_id])
}

/// The name for a further interface of the same container on the same network, for which the original has none.
fn second_name(mark: Mark<'_>) -> String {
    name_of(&[mark.network, mark.container_id, "/", mark.ifname])
}

fn name_of(parts: &[&str]) -> String {
    use std::fmt::Write as _;
    let mut hash = Sha512::new();
    for part in parts {
        hash.update(part.as_bytes());
    }
    let mut name = PREFIX.to_owned();
    for byte in hash.finalize() {
        let _ = write!(name, "{byte:02x}");
        if name.len() >= NAME_LENGTH {
            break;
        }
    }
    name.truncate(NAME_LENGTH);
    name
}

/// Whether the ifb is another interface's of the same container. One without a mark is the original's, or was left by a
/// crash before it was marked; it counts as the caller's.
fn is_anothers(link: &Link, own: Mark<'_>) -> bool {
    link.alias.as_deref().and_then(Mark::parse).is_some_and(|mark| mark != own)
}

/// The limits that count; none if nothing is limited.
fn wanted(call: &Call<'_, Limits>) -> Result<Option<Limits>, Error> {
    let limits =
        if Limits::are_in(call.config())? { call.conf.clone() } else { call.runtime("bandwidth")?.unwrap_or_default() };
    limits.validate()?;
    Ok(Some(limits).filter(|limits| *limits != Limits::default()))
}

impl Bandwidth<'_> {
    /// The host's end of the container's interface.
    fn host_end(&self, call: &Call<'_, Limits>) -> Result<Link, Error> {
        let container = self.0.container(call.netns()?)?;
        let inside = container.route.link(call.ifname).step("look for the interface in the container")?;
        let no_pair = |what: &str| {
            let ifname = call.ifname;
            Error::internal(format!(
                "{ifname} in the container {what}: bandwidth needs a veth pair, as bridge and ptp make"
            ))
        };
        let Some(index) = inside.parent.filter(|_| inside.kind.as_deref() == Some("veth")) else {
            return Err(no_pair("is no end of a veth pair"));
        };
        let outside = self.0.host()?.find_link(index).step("look for the host's end of the interface")?;
        // The number may be that of a link in a third namespace; then the link with it here is another's.
        outside
            .filter(|link| link.kind.as_deref() == Some("veth") && link.parent == Some(inside.index))
            .ok_or_else(|| no_pair("has its other end in another namespace"))
    }

    /// The ifb of the attachment, if it is there.
    fn find_ifb(&self, own: Mark<'_>) -> Result<Option<Link>, Error> {
        for name in [second_name(own), first_name(own)] {
            let found = self.0.host()?.find_link(&name).step("look for the ifb")?;
            if let Some(link) = found.filter(|link| !is_anothers(link, own)) {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    /// Makes the ifb, marked and up.
    fn make_ifb(&self, own: Mark<'_>, mtu: u32) -> Result<Link, Error> {
        let host = self.0.host()?;
        let mut name = first_name(own);
        if let Some(link) = host.find_link(&name).step("look for the ifb")? {
            if !is_anothers(&link, own) {
                return Err(Error::internal(format!(
                    "{name} is there already: this interface was added before; delete it first"
                )));
            }
            name = second_name(own);
        }
        let alias = own.alias();
        let link = NewLink {
            name: &name,
            kind: NewLinkKind::Ifb,
            mtu: Some(mtu),
            // Packets wait in the token bucket, as in the original's.
            tx_queue_len: Some(0),
            ..NewLink::default()
        };
        let change = LinkChange { up: Some(true), alias: alias.as_deref(), ..LinkChange::default() };
        let mut batch = host.batch();
        batch.create_link(&link).set_link(&name, &change);
        match batch.commit() {
            Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => return Err(no_ifb()),
            outcome => outcome.step(format_args!("make the ifb {name}"))?,
        }
        host.link(&name).step("look for the new ifb")
    }
}

fn no_ifb() -> Error {
    Error::new(
        Code::NotAvailable,
        "the kernel has no ifb devices, which limits from a container need: load the module ifb, or leave out egressRate",
    )
}

/// Takes all shaping off a link; what is not there is no error.
fn clear(host: &Handle, index: u32) {
    let _ = host.delete_qdisc(index, ROOT);
    let _ = host.delete_qdisc(index, INGRESS);
}

/// Fails unless the link shapes what it sends with this bucket.
fn check_bucket(host: &Handle, link: &Link, wanted: &Tbf) -> Result<(), Error> {
    let qdiscs = host.qdiscs(Some(link.index)).step(format_args!("read the queueing disciplines of {}", link.name))?;
    let Some(is) = qdiscs.iter().filter(|qdisc| qdisc.parent == ROOT).find_map(|qdisc| qdisc.tbf) else {
        return Err(Error::internal(format!("{} has no token bucket: its bandwidth is not limited", link.name)));
    };
    if same(wanted, &is) {
        return Ok(());
    }
    Err(Error::internal(format!(
        "{} has a rate of {}, a burst of {} and a limit of {} bytes, {}, {} and {} are configured",
        link.name, is.rate, is.burst, is.limit, wanted.rate, wanted.burst, wanted.limit
    )))
}

impl Plugin for Bandwidth<'_> {
    type Conf = Limits;
    const ABOUT: &'static str = "bandwidth: limits the traffic to and from a container";
    const VERSIONS: std::ops::RangeInclusive<Version> = Version::V0_3_0..=Version::NEWEST;
    const DOC: Documentation = Documentation {
        add: "Finds the host's end of the container's veth pair. For ingress it gets a token bucket (`tbf`; what may wait \
              is 25 ms at the full rate, and the burst). For egress a new `ifb` is made, `bwp` and 12 digits of the SHA-512 \
              of network and container id, to which all that the host's end receives is redirected, and which has the \
              token bucket; it is appended to the interfaces of the result. A second interface of a container on the same \
              network gets an ifb of another name. Without limits the plugin passes on what it was given.",
        check: "Compares the token buckets, the redirection and the ifb with the configuration.",
        del: "Removes the ifb, which it finds by its name; the rest goes with the veth pair. It needs no namespace, no \
              prevResult and no limits.",
        gc: "Removes ifbs of attachments that are no longer valid: by the mark in their alias \
             (`cni:<network>/<container id>/<interface>`), and unmarked ones (of the original plugin) to which nothing is \
             redirected any more.",
        status: "Not ready (50) if the kernel has no ifb devices.",
        capabilities: &[(
            "bandwidth",
            "the limits, with the same keys; they count if none is in the configuration itself",
        )],
        args: &[],
        example: r#"{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    { "type": "bridge", "ipam": { "type": "host-local", "subnet": "10.5.0.0/16" } },
    { "type": "bandwidth", "capabilities": { "bandwidth": true } }
  ]
}"#,
    };

    fn add(&self, call: &Call<'_, Limits>) -> Result<AddResult, Error> {
        let Some(limits) = wanted(call)? else {
            return Ok(call.net.prev_result.clone().unwrap_or_default());
        };
        let mut result = call.prev()?.clone();
        let outside = self.host_end(call)?;
        let host = self.0.host()?;
        let own = mark(call);
        let mut undo = Undo::default();
        let mut batch = host.batch();
        if let Some(bucket) = limits.ingress() {
            batch.add_tbf(outside.index, &bucket);
        }
        if let Some(bucket) = limits.egress() {
            let ifb = self.make_ifb(own, outside.mtu)?;
            undo.push(move || {
                let _ = host.delete_link(ifb.index);
            });
            batch.add_tbf(ifb.index, &bucket).add_ingress(outside.index).add_mirred(outside.index, ifb.index);
            result.interfaces.push(Interface::new(&ifb.name, mac_text(&ifb), ""));
        }
        let limited = batch.commit();
        if let Err(error) = &limited
            && !error.is_exists()
        {
            // What is there already is an earlier ADD's, and stays.
            clear(host, outside.index);
        }
        limited.step(format_args!("limit the bandwidth of {}", outside.name))?;
        undo.keep();
        Ok(result)
    }

    fn del(&self, call: &Call<'_, Limits>) -> Result<(), Error> {
        let Some(ifb) = self.find_ifb(mark(call))? else { return Ok(()) };
        match self.0.host()?.delete_link(ifb.index) {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.step(format_args!("delete the ifb {}", ifb.name)),
        }
    }

    fn check(&self, call: &Call<'_, Limits>) -> Result<(), Error> {
        call.prev()?;
        let limits = wanted(call)?;
        let outside = self.host_end(call)?;
        let Some(limits) = limits else { return Ok(()) };
        let host = self.0.host()?;
        if let Some(bucket) = limits.ingress() {
            check_bucket(host, &outside, &bucket)?;
        }
        if let Some(bucket) = limits.egress() {
            let Some(ifb) = self.find_ifb(mark(call))? else {
                return Err(Error::internal(format!("the ifb {} is missing", first_name(mark(call)))));
            };
            check_bucket(host, &ifb, &bucket)?;
            let filters =
                host.filters(outside.index, INGRESS).step(format_args!("read the filters of {}", outside.name))?;
            if !filters.iter().any(|filter| filter.redirect == Some(ifb.index)) {
                return Err(Error::internal(format!(
                    "what {} receives is not redirected to {}",
                    outside.name, ifb.name
                )));
            }
        }
        Ok(())
    }

    fn gc(&self, call: &Call<'_, Limits>, valid: &[Attachment]) -> Result<(), Error> {
        let host = self.0.host()?;
        let links = host.links().step("list the links")?;
        let network = call.net.name.as_str();
        let ours = |link: &&Link| link.kind.as_deref() == Some("ifb") && link.name.starts_with(PREFIX);
        let mut errors = Errors::new();
        let mut redirects = None;
        for link in links.iter().filter(ours) {
            let stale = if let Some(mark) = link.alias.as_deref().and_then(Mark::parse) {
                mark.network == network && !valid.iter().any(|valid| valid.is(mark.container_id, mark.ifname))
            } else {
                let name = |valid: &Attachment| {
                    first_name(Mark { network, container_id: &valid.container_id, ifname: &valid.ifname })
                };
                let kept = valid.iter().any(|valid| name(valid) == link.name);
                let mut used = || {
                    let veths = links.iter().filter(|link| link.kind.as_deref() == Some("veth"));
                    errors.push(redirected(veths.map(|link| host.filters(link.index, INGRESS))))
                };
                // What cannot be known is not stale.
                let is_unused = |used: &Vec<u32>| !used.contains(&link.index);
                !kept && redirects.get_or_insert_with(&mut used).as_ref().is_some_and(is_unused)
            };
            if stale {
                let deleted = match host.delete_link(link.index) {
                    Err(error) if error.is_not_found() => Ok(()),
                    outcome => outcome.step(format_args!("delete the ifb {}", link.name)),
                };
                errors.push(deleted);
            }
        }
        errors.finish()
    }

    fn status(&self, _: &Call<'_, Limits>) -> Result<(), Error> {
        // A hardware address of zeros is refused after the kind is looked up (and its module loaded), and before anything
        // is made.
        let name = "bwp-probe";
        let probe = NewLink { name, kind: NewLinkKind::Ifb, mac: Some(MacAddr([0; 6])), ..NewLink::default() };
        match self.0.host()?.create_link(&probe) {
            Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => Err(no_ifb()),
            Err(_) => Ok(()),
            // It is there to be asked, not to stay.
            Ok(()) => self.0.host()?.delete_link(name).step("delete the probe"),
        }
    }
}

/// The links to which something is redirected, from what all links' filters are. Unless all could be read, an ifb that is in
/// use could look as if it were not.
fn redirected(lists: impl Iterator<Item = outrigger_netlink::Result<Vec<Filter>>>) -> Result<Vec<u32>, Error> {
    let mut found = Vec::new();
    for filters in lists {
        match filters {
            // A link that went meanwhile redirects nothing.
            Err(error) if error.is_not_found() => {}
            filters => found.extend(
                filters.step("read the filters of the links")?.into_iter().filter_map(|filter| filter.redirect),
            ),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mark<'static> = Mark { network: "net", container_id: "cid1", ifname: "eth0" };

    #[test]
    fn names() {
        // As the original names it.
        assert_eq!(first_name(OWN), "bwpa4f1c0cea348");
        assert_eq!(
            first_name(Mark { network: "cni-plugin-bandwidth-test", container_id: "dummy", ..OWN }),
            "bwpa8eda89404b7"
        );
        let second = second_name(Mark { ifname: "net1", ..OWN });
        assert_eq!(second.len(), NAME_LENGTH);
        assert_ne!(second, first_name(OWN));
    }

    #[test]
    fn filters_that_cannot_be_read_are_not_taken_for_none() {
        let failing = |errno| {
            let operation = "list filters".to_owned();
            Err(outrigger_netlink::Error::Kernel { operation, errno, message: None })
        };
        assert!(redirected([Ok(Vec::new()), failing(Errno::NODEV)].into_iter()).unwrap().is_empty());
        assert!(redirected([Ok(Vec::new()), failing(Errno::NOBUFS)].into_iter()).is_err());
    }

    #[test]
    fn whose_it_is() {
        let link = |alias: Option<&str>| {
            let mut link = Link::default();
            link.alias = alias.map(str::to_owned);
            link
        };
        assert!(!is_anothers(&link(None), OWN));
        assert!(!is_anothers(&link(Some("cni:net/cid1/eth0")), OWN));
        assert!(is_anothers(&link(Some("cni:net/cid1/net1")), OWN));
    }
}
