//! Configurations: read as tolerantly as the original plugins read them, and described for the documentation.
//!
//! Keys match without regard to case (an exact match wins), unknown keys are ignored, `null` means the default, and of
//! duplicate keys the last counts. A value of a wrong kind is an error that names the path of its key.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use outrigger_netlink::MacAddr;
#[doc(no_inline)]
pub use serde_json::Value;

use crate::{Code, Error, Map};

/// The configuration of a plugin, made with [`conf!`](crate::conf!).
pub trait Conf: Sized + Default {
    /// What it configures, in Markdown.
    const SUMMARY: &'static str;
    /// Its keys.
    const KEYS: &'static [Key];

    /// Reads it from the plugin's object.
    fn decode(map: &Map) -> Result<Self, Error>;
}

/// One key of a configuration, for the documentation.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// As it is written in JSON.
    pub name: &'static str,
    /// What kind of value it takes, in words.
    pub kind: fn() -> String,
    /// Its default as JSON; empty if it has none.
    pub default: fn() -> String,
    /// What it means, in Markdown.
    pub doc: &'static str,
    /// The keys of the objects that it takes, if it takes objects.
    pub nested: fn() -> &'static [Key],
}

/// A value cannot be read. `path` says where it is: `vlanTrunk[0].minID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Decode if it is of a wrong kind, `InvalidConfig` if it is of the right kind and wrong.
    pub code: Code,
    /// Where it is, from the object that was to be read.
    pub path: String,
    /// What was expected and what was there.
    pub message: String,
}

impl DecodeError {
    /// `expected` is a noun phrase.
    pub fn expected(expected: impl fmt::Display, got: &Value) -> Self {
        let message = format!("expected {expected}, got {}", describe(got));
        Self { code: Code::Decode, path: String::new(), message }
    }

    /// The kind is right, the value is not.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { code: Code::InvalidConfig, path: String::new(), message: message.into() }
    }

    /// The same, seen from the object that has the value under a key.
    #[must_use]
    pub fn under(mut self, key: &str) -> Self {
        let separator = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{key}{separator}{}", self.path);
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

impl std::error::Error for DecodeError {}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::new(error.code, error.to_string())
    }
}

/// A value in one line, cut to a readable length.
fn describe(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => {
            let short: String = text.chars().take(60).collect();
            let more = if short.len() < text.len() { "…" } else { "" };
            format!("the string {short:?}{more}")
        }
        other => other.to_string(),
    }
}

/// A value that a configuration can hold.
pub trait Field: Sized {
    /// Its kind in words, for the documentation: `string`, `list of objects`.
    fn kind() -> String;

    /// Reads it. A value that [`Self::is_absent`] comes here only as an item of a list or object: where the original makes
    /// that an empty value, so does this.
    fn from_json(value: &Value) -> Result<Self, DecodeError>;

    /// Whether the value means that there is none.
    fn is_absent(value: &Value) -> bool {
        value.is_null()
    }

    /// As JSON, for the documentation of defaults; empty for one that goes without saying.
    fn show(&self) -> String {
        String::new()
    }

    /// The keys of the objects that it takes.
    fn nested() -> &'static [Key] {
        &[]
    }
}

/// Finds a key: itself, or else the last, in the order of their bytes, that differs in case only. Runtime and plugins use
/// this one, so that they read the same. (The originals take the last of all spellings in the order of the text, which a
/// parsed object does not have any more.)
pub fn lookup<'a>(map: &'a Map, key: &str) -> Option<&'a Value> {
    map.get(key).or_else(|| {
        let folded = |(name, _): &(&String, &Value)| name.eq_ignore_ascii_case(key);
        map.iter().rfind(folded).map(|(_, value)| value)
    })
}

/// Reads a key, or takes the default.
pub fn field<T: Field>(map: &Map, key: &str, default: impl FnOnce() -> T) -> Result<T, DecodeError> {
    match lookup(map, key) {
        Some(value) if !T::is_absent(value) => T::from_json(value).map_err(|error| error.under(key)),
        _ => Ok(default()),
    }
}

