//! A chained CNI plugin that gives containers routes of their own, beyond those that come with their addresses.

use std::process::ExitCode;

use outrigger_cni_sdk::{AddResult, Call, Code, Documentation, Error, Errors, Plugin, Route, Step as _, conf};
use outrigger_netlink::{NetNs, route};

conf! {
    /// Gives containers further routes through the interface that the plugins before it made.
    pub struct RoutesConf {
        /// The routes: `dst`, and `gw` if there is a next hop.
        pub routes: Vec<Route>,
    }
}

struct ExtraRoutes;

/// A socket into the container's namespace, and the routes as the kernel wants them.
fn open(call: &Call<'_, RoutesConf>) -> Result<(route::Handle, Vec<route::Route>), Error> {
    let netns = NetNs::open(call.netns()?).map_err(|error| Error::new(Code::InvalidNetns, error.to_string()))?;
    let handle = route::Handle::in_netns(&netns).step("open a socket in the container")?;
    let oif = Some(handle.link(call.ifname).step("look at the interface")?.index);
    let route = |route: &Route| route::Route { dst: Some(route.dst), gateway: route.gw, oif, ..Default::default() };
    Ok((handle, call.conf.routes.iter().map(route).collect()))
}

impl Plugin for ExtraRoutes {
    type Conf = RoutesConf;
    const ABOUT: &'static str = "CNI plugin cni-minimal: further routes for containers";
    const DOC: Documentation = Documentation {
        add: "adds the routes and appends them to the result.",
        check: "fails if one of the routes is gone.",
        del: "removes the routes; they are gone already if the namespace is.",
        ..Documentation::EMPTY
    };

    fn add(&self, call: &Call<'_, RoutesConf>) -> Result<AddResult, Error> {
        let mut result = call.prev()?.clone();
        let (handle, routes) = open(call)?;
        routes.iter().try_for_each(|route| handle.add_route(route)).step("add a route")?;
        result.routes.extend_from_slice(&call.conf.routes);
        Ok(result)
    }

    fn check(&self, call: &Call<'_, RoutesConf>) -> Result<(), Error> {
        let (handle, routes) = open(call)?;
        let oif = routes.first().and_then(|route| route.oif);
        let found = handle.routes(route::RouteFilter { oif, ..Default::default() }).step("list the routes")?;
        let here = |wanted: &route::Route| found.iter().any(|r| (r.dst, r.gateway) == (wanted.dst, wanted.gateway));
        let gone = call.conf.routes.iter().zip(&routes).find(|(_, route)| !here(route));
        gone.map_or(Ok(()), |(route, _)| Err(Error::internal(format!("the route to {} is gone", route.dst))))
    }

    fn del(&self, call: &Call<'_, RoutesConf>) -> Result<(), Error> {
        let gone = |error: outrigger_netlink::Error| if error.is_not_found() { Ok(()) } else { Err(error) };
        let Some(Ok(netns)) = call.netns.map(NetNs::open) else { return Ok(()) };
        let handle = route::Handle::in_netns(&netns).step("open a socket in the container")?;
        let Some(link) = handle.find_link(call.ifname).step("look at the interface")? else { return Ok(()) };
        let mut errors = Errors::new();
        for route in &call.conf.routes {
            let dst = Some(route.dst);
            let deleted = handle.delete_route(&route::Route { dst, oif: Some(link.index), ..Default::default() });
            errors.push(deleted.or_else(gone).step(format_args!("delete the route to {}", route.dst)));
        }
        errors.finish()
    }
}

fn main() -> ExitCode {
    outrigger_cni_sdk::main(&ExtraRoutes)
}
