//! The linter, from outside: golden cases, the examples of the rules' pages, and `--fix`.
//!
//! `lint/NAME.yaml` begins with `# egressctl ARGUMENTS`; `@` stands for the file itself. What was printed
//! is kept in `lint/NAME.out` and `lint/NAME.err`, the exit code at the end of the latter, and with
//! `--fix` the file as it is then in `lint/NAME.fixed`. `make bless` rewrites them.

#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop where it is"
)]

#[cfg(test)]
mod goldens;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use egress_lint::{self as lint, RULES, Report, Severity};
use egress_rules::Source;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lint")
}

fn egressctl(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_egressctl"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

fn run_stdin(arguments: &[&str], text: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_egressctl"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn lint_text(name: &str, text: &str) -> Report {
    lint::lint(&[Source {
        name: name.to_owned(),
        text: text.to_owned(),
        mesh: false,
    }])
}

fn ids(report: &Report) -> Vec<&str> {
    report
        .findings
        .iter()
        .map(|finding| finding.rule.id)
        .collect()
}

fn matters(report: &Report) -> Vec<&str> {
    let matters = report
        .findings
        .iter()
        .filter(|finding| finding.severity > Severity::Info);
    matters.map(|finding| finding.rule.id).collect()
}

#[test]
fn outputs_are_as_they_were() {
    let mut compared = goldens::Goldens::new();
    for case in &goldens::cases(&folder()) {
        let name = case.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(case).unwrap();
        let arguments = goldens::arguments(&text, name);
        // `--fix` writes, so it is given a copy.
        let scratch = tempfile::tempdir().unwrap();
        let copy = scratch.path().join(name);
        fs::copy(case, &copy).unwrap();
        let output = egressctl(&arguments, scratch.path());
        let error = format!(
            "{}exit code {}\n",
            String::from_utf8_lossy(&output.stderr),
            output.status.code().unwrap()
        );
        let mut outputs = vec![
            ("out", String::from_utf8_lossy(&output.stdout).into_owned()),
            ("err", error),
        ];
        if arguments.contains(&"--fix") {
            let fixed = fs::read_to_string(&copy).unwrap();
            let again = egressctl(&arguments, scratch.path());
            assert_eq!(
                String::from_utf8_lossy(&again.stderr),
                "nothing to fix\n",
                "{name}"
            );
            assert_eq!(
                fs::read_to_string(&copy).unwrap(),
                fixed,
                "{name} is not mended at once"
            );
            outputs.push(("fixed", fixed));
        } else {
            assert_eq!(
                fs::read_to_string(&copy).unwrap(),
                text,
                "{name} was written"
            );
        }
        for (ending, found) in outputs {
            compared.compare(case, ending, &found);
        }
    }
    compared.finish();
}

#[test]
fn every_rule_has_a_bad_and_a_good_case() {
    for rule in RULES {
        let read = |kind: &str| {
            fs::read_to_string(folder().join(format!("{}-{kind}.yaml", rule.id))).unwrap()
        };
        let bad = lint_text("bad.yaml", &read("bad"));
        assert!(ids(&bad).contains(&rule.id), "{}: {bad}", rule.id);
        let good = lint_text("good.yaml", &read("good"));
        assert!(matters(&good).is_empty(), "{}: {good}", rule.id);
        assert!(!ids(&good).contains(&rule.id), "{}: {good}", rule.id);
    }
}

/// Returns the blocks of YAML with a mark.
fn examples<'p>(page: &'p str, mark: &str) -> Vec<&'p str> {
    let opening = format!("```yaml {mark}\n");
    page.split(opening.as_str())
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

