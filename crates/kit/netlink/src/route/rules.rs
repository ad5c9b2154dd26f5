use ipnet::IpNet;

use super::{Family, Handle};
use crate::wire::{Attributes, Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::{Error, Result};

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

/// Length of `struct fib_rule_hdr`.
const BODY: usize = 12;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_L3MDEV: u16 = 19;
const FR_ACT_TO_TBL: u8 = 1;

/// A rule of policy routing: which packets ask which table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its family; none: that of its addresses, IPv4 if it has none.
    pub family: Option<Family>,
    /// Order; the lowest comes first. None: the kernel picks the one before the lowest there is.
    pub priority: Option<u32>,
    /// Packets from here.
    pub src: Option<IpNet>,
    /// Packets to there.
    pub dst: Option<IpNet>,
    /// Packets that came in through this link.
    pub iif: Option<String>,
    /// Packets of sockets bound to this link.
    pub oif: Option<String>,
    /// Packets with this mark.
    pub mark: Option<u32>,
    /// The bits of the mark that count.
    pub mask: Option<u32>,
    /// The table to ask; 0 for rules that do something else.
    pub table: u32,
    /// The table of the VRF that the packet belongs to.
    pub l3mdev: bool,
}

impl Rule {
    fn number(&self) -> u8 {
        let of_addresses = self.src.or(self.dst).map(|net| Family::of(net.addr()));
        self.family.or(of_addresses).unwrap_or(Family::V4).number()
    }

    fn parse(payload: &[u8]) -> Result<Option<Self>> {
        let attributes = Attributes::after(payload, BODY)?;
        let Some(family) = Family::from_number(payload[0]) else { return Ok(None) };
        let mut rule = Self { family: Some(family), table: u32::from(payload[4]), ..Self::default() };
        let net = |address, prefix| {
            IpNet::new(address, prefix)
                .map_err(|_| Error::Malformed { what: format!("a rule with a prefix of {prefix} bits") })
        };
        for attribute in attributes {
            match attribute.kind {
                FRA_DST => rule.dst = Some(net(attribute.ip()?, payload[1])?),
                FRA_SRC => rule.src = Some(net(attribute.ip()?, payload[2])?),
                FRA_IIFNAME => rule.iif = Some(attribute.str()?.to_owned()),
                FRA_OIFNAME => rule.oif = Some(attribute.str()?.to_owned()),
                FRA_PRIORITY => rule.priority = Some(attribute.u32()?),
                FRA_FWMARK => rule.mark = Some(attribute.u32()?),
                FRA_FWMASK => rule.mask = Some(attribute.u32()?),
                FRA_TABLE => rule.table = attribute.u32()?,
                FRA_L3MDEV => rule.l3mdev = attribute.u8()? != 0,
                _ => {}
            }
        }
        // The kernel leaves out a priority of 0.
        rule.priority = rule.priority.or(Some(0));
        Ok(Some(rule))
    }

    fn describe(&self) -> String {
        let side = |word: &str, net: Option<IpNet>| net.map_or_else(String::new, |net| format!(" {word} {net}"));
        format!("rule{}{} to table {}", side("from", self.src), side("to", self.dst), self.table)
    }

    fn put(&self, message: &mut Message) -> Result<()> {
        let family = self.number();
        let other = |net: &IpNet| Family::of(net.addr()).number() != family;
        if self.src.as_ref().is_some_and(other) || self.dst.as_ref().is_some_and(other) {
            return Err(Error::Invalid { what: format!("{}: not all addresses are of one family", self.describe()) });
        }
        let mut body = [0; BODY];
        body[0] = family;
        body[1] = self.dst.map_or(0, |net| net.prefix_len());
        body[2] = self.src.map_or(0, |net| net.prefix_len());
        body[4] = u8::try_from(self.table).unwrap_or_default();
        body[7] = FR_ACT_TO_TBL;
        message.put(&body);
        if let Some(net) = self.dst {
            message.attr_ip(FRA_DST, net.network());
        }
        if let Some(net) = self.src {
            message.attr_ip(FRA_SRC, net.network());
        }
        if let Some(name) = &self.iif {
            message.attr_str(FRA_IIFNAME, name);
        }
        if let Some(name) = &self.oif {
            message.attr_str(FRA_OIFNAME, name);
        }
        for (kind, value) in [(FRA_PRIORITY, self.priority), (FRA_FWMARK, self.mark), (FRA_FWMASK, self.mask)] {
            if let Some(value) = value {
                message.attr_u32(kind, value);
            }
        }
        if self.l3mdev {
            message.attr_u8(FRA_L3MDEV, 1);
        } else {
            message.attr_u32(FRA_TABLE, self.table);
        }
        Ok(())
    }
}

impl Handle {
    /// The rules of this family, or of both, in the order in which they are asked.
    pub fn rules(&self, family: Option<Family>) -> Result<Vec<Rule>> {
        let mut rules = Vec::new();
        for family in family.map_or_else(|| vec![Family::V4, Family::V6], |family| vec![family]) {
            let mut message = Message::new(RTM_GETRULE, 0).about("list rules");
            let mut body = [0; BODY];
            body[0] = family.number();
            message.put(&body);
            for reply in self.socket.dump(message)?.iter().filter(|reply| reply.kind == RTM_NEWRULE) {
                rules.extend(Rule::parse(&reply.payload)?);
            }
        }
        Ok(rules)
    }

    /// Adds a rule. `EEXIST` if there is the same one.
    pub fn add_rule(&self, rule: &Rule) -> Result<()> {
        self.request(add(rule))
    }

    /// Removes the first rule that has all that is set here. If there is none: an error ([`Error::is_not_found`]).
    pub fn delete_rule(&self, rule: &Rule) -> Result<()> {
        self.request(delete(rule))
    }
}

pub(super) fn add(rule: &Rule) -> Result<Message> {
    let mut message = Message::new(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL).about(format!("add {}", rule.describe()));
    rule.put(&mut message)?;
    Ok(message)
}

pub(super) fn delete(rule: &Rule) -> Result<Message> {
    let mut message = Message::new(RTM_DELRULE, 0).about(format!("delete {}", rule.describe()));
    rule.put(&mut message)?;
    Ok(message)
}
