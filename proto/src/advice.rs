//! What to do when a file or a port cannot be used: advice for the errors that operators meet.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What to do about `error` of a file or folder, in a few words.
pub fn file(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull => "the disk is full: make room on it",
        ErrorKind::QuotaExceeded => {
            "the disk quota of this user is used up: make room, or raise it"
        }
        ErrorKind::ReadOnlyFilesystem => {
            "its file system is read-only: see the kernel's log for why, mount it writable, or choose another --data"
        }
        ErrorKind::PermissionDenied => "check owner and mode, or run as the user that owns it",
        ErrorKind::NotADirectory => "a part of its path is not a folder: choose another path",
        ErrorKind::NotFound => "a folder on its path is missing: make it, or choose another path",
        ErrorKind::InvalidFilename => "its path is too long: choose a shorter --data",
        // The standard library's words for a path that does not fit a socket's address.
        ErrorKind::InvalidInput => {
            "its path is too long for a socket (107 bytes): choose a shorter --data"
        }
        ErrorKind::FileTooLarge => "its file system takes no file of that size",
        _ => "see the disk, and the kernel's log",
    }
}

/// What to do about `error` of listening on `address`.
pub fn port(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied if address.port() < 1024 => format!(
            "ports below 1024 are for root: take a higher one, or allow it: sysctl net.ipv4.ip_unprivileged_port_start={0}, \
             or the capability CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=; a file: setcap cap_net_bind_service=ep)",
            address.port()
        ),
        ErrorKind::PermissionDenied => {
            "a policy of this machine forbids it: see its security module's log".to_owned()
        }
        ErrorKind::AddrInUse => format!(
            "another program has port {0}: stop it (ss -lunpt 'sport = {0}' shows which), or choose another port",
            address.port()
        ),
        ErrorKind::AddrNotAvailable => {
            "this machine does not have that address ('ip address' lists its own): choose another"
                .to_owned()
        }
        _ => "choose another address or port".to_owned(),
    }
}

/// Why a daemon must not run on the data directory `dir`: it belongs to another ordinary user, who could change under
/// its hands what it reads and writes. `None` when it may, or when there is none. A directory of root is root's choice.
pub fn foreign_owner(dir: &Path) -> Option<String> {
    let owner = std::fs::metadata(dir).ok()?.uid();
    let user = rustix::process::geteuid().as_raw();
    (owner != user && owner != 0).then(|| {
        format!(
            "data-of-another-user: {}: it belongs to user {owner}, and this process runs as user {user}: run it as \
             that user (sudo -u '#{owner}'), give the directory to this one (chown -R {user}), or choose another --data",
            dir.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_common_error_has_its_own_advice() {
        let kinds = [
            ErrorKind::StorageFull,
            ErrorKind::QuotaExceeded,
            ErrorKind::ReadOnlyFilesystem,
            ErrorKind::PermissionDenied,
            ErrorKind::InvalidFilename,
            ErrorKind::InvalidInput,
            ErrorKind::Other,
        ];
        let all: std::collections::BTreeSet<_> = kinds.map(|kind| file(&kind.into())).into();
        assert_eq!(all.len(), kinds.len());
        let denied = ErrorKind::PermissionDenied.into();
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert!(port(at(443), &denied).contains("CAP_NET_BIND_SERVICE"));
        assert!(!port(at(4433), &denied).contains("CAP_NET_BIND_SERVICE"));
    }

    #[test]
    fn a_directory_of_this_user_is_not_foreign() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(foreign_owner(dir.path()), None);
        assert_eq!(foreign_owner(&dir.path().join("none")), None);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(12_345), None).unwrap();
            let why = foreign_owner(dir.path()).unwrap();
            assert!(why.starts_with("data-of-another-user: ") && why.contains("12345"), "{why}");
        }
    }
}
