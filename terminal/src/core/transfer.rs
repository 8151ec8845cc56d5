//! Files for the inbox: which names are taken, and when a received file is whole. Pure.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ring::digest::{self, SHA256};
use tasuki_proto::session::{Offer, segments};
use tasuki_proto::text::{escape, shown};
use tasuki_proto::{Refusal, RefusalCode, TerminalId};

/// SHA-256.
pub type Hash = [u8; 32];

/// Folders in folders, at most.
const FOLDERS: usize = 16;
/// Bytes of one part of a path (what common file systems take).
const PART_BYTES: usize = 255;
/// The permission bits that a received file may get; the owner can always read and write it. Nobody can execute it:
/// whether a file from elsewhere is to be run is decided here, not there.
const MODE_MASK: u32 = 0o644;

/// The folder below the inbox that holds unfinished files. No offer can name it, since it begins with a dot.
pub const PARTIAL_FOLDER: &str = ".partial";
/// The folder below the inbox that keeps who sent what.
pub const RECEIVED_FOLDER: &str = ".received";

/// A plain name: it stays where it is put. Neither empty, nor hidden, nor with a separator or a control character.
fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= PART_BYTES
        && !part.starts_with('.')
        && !part.contains(['/', '\\'])
        && !part.chars().any(char::is_control)
}

/// Where an offered file lands below the inbox: its folder's parts, then its name. Characters that a screen would hide
/// or obey (changes of direction, zero width) are escaped.
///
/// # Errors
/// `bad-file-name` for whatever could leave the inbox, hide in it, or is not a plain name.
pub fn inbox_path(folder: &str, name: &str) -> Result<Vec<String>, Refusal> {
    let mut parts = inbox_folder(folder)?;
    parts.push(plain(name).ok_or_else(|| bad_name(name))?);
    Ok(parts)
}

/// The parts of a folder below the inbox; none for the inbox itself.
///
/// # Errors
/// As [`inbox_path`].
pub fn inbox_folder(folder: &str) -> Result<Vec<String>, Refusal> {
    if folder.is_empty() {
        return Ok(Vec::new());
    }
    let parts: Option<Vec<String>> = folder.split('/').map(plain).collect();
    parts.filter(|parts| parts.len() <= FOLDERS).ok_or_else(|| bad_name(folder))
}

fn bad_name(name: &str) -> Refusal {
    Refusal::new(RefusalCode::BadFileName, format!("'{}'", shown(name, 100)))
}

fn plain(part: &str) -> Option<String> {
    let escaped = escape(part);
    (is_plain(part) && escaped.len() <= PART_BYTES).then(|| escaped.into_owned())
}

/// The permission bits of a received file: never set-uid, never writable by others, never executable.
pub fn file_mode(offered: u32) -> u32 {
    offered & MODE_MASK | 0o600
}

/// The name under which the rest of an interrupted transfer is kept: the same sender, place and size continue it.
pub fn partial_name(peer: &TerminalId, offer: &Offer) -> PathBuf {
    let mut hash = digest::Context::new(&SHA256);
    for part in [peer.as_str(), &offer.folder, &offer.name] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(&offer.size.to_be_bytes());
    let digest = hash.finish();
    let hex: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    PathBuf::from(format!("{peer}.{hex}.part"))
}

/// Who sent the rest of this name; `None` for names that earlier versions gave.
pub fn sender_of_partial(name: &str) -> Option<TerminalId> {
    let (sender, rest) = name.split_once('.')?;
    rest.ends_with(".part").then(|| TerminalId::new(sender).ok()).flatten()
}

/// SHA-256 over the hashes of all segments: what a whole file is checked by.
pub fn root(hashes: &[Hash]) -> Hash {
    let mut context = digest::Context::new(&SHA256);
    hashes.iter().for_each(|hash| context.update(hash));
    to_hash(&context.finish())
}

/// A digest as an array.
pub fn to_hash(digest: &digest::Digest) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// A file on its way in: which segments are there, by their hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    hashes: Vec<Option<Hash>>,
    /// Segments that are being written.
    writing: BTreeSet<u32>,
    /// The file was found whole; nothing may be written any more.
    sealed: bool,
}

impl Incoming {
    /// A file of `size` bytes of which the first segments are there from an earlier try.
    pub fn new(size: u64, have: &[Hash]) -> Self {
        let count = segments(size) as usize;
        let mut hashes: Vec<Option<Hash>> = have.iter().copied().map(Some).take(count).collect();
        hashes.resize(count, None);
        Self { hashes, writing: BTreeSet::new(), sealed: false }
    }

