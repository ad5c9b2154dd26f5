//! Side-by-side benchmarks against the Go peers.

fn main() {}
