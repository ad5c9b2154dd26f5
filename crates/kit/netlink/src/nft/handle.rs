//! Reading what is there, and committing batches.

use rustix::io::Errno;

use super::batch::Batch;
use super::expr::{Expr, Verdict, encode_value};
use super::userdata;
use super::{Family, Hook, Key, SetValue, TableRef, kind, message};
use crate::wire::{Attribute, Attributes, Message, NLM_F_ACK};
use crate::{Error, NetNs, Protocol, Reply, Result, Socket};

/// Length of `struct nfgenmsg`.
const BODY: usize = 4;

/// Type of messages that make rules.
const RULE: u16 = kind::SUBSYSTEM << 8 | kind::NEWRULE as u16;

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// User data.
    pub user_data: Vec<u8>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its number. Rules and chains of a table are numbered in the order in which they were made.
    pub handle: u64,
    /// Hook and priority if it is called by the kernel.
    pub base: Option<(u32, i32)>,
    /// The policy of such a chain is to drop.
    pub drops: bool,
    /// How many rules it has, plus how many verdicts lead to it.
    pub uses: u32,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: String,
    /// Its number.
    pub handle: u64,
    /// What it does.
    pub expressions: Vec<Expr>,
    /// User data; see [`userdata`].
    pub user_data: Vec<u8>,
}

/// The bytes of a rule, for a glance. See [`Handle::rules_where`].
#[derive(Debug, Clone, Copy)]
pub struct RawRule<'a> {
    /// The expressions as they came.
    pub expressions: &'a [u8],
    /// User data.
    pub user_data: &'a [u8],
}

impl RawRule<'_> {
    /// Whether these bytes occur in the expressions.
    pub fn mentions(&self, bytes: &[u8]) -> bool {
        !bytes.is_empty() && self.expressions.windows(bytes.len()).any(|window| window == bytes)
    }
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its key.
    pub key: Key,
    /// Its value, in a map.
    pub value: Option<SetValue>,
    /// User data; see [`userdata`].
    pub user_data: Vec<u8>,
}

impl Rule {
    /// The chain that the rule jumps or goes to, if it does.
    pub fn target_chain(&self) -> Option<&str> {
        match self.expressions.last()? {
            Expr::Verdict(verdict) => verdict.chain(),
            _ => None,
        }
    }

    /// The comment, whether nft wrote it or iptables.
    pub fn comment(&self) -> Option<&str> {
        userdata::find_text(&self.user_data, userdata::COMMENT)
            .or_else(|| self.expressions.iter().find_map(super::xt::comment_text))
    }

    /// True if the rule does the same as these expressions, whatever it counted.
    pub fn does(&self, expressions: &[Expr]) -> bool {
        self.expressions.len() == expressions.len() && self.expressions.iter().zip(expressions).all(|(a, b)| a.same(b))
    }
}

impl Element {
    /// The comment.
    pub fn comment(&self) -> Option<&str> {
        userdata::find_text(&self.user_data, userdata::COMMENT)
    }
}

/// A connection to `nf_tables` of one network namespace.
#[derive(Debug)]
pub struct Handle {
    socket: Socket,
}

impl Handle {
    /// Opens one in the thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }

    /// Opens one in this network namespace.
    pub fn in_netns(netns: &NetNs) -> Result<Self> {
        Ok(Self { socket: Socket::open_in(Protocol::Netfilter, netns)? })
    }

    /// The number of the current generation of all tables; it changes with each batch of anyone.
    pub fn generation(&self) -> Result<u32> {
        let m = message(kind::GETGEN, 0, Family::Unspecified, || "ask for the generation of the rules".into());
        for reply in self.socket.query(m)? {
            if let Some(id) = Attributes::after(&reply.payload, BODY)?.find(1) {
                return id.be32();
            }
        }
        Err(super::expr::malformed("no generation in the answer"))
    }

