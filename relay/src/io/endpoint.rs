//! QUIC endpoints over the sockets that the switch owns.
