//! What is there, as far as a plan needs it, together with what the plan changes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use outrigger_cni_sdk::{Code, Error, Errors, Step as _};
use outrigger_netlink::nft::{
    BaseChain, Batch, Chain, Element, Family, Handle, Key, NewElement, NewRule, NewSet, RawRule, Rule, TableRef,
    is_race,
};
use rustix::io::Errno;

use super::Backend;

/// How often a batch is planned again because others changed the rules meanwhile.
const RACE_ATTEMPTS: u32 = 200;
/// How often if the kernel misses, or has already, what the plan relies on: that may last.
const STATE_ATTEMPTS: u32 = 8;

type Action = Box<dyn Fn(&[Rule]) -> Result<(), Error>>;
type Planner = Box<dyn Fn(&mut RuleView<'_>) -> Result<(), Error>>;

/// Plans that are to be committed together.
#[derive(Default)]
pub struct RuleSet {
    planners: RefCell<Vec<Planner>>,
    afterwards: RefCell<Vec<Action>>,
}

impl RuleSet {
    /// Adds a plan. It runs at [`RuleSet::commit`], and again if others changed the rules meanwhile.
    pub fn plan(&self, planner: impl Fn(&mut RuleView<'_>) -> Result<(), Error> + 'static) {
        self.planners.borrow_mut().push(Box::new(planner));
    }

    /// Has something done once the plans are in force, with those of the rules made that ask for it ([`NewRule::echo`]).
    /// Its error is one of the commit's, but keeps no other action from being done.
    pub fn afterwards(&self, action: impl Fn(&[Rule]) -> Result<(), Error> + 'static) {
        self.afterwards.borrow_mut().push(Box::new(action));
    }

    /// True if there is nothing to commit; then no handle need be opened.
    pub fn is_empty(&self) -> bool {
        self.planners.borrow().is_empty()
    }

    /// Forgets the plans.
    pub fn clear(&self) {
        self.planners.borrow_mut().clear();
        self.afterwards.borrow_mut().clear();
    }

    /// Runs all plans and commits what they want as one batch: all or nothing. The plans are gone afterwards.
    pub fn commit(&self, handle: &Handle) -> Result<(), Error> {
        let planners = self.planners.take();
        let afterwards = self.afterwards.take();
        let mut guarded = false;
        let mut attempt = 0;
        loop {
            let mut view = RuleView::new(handle);
            if guarded {
                view.generation = Some(handle.generation().step("read the state of the rules")?);
            }
            let planned = planners.iter().try_for_each(|planner| planner(&mut view));
            if view.restart {
                guarded = true;
                continue;
            }
            planned?;
            let error = match handle.commit(view.batch) {
                Ok(made) => {
                    let mut errors = Errors::new();
                    for action in afterwards {
                        errors.push(action(&made));
                    }
                    return errors.finish();
                }
                Err(error) => error,
            };
            attempt += 1;
            let limit = match error.errno() {
                Some(Errno::NOENT | Errno::EXIST) => STATE_ATTEMPTS,
                _ => RACE_ATTEMPTS,
            };
            if !is_race(&error) {
                return Err(error).step("change the packet filter");
            }
            if attempt >= limit {
                let error = Err::<(), _>(error).step("change the packet filter");
                return error.map_err(|error| {
                    if limit == RACE_ATTEMPTS { Error { code: Code::TryAgain, ..error } } else { error }
                });
            }
        }
    }
}

type Place = (Family, String, String);

/// Reads lazily, remembers, and collects the changes. Changes show in what is read afterwards.
pub struct RuleView<'h> {
    handle: &'h Handle,
    batch: Batch,
    tables: HashMap<(Family, String), bool>,
    chains: HashMap<Place, Option<Chain>>,
    made: HashMap<Place, bool>,
    rules: HashMap<Place, Rc<Vec<Rule>>>,
    generation: Option<u32>,
    restart: bool,
}

fn place(table: TableRef<'_>, name: &str) -> Place {
    (table.family, table.name.to_owned(), name.to_owned())
}

impl<'h> RuleView<'h> {
    /// A fresh view.
    pub fn new(handle: &'h Handle) -> Self {
        Self {
            handle,
            batch: Batch::new(),
            tables: HashMap::new(),
            chains: HashMap::new(),
            made: HashMap::new(),
            rules: HashMap::new(),
            generation: None,
            restart: false,
        }
    }

    /// The plan relies on something *not* being in a place that is shared with others: the batch must fail if anything
    /// changed since it looked. Only the first container of a host needs this.
    pub fn guard(&mut self) -> Result<(), Error> {
        let Some(generation) = self.generation else {
            self.restart = true;
            // Not seen by anyone: the commit plans again.
            return Err(Error::new(Code::TryAgain, "the rules must be read again"));
        };
        self.batch.only_if(generation);
        Ok(())
    }

    /// The layout where none is asked for: that of iptables, unless the kernel lacks what its rules are made of.
    pub fn default_backend(&self) -> Backend {
        if self.handle.has_xtables() { Backend::Iptables } else { Backend::Nftables }
    }

    /// Whether there is a table.
    pub fn has_table(&mut self, table: TableRef<'_>) -> Result<bool, Error> {
        let key = (table.family, table.name.to_owned());
        if let Some(known) = self.tables.get(&key) {
            return Ok(*known);
        }
        let exists = self.handle.table(table).step("read the packet filter")?.is_some();
        self.tables.insert(key, exists);
        Ok(exists)
    }

    /// Makes a table unless it is there; true if it was not.
    pub fn ensure_table(&mut self, table: TableRef<'_>, comment: Option<&str>) -> Result<bool, Error> {
        if self.has_table(table)? {
            return Ok(false);
        }
        self.batch.add_table(table, comment);
        self.tables.insert((table.family, table.name.to_owned()), true);
        Ok(true)
    }

    /// A chain as the kernel has it.
    pub fn chain(&mut self, table: TableRef<'_>, name: &str) -> Result<Option<Chain>, Error> {
        let key = place(table, name);
        if let Some(known) = self.chains.get(&key) {
            return Ok(known.clone());
        }
        let chain = self.handle.chain(table, name).step("read the packet filter")?;
        if chain.is_some() {
            self.tables.insert((table.family, table.name.to_owned()), true);
        }
        self.chains.insert(key, chain.clone());
        Ok(chain)
    }

    /// Whether there is a chain, or will be.
    pub fn has_chain(&mut self, table: TableRef<'_>, name: &str) -> Result<bool, Error> {
        match self.made.get(&place(table, name)) {
            Some(made) => Ok(*made),
            None => Ok(self.chain(table, name)?.is_some()),
        }
    }

    /// Makes a chain, and its table, unless it is there; true if it was not.
    pub fn ensure_chain(&mut self, table: TableRef<'_>, name: &str) -> Result<bool, Error> {
        if self.has_chain(table, name)? {
            return Ok(false);
        }
        self.ensure_table(table, None)?;
        self.batch.add_chain(table, name);
        self.made.insert(place(table, name), true);
        Ok(true)
    }

    /// Makes a chain that the kernel calls, and its table, unless it is there; true if it was not.
    pub fn ensure_base_chain(&mut self, table: TableRef<'_>, name: &str, base: BaseChain<'_>) -> Result<bool, Error> {
        if self.has_chain(table, name)? {
            return Ok(false);
        }
        self.ensure_table(table, None)?;
        self.batch.add_base_chain(table, name, base);
        self.made.insert(place(table, name), true);
        Ok(true)
    }

    /// The rules of a chain, with what the plan changed so far; those that it added have the number 0.
    pub fn rules(&mut self, table: TableRef<'_>, chain: &str) -> Result<Rc<Vec<Rule>>, Error> {
        let key = place(table, chain);
        if let Some(known) = self.rules.get(&key) {
            return Ok(Rc::clone(known));
        }
        // A chain that the plan makes is empty at first.
        let fresh = self.made.contains_key(&key);
        let rules = if fresh { Vec::new() } else { self.handle.rules(table, chain).step("read the packet filter")? };
        let rules = Rc::new(rules);
        self.rules.insert(key, Rc::clone(&rules));
        Ok(rules)
    }

    /// Those rules of a chain, as the kernel has them, that a glance at their bytes does not rule out.
    pub fn find(
        &mut self,
        table: TableRef<'_>,
        chain: &str,
        wanted: impl Fn(RawRule<'_>) -> bool,
    ) -> Result<Vec<Rule>, Error> {
        self.handle.rules_where(table, chain, wanted).step("read the packet filter")
    }

    /// All rules of a table as the kernel has them, for GC.
    pub fn table_rules(&mut self, table: TableRef<'_>) -> Result<Vec<Rule>, Error> {
        if !self.has_table(table)? {
            return Ok(Vec::new());
        }
        self.handle.table_rules(table).step("read the packet filter")
    }

    /// One rule by its number.
    pub fn rule(&mut self, table: TableRef<'_>, chain: &str, handle: u64) -> Result<Option<Rule>, Error> {
        self.handle.rule(table, chain, handle).step("read the packet filter")
    }

    /// Puts a rule at the end of a chain.
    pub fn append(&mut self, table: TableRef<'_>, chain: &str, rule: &NewRule) -> Result<(), Error> {
        self.batch.add_rule(table, chain, rule);
        self.remember(table, chain, rule, false);
        Ok(())
    }

    /// Puts a rule at the beginning of a chain.
    pub fn insert(&mut self, table: TableRef<'_>, chain: &str, rule: &NewRule) -> Result<(), Error> {
        self.batch.insert_rule(table, chain, rule);
        self.remember(table, chain, rule, true);
        Ok(())
    }

    fn remember(&mut self, table: TableRef<'_>, chain: &str, rule: &NewRule, first: bool) {
        let key = place(table, chain);
        if self.made.contains_key(&key) {
            self.rules.entry(key.clone()).or_default();
        }
        // A chain whose rules nobody read need not be kept up to date; a later reader would miss this rule, though, so
        // that planners that look for a rule always read first.
        let Some(rules) = self.rules.get_mut(&key) else { return };
        let rule = Rule {
            chain: chain.to_owned(),
            handle: 0,
            expressions: rule.expressions.clone(),
            user_data: rule.user_data.clone(),
        };
        let rules = Rc::make_mut(rules);
        if first { rules.insert(0, rule) } else { rules.push(rule) }
    }

    /// Removes a rule that the kernel has.
    pub fn delete(&mut self, table: TableRef<'_>, chain: &str, handle: u64) {
        self.batch.delete_rule(table, chain, handle);
        if let Some(rules) = self.rules.get_mut(&place(table, chain)) {
            Rc::make_mut(rules).retain(|rule| rule.handle != handle);
        }
    }

    /// Empties a chain that the kernel has.
    pub fn flush(&mut self, table: TableRef<'_>, chain: &str) {
        self.batch.flush_chain(table, chain);
        self.rules.insert(place(table, chain), Rc::default());
    }

    /// Empties and removes a chain that the kernel has. What leads to it must go first.
    pub fn delete_chain(&mut self, table: TableRef<'_>, chain: &str) {
        self.flush(table, chain);
        self.batch.delete_chain(table, chain);
        self.made.insert(place(table, chain), false);
    }

    /// Whether there is a set, or will be.
    pub fn has_set(&mut self, table: TableRef<'_>, name: &str) -> Result<bool, Error> {
        // Sets and chains have names of their own, so they can share a memory with a mark.
        let key = place(table, &format!("@{name}"));
        if let Some(made) = self.made.get(&key) {
            return Ok(*made);
        }
        let exists = self.handle.set(table, name).step("read the packet filter")?.is_some();
        self.made.insert(key, exists);
        Ok(exists)
    }

    /// Makes a set, unless it is there; true if it was not.
    pub fn ensure_set(&mut self, table: TableRef<'_>, set: &NewSet<'_>) -> Result<bool, Error> {
        if self.has_set(table, set.name)? {
            return Ok(false);
        }
        self.batch.add_set(table, set);
        self.made.insert(place(table, &format!("@{}", set.name)), true);
        Ok(true)
    }

    /// The names of all sets of a table as the kernel has them.
    pub fn sets(&mut self, table: TableRef<'_>) -> Result<Vec<String>, Error> {
        if !self.has_table(table)? {
            return Ok(Vec::new());
        }
        Ok(self.handle.sets(table).step("read the packet filter")?.into_iter().map(|set| set.name).collect())
    }

    /// All elements of a set as the kernel has them.
    pub fn elements(&mut self, table: TableRef<'_>, set: &str) -> Result<Vec<Element>, Error> {
        self.handle.elements(table, set).step("read the packet filter")
    }

    /// One element of a set as the kernel has it.
    pub fn element(&mut self, table: TableRef<'_>, set: &str, key: &Key) -> Result<Option<Element>, Error> {
        self.handle.element(table, set, key).step("read the packet filter")
    }

    /// Puts elements into a set; the batch fails if one is there with another value.
    pub fn add_elements(&mut self, table: TableRef<'_>, set: &str, elements: &[NewElement]) {
        self.batch.add_elements(table, set, elements, false);
    }

    /// Takes elements out of a set in which the kernel has them.
    pub fn delete_elements(&mut self, table: TableRef<'_>, set: &str, keys: &[Key]) {
        if !keys.is_empty() {
            self.batch.delete_elements(table, set, keys);
        }
    }
}
