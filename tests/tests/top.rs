//! `tasuki-relay top` in a pseudo-terminal, against real relays.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::mesh::{Relay, VERB};
use tasuki_tests::lab::process::{Piped, run};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, TerminalSpec, eventually};

/// What a terminal would show of what is written to it, as far as `top` uses one.
#[derive(Default)]
struct Screen {
    cells: BTreeMap<(u16, u16), char>,
    at: (u16, u16),
    /// Whether the screen beside the shell's is shown.
    beside: bool,
    hidden: bool,
    /// Colours that were asked for.
    colours: usize,
    /// What came of a sequence or a letter that is not whole.
    rest: Vec<u8>,
}

impl Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while let Some(used) = self.step() {
            self.rest.drain(..used);
        }
    }

    /// Takes one letter or sequence; how long it was, where it is whole.
    fn step(&mut self) -> Option<usize> {
        let bytes = self.rest.clone();
        match *bytes.first()? {
            0x1b if *bytes.get(1)? == b'[' => {
                let end = 2 + bytes[2..].iter().position(|byte| (0x40..0x7f).contains(byte))?;
                let parameters = std::str::from_utf8(&bytes[2..end]).unwrap();
                self.obey(bytes[end], parameters);
                Some(end + 1)
            }
            0x1b => Some(2),
            b'\r' => {
                self.at.1 = 0;
                Some(1)
            }
            b'\n' => {
                self.at.0 += 1;
                Some(1)
            }
            first => {
                let length = match first {
                    0..0x80 => 1,
                    0x80..0xe0 => 2,
                    0xe0..0xf0 => 3,
                    _ => 4,
                };
                let letter = std::str::from_utf8(bytes.get(..length)?).unwrap();
                self.cells.insert(self.at, letter.chars().next().unwrap());
                self.at.1 += 1;
                Some(length)
            }
        }
    }

    fn obey(&mut self, what: u8, parameters: &str) {
        match (what, parameters) {
            (b'h' | b'l', "?1049") => {
                self.beside = what == b'h';
                self.cells.clear();
            }
            (b'h' | b'l', "?25") => self.hidden = what == b'l',
            (b'J', "2") => self.cells.clear(),
            (b'H', _) => {
                let mut numbers = parameters.split(';').map(|number| number.parse().unwrap_or(1));
                let mut next = || numbers.next().unwrap_or(1u16).saturating_sub(1);
                self.at = (next(), next());
            }
            (b'm', _) => {
                let is_colour = |code: &str| matches!(code, "31" | "32" | "33" | "38");
                self.colours += usize::from(parameters.split(';').any(is_colour));
            }
            _ => {}
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines =
            vec![String::new(); 1 + self.cells.keys().map(|at| at.0).max().unwrap_or(0) as usize];
        for (&(row, column), &letter) in &self.cells {
            let line = &mut lines[usize::from(row)];
            let gap = usize::from(column).saturating_sub(line.chars().count());
            line.extend(std::iter::repeat_n(' ', gap));
            line.push(letter);
        }
        lines.iter().map(|line| line.trim_end().to_owned()).collect()
    }
}

/// A shell in a pseudo-terminal that runs `top`, and says in files what the terminal was like before and after.
struct Top<'a> {
    shell: Piped,
    screen: Screen,
    folder: &'a Path,
}

impl<'a> Top<'a> {
    fn start(relay: &Relay, folder: &'a Path, colours: bool) -> Self {
        let [program, data] = [&Bins::find().relay, relay.data()].map(|path| path.display());
        // Processes of tests are started with NO_COLOR.
        let environment = if colours { "unset NO_COLOR;" } else { "" };
        let script = format!(
            "cd '{}'; tty > tty; stty rows 24 cols 80; stty -g > before; echo $$ > shell; {environment} \
             '{program}' --data '{data}' top; echo $? > code; stty -g > after",
            folder.display()
        );
        let mut command = Command::new("script");
        command.args(["-qfec", &script, "/dev/null"]).env("TERM", "xterm-256color");
        command.env("SHELL", "/bin/sh");
        let shell = Piped::spawn("script", &mut command, &folder.join("log"));
        Self { shell, screen: Screen::default(), folder }
    }

