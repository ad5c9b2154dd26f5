use super::Handle;
use super::link::word;
use crate::wire::{Attributes, Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::{Error, Result};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

/// Length of `struct tcmsg`.
const BODY: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TC_ACT_STOLEN: u32 = 4;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const ETH_P_ALL: u16 = 3;

/// Where the queueing discipline of what a link sends sits.
pub const ROOT: u32 = 0xffff_ffff;
/// Where that of what it receives sits.
pub const INGRESS: u32 = 0xffff_fff1;
/// The handle that the ingress discipline always has.
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// The kernel's clock of traffic control ticks every 64 ns (`/proc/net/psched`).
const NANOSECONDS_PER_TICK: u128 = 64;

/// A queueing discipline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// Index of its link.
    pub index: u32,
    /// What it is: `tbf`, `ingress`, `noqueue`, …
    pub kind: String,
    /// Its number, major in the upper half.
    pub handle: u32,
    /// Where it sits: [`ROOT`], [`INGRESS`], or a class.
    pub parent: u32,
    /// Its settings, if it is a token bucket.
    pub tbf: Option<Tbf>,
}

/// A token bucket: so many bytes a second, in bursts of at most so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tbf {
    /// Bytes a second.
    pub rate: u64,
    /// Size of the bucket in bytes.
    pub burst: u32,
    /// Bytes that may wait for tokens.
    pub limit: u32,
}

/// A filter of a queueing discipline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Index of its link.
    pub index: u32,
    /// What it is: `u32`, `matchall`, …
    pub kind: String,
    /// Its number.
    pub handle: u32,
    /// The discipline it belongs to.
    pub parent: u32,
    /// Its priority.
    pub priority: u16,
    /// Index of the link to which it redirects what it matches, if that is what it does.
    pub redirect: Option<u32>,
}

impl Tbf {
    /// The size of the bucket as the kernel wants it: the time to fill it, in whole microseconds. Others compare what they
    /// read with what they would have set, to the tick, and tools of traffic control count in microseconds.
    fn ticks(&self) -> u32 {
        let microseconds = u128::from(self.burst) * 1_000_000 / u128::from(self.rate.max(1));
        u32::try_from(microseconds * 1_000 / NANOSECONDS_PER_TICK).unwrap_or(u32::MAX)
    }

    fn parse(options: &Attributes<'_>) -> Result<Option<Self>> {
        let Some(parms) = options.find(TCA_TBF_PARMS) else { return Ok(None) };
        let parms: [u8; 36] = parms.array()?;
        let rate = match options.find(TCA_TBF_RATE64) {
            Some(rate) => rate.u64()?,
            None => u64::from(word(&parms, 8)),
        };
        let ticks = u128::from(word(&parms, 28));
        // Rounded to the nearest: the kernel keeps the time, not the bytes.
        let burst = (ticks * NANOSECONDS_PER_TICK * u128::from(rate) + 500_000_000) / 1_000_000_000;
        Ok(Some(Self { rate, burst: u32::try_from(burst).unwrap_or(u32::MAX), limit: word(&parms, 24) }))
    }
}

impl Handle {
    /// The queueing disciplines of this link, or of all.
    pub fn qdiscs(&self, index: Option<u32>) -> Result<Vec<Qdisc>> {
        let mut message = Message::new(RTM_GETQDISC, 0).about("list queueing disciplines");
        message.put(&body(index.unwrap_or_default(), 0, 0, 0));
        let mut qdiscs = Vec::new();
        for reply in self.socket.dump(message)?.iter().filter(|reply| reply.kind == RTM_NEWQDISC) {
            let attributes = Attributes::after(&reply.payload, BODY)?;
            let kind = attributes.find(TCA_KIND).map(|kind| kind.str()).transpose()?.unwrap_or_default();
            let options = attributes.find(TCA_OPTIONS).filter(|_| kind == "tbf");
            let qdisc = Qdisc {
                index: word(&reply.payload, 4),
                kind: kind.to_owned(),
                handle: word(&reply.payload, 8),
                parent: word(&reply.payload, 12),
                tbf: options.map(|options| Tbf::parse(&options.attributes())).transpose()?.flatten(),
            };
            // The kernel lists those of all links whatever is asked.
            if index.is_none_or(|index| index == qdisc.index) {
                qdiscs.push(qdisc);
            }
        }
        Ok(qdiscs)
    }

    /// Shapes what a link sends: a token bucket as its root, with the handle 1:. `EEXIST` if it has one with a handle.
    pub fn add_tbf(&self, index: u32, tbf: &Tbf) -> Result<()> {
        self.request(qdisc::tbf(index, tbf))
    }

    /// Gives a link the ingress discipline, on which filters for what it receives can sit.
    pub fn add_ingress(&self, index: u32) -> Result<()> {
        self.request(Ok(ingress(index)))
    }

    /// Redirects all that a link receives to another one, as if that one sent it. The link needs the ingress discipline.
    pub fn add_mirred(&self, index: u32, target: u32) -> Result<()> {
        self.request(Ok(mirred(index, target)))
    }

