//! What processes cost, and what happens when the bench itself is told to end.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use tasuki_tests::lab::netns;
use tokio::signal::unix::{SignalKind, signal};

/// CPU-seconds that these processes and all that descend from them have used, user and system time together.
/// What a descendant that is gone had used is not in it.
pub(crate) fn cpu_seconds(roots: &[u32]) -> f64 {
    let all: Vec<Stat> = all_processes().collect();
    let ticks: u64 = with_descendants(&all, roots).map(|stat| stat.ticks).sum();
    ticks as f64 / ticks_per_second()
}

/// How many processes this one has started that are there.
pub(crate) fn children() -> usize {
    let own = std::process::id();
    all_processes().filter(|stat| stat.parent == own).count()
}

fn all_processes() -> impl Iterator<Item = Stat> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| Stat::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
}

/// One process, as /proc/PID/stat shows it (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    /// User and system time.
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The name stands in brackets, and may hold any character.
        let (head, tail) = text.rsplit_once(')')?;
        let pid = head.split_once(' ')?.0.parse().ok()?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Stat { pid, parent: number(1)? as u32, ticks: number(11)? + number(12)? })
    }
}

fn with_descendants<'a>(all: &'a [Stat], roots: &'a [u32]) -> impl Iterator<Item = &'a Stat> {
    let parents: BTreeMap<u32, u32> = all.iter().map(|stat| (stat.pid, stat.parent)).collect();
    all.iter().filter(move |stat| {
        let mut pid = stat.pid;
        // Bounded: a list read while processes come and go may hold a circle.
        for _ in 0..64 {
            if roots.contains(&pid) {
                return true;
            }
            match parents.get(&pid) {
                Some(parent) => pid = *parent,
                None => return false,
            }
        }
        false
    })
}

#[allow(unsafe_code, reason = "sysconf takes a number and gives one")]
fn ticks_per_second() -> f64 {
    // SAFETY: sysconf touches no memory of ours.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

/// Runs `measure` with a folder of its own for everything temporary. On Ctrl-C or SIGTERM, namespaces and folder
/// are removed and the program ends; its processes die with it.
///
/// # Errors
/// Those of `measure`; and when it panics.
pub(crate) fn guarded<T: Send + 'static>(
    measure: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let folder = tempfile::Builder::new().prefix("tskb").tempdir()?;
    tempfile::env::override_temp_dir(folder.path()).ok().context("a second folder")?;
    let path = folder.path().to_owned();
    std::thread::spawn(move || {
        if let Err(error) = end_on_signal(&path) {
            eprintln!("no clean-up on Ctrl-C: {error}");
        }
    });
    let measuring = std::thread::Builder::new().name("measure".into()).spawn(measure)?;
    // The panic was printed where it happened.
    measuring.join().map_err(|_| anyhow::anyhow!("failed: see above"))?
}

/// Runs what may panic, as the laboratory does where something does not come to pass, and makes an error of it.
///
/// # Errors
/// Those of `action`; and when it panics.
pub(crate) fn caught<T>(action: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
        Err(anyhow::anyhow!("{}", text.lines().next().unwrap_or_default()))
    })
}

fn end_on_signal(folder: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        anyhow::Ok(())
    })?;
    // What is cut off in the middle fails, and need not say so.
    std::panic::set_hook(Box::new(|_| {}));
    netns::remove_own();
    let _ = std::fs::remove_dir_all(folder);
    std::process::exit(130)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_mislead() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 100 23 5 6 20 0 1";
        assert_eq!(Stat::parse(text), Some(Stat { pid: 42, parent: 7, ticks: 123 }));
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn descendants_count_and_circles_end() {
        let stat = |pid, parent| Stat { pid, parent, ticks: 1 };
        let all = [stat(1, 0), stat(5, 1), stat(6, 5), stat(7, 6), stat(8, 9), stat(9, 8)];
        let pids: Vec<u32> = with_descendants(&all, &[5]).map(|stat| stat.pid).collect();
        assert_eq!(pids, [5, 6, 7]);
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let error = caught::<()>(|| panic!("no {}\nmore", "way")).unwrap_err();
        assert_eq!(error.to_string(), "no way");
        assert_eq!(caught(|| Ok(1)).unwrap(), 1);
    }

    #[test]
    fn this_process_has_used_time() {
        let before = cpu_seconds(&[std::process::id()]);
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_millis(50) {}
        assert!(cpu_seconds(&[std::process::id()]) > before);
    }
}