    /// A segment begins to arrive; until it is whole it counts as missing.
    ///
    /// # Errors
    /// `bad-request` when the file has no such segment, the segment is being written already, or the file is finished.
    pub fn begin(&mut self, index: u32) -> Result<(), Refusal> {
        if self.sealed {
            return Err(Refusal::new(RefusalCode::BadRequest, "the file is finished"));
        }
        *self.slot(index)? = None;
        if !self.writing.insert(index) {
            return Err(Refusal::new(RefusalCode::BadRequest, "segment is on its way already"));
        }
        Ok(())
    }

    /// A segment that began to arrive does not arrive any more.
    pub fn abort(&mut self, index: u32) {
        self.writing.remove(&index);
    }

    /// A segment was written and its hash was right.
    ///
    /// # Errors
    /// `bad-request` when the file has no such segment.
    pub fn complete(&mut self, index: u32, hash: Hash) -> Result<(), Refusal> {
        *self.slot(index)? = Some(hash);
        self.writing.remove(&index);
        Ok(())
    }

    fn slot(&mut self, index: u32) -> Result<&mut Option<Hash>, Refusal> {
        self.hashes
            .get_mut(index as usize)
            .ok_or_else(|| Refusal::new(RefusalCode::BadRequest, "no such segment"))
    }

    /// As [`Incoming::check`]; from then on nothing is written, so that the file stays what was checked.
    ///
    /// # Errors
    /// As [`Incoming::check`], and `bad-request` while a segment is being written.
    pub fn seal(&mut self, wanted: &Hash) -> Result<(), Refusal> {
        if !self.writing.is_empty() {
            return Err(Refusal::new(RefusalCode::BadRequest, "a segment is still on its way"));
        }
        self.check(wanted)?;
        self.sealed = true;
        Ok(())
    }

    /// Whether the file is whole and the one that the sender means.
    ///
    /// # Errors
    /// `file-corrupt` when a segment is missing or differs.
    pub fn check(&self, wanted: &Hash) -> Result<(), Refusal> {
        let all: Option<Vec<Hash>> = self.hashes.iter().copied().collect();
        match all {
            Some(all) if root(&all) == *wanted => Ok(()),
            Some(_) => Err(RefusalCode::FileCorrupt.into()),
            None => Err(Refusal::new(RefusalCode::FileCorrupt, "a segment is missing")),
        }
    }
}

/// Where `send` puts files: `TARGET:[DIR]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The terminal.
    pub target: TerminalId,
    /// The folder below its inbox; empty: the inbox itself.
    pub folder: String,
}

impl std::str::FromStr for Destination {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let (target, folder) = word
            .split_once(':')
            .ok_or_else(|| format!("'{word}' has no ':'; write TARGET: or TARGET:DIR"))?;
        let folder = folder.trim_end_matches('/').to_owned();
        if folder.starts_with('/') || folder.is_empty() && word.ends_with('/') {
            return Err(format!(
                "bad-file-name: '{folder}/': folders are below the inbox: leave out the leading '/'"
            ));
        }
        inbox_folder(&folder).map_err(|refusal| refusal.to_string())?;
        Ok(Self { target: TerminalId::new(target).map_err(|error| error.to_string())?, folder })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_paths_are_taken() {
        assert_eq!(inbox_path("", "a b.txt").unwrap(), ["a b.txt"]);
        assert_eq!(inbox_path("x/y", "ä").unwrap(), ["x", "y", "ä"]);
    }

    #[test]
    fn paths_that_could_leave_or_hide_are_not() {
        for (folder, name) in [
            ("..", "a"),
            ("x/../..", "a"),
            ("/etc", "a"),
            ("x//y", "a"),
            ("x/", "a"),
            (".partial", "a"),
            ("", ".."),
            ("", "."),
            ("", ""),
            ("", "a/b"),
            ("", "/a"),
            ("", "a\0b"),
            ("", "..\\a"),
            ("", ".bashrc"),
            ("a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a", "a"),
        ] {
            assert!(inbox_path(folder, name).is_err(), "{folder:?} {name:?}");
        }
        assert!(inbox_path("", &"a".repeat(256)).is_err());
    }

    #[test]
    fn names_that_deceive_are_escaped_and_refusals_name_what_was_written() {
        assert_eq!(
            inbox_path("a\u{200b}", "\u{202e}gpj.exe").unwrap(),
            ["a\\u{200b}", "\\u{202e}gpj.exe"]
        );
        assert!(inbox_path("", &"\u{feff}".repeat(80)).is_err(), "too long when escaped");
        assert_eq!(inbox_path("", "a\u{1b}b").unwrap_err().detail, "'a\\u{1b}b'");
        assert_eq!(inbox_path("", "/x").unwrap_err().detail, "'/x'");
        assert_eq!(inbox_path("ok", ".x").unwrap_err().detail, "'.x'");
    }

