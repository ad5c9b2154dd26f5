//! Every CNI plugin in one multi-call binary: the name it is called by says which.

fn main() {}
