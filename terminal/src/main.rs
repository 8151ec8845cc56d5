//! `tasuki-agent`.

fn main() -> std::process::ExitCode {
    tasuki_terminal::cli::main()
}
