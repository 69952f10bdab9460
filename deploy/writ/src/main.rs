//! See [`writ::cmd`].

fn main() -> std::process::ExitCode {
    writ::main()
}
