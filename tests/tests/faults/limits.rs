//! Limits of forwards: connections, flows, datagram sizes, connections of vanished machines.
