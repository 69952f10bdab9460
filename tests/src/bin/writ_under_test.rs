//! The same program as `writ`.

use std::process::ExitCode;

fn main() -> ExitCode {
    writ::main()
}
