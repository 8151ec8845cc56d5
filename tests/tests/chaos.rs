//! A minute of `tasuki-bench chaos`, by another script each time.
#![allow(clippy::disallowed_methods, reason = "tests act")]

use std::process::Command;
use std::time::Duration;

use tasuki_tests::lab::process::run;

/// A minute of rounds, what comes before and after, and what a loaded machine adds.
const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn nothing_is_lost_in_a_minute_of_chaos() {
    let seed: u32 = rand::random();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_tasuki-bench"));
    bench.args(["chaos", "--minutes", "1", "--seed", &seed.to_string()]);
    let done = run(&mut bench, LIMIT);
    println!("{}", done.text());
    assert_eq!(done.code, 0, "seed {seed}:\n{}", done.stderr);
}
