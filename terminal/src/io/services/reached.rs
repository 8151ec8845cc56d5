//! How often each limit was reached since the start, and what the log says of it.
//!
//! Nothing is dropped, refused or made to wait in silence: each event is counted here, `tasuki-agent status` shows the
//! counters, and the log names the limit, at most once in ten seconds for each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::core::notice::Notice;

/// One limit.
#[derive(Debug, Default)]
pub struct Counter {
    count: AtomicU64,
    notice: Mutex<Notice>,
}

impl Counter {
    /// The limit was reached once more. Returns how often since the log last said so, when it is time to say it again.
    pub(crate) fn reach(&self) -> Option<u64> {
        self.reach_times(1)
    }

    /// As [`Counter::reach`], for several times at once.
    pub(crate) fn reach_times(&self, times: u64) -> Option<u64> {
        if times == 0 {
            return None;
        }
        self.count.fetch_add(times, Ordering::Relaxed);
        let mut notice = self.notice.lock().unwrap_or_else(PoisonError::into_inner);
        notice.handle_times(times, Instant::now())
    }

    /// How often it was reached.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The limits of what an agent forwards and serves, over all sessions.
        #[derive(Debug, Default)]
        pub struct Reached {
            $($(#[doc = $doc])+ pub $name: Counter,)+
        }

        /// The counters of [`Reached`], as they are shown.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        pub struct ReachedView {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Reached {
            /// The counters at this moment.
            pub fn view(&self) -> ReachedView {
                ReachedView { $($name: self.$name.count(),)+ }
            }
        }
    };
}

counters! {
    /// UDP payloads that would have needed more than `DATAGRAM_PIECES` packets of the session; dropped.
    udp_too_large,
    /// UDP payloads of which a piece did not arrive in time; dropped.
    udp_incomplete,
    /// Datagrams of a session that are malformed, or whose flow has ended; dropped.
    udp_without_flow,
    /// Datagrams that came before their flow was open and found no room; dropped.
    udp_early,
    /// UDP payloads that the local socket did not take; dropped.
    udp_not_delivered,
    /// Datagrams that waited for a slow line, or for this process, beyond the session's buffers; dropped.
    udp_queue_full,
    /// UDP payloads that the kernel had no room for at a forwarded port; dropped.
    udp_port_overrun,
    /// Flows that ended early to make room for others.
    udp_flows_made_room,
    /// Flows that found no place or were refused by the other terminal; their datagrams were dropped.
    udp_flows_refused,
    /// Connections to a forwarded port that waited for one of `FORWARD_CONNECTIONS` places.
    connections_waited,
    /// Connections to a forwarded port that were reset, since no place became free in time.
    connections_reset,
    /// Streams of other terminals that were refused: too many at once, or too many a second.
    streams_refused,
    /// Connections that could not be accepted or made, since this process has no open files left.
    out_of_files,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_counted_and_said_once() {
        let reached = Reached::default();
        assert_eq!(reached.udp_too_large.reach(), Some(1));
        assert_eq!(reached.udp_too_large.reach(), None);
        assert_eq!(reached.udp_incomplete.reach_times(0), None);
        assert_eq!(reached.udp_incomplete.reach_times(3), Some(3), "each limit is said by itself");
        let view = reached.view();
        assert_eq!((view.udp_too_large, view.udp_incomplete, view.out_of_files), (2, 3, 0));
    }
}
