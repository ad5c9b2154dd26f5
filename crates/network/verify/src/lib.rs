//! A black-box conformance suite for CNI plugins.
