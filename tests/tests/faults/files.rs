//! Transfers, inboxes and full disks.
