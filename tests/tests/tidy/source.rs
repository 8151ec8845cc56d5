//! The committed files as the rules see them: by path, with Rust code also without comments, literals and tests.

use std::collections::BTreeMap;
use std::path::Path;

/// The files of the project, or a few that a test made up.
pub(crate) struct Tree {
    text_by_path: BTreeMap<String, String>,
}

impl Tree {
    /// Every file below `root` but `.git` and what `.gitignore` names.
    pub(crate) fn read(root: &Path) -> Tree {
        let ignored = std::fs::read_to_string(root.join(".gitignore")).unwrap();
        let ignored: Vec<&str> =
            ignored.lines().filter_map(|line| line.strip_prefix('/')).collect();
        let mut text_by_path = BTreeMap::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if name == ".git" || ignored.contains(&name.as_str()) {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(bytes) = std::fs::read(&path) {
                    let text = String::from_utf8(bytes).unwrap_or_default();
                    text_by_path.insert(name, text);
                }
            }
        }
        Tree { text_by_path }
    }

    /// Made-up files.
    pub(crate) fn of(files: &[(&str, &str)]) -> Tree {
        let own = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        Tree { text_by_path: files.iter().map(own).collect() }
    }

    /// All files with their text, which is empty where it is not UTF-8.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text_by_path.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The text of one file; empty when there is none.
    pub(crate) fn text(&self, path: &str) -> &str {
        self.text_by_path.get(path).map_or("", String::as_str)
    }

    /// Whether a file or folder is there.
    pub(crate) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.text_by_path.contains_key(path)
            || self
                .text_by_path
                .keys()
                .any(|file| file.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Rust files whose path begins with `start`.
    pub(crate) fn rust(&self, start: &str) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(move |(path, _)| path.starts_with(start) && path.ends_with(".rs"))
    }

    /// What ships: Rust files of the three crates, less those that hold tests only.
    pub(crate) fn shipped(&self) -> impl Iterator<Item = (&str, &str)> {
        ["proto/src/", "relay/src/", "terminal/src/"]
            .into_iter()
            .flat_map(|start| self.rust(start))
            .filter(|(path, _)| !is_test(path))
    }
}

/// Whether a Rust file holds nothing but tests.
pub(crate) fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs")
        || path.ends_with("/testing.rs")
        || path.contains("/tests/")
        || path.starts_with("tests/")
}

/// Rust code with comments and the contents of literals blanked, line for line.
pub(crate) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let before = at.checked_sub(1).map(|i| chars[i]);
        let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let length = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => string(rest),
            ['b', '"', ..] if !in_word => 1 + string(&rest[1..]),
            ['r', '"' | '#', ..] if !in_word => raw_string(rest, 1),
            ['b', 'r', '"' | '#', ..] if !in_word => raw_string(rest, 2),
            ['\'', '\\', ..] => {
                2 + rest[2..].iter().skip(1).position(|c| *c == '\'').unwrap_or(0) + 2
            }
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        if length == 0 {
            out.push(chars[at]);
            at += 1;
        } else {
            let end = (at + length).min(chars.len());
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at + 1 < rest.len() {
        match (rest[at], rest[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') if depth == 1 => return at + 2,
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn string(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// 0 where `r` or `br` begins no raw string (a raw identifier).
fn raw_string(rest: &[char], start: usize) -> usize {
    let hashes = rest[start..].iter().take_while(|c| **c == '#').count();
    let open = start + hashes;
    if rest.get(open) != Some(&'"') {
        return 0;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = &rest[open + 1..];
    let length = body.windows(close.len()).position(|window| window == close);
    length.map_or(rest.len(), |length| open + 1 + length + close.len())
}

/// Blanked code with the modules under `#[cfg(test)]` blanked too.
pub(crate) fn without_tests(blanked: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = blanked.to_owned();
    let mut from = 0;
    while let Some(start) = out[from..].find(MARK).map(|at| from + at) {
        let mut depth = 0;
        let mut end = out.len();
        for (at, c) in out[start + MARK.len()..].char_indices() {
            let here = start + MARK.len() + at;
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => {
                    end = here + 1;
                    break;
                }
                '}' => depth -= 1,
                ';' if depth == 0 => {
                    end = here + 1;
                    break;
                }
                _ => {}
            }
        }
        let blank: String =
            out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        let length = blank.len();
        out.replace_range(start..end, &blank);
        from = start + length;
    }
    out
}

/// Where `word` stands in `text`, not as a part of a longer identifier; line numbers from 1.
pub(crate) fn lines_with(text: &str, word: &str) -> Vec<usize> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let stands = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let behind = line[at + word.len()..].chars().next();
            let joined_before = word.starts_with(part) && before.is_some_and(part);
            let joined_behind = word.ends_with(part) && behind.is_some_and(part);
            !joined_before && !joined_behind
        })
    };
    text.lines().enumerate().filter(|(_, line)| stands(line)).map(|(at, _)| at + 1).collect()
}

#[test]
fn comments_literals_and_tests_are_blanked() {
    let text = "let a = \"x\\\"y\"; // c\nlet b = r#\"q\"#; /* /* */ k */ let c = '\\''; let d: &'static u8 = b;\nlet e = '\"'; let f = 1;\n";
    let blanked = code(text);
    assert_eq!(blanked.lines().count(), 3);
    for gone in ["x", "y", "// c", "q", "k"] {
        assert!(!blanked.contains(gone), "{gone} in {blanked}");
    }
    for stays in ["let a =", "let b =", "let c =", "&'static u8", "let e =", "let f = 1;"] {
        assert!(blanked.contains(stays), "{stays} not in {blanked}");
    }
    let module = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { {} }\n}\nfn c() {}\n#[cfg(test)]\nmod d;\nfn e() {}\n";
    let shipped = without_tests(module);
    assert_eq!(shipped.lines().count(), module.lines().count());
    assert!(shipped.contains("fn a") && shipped.contains("fn c") && shipped.contains("fn e"));
    assert!(!shipped.contains("fn b") && !shipped.contains("mod d"));
}

#[test]
fn words_are_whole() {
    assert_eq!(lines_with("xMutex\nMutex<u8>\nMutexGuard", "Mutex"), [2]);
    assert_eq!(lines_with("a.unwrap()\nunwrap_or()", ".unwrap()"), [1]);
}
