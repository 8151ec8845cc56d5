//! A small disk: a file system in memory that a test mounts, fills up and frees again.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::lab::process::run;
use crate::lab::{left_out, sys};

const LIMIT: Duration = Duration::from_secs(10);
/// The device name of each, before the process id of the test.
const DEVICE: &str = "tskdisk";
/// What fills it.
const BALLAST: &str = "ballast";

/// A mounted file system, gone with its owner.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Whether this machine lets a test mount; where not, that is said loudly.
    pub fn is_possible(what: &str) -> bool {
        if !sys::is_root() {
            left_out(&format!("{what}: to mount needs root"));
        }
        sys::is_root()
    }

    /// Mounts one of so many bytes at a folder, which is made. Unmounts those of test processes that were killed.
    pub(super) fn mount(at: &Path, bytes: u64) -> Disk {
        sweep();
        std::fs::create_dir_all(at).expect("our own folder");
        let device = format!("{DEVICE}{}", std::process::id());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), &device]).arg(at);
        run(&mut mount, LIMIT).ok();
        Disk { at: at.to_owned() }
    }

    /// Takes all the room that is left.
    ///
    /// # Panics
    /// When it cannot be written to at all.
    pub fn fill(&self) {
        let mut ballast = File::create(self.at.join(BALLAST)).expect("a file");
        for size in [64 * 1024, 4096, 1] {
            while ballast.write_all(&vec![7; size]).is_ok() {}
        }
    }

    /// Gives the room back.
    ///
    /// # Panics
    /// When it was not taken.
    pub fn free(&self) {
        std::fs::remove_file(self.at.join(BALLAST)).expect("a disk that was filled");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

fn unmount(at: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(at).output();
}

/// Unmounts what test processes left that are gone.
fn sweep() {
    for line in std::fs::read_to_string("/proc/mounts").unwrap_or_default().lines() {
        let mut words = line.split(' ');
        let owner = words.next().and_then(|device| device.strip_prefix(DEVICE));
        let gone = owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if let (true, Some(at)) = (gone, words.next()) {
            unmount(Path::new(at));
        }
    }
}
