//! Rules for documents and for the files around the code.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Tree, lines_with};

fn markdown(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    tree.files().filter(|(path, _)| path.ends_with(".md"))
}

/// A path that stands in a document of `folder`, from the root; `None` when it leads out of the project.
fn resolve(folder: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// The text without fenced blocks, line for line.
fn without_blocks(text: &str) -> String {
    let mut fenced = false;
    text.lines()
        .map(|line| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            if fenced || fence { "\n".to_owned() } else { format!("{line}\n") }
        })
        .collect()
}

/// A heading as its anchor: lower case, words joined by `-`, other signs dropped.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// Relative links lead to a file of the project, and to a heading that is there.
pub(crate) fn links_resolve(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    for (path, text) in markdown(tree) {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (at, line) in without_blocks(text).lines().enumerate() {
            for rest in line.split("](").skip(1) {
                let link = rest.split(')').next().unwrap_or("");
                if link.contains("://") || link.starts_with("mailto:") {
                    continue;
                }
                let (file, heading) = link.split_once('#').unwrap_or((link, ""));
                let target = if file.is_empty() {
                    Some(path.to_owned())
                } else {
                    resolve(folder, file).filter(|target| tree.has(target))
                };
                let good = target.is_some_and(|target| {
                    heading.is_empty()
                        || without_blocks(tree.text(&target))
                            .lines()
                            .any(|line| line.starts_with('#') && anchor(line) == heading)
                });
                if !good {
                    out.push(format!("{path}:{}: {link} leads nowhere", at + 1));
                }
            }
        }
    }
    out
}

/// Decisions are numbered without a gap, each is in the list, and the list names no others.
pub(crate) fn decisions_are_listed(tree: &Tree) -> Vec<String> {
    const LIST: &str = "docs/adr/README.md";
    let mut out = Vec::new();
    let mut number = 0;
    for (path, text) in markdown(tree) {
        let Some(name) = path.strip_prefix("docs/adr/").filter(|name| *name != "README.md") else {
            continue;
        };
        number += 1;
        if !name.starts_with(&format!("{number:04}-")) {
            out.push(format!("{path}: should have number {number:04}"));
        }
        let title = format!("# {number}. ");
        if !text.starts_with(&title) {
            out.push(format!("{path}: should begin with '{title}'"));
        }
        let row = tree.text(LIST).lines().filter(|line| line.contains(&format!("]({name})")));
        if row.clone().count() != 1 || !row.clone().all(|r| r.starts_with(&format!("| {number} |")))
        {
            out.push(format!(
                "{LIST}: needs one row that begins '| {number} |' and links to {name}"
            ));
        }
    }
    out
}

/// The ids of all requirements: one letter for each block, and how many it has.
fn requirement_ids() -> Vec<String> {
    [("C", 14), ("D", 4), ("M", 9), ("F", 5), ("R", 5)]
        .into_iter()
        .flat_map(|(block, count)| (1..=count).map(move |number| format!("{block}{number}")))
        .collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The files of a module: `relay/src/core/gossip` is that file, that file with `.rs`, or all in that folder.
fn module<'a>(tree: &'a Tree, path: &str) -> Vec<&'a str> {
    let belongs = |file: &str| {
        file.strip_prefix(path.trim_end_matches('/'))
            .is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
    };
    tree.files().filter(|(file, _)| belongs(file)).map(|(_, text)| text).collect()
}

/// Each requirement has one row: id, what, where it lives, what shows it. Files and modules exist; a test is written
/// `path::function` and exists. What is missing says so: both cells "not started", or the last one "no test yet".
pub(crate) fn requirements_are_mapped(tree: &Tree) -> Vec<String> {
    const MAP: &str = "docs/requirements.md";
    let mut out = Vec::new();
    let mut rows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let ids = requirement_ids();
    for line in tree.text(MAP).lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if ids.iter().any(|id| id == cells[0]) && rows.insert(cells[0], cells).is_some() {
            out.push(format!("{MAP}: a requirement stands twice: {line}"));
        }
    }
    for id in &ids {
        let Some(cells) = rows.get(id.as_str()) else {
            out.push(format!("{MAP}: {id} has no row"));
            continue;
        };
        let [_, _, places, tests] = cells[..] else {
            out.push(format!("{MAP}: {id}: a row has four cells"));
            continue;
        };
        if places == "not started" && tests == "not started" {
            continue;
        }
        let shown = tests == "no test yet" || quoted(tests).any(|test| test.contains("::"));
        if quoted(places).count() == 0 || !shown {
            out.push(format!("{MAP}: {id}: names no place or no test"));
        }
        for word in quoted(places).chain(quoted(tests)).filter(|word| word.contains('/')) {
            let (path, function) = word.split_once("::").unwrap_or((word, ""));
            let files = module(tree, path);
            let name = format!("fn {}", function.rsplit("::").next().unwrap_or(""));
            if files.is_empty() {
                out.push(format!("{MAP}: {id}: {path} does not exist"));
            } else if !function.is_empty()
                && files.iter().all(|text| lines_with(text, &name).is_empty())
            {
                out.push(format!("{MAP}: {id}: {path} has no function {function}"));
            }
        }
    }
    out
}

