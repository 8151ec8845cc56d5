//! How a thread that moves packets is scheduled.

/// Lets this thread take no processor away from a thread that runs (`SCHED_BATCH`, sched(7)): it waits until that one
/// rests or its slice is over, so that where processors are short more packets are there when its turn comes, for one
/// system call and one wake-up. Its share stays what its niceness says, and a processor that is free is taken at once.
/// Where the system refuses, the thread stays as it was.
#[allow(unsafe_code, reason = "no library that we have offers this call")]
pub fn run_in_batches() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the parameters and keeps no pointer; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
}
