//! `docs/quickstart.md`, done word by word: each `console HOST` block is typed on that host, and what it shows must come.
//!
//! Relays are hosts of an internet in namespaces, terminals are behind NATs of it. Each host has an `/etc` and a
//! `/var/lib` of its own, the shipped example configurations where the packages put them, and stand-ins for `sudo` and
//! `systemctl` (no systemd runs here; it starts what the shipped unit starts).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tasuki_tests::lab::bins::{Bins, workspace};
use tasuki_tests::lab::have;
use tasuki_tests::lab::netns::{Namespace, Wan};
use tasuki_tests::lab::process::{Done, Process, run, tail};
use tasuki_tests::lab::wait::POLL;

const LIMIT: Duration = Duration::from_secs(60);
/// How long a block that only looks may take until it shows what it should.
const SETTLES: Duration = Duration::from_secs(30);
/// Between the outputs of two commands of a block.
const MARK: &str = "@@ next command @@";
/// Commands that do something: they are typed once.
const ACTS: [&str; 5] = [" init ", " join ", " enroll ", " token ", "systemctl "];

/// In each host's shell before what is typed.
const PRELUDE: &str = r#"
mount --make-rprivate /
mount --bind "$HOST_FOLDER/etc" /etc
mount --bind "$HOST_FOLDER/lib" /var/lib
hostname "$HOST_NAME"
export PATH="$HOST_FOLDER/bin:$PATH"
"#;

/// `systemctl start|stop UNIT`: what a unit of `Type=notify` starts, until its socket is there.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -e
name=$2
read -ra start < <(sed -n 's,^ExecStart=/usr/bin/,,p' "$HOST_FOLDER/units/$name.service")
case "$1" in
start)
    setsid "${start[@]}" </dev/null >>"$HOST_FOLDER/$name.log" 2>&1 &
    echo $! >"$HOST_FOLDER/$name.pid"
    until [ -S "/var/lib/$name/${name#tasuki-}.sock" ]; do kill -0 $!; sleep 0.05; done
    ;;
stop)
    pid=$(cat "$HOST_FOLDER/$name.pid")
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
    ;;
*) exit 2 ;;
esac
"#;

/// One thing typed, and the lines that must come; `...` in a line stands for anything.
#[derive(Debug, Default)]
struct Typed {
    command: String,
    shows: Vec<String>,
}

/// The blocks of the document: the host, and what is typed there.
fn blocks(document: &str) -> Vec<(String, Vec<Typed>)> {
    let mut blocks: Vec<(String, Vec<Typed>)> = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        if let Some(host) = line.strip_prefix("```console ") {
            blocks.push((host.trim().to_owned(), Vec::new()));
            inside = true;
        } else if line.starts_with("```") {
            inside = false;
        } else if inside {
            let typed = &mut blocks.last_mut().unwrap().1;
            if let Some(command) = line.strip_prefix("$ ") {
                typed.push(Typed { command: command.to_owned(), shows: Vec::new() });
            } else if let Some(more) = line.strip_prefix("> ") {
                let command = &mut typed.last_mut().expect("a command before it").command;
                *command = format!("{command}\n{more}");
            } else {
                typed.last_mut().expect("a command before it").shows.push(line.to_owned());
            }
        }
    }
    blocks
}

/// Whether a line is as the document says.
fn matches(line: &str, wanted: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, wanted) = (words(line), words(wanted));
    let mut rest = line.as_str();
    let parts: Vec<&str> = wanted.split("...").map(str::trim).collect();
    for (at, part) in parts.iter().enumerate() {
        let found = match at {
            0 => rest.starts_with(part).then_some(0),
            _ if at == parts.len() - 1 => rest.ends_with(part).then(|| rest.len() - part.len()),
            _ => rest.find(part),
        };
        let Some(found) = found else { return false };
        rest = &rest[found + part.len()..];
    }
    parts.len() > 1 || rest.is_empty()
}

/// A machine of the document.
struct Host {
    name: &'static str,
    namespace: Namespace,
    folder: PathBuf,
}

