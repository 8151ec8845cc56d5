//! Log-in: attachments, epochs, supersede, log-out (architecture 6, C1 to C3, C11).
