//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use super::process;

/// A full build on a slow machine.
const BUILD: Duration = Duration::from_secs(1200);

/// The programs under test, of the same profile as the running test.
#[derive(Debug, Clone)]
pub struct Bins {
    /// `tasuki-relay`.
    pub relay: PathBuf,
    /// `tasuki-agent`.
    pub agent: PathBuf,
}

impl Bins {
    /// Finds them beside the running test, and builds them first when one is missing or older than its sources.
    ///
    /// `cargo test --workspace` has built them already, since the programs' own crates have integration tests.
    /// Where several test processes build, cargo's lock on the target directory lets one do it.
    ///
    /// # Panics
    /// When the build fails.
    pub fn find() -> &'static Bins {
        static BINS: OnceLock<Bins> = OnceLock::new();
        BINS.get_or_init(|| {
            let folder = profile_folder();
            let bins =
                Bins { relay: folder.join("tasuki-relay"), agent: folder.join("tasuki-agent") };
            if !bins.is_fresh() {
                build(&folder);
            }
            assert!(bins.relay.is_file() && bins.agent.is_file(), "no programs: {bins:?}");
            bins
        })
    }

    fn is_fresh(&self) -> bool {
        let root = workspace();
        // A program is as old as its own crate's last change: a change elsewhere does not build it again.
        [(&self.relay, "relay"), (&self.agent, "terminal")].into_iter().all(|(program, name)| {
            let sources = ["proto/src", &format!("{name}/src"), "relay/console"];
            let sources = sources.map(|folder| root.join(folder));
            let changed = sources.iter().filter_map(|folder| newest_source(folder)).max();
            let built = modified(program);
            built.is_some() && built >= changed
        })
    }
}

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    folder.parent().expect("the crate lies in the workspace").to_owned()
}

/// `target/debug` or `target/release`: the running test lies there, or in `deps` below it.
fn profile_folder() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this test");
    let folder = exe.parent().expect("a program lies in a folder");
    let inner = folder.ends_with("deps");
    (if inner { folder.parent().expect("deps lies in the profile's folder") } else { folder })
        .to_owned()
}

fn build(folder: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "-p", "tasuki-relay", "-p", "tasuki-terminal", "--bins"])
        .current_dir(workspace());
    // What cargo told this test about its crate would make build scripts run again, and most crates with them.
    let told =
        |name: &str| ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|own| name.starts_with(own));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => drop(command.args(["--profile", profile])),
    }
    if let Some(target) = folder.parent() {
        command.env("CARGO_TARGET_DIR", target);
    }
    process::run(&mut command, BUILD).ok();
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|m| m.modified()).ok()
}

fn newest_source(folder: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let path = entry.path();
            match (entry.file_type().ok()?.is_dir(), path.file_name()?.to_str()?) {
                (true, "tests" | "target") => None,
                (true, _) => newest_source(&path),
                (false, name) => {
                    let known = [".rs", ".js", ".css", ".html", "Cargo.toml"];
                    known.iter().any(|end| name.ends_with(end)).then(|| modified(&path))?
                }
            }
        })
        .max()
}