/// The limits as the table that `docs/security.md` shows: name, value, what it is and what happens there.
pub(crate) fn limits_table(tree: &Tree) -> String {
    let mut out =
        String::from("| limit | value | what it bounds, and what happens there |\n|---|---|---|\n");
    let mut doc = String::new();
    let mut lines = tree.text("proto/src/limits.rs").lines();
    while let Some(line) = lines.next() {
        if let Some(comment) = line.strip_prefix("///") {
            doc = format!("{doc} {}", comment.trim());
        } else if let Some(constant) = line.strip_prefix("pub const ") {
            let mut constant = constant.to_owned();
            while !constant.ends_with(';') {
                let Some(more) = lines.next() else { break };
                constant = format!("{constant} {}", more.trim());
            }
            let name = constant.split(':').next().unwrap_or("");
            let value =
                constant.split_once("= ").map_or("", |(_, value)| value.trim_end_matches(';'));
            out += &format!("| `{name}` | `{value}` | {} |\n", doc.trim().replace('|', "\\|"));
            doc.clear();
        } else {
            doc.clear();
        }
    }
    out
}

/// Where the table stands in `docs/security.md`.
pub(crate) const LIMITS_MARKS: [&str; 2] = ["<!-- limits -->\n", "<!-- end of limits -->"];

/// `docs/security.md` with the table of limits as it should be; `None` where its marks are missing.
pub(crate) fn with_limits_table(tree: &Tree) -> Option<String> {
    let text = tree.text("docs/security.md");
    let (before, rest) = text.split_once(LIMITS_MARKS[0])?;
    let (_, behind) = rest.split_once(LIMITS_MARKS[1])?;
    Some([before, LIMITS_MARKS[0], &limits_table(tree), LIMITS_MARKS[1], behind].concat())
}

/// Each limit stands in the security document, with its value and its policy.
pub(crate) fn limits_are_documented(tree: &Tree) -> Vec<String> {
    let current = with_limits_table(tree).is_some_and(|text| text == tree.text("docs/security.md"));
    if current {
        return Vec::new();
    }
    let hint = "TASUKI_TIDY=write cargo test -p tasuki-tests --test tidy";
    vec![format!(
        "docs/security.md: its table of limits is not that of proto/src/limits.rs: {hint}"
    )]
}

/// The root holds what the layout names, and nothing else.
pub(crate) fn top_level_is_known(tree: &Tree) -> Vec<String> {
    const KNOWN: [&str; 19] = [
        ".ci",
        ".gitignore",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "clippy.toml",
        "deny.toml",
        "deploy",
        "docs",
        "fuzz",
        "proto",
        "relay",
        "rustfmt.toml",
        "terminal",
        "tests",
    ];
    let top = |path: &str| path.split('/').next().unwrap_or(path).to_owned();
    let there: BTreeSet<String> = tree.files().map(|(path, _)| top(path)).collect();
    there
        .iter()
        .filter(|name| !KNOWN.contains(&name.as_str()))
        .map(|name| format!("{name}: not in the layout of docs/architecture.md"))
        .collect()
}

/// Nothing committed depends on where it was written: no paths of one machine, no registry but crates.io.
pub(crate) fn no_traces_of_a_machine(tree: &Tree) -> Vec<String> {
    const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
    // Spelled apart, so that this file passes its own rule.
    let folders = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    let mut out = Vec::new();
    for (path, text) in tree.files() {
        for (at, line) in text.lines().enumerate() {
            if folders.iter().any(|folder| {
                line.match_indices(folder).any(|(at, _)| {
                    // A folder of that name further down in a path is another one.
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-".contains(c))
                })
            }) {
                out.push(format!("{path}:{}: a path of one machine", at + 1));
            }
            let source = line.strip_prefix("source = \"").filter(|_| path.ends_with("Cargo.lock"));
            if source.is_some_and(|source| source.trim_end_matches('"') != CRATES_IO) {
                out.push(format!("{path}:{}: a registry that is not crates.io", at + 1));
            }
        }
        if path.contains(".cargo/config") {
            out.push(format!("{path}: cargo's configuration belongs to a machine"));
        }
    }
    out
}
