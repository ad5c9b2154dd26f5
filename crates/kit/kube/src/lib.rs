//! Controller plumbing: leader election, events, work queues, client set-up.
