//! The local socket over which the verbs talk to the daemon.
