//! Test support: scratch directories, child processes, leak checks.
