//! The `weft` program.

fn main() -> std::process::ExitCode {
    weft_cli::run()
}
