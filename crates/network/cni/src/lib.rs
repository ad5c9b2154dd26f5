//! The Container Network Interface: types of every version, an SDK for plugins, and a runtime library.
