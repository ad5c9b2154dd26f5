//! What can go wrong with a patch of any format.

/// Why a patch was not applied. Each variant is one HTTP status of the API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// 400 BadRequest: the patch document itself is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// 422 Invalid without causes: the document is well formed but cannot be applied to this object.
    #[error("{0}")]
    Invalid(String),
    /// 409 Conflict: the patch asks for a state of the object that is not the present one.
    #[error("{0}")]
    Conflict(String),
    /// 413 RequestEntityTooLarge: more operations than are allowed.
    #[error("{0}")]
    TooLarge(String),
}
