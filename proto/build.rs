//! Writes down when this was built: no clock of a node is ever before it (see `identity::Clock`).

use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    #[allow(
        clippy::disallowed_methods,
        reason = "a build script has no configuration and no driver"
    )]
    let built = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|s| s.parse::<u64>().ok())
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
    println!("cargo:rustc-env=TASUKI_BUILT_SECS={built}");
}
