//! UDP sockets that quinn and the switch share.
