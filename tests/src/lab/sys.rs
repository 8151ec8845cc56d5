//! The system calls that the standard library does not offer.
#![allow(unsafe_code, reason = "each call takes plain numbers, and is checked")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub(super) use libc::{SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM};

/// Puts the command's process in a group of its own and has it killed when the calling thread ends, however
/// that happens.
pub(super) fn owned(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: prctl with these arguments is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| check(libc::prctl(libc::PR_SET_PDEATHSIG, SIGKILL as libc::c_ulong)))
    }
}

/// Sends `signal` to the process group that `leader` leads.
pub(super) fn signal_group(leader: u32, signal: i32) -> io::Result<()> {
    let leader = i32::try_from(leader).map_err(io::Error::other)?;
    // SAFETY: kill touches no memory. A leader is never 0 or 1, so the group is one that we made.
    if leader > 1 { check(unsafe { libc::kill(-leader, signal) }) } else { Ok(()) }
}

/// Moves the calling thread into a network namespace.
pub(super) fn enter_net_namespace(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor that is open during the call.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Whether this process may make namespaces.
pub(super) fn is_root() -> bool {
    // SAFETY: geteuid cannot fail and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
