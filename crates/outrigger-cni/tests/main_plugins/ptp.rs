//! `ptp`

use serde_json::{Value, json};

use crate::harness::{Attachment, compare, config, ipam, root};

const V4: &str = "10.23.0.0/16";
const V6: &str = "fd00:23::/64";

fn as_the_original(keys: Value) {
    if root() {
        compare("true", &Attachment::new("a"), &config("ptp", keys)).unwrap();
    }
}

#[test]
fn ipv4() {
    as_the_original(json!({ "ipam": ipam(&[V4], &["0.0.0.0/0"]) }));
    as_the_original(json!({ "mtu": 1400, "cniVersion": "0.4.0", "ipam": ipam(&[V4], &[]) }));
}

#[test]
fn dual_stack() {
    as_the_original(json!({ "ipam": ipam(&[V4, V6], &["0.0.0.0/0", "::/0"]) }));
}

#[test]
fn masquerade() {
    as_the_original(json!({ "ipMasq": true, "ipam": ipam(&[V4, "10.24.0.0/24"], &["0.0.0.0/0"]) }));
}
