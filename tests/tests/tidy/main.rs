//! What a program can check of the house's rules (CONTRIBUTING.md): layers, lengths, documents that are true.
//!
//! Each rule is a function over the committed files that lists what breaks it. `rules!` makes two tests of each:
//! the project keeps it, and it notices violations that are planted in made-up files, and only those.
//!
//! `TASUKI_TIDY=write cargo test -p tasuki-tests --test tidy` writes the generated part of `docs/security.md`.
#![allow(clippy::unwrap_used, reason = "tests act")]

mod code;
mod docs;
mod source;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use source::Tree;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The project's files, with the generated part of the documents written first where that is asked for.
fn project() -> &'static Tree {
    static PROJECT: OnceLock<Tree> = OnceLock::new();
    PROJECT.get_or_init(|| {
        let tree = Tree::read(&root());
        #[allow(clippy::disallowed_methods, reason = "the one switch of this test")]
        if std::env::var("TASUKI_TIDY").is_ok_and(|value| value == "write") {
            let text = docs::with_limits_table(&tree).unwrap();
            std::fs::write(root().join("docs/security.md"), text).unwrap();
            return Tree::read(&root());
        }
        tree
    })
}

/// Files of a made-up project.
type Files = &'static [(&'static str, &'static str)];

fn check(rule: fn(&Tree) -> Vec<String>, broken: &[Files], sound: &[Files]) {
    for files in broken {
        assert!(!rule(&Tree::of(files)).is_empty(), "not noticed: {files:?}");
    }
    for files in sound {
        let findings = rule(&Tree::of(files));
        assert!(findings.is_empty(), "a false alarm: {findings:?} in {files:?}");
    }
}

macro_rules! rules {
    ($($module:ident::$rule:ident {
        broken: [$($broken:expr),+ $(,)?],
        sound: [$($sound:expr),* $(,)?] $(,)?
    })+) => {$(
        mod $rule {
            #[test]
            fn holds() {
                let findings = crate::$module::$rule(crate::project());
                assert!(findings.is_empty(), "\n{}", findings.join("\n"));
            }

            #[test]
            fn notices() {
                crate::check(crate::$module::$rule, &[$(&$broken),+], &[$(&$sound),*]);
            }
        }
    )+};
}

