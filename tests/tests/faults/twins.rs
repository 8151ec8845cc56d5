//! Two processes with one identity.
