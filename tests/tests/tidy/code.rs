//! Rules for code: layers, limits on length, what does not belong into what ships.

use crate::source::{Tree, code, is_test, lines_with, without_tests};

fn findings_of(path: &str, text: &str, words: &[&str], why: &str) -> Vec<String> {
    words
        .iter()
        .flat_map(|word| {
            lines_with(text, word)
                .into_iter()
                .map(move |line| format!("{path}:{line}: '{word}': {why}"))
        })
        .collect()
}

fn shipped_code(text: &str) -> String {
    without_tests(&code(text))
}

/// `core/` decides and is pure: no clock, socket, task, lock, file, environment or randomness of its own.
pub(crate) fn cores_are_pure(tree: &Tree) -> Vec<String> {
    const ACTS: [&str; 24] = [
        "tokio",
        "quinn",
        "axum",
        "rusqlite",
        "async",
        ".await",
        "UdpSocket",
        "TcpStream",
        "TcpListener",
        "UnixStream",
        "Instant::now",
        "SystemTime::now",
        "Mutex",
        "RwLock",
        "DashMap",
        "std::env",
        "std::fs",
        "std::thread",
        "std::process",
        "rand::rng",
        "thread_rng",
        "OsRng",
        "SystemRandom",
        "println!",
    ];
    const OUTER: [&str; 5] =
        ["crate::io", "crate::switch", "crate::app", "crate::cli", "crate::config"];
    tree.shipped()
        .filter(|(path, _)| path.contains("/src/core/"))
        .flat_map(|(path, text)| {
            let text = shipped_code(text);
            let mut out = findings_of(path, &text, &ACTS, "cores are pure; this belongs into io/");
            out.extend(findings_of(path, &text, &OUTER, "cores know nothing around them"));
            out
        })
        .collect()
}

/// `proto` is used by `relay` and `terminal`; these two never see each other, and nobody sees `tests`.
pub(crate) fn crates_are_layered(tree: &Tree) -> Vec<String> {
    const FORBIDDEN: [(&str, &[&str]); 3] = [
        ("proto/", &["relay", "terminal", "tests"]),
        ("relay/", &["terminal", "tests"]),
        ("terminal/", &["relay", "tests"]),
    ];
    let mut out = Vec::new();
    for (start, others) in FORBIDDEN {
        for other in others {
            let (package, name) = (format!("tasuki-{other}"), format!("tasuki_{other}"));
            let manifest = format!("{start}Cargo.toml");
            let dependencies: String = tree
                .text(&manifest)
                .lines()
                .filter(|line| !line.starts_with("name") && !line.starts_with('#'))
                .map(|line| format!("{line}\n"))
                .collect();
            let why = "the layers are proto <- relay, proto <- terminal";
            out.extend(findings_of(&manifest, &dependencies, &[&package], why));
            for (path, text) in tree.rust(start) {
                out.extend(findings_of(path, &code(text), &[&name], why));
            }
        }
    }
    out
}

/// Text of others is escaped at the edges: one log set-up, one way to print JSON, one way to write into a page.
pub(crate) fn text_of_others_is_escaped(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    for (path, text) in tree.shipped() {
        let text = shipped_code(text);
        if path != "proto/src/log.rs" {
            let why = "proto/src/log.rs sets logs up, and escapes what peers say";
            out.extend(findings_of(path, &text, &["tracing_subscriber"], why));
        }
        if path.contains("/src/cli/") {
            let why = "JSON is printed by cli/table.rs or escape_json, which escape it";
            out.extend(findings_of(path, &text, &["to_writer", "to_writer_pretty"], why));
        }
        if path.ends_with("/src/cli/mod.rs") {
            for (at, line) in text.lines().enumerate() {
                if line.contains("eprintln!(") && !line.contains("escape(") {
                    out.push(format!("{path}:{}: an error is printed unescaped", at + 1));
                }
            }
        }
    }
    const WRITES: [&str; 5] =
        [".textContent = ", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"];
    let pages = tree.files().filter(|(path, _)| {
        path.starts_with("relay/console/")
            && path.ends_with(".js")
            && *path != "relay/console/dom.js"
    });
    for (path, text) in pages {
        for (at, line) in text.lines().enumerate() {
            let writes = WRITES.iter().any(|write| line.contains(write))
                || line.contains("document.title = ") && !line.contains("shown(");
            if writes {
                out.push(format!("{path}:{}: relay/console/dom.js writes text, escaped", at + 1));
            }
        }
    }
    out
}

/// One file names the serialisation, so that one file replaces it (ADR 1).
pub(crate) fn one_file_names_bincode(tree: &Tree) -> Vec<String> {
    tree.rust("")
        .filter(|(path, _)| *path != "proto/src/codec.rs")
        .flat_map(|(path, text)| {
            findings_of(path, &code(text), &["bincode"], "only proto/src/codec.rs names it")
        })
        .collect()
}

/// No cargo features but `testing`: what is tested is what ships.
pub(crate) fn no_features(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    for (path, text) in tree.files().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        let mut within = false;
        for (at, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                within = line.trim() == "[features]";
            } else if within && line.contains('=') && !line.starts_with("testing") {
                out.push(format!("{path}:{}: a feature that is not 'testing'", at + 1));
            }
        }
    }
    for (path, text) in tree.rust("") {
        // Literals are blanked in code, so the attribute is looked for in the text, and must be code there too.
        let blanked = code(text);
        for (at, (line, bare)) in text.lines().zip(blanked.lines()).enumerate() {
            let names = bare.contains("feature =") && bare.contains("cfg");
            if names && !line.contains("feature = \"testing\"") {
                out.push(format!("{path}:{}: a feature that is not 'testing'", at + 1));
            }
        }
    }
    out
}

