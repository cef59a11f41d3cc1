//! What annotations of ours may lead to that their author did not mean.

use egress_policy::{FieldPath, Note, Notes, Problem, ProblemKind, Resources, Segment, Severity};

/// Warns of annotations.
pub(crate) fn problems(resources: &Resources) -> impl Iterator<Item = Problem> {
    let rules = resources.destination_rules.iter().map(|rule| &rule.meta);
    let told = rules.filter(|meta| meta.notes.say(Note::ForwardedHttp));
    told.map(|meta| {
        let mut path = FieldPath::keys("metadata.annotations");
        let name = format!("{}forwarded-proto", Notes::PREFIX);
        path.0.push(Segment::Key(name));
        if let Some(item) = meta.origin.item {
            let list = [Segment::Key("items".to_owned()), Segment::Index(item)];
            path.0.splice(0..0, list);
        }
        Problem {
            severity: Severity::Warning,
            origin: meta.origin,
            resource: Some(meta.id.clone()),
            path,
            kind: ProblemKind::Invalid(
                "a server that redirects plain HTTP to `https://` will redirect for ever".to_owned(),
            ),
            hint: Some(
                "keep it only if the server answers such requests, and writes `http://` URLs for it"
                    .to_owned(),
            ),
            id: None,
        }
    })
}
