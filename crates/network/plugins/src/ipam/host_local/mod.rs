//! `host-local`: addresses of ranges on this host, kept in files.

mod config;
mod index;
mod owner;
mod range;
mod store;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::IpAddr;

pub use config::{HostLocalConf, IpamConf, RangeKeys};
use outrigger_cni_sdk::{AddResult, Attachment, Call, Code, Documentation, Error, IpConfig, Plugin, Step as _};
pub use owner::Owner;
pub use range::{Candidate, Invalid, Range, RangeConf, RangeSet, RoundRobin};
pub use store::{DEFAULT_DATA_DIR, Store, StoreError, check_writable, has_free};

/// Hands out addresses of ranges, and keeps in files which are taken.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostLocal;

impl Plugin for HostLocal {
    type Conf = HostLocalConf;
    const ABOUT: &'static str =
        "CNI host-local plugin: hands out addresses of ranges and keeps them in files on this host";
    const DOC: Documentation = Documentation {
        add: "Takes one address from each range set: the one that was asked for by name, else the next free one after \
              the address that was given out last, so that addresses are used again as late as possible. Refuses a second \
              ADD of the same attachment. If one set has no address left (code 11), those of the others are given back.\n\n\
              The files are those of the original plugin: `<dataDir>/<network>/<address>` holds the container's id and the \
              interface, `last_reserved_ip.<n>` the address that range set n gave last, and every change is made under a \
              lock on `lock`. Both plugins can work on the same directory, in turn and at the same time. Beside it, \
              `<dataDir>/.outrigger` holds an index, so that ADD and DEL need not read every file; it can be deleted at \
              any time.",
        del: "Gives back all addresses of the attachment. Neither the ranges nor the network namespace are looked at, so \
              that it works when they are gone. Nothing to give back is success.",
        check: "Fails if the attachment holds no address.",
        gc: "Gives back all addresses of this network that belong to none of the valid attachments, and those whose file \
             names nobody: such a file is what a crash or a full disk left.",
        status: "Fails with code 50 if a range set has no free address, or if the files cannot be written. It takes no \
                 lock.",
        capabilities: &[
            ("ips", "List of addresses to take, with or without prefix length."),
            ("ipRanges", "Range sets, as in `ranges`, in front of those of the configuration."),
        ],
        args: &[("IP", "Address to take, with or without prefix length.")],
        example: r#"{
    "cniVersion": "1.1.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "ipam": {
                "type": "host-local",
                "ranges": [
                    [{ "subnet": "10.85.0.0/16", "rangeStart": "10.85.1.0" }],
                    [{ "subnet": "fd00:85::/64" }]
                ],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]
            }
        }
    ]
}"#,
    };

    fn add(&self, call: &Call<'_, HostLocalConf>) -> Result<AddResult, Error> {
        let ipam = config::ipam(call)?;
        let sets = config::range_sets(call)?;
        let mut wanted = config::wanted(call)?;
        let mut result = AddResult { routes: config::routes(ipam)?, ..AddResult::default() };
        if !ipam.resolv_conf.is_empty() {
            result.dns = config::resolv_conf(ipam.resolv_conf.as_ref())?;
        }
        let owner = Owner::new(call.container_id, call.ifname);
        let mut store = Store::create(&config::data_dir(ipam), &call.net.name).step("host-local")?;
        if ipam.reclaim_after_reboot {
            reclaim(&mut store)?;
        }
        let held = store.held(&owner).step("host-local")?;
        for (index, set) in sets.iter().enumerate() {
            let taken = match held.iter().find(|address| set.range_of(**address).is_some()) {
                Some(address) => Err(duplicate(&owner, *address)),
                None => take(&mut store, &owner, index, set, &mut wanted),
            };
            match taken {
                Ok(candidate) => {
                    let mut ip = IpConfig::new(candidate.net);
                    ip.gateway = Some(candidate.gateway);
                    result.ips.push(ip);
                }
                Err(error) => {
                    give_back(&mut store, &owner, &result);
                    return Err(error.during(format_args!("host-local: failed to allocate for range set {index}")));
                }
            }
        }
        if !wanted.is_empty() {
            give_back(&mut store, &owner, &result);
            let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
            return Err(Error::config(format!(
                "host-local: failed to allocate all requested ips: {} in no range set that has none yet; ask for one \
                 address of each set at most",
                wanted.join(" ")
            )));
        }
        Ok(result)
    }

    fn del(&self, call: &Call<'_, HostLocalConf>) -> Result<(), Error> {
        let ipam = config::ipam(call)?;
        if let Some(mut store) = Store::open(&config::data_dir(ipam), &call.net.name).step("host-local")? {
            store.release(&Owner::new(call.container_id, call.ifname)).step("host-local")?;
        }
        Ok(())
    }

    fn check(&self, call: &Call<'_, HostLocalConf>) -> Result<(), Error> {
        let ipam = config::ipam(call)?;
        config::range_sets(call)?;
        let owner = Owner::new(call.container_id, call.ifname);
        let store = Store::open(&config::data_dir(ipam), &call.net.name).step("host-local")?;
        let held = store.map_or_else(|| Ok(Vec::new()), |mut store| store.held(&owner)).step("host-local")?;
        if held.is_empty() {
            let dir = config::data_dir(ipam).join(&call.net.name);
            let msg = format!("host-local: no address of container {owner} in {}", dir.display());
            return Err(
                Error::internal(msg).details("it was given back, or ADD did not run; delete and add the container")
            );
        }
        Ok(())
    }

    fn gc(&self, call: &Call<'_, HostLocalConf>, valid: &[Attachment]) -> Result<(), Error> {
        let ipam = config::ipam(call)?;
        let Some(mut store) = Store::open(&config::data_dir(ipam), &call.net.name).step("host-local")? else {
            return Ok(());
        };
        let ids: HashSet<&str> = valid.iter().map(|valid| valid.container_id.as_str()).collect();
        let owners: HashSet<Owner> = valid.iter().map(|valid| Owner::new(&valid.container_id, &valid.ifname)).collect();
        let keep = |owner: &Owner| if owner.is_old_form() { ids.contains(owner.id()) } else { owners.contains(owner) };
        store.retain(keep).map(drop).step("host-local")
    }

    fn status(&self, call: &Call<'_, HostLocalConf>) -> Result<(), Error> {
        let ipam = config::ipam(call)?;
        let sets = config::range_sets(call)?;
        let data_dir = config::data_dir(ipam);
        let unavailable = |error: Error| Error { code: Code::NotAvailable, ..error };
        check_writable(&data_dir, &call.net.name).step("host-local").map_err(unavailable)?;
        for (index, set) in sets.iter().enumerate() {
            if !has_free(&data_dir, &call.net.name, index, set).step("host-local").map_err(unavailable)? {
                return Err(unavailable(full(set).during(format_args!("host-local: range set {index}"))));
            }
        }
        Ok(())
    }
}

