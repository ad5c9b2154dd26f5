//! `flannel`
