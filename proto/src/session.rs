//! Terminal and terminal, end to end: what the streams and datagrams of a session carry.
