//! `sbr`: source-based routing. What has an address of the interface leaves through the interface, whatever the container's
//! other interfaces and their default routes are.

mod plan;

use std::collections::BTreeSet;

use outrigger_cni_sdk::{AddResult, Call, Documentation, Error, Errors, Plugin, Step as _, conf};
use outrigger_netlink::route::{Handle, Route, RouteFilter, Rule, TABLE_MAIN};
use rustix::fs::{FlockOperation, flock};

use self::plan::{FIRST_TABLE, Plan, Present};
use crate::session::{Container, Session};

conf! {
    /// Gives each address of a container's interface a routing table of its own, so that answers leave through the interface
    /// that was asked. For second interfaces.
    pub struct SbrConf {
        /// Uses this table, which an earlier plugin filled, and leaves the routes alone. Without it the first one from 100
        /// on that no rule and no route mentions is taken for each address, and the interface's routes move there.
        pub table: Option<u32>,
        /// Gateways to use instead of those of the addresses: at most one for each family.
        pub gateways: Vec<String>,
        /// Keeps the interface's subnets in the main table too, with its address as source.
        pub add_source_hints: bool,
    }
}

/// The plugin.
pub struct Sbr<'s>(pub &'s Session);

/// Keeps other instances of this plugin, ours or the original's, out of the container until it is dropped.
struct Lock<'c>(&'c Container);

impl<'c> Lock<'c> {
    fn take(container: &'c Container) -> Result<Self, Error> {
        flock(&container.ns, FlockOperation::LockExclusive).step("lock the network namespace")?;
        Ok(Self(container))
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // The namespace may stay open for the rest of a chain. It would be unlocked when the process ends in any case.
        let _ = flock(&self.0.ns, FlockOperation::Unlock);
    }
}

fn present(route: &Handle, ifname: &str) -> Result<Present, Error> {
    let index = route.link(ifname).step("look for the interface in the container")?.index;
    let routes = route.routes(RouteFilter::default()).step("list the routes of the container")?;
    let rules = route.rules(None).step("list the rules of the container")?;
    let tables: BTreeSet<u32> =
        rules.iter().map(|rule| rule.table).chain(routes.iter().map(|route| route.table)).collect();
    let own = |route: &Route| route.oif == Some(index) && route.table == TABLE_MAIN;
    Ok(Present { index, routes: routes.into_iter().filter(own).collect(), tables })
}