    fn file(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join(name)).ok()?;
        text.strip_suffix('\n').map(str::to_owned)
    }

    /// Takes what was written, and waits until some line has all of these words in it.
    fn shows(&mut self, words: &[&str]) -> String {
        eventually(&format!("a line with {words:?}"), SOON, || {
            while let Ok(byte) = self.shell.read_exact(1, Duration::ZERO) {
                self.screen.write(&byte);
            }
            let lines = self.screen.lines();
            let found = lines.iter().find(|line| words.iter().all(|word| line.contains(word)));
            found.cloned().ok_or_else(|| lines.join("\n"))
        })
    }

    fn press(&mut self, keys: &str) {
        self.shell.write(keys.as_bytes()).unwrap();
    }

    /// Waits for the end; the exit code. The terminal is as it was.
    fn ended(mut self) -> String {
        let rest = self.shell.read_to_end(SOON).unwrap();
        self.screen.write(&rest);
        assert!(!self.screen.beside, "the shell's screen is back");
        assert!(!self.screen.hidden, "the cursor is back");
        assert_eq!(self.file("after").unwrap(), self.file("before").unwrap());
        self.file("code").unwrap()
    }
}

#[test]
fn the_mesh_at_a_glance_and_the_terminal_as_it_was() {
    let mesh = MeshSpec::line(&["r1", "r2"])
        .terminal(TerminalSpec::new("desk1").at(&["r1"]))
        .terminal(TerminalSpec::new("plant7").at(&["r2"]))
        .start();
    let folder = tempfile::tempdir().unwrap();
    let mut top = Top::start(mesh.relay("r1"), folder.path(), true);
    top.shows(&["tasuki lab  relay r1", "ready"]);
    top.shows(&["r1 ", " up ", " here "]);
    top.shows(&["r2 ", " up ", " ms "]);
    top.shows(&["changes/s"]);
    let Screen { beside, hidden, colours, .. } = &top.screen;
    assert!(*beside && *hidden && *colours > 0, "{beside} {hidden} {colours}");
    assert!(top.screen.lines().iter().all(|line| line.chars().count() <= 80));

    // The whole mesh, searched; what happens shows.
    top.press("2");
    top.shows(&["desk1 ", "logged-in", "r1"]);
    top.press("/plant");
    top.shows(&["/plant_"]);
    eventually("only what was searched for", SOON, || {
        top.shows(&["plant7 ", "logged-in"]);
        let lines = top.screen.lines();
        let others = lines.iter().filter(|line| line.starts_with("desk1")).count();
        if others == 0 { Ok(()) } else { Err(lines.join("\n")) }
    });
    mesh.terminal("plant7").verb(&["logout"]).ok();
    top.shows(&["plant7 ", "logged-out"]);

    // Another size, while it runs.
    let tty = top.file("tty").unwrap();
    run(Command::new("stty").args(["-F", &tty, "rows", "10", "cols", "60"]), VERB).ok();
    eventually("the keys in the last of ten lines", SOON, || {
        top.shows(&["plant7 "]);
        let lines = top.screen.lines();
        if lines.len() == 10 && lines[9].contains("/plant") {
            Ok(())
        } else {
            Err(lines.join("\n"))
        }
    });

    // A relay that is lost is said to be, and what was known stays.
    let relay = mesh.relay("r1");
    relay.kill();
    top.press("\u{1b}");
    top.press("\r1");
    top.shows(&["relay r1", "no answer"]);
    relay.start();
    top.shows(&["relay r1", "ready"]);
    top.press("q");
    assert_eq!(top.ended(), "0");
}

#[test]
fn however_it_ends_the_terminal_is_given_back() {
    let mesh = MeshSpec::line(&["r1"]).start();
    let relay = mesh.relay("r1");
    for way in ["\u{3}", "TERM", "HUP", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut top = Top::start(relay, folder.path(), false);
        top.shows(&["tasuki lab  relay r1", "ready"]);
        assert_eq!(top.screen.colours, 0, "NO_COLOR counts");
        if way == "\u{3}" {
            top.press(way);
        } else {
            // Its only child.
            let shell = top.file("shell").unwrap();
            run(Command::new("pkill").args(["-P", &shell, &format!("-{way}")]), VERB).ok();
        }
        assert_eq!(top.ended(), "0", "{way}");
    }
    // Nothing to give back where there is no terminal, or no relay.
    let without = relay.verb(&["top"]);
    assert_eq!(without.code, 1);
    assert!(without.stderr.starts_with("error: no-terminal: "), "{}", without.stderr);
    assert!(without.stderr.contains("use 'status'"), "{}", without.stderr);
    relay.kill();
    let folder = tempfile::tempdir().unwrap();
    let mut top = Top::start(relay, folder.path(), true);
    top.shows(&["error: no relay is running"]);
    assert_eq!(top.ended(), "1");
}
