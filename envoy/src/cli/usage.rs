//! What the argument parser has to say, in the words that all messages have: `error: …`, then `hint: …`.

use clap::error::Error;

use egress_rules::Complaint;

/// Returns what is wrong with the arguments.
pub(super) fn complaint(error: &Error) -> Complaint {
    Complaint::input(reworded(&error.render().to_string()))
}

/// Rewords a message of the parser's: what is wrong on the first line, and each advice on a line of its own.
fn reworded(message: &str) -> String {
    let mut wrong = String::new();
    let mut hints = Vec::new();
    for line in message.lines().map(str::trim) {
        let line = line.strip_prefix("error: ").unwrap_or(line);
        if let Some(tip) = line.strip_prefix("tip: ") {
            hints.push(tip.to_owned());
        } else if let Some(values) = bracketed(line) {
            hints.push(values.to_owned());
        } else if let Some(usage) = line.strip_prefix("Usage: ") {
            hints.push(format!("the usage is `{usage}`"));
        } else if let Some(rest) = line.strip_prefix("For more information, try ") {
            hints.push(format!("{} tells more", rest.trim_end_matches('.')));
        } else if !line.is_empty() {
            let gap = if wrong.is_empty() { "" } else { " " };
            wrong += gap;
            wrong += line;
        }
    }
    let lines = std::iter::once(wrong).chain(hints.into_iter().map(|hint| format!("hint: {hint}")));
    quoted(&lines.collect::<Vec<_>>().join("\n"))
}

/// Returns what stands in `[possible values: a, b]`.
fn bracketed(line: &str) -> Option<&str> {
    let inner = line.strip_prefix('[')?.strip_suffix(']')?;
    inner.starts_with("possible values: ").then_some(inner)
}

/// Puts what stands in `'` between backticks. One within a word is no quote.
fn quoted(text: &str) -> String {
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    let mut quoted = String::new();
    while let Some(c) = rest.next() {
        let after = rest.peek().copied().unwrap_or(' ');
        let within = before.is_alphanumeric() && after.is_alphanumeric();
        quoted.push(if c == '\'' && !within { '`' } else { c });
        before = c;
    }
    quoted
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::args::Args;

    /// Calls `look` with each command that has none below it, and the words that name it.
    fn each(command: &Command, words: &[&str], look: &mut impl FnMut(&Command, &[&str])) {
        let words: Vec<&str> = words.iter().copied().chain([command.get_name()]).collect();
        look(command, &words);
        for below in command.get_subcommands() {
            each(below, &words, look);
        }
    }

    /// Splits a line as a shell would, up to what is the shell's.
    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace()
            .take_while(|word| !matches!(*word, "|" | ">" | "&&"))
            .collect()
    }

    #[test]
    fn every_command_has_examples_and_they_are_good() {
        let mut lines = Vec::new();
        each(&Args::command(), &[], &mut |command, name| {
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.starts_with("Example"), "{name:?} has no example");
            let own = name.join(" ");
            let found: Vec<String> = help.lines().map(|line| line.trim().to_owned()).collect();
            assert!(
                found.iter().any(|line| line.starts_with(&own)),
                "{own}: {help}"
            );
            lines.extend(
                found
                    .into_iter()
                    .filter(|line| line.starts_with("egressctl")),
            );
        });
        assert!(lines.len() > 10, "{lines:#?}");
        for line in &lines {
            if let Err(error) = Args::try_parse_from(words(line)) {
                panic!("`{line}`: {error}");
            }
        }
    }

    #[test]
    fn every_argument_says_what_it_is_for() {
        each(&Args::command(), &[], &mut |command, name| {
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{name:?} {}",
                    argument.get_id()
                );
            }
        });
    }

    fn told(line: &str) -> String {
        let error = Args::try_parse_from(words(line)).unwrap_err();
        reworded(&error.render().to_string())
    }

    #[test]
    fn what_is_wrong_comes_first_and_advice_behind_it() {
        assert_eq!(
            told("egressctl run"),
            "the following required arguments were not provided: --filename <FILE>\n\
             hint: the usage is `egressctl run --filename <FILE>`\n\
             hint: `--help` tells more"
        );
        assert_eq!(
            told("egressctl check -f a -o xml"),
            "invalid value `xml` for `--output <OUTPUT>`\n\
             hint: possible values: text, json\n\
             hint: `--help` tells more"
        );
        assert!(told("egressctl chekc").contains("\nhint: a similar subcommand exists: `check`\n"));
    }

    #[test]
    fn all_mistakes_are_told_in_one_style() {
        for line in [
            "egressctl nothing",
            "egressctl run",
            "egressctl run -f a --prot 80=1",
            "egressctl run -f a --port",
            "egressctl run -f a --port 80",
            "egressctl run -f a --concurrency 0",
            "egressctl run -f a --once --once",
            "egressctl run -f a more",
            "egressctl render envoy -f a --envoy-version latest",
            "egressctl render envoy -f a --envoy-version v1.38.2",
            "egressctl lint --explain nothing",
            "egressctl lint -f a --explain sni-without-san",
            "egressctl completions tcsh",
            "egressctl man run --output-folder a",
        ] {
            let told = told(line);
            let mut lines = told.lines();
            let first = lines.next().unwrap();
            assert!(
                !first.is_empty() && !first.starts_with("error"),
                "{line}: {told}"
            );
            let advice: Vec<&str> = lines.collect();
            assert!(!advice.is_empty(), "{line}: {told}");
            assert!(
                advice.iter().all(|line| line.starts_with("hint: ")),
                "{line}: {told}"
            );
            assert!(!told.contains('\''), "{line}: {told}");
        }
    }
}
