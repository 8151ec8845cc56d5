//! One UDP socket for everything: frames below quinn's session endpoint, QUIC packets to the attachment endpoint.
