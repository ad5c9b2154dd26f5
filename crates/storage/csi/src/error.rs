//! The error that a driver returns: a gRPC code of the specification's tables and a sentence for people.

use std::error::Error as StdError;
use std::fmt;

use tonic::{Code, Status};

/// What a driver answers when it cannot do what it was asked.
///
/// The constructors are the codes that the specification uses; which call uses which code when is in the table of the
/// crate documentation. The message is read by people who run a cluster: say what is wrong with which object, and what
/// to do. Never put a secret into it.
///
/// ```
/// use outrigger_csi::Error;
/// let error = Error::not_found("volume \"vol-1\" does not exist");
/// assert_eq!(tonic::Status::from(error).code(), tonic::Code::NotFound);
/// ```
pub struct Error {
    code: Code,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        impl Error {
            $($(#[$doc])*
            pub fn $name(message: impl Into<String>) -> Self {
                Self { code: Code::$code, message: message.into(), source: None }
            })*
        }
    };
}

constructors! {
    /// A required field is missing or a field is ill-formed. The caller must change the request.
    invalid_argument => InvalidArgument;
    /// The volume, snapshot, node or source does not exist.
    not_found => NotFound;
    /// There is an object of this name, or a publication at this path, with other arguments.
    already_exists => AlreadyExists;
    /// Another operation on the object is in progress (or a page token is stale): the caller repeats later.
    aborted => Aborted;
    /// The object's state forbids the operation: it is in use, attached elsewhere, not staged.
    failed_precondition => FailedPrecondition;
    /// A capacity or an offset is outside of what the plugin can do.
    out_of_range => OutOfRange;
    /// There is no room: storage is full, a node's limit is reached, no topology fits.
    resource_exhausted => ResourceExhausted;
    /// The plugin does not do this.
    unimplemented => Unimplemented;
    /// Something is broken that the caller cannot mend.
    internal => Internal;
    /// The storage cannot be reached now.
    unavailable => Unavailable;
    /// The secrets do not allow this.
    permission_denied => PermissionDenied;
    /// The secrets are missing or wrong.
    unauthenticated => Unauthenticated;
}

impl Error {
    /// Adds the cause. Its text, and that of its own causes, is appended to the message that the caller gets.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The message, without causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same problem, found in what the driver answered: nothing that the caller could mend.
    pub(crate) fn in_answer(self) -> Self {
        Self {
            code: Code::Internal,
            message: format!("the driver's answer is wrong: {}", self.message),
            source: self.source,
        }
    }

    /// The same problem, with a code after which the caller does not take for granted that nothing happened.
    pub(crate) fn uncertain(self) -> Self {
        Self { code: Code::Unavailable, ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The one place where errors become wire statuses: the message with its causes, and no details.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut message = error.message.clone();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new(error.code, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_part_of_the_status() {
        let cause = std::io::Error::other("disk on fire");
        let status = Status::from(Error::internal("cannot make volume \"v\"").with_source(cause));
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "cannot make volume \"v\": disk on fire");
        assert!(status.details().is_empty());
    }
}
