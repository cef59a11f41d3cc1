//! Manifests as files of a folder, one each, and how they differ from what is there.

use std::collections::BTreeMap;

use similar::TextDiff;

use super::manifest::Manifest;

/// What every rendered file begins with.
pub const MARK: &str = "# Rendered by egressctl ";

/// Returns the name of a manifest's file; no other manifest has it.
pub fn file_name(manifest: &Manifest) -> String {
    let Manifest {
        kind,
        namespace,
        name,
        ..
    } = manifest;
    format!("{}.{namespace}.{name}.yaml", kind.to_lowercase())
}

/// Whether a file is one of ours, by how it begins.
pub fn is_ours(text: &str) -> bool {
    text.starts_with(MARK)
}

/// Returns what would change, as a unified diff; empty where nothing would. Both are texts by file name.
pub fn difference(
    folder: &str,
    there: &BTreeMap<String, String>,
    rendered: &BTreeMap<String, String>,
) -> String {
    let names: std::collections::BTreeSet<&String> = there.keys().chain(rendered.keys()).collect();
    let mut all = String::new();
    for name in names {
        let path = format!("{folder}/{name}");
        let text = |texts: &BTreeMap<String, String>| texts.get(name).cloned();
        let (old, new) = (text(there), text(rendered));
        let called = |text: &Option<String>| match text {
            Some(_) => path.clone(),
            None => "/dev/null".to_owned(),
        };
        let (before, after) = (called(&old), called(&new));
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        let diff = TextDiff::from_lines(&old, &new);
        all.push_str(&diff.unified_diff().header(&before, &after).to_string());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown() {
        let texts = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            all.iter()
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect()
        };
        let there = texts(&[("same", "a\n"), ("changed", "a\nb\n"), ("gone", "a\n")]);
        let rendered = texts(&[("same", "a\n"), ("changed", "a\nc\n"), ("new", "a\n")]);
        assert_eq!(
            difference("gitops", &there, &rendered),
            "--- gitops/changed\n+++ gitops/changed\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n\
             --- gitops/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n\
             --- /dev/null\n+++ gitops/new\n@@ -0,0 +1 @@\n+a\n"
        );
        assert_eq!(difference("gitops", &there, &there), "");
    }
}
