//! `tasuki-relay`.

fn main() -> std::process::ExitCode {
    tasuki_relay::cli::main()
}
