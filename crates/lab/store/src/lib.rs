//! An in-memory multi-version store with one global revision and a durable log.