/// Reads a key; none if it is absent.
pub fn optional<T: Field>(map: &Map, key: &str) -> Result<Option<T>, DecodeError> {
    field(map, key, || None)
}

/// `snake_case` as `camelCase`: its length. For [`conf!`](crate::conf!).
#[doc(hidden)]
pub const fn camel_len(name: &str) -> usize {
    let bytes = name.as_bytes();
    let (mut index, mut len) = (0, 0);
    while index < bytes.len() {
        if bytes[index] != b'_' {
            len += 1;
        }
        index += 1;
    }
    len
}

/// `snake_case` as `camelCase`. For [`conf!`](crate::conf!).
#[doc(hidden)]
pub const fn camel<const LEN: usize>(name: &str) -> [u8; LEN] {
    let bytes = name.as_bytes();
    let mut camel = [0; LEN];
    let (mut index, mut len, mut upper) = (0, 0, false);
    while index < bytes.len() {
        if bytes[index] == b'_' {
            upper = len > 0;
        } else {
            camel[len] = if upper { bytes[index].to_ascii_uppercase() } else { bytes[index] };
            upper = false;
            len += 1;
        }
        index += 1;
    }
    camel
}

/// The JSON key of a field. For [`conf!`](crate::conf!).
#[doc(hidden)]
#[macro_export]
macro_rules! conf_key {
    ($field:ident, $key:literal) => {
        $key
    };
    ($field:ident) => {{
        const NAME: &str = stringify!($field);
        const LEN: usize = $crate::conf::camel_len(NAME);
        const BYTES: [u8; LEN] = $crate::conf::camel::<LEN>(NAME);
        const KEY: &str = match core::str::from_utf8(&BYTES) {
            Ok(key) => key,
            Err(_) => NAME,
        };
        KEY
    }};
}

/// The default of a field. For [`conf!`](crate::conf!).
#[doc(hidden)]
#[macro_export]
macro_rules! conf_default {
    () => {
        ::core::default::Default::default()
    };
    ($default:expr) => {
        $default
    };
}

/// Defines a configuration: a struct with `Default`, [`Conf`] and [`Field`] (so that it can be part of another).
///
/// Keys are the fields' names in camel case, or what `#[key = "…"]` says. The documentation comments become the manual.
/// ```
/// use outrigger_cni_sdk::{Conf as _, conf};
///
/// conf! {
///     /// Joins the container to a bridge.
///     pub struct BridgeConf {
///         /// Name of the bridge.
///         pub bridge: String = "cni0".to_owned(),
///         /// Gives the bridge an address.
///         pub is_gateway: bool,
///         /// Drops what a container sends from another MAC.
///         #[key = "macspoofchk"]
///         pub mac_spoof_check: bool,
///     }
/// }
///
/// let config = serde_json::json!({"IsGateway": true, "unknown": 1});
/// let conf = BridgeConf::decode(config.as_object().unwrap()).unwrap();
/// assert_eq!((conf.bridge.as_str(), conf.is_gateway, conf.mac_spoof_check), ("cni0", true, false));
/// assert_eq!(BridgeConf::KEYS[1].name, "isGateway");
/// ```
#[macro_export]
macro_rules! conf {
    (
        $(#[doc = $summary:expr])*
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $doc:expr])*
                $(#[key = $key:literal])?
                $field_vis:vis $field:ident : $kind:ty $(= $default:expr)?
            ),* $(,)?
        }
    ) => {
        $(#[doc = $summary])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $(
                $(#[doc = $doc])*
                $field_vis $field: $kind,
            )*
        }

        impl ::core::default::Default for $name {
            fn default() -> Self {
                Self { $($field: $crate::conf_default!($($default)?),)* }
            }
        }

        impl $crate::Conf for $name {
            const SUMMARY: &'static str = concat!($($summary, "\n",)*);
            const KEYS: &'static [$crate::Key] = &[$(
                $crate::Key {
                    name: $crate::conf_key!($field $(, $key)?),
                    kind: <$kind as $crate::Field>::kind,
                    default: || {
                        let value: $kind = $crate::conf_default!($($default)?);
                        $crate::Field::show(&value)
                    },
                    doc: concat!($($doc, "\n",)*),
                    nested: <$kind as $crate::Field>::nested,
                },
            )*];

            fn decode(map: &$crate::Map) -> ::core::result::Result<Self, $crate::Error> {
                let _ = map;
                ::core::result::Result::Ok(Self {
                    $($field: $crate::conf::field(
                        map,
                        $crate::conf_key!($field $(, $key)?),
                        || $crate::conf_default!($($default)?),
                    )?,)*
                })
            }
        }

        impl $crate::Field for $name {
            fn kind() -> ::std::string::String {
                ::std::string::String::from("object")
            }

            fn from_json(value: &$crate::conf::Value) -> ::core::result::Result<Self, $crate::DecodeError> {
                if value.is_null() {
                    return ::core::result::Result::Ok(::core::default::Default::default());
                }
                let map = $crate::conf::object(value)?;
                let _ = map;
                ::core::result::Result::Ok(Self {
                    $($field: $crate::conf::field(
                        map,
                        $crate::conf_key!($field $(, $key)?),
                        || $crate::conf_default!($($default)?),
                    )?,)*
                })
            }

            fn nested() -> &'static [$crate::Key] {
                <Self as $crate::Conf>::KEYS
            }
        }
    };
}

