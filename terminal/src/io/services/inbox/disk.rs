//! Files and folders of an inbox, each step of a path by itself, so that no symbolic link leads out of it.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Stat, fallocate,
    fstatvfs, linkat, mkdirat, openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

/// Zeros of this length, at a multiple of it, become a hole: what is sparse stays so.
const HOLE: usize = 64 * 1024;
static ZEROS: [u8; HOLE] = [0; HOLE];

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

/// What is free and what there is of the disk, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) free: u64,
    pub(super) total: u64,
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);

impl Folder {
    /// Opens the inbox itself, which is made where it is missing. It may be a link: that is its owner's choice.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(openat(CWD, path, FOLDER, Mode::empty())?))
    }

    /// The folder of this name in it, no link; `None` when there is none and it is not to be made.
    pub(super) fn below(&self, name: &str, make: bool) -> io::Result<Option<Self>> {
        let open = || openat(&self.0, name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
        match open() {
            Err(Errno::NOENT) if make => {
                match mkdirat(&self.0, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                Ok(Some(Self(open()?)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(ErrorKind::NotADirectory.into()),
            result => Ok(Some(Self(result?))),
        }
    }

    /// As [`Folder::below`], step by step.
    pub(super) fn walk(&self, names: &[String], make: bool) -> io::Result<Option<Self>> {
        let mut at = Self(self.0.try_clone()?);
        for name in names {
            match at.below(name, make)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// What stands under this name, a link as such; `None` when nothing does.
    pub(super) fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        match statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            result => Ok(Some(result?)),
        }
    }

    /// Opens a plain file to read it.
    pub(super) fn read(&self, name: &str) -> io::Result<File> {
        // A pipe would wait for its other end.
        self.plain(name, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    /// Opens a plain file to read and write it (0600); it is made where it is missing.
    pub(super) fn write(&self, name: &str) -> io::Result<File> {
        self.plain(name, OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK)
    }

    /// Opens a plain file to write at its end (0600); it is made where it is missing.
    pub(super) fn append(&self, name: &str) -> io::Result<File> {
        self.plain(name, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK)
    }

    fn plain(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(ErrorKind::InvalidInput.into()) }
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Gives a file its place; replaces what is there only where that is wanted.
    pub(super) fn rename(
        &self,
        name: &str,
        to: &Folder,
        new_name: &str,
        replace: bool,
    ) -> io::Result<()> {
        if replace {
            return Ok(renameat(&self.0, name, &to.0, new_name)?);
        }
        match renameat_with(&self.0, name, &to.0, new_name, RenameFlags::NOREPLACE) {
            // The file system does not know it. A link does not replace anything, either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                linkat(&self.0, name, &to.0, new_name, AtFlags::empty())?;
                self.remove(name)
            }
            result => Ok(result?),
        }
    }

    /// The names in it.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            if let Ok(name) = entry?.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// The disk's room.
    pub(super) fn space(&self) -> io::Result<Space> {
        let of = fstatvfs(&self.0)?;
        let bytes = |blocks: u64| blocks.saturating_mul(of.f_frsize);
        Ok(Space { free: bytes(of.f_bavail), total: bytes(of.f_blocks) })
    }

    /// So that a name that was given survives a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}

/// Whether it is a plain file.
pub(super) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// The bytes that a file takes on the disk.
pub(super) fn taken(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

/// Writes `data` at `at`; long runs of zeros become holes.
pub(super) fn write_sparse(file: &File, data: &[u8], at: u64) -> io::Result<()> {
    let mut begun = 0;
    let mut here = 0;
    while here < data.len() {
        let past = (at + here as u64) % HOLE as u64;
        let step = (HOLE - past as usize).min(data.len() - here);
        let is_hole = step == HOLE && data[here..here + step] == ZEROS;
        if is_hole {
            file.write_all_at(&data[begun..here], at + begun as u64)?;
            if !punch(file, at + here as u64, step as u64) {
                file.write_all_at(&ZEROS, at + here as u64)?;
            }
            begun = here + step;
        }
        here += step;
    }
    file.write_all_at(&data[begun..], at + begun as u64)
}

/// Makes a hole; `false` where the file system has none.
fn punch(file: &File, at: u64, length: u64) -> bool {
    let end = at.saturating_add(length);
    // Beyond its end a file is a hole already, once it is made longer.
    let Ok(data) = file.metadata() else { return false };
    if data.len() <= at {
        return data.len() == end || file.set_len(end).is_ok();
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file.as_fd(), flags, at, length).is_ok()
        && (data.len() >= end || file.set_len(end).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zeros_become_holes_and_overwrite_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let file = folder.write("f").unwrap();
        let mut data = vec![0; 16 * HOLE];
        data[5 * HOLE + 7] = 1;
        write_sparse(&file, &data, 0).unwrap();
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), data);
        assert!(file.metadata().unwrap().blocks() * 512 <= 2 * HOLE as u64);
        file.write_all_at(&vec![9; 16 * HOLE], 0).unwrap();
        write_sparse(&file, &data, 0).unwrap();
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), data);
        // At an odd place, and with an odd end.
        write_sparse(&file, &vec![0; 2 * HOLE + 5], 3).unwrap();
        data[5 * HOLE + 7] = 1;
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), data);
    }

    #[test]
    fn no_link_is_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("way")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for make in [false, true] {
            let error = folder.walk(&["way".into()], make).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotADirectory);
        }
        assert!(folder.read("file").is_err() && folder.write("file").is_err());
        assert!(!is_file(&folder.stat("file").unwrap().unwrap()));
        assert!(folder.walk(&["no".into(), "way".into()], false).unwrap().is_none());
        assert!(folder.walk(&["no".into(), "way".into()], true).unwrap().is_some());
    }

    #[test]
    fn a_name_is_given_once_unless_it_may_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for (name, text) in [("a", "1"), ("b", "2")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let error = folder.rename("a", &folder, "b", false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        folder.rename("a", &folder, "b", true).unwrap();
        folder.rename("b", &folder, "c", false).unwrap();
        assert_eq!(folder.names().unwrap(), ["c"]);
        assert_eq!(std::fs::read(dir.path().join("c")).unwrap(), b"1");
    }
}
