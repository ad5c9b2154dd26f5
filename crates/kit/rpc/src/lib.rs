//! gRPC over unix sockets: listening, connecting, observing calls.
