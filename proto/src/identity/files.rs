//! Files with secrets: private, whole or not there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::IdentityError;

pub(super) fn file_error(path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.display().to_string();
    move |source| IdentityError::File { path, source }
}

/// Makes `dir` (0700) and its parents where they are missing.
///
/// # Errors
/// The file system's.
pub fn make_private_dir(dir: &Path) -> Result<(), IdentityError> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(file_error(parent))?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        result => result.map_err(file_error(dir)),
    }
}

/// Writes `bytes` to `path` (0600) so that a reader, also after a power cut, finds the old contents or the new:
/// a temporary file beside it, synced, renamed, the directory synced.
///
/// # Errors
/// The file system's.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = write_and_sync(&temporary, bytes).map_err(file_error(&temporary));
    let named = written.and_then(|()| fs::rename(&temporary, path).map_err(file_error(path)));
    if named.is_err() {
        // On a full disk half a file takes room for nothing.
        let _ = fs::remove_file(&temporary);
    }
    named?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(file_error(dir))
}

fn write_and_sync(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // `mode` counts only for a file that was not there.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()
}