#[test]
fn every_page_tells_what_the_linter_does() {
    for rule in RULES {
        let head = format!(
            "# {}\n\n{}.\n\nSeverity: {}. Istio: {}.\n\n",
            rule.id,
            rule.title,
            rule.severity.as_str(),
            rule.versions
        );
        assert!(
            rule.page.starts_with(&head),
            "{}: its page does not begin with\n{head}",
            rule.id
        );
        for section in [
            "\n## What happens\n",
            "\n## Example\n",
            "\n## How to fix it\n",
            "\nSource: ",
        ] {
            assert!(
                rule.page.contains(section),
                "{}: no `{}`",
                rule.id,
                section.trim()
            );
        }
        let (bad, good) = (examples(rule.page, "bad"), examples(rule.page, "good"));
        assert!(!bad.is_empty() && !good.is_empty(), "{}", rule.id);
        for text in bad {
            let report = lint_text("bad.yaml", text);
            let found = report
                .findings
                .iter()
                .find(|finding| finding.rule.id == rule.id);
            assert_eq!(
                found.map(|finding| finding.severity),
                Some(rule.severity),
                "{}: {report}",
                rule.id
            );
        }
        for text in good {
            let report = lint_text("good.yaml", text);
            assert!(
                matters(&report).is_empty() && !ids(&report).contains(&rule.id),
                "{}: {report}",
                rule.id
            );
        }
    }
}

#[test]
fn rules_are_in_order_and_have_a_page_each() {
    let names: Vec<&str> = RULES.iter().map(|rule| rule.id).collect();
    assert!(names.is_sorted(), "{names:?}");
    let pages = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../lint/pages")).unwrap();
    let mut pages: Vec<String> = pages
        .map(|page| {
            page.unwrap()
                .file_name()
                .into_string()
                .unwrap()
                .replace(".md", "")
        })
        .collect();
    pages.sort();
    assert_eq!(names, pages);
    for rule in RULES {
        let output = egressctl(&["lint", "--explain", rule.id], &folder());
        assert_eq!(String::from_utf8_lossy(&output.stdout), rule.page);
        assert!(output.status.success());
    }
    let output = egressctl(&["lint", "--explain", "sni-without-sans"], &folder());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("sni-without-san"));
}

/// What the task page of Istio has one apply: first without, then with a client certificate.
const PAGE: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: edition-cnn-com
spec:
  hosts:
  - edition.cnn.com
  ports:
  - number: 80
    name: http-port
    protocol: HTTP
    targetPort: 443
  - number: 443
    name: https-port
    protocol: HTTPS
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: edition-cnn-com
spec:
  host: edition.cnn.com
  trafficPolicy:
    portLevelSettings:
    - port:
        number: 80
      tls:
        mode: SIMPLE # initiates HTTPS when accessing edition.cnn.com
";
const MUTUAL: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: originate-mtls-for-nginx
spec:
  hosts:
  - my-nginx.mesh-external.svc.cluster.local
  ports:
  - number: 80
    name: http-port
    protocol: HTTP
    targetPort: 443
  - number: 443
    name: https-port
    protocol: HTTPS
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: originate-mtls-for-nginx
spec:
  workloadSelector:
    matchLabels:
      app: sleep
  host: my-nginx.mesh-external.svc.cluster.local
  trafficPolicy:
    loadBalancer:
      simple: ROUND_ROBIN
    portLevelSettings:
    - port:
        number: 80
      tls:
        mode: MUTUAL
        credentialName: client-credential # this must match the secret created earlier to hold client certs, and works only when DR has a workloadSelector
        sni: my-nginx.mesh-external.svc.cluster.local # this is optional
";

#[test]
fn the_first_half_of_the_page_is_clean() {
    let report = lint_text("page.yaml", PAGE);
    assert!(report.findings.is_empty(), "{report}");
}

#[test]
fn the_second_half_of_the_page_verifies_no_name() {
    let report = lint_text("page.yaml", MUTUAL);
    assert_eq!(ids(&report), ["sni-without-san"], "{report}");
    let finding = &report.findings[0];
    assert_eq!((finding.place.line, finding.place.column), (36, 9));
    assert!(finding.fixable());
    let both = lint_text("page.yaml", &format!("{PAGE}---\n{MUTUAL}"));
    assert_eq!(ids(&both), ["sni-without-san"], "{both}");
}

