//! `outrigger`, the fast chain.