    /// Whether the kernel knows the matches of iptables in rules of nf_tables: with some distributions they are modules
    /// that need not be installed.
    pub fn has_xtables(&self) -> bool {
        const COMPAT: u16 = 11;
        let mut m = Message::new(COMPAT << 8, NLM_F_ACK).about("ask for the matches of iptables");
        super::header(&mut m, Family::Ip, 0);
        // Name, revision, and that it is a match.
        m.attr_str(1, "comment").attr_be32(2, 0).attr_be32(3, 0);
        self.socket.query(m).is_ok()
    }

    /// All tables of a family, or of all families.
    pub fn tables(&self, family: Family) -> Result<Vec<Table>> {
        let m = message(kind::GETTABLE, 0, family, || format!("list tables of family {family}"));
        self.dump(m, table)
    }

    /// One table, if it exists.
    pub fn table(&self, wanted: TableRef<'_>) -> Result<Option<Table>> {
        let mut m = message(kind::GETTABLE, 0, wanted.family, || format!("read table {wanted}"));
        m.attr_str(1, wanted.name);
        self.one(m, table)
    }

    /// All chains of a family.
    pub fn chains(&self, family: Family) -> Result<Vec<Chain>> {
        let m = message(kind::GETCHAIN, 0, family, || format!("list chains of family {family}"));
        self.dump(m, chain)
    }

    /// One chain, if it exists.
    pub fn chain(&self, table: TableRef<'_>, name: &str) -> Result<Option<Chain>> {
        let mut m = message(kind::GETCHAIN, 0, table.family, || format!("read chain {name} of table {table}"));
        m.attr_str(1, table.name).attr_str(3, name);
        self.one(m, chain)
    }

    /// The rules of a chain in their order; none if there is no such chain.
    pub fn rules(&self, table: TableRef<'_>, chain: &str) -> Result<Vec<Rule>> {
        let mut m = message(kind::GETRULE, 0, table.family, || format!("list chain {chain} of table {table}"));
        m.attr_str(1, table.name).attr_str(2, chain);
        let mut rules = self.dump(m, rule)?;
        // Old kernels do not know the filter.
        rules.retain(|rule| rule.chain == chain);
        Ok(rules)
    }

