use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A hardware address of Ethernet: six bytes, written `0a:58:0a:f4:00:01`. Dashes are read as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether it may be an interface's own: not a group's, and not all zeros.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if position == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid =
            || Error::Invalid { what: format!("{text:?} is not a hardware address such as 0a:58:0a:f4:00:01") };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+')).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read() {
        let mac = MacAddr([0x0a, 0x58, 0, 1, 0xfe, 0xff]);
        assert_eq!(mac.to_string(), "0a:58:00:01:fe:ff");
        assert_eq!("0A:58:00:01:fe:FF".parse::<MacAddr>().unwrap(), mac);
        assert_eq!("0a-58-00-01-fe-ff".parse::<MacAddr>().unwrap(), mac);
        for bad in [
            "",
            "0a",
            "0a:58:00:01:fe",
            "0a:58:00:01:fe:ff:00",
            "0a:58:00:01:fe:+f",
            "0a:58:00:01:fe:1ff",
            "zz:58:00:01:fe:ff",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
        assert!(mac.is_unicast() && !MacAddr([1; 6]).is_unicast() && !MacAddr::default().is_unicast());
    }
}
