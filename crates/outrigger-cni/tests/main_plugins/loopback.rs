//! `loopback`

use serde_json::json;

use crate::harness::{Attachment, compare, config, host, ours, root};

#[test]
fn as_the_original() {
    if root() {
        // In the forms before 1.0.0 the original forgets the addresses' version.
        compare("true", &Attachment::new("a"), &config("loopback", json!({}))).unwrap();
    }
}

#[test]
fn passes_on_what_came_before() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    let before = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.0.0.1/8" }] });
    let config = config("loopback", json!({ "prevResult": before }));
    let result = Attachment::new("a").add(&host, ours(), &config).unwrap();
    assert_eq!(result, before);
}