    /// Those rules of a chain that a glance at their bytes does not rule out. In a chain of thousands, reading all of them
    /// in full costs more than all the rest of a change.
    pub fn rules_where(
        &self,
        table: TableRef<'_>,
        chain: &str,
        wanted: impl Fn(RawRule<'_>) -> bool,
    ) -> Result<Vec<Rule>> {
        let mut m = message(kind::GETRULE, 0, table.family, || format!("list chain {chain} of table {table}"));
        m.attr_str(1, table.name).attr_str(2, chain);
        let replies = match self.socket.dump(m) {
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            other => other?,
        };
        let mut rules = Vec::new();
        for reply in replies {
            let attributes = Attributes::after(&reply.payload, BODY)?;
            let data = |kind| attributes.find(kind).map_or(&[][..], |attribute| attribute.data);
            if wanted(RawRule { expressions: data(4), user_data: data(7) }) {
                rules.push(rule(table.family, attributes)?);
            }
        }
        rules.retain(|rule| rule.chain == chain);
        Ok(rules)
    }

    /// The rules of all chains of a table; none if there is no such table.
    pub fn table_rules(&self, table: TableRef<'_>) -> Result<Vec<Rule>> {
        let mut m = message(kind::GETRULE, 0, table.family, || format!("list table {table}"));
        m.attr_str(1, table.name);
        self.dump(m, rule)
    }

    /// One rule by its number, if it exists.
    pub fn rule(&self, table: TableRef<'_>, chain: &str, handle: u64) -> Result<Option<Rule>> {
        let mut m =
            message(kind::GETRULE, 0, table.family, || format!("read rule {handle} of chain {chain} of table {table}"));
        m.attr_str(1, table.name).attr_str(2, chain).attr_be64(3, handle);
        self.one(m, rule)
    }

    /// All sets of a table; none if there is no such table.
    pub fn sets(&self, table: TableRef<'_>) -> Result<Vec<Set>> {
        let mut m = message(kind::GETSET, 0, table.family, || format!("list sets of table {table}"));
        m.attr_str(1, table.name);
        match self.dump(m, set) {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            other => other,
        }
    }

    /// One set, if it exists.
    pub fn set(&self, table: TableRef<'_>, name: &str) -> Result<Option<Set>> {
        let mut m = message(kind::GETSET, 0, table.family, || format!("read set {name} of table {table}"));
        m.attr_str(1, table.name).attr_str(2, name);
        self.one(m, set)
    }

    /// All elements of a set; none if there is no such set.
    pub fn elements(&self, table: TableRef<'_>, set: &str) -> Result<Vec<Element>> {
        let mut m = message(kind::GETSETELEM, 0, table.family, || format!("list set {set} of table {table}"));
        m.attr_str(1, table.name).attr_str(2, set);
        let lists = match self.dump(m, element_list) {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            other => other?,
        };
        Ok(lists.into_iter().flatten().collect())
    }

    /// One element by its key, if it exists.
    pub fn element(&self, table: TableRef<'_>, set: &str, key: &Key) -> Result<Option<Element>> {
        let mut m = message(kind::GETSETELEM, 0, table.family, || format!("look into set {set} of table {table}"));
        m.attr_str(1, table.name).attr_str(2, set);
        m.nest(3, |list| {
            list.nest(1, |element| encode_value(1, key.bytes(), element));
        });
        Ok(self.one(m, element_list)?.and_then(|list| list.into_iter().next()))
    }

    /// Makes all changes of a batch, or none, and gives the rules that ask for it ([`super::NewRule::echo`]). The error is
    /// that of the first change which the kernel refused; `ERESTART` if there was another change since the batch's
    /// generation ([`Batch::only_if`]).
    pub fn commit(&self, batch: Batch) -> Result<Vec<Rule>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut messages = batch.framed();
        let last = messages.len() - 2;
        // One acknowledgement is enough: refusals are always told.
        messages[last].add_flags(NLM_F_ACK);
        let first = self.socket.send(&mut messages)?;
        let mut outcome = Ok(Vec::new());
        loop {
            for reply in self.socket.receive()? {
                let index = reply.sequence.wrapping_sub(first) as usize;
                let Some(message) = messages.get(index) else { continue };
                match (reply.acknowledgement(), &mut outcome) {
                    (Some(Err(refusal)), Ok(_)) => {
                        outcome = Err(refusal.during(message.operation()));
                        if index == 0 {
                            // The batch as such was refused; nothing need follow.
                            return outcome;
                        }
                    }
                    (None, Ok(echoed)) if reply.kind == RULE && message.kind() == RULE => {
                        echoed.push(parse(&reply, rule)?);
                    }
                    _ => {}
                }
                if index == last && reply.acknowledgement().is_some() {
                    return outcome;
                }
            }
        }
    }

