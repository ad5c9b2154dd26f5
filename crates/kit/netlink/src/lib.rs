//! Blocking netlink without a runtime: rtnetlink, nf_tables, conntrack, and network namespaces.
