//! What the README shows is what there is: its rules are good, its configurations are run, its commands are known.

mod common;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use common::{Trusted, egressctl};

/// Where configurations for Envoy stand; `examples.rs` runs them.
const EXAMPLES: [&str; 1] = ["envoy/examples"];

/// What stands for a value of the reader's own, where not every word would do.
const PLACEHOLDERS: [(&str, &str); 2] = [
    ("…", "oci://registry.example.com/egress:1.0"),
    (
        "DIGEST",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn readme() -> Result<String> {
    Ok(std::fs::read_to_string(root().join("README.md"))?)
}

/// The fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let (mut blocks, mut open) = (Vec::new(), None::<(String, String)>);
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(opened)) => open = Some((opened.to_owned(), String::new())),
            (Some((opened, block)), Some(_)) => {
                if opened == language {
                    blocks.push(std::mem::take(block));
                }
                open = None;
            }
            (Some((_, block)), None) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    blocks
}

/// Whether the lines stand in a text together, all of them indented alike.
fn stands_in(block: &str, text: &str) -> bool {
    let block: Vec<_> = block.lines().collect();
    let text: Vec<_> = text.lines().collect();
    text.windows(block.len()).any(|lines| {
        let mut pairs = lines.iter().zip(&block);
        let indents = pairs.clone().filter(|(_, shown)| !shown.is_empty());
        let mut indents = indents.map(|(line, shown)| line.strip_suffix(*shown));
        let Some(Some(indent)) = indents.next() else {
            return false;
        };
        indent.trim().is_empty()
            && indents.all(|other| other == Some(indent))
            && pairs.all(|(line, shown)| line.is_empty() == shown.is_empty())
    })
}

/// All files of the folders with configurations.
fn examples() -> Result<Vec<String>> {
    let mut examples = Vec::new();
    for folder in EXAMPLES {
        for entry in std::fs::read_dir(root().join(folder))? {
            examples.push(std::fs::read_to_string(entry?.path())?);
        }
    }
    Ok(examples)
}

/// The command lines of `egressctl` in a text: those of console blocks, and those that stand in a sentence.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    for block in blocks(text, "console") {
        let joined = block.replace("\\\n", " ");
        for line in joined.lines() {
            let Some(line) = line.strip_prefix("$ ") else {
                continue;
            };
            // A comment, or another program that reads on.
            let command = line.split(['#', '|']).next().unwrap_or(line);
            commands.extend(
                command
                    .split_once("egressctl ")
                    .map(|(_, args)| args.to_owned()),
            );
        }
    }
    // Outside of blocks, what stands between backticks.
    let mut fenced = false;
    let prose: Vec<_> = text
        .lines()
        .filter(|line| {
            let fence = line.starts_with("```");
            fenced ^= fence;
            !fenced && !fence
        })
        .collect();
    let prose = prose.join(" ");
    let spans = prose.split('`').skip(1).step_by(2);
    let args = spans.filter_map(|span| span.strip_prefix("egressctl "));
    commands.extend(args.map(str::to_owned));
    commands
}

#[tokio::test]
async fn every_yaml_block_is_checked_or_part_of_an_example_that_is_run() -> Result<()> {
    let trusted = Trusted::new()?;
    let (examples, mut fragments, mut rules) = (examples()?, 0, 0);
    for block in blocks(&readme()?, "yaml") {
        if block.contains("apiVersion: networking.istio.io/") {
            let file = trusted.file("rules.yaml", &block)?;
            let checked = egressctl(
                &trusted,
                ["check".as_ref(), "-f".as_ref(), file.as_os_str()],
            );
            let checked = checked.await?;
            let told = String::from_utf8_lossy(&checked.stderr);
            ensure!(checked.status.success(), "{told}\n{block}");
            rules += 1;
        } else {
            let shown = examples.iter().any(|example| stands_in(&block, example));
            ensure!(shown, "nothing that is run has these lines:\n{block}");
            fragments += 1;
        }
    }
    ensure!(rules > 0 && fragments > 1, "{rules} {fragments}");
    Ok(())
}

#[tokio::test]
async fn every_command_line_is_one_that_egressctl_takes() -> Result<()> {
    let trusted = Trusted::new()?;
    let commands = commands(&readme()?);
    ensure!(commands.len() > 8, "{commands:?}");
    for command in commands {
        // With `--help` behind it a command does nothing; what stands before is read and judged.
        let said = PLACEHOLDERS
            .iter()
            .fold(command.clone(), |said, (word, meant)| {
                said.replace(word, meant)
            });
        let args = said.split_ascii_whitespace().chain(["--help"]);
        let output = egressctl(&trusted, args).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "egressctl {command}\n{told}");
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_flag_would_be_noticed() -> Result<()> {
    let trusted = Trusted::new()?;
    for args in [
        ["check", "--no-such-flag", "--help"],
        ["chekc", "-f", "--help"],
    ] {
        let output = egressctl(&trusted, args).await?;
        ensure!(!output.status.success(), "{args:?}");
    }
    let text = "`egressctl check -f x` and\n```console\n$ make\n$ ../egressctl run \\\n  -f y | less # why\nready\n```\n";
    let found: Vec<_> = commands(text)
        .iter()
        .map(|command| {
            command
                .split_ascii_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert_eq!(found, ["run -f y", "check -f x"]);
    Ok(())
}

#[test]
fn lines_stand_in_a_text_together_and_indented_alike() -> Result<()> {
    let text = "a:\n  - b: 1\n    c: 2\n\n    d: 3\n";
    for (block, stands) in [
        ("- b: 1\n  c: 2\n", true),
        ("c: 2\n\nd: 3\n", true),
        ("b: 1\nc: 2\n", false),
        ("- b: 1\n  d: 3\n", false),
        ("- b: 1\nc: 2\n", false),
        ("c: 2\nd: 3\n", false),
    ] {
        assert_eq!(stands_in(block, text), stands, "{block}");
    }
    let found = blocks("```yaml\nx\n```\ny\n```text\nz\n```\n", "yaml");
    assert_eq!(found, ["x\n"]);
    Ok(())
}

/// The page of old applications names tests, and they are there.
#[test]
fn the_tests_that_prove_the_page_of_old_applications_exist() -> Result<()> {
    let page = std::fs::read_to_string(root().join("envoy/legacy.md"))?;
    let named: Vec<_> = page
        .split('`')
        .filter_map(|it| it.split_once("::"))
        .collect();
    ensure!(named.len() > 8, "{named:?}");
    for (file, test) in named {
        let path = root().join("integration/tests").join(file);
        let text = std::fs::read_to_string(path.with_extension("rs"))?;
        ensure!(text.contains(&format!("fn {test}(")), "{file}::{test}");
    }
    Ok(())
}
