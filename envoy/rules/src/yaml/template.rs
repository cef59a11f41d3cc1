//! Tells a Helm template from YAML, so that the message says that it is a template, and not where it stops being YAML.

use super::invalid::InvalidYaml;
use super::location::Location;

/// Reports that a text is a template; this is its first place.
pub(super) fn mistaken(at: Location) -> InvalidYaml {
    InvalidYaml {
        what: "this is a Helm template (`{{`), not YAML".to_owned(),
        at,
        hint: Some("render it first: `helm template CHART | egressctl check -f -`".to_owned()),
    }
}

/// Finds the first `{{` that stands neither in quotes, nor in a comment, nor in a block of text.
pub(super) fn find(text: &str) -> Option<Location> {
    let mut quote = None;
    // The column that lines must stand behind to belong to the block.
    let mut block = None;
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start_matches(' ').len();
        if let Some(parent) = block {
            if line.trim().is_empty() || indent > parent {
                continue;
            }
            block = None;
        }
        let mut end = line.len();
        // Whether a quotation mark here would begin a string.
        let mut fresh = true;
        let mut before = ' ';
        let mut chars = line.char_indices().enumerate().peekable();
        while let Some((column, (at, c))) = chars.next() {
            let next = chars.peek().map(|(_, (_, next))| *next);
            match (quote, c) {
                (Some('"'), '\\') => drop(chars.next()),
                (Some('\''), '\'') if next == Some('\'') => drop(chars.next()),
                (Some(open), c) if c == open => quote = None,
                (Some(_), _) => {}
                (None, '#') if before.is_whitespace() => {
                    end = at;
                    break;
                }
                (None, '"' | '\'') if fresh => quote = Some(c),
                (None, '{') if next == Some('{') => {
                    return Some(Location::new(number + 1, column + 1));
                }
                (None, _) => {}
            }
            fresh = match c {
                '[' | '{' | ',' => true,
                ' ' | '\t' => fresh || matches!(before, ':' | '-' | '?'),
                _ => false,
            };
            before = c;
        }
        if quote.is_none() {
            block = block_below(line.get(..end).unwrap_or_default(), indent);
        }
    }
    None
}

/// Returns behind which column the lines of a block stand, where a line ends with `|` or `>`.
fn block_below(line: &str, indent: usize) -> Option<usize> {
    let line = line.trim_end();
    let (before, word) = line.rsplit_once([' ', '\t']).unwrap_or(("", line));
    let marks = word.strip_prefix(['|', '>'])?;
    let known = |c: char| matches!(c, '+' | '-') || c.is_ascii_digit();
    if !marks.chars().all(known) {
        return None;
    }
    let mut parent = indent;
    let mut rest = before.trim_start_matches(' ');
    // The key of `- key: |` stands behind its dash.
    while let Some(item) = rest.strip_prefix("- ") {
        let inner = item.trim_start_matches(' ');
        if inner.is_empty() {
            break;
        }
        parent += rest.len() - inner.len();
        rest = inner;
    }
    Some(parent)
}

#[cfg(test)]
mod tests {
    use crate::document::is_ours;
    use crate::yaml::{Document, InvalidYaml};

    fn read(text: &str) -> Result<Vec<Document>, InvalidYaml> {
        crate::yaml::read(text, is_ours)
    }

    #[test]
    fn a_template_is_told_wherever_its_first_braces_stand() {
        for (text, line, column) in [
            ("name: {{ .Release.Name }}-db\n", 1, 7),
            ("{{- if .Values.on }}\na: 1\n{{- end }}\n", 1, 1),
            (
                "kind: ServiceEntry\na: 1\n  {{- range .Values.hosts }}\n  - {{ . | quote }}\n",
                3,
                3,
            ),
            (
                "labels:\n  {{ include \"a.labels\" . | nindent 2 }}\n",
                2,
                3,
            ),
            ("{{ .Values.key }}: a\n", 1, 1),
            ("a: [{{ .b }}]\n", 1, 5),
            ("a: '{{ .b }}'\nc: {{ .d }}\n", 2, 4),
            ("# {{ .b }}\nc: x{{ .d }}\n: [\n", 2, 5),
            ("{{/* what it is */}}\na: 1\n", 1, 1),
            ("a: |\n  {{ x }}\nb: {{ x }}\n", 3, 4),
            ("- k: |\n    {{ x }}\n  l: {{ x }}\n", 3, 6),
            ("é: it's {{ x }}\nb: [\n", 1, 9),
            (
                "kind: ServiceEntry\nmetadata: \n  name: db-{{ .Release.Name }}\n",
                3,
                12,
            ),
            ("kind: DestinationRule\nspec: \n  x-{{ .k }}: 1\n", 3, 5),
            (
                "kind: List\nitems:\n- kind: ServiceEntry\n  spec: a{{ x }}\n",
                4,
                10,
            ),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.what.contains("Helm template"), "{text}: {error}");
            assert_eq!((error.at.line, error.at.column), (line, column), "{text}");
            assert!(error.hint.unwrap().contains("helm template"), "{text}");
        }
    }

    /// A ConfigMap may have the templates of other programs.
    #[test]
    fn a_template_in_what_we_do_not_read_is_let_be() {
        assert!(read("kind: ConfigMap\ndata:\n  a: hello {{ .b }}\n").is_ok());
    }

    #[test]
    fn braces_in_a_text_are_no_template() {
        for good in [
            "a: '{{ .b }}'\n",
            "a: \"\\\"{{ .b }}\"\n",
            "# {{ .b }}\na: 1\n",
            "a: 1 # {{ .b }}\n",
            "a: |\n  {{ .b }}\nb: >-\n  {{ .c }}\n",
            "a: {b: {c: 1}}\n",
            "a: 'it''s {{ .b }}'\n",
            "a: 'of two\n  lines {{ .b }}'\n",
            "kind: ServiceEntry\na: '{{ .b }}'\nc: \"{{ .d }}\"\n",
        ] {
            assert!(read(good).is_ok(), "{good}");
            let bad = format!("{good}b: [\n");
            let error = read(&bad).unwrap_err();
            assert!(!error.what.contains("Helm"), "{bad}: {error}");
        }
    }
}