/// Files aim at 500 lines and never exceed 800, tests not counted.
pub(crate) fn files_are_short(tree: &Tree) -> Vec<String> {
    const MOST: usize = 800;
    tree.rust("")
        .filter(|(path, _)| !is_test(path))
        .filter_map(|(path, text)| {
            let kept = shipped_code(text);
            let blank = |line: &str| line.trim().is_empty();
            // Comments count, tests do not: a line counts unless only the removal of tests emptied it.
            let lines = code(text)
                .lines()
                .zip(kept.lines())
                .filter(|(before, after)| blank(before) || !blank(after))
                .count();
            (lines > MOST)
                .then(|| format!("{path}: {lines} lines, more than {MOST}: split it by state"))
        })
        .collect()
}

fn allowed_near(lines: &[&str], at: usize, marks: &[&str], reach: usize) -> bool {
    lines[at.saturating_sub(reach)..=at].iter().any(|line| marks.iter().any(|m| line.contains(m)))
}

/// What ships does not panic on purpose, but where a doc comment, a reasoned `allow` or the text of an
/// `unreachable!` says why it does not.
pub(crate) fn panics_are_announced(tree: &Tree) -> Vec<String> {
    const CALLS: [&str; 2] = [".unwrap()", ".expect("];
    const MACROS: [&str; 2] = ["panic!", "assert!"];
    const REACH: usize = 30;
    let mut out = Vec::new();
    for (path, text) in tree.shipped() {
        let kept = shipped_code(text);
        let lines: Vec<&str> = text.lines().collect();
        for whole_file in ["#![allow(clippy::unwrap_used", "#![allow(clippy::expect_used"] {
            if kept.contains(whole_file) {
                out.push(format!("{path}: allows panics in a whole file"));
            }
        }
        for (words, marks, reach) in [
            (&CALLS[..], &["clippy::unwrap_used", "clippy::expect_used"][..], REACH),
            (&MACROS[..], &["# Panics"][..], REACH),
            (&["unreachable!"][..], &["unreachable!(\""][..], 0),
        ] {
            for word in words {
                for line in lines_with(&kept, word) {
                    if !allowed_near(&lines, line - 1, marks, reach) {
                        out.push(format!("{path}:{line}: '{word}' without {}", marks.join(" or ")));
                    }
                }
            }
        }
    }
    out
}

/// Unsafe code stands where system calls are made, each time with the reason why it is sound.
pub(crate) fn unsafe_code_is_rare(tree: &Tree) -> Vec<String> {
    const PLACES: [&str; 5] = [
        "proto/src/net/",
        "relay/src/switch/",
        "terminal/src/io/",
        "terminal/src/cli/dial.rs",
        "tests/",
    ];
    let mut out = Vec::new();
    for (path, text) in tree.rust("") {
        let lines: Vec<&str> = text.lines().collect();
        for line in lines_with(&code(text), "unsafe") {
            if !PLACES.iter().any(|place| path.starts_with(place)) {
                out.push(format!("{path}:{line}: unsafe code outside of {}", PLACES.join(", ")));
            } else if !allowed_near(&lines, line - 1, &["SAFETY:"], 6) {
                out.push(format!("{path}:{line}: unsafe code without a SAFETY comment"));
            }
        }
    }
    out
}

