//! The control loops that the lab runs beside its API server.
