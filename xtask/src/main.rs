//! Development tasks: regenerates committed generated code and data.

fn main() {}
