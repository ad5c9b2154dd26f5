//! The SDK for Container Storage Interface plugins and clients.
