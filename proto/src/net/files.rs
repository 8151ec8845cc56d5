//! How many files a daemon may open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No daemon needs more.
const MOST: u64 = 65_536;

/// Lets this process open as many files as it may without asking anybody, up to 65,536: a shell starts programs with
/// 1,024, and each carried connection is one. Where the system refuses, the limit stays as it was.
pub fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(MOST).min(MOST);
    if limit.current.is_some_and(|current| current < most) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_follows_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(100), ..before }).unwrap();
        allow_files();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.current, Some(before.maximum.unwrap_or(MOST).min(MOST)));
        assert_eq!(after.maximum, before.maximum);
    }
}