/// Defines an enum of strings that a configuration can hold. The empty string means the default.
/// ```
/// outrigger_cni_sdk::conf_enum! {
///     /// How it forwards.
///     pub enum Mode {
///         /// Between each other.
///         #[default]
///         Bridge = "bridge",
///         /// Not at all.
///         Private = "private",
///     }
/// }
/// assert_eq!(Mode::default().as_str(), "bridge");
/// ```
#[macro_export]
macro_rules! conf_enum {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $text:literal),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant,)*
        }

        impl $name {
            /// As it is written in a configuration.
            $vis const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl $crate::Field for $name {
            fn kind() -> ::std::string::String {
                [$(concat!("`", $text, "`")),*].join(", ")
            }

            fn from_json(value: &$crate::conf::Value) -> ::core::result::Result<Self, $crate::DecodeError> {
                match $crate::conf::string(value)? {
                    $($text => ::core::result::Result::Ok(Self::$variant),)*
                    _ => ::core::result::Result::Err($crate::conf::not_one_of(&[$($text),*], value)),
                }
            }

            fn is_absent(value: &$crate::conf::Value) -> bool {
                $crate::conf::is_blank(value)
            }

            fn show(&self) -> ::std::string::String {
                format!("{:?}", self.as_str())
            }
        }
    };
}

/// The object that a value must be.
pub fn object(value: &Value) -> Result<&Map, DecodeError> {
    value.as_object().ok_or_else(|| DecodeError::expected("an object", value))
}

/// The text that a value must be.
pub fn string(value: &Value) -> Result<&str, DecodeError> {
    value.as_str().ok_or_else(|| DecodeError::expected("a string", value))
}

