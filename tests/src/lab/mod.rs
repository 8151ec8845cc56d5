//! Real processes, on loopback and in network namespaces.
