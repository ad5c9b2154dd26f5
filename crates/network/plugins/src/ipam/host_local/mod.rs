//! `host-local`: addresses of ranges on this host, kept in files.

mod index;
mod owner;
mod range;
mod store;
#[cfg(test)]
mod tests;

pub use owner::Owner;
pub use range::{Candidate, Invalid, Range, RangeConf, RangeSet, RoundRobin};
pub use store::{DEFAULT_DATA_DIR, Store, StoreError, check_writable, has_free};
