//! VLAN keys of the bridge plugin, as values.

use std::ops::RangeInclusive;

use outrigger_cni_sdk::conf;

conf! {
    /// One VLAN or a range of them.
    pub struct TrunkItem {
        /// A single VLAN, 1 to 4094.
        pub id: Option<i64>,
        /// First VLAN of a range; with `maxID`.
        #[key = "minID"]
        pub min_id: Option<i64>,
        /// Last VLAN of a range; with `minID`.
        #[key = "maxID"]
        pub max_id: Option<i64>,
    }
}

/// Highest usable VLAN id; 4095 is reserved.
const MAX_ID: i64 = 4094;

/// Default native VLAN of a trunk port for which no `vlan` is given.
const NATIVE: u16 = 1;

/// What the VLAN keys ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Vlans {
    /// `vlan`: the VLAN of untagged frames, and that of the gateway.
    pub id: Option<u16>,
    /// `vlanTrunk`: VLANs that go through tagged.
    pub tagged: Vec<RangeInclusive<u16>>,
    /// The bridge must filter VLANs.
    pub filtering: bool,
    /// The port leaves the bridge's default VLAN.
    pub leave_default: bool,
}

impl Vlans {
    /// Reads `vlan`, `vlanTrunk` and `preserveDefaultVlan`.
    pub(super) fn new(vlan: i64, vlan_trunk: Option<&[TrunkItem]>, preserve_default: bool) -> Result<Self, String> {
        let id = match vlan {
            0 => None,
            1..=MAX_ID => u16::try_from(vlan).ok(),
            _ => return Err(format!("vlan is {vlan}; it must be from 1 to {MAX_ID}, or 0 for none")),
        };
        let tagged = trunk(vlan_trunk.unwrap_or_default())?;
        Ok(Self {
            filtering: id.is_some() || vlan_trunk.is_some(),
            leave_default: (id.is_some() || !tagged.is_empty()) && !preserve_default,
            id,
            tagged,
        })
    }

    /// VLAN of the frames that the container sends untagged. None leaves it to the bridge.
    pub(super) fn native(&self) -> Option<u16> {
        self.id.or((!self.tagged.is_empty()).then_some(NATIVE))
    }
}

/// Checks `vlanTrunk`. The ids come out sorted, as ranges that do not touch.
fn trunk(items: &[TrunkItem]) -> Result<Vec<RangeInclusive<u16>>, String> {
    let mut ids = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let id = |name: &str, id: Option<i64>| match id {
            None => Ok(None),
            Some(id @ 1..=MAX_ID) => Ok(u16::try_from(id).ok()),
            Some(id) => Err(format!("vlanTrunk[{index}].{name} is {id}; it must be from 1 to {MAX_ID}")),
        };
        match (id("minID", item.min_id)?, id("maxID", item.max_id)?) {
            (Some(min), Some(max)) if min > max => {
                return Err(format!("vlanTrunk[{index}]: minID {min} is greater than maxID {max}"));
            }
            (Some(min), Some(max)) => ids.extend(min..=max),
            (None, Some(_)) => return Err(format!("vlanTrunk[{index}] has maxID but no minID")),
            (Some(_), None) => return Err(format!("vlanTrunk[{index}] has minID but no maxID")),
            (None, None) => {}
        }
        ids.extend(id("id", item.id)?);
    }
    ids.sort_unstable();
    ids.dedup();
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some(range) if *range.end() + 1 == id => *range = *range.start()..=id,
            _ => ranges.push(id..=id),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::{TrunkItem, Vlans, trunk};

    fn one(id: i64) -> TrunkItem {
        TrunkItem { id: Some(id), ..TrunkItem::default() }
    }

    fn range(min_id: impl Into<Option<i64>>, max_id: impl Into<Option<i64>>) -> TrunkItem {
        TrunkItem { id: None, min_id: min_id.into(), max_id: max_id.into() }
    }

    #[test]
    fn ranges_are_merged() {
        let items = [range(10, 12), one(13), one(20), one(11), TrunkItem::default()];
        assert_eq!(trunk(&items).unwrap(), [10..=13, 20..=20]);
        assert_eq!(trunk(&[]).unwrap(), []);
        assert_eq!(trunk(&[range(1, 4094)]).unwrap(), [1..=4094]);
    }

    #[test]
    fn ports() {
        assert_eq!(Vlans::new(0, None, false).unwrap(), Vlans::default());
        let access = Vlans::new(7, None, false).unwrap();
        assert_eq!((access.native(), access.filtering, access.leave_default), (Some(7), true, true));
        let trunk = Vlans::new(0, Some(&[one(5)]), true).unwrap();
        assert_eq!((trunk.native(), trunk.filtering, trunk.leave_default), (Some(1), true, false));
        assert!(Vlans::new(0, Some(&[]), false).unwrap().filtering);
        for vlan in [-1, 4095] {
            let text = format!("vlan is {vlan}; it must be from 1 to 4094, or 0 for none");
            assert_eq!(Vlans::new(vlan, None, false).unwrap_err(), text);
        }
    }

    #[test]
    fn bad_ones_are_named() {
        for (items, text) in [
            (vec![TrunkItem::default(), one(0)], "vlanTrunk[1].id is 0; it must be from 1 to 4094"),
            (vec![one(4095)], "vlanTrunk[0].id is 4095; it must be from 1 to 4094"),
            (vec![range(5, None)], "vlanTrunk[0] has minID but no maxID"),
            (vec![range(None, 5)], "vlanTrunk[0] has maxID but no minID"),
            (vec![range(6, 5)], "vlanTrunk[0]: minID 6 is greater than maxID 5"),
        ] {
            assert_eq!(trunk(&items).unwrap_err(), text);
        }
    }
}
