//! `loopback`: brings the container's loopback interface up.

use outrigger_cni_sdk::{AddResult, Call, Documentation, Error, Interface, IpConfig, Plugin, Step as _, conf};
use outrigger_netlink::route::LinkChange;

use crate::session::Session;

conf! {
    /// Brings the loopback interface of the container up and reports its addresses. It has no keys of its own.
    pub struct LoopbackConf {}
}

/// The plugin.
pub struct Loopback<'s>(pub &'s Session);

/// It is always this interface, whatever `CNI_IFNAME` says.
const LO: &str = "lo";

impl Plugin for Loopback<'_> {
    type Conf = LoopbackConf;
    const ABOUT: &'static str = "loopback";
    const DOC: Documentation = Documentation {
        add: "Brings `lo` up, whatever `CNI_IFNAME` says. After another plugin it passes that one's result on; otherwise \
              the result has `lo` and its first address of each family.",
        del: "Brings `lo` down. Succeeds without a network namespace.",
        check: "Looks whether `lo` is up.",
        example: r#"{
    "cniVersion": "1.1.0",
    "name": "lo",
    "plugins": [{ "type": "loopback" }]
}"#,
        ..Documentation::EMPTY
    };

    fn add(&self, call: &Call<'_, LoopbackConf>) -> Result<AddResult, Error> {
        let path = call.netns()?;
        let container = self.0.container(path)?;
        let link = container.route.link(LO).step("look for lo in the container")?;
        container
            .route
            .set_link(link.index, &LinkChange { up: Some(true), ..LinkChange::default() })
            .step("bring lo up")?;
        let addresses = container.route.addresses(Some(link.index)).step("read the addresses of lo")?;
        if let Some(other) = addresses.iter().find(|address| !address.net.addr().is_loopback()) {
            return Err(Error::internal(format!(
                "lo has the address {}, which is none for a loopback: remove it",
                other.net
            )));
        }
        // In a chain it only passes on what came before.
        if let Some(previous) = &call.net.prev_result {
            return Ok(previous.clone());
        }
        let first = |v4: bool| addresses.iter().map(|address| address.net).find(|net| net.addr().is_ipv4() == v4);
        Ok(AddResult {
            interfaces: vec![Interface::new(LO, "00:00:00:00:00:00", path.to_string_lossy())],
            ips: [first(true), first(false)]
                .into_iter()
                .flatten()
                .map(|address| IpConfig { address, gateway: None, interface: Some(0) })
                .collect(),
            ..AddResult::default()
        })
    }

    fn del(&self, call: &Call<'_, LoopbackConf>) -> Result<(), Error> {
        let Some(container) = self.0.container_if_any(call.netns)? else { return Ok(()) };
        container.route.set_link(LO, &LinkChange { up: Some(false), ..LinkChange::default() }).step("bring lo down")
    }

    fn check(&self, call: &Call<'_, LoopbackConf>) -> Result<(), Error> {
        let container = self.0.container(call.netns()?)?;
        let link = container.route.link(LO).step("look for lo in the container")?;
        if link.is_up() {
            Ok(())
        } else {
            Err(Error::internal("the loopback interface is down: add the container again"))
        }
    }
}