/// Whether a value is null or the empty string.
pub fn is_blank(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

/// A string is none of those that are allowed.
pub fn not_one_of(allowed: &[&str], value: &Value) -> DecodeError {
    let mut error = DecodeError::expected(format!("one of {}", allowed.join(", ")), value);
    error.code = Code::InvalidConfig;
    error
}

/// A boolean that may also be written as a string, where the original allows that (lists' flags).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LooseBool(pub bool);

impl Field for LooseBool {
    fn kind() -> String {
        "boolean".to_owned()
    }

    fn from_json(value: &Value) -> Result<Self, DecodeError> {
        match value {
            Value::Bool(value) => Ok(Self(*value)),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(Self(true)),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(Self(false)),
            _ => Err(DecodeError::expected("a boolean", value)),
        }
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl Field for bool {
    fn kind() -> String {
        "boolean".to_owned()
    }

    fn from_json(value: &Value) -> Result<Self, DecodeError> {
        value.as_bool().or(value.is_null().then_some(false)).ok_or_else(|| DecodeError::expected("a boolean", value))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Field for String {
    fn kind() -> String {
        "string".to_owned()
    }

    fn from_json(value: &Value) -> Result<Self, DecodeError> {
        if value.is_null() { Ok(Self::new()) } else { string(value).map(str::to_owned) }
    }

    fn show(&self) -> String {
        if self.is_empty() { String::new() } else { format!("{self:?}") }
    }
}

impl Field for Value {
    fn kind() -> String {
        "any".to_owned()
    }

    fn from_json(value: &Value) -> Result<Self, DecodeError> {
        Ok(value.clone())
    }
}

impl Field for Map {
    fn kind() -> String {
        "object".to_owned()
    }

    fn from_json(value: &Value) -> Result<Self, DecodeError> {
        if value.is_null() { Ok(Self::new()) } else { object(value).cloned() }
    }
}

macro_rules! integers {
    ($($kind:ty),*) => {$(
        impl Field for $kind {
            fn kind() -> String {
                "integer".to_owned()
            }

            fn from_json(value: &Value) -> Result<Self, DecodeError> {
                if value.is_null() {
                    return Ok(0);
                }
                let signed = value.as_i64().and_then(|number| Self::try_from(number).ok());
                signed.or_else(|| value.as_u64().and_then(|number| Self::try_from(number).ok())).ok_or_else(|| {
                    DecodeError::expected(format_args!("an integer from {} to {}", Self::MIN, Self::MAX), value)
                })
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, usize, i32, i64);

macro_rules! parsed {
    ($($kind:ty: $words:literal),* $(,)?) => {$(
        impl Field for $kind {
            fn kind() -> String {
                $words.to_owned()
            }

            fn from_json(value: &Value) -> Result<Self, DecodeError> {
                let text = value.as_str().ok_or_else(|| DecodeError::expected($words, value))?;
                text.parse().map_err(|_| DecodeError::expected($words, value))
            }

            fn is_absent(value: &Value) -> bool {
                is_blank(value)
            }

            fn show(&self) -> String {
                format!("\"{self}\"")
            }
        }
    )*};
}
parsed! {
    IpAddr: "an IP address",
    Ipv4Addr: "an IPv4 address",
    Ipv6Addr: "an IPv6 address",
    IpNet: "an address with prefix length",
    Ipv4Net: "an IPv4 address with prefix length",
    Ipv6Net: "an IPv6 address with prefix length",
    MacAddr: "a hardware address",
}

impl<T: Field> Field for Option<T> {
    fn kind() -> String {
        T::kind()
    }

    fn from_json(value: &Value) -> Result<Self, DecodeError> {
        if T::is_absent(value) { Ok(None) } else { T::from_json(value).map(Some) }
    }

    fn is_absent(value: &Value) -> bool {
        T::is_absent(value)
    }

    fn show(&self) -> String {
        self.as_ref().map(Field::show).unwrap_or_default()
    }

    fn nested() -> &'static [Key] {
        T::nested()
    }
}

impl<T: Field> Field for Vec<T> {
    fn kind() -> String {
        format!("list of {}", T::kind())
    }

    fn from_json(value: &Value) -> Result<Self, DecodeError> {
        if value.is_null() {
            return Ok(Self::new());
        }
        let list = value.as_array().ok_or_else(|| DecodeError::expected("a list", value))?;
        let item = |(index, value)| T::from_json(value).map_err(|error| error.under(&format!("[{index}]")));
        list.iter().enumerate().map(item).collect()
    }

    fn nested() -> &'static [Key] {
        T::nested()
    }
}

impl<T: Field> Field for BTreeMap<String, T> {
    fn kind() -> String {
        format!("object of {}", T::kind())
    }

    fn from_json(value: &Value) -> Result<Self, DecodeError> {
        if value.is_null() {
            return Ok(Self::new());
        }
        let entry = |(key, value): (&String, &Value)| {
            T::from_json(value).map(|value| (key.clone(), value)).map_err(|error| error.under(key))
        };
        object(value)?.iter().map(entry).collect()
    }

    fn nested() -> &'static [Key] {
        T::nested()
    }
}

#[cfg(test)]
pub(crate) mod tests;
