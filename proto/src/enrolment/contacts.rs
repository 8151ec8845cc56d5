//! Where the relays of the mesh are, as a node keeps it on disk between its starts.

use std::io::ErrorKind;
use std::path::Path;

use crate::control::RelayContact;
use crate::identity::{IdentityError, write_private};

const FILE: &str = "relays.json";

/// Writes the relays into a data directory, in the place of those that were there.
///
/// # Errors
/// The file system's.
pub fn save_relays(dir: &Path, relays: &[RelayContact]) -> Result<(), IdentityError> {
    let mut json = serde_json::to_vec_pretty(relays)
        .map_err(|_| IdentityError::Unsound("the relays cannot be written as JSON"))?;
    json.push(b'\n');
    write_private(&dir.join(FILE), &json)
}

/// Reads them; none where the file is not there.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn load_relays(dir: &Path) -> Result<Vec<RelayContact>, IdentityError> {
    let path = dir.join(FILE);
    match std::fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json)
            .map_err(|_| IdentityError::Unsound("relays.json does not hold a list of relays")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(IdentityError::File { path: path.display().to_string(), source }),
    }
}