    #[test]
    fn the_name_of_a_rest_says_whose_it_is() {
        let offer = Offer {
            transfer: 1,
            folder: String::new(),
            name: "n".into(),
            size: 5,
            mode: 0,
            overwrite: false,
        };
        let peer = TerminalId::new("plant-7").unwrap();
        let name = partial_name(&peer, &offer);
        assert_eq!(sender_of_partial(name.to_str().unwrap()), Some(peer));
        assert_eq!(sender_of_partial("0123456789abcdef0123456789abcdef.part"), None);
        assert_eq!(sender_of_partial("x.y"), None);
    }

    proptest! {
        #[test]
        fn no_offer_leaves_the_inbox(
            folder in "([a.]{0,3}|/|\\\\|\\.\\./|\0|x){0,8}",
            name in "([a.]{0,3}|/|\\\\|\\.\\./|\0|x){0,4}",
        ) {
            let Ok(parts) = inbox_path(&folder, &name) else { return Ok(()) };
            let inbox = std::path::Path::new("/inbox");
            let mut path = inbox.to_path_buf();
            for part in &parts {
                path.push(part);
            }
            prop_assert_eq!(path.components().count(), 2 + parts.len());
            prop_assert!(path.components().skip(1).all(|c| matches!(c, std::path::Component::Normal(_))));
            prop_assert!(path.starts_with(inbox) && !path.starts_with(inbox.join(PARTIAL_FOLDER)));
        }

        #[test]
        fn modes_are_tame(mode: u32) {
            let mode = file_mode(mode);
            prop_assert_eq!(mode & !0o644, 0);
            prop_assert_eq!(mode & 0o600, 0o600);
        }
    }

    #[test]
    fn a_file_is_whole_only_with_every_segment_as_the_sender_has_it() {
        let size = 3 * tasuki_proto::limits::FILE_SEGMENT_BYTES - 5;
        let mut file = Incoming::new(size, &[[1; 32]]);
        let wanted = root(&[[1; 32], [2; 32], [3; 32]]);
        assert!(file.check(&wanted).is_err());
        file.complete(1, [2; 32]).unwrap();
        file.complete(2, [9; 32]).unwrap();
        assert!(file.check(&wanted).is_err());
        file.complete(2, [3; 32]).unwrap();
        assert_eq!(file.check(&wanted), Ok(()));
        file.begin(0).unwrap();
        assert!(file.check(&wanted).is_err());
        assert!(file.begin(0).is_err(), "twice at once");
        file.complete(0, [1; 32]).unwrap();
        file.begin(1).unwrap();
        assert!(file.seal(&wanted).is_err(), "a segment is on its way");
        file.abort(1);
        assert!(file.seal(&wanted).is_err(), "and does not arrive");
        file.complete(1, [2; 32]).unwrap();
        assert_eq!(file.seal(&wanted), Ok(()));
        assert!(file.begin(1).is_err(), "what was checked stays");
        assert!(file.complete(3, [0; 32]).is_err());
        assert_eq!(Incoming::new(0, &[[1; 32]]).check(&root(&[])), Ok(()));
    }

    #[test]
    fn other_senders_places_and_sizes_do_not_continue_a_transfer() {
        let offer = Offer {
            transfer: 1,
            folder: "a".into(),
            name: "bc".into(),
            size: 5,
            mode: 0,
            overwrite: false,
        };
        let peer = TerminalId::new("p").unwrap();
        let same = partial_name(&peer, &Offer { transfer: 2, ..offer.clone() });
        assert_eq!(partial_name(&peer, &offer), same);
        let others = [
            partial_name(&TerminalId::new("q").unwrap(), &offer),
            partial_name(&peer, &Offer { size: 6, ..offer.clone() }),
            partial_name(&peer, &Offer { folder: "ab".into(), name: "c".into(), ..offer }),
        ];
        assert!(others.iter().all(|other| *other != same));
    }

    #[test]
    fn destinations() {
        let to = |word: &str| word.parse::<Destination>();
        assert_eq!(to("plant7:").unwrap().folder, "");
        assert_eq!(to("plant7:a/b/").unwrap().folder, "a/b");
        assert!(to("plant7").is_err() && to("plant7:../x").is_err() && to(":x").is_err());
        for (word, said) in [("p:/abs", "'/abs/'"), ("p:/", "'/'"), ("p:a//b", "'a//b'")] {
            let error = to(word).unwrap_err();
            assert!(error.starts_with("bad-file-name: ") && error.contains(said), "{error}");
            assert!(!error.contains("/x"), "nobody wrote an x: {error}");
        }
    }
}
