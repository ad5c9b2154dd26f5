//! What is to be limited, and the token buckets that do it: pure computation, with the numbers of the original plugin.

use outrigger_cni_sdk::conf::optional;
use outrigger_cni_sdk::{Error, Map, conf};
use outrigger_netlink::route::Tbf;

conf! {
    /// Limits of one container's interface. A rate needs its burst and the reverse.
    pub struct Limits {
        /// Bits a second towards the container.
        pub ingress_rate: u64,
        /// Bits towards the container that may pass at once; below 4 GB.
        pub ingress_burst: u64,
        /// Bits a second from the container.
        pub egress_rate: u64,
        /// Bits from the container that may pass at once; below 4 GB.
        pub egress_burst: u64,
    }
}

/// What may wait, as time at the full rate.
const LATENCY_MICROSECONDS: u64 = 25_000;

impl Limits {
    /// Whether the keys are in the configuration itself; then the capability does not count, not even for the others.
    pub(super) fn are_in(map: &Map) -> Result<bool, Error> {
        for key in ["ingressRate", "ingressBurst", "egressRate", "egressBurst"] {
            if optional::<u64>(map, key)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Fails unless rates and bursts belong together.
    pub(super) fn validate(&self) -> Result<(), Error> {
        let directions =
            [("ingress", self.ingress_rate, self.ingress_burst), ("egress", self.egress_rate, self.egress_burst)];
        for (name, rate, burst) in directions {
            let fault = match (rate, burst) {
                (0, 0) => continue,
                (_, 0) => format!("{name}Rate is set, so {name}Burst must be set too"),
                (0, _) => format!("{name}Burst is set, so {name}Rate must be set too"),
                (..8, _) | (_, ..8) => format!("{name}Rate and {name}Burst must be at least 8 (one byte)"),
                (_, burst) if burst / 8 >= u64::from(u32::MAX) => format!("{name}Burst must be less than 4 GB"),
                _ => continue,
            };
            return Err(Error::config(fault));
        }
        Ok(())
    }

    /// The bucket for what goes to the container.
    pub(super) fn ingress(&self) -> Option<Tbf> {
        bucket(self.ingress_rate, self.ingress_burst)
    }

    /// The bucket for what comes from it.
    pub(super) fn egress(&self) -> Option<Tbf> {
        bucket(self.egress_rate, self.egress_burst)
    }
}

/// A bucket for bits a second and bits at once.
fn bucket(rate: u64, burst: u64) -> Option<Tbf> {
    let (rate, burst) = (rate / 8, u32::try_from(burst / 8).ok()?);
    if rate == 0 || burst == 0 {
        return None;
    }
    let waiting = u128::from(rate) * u128::from(LATENCY_MICROSECONDS) / 1_000_000;
    let limit = u32::try_from(waiting + u128::from(burst)).unwrap_or(u32::MAX);
    Some(Tbf { rate, burst, limit })
}

/// Whether a bucket is this one. The kernel keeps the burst as the time to fill it, and the original plugin gives it whole
/// microseconds, so it comes back a little smaller.
pub(super) fn same(wanted: &Tbf, is: &Tbf) -> bool {
    let tolerance = wanted.rate / 1_000_000 + 1;
    wanted.rate == is.rate && wanted.limit == is.limit && u64::from(wanted.burst.abs_diff(is.burst)) <= tolerance
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limits(ingress_rate: u64, ingress_burst: u64) -> Limits {
        Limits { ingress_rate, ingress_burst, ..Limits::default() }
    }

    #[test]
    fn the_numbers_of_the_original() {
        let tbf = |rate, burst, limit| Some(Tbf { rate, burst, limit });
        // Rate and limit as the original's tests and `tc -j qdisc` show them.
        assert_eq!(limits(8, 8).ingress(), tbf(1, 1, 1));
        assert_eq!(limits(16, 8).ingress(), tbf(2, 1, 1));
        assert_eq!(limits(8000, 80).ingress(), tbf(1000, 10, 35));
        assert_eq!(limits(8_000_000, 800_000).ingress(), tbf(1_000_000, 100_000, 125_000));
        assert_eq!(limits(80_000_000_000, 8_000_000_000).ingress(), tbf(10_000_000_000, 1_000_000_000, 1_250_000_000));
        assert_eq!(limits(0, 0).ingress(), None);
        assert_eq!(limits(u64::MAX, 8).ingress().map(|tbf| tbf.limit), Some(u32::MAX));
    }

    #[test]
    fn rate_and_burst_belong_together() {
        for good in [limits(0, 0), limits(8, 8), limits(1 << 40, 1 << 34)] {
            assert_eq!(good.validate(), Ok(()), "{good:?}");
        }
        for bad in [limits(1000, 0), limits(0, 1000), limits(7, 8), limits(8, 7), limits(8, u64::from(u32::MAX) * 8)] {
            assert_eq!(bad.validate().unwrap_err().code.number(), 7, "{bad:?}");
        }
        let egress = Limits { egress_rate: 9, ..Limits::default() };
        assert!(egress.validate().unwrap_err().msg.starts_with("egressRate"));
    }

    #[test]
    fn where_the_limits_are() {
        let found = |value: serde_json::Value| Limits::are_in(value.as_object().unwrap());
        assert!(!found(json!({ "type": "bandwidth", "ingressRate": null })).unwrap());
        assert!(found(json!({ "ingressRate": 0 })).unwrap());
        assert!(found(json!({ "EGRESSBURST": 9 })).unwrap());
        assert!(found(json!({ "ingressRate": "x" })).is_err());
    }

    #[test]
    fn a_burst_that_was_rounded_is_the_same() {
        let wanted = Tbf { rate: 2_000_000_000, burst: 1_000_000, limit: 51_000_000 };
        assert!(same(&wanted, &Tbf { burst: 998_500, ..wanted }));
        assert!(!same(&wanted, &Tbf { burst: 990_000, ..wanted }));
        assert!(!same(&wanted, &Tbf { limit: 1, ..wanted }));
    }
}
