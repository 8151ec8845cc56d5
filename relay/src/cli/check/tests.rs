use std::io;

use serde_json::json;

use super::*;

const DAY: u64 = 86_400;

#[test]
fn certificates_that_end_and_clocks_that_are_wrong_are_bad() {
    let level = |not_after, renew_at, now| data::certificate(not_after, renew_at, now).level;
    assert_eq!(level(30 * DAY, 20 * DAY, 10 * DAY), Level::Ok);
    assert_eq!(level(30 * DAY, 20 * DAY, 22 * DAY), Level::Warning);
    assert_eq!(level(30 * DAY, 20 * DAY, 31 * DAY), Level::Bad);
    assert_eq!(data::clock_is_right(100, 0, 50).level, Level::Ok);
    assert_eq!(data::clock_is_right(100, 301, 50).level, Level::Bad);
    assert_eq!(data::clock_is_right(100, 0, 101).level, Level::Bad);
}

#[test]
fn a_renewal_that_fails_is_said_with_the_time_that_is_left() {
    let now = 100 * DAY;
    let status = |left: u64, since: Option<u64>| {
        let renewal =
            since.map(|since| json!({ "since": since, "tries": 4, "why": "nobody answers" }));
        data::renewal(&json!({ "certificate_until": now + left, "renewal": renewal }), now)
    };
    assert_eq!(status(5 * DAY, None).level, Level::Ok);
    let fails = status(5 * DAY + 60, Some(now - 2 * DAY - 60));
    assert_eq!(fails.level, Level::Warning);
    assert!(fails.what.contains("for another 5d00h"), "{fails:?}");
    assert!(fails.what.contains("4 so far: nobody answers"), "{fails:?}");
    assert_eq!(status(DAY, Some(now - 2 * DAY)).level, Level::Bad);
}

#[test]
fn a_full_or_slow_disk_is_said() {
    assert_eq!(data::room(u64::MAX, 3).level, Level::Ok);
    assert_eq!(data::room(u64::MAX, 900).level, Level::Warning);
    assert_eq!(data::room(900_000_000, 3).level, Level::Warning);
    assert_eq!(data::room(9_000_000, 3).level, Level::Bad);
}

#[test]
fn small_buffers_come_with_the_line_that_mends_them() {
    let small = machine::buffers(Some(212_992), Some(8_000_000));
    assert_eq!(small.level, Level::Warning);
    assert!(small.advice.starts_with("sysctl -w net.core.rmem_max=4194304;"), "{small:?}");
    assert_eq!(machine::buffers(Some(8_000_000), Some(8_000_000)).level, Level::Ok);
    assert_eq!(machine::buffers(None, Some(1)).level, Level::Unknown);
    assert_eq!(machine::segments(64, 64).level, Level::Ok);
    assert_eq!(machine::segments(1, 64).level, Level::Warning);
}

#[test]
fn the_limit_of_open_files_is_read() {
    let text =
        |soft| format!("Limit  Soft\nMax open files            {soft}      1048576    files\n");
    assert_eq!(machine::files(&text("1024")).level, Level::Ok);
    assert_eq!(machine::files(&text("64")).level, Level::Warning);
    assert_eq!(machine::files(&text("unlimited")).level, Level::Ok);
    assert_eq!(machine::files("").level, Level::Unknown);
}

#[test]
fn a_port_is_free_or_ours_or_in_the_way() {
    let at = "127.0.0.1:4433".parse().unwrap();
    let level = |bound: io::Result<()>, runs| network::port("udp-port", at, bound, runs).level;
    let taken = || Err(io::ErrorKind::AddrInUse.into());
    assert_eq!(level(Ok(()), false), Level::Ok);
    assert_eq!(level(Ok(()), true), Level::Unknown);
    assert_eq!(level(taken(), true), Level::Ok);
    assert_eq!(level(taken(), false), Level::Bad);
    assert_eq!(level(Err(io::ErrorKind::PermissionDenied.into()), false), Level::Bad);
}

#[test]
fn advertised_addresses_are_judged_by_who_can_reach_them() {
    let level = |ip: &str, local| {
        let at = std::net::SocketAddr::new(ip.parse().unwrap(), 4433);
        network::advertised("r1.example:4433", Ok(vec![at]), local).level
    };
    assert_eq!(level("192.0.2.7", false), Level::Ok);
    assert_eq!(level("10.0.0.7", false), Level::Warning);
    assert_eq!(level("100.64.3.7", false), Level::Warning);
    assert_eq!(level("fd00::7", false), Level::Warning);
    assert_eq!(level("127.0.0.1", false), Level::Bad);
    assert_eq!(level("127.0.0.1", true), Level::Ok);
    let nothing = network::advertised("r1.example:4433", Ok(Vec::new()), false);
    assert_eq!(nothing.level, Level::Bad);
}

#[test]
fn what_other_relays_found_is_shown() {
    let row = |state: &str| json!({"address": "192.0.2.7:4433", "reachable": state, "by": "r2"});
    let status = json!({"reachable_from_outside": [row("yes"), row("no"), row("unknown")]});
    let levels: Vec<Level> =
        network::reachable(Some(&status)).iter().map(|finding| finding.level).collect();
    assert_eq!(levels, [Level::Ok, Level::Bad, Level::Unknown]);
    assert_eq!(network::reachable(None)[0].level, Level::Unknown);
    assert_eq!(network::reachable(Some(&json!({})))[0].level, Level::Unknown);
}

#[test]
fn a_line_fits_and_says_what_to_do() {
    let finding = Finding::new("buffers", Level::Warning, "x ".repeat(90), "sysctl -w a=1");
    let text = lines(&finding, Look::plain());
    assert!(text.starts_with("warning  buffers        x x"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.ends_with("-> sysctl -w a=1\n"), "{text}");
    let coloured = lines(&finding, Look { colour: true, ..Look::plain() });
    assert!(coloured.starts_with("\u{1b}[33mwarning\u{1b}[0m  buffers"), "{coloured}");
}
