//! Cases whose first line says how they are run, and the files beside them that have what comes of it.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the cases of a folder: its YAML files, in the order of their names.
pub(crate) fn cases(folder: &Path) -> Vec<PathBuf> {
    let mut cases: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.retain(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

/// Returns the arguments that a case begins with; `@` is the case itself.
pub(crate) fn arguments<'t>(text: &'t str, name: &'t str) -> Vec<&'t str> {
    let first = text.lines().next();
    let Some(arguments) = first.and_then(|line| line.strip_prefix("# egressctl ")) else {
        panic!("{name} does not begin with `# egressctl ARGUMENTS`");
    };
    let words = arguments.split_whitespace();
    words
        .map(|word| if word == "@" { name } else { word })
        .collect()
}

/// Compares what comes of cases with what is kept; with `UPDATE_GOLDENS` it is kept anew.
pub(crate) struct Goldens {
    bless: bool,
    differences: Vec<String>,
}

impl Goldens {
    pub(crate) fn new() -> Self {
        Goldens {
            bless: std::env::var_os("UPDATE_GOLDENS").is_some(),
            differences: Vec::new(),
        }
    }

    /// Compares one output of a case, kept beside it with this ending.
    pub(crate) fn compare(&mut self, case: &Path, ending: &str, found: &str) {
        let golden = case.with_extension(ending);
        if self.bless {
            fs::write(&golden, found).unwrap();
        } else if fs::read_to_string(&golden).unwrap_or_default() != found {
            let difference = format!("{}\n{found}", golden.display());
            self.differences.push(difference);
        }
    }

    /// Fails if anything differed.
    pub(crate) fn finish(self) {
        assert!(
            self.differences.is_empty(),
            "see what changed with `make bless` and `git diff`:\n{}",
            self.differences.join("\n")
        );
    }
}
