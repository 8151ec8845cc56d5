//! Forwards frames by their label: no decryption, no allocation per packet, no await (architecture 7).
