//! `egressctl`: see `egressctl --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    egress_envoy::cli::main().into()
}
