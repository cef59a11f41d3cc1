//! Reports in SARIF 2.1.0, which code-scanning services read.
//!
//! Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0, sections 3.14, 3.19,
//! 3.27, 3.30 and 3.49.

use serde_json::{Value, json};

use crate::catalogue::{RULES, Rule};
use crate::finding::Report;
use crate::severity::Severity;

/// Returns a report as SARIF.
pub fn sarif(report: &Report) -> Value {
    let results: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            let text = match &finding.hint {
                Some(hint) => format!("{}. To fix it: {hint}.", finding.message),
                None => finding.message.clone(),
            };
            let mut location = json!({
                "physicalLocation": {
                    "artifactLocation": {"uri": uri(&finding.file)},
                    "region": {
                        "startLine": finding.place.line,
                        "startColumn": finding.place.column,
                    },
                },
            });
            let name = finding
                .resource
                .as_ref()
                .map(|resource| format!("{resource} {}", finding.path));
            if let (Some(name), Some(location)) = (name, location.as_object_mut()) {
                let logical = json!([{"fullyQualifiedName": name}]);
                location.insert("logicalLocations".to_owned(), logical);
            }
            json!({
                "ruleId": finding.rule.id,
                "ruleIndex": RULES.iter().position(|rule| rule.id == finding.rule.id),
                "level": level(finding.severity),
                "message": {"text": text},
                "locations": [location],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "egressctl",
                "version": env!("CARGO_PKG_VERSION"),
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": RULES.iter().map(|rule| descriptor(rule)).collect::<Vec<_>>(),
            }},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn descriptor(rule: &Rule) -> Value {
    let plain = rule.title.replace('`', "");
    json!({
        "id": rule.id,
        "shortDescription": {"text": format!("{plain}.")},
        "fullDescription": {"text": format!("{plain}. Istio: {}.", rule.versions)},
        "helpUri": rule.reference,
        "help": {"text": rule.page, "markdown": rule.page},
        "defaultConfiguration": {"level": level(rule.severity)},
        "properties": {"istioVersions": rule.versions, "tags": ["istio", "tls"]},
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// Writes a path as a URI reference.
fn uri(path: &str) -> String {
    let mut uri = String::from(if path.starts_with('/') { "file://" } else { "" });
    for byte in path.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        if plain {
            uri.push(char::from(byte));
        } else if !(path == "<stdin>" && (byte == b'<' || byte == b'>')) {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_a_reference() {
        assert_eq!(uri("rules/my egress.yaml"), "rules/my%20egress.yaml");
        assert_eq!(uri("/etc/ä.yaml"), "file:///etc/%C3%A4.yaml");
        assert_eq!(uri("<stdin>"), "stdin");
    }
}