#[test]
fn the_standard_input_is_printed_mended() {
    let output = run_stdin(&["lint", "-f", "-", "--fix"], MUTUAL);
    let fixed = format!(
        "{MUTUAL}        subjectAltNames:\n        - my-nginx.mesh-external.svc.cluster.local\n"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), fixed);
    assert_eq!(output.status.code(), Some(0));
    let again = run_stdin(&["lint", "-f", "-", "--fix"], &fixed);
    assert_eq!(String::from_utf8_lossy(&again.stdout), fixed);
    let plain = run_stdin(&["lint", "-f", "-"], MUTUAL);
    assert_eq!(plain.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&plain.stdout).contains("<stdin>:36:9"));
}

#[test]
fn fixes_mend_every_page_they_claim_to() {
    for rule in RULES {
        for text in examples(rule.page, "bad") {
            let source = Source {
                name: "bad.yaml".to_owned(),
                text: text.to_owned(),
                mesh: false,
            };
            let before = lint::lint(std::slice::from_ref(&source));
            let fixed = lint::fix(std::slice::from_ref(&source));
            let after = lint::lint(&fixed.sources);
            let left = after
                .findings
                .iter()
                .filter(|finding| finding.fixable())
                .count();
            assert_eq!(left, 0, "{}: {after}", rule.id);
            let claimed = before.findings.iter().any(|finding| finding.fixable());
            assert_eq!(claimed, fixed.sources[0].text != text, "{}", rule.id);
            assert!(
                after.findings.len() <= before.findings.len(),
                "{}: {after}",
                rule.id
            );
        }
    }
}

#[test]
fn a_text_with_anchors_is_left_as_it_is() {
    let text = PAGE.replace(
        "tls:\n        mode: SIMPLE",
        "tls: &tls\n        sni: edition.cnn.com\n        mode: SIMPLE",
    );
    let source = Source {
        name: "anchors.yaml".to_owned(),
        text,
        mesh: false,
    };
    let fixed = lint::fix(std::slice::from_ref(&source));
    assert!(fixed.findings.is_empty());
    assert_eq!(fixed.sources[0].text, source.text);
}

#[test]
fn json_and_lists_are_mended_too() {
    let documents = egress_rules::yaml::read(MUTUAL, egress_rules::is_ours).unwrap();
    let items: Vec<Value> = documents
        .into_iter()
        .map(|document| document.value)
        .collect();
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
    for text in [
        list.to_string(),
        serde_json::to_string_pretty(&list).unwrap(),
    ] {
        let source = Source {
            name: "list.json".to_owned(),
            text,
            mesh: false,
        };
        let report = lint::lint(std::slice::from_ref(&source));
        assert_eq!(ids(&report), ["sni-without-san"], "{report}");
        let path = report.findings[0].path.to_string();
        assert_eq!(
            path,
            "items[1].spec.trafficPolicy.portLevelSettings[0].tls.sni"
        );
        let fixed = lint::fix(&[source]);
        assert!(lint::lint(&fixed.sources).findings.is_empty());
        assert!(serde_json::from_str::<Value>(&fixed.sources[0].text).is_ok());
    }
}

#[test]
fn a_file_is_replaced_as_a_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("rules.yaml");
    let link = scratch.path().join("link.yaml");
    fs::write(&file, MUTUAL).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("rules.yaml", &link).unwrap();
    let output = egressctl(&["lint", "-f", "link.yaml", "--fix"], scratch.path());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(
        fs::read_to_string(&file)
            .unwrap()
            .contains("subjectAltNames")
    );
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert_eq!(
        fs::read_dir(scratch.path()).unwrap().count(),
        2,
        "a temporary file was left"
    );

    fs::write(&file, MUTUAL).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).unwrap();
    let output = egressctl(&["lint", "-f", "rules.yaml", "--fix"], scratch.path());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), MUTUAL);
}

#[test]
fn a_missing_file_is_told() {
    let output = egressctl(&["lint", "-f", "nowhere.yaml"], &folder());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere.yaml"));
}