    /// The filters at `parent` ([`INGRESS`], or a handle) of a link.
    pub fn filters(&self, index: u32, parent: u32) -> Result<Vec<Filter>> {
        let mut message = Message::new(RTM_GETTFILTER, 0).about(format!("list filters of link number {index}"));
        message.put(&body(index, 0, if parent == INGRESS { INGRESS_HANDLE } else { parent }, 0));
        let mut filters = Vec::new();
        for reply in self.socket.dump(message)?.iter().filter(|reply| reply.kind == RTM_NEWTFILTER) {
            let attributes = Attributes::after(&reply.payload, BODY)?;
            let kind = attributes.find(TCA_KIND).map(|kind| kind.str()).transpose()?.unwrap_or_default();
            let handle = word(&reply.payload, 8);
            if handle == 0 {
                // Not a filter but the place where those of one priority are kept.
                continue;
            }
            filters.push(Filter {
                index: word(&reply.payload, 4),
                kind: kind.to_owned(),
                handle,
                parent: word(&reply.payload, 12),
                priority: u16::try_from(word(&reply.payload, 16) >> 16).unwrap_or_default(),
                redirect: attributes.find(TCA_OPTIONS).and_then(|options| redirect(&options.attributes())),
            });
        }
        Ok(filters)
    }

    /// Removes all filters at `parent` of a link.
    pub fn delete_filters(&self, index: u32, parent: u32) -> Result<()> {
        let mut message = Message::new(RTM_DELTFILTER, 0).about(format!("delete filters of link number {index}"));
        message.put(&body(index, 0, if parent == INGRESS { INGRESS_HANDLE } else { parent }, 0));
        self.socket.request(message)
    }

    /// Removes the queueing discipline at `parent` ([`ROOT`], [`INGRESS`]) of a link, with its filters.
    pub fn delete_qdisc(&self, index: u32, parent: u32) -> Result<()> {
        let operation = format!("delete the queueing discipline of link number {index}");
        let mut message = Message::new(RTM_DELQDISC, 0).about(operation);
        message.put(&body(index, if parent == INGRESS { INGRESS_HANDLE } else { 0 }, parent, 0));
        self.socket.request(message)
    }
}

fn redirect(options: &Attributes<'_>) -> Option<u32> {
    let action = options.find(TCA_U32_ACT)?.attributes().find(1)?.attributes();
    let mirred = action.find(TCA_ACT_KIND)?.str().ok()? == "mirred";
    let parms = action.find(TCA_ACT_OPTIONS)?.attributes().find(TCA_MIRRED_PARMS)?.data;
    (mirred && parms.len() >= 28 && word(parms, 20) == TCA_EGRESS_REDIR).then(|| word(parms, 24))
}

/// `struct tcmsg`.
fn body(index: u32, handle: u32, parent: u32, info: u32) -> [u8; BODY] {
    let mut body = [0; BODY];
    for (place, value) in body[4..].chunks_exact_mut(4).zip([index, handle, parent, info]) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
    body
}

pub(super) fn tbf(index: u32, tbf: &Tbf) -> Result<Message> {
    let operation = format!("add a token bucket to link number {index}");
    if tbf.rate == 0 || tbf.burst == 0 {
        return Err(Error::Invalid { what: format!("{operation}: rate and burst must not be 0") });
    }
    let mut message = Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL).about(operation);
    message.put(&body(index, 0x1_0000, ROOT, 0)).attr_str(TCA_KIND, "tbf");
    // struct tc_tbf_qopt: two of struct tc_ratespec, limit, buffer, mtu. A known link layer saves sending rate tables.
    let mut parms = [0; 36];
    parms[1] = TC_LINKLAYER_ETHERNET;
    parms[8..12].copy_from_slice(&u32::try_from(tbf.rate).unwrap_or(u32::MAX).to_ne_bytes());
    parms[24..28].copy_from_slice(&tbf.limit.to_ne_bytes());
    parms[28..32].copy_from_slice(&tbf.ticks().to_ne_bytes());
    message.nest(TCA_OPTIONS, |options| {
        // No TCA_TBF_BURST: the kernel would compute the time from it again, and round differently.
        options.attr(TCA_TBF_PARMS, &parms);
        if tbf.rate > u64::from(u32::MAX) {
            options.attr_u64(TCA_TBF_RATE64, tbf.rate);
        }
    });
    Ok(message)
}

pub(super) fn ingress(index: u32) -> Message {
    let operation = format!("add the ingress discipline to link number {index}");
    let mut message = Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL).about(operation);
    message.put(&body(index, INGRESS_HANDLE, INGRESS, 0)).attr_str(TCA_KIND, "ingress");
    message
}

pub(super) fn mirred(index: u32, target: u32) -> Message {
    let operation = format!("redirect what link number {index} receives to link number {target}");
    let mut message = Message::new(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL).about(operation);
    let info = 1 << 16 | u32::from(ETH_P_ALL.to_be());
    message.put(&body(index, 0, INGRESS_HANDLE, info)).attr_str(TCA_KIND, "u32");
    // struct tc_u32_sel with one struct tc_u32_key that matches everything.
    let mut selector = [0; 32];
    selector[0] = TC_U32_TERMINAL;
    selector[2] = 1;
    // struct tc_mirred.
    let mut parms = [0; 28];
    for (at, value) in [(8, TC_ACT_STOLEN), (20, TCA_EGRESS_REDIR), (24, target)] {
        parms[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    message.nest(TCA_OPTIONS, |options| {
        options.attr_u32(TCA_U32_CLASSID, 1 << 16 | 1).attr(TCA_U32_SEL, &selector);
        options.nest(TCA_U32_ACT, |actions| {
            actions.nest(1, |action| {
                action.attr_str(TCA_ACT_KIND, "mirred");
                action.nest(TCA_ACT_OPTIONS, |options| {
                    options.attr(TCA_MIRRED_PARMS, &parms);
                });
            });
        });
    });
    message
}

// So that methods and encoders can share their names.
use self as qdisc;
