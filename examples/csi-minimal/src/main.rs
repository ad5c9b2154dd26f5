//! A complete CSI driver in one short file.

fn main() {}