impl Host {
    fn new(name: &'static str, namespace: Namespace, work: &Path) -> Host {
        let host = Host { name, namespace, folder: work.join(name) };
        for folder in ["etc", "lib", "bin", "units"] {
            std::fs::create_dir_all(host.folder.join(folder)).unwrap();
        }
        run(Command::new("cp").args(["-a", "/etc/.", "--"]).arg(host.folder.join("etc")), LIMIT)
            .ok();
        let etc = |name: &str| host.folder.join("etc").join(name);
        std::fs::write(
            etc("hosts"),
            "127.0.0.1 localhost\n203.0.113.11 relay1.example.org\n203.0.113.12 relay2.example.org\n\
             203.0.113.13 relay3.example.org\n",
        )
        .unwrap();
        std::fs::create_dir_all(etc("tasuki")).unwrap();
        let deploy = workspace().join("deploy");
        for kind in ["relay", "agent"] {
            let example = deploy.join(format!("examples/{kind}.toml"));
            std::fs::copy(example, etc(&format!("tasuki/{kind}.toml"))).unwrap();
            let unit = format!("tasuki-{kind}.service");
            std::fs::copy(deploy.join(&unit), host.folder.join("units").join(unit)).unwrap();
        }
        let bin = |name: &str| host.folder.join("bin").join(name);
        std::os::unix::fs::symlink(&Bins::find().relay, bin("tasuki-relay")).unwrap();
        std::os::unix::fs::symlink(&Bins::find().agent, bin("tasuki-agent")).unwrap();
        for (name, text) in [("sudo", "#!/bin/sh\nexec \"$@\"\n"), ("systemctl", SYSTEMCTL)] {
            std::fs::write(bin(name), text).unwrap();
            std::fs::set_permissions(bin(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
        host
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = self.namespace.command("unshare");
        command.args(["--mount", "--uts", "bash", "-c"]).arg(format!("{PRELUDE}{script}"));
        command.env("HOST_FOLDER", &self.folder).env("HOST_NAME", self.name);
        command
    }

    /// Types a block; what each command said.
    fn types(&self, typed: &[Typed], token: &str) -> (Done, Vec<String>) {
        let mut script = String::new();
        for Typed { command, .. } in typed {
            let command = command.replace("TOKEN", token);
            script.push_str(&command);
            script.push('\n');
            if let Some(forward) = command.strip_suffix(" &") {
                // A person takes longer to type the next line than it takes to listen.
                let address = forward.split_whitespace().find(|word| word.contains(':')).unwrap();
                let port = address.rsplit(':').next().unwrap();
                script.push_str(&format!(
                    "until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; done\n"
                ));
            } else {
                script.push_str("code=$?; [ $code = 0 ] || exit $code\n");
            }
            script.push_str(&format!("echo '{MARK}'\n"));
        }
        let done = run(&mut self.shell(&script), LIMIT);
        let said = done.text().split(MARK).map(|said| said.trim().to_owned()).collect();
        (done, said)
    }
}

/// What is wrong with what came.
fn compare(typed: &[Typed], said: &[String]) -> Result<(), String> {
    for (number, Typed { command, shows }) in typed.iter().enumerate() {
        let said = said.get(number).map_or("", String::as_str);
        for wanted in shows {
            if !said.lines().any(|line| matches(line, wanted)) {
                return Err(format!("$ {command}\n{said}\n-- does not show: {wanted}"));
            }
        }
    }
    Ok(())
}

/// sshd and a web server on plant7, and an ssh on desk1 that may log in: what machines have before Tasuki comes.
fn furnish(hosts: &BTreeMap<&str, Host>) -> Vec<Process> {
    let (plant, desk) = (&hosts["plant7"], &hosts["desk1"]);
    let ssh = |host: &Host| {
        let folder = host.folder.join("etc/ssh");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    let (server, client) = (ssh(plant), ssh(desk));
    for key in [server.join("host_key"), client.join("user_key")] {
        run(
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key),
            LIMIT,
        )
        .ok();
    }
    std::fs::copy(client.join("user_key.pub"), server.join("authorized_keys")).unwrap();
    std::fs::write(
        server.join("sshd_config"),
        "ListenAddress 127.0.0.1:22\nHostKey /etc/ssh/host_key\nPidFile none\nUsePAM no\nStrictModes no\n\
         AuthorizedKeysFile /etc/ssh/authorized_keys\nPermitRootLogin prohibit-password\nUseDNS no\n",
    )
    .unwrap();
    std::fs::write(
        client.join("ssh_config"),
        "IdentityFile /etc/ssh/user_key\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n",
    )
    .unwrap();
    std::fs::create_dir_all("/run/sshd").unwrap();
    std::fs::write(plant.folder.join("index.html"), "hello from plant7\n").unwrap();
    let start = |name: &str, script: &str| {
        Process::spawn(name, &mut plant.shell(script), &plant.folder.join(format!("{name}.log")))
    };
    vec![
        start("sshd", "exec /usr/sbin/sshd -D -e"),
        start(
            "web",
            "exec python3 -m http.server --bind 127.0.0.1 --directory \"$HOST_FOLDER\" 80",
        ),
    ]
}

#[test]
fn the_quick_start_does_what_it_says() {
    let what = "the quick start";
    let programs = ["unshare", "ssh", "sshd", "ssh-keygen", "python3", "curl"];
    if !programs.into_iter().all(|program| have(program, what)) {
        return;
    }
    let Some(wan) = Wan::new(what) else { return };
    let work = tempfile::Builder::new().prefix("tsk").tempdir().unwrap();
    // Routers live as long as what is behind them.
    let homes = [wan.natted("plant7", 101), wan.natted("desk1", 102)];
    let mut hosts = BTreeMap::new();
    for (name, octet) in [("relay1", 11), ("relay2", 12), ("relay3", 13)] {
        hosts.insert(name, Host::new(name, wan.host(name, octet), work.path()));
    }
    for (name, home) in ["plant7", "desk1"].into_iter().zip(&homes) {
        hosts.insert(name, Host::new(name, home.machine.clone(), work.path()));
    }
    let _services = furnish(&hosts);
    let document = std::fs::read_to_string(workspace().join("docs/quickstart.md")).unwrap();
    let blocks = blocks(&document);
    assert!(blocks.len() >= 10, "the blocks are found");
    let mut token = String::new();
    let begin = Instant::now();
    for (host, typed) in &blocks {
        let host = &hosts[host.as_str()];
        let once = typed.iter().any(|t| ACTS.iter().any(|act| t.command.contains(act)));
        let start = Instant::now();
        let said = loop {
            let (done, said) = host.types(typed, &token);
            let wrong = match done.code {
                0 => compare(typed, &said).err(),
                code => Some(format!("exit code {code}\n{}\n{}", done.text(), done.stderr)),
            };
            match wrong {
                None => break said,
                Some(wrong) if once || start.elapsed() > SETTLES => {
                    for (name, host) in &hosts {
                        for log in ["tasuki-relay.log", "tasuki-agent.log"] {
                            println!("---- {name} {log}\n{}", tail(&host.folder.join(log)));
                        }
                    }
                    panic!("on {}:\n{wrong}", host.name);
                }
                Some(_) => std::thread::sleep(POLL * 10),
            }
        };
        for (typed, said) in typed.iter().zip(&said) {
            println!("{}$ {}\n{said}", host.name, typed.command);
            let word = said.lines().last().unwrap_or_default();
            if typed.command.contains(" token ") {
                token = word.to_owned();
            }
        }
    }
    println!("five sections in {:?}", begin.elapsed());
    assert!(
        begin.elapsed() < Duration::from_secs(300),
        "five minutes, by a typist without fingers"
    );
}

#[test]
fn lines_are_compared() {
    assert!(matches("a  b 12 ms", "a b ... ms") && matches("tk1abc", "tk1..."));
    assert!(matches("x", "...") && matches("a b", "a b"));
    assert!(!matches("a c", "a b") && !matches("a b c", "a b") && !matches("b 1", "a ..."));
}