    fn dump<T>(&self, m: Message, read: impl Fn(Family, Attributes<'_>) -> Result<T>) -> Result<Vec<T>> {
        let replies = match self.socket.dump(m) {
            // A table, or a chain, that is filtered for and is not there.
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            other => other?,
        };
        replies.iter().map(|reply| parse(reply, &read)).collect()
    }

    fn one<T>(&self, m: Message, read: impl Fn(Family, Attributes<'_>) -> Result<T>) -> Result<Option<T>> {
        match self.socket.query(m) {
            Ok(replies) => replies.first().map(|reply| parse(reply, &read)).transpose(),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Nothing of the kind is there; or the kernel has no `nf_tables` at all, which it tells as an invalid message.
fn is_absent(error: &Error) -> bool {
    error.is_not_found() || error.errno() == Some(Errno::INVAL)
}

/// True if another try with a fresh view may succeed: others changed the rules meanwhile.
pub fn is_race(error: &Error) -> bool {
    const RESTART: Errno = Errno::from_raw_os_error(85);
    error.errno().is_some_and(|errno| {
        [RESTART, Errno::BUSY, Errno::NOENT, Errno::EXIST, Errno::AGAIN, Errno::INTR].contains(&errno)
    })
}

fn parse<T>(reply: &Reply, read: impl Fn(Family, Attributes<'_>) -> Result<T>) -> Result<T> {
    let family = reply.payload.first().and_then(|number| Family::from_number(*number));
    read(family.unwrap_or(Family::Unspecified), Attributes::after(&reply.payload, BODY)?)
}

fn text(attribute: Attribute<'_>) -> Result<String> {
    attribute.str().map(ToOwned::to_owned)
}

fn table(family: Family, attributes: Attributes<'_>) -> Result<Table> {
    let mut table = Table { family, name: String::new(), user_data: Vec::new() };
    for attribute in attributes {
        match attribute.kind {
            1 => table.name = text(attribute)?,
            6 => table.user_data = attribute.data.to_vec(),
            _ => {}
        }
    }
    Ok(table)
}

fn chain(family: Family, attributes: Attributes<'_>) -> Result<Chain> {
    let mut chain =
        Chain { family, table: String::new(), name: String::new(), handle: 0, base: None, drops: false, uses: 0 };
    for attribute in attributes {
        match attribute.kind {
            1 => chain.table = text(attribute)?,
            2 => chain.handle = attribute.be64()?,
            3 => chain.name = text(attribute)?,
            4 => {
                let hook = attribute.attributes();
                if let (Some(number), Some(priority)) = (hook.find(1), hook.find(2)) {
                    chain.base = Some((number.be32()?, priority.be32()?.cast_signed()));
                }
            }
            5 => chain.drops = attribute.be32()? == 0,
            6 => chain.uses = attribute.be32()?,
            _ => {}
        }
    }
    Ok(chain)
}

fn rule(_family: Family, attributes: Attributes<'_>) -> Result<Rule> {
    let mut rule = Rule { chain: String::new(), handle: 0, expressions: Vec::new(), user_data: Vec::new() };
    for attribute in attributes {
        match attribute.kind {
            2 => rule.chain = text(attribute)?,
            3 => rule.handle = attribute.be64()?,
            4 => {
                // What others made must not keep anyone from finding his own: an expression that cannot be read is kept
                // as it is.
                let read = |element: Attribute<'_>| {
                    Expr::decode(element.attributes())
                        .unwrap_or_else(|_| Expr::Other { name: String::new(), data: element.data.to_vec() })
                };
                rule.expressions = attribute.attributes().map(read).collect();
            }
            7 => rule.user_data = attribute.data.to_vec(),
            _ => {}
        }
    }
    Ok(rule)
}

fn set(_family: Family, attributes: Attributes<'_>) -> Result<Set> {
    let mut set = Set { table: String::new(), name: String::new() };
    for attribute in attributes {
        match attribute.kind {
            1 => set.table = text(attribute)?,
            2 => set.name = text(attribute)?,
            _ => {}
        }
    }
    Ok(set)
}

fn element_list(_family: Family, attributes: Attributes<'_>) -> Result<Vec<Element>> {
    let Some(list) = attributes.find(3) else { return Ok(Vec::new()) };
    list.attributes()
        .map(|element| {
            let mut read = Element { key: Key::default(), value: None, user_data: Vec::new() };
            for attribute in element.attributes() {
                match attribute.kind {
                    1 => read.key = Key(value(attribute).unwrap_or_default()),
                    2 => {
                        read.value = match attribute.attributes().find(2) {
                            Some(verdict) => Some(SetValue::Verdict(Verdict::decode(verdict)?)),
                            None => value(attribute).map(|bytes| SetValue::Data(Key(bytes))),
                        };
                    }
                    6 => read.user_data = attribute.data.to_vec(),
                    _ => {}
                }
            }
            Ok(read)
        })
        .collect()
}

fn value(attribute: Attribute<'_>) -> Option<Vec<u8>> {
    attribute.attributes().find(1).map(|value| value.data.to_vec())
}

impl Chain {
    /// True if the kernel calls it at this hook.
    pub fn is_at(&self, hook: Hook) -> bool {
        self.base.is_some_and(|(number, _)| number == hook as u32)
    }
}
