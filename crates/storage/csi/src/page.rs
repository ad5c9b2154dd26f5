//! Pages of listings, with tokens that survive inserts and deletes between two calls.

use std::num::NonZeroU32;

use prost::Message;

use crate::Error;

/// Longest string that the specification allows where it says nothing else, in bytes.
pub(crate) const MAX_STRING: usize = 128;

/// Largest map (keys and values together) that the specification allows, in bytes.
pub(crate) const MAX_MAP: usize = 4096;

/// Bytes of entries in one answer. gRPC clients refuse messages of more than 4 MiB unless told otherwise, so a longer
/// listing is cut into pages even when the caller set no bound.
const MAX_PAGE_BYTES: usize = 3 << 20;

/// Begins every token that [`Page::take`] makes; the key of the last entry follows.
const TOKEN_PREFIX: char = '>';

/// Which part of a listing the caller wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Entries that the answer may have at most; `None` for no bound.
    pub max_entries: Option<NonZeroU32>,
    /// The token that came with the page before; `None` for the first page.
    pub token: Option<String>,
}

/// One page of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing<T> {
    /// The entries, at most [`Page::max_entries`].
    pub entries: Vec<T>,
    /// Token of the page that follows, at most 128 bytes; `None` if this is the last one.
    pub next_token: Option<String>,
}

impl<T> Listing<T> {
    /// A listing that fits into one page.
    pub fn complete(entries: Vec<T>) -> Self {
        Self { entries, next_token: None }
    }

    /// The same page of other entries.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Listing<U> {
        Listing { entries: self.entries.into_iter().map(f).collect(), next_token: self.next_token }
    }
}

impl Page {
    /// The key after which the page begins, if the token is one of [`Page::take`]'s; `None` for the first page.
    ///
    /// A driver with an ordered map starts there: `map.range::<str, _>((Bound::Excluded(after), Bound::Unbounded))`.
    ///
    /// # Errors
    /// `ABORTED` for a token that this SDK did not make.
    pub fn after(&self) -> Result<Option<&str>, Error> {
        self.token
            .as_deref()
            .map(|token| {
                token.strip_prefix(TOKEN_PREFIX).ok_or_else(|| {
                    Error::aborted(format!(
                        "starting_token {token:?} is not one of this plugin's: start again without a token"
                    ))
                })
            })
            .transpose()
    }

    /// Takes this page from `items`, which come in ascending order of `key`.
    ///
    /// The token names the last key of a page, so a listing in pages shows every item that existed throughout exactly
    /// once, whatever was created or deleted between the calls. Keys can have up to 127 bytes.
    ///
    /// # Errors
    /// `ABORTED` for a foreign token; `INTERNAL` if the items are out of order or a key is too long for a token.
    pub fn take<T: Message>(
        &self,
        items: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> &str,
    ) -> Result<Listing<T>, Error> {
        let after = self.after()?;
        let limit = self.max_entries.map_or(usize::MAX, |max| max.get() as usize);
        let mut entries: Vec<T> = Vec::new();
        let mut bytes = 0;
        for item in items {
            if after.is_some_and(|after| key(&item) <= after) {
                continue;
            }
            if let Some(last) = entries.last() {
                if key(last) >= key(&item) {
                    return Err(Error::internal(format!(
                        "items to list are out of order: {:?} after {:?}",
                        key(&item),
                        key(last)
                    )));
                }
                if entries.len() == limit || bytes + item.encoded_len() > MAX_PAGE_BYTES {
                    let token = format!("{TOKEN_PREFIX}{}", key(last));
                    if token.len() > MAX_STRING {
                        return Err(Error::internal(format!("key {:?} is too long for a page token", key(last))));
                    }
                    return Ok(Listing { entries, next_token: Some(token) });
                }
            }
            bytes += item.encoded_len();
            entries.push(item);
        }
        Ok(Listing::complete(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::proto::Snapshot;

    fn snapshots(keys: &BTreeSet<String>) -> Vec<Snapshot> {
        keys.iter().map(|key| Snapshot { snapshot_id: key.clone(), ..Default::default() }).collect()
    }

    fn page(max: u32, token: Option<String>) -> Page {
        Page { max_entries: NonZeroU32::new(max), token }
    }

    #[test]
    fn a_foreign_token_is_aborted() {
        let error = page(1, Some("invalid-token".into())).take(Vec::<Snapshot>::new(), |s| &s.snapshot_id).unwrap_err();
        assert_eq!(error.code(), tonic::Code::Aborted);
    }

    #[test]
    fn a_page_stays_below_the_message_limit_of_grpc() {
        let big = |n: u32| Snapshot {
            snapshot_id: format!("{n:03}"),
            source_volume_id: "x".repeat(1 << 20),
            ..Default::default()
        };
        let first = Page::default().take((0..5).map(big), |s| &s.snapshot_id).unwrap();
        assert_eq!(first.entries.len(), 2);
        let second = page(0, first.next_token).take((0..5).map(big), |s| &s.snapshot_id).unwrap();
        assert_eq!(second.entries[0].snapshot_id, "002");
    }

    proptest! {
        #[test]
        fn what_is_there_throughout_is_listed_once(
            constant in prop::collection::btree_set("[a-z]{1,4}", 0..30),
            churn in prop::collection::vec(prop::collection::btree_set("[a-z]{1,4}", 0..10), 1..40),
            max in 1u32..7,
        ) {
            let mut seen = BTreeMap::<String, usize>::new();
            let mut token = None;
            for round in 0.. {
                let now: BTreeSet<String> = constant.union(&churn[round % churn.len()]).cloned().collect();
                let listing = page(max, token).take(snapshots(&now), |s| &s.snapshot_id).unwrap();
                prop_assert!(listing.entries.len() <= max as usize);
                for entry in &listing.entries {
                    *seen.entry(entry.snapshot_id.clone()).or_default() += 1;
                }
                token = listing.next_token;
                if token.is_none() { break; }
            }
            prop_assert!(seen.values().all(|&times| times == 1));
            prop_assert!(constant.iter().all(|key| seen.contains_key(key)));
        }
    }
}
