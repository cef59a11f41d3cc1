//! The command line: arguments as typed, settings as meant, and the commands.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use egress_policy::visible_lines;

pub mod args;
mod capture;
mod check;
mod doctor;
mod explain;
mod lint;
mod manual;
mod render;
mod secrets;
pub mod settings;
mod usage;

use args::{Args, Command, RenderTarget};

/// How a command ended, for the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Well.
    Success,
    /// The input is wrong.
    Input,
    /// We failed, or something that we need.
    Failure,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Success => ExitCode::SUCCESS,
            ExitStatus::Input => ExitCode::from(1),
            ExitStatus::Failure => ExitCode::from(2),
        }
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitStatus {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage::tell(&error),
    };
    match args.command {
        Command::Run(run) => crate::run::main(&run),
        Command::Check(check) => check::main(&check),
        Command::Lint(lint) => lint::main(&lint),
        Command::Explain(explain) => explain::main(&explain),
        Command::Capture(capture) => capture::main(&capture.command),
        Command::Secrets(secrets) => secrets::main(&secrets),
        Command::Doctor(doctor) => doctor::main(&doctor),
        Command::Completions(completions) => manual::completions(&completions),
        Command::Man(man) => manual::main(&man),
        Command::Render(render) => match render.target {
            RenderTarget::Envoy(envoy) => render::envoy(&envoy),
            RenderTarget::Istio(istio) => render::istio(&istio),
        },
    }
}

/// Prints to the standard output what people or programs read; a reader that has gone is not an error.
///
/// Control characters of texts that others wrote are escaped, as JSON escapes them.
pub(crate) fn print(text: &str) -> ExitStatus {
    print_as_it_is(&visible_lines(text))
}

/// Prints configuration to the standard output: every byte of it counts.
pub(crate) fn print_as_it_is(text: &str) -> ExitStatus {
    print_to(io::stdout().lock(), text)
}

/// Prints a text with colours to the standard output, which a terminal shows and nothing else gets.
pub(crate) fn print_coloured(text: &str) -> ExitStatus {
    print_to(anstream::stdout().lock(), text)
}

fn print_to(mut out: impl Write, text: &str) -> ExitStatus {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write: {error}"))
        }
        _ => ExitStatus::Success,
    }
}

/// Tells people something, beside the output. Control characters of texts that others wrote are escaped.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(anstream::stderr(), "{}", visible_lines(text));
}

/// Tells of a failure of ours.
pub(crate) fn fail(text: &str) -> ExitStatus {
    tell(&format!("error: {text}"));
    ExitStatus::Failure
}

/// Tells of a mistake in the input.
pub(crate) fn refuse(text: &str) -> ExitStatus {
    tell(&format!("error: {text}"));
    ExitStatus::Input
}
