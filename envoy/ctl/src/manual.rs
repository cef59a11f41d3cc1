//! `egressctl completions` and `egressctl man`: what shells and `man` show of these commands.

use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::shells;
use clap_mangen::Man as Page;

use super::args::{Args, Completions, Man, Shell};
use super::output::{Done, Output};
use egress_rules::Complaint;
use egress_run::atomic;

/// Prints a shell's completions.
pub(super) fn completions(args: &Completions) -> Output {
    let shell = match args.shell {
        Shell::Bash => shells::Shell::Bash,
        Shell::Zsh => shells::Shell::Zsh,
        Shell::Fish => shells::Shell::Fish,
    };
    let mut script = Vec::new();
    let mut command = Args::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    Output::verbatim(String::from_utf8_lossy(&script))
}

/// Prints a manual page, or writes all of them.
pub(super) fn main(args: &Man) -> Done {
    let mut command = Args::command();
    command.build();
    if let Some(folder) = &args.output_folder {
        let paths = written(&command, folder).map_err(Complaint::us)?;
        return Ok(Output::lines(paths.join("\n") + "\n"));
    }
    let mut wanted = &command;
    for word in &args.command {
        let Some(below) = wanted.find_subcommand(word) else {
            let text = format!(
                "there is no command `{}`\nhint: `egressctl --help` lists them",
                args.command.join(" ")
            );
            return Err(Complaint::input(text).into());
        };
        wanted = below;
    }
    let page =
        page(wanted).map_err(|error| Complaint::us(format!("cannot write the page: {error}")))?;
    Ok(Output::verbatim(page))
}

/// Writes the pages of a command and of all below it, and returns their paths.
fn written(command: &Command, folder: &Path) -> Result<Vec<String>, String> {
    let file = format!("{}.1", name(command));
    let path = folder.join(&file);
    let done = page(command).and_then(|page| atomic::write_shared(folder, &file, &page));
    done.map_err(|error| format!("cannot write `{}`: {error}", path.display()))?;
    let mut paths = vec![path.display().to_string()];
    for below in command.get_subcommands() {
        paths.extend(written(below, folder)?);
    }
    Ok(paths)
}

/// Returns what the page of a command is called, for example `egressctl-render-envoy`.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

fn page(command: &Command) -> std::io::Result<String> {
    let mut page = Vec::new();
    Page::new(command.clone())
        .title(name(command))
        .render(&mut page)?;
    // What stands behind the options are the examples.
    Ok(String::from_utf8_lossy(&page).replace("\n.SH EXTRA\n", "\n.SH EXAMPLES\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_with_examples() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Args::command();
        command.build();
        assert!(written(&command, folder.path()).unwrap().len() > 10);
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        for (file, title, text) in [
            ("egressctl.1", ".TH egressctl 1", "egressctl\\-doctor(1)"),
            (
                "egressctl-run.1",
                ".TH egressctl-run 1",
                "\\-\\-concurrency",
            ),
            (
                "egressctl-render-envoy.1",
                ".TH egressctl-render-envoy 1",
                "\\-\\-envoy\\-version",
            ),
        ] {
            let page = read(file);
            assert!(page.contains(title), "{page}");
            assert!(page.contains(text), "{page}");
            assert!(page.contains("\n.SH EXAMPLES\n"), "{page}");
        }
    }

    #[test]
    fn each_shell_is_told_of_all_commands() {
        for shell in [shells::Shell::Bash, shells::Shell::Zsh, shells::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "egressctl", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in Args::command().get_subcommands() {
                let name = command.get_name();
                assert!(script.contains(name), "{shell} knows no `{name}`");
            }
        }
    }
}
