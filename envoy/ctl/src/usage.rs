//! What the argument parser has to say, in the words that all messages have: `error: …`, then `hint: …`.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use egress_rules::Complaint;

/// Returns what is wrong with the arguments.
pub(super) fn complaint(error: &Error) -> Complaint {
    Complaint::input(reworded(error))
}

/// Returns what is wrong on the first line, and each advice on a line of its own.
fn reworded(error: &Error) -> String {
    let wrong = wrong(error).unwrap_or_else(|| error.kind().to_string());
    let lines = std::iter::once(wrong).chain(hints(error).map(|hint| format!("hint: {hint}")));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns what is wrong, if the parser tells all that the sentence needs.
fn wrong(error: &Error) -> Option<String> {
    let get = |kind| one(error, kind);
    let argument = get(ContextKind::InvalidArg);
    Some(match error.kind() {
        ErrorKind::ArgumentConflict => match (argument?, get(ContextKind::PriorArg)) {
            (argument, Some(prior)) if argument != prior => {
                format!("the argument `{argument}` cannot be used with `{prior}`")
            }
            (argument, Some(_)) => {
                format!("the argument `{argument}` cannot be used multiple times")
            }
            (argument, None) => {
                let prior = many(error, ContextKind::PriorArg).join(" ");
                format!("the argument `{argument}` cannot be used with: {prior}")
            }
        },
        ErrorKind::InvalidSubcommand => {
            let subcommand = get(ContextKind::InvalidSubcommand)?;
            format!("unrecognized subcommand `{subcommand}`")
        }
        ErrorKind::InvalidValue if get(ContextKind::InvalidValue)?.is_empty() => {
            let argument = argument?;
            format!("a value is required for `{argument}` but none was supplied")
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let (argument, value) = (argument?, get(ContextKind::InvalidValue)?);
            let why = std::error::Error::source(error);
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            format!("invalid value `{value}` for `{argument}`{why}")
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = many(error, ContextKind::InvalidArg).join(" ");
            format!("the following required arguments were not provided: {missing}")
        }
        ErrorKind::TooManyValues => {
            let (argument, value) = (argument?, get(ContextKind::InvalidValue)?);
            format!("unexpected value `{value}` for `{argument}` found; no more were expected")
        }
        ErrorKind::UnknownArgument => format!("unexpected argument `{}` found", argument?),
        _ => return None,
    })
}

fn hints(error: &Error) -> impl Iterator<Item = String> {
    let values = many(error, ContextKind::ValidValue).join(", ");
    let values = (!values.is_empty()).then(|| format!("possible values: {values}"));
    let similar = [
        ("subcommand", ContextKind::SuggestedSubcommand),
        ("argument", ContextKind::SuggestedArg),
        ("value", ContextKind::SuggestedValue),
    ];
    let similar = similar.into_iter().filter_map(|(what, kind)| {
        let names: Vec<_> = one(error, kind)
            .into_iter()
            .chain(many(error, kind))
            .collect();
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        match names.len() {
            0 => None,
            1 => Some(format!("a similar {what} exists: {}", names.join(", "))),
            _ => Some(format!("some similar {what}s exist: {}", names.join(", "))),
        }
    });
    let tips = match error.get(ContextKind::Suggested) {
        Some(ContextValue::StyledStrs(tips)) => tips.as_slice(),
        _ => &[],
    };
    let tips = tips.iter().map(|tip| tip.to_string().replace('\'', "`"));
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => Some(usage.to_string()),
        _ => None,
    };
    let usage = usage.map(|usage| {
        let usage = usage.trim_start_matches("Usage:").trim();
        format!("the usage is `{usage}`")
    });
    let help = "`--help` tells more".to_owned();
    values
        .into_iter()
        .chain(similar)
        .chain(tips)
        .chain(usage)
        .chain([help])
}

fn one(error: &Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    }
}

fn many(error: &Error, kind: ContextKind) -> Vec<&str> {
    match error.get(kind) {
        Some(ContextValue::Strings(texts)) => texts.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _, Parser as _};

    use super::*;
    use crate::args::Args;

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
        reworded(&error)
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
        // What somebody typed stays as it is.
        let value = told("egressctl render envoy -f a --label '");
        assert!(value.starts_with("invalid value `'` for `--label <KEY=VALUE>`: "));
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