rules! {
    code::cores_are_pure {
        broken: [
            [("relay/src/core/a.rs", "fn f() { let t = std::time::Instant::now(); }")],
            [("terminal/src/core/a.rs", "use tokio::sync::mpsc;")],
            [("relay/src/core/a/b.rs", "use std::sync::{Arc, Mutex};")],
            [("relay/src/core/a.rs", "use crate::io::driver;")],
            [("relay/src/core/a.rs", "fn f() { let x = rand::rng(); }")],
        ],
        sound: [
            [("relay/src/io/a.rs", "use tokio::sync::mpsc;")],
            [("relay/src/core/a/tests.rs", "fn f() { std::time::Instant::now(); }")],
            [("relay/src/core/a.rs", "//! Without tokio, Mutex.\nfn f(now: Instant) { g(\"tokio\") }\n#[cfg(test)]\nmod tests { use std::fs; }")],
        ],
    }
    code::crates_are_layered {
        broken: [
            [("relay/src/a.rs", "use tasuki_terminal::x;")],
            [("terminal/src/a.rs", "use tasuki_relay::x;")],
            [("proto/src/a.rs", "fn f() { tasuki_relay::x() }")],
            [("terminal/Cargo.toml", "[dev-dependencies]\ntasuki-relay.workspace = true\n")],
        ],
        sound: [
            [("relay/src/a.rs", "use tasuki_proto::x; // like tasuki_terminal::x"),
             ("relay/Cargo.toml", "name = \"tasuki-relay\"\n[dependencies]\ntasuki-proto.workspace = true\n")],
            [("tests/src/a.rs", "use tasuki_relay::x; use tasuki_terminal::y;")],
        ],
    }
    code::one_file_names_bincode {
        broken: [
            [("relay/src/a.rs", "fn f() { bincode::serde::encode_to_vec(1, c); }")],
            [("tests/src/a.rs", "use bincode as b;")],
        ],
        sound: [
            [("proto/src/codec.rs", "use bincode as b;")],
            [("proto/src/rows.rs", "//! One bincode struct.")],
        ],
    }
    code::text_of_others_is_escaped {
        broken: [
            [("relay/src/a.rs", "fn f() { tracing_subscriber::fmt(); }")],
            [("terminal/src/cli/a.rs", "fn f() { serde_json::to_writer_pretty(out, v)?; }")],
            [("terminal/src/cli/mod.rs", "fn f() { eprintln!(\"error: {error}\"); }")],
            [("relay/console/a.js", "note.textContent = error.message;")],
            [("relay/console/a.js", "cell.innerHTML = row.name;")],
            [("relay/console/a.js", "document.title = row.name;")],
        ],
        sound: [
            [("proto/src/log.rs", "use tracing_subscriber::fmt;"),
             ("terminal/src/cli/mod.rs", "fn f() { eprintln!(\"error: {}\", escape(&line)); }"),
             ("relay/console/dom.js", "element.textContent = harmless;"),
             ("relay/console/a.js", "hidden = note.textContent === \"\"; document.title = shown(x);")],
        ],
    }
    code::no_features {
        broken: [
            [("relay/Cargo.toml", "[features]\nfast = []\n")],
            [("relay/src/a.rs", "#[cfg(feature = \"fast\")]\nfn f() {}")],
        ],
        sound: [
            [("relay/Cargo.toml", "[features]\ntesting = []\n\n[dependencies]\nx = \"1\"\n")],
            [("relay/src/a.rs", "#[cfg(feature = \"testing\")]\nfn f() { g(\"cfg feature = 1\") }")],
        ],
    }
    code::panics_are_announced {
        broken: [
            [("relay/src/a.rs", "fn f() { g().unwrap(); }")],
            [("proto/src/a.rs", "fn f() { g().expect(\"x\"); }")],
            [("proto/src/a.rs", "fn f() { panic!(\"x\"); }")],
            [("proto/src/a.rs", "fn f() { unreachable!(); }")],
            [("terminal/src/a.rs", "#![allow(clippy::unwrap_used)]\n")],
        ],
        sound: [
            [("relay/src/a.rs", "#[allow(clippy::expect_used, reason = \"r\")]\nfn f() { g().expect(\"x\"); }")],
            [("relay/src/a.rs", "/// # Panics\n/// Never.\nfn f() { assert!(x); }")],
            [("relay/src/a.rs", "#[cfg(test)]\nmod tests { fn f() { g().unwrap(); panic!(); } }")],
            [("relay/src/a/tests.rs", "fn f() { g().unwrap(); }")],
            [("relay/src/a.rs", "fn f() { g().unwrap_or_default(); debug_assert!(x); }")],
        ],
    }
    code::unsafe_code_is_rare {
        broken: [
            [("relay/src/core/a.rs", "// SAFETY: not here.\nfn f() { unsafe { g() } }")],
            [("proto/src/net/a.rs", "fn f() { unsafe { g() } }")],
        ],
        sound: [
            [("proto/src/net/a.rs", "// SAFETY: because.\nfn f() { unsafe { g() } }")],
            [("relay/src/a.rs", "// nothing unsafe\n#[deny(unsafe_code)]\nfn f() {}")],
        ],
    }
    code::nothing_is_unfinished {
        broken: [
            [("relay/src/a.rs", concat!("// TO", "DO: later"))],
            [("docs/a.md", concat!("FIX", "ME"))],
            [("relay/src/a.rs", concat!("fn f() { to", "do!() }"))],
        ],
        sound: [[("relay/src/a.rs", "fn f() { let todos = 1; }")]],
    }
    code::comments_are_no_diary {
        broken: [[("relay/src/a.rs", concat!("/// Empty for ", "now.\nfn f() {}"))]],
        sound: [[("relay/src/a.rs", "/// No longer than 5 s.\nfn f(now: Instant) {}")]],
    }
    code::doc_blocks_are_text {
        broken: [
            [("relay/src/a.rs", "/// ```\n/// f();\n/// ```\nfn f() {}")],
            [("relay/src/a.rs", "//! ```text\n//! a\n//! ```\n//! ```rust\n//! f();\n//! ```")],
        ],
        sound: [[("relay/src/a.rs", "//! ```text\n//! a\n//! ```\n//! b\n//! ```text\n//! ```")]],
    }
    code::fuzz_targets_are_whole {
        broken: [
            [("fuzz/fuzz_targets/a.rs", "tasuki_fuzz::a(bytes)")],
            [("fuzz/Cargo.toml", "[[bin]]\nname = \"a\"\npath = \"fuzz_targets/a.rs\"\n")],
            [("fuzz/fuzz_targets/a.rs", "tasuki_fuzz::a(bytes)"),
             ("fuzz/src/lib.rs", "const TARGETS: X = [b];\npub fn a(bytes: &[u8]) {}"),
             ("fuzz/Cargo.toml", "[[bin]]\nname = \"a\"\npath = \"fuzz_targets/a.rs\"\n"),
             ("fuzz/corpus/a/seed", "x")],
        ],
        sound: [
            [("fuzz/fuzz_targets/a.rs", "tasuki_fuzz::a(bytes)"),
             ("fuzz/src/lib.rs", "const TARGETS: X = [\n    a,\n];\npub fn a(bytes: &[u8]) {}"),
             ("fuzz/Cargo.toml", "[[bin]]\nname = \"a\"\npath = \"fuzz_targets/a.rs\"\n"),
             ("fuzz/corpus/a/seed", "x")],
        ],
    }
    code::limits_are_used {
        broken: [
            [("proto/src/limits.rs", "pub const LOST: usize = 1;"),
             ("relay/src/a.rs", "// limits::LOST\nfn f() { g(LOSTS) }")],
        ],
        sound: [
            [("proto/src/limits.rs", "pub const KEPT: usize = 1;"),
             ("relay/src/a.rs", "fn f() { g(limits::KEPT) }")],
        ],
    }
    docs::links_resolve {
        broken: [
            [("docs/a.md", "see [b](b.md)")],
            [("README.md", "see [a](docs/a.md#heading)"), ("docs/a.md", "# Another\n")],
            [("docs/a.md", "[out](../../x)")],
        ],
        sound: [
            [("docs/a.md", "[b](../b.md) [c](#a-b-c) [d](https://example.org)\n## A: b (c)\n"), ("b.md", "")],
            [("docs/a.md", "```\n[b](b.md)\n```\n")],
        ],
    }
    docs::decisions_are_listed {
        broken: [
            [("docs/adr/0001-a.md", "# 1. A"), ("docs/adr/README.md", "")],
            [("docs/adr/0002-a.md", "# 2. A"), ("docs/adr/README.md", "| 2 | [A](0002-a.md) | accepted |")],
            [("docs/adr/0001-a.md", "# A"), ("docs/adr/README.md", "| 1 | [A](0001-a.md) | accepted |")],
        ],
        sound: [
            [("docs/adr/0001-a.md", "# 1. A"), ("docs/adr/README.md", "| 1 | [A](0001-a.md) | accepted |")],
        ],
    }
    docs::limits_are_documented {
        broken: [
            [("proto/src/limits.rs", "/// A.\npub const A: usize = 1;"),
             ("docs/security.md", "<!-- limits -->\n| `A` | `2` | A. |\n<!-- end of limits -->\n")],
            [("proto/src/limits.rs", "/// A.\npub const A: usize = 1;"), ("docs/security.md", "")],
        ],
        sound: [
            [("proto/src/limits.rs", "/// A,\n/// b.\npub const A: usize = 1;"),
             ("docs/security.md", "x\n<!-- limits -->\n| limit | value | what it bounds, and what happens there |\n|---|---|---|\n| `A` | `1` | A, b. |\n<!-- end of limits -->\n")],
        ],
    }
    docs::top_level_is_known {
        broken: [[("notes.txt", "")], [("scripts/a", "")]],
        sound: [[("README.md", ""), ("relay/a/b", "")]],
    }
    docs::no_traces_of_a_machine {
        broken: [
            [("docs/a.md", concat!("in /wo", "rk/x"))],
            [("deploy/a", concat!("cd /ro", "ot/x"))],
            [("Cargo.lock", "source = \"registry+https://mirror.example/index\"")],
            [(".cargo/config.toml", "")],
        ],
        sound: [
            [("docs/a.md", concat!("target/wo", "rk/x, home")),
             ("Cargo.lock", "source = \"registry+https://github.com/rust-lang/crates.io-index\"")],
        ],
    }
}

