//! Puts the daemon together: identity, attachment, sessions, services, local socket.
