//! `egressctl`, the command line: arguments as typed, settings as meant, and the commands.
//!
//! A command returns an [`Output`] with what it has to say, or a [`Refusal`] with why it does nothing. Only this file
//! prints and chooses the exit code.
#![deny(unsafe_code)]

use std::io;
use std::process::ExitCode;

use clap::Parser;
use egress_rules::{Blame, Refusal};

mod args;
mod capture;
mod check;
mod doctor;
mod explain;
mod lint;
mod locate;
mod machine;
mod manual;
mod notify;
mod output;
mod render;
mod report;
mod run;
mod secrets;
mod settings;
mod sources;
mod threads;
mod usage;

use args::{Args, Command, RenderTarget};
use output::{Output, Text, print, print_to, tell};

/// How a command ended, for the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
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

fn main() -> ExitCode {
    run_command().into()
}

/// Runs the command that the arguments name.
fn run_command() -> ExitStatus {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let done = match args.command {
        Command::Run(run) => run::main(&run),
        Command::Check(check) => check::main(&check),
        Command::Lint(lint) => lint::main(&lint),
        Command::Explain(explain) => explain::main(&explain),
        Command::Capture(capture) => capture::main(&capture.command),
        Command::Secrets(secrets) => secrets::main(&secrets),
        Command::Doctor(doctor) => doctor::main(&doctor),
        Command::Completions(completions) => Ok(manual::completions(&completions)),
        Command::Man(man) => manual::main(&man),
        Command::Render(render) => match render.target {
            RenderTarget::Envoy(envoy) => render::envoy(&envoy),
            RenderTarget::Istio(istio) => render::istio(&istio),
        },
    };
    match done {
        Ok(output) => show(&output),
        Err(refusal) => refuse(&refusal),
    }
}

/// Prints help that was asked for, or what is wrong with the arguments.
fn usage(error: &clap::Error) -> ExitStatus {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed pipe is no error of ours.
            let _ = error.print();
            ExitStatus::Success
        }
        // Whoever says nothing is told what there is to say.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitStatus::Input
        }
        _ => refuse(&usage::complaint(error).into()),
    }
}

/// Shows what a command has to say: notes beside the output, then the output.
fn show(output: &Output) -> ExitStatus {
    output.notes.iter().for_each(|note| tell(note));
    let printed = match &output.text {
        Text::Nothing => Ok(()),
        Text::Lines(text) => print(text),
        Text::Verbatim(text) => print_to(io::stdout().lock(), text),
        Text::Coloured(text) => print_to(anstream::stdout().lock(), text),
    };
    if let Err(complaint) = printed {
        return refuse(&complaint.into());
    }
    match &output.complaint {
        Some(complaint) => refuse(&complaint.clone().into()),
        None if output.is_bad => ExitStatus::Input,
        None => ExitStatus::Success,
    }
}

/// Reports why nothing is done, and returns the status to exit with.
fn refuse(refusal: &Refusal) -> ExitStatus {
    tell(&refusal.to_string());
    match refusal.blame() {
        Blame::Input => ExitStatus::Input,
        Blame::Us => ExitStatus::Failure,
    }
}
