//! API machinery without I/O: patches, server-side apply, selectors, tables.
