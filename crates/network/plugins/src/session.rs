//! What the plugins of one process share: sockets into the namespaces, and rules that are committed together.

use std::cell::{Cell, OnceCell, RefCell};
use std::path::Path;
use std::rc::Rc;

use outrigger_cni_sdk::{Code, Error, Step as _};
use outrigger_netlink::{NetNs, nft, route};
use rustix::io::Errno;

use crate::rules::RuleSet;

/// Made once for a process. Everything in it is opened when it is first needed: most calls need a part of it only.
#[derive(Default)]
pub struct Session {
    host: OnceCell<route::Handle>,
    nft: OnceCell<nft::Handle>,
    containers: RefCell<Vec<Rc<Container>>>,
    rules: RuleSet,
    gathering: Cell<bool>,
}

/// A container's network namespace, and a socket in it.
#[derive(Debug)]
pub struct Container {
    /// The namespace.
    pub ns: NetNs,
    /// Links, addresses and routes in it.
    pub route: route::Handle,
}

impl Session {
    /// Links, addresses and routes of the plugin's own namespace, the host's.
    pub fn host(&self) -> Result<&route::Handle, Error> {
        if let Some(handle) = self.host.get() {
            return Ok(handle);
        }
        let handle = route::Handle::open().step("open a netlink socket on the host")?;
        Ok(self.host.get_or_init(|| handle))
    }

    /// The packet filter of the plugin's own namespace.
    pub fn nft(&self) -> Result<&nft::Handle, Error> {
        if let Some(handle) = self.nft.get() {
            return Ok(handle);
        }
        let handle = nft::Handle::open().step("open a netfilter socket on the host")?;
        Ok(self.nft.get_or_init(|| handle))
    }

    /// A container's namespace, opened once for each path. An error (code 8) if the path leads to none.
    pub fn container(&self, path: &Path) -> Result<Rc<Container>, Error> {
        let known = self.containers.borrow().iter().find(|known| known.ns.path() == path).cloned();
        match known {
            Some(known) => Ok(known),
            None => self.enter(open_netns(path)?),
        }
    }

    /// As [`Session::container`], for what must work without the namespace, such as DEL: none if the path is none or the
    /// namespace is gone.
    pub fn container_if_any(&self, path: Option<&Path>) -> Result<Option<Rc<Container>>, Error> {
        let Some(path) = path else { return Ok(None) };
        if let Some(known) = self.containers.borrow().iter().find(|known| known.ns.path() == path) {
            return Ok(Some(Rc::clone(known)));
        }
        match NetNs::open(path) {
            Err(error) if error.is_namespace_gone() => Ok(None),
            Err(error) => Err(Error::new(Code::InvalidNetns, error.to_string())),
            Ok(ns) => self.enter(ns).map(Some),
        }
    }

    fn enter(&self, ns: NetNs) -> Result<Rc<Container>, Error> {
        let route = route::Handle::in_netns(&ns).step("open a netlink socket in the container")?;
        let container = Rc::new(Container { ns, route });
        self.containers.borrow_mut().push(Rc::clone(&container));
        Ok(container)
    }

    /// Rules that plugins plan. None of them is in force before [`Session::commit_rules`].
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Whether there can be rules to take away. The configuration may have asked for them when it was another, so that they
    /// are looked for in any case; but where it does not ask, a kernel without nf_tables just has none.
    pub fn may_have_rules(&self, asked: bool) -> bool {
        let lacks = |error: &outrigger_netlink::Error| {
            let lacking = [Errno::OPNOTSUPP, Errno::PROTONOSUPPORT, Errno::AFNOSUPPORT, Errno::INVAL];
            error.errno().is_some_and(|errno| lacking.contains(&errno))
        };
        let asks = || {
            let handle = match self.nft.get() {
                Some(handle) => handle,
                None => nft::Handle::open().map(|handle| self.nft.get_or_init(|| handle))?,
            };
            handle.generation()
        };
        // Other errors are told by the commit.
        asked || asks().err().as_ref().is_none_or(|error| !lacks(error))
    }

    /// Puts the planned rules in force, all or none. While a chain gathers them ([`Session::gather_rules`]) it does nothing:
    /// the chain commits.
    pub fn commit_rules(&self) -> Result<(), Error> {
        if self.gathering.get() { Ok(()) } else { self.commit_gathered() }
    }

    /// From now on [`Session::commit_rules`] does nothing, until what this gives is committed or dropped. If it is dropped,
    /// the rules that were not committed are forgotten.
    pub fn gather_rules(&self) -> Gathering<'_> {
        self.gathering.set(true);
        Gathering(self)
    }

    /// Puts the planned rules in force also while they are gathered: whoever comes next must find them.
    pub fn commit_gathered(&self) -> Result<(), Error> {
        if self.rules.is_empty() { Ok(()) } else { self.rules.commit(self.nft()?) }
    }
}

/// Rules of several plugins wait for each other. See [`Session::gather_rules`].
#[must_use = "rules that were gathered are forgotten when this is dropped without `commit`"]
pub struct Gathering<'s>(&'s Session);

impl Gathering<'_> {
    /// Puts them in force, all or none.
    pub fn commit(self) -> Result<(), Error> {
        self.0.commit_gathered()
    }
}

impl Drop for Gathering<'_> {
    fn drop(&mut self) {
        self.0.gathering.set(false);
        self.0.rules.clear();
    }
}

fn open_netns(path: &Path) -> Result<NetNs, Error> {
    NetNs::open(path).map_err(|error| Error::new(Code::InvalidNetns, error.to_string()))
}
