//! `enroll`: makes this machine a terminal of the mesh.

use std::path::Path;

/// Enrols with a one-time token and leaves the identity in `data`.
///
/// # Errors
/// When the directory is in use, the token is not sound, or no relay answers.
#[allow(clippy::unused_async)]
pub async fn enroll(data: &Path, token: &str) -> anyhow::Result<()> {
    let _ = token;
    anyhow::bail!("{}: enrolment is not built in", data.display())
}