/// Every file in one go: whatever it finds, it ends, and says the same twice.
#[test]
fn all_cases_together_are_no_trouble() {
    let folder = folder();
    let name = folder.to_str().unwrap();
    let (first, second) = (
        egressctl(&["lint", "-f", name], &folder),
        egressctl(&["lint", "-f", name], &folder),
    );
    assert_eq!(first.status.code(), Some(1));
    assert_eq!(first.stdout, second.stdout);
}

#[test]
fn json_has_the_promised_keys() {
    let report = lint_text("page.yaml", MUTUAL);
    let json = report.to_json();
    let keys: Vec<&str> = json[0]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let mut promised = [
        "rule",
        "severity",
        "message",
        "file",
        "line",
        "column",
        "resource",
        "path",
        "hint",
        "docs",
        "istioVersions",
        "fixable",
    ];
    let mut keys = keys;
    keys.sort_unstable();
    promised.sort_unstable();
    assert_eq!(keys, promised);
    assert_eq!(json[0]["line"], 36);
    assert_eq!(json[0]["fixable"], true);
}

/// What SARIF 2.1.0 requires of the objects that we write.
#[test]
fn sarif_has_the_shape_of_the_standard() {
    let all: String = RULES
        .iter()
        .map(|rule| examples(rule.page, "bad")[0])
        .collect::<Vec<_>>()
        .join("\n---\n");
    let log = lint::sarif(&lint_text("rules/my egress.yaml", &all));
    // 3.13: a log has a version and runs, and may say its schema.
    assert_eq!(log["version"], "2.1.0");
    assert!(log["$schema"].as_str().unwrap().starts_with("https://"));
    let runs = log["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 1);
    // 3.14: a run has a tool; 3.14.17: columns are counted in one of two ways.
    let run = &runs[0];
    assert_eq!(run["columnKind"], "unicodeCodePoints");
    // 3.18, 3.19: a tool has a driver, which has a name.
    let driver = &run["tool"]["driver"];
    assert_eq!(driver["name"], "egressctl");
    let rules = driver["rules"].as_array().unwrap();
    assert_eq!(rules.len(), RULES.len());
    let levels = ["none", "note", "warning", "error"];
    for (rule, known) in rules.iter().zip(RULES) {
        // 3.49: a descriptor has an id; its texts are message strings, its help an absolute URI.
        assert_eq!(rule["id"], known.id);
        assert!(rule["helpUri"].as_str().unwrap().starts_with("https://"));
        for text in ["shortDescription", "fullDescription", "help"] {
            // 3.12: where there is Markdown there is text.
            assert!(!rule[text]["text"].as_str().unwrap().is_empty(), "{text}");
        }
        assert!(
            rule["shortDescription"]["text"]
                .as_str()
                .unwrap()
                .ends_with('.')
        );
        assert_eq!(rule["help"]["markdown"], known.page);
        let level = rule["defaultConfiguration"]["level"].as_str().unwrap();
        assert!(levels.contains(&level));
    }
    let results = run["results"].as_array().unwrap();
    assert!(results.len() >= RULES.len(), "{}", results.len());
    for result in results {
        // 3.27.5: the id is that of the descriptor at the index.
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(result["ruleId"], rules[index]["id"]);
        assert!(levels.contains(&result["level"].as_str().unwrap()));
        // 3.27.11: a message has a text or an id.
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        let locations = result["locations"].as_array().unwrap();
        assert_eq!(locations.len(), 1);
        let place = &locations[0]["physicalLocation"];
        // 3.4.3: a URI reference has no blanks; 3.30.5, 3.30.6: lines and columns count from one.
        assert_eq!(place["artifactLocation"]["uri"], "rules/my%20egress.yaml");
        assert!(place["region"]["startLine"].as_u64().unwrap() >= 1);
        assert!(place["region"]["startColumn"].as_u64().unwrap() >= 1);
    }
    let clean = lint::sarif(&lint_text("page.yaml", PAGE));
    assert_eq!(
        clean["runs"][0]["results"],
        serde_json::json!([]),
        "an empty list says that it was looked"
    );
}