/// Takes the address of a set that was asked for, and strikes it from the list; else the next free one.
fn take(
    store: &mut Store,
    owner: &Owner,
    index: usize,
    set: &RangeSet,
    wanted: &mut Vec<IpAddr>,
) -> Result<Candidate, Error> {
    let Some(position) = wanted.iter().position(|address| set.range_of(*address).is_some()) else {
        return store.take_next(owner, index, set).step("taking an address")?.ok_or_else(|| full(set));
    };
    let address = wanted.remove(position);
    let Some(candidate) = set.wanted(address) else { return Err(full(set)) };
    let candidate = candidate.map_err(|error| Error::config(error.to_string()))?;
    if store.take(owner, index, address).step("taking an address")? {
        return Ok(candidate);
    }
    Err(Error::internal(format!("requested ip address {address} is not available in range set {set}"))
        .details("another container holds it; ask for another address, or for none"))
}

fn give_back(store: &mut Store, owner: &Owner, result: &AddResult) {
    for ip in &result.ips {
        // The error that led here matters more; DEL follows and tries again.
        let _ = store.release_one(owner, ip.address.addr());
    }
}

fn full(set: &RangeSet) -> Error {
    let capacity = set.capacity();
    // It begins with the words of the original, capitals included: alerts look for them.
    Error::new(Code::TryAgain, format!("no IP addresses available in range set: {set}: all {capacity} are taken"))
        .details("remove containers, run GC if some are gone already, or configure a larger range")
}

fn duplicate(owner: &Owner, address: IpAddr) -> Error {
    Error::internal(format!("{address} has been allocated to {owner} already, duplicate allocation is not allowed"))
        .details("DEL has to come between two ADDs of the same attachment")
}

fn reclaim(store: &mut Store) -> Result<(), Error> {
    let mut boot = String::new();
    std::fs::File::open("/proc/sys/kernel/random/boot_id")
        .and_then(|mut file| std::io::Read::read_to_string(&mut file, &mut boot))
        .step("host-local: cannot read the boot id")?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let started = i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - rustix::system::sysinfo().uptime;
    store
        .reclaim_before_boot(boot.trim(), started)
        .map(drop)
        .step("host-local: giving back addresses of before the boot")
}