/// Makes the changes; undoes them if one fails.
fn apply(route: &Handle, plan: &Plan) -> Result<(), Error> {
    let mut batch = route.batch();
    for rule in &plan.rules {
        batch.add_rule(rule);
    }
    for each in &plan.replaced {
        batch.replace_route(each);
    }
    if let Err(error) = batch.commit() {
        undo(route, plan);
        return Err(error).step("route by source address");
    }
    // Only now: gateways of the copies are looked up in the main table.
    let mut batch = route.batch();
    for each in &plan.deleted {
        batch.delete_route(each);
    }
    let deleted = batch.commit_each().step("take routes out of the main table")?;
    for outcome in deleted {
        match outcome {
            // The kernel takes some with others.
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                undo(route, plan);
                return Err(error).step("take a route out of the main table");
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

fn undo(route: &Handle, plan: &Plan) {
    let mut batch = route.batch();
    for each in &plan.deleted {
        batch.replace_route(each);
    }
    for each in plan.replaced.iter().filter(|each| each.table != TABLE_MAIN) {
        batch.delete_route(each);
    }
    for rule in &plan.rules {
        batch.delete_rule(rule);
    }
    let _ = batch.commit_each();
}

/// The rules that send what comes from these addresses to a table of this plugin's.
fn own_rules(rules: Vec<Rule>, sources: &BTreeSet<std::net::IpAddr>, table: Option<u32>) -> Vec<Rule> {
    let is_own = |rule: &Rule| {
        let source = rule.src.filter(|src| src.prefix_len() == src.max_prefix_len());
        // 253 to 255 are the kernel's own.
        let picked = rule.table >= FIRST_TABLE && !(253..=255).contains(&rule.table);
        source.is_some_and(|src| sources.contains(&src.addr())) && table.map_or(picked, |table| rule.table == table)
    };
    rules.into_iter().filter(is_own).collect()
}

impl Plugin for Sbr<'_> {
    type Conf = SbrConf;
    const ABOUT: &'static str = "sbr: source-based routing for an interface of a container";
    const DOC: Documentation = Documentation {
        add: "Holds a lock on the network namespace (`flock`) while it works. For each address of the interface it adds the \
              rule `from <address> lookup <table>`, a default route through the gateway in that table, and copies of the \
              interface's routes there; then it takes those out of the main table. If a step fails, what it did is undone. \
              The result is that of the plugin before.",
        check: "Every address has its rule, and the table of an address with a gateway has the default route through the \
                interface.",
        del: "Removes the rules for the interface's addresses, both those that it has and those of prevResult, and the \
              interface's routes in their tables. Without a namespace there is nothing to do.",
        gc: "Has nothing to do: all of it is in the container's namespace, and goes with it.",
        status: "Always ready.",
        capabilities: &[],
        args: &[],
        example: r#"{
  "cniVersion": "1.0.0",
  "name": "storage",
  "plugins": [
    { "type": "macvlan", "master": "eth1", "ipam": { "type": "host-local", "subnet": "10.7.0.0/24" } },
    { "type": "sbr" }
  ]
}"#,
    };

    fn add(&self, call: &Call<'_, SbrConf>) -> Result<AddResult, Error> {
        let result = call.prev()?;
        let ips = plan::addresses(result, call.ifname);
        if result.ips.is_empty() {
            return Err(Error::config(format!(
                "prevResult has no addresses, so there is nothing to route for {}",
                call.ifname
            )));
        }
        let gateways = plan::gateways(&call.conf.gateways)?;
        let container = self.0.container(call.netns()?)?;
        let _lock = Lock::take(&container)?;
        let plan = if let Some(table) = call.conf.table {
            plan::use_table(&ips, table)
        } else {
            let present = present(&container.route, call.ifname)?;
            plan::move_routes(&ips, &present, &gateways, call.conf.add_source_hints)
        };
        apply(&container.route, &plan)?;
        Ok(result.clone())
    }

    fn del(&self, call: &Call<'_, SbrConf>) -> Result<(), Error> {
        let Some(container) = self.0.container_if_any(call.netns)? else { return Ok(()) };
        let _lock = Lock::take(&container)?;
        let route = &container.route;
        let link = route.find_link(call.ifname).step("look for the interface in the container")?;
        let mut sources = BTreeSet::new();
        if let Some(link) = &link {
            let addresses = route.addresses(Some(link.index)).step("list the addresses of the interface")?;
            sources.extend(addresses.iter().map(|address| address.net.addr()));
        }
        if let Some(result) = &call.net.prev_result {
            sources.extend(plan::addresses(result, call.ifname).iter().map(|ip| ip.address.addr()));
        }
        let rules = route.rules(None).step("list the rules of the container")?;
        let rules = own_rules(rules, &sources, call.conf.table);
        let mut batch = route.batch();
        for rule in &rules {
            batch.delete_rule(rule);
        }
        if let (None, Some(link)) = (call.conf.table, &link) {
            let tables: BTreeSet<u32> = rules.iter().map(|rule| rule.table).collect();
            let routes = route.routes(RouteFilter { oif: Some(link.index), ..RouteFilter::default() });
            for each in
                routes.step("list the routes of the interface")?.iter().filter(|each| tables.contains(&each.table))
            {
                batch.delete_route(each);
            }
        }
        let mut errors = Errors::new();
        for outcome in batch.commit_each().step("remove rules and routes")? {
            match outcome {
                Err(error) if error.is_not_found() => {}
                outcome => drop(errors.push(outcome.step("remove what routes by source address"))),
            }
        }
        errors.finish()
    }

    fn check(&self, call: &Call<'_, SbrConf>) -> Result<(), Error> {
        let result = call.prev()?;
        let gateways = plan::gateways(&call.conf.gateways)?;
        let container = self.0.container(call.netns()?)?;
        let index = container.route.link(call.ifname).step("look for the interface in the container")?.index;
        let rules = container.route.rules(None).step("list the rules of the container")?;
        let filter = RouteFilter { oif: Some(index), ..RouteFilter::default() };
        let routes = container.route.routes(filter).step("list the routes of the interface")?;
        for ip in plan::addresses(result, call.ifname) {
            let address = ip.address.addr();
            let own = own_rules(rules.clone(), &[address].into(), call.conf.table);
            let Some(rule) = own.first() else {
                return Err(Error::internal(format!("no rule sends what comes from {address} to a table of its own")));
            };
            let same_family = |gateway: &&std::net::IpAddr| gateway.is_ipv4() == address.is_ipv4();
            let gateway = gateways.iter().find(same_family).copied().or(ip.gateway);
            let Some(gateway) = gateway.filter(|_| call.conf.table.is_none()) else { continue };
            let leads_out =
                |route: &Route| route.table == rule.table && route.is_default() && route.gateway == Some(gateway);
            if !routes.iter().any(leads_out) {
                let (table, ifname) = (rule.table, call.ifname);
                let fault = format!("table {table} has no default route through {gateway} on {ifname}");
                return Err(Error::internal(fault));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_rules_are_its_own() {
        let rule =
            |src: Option<&str>, table| Rule { src: src.map(|src| src.parse().unwrap()), table, ..Rule::default() };
        let rules = vec![
            rule(None, 254),
            rule(Some("10.0.0.2/32"), 100),
            rule(Some("10.0.0.2/32"), 254),
            rule(Some("10.0.0.0/24"), 100),
            rule(Some("10.0.0.3/32"), 100),
            rule(Some("fd00::2/128"), 7),
        ];
        let sources = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()].into();
        assert_eq!(own_rules(rules.clone(), &sources, None), rules[1..2]);
        assert_eq!(own_rules(rules.clone(), &sources, Some(7)), rules[5..]);
    }
}
