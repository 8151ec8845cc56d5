//! Puts a running relay together: identity, store, core, switch, endpoints, status endpoint.
