//! Changes that are made together or not at all.

use std::net::IpAddr;

use super::expr::{Expr, Verdict, encode_value};
use super::userdata;
use super::{BaseChain, ELEMENT_LIMIT, Family, Key, NewSet, SetValue, TableRef, header, kind, message};
use crate::wire::{Message, NLM_F_APPEND, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};

/// A rule to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewRule {
    /// What it does, in order.
    pub expressions: Vec<Expr>,
    /// Transport protocol that the matches and targets of xtables in it rely on, and whether it is excluded; iptables
    /// writes this to each rule (even as zeros), nft to none.
    pub compat: Option<(u32, bool)>,
    /// User data; see [`userdata`].
    pub user_data: Vec<u8>,
    /// Whether [`super::Handle::commit`] is to give the rule with its number.
    pub echo: bool,
}

/// An element to be put into a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewElement {
    /// Its key.
    pub key: Key,
    /// Its value, in a map.
    pub value: Option<SetValue>,
    /// Its comment.
    pub comment: Option<String>,
}

/// A list of changes. [`super::Handle::commit`] makes them, all or none.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) messages: Vec<Message>,
    pub(super) generation: Option<u32>,
    sets: u32,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// True if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Makes the kernel refuse the batch (`ERESTART`) if anything changed since this generation.
    pub fn only_if(&mut self, generation: u32) {
        self.generation = Some(generation);
    }

    /// Makes a table unless it exists.
    pub fn add_table(&mut self, table: TableRef<'_>, comment: Option<&str>) {
        let mut m = message(kind::NEWTABLE, NLM_F_CREATE, table.family, || format!("make table {table}"));
        m.attr_str(1, table.name);
        if let Some(comment) = comment {
            m.attr(6, &userdata::comment(comment));
        }
        self.messages.push(m);
    }

    /// Removes a table with all that is in it.
    pub fn delete_table(&mut self, table: TableRef<'_>) {
        let mut m = message(kind::DELTABLE, 0, table.family, || format!("remove table {table}"));
        m.attr_str(1, table.name);
        self.messages.push(m);
    }

    /// Makes a chain that only jumps lead to. The batch fails if it exists.
    pub fn add_chain(&mut self, table: TableRef<'_>, name: &str) {
        let mut m = message(kind::NEWCHAIN, NLM_F_EXCL, table.family, || format!("make chain {name} in table {table}"));
        m.attr_str(1, table.name).attr_str(3, name);
        self.messages.push(m);
    }

    /// Makes a chain that is called by the kernel, unless it exists.
    pub fn add_base_chain(&mut self, table: TableRef<'_>, name: &str, base: BaseChain<'_>) {
        let mut m =
            message(kind::NEWCHAIN, NLM_F_CREATE, table.family, || format!("make chain {name} in table {table}"));
        m.attr_str(1, table.name).attr_str(3, name);
        m.nest(4, |hook| {
            hook.attr_be32(1, base.hook as u32).attr(2, &base.priority.to_be_bytes());
        });
        // Policy accept.
        m.attr_be32(5, 1);
        m.attr_str(7, base.kind);
        self.messages.push(m);
    }

    /// Removes the rules of a chain.
    pub fn flush_chain(&mut self, table: TableRef<'_>, chain: &str) {
        let mut m = message(kind::DELRULE, 0, table.family, || format!("empty chain {chain} of table {table}"));
        m.attr_str(1, table.name).attr_str(2, chain);
        self.messages.push(m);
    }

    /// Removes a chain; it must be empty, and nothing may lead to it.
    pub fn delete_chain(&mut self, table: TableRef<'_>, chain: &str) {
        let mut m = message(kind::DELCHAIN, 0, table.family, || format!("remove chain {chain} of table {table}"));
        m.attr_str(1, table.name).attr_str(3, chain);
        self.messages.push(m);
    }

    /// Puts a rule at the end of a chain.
    pub fn add_rule(&mut self, table: TableRef<'_>, chain: &str, rule: &NewRule) {
        self.rule(table, chain, rule, NLM_F_CREATE | NLM_F_APPEND);
    }

    /// Puts a rule at the beginning of a chain.
    pub fn insert_rule(&mut self, table: TableRef<'_>, chain: &str, rule: &NewRule) {
        self.rule(table, chain, rule, NLM_F_CREATE);
    }

    fn rule(&mut self, table: TableRef<'_>, chain: &str, rule: &NewRule, flags: u16) {
        let flags = flags | if rule.echo { NLM_F_ECHO } else { 0 };
        let mut m =
            message(kind::NEWRULE, flags, table.family, || format!("add a rule to chain {chain} of table {table}"));
        m.attr_str(1, table.name).attr_str(2, chain);
        m.nest(4, |list| {
            for expression in &rule.expressions {
                expression.encode(list);
            }
        });
        if let Some((protocol, excluded)) = rule.compat {
            m.nest(5, |compat| {
                compat.attr_be32(1, protocol).attr_be32(2, if excluded { 2 } else { 0 });
            });
        }
        if !rule.user_data.is_empty() {
            m.attr(7, &rule.user_data);
        }
        self.messages.push(m);
    }

    /// Removes a rule.
    pub fn delete_rule(&mut self, table: TableRef<'_>, chain: &str, handle: u64) {
        let mut m = message(kind::DELRULE, 0, table.family, || {
            format!("remove rule {handle} of chain {chain} of table {table}")
        });
        m.attr_str(1, table.name).attr_str(2, chain).attr_be64(3, handle);
        self.messages.push(m);
    }

    /// Makes a set or map. The batch fails if it exists and is different.
    pub fn add_set(&mut self, table: TableRef<'_>, set: &NewSet<'_>) {
        const MAP: u32 = 8;
        self.sets += 1;
        let mut m =
            message(kind::NEWSET, NLM_F_CREATE, table.family, || format!("make set {} in table {table}", set.name));
        m.attr_str(1, table.name).attr_str(2, set.name);
        m.attr_be32(3, if set.value.is_some() { MAP } else { 0 })
            .attr_be32(4, set.key.id())
            .attr_be32(5, set.key.len());
        if let Some(value) = set.value {
            m.attr_be32(6, value.id()).attr_be32(7, value.len());
        }
        m.attr_be32(10, self.sets);
        let mut data = userdata::attribute(userdata::SET_KEY_BYTE_ORDER, &set.key.byte_order().to_ne_bytes());
        if let Some(value) = set.value {
            data.extend(userdata::attribute(userdata::SET_DATA_BYTE_ORDER, &value.byte_order().to_ne_bytes()));
        }
        if let Some(comment) = set.comment {
            data.extend(userdata::attribute(userdata::SET_COMMENT, &userdata::terminated(comment)));
        }
        m.attr(13, &data);
        self.messages.push(m);
    }

    /// Removes a set; no rule may use it.
    pub fn delete_set(&mut self, table: TableRef<'_>, set: &str) {
        let mut m = message(kind::DELSET, 0, table.family, || format!("remove set {set} of table {table}"));
        m.attr_str(1, table.name).attr_str(2, set);
        self.messages.push(m);
    }

    /// Puts elements into a set or map. With `exclusive` the batch fails if one of them is there already; without, only
    /// if it is there with another value.
    pub fn add_elements(&mut self, table: TableRef<'_>, set: &str, elements: &[NewElement], exclusive: bool) {
        let flags = NLM_F_CREATE | if exclusive { NLM_F_EXCL } else { 0 };
        self.elements(kind::NEWSETELEM, flags, table, set, elements, "add elements to");
    }

    /// Takes elements out of a set or map. The batch fails if one of them is not there.
    pub fn delete_elements(&mut self, table: TableRef<'_>, set: &str, keys: &[Key]) {
        let elements: Vec<_> =
            keys.iter().map(|key| NewElement { key: key.clone(), value: None, comment: None }).collect();
        self.elements(kind::DELSETELEM, 0, table, set, &elements, "remove elements from");
    }

    fn elements(
        &mut self,
        number: u8,
        flags: u16,
        table: TableRef<'_>,
        set: &str,
        elements: &[NewElement],
        operation: &str,
    ) {
        for part in elements.chunks(ELEMENT_LIMIT) {
            let mut m = message(number, flags, table.family, || format!("{operation} set {set} of table {table}"));
            m.attr_str(1, table.name).attr_str(2, set);
            m.nest(3, |list| {
                for element in part {
                    list.nest(1, |m| element.encode(m));
                }
            });
            self.messages.push(m);
        }
    }

    /// The whole batch with its frame, as it is sent.
    pub(super) fn framed(self) -> Vec<Message> {
        const BEGIN: u16 = 0x10;
        const END: u16 = 0x11;
        let mut framed = Vec::with_capacity(self.messages.len() + 2);
        let mut begin = Message::new(BEGIN, 0).about("begin a batch of rules");
        header(&mut begin, Family::Unspecified, kind::SUBSYSTEM);
        if let Some(generation) = self.generation {
            begin.attr_be32(1, generation);
        }
        framed.push(begin);
        framed.extend(self.messages);
        let mut end = Message::new(END, 0).about("end a batch of rules");
        header(&mut end, Family::Unspecified, kind::SUBSYSTEM);
        framed.push(end);
        framed
    }
}

impl NewElement {
    /// An element of a set.
    pub fn new(key: Key, comment: impl Into<String>) -> Self {
        Self { key, value: None, comment: Some(comment.into()) }
    }

    fn encode(&self, m: &mut Message) {
        encode_value(1, self.key.bytes(), m);
        match &self.value {
            Some(SetValue::Verdict(verdict)) => verdict.encode(2, m),
            Some(SetValue::Data(data)) => encode_value(2, data.bytes(), m),
            None => {}
        }
        if let Some(comment) = &self.comment {
            m.attr(6, &userdata::comment(comment));
        }
    }
}

impl Key {
    /// Appends a field, padded to four bytes as concatenations are.
    #[must_use]
    pub fn and(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an address.
    #[must_use]
    pub fn and_address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.and(&address.octets()),
            IpAddr::V6(address) => self.and(&address.octets()),
        }
    }

    /// Appends a port.
    #[must_use]
    pub fn and_port(self, port: u16) -> Self {
        self.and(&port.to_be_bytes())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<IpAddr> for Key {
    fn from(address: IpAddr) -> Self {
        Self::default().and_address(address)
    }
}

impl From<Verdict> for SetValue {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}