/// Nothing is left for later in a comment or a macro.
pub(crate) fn nothing_is_unfinished(tree: &Tree) -> Vec<String> {
    // Spelled apart, so that this file passes its own rule.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("to", "do!"),
        concat!("unimpl", "emented!"),
        concat!("dbg", "!"),
    ];
    tree.files()
        .filter(|(path, _)| !path.ends_with(".lock") && !path.starts_with("fuzz/corpus/"))
        .flat_map(|(path, text)| findings_of(path, text, &words, "finish it, or file an issue"))
        .collect()
}

/// Comments say what is, not what was: no diary.
pub(crate) fn comments_are_no_diary(tree: &Tree) -> Vec<String> {
    let phrases = [
        concat!("for ", "now"),
        concat!("any", "more"),
        concat!("no longer", " used"),
        concat!("used to ", "be"),
        concat!("previous", "ly"),
        concat!("work", "around for"),
    ];
    tree.rust("")
        .flat_map(|(path, text)| {
            let comments: String = text
                .lines()
                .map(|line| line.find("//").map_or("", |at| &line[at..]).to_owned() + "\n")
                .collect();
            findings_of(path, &comments, &phrases, "comments say what is, not what was")
        })
        .collect()
}

/// Doc tests are off (a program in a comment is compiled by nobody), so blocks say that they are text.
pub(crate) fn doc_blocks_are_text(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    for (path, text) in tree.rust("") {
        let mut open = false;
        for (at, line) in text.lines().enumerate() {
            let Some(comment) =
                ["///", "//!"].iter().find_map(|m| line.trim_start().strip_prefix(m))
            else {
                continue;
            };
            let Some(language) = comment.trim().strip_prefix("```") else { continue };
            open = !open;
            if open && language != "text" {
                out.push(format!(
                    "{path}:{}: a block in a doc comment that is not ```text",
                    at + 1
                ));
            }
        }
    }
    out
}

/// A fuzz target is a function, a program, its entry in the manifest, and seeds.
pub(crate) fn fuzz_targets_are_whole(tree: &Tree) -> Vec<String> {
    let manifest = tree.text("fuzz/Cargo.toml");
    let functions = code(tree.text("fuzz/src/lib.rs"));
    // The lines of the list of targets, from its name to its end.
    let start = functions.lines().position(|line| line.contains("const TARGETS")).unwrap_or(0);
    let length = functions.lines().skip(start).position(|line| line.contains("];")).unwrap_or(0);
    let listed = start + 1..=start + length + 1;
    let mut out = Vec::new();
    let mut targets = 0;
    for (path, text) in tree.rust("fuzz/fuzz_targets/") {
        let name = path.trim_start_matches("fuzz/fuzz_targets/").trim_end_matches(".rs");
        targets += 1;
        if !text.contains(&format!("tasuki_fuzz::{name}(")) {
            out.push(format!("{path}: does not call tasuki_fuzz::{name}"));
        }
        if !manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")) {
            out.push(format!("{path}: has no [[bin]] in fuzz/Cargo.toml"));
        }
        let family = format!("    {name}: ");
        if !functions.contains(&format!("pub fn {name}(")) && !functions.contains(&family) {
            out.push(format!("{path}: fuzz/src/lib.rs has no function {name}"));
        }
        if !lines_with(&functions, name).iter().any(|line| listed.contains(line)) {
            out.push(format!("{path}: TARGETS in fuzz/src/lib.rs does not name {name}"));
        }
        if !tree.has(&format!("fuzz/corpus/{name}")) {
            out.push(format!("{path}: has no seeds in fuzz/corpus/{name}"));
        }
    }
    if manifest.matches("[[bin]]").count() != targets {
        out.push("fuzz/Cargo.toml: a [[bin]] without a file in fuzz/fuzz_targets".into());
    }
    out
}

/// Each limit is in force somewhere: a constant that nothing reads limits nothing.
pub(crate) fn limits_are_used(tree: &Tree) -> Vec<String> {
    let code_elsewhere: Vec<String> = tree
        .rust("")
        .filter(|(path, _)| *path != "proto/src/limits.rs" && !path.starts_with("tests/tests/"))
        .map(|(_, text)| shipped_code(text))
        .collect();
    let limits = code(tree.text("proto/src/limits.rs"));
    let mut out = Vec::new();
    for name in limits.lines().filter_map(|line| line.strip_prefix("pub const ")) {
        let name = name.split(':').next().unwrap_or(name);
        let used = code_elsewhere.iter().any(|text| !lines_with(text, name).is_empty());
        if !used {
            out.push(format!("proto/src/limits.rs: nothing enforces {name}"));
        }
    }
    out
}
