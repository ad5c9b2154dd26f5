//! One operation at a time on each object.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;
use crate::check::table::Scope;

/// The objects on which operations are running. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Locks(Arc<Mutex<HashSet<(Scope, String)>>>);

/// Keeps other operations off an object until it is dropped.
pub(crate) struct Guard {
    locks: Locks,
    object: (Scope, String),
}

impl Locks {
    /// Takes an object, or says that it is taken.
    ///
    /// # Errors
    /// `ABORTED`: the specification has the caller wait and repeat, rather than the plugin queue.
    pub(crate) fn take(&self, scope: Scope, id: &str) -> Result<Guard, Error> {
        let object = (scope, id.to_owned());
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(object.clone()) {
            let noun = scope.noun();
            return Err(Error::aborted(format!(
                "an operation for {noun} {id:?} is already in progress: try again later"
            )));
        }
        Ok(Guard { locks: self.clone(), object })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.locks.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_taken_once_per_scope() {
        let locks = Locks::default();
        let guard = locks.take(Scope::Volume, "v").unwrap();
        let error = locks.take(Scope::Volume, "v").err().unwrap();
        assert_eq!(error.code(), tonic::Code::Aborted);
        assert_eq!(error.message(), "an operation for volume \"v\" is already in progress: try again later");
        locks.take(Scope::NodeVolume, "v").unwrap();
        locks.take(Scope::Volume, "w").unwrap();
        drop(guard);
        locks.take(Scope::Volume, "v").unwrap();
    }
}