// Two rules whose made-up files are too long to be written down.

mod files_are_short {
    use crate::source::Tree;

    #[test]
    fn holds() {
        let findings = crate::code::files_are_short(crate::project());
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }

    #[test]
    fn notices() {
        let findings =
            |text: &str| crate::code::files_are_short(&Tree::of(&[("relay/src/a.rs", text)]));
        let (long, short) = ("fn f() {}\n".repeat(801), "fn f() {}\n".repeat(800));
        assert_eq!(findings(&long).len(), 1);
        let with_tests = format!("{short}#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert!(findings(&with_tests).is_empty());
    }
}

mod requirements_are_mapped {
    use crate::source::Tree;

    #[test]
    fn holds() {
        let findings = crate::docs::requirements_are_mapped(crate::project());
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }

    #[test]
    fn notices() {
        let blocks = [("C", 14), ("D", 4), ("M", 9), ("F", 5), ("R", 5)];
        let all: String = blocks
            .iter()
            .flat_map(|(block, count)| (1..=*count).map(move |n| format!("{block}{n}")))
            .map(|id| format!("| {id} | what | not started | not started |\n"))
            .collect();
        let findings = |map: &str| {
            let tree =
                Tree::of(&[("docs/requirements.md", map), ("relay/src/a.rs", "fn shown() {}")]);
            crate::docs::requirements_are_mapped(&tree).len()
        };
        let c7 = |cells: &str| all.replace("| C7 | what | not started | not started |", cells);
        assert_eq!(findings(&all), 0);
        assert_eq!(findings(&c7("| C7 | what | `relay/src/a.rs` | `relay/src/a.rs::shown` |")), 0);
        assert_eq!(findings(&c7("| C7 | what | `relay/src/a` | `relay/src/a::shown` |")), 0);
        assert_eq!(findings(&c7("| C7 | what | `relay/src/` | no test yet |")), 0);
        assert_eq!(findings(&c7("")), 1);
        assert_eq!(findings(&format!("{all}{}", "| C7 | again | not started | not started |")), 1);
        assert_eq!(findings(&c7("| C7 | what | `relay/src/b.rs` | `relay/src/a.rs::shown` |")), 1);
        assert_eq!(findings(&c7("| C7 | what | `relay/src/a.rs` | `relay/src/a.rs::hidden` |")), 1);
        assert_eq!(findings(&c7("| C7 | what | `relay/src/a.rs` | not started |")), 1);
    }
}
