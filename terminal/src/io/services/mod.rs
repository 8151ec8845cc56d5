//! What a session carries: TCP, UDP, stdio, files.
