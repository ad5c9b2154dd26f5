//! Configuration values that are read only when they are needed.

use std::marker::PhantomData;

use outrigger_cni_sdk::conf::{DecodeError, Field, Value};
use outrigger_cni_sdk::{Error, Key};

/// A value that is documented like a `T` and read as one by ADD and STATUS only: DEL and GC must work with a
/// configuration that became wrong after ADD.
#[derive(Debug, Clone, PartialEq)]
pub struct Later<T>(Value, PhantomData<T>);

impl<T> Default for Later<T> {
    fn default() -> Self {
        Self(Value::Null, PhantomData)
    }
}

impl<T: Field> Later<T> {
    /// Reads it; none if there is none. `path` is where it is in the configuration.
    pub fn read(&self, path: &str) -> Result<Option<T>, Error> {
        if T::is_absent(&self.0) {
            return Ok(None);
        }
        T::from_json(&self.0).map(Some).map_err(|error| error.under(path).into())
    }
}

impl<T: Field> Field for Later<T> {
    fn kind() -> String {
        T::kind()
    }

    fn from_json(value: &Value) -> Result<Self, DecodeError> {
        Ok(Self(value.clone(), PhantomData))
    }

    fn nested() -> &'static [Key] {
        T::nested()
    }
}
