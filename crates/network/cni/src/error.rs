//! Errors as the specification wants them (section 5, "Error"), and how causes become one.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use serde_json::{Value, json};

use crate::Version;

/// An error with the code that the specification gives it. `msg` is one line: what was wrong, where, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind of error it is.
    pub code: Code,
    /// The error in one line.
    pub msg: String,
    /// More of it, or empty.
    pub details: String,
}

/// The well-known error codes, and those of plugins' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// 1: the plugin does not support the configuration's version, or that version has no such command.
    IncompatibleVersion,
    /// 2: a field of the configuration is not supported; the message names it.
    UnsupportedField,
    /// 3: the container is unknown; the runtime need not clean up.
    UnknownContainer,
    /// 4: an environment variable is missing or wrong; the message names it.
    InvalidEnvironment,
    /// 5: input or output failed.
    Io,
    /// 6: the content cannot be decoded.
    Decode,
    /// 7: the configuration is wrong.
    InvalidConfig,
    /// 8: the network namespace is wrong.
    InvalidNetns,
    /// 11: something passes; the runtime should try again.
    TryAgain,
    /// 50 (STATUS): the plugin cannot serve ADD.
    NotAvailable,
    /// 51 (STATUS): as 50, and containers that run may have limited connectivity.
    LimitedConnectivity,
    /// 999: everything else.
    Internal,
    /// A plugin's own, from 100 on.
    Other(u32),
}

impl Code {
    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::InvalidNetns => 8,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Internal => 999,
            Self::Other(number) => number,
        }
    }
}

impl From<u32> for Code {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decode,
            7 => Self::InvalidConfig,
            8 => Self::InvalidNetns,
            11 => Self::TryAgain,
            50 => Self::NotAvailable,
            51 => Self::LimitedConnectivity,
            999 => Self::Internal,
            other => Self::Other(other),
        }
    }
}

impl Error {
    /// An error of a kind with its message.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// An error of no well-known kind (999).
    pub fn internal(msg: impl Into<String>) -> Self {
        Self::new(Code::Internal, msg)
    }

    /// The configuration is wrong (7).
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(Code::InvalidConfig, msg)
    }

    /// The same with details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same, with what was being done in front of the message.
    #[must_use]
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.msg = format!("{what}: {}", self.msg);
        self
    }

    /// The form on standard output. `cniVersion` is the configuration's.
    pub fn to_value(&self, version: Version) -> Value {
        let mut value = json!({ "cniVersion": version.as_str(), "code": self.code.number(), "msg": self.msg });
        if !self.details.is_empty() {
            value["details"] = Value::String(self.details.clone());
        }
        value
    }

    /// Reads what a plugin printed. None if it is not an error: an object with a code or a message.
    pub fn from_value(value: &Value) -> Option<Self> {
        let code = value.get("code").and_then(Value::as_u64).and_then(|code| u32::try_from(code).ok());
        let msg = value.get("msg").and_then(Value::as_str);
        if code.is_none() && msg.is_none() {
            return None;
        }
        let details = value.get("details").and_then(Value::as_str).unwrap_or_default();
        Some(Self::new(Code::from(code.unwrap_or(0)), msg.unwrap_or_default()).details(details))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl StdError for Error {}

/// Says what was being done when something failed, and makes it an [`Error`].
pub trait Step<T> {
    /// `what: cause: its cause`. The code is that of the cause if it is an [`Error`], 5 for input and output, else 999.
    fn step(self, what: impl fmt::Display) -> Result<T, Error>;
}

impl<T, E: StdError + 'static> Step<T> for Result<T, E> {
    fn step(self, what: impl fmt::Display) -> Result<T, Error> {
        self.map_err(|error| from_std(&error, &what))
    }
}

fn from_std(error: &(dyn StdError + 'static), what: &dyn fmt::Display) -> Error {
    if let Some(error) = error.downcast_ref::<Error>() {
        return error.clone().during(what);
    }
    let mut msg = what.to_string();
    let mut code = Code::Internal;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<io::Error>() || error.is::<rustix::io::Errno>() {
            code = Code::Io;
        }
        let text = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !msg.ends_with(&text) {
            msg.push_str(": ");
            msg.push_str(&text);
        }
        cause = error.source();
    }
    Error::new(code, msg)
}

/// Collects the errors of a DEL or GC, which must do as much as it can.
#[derive(Debug, Default)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// None so far.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Notes the error, if it is one, and gives the value, if there is one.
    pub fn push<T, E: Into<Error>>(&mut self, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(error.into());
                None
            }
        }
    }

    /// Whether nothing failed so far.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails if anything failed: with the first error's code and all their messages.
    pub fn finish(self) -> Result<(), Error> {
        let mut errors = self.0.into_iter();
        let Some(mut first) = errors.next() else { return Ok(()) };
        for error in errors {
            first.msg.push_str("; ");
            first.msg.push_str(&error.msg);
            if !error.details.is_empty() {
                if !first.details.is_empty() {
                    first.details.push_str("; ");
                }
                first.details.push_str(&error.details);
            }
        }
        Err(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_numbers_and_back() {
        for number in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 50, 51, 100, 999, u32::MAX] {
            assert_eq!(Code::from(number).number(), number);
        }
        assert_eq!(Code::from(8), Code::InvalidNetns);
    }

    #[test]
    fn wire_form() {
        let error = Error::new(Code::InvalidConfig, "no bridge").details("see the manual");
        let value = error.to_value(Version::V0_4_0);
        assert_eq!(value, json!({"cniVersion": "0.4.0", "code": 7, "msg": "no bridge", "details": "see the manual"}));
        assert_eq!(Error::from_value(&value), Some(error.clone()));
        assert_eq!(error.to_string(), "no bridge; see the manual");
        assert_eq!(Error::config("x").to_value(Version::NEWEST).get("details"), None);
        for no_error in [json!(null), json!([]), json!({}), json!({"cniVersion": "1.0.0"}), json!({"code": "x"})] {
            assert_eq!(Error::from_value(&no_error), None, "{no_error}");
        }
    }

    #[test]
    fn steps_say_what_and_why() {
        let io: Result<(), io::Error> = Err(io::Error::from_raw_os_error(13));
        let error = io.step("opening /x").unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (Code::Io, "opening /x: Permission denied (os error 13)"));
        let inner: Result<(), Error> = Err(Error::new(Code::TryAgain, "busy").details("d"));
        assert_eq!(inner.step("asking").unwrap_err(), Error::new(Code::TryAgain, "asking: busy").details("d"));
        let other: Result<u8, _> = "x".parse::<u8>();
        assert_eq!(other.step("port").unwrap_err().msg, "port: invalid digit found in string");
    }

    #[test]
    fn errors_are_collected() {
        assert_eq!(Errors::new().finish(), Ok(()));
        let mut errors = Errors::new();
        assert_eq!(errors.push::<_, Error>(Ok(1)), Some(1));
        assert!(errors.is_empty());
        errors.push::<(), _>(Err(Error::new(Code::Io, "one")));
        errors.push::<(), _>(Err(Error::new(Code::Decode, "two").details("d")));
        assert_eq!(errors.finish(), Err(Error::new(Code::Io, "one; two").details("d")));
    }
}
