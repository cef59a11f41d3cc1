//! Where rules lead: `backendRefs`.

use egress_policy::fields::{Field, Fields};
use egress_policy::{FieldPath, ResourceId};
use serde_json::{Map, Value, json};

use super::filters::{self, Place};
use super::kind::Kind;
use super::reference::{Reference, read_reference};

/// A destination.
pub(super) struct Backend {
    to: Reference,
    weight: u32,
    /// What is changed in headers on this way.
    headers: Map<String, Value>,
    place: FieldPath,
}

/// The destinations of a rule that get anything.
#[derive(Default)]
pub(super) struct Backends {
    /// As `route` of a VirtualService has them.
    pub(super) route: Vec<Value>,
    pub(super) places: Vec<FieldPath>,
    pub(super) foreign: Vec<((String, String), FieldPath)>,
    /// Some of them could not be read.
    pub(super) wrong: bool,
}

/// Reads `backendRefs`.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `buildHTTPDestination` and `buildTCPDestination`.
pub(super) fn read_all(fields: &Fields<'_>, kind: Kind, route: &ResourceId) -> Backends {
    let mut all = Vec::new();
    let mut wrong = fields.given("backendRefs");
    fields.read("backendRefs", |list| {
        list.items(|item| all.extend(read(item, kind, route)));
        wrong = all.len() != list.count();
        Some(())
    });
    all.retain(|backend: &Backend| backend.weight > 0);
    let alone = all.len() == 1;
    let mut backends = Backends {
        wrong,
        ..Backends::default()
    };
    for backend in all {
        let Backend {
            to,
            weight,
            headers,
            place,
        } = backend;
        let mut value = Map::new();
        let destination = json!({"host": to.host, "port": {"number": to.port.get()}});
        value.insert("destination".to_owned(), destination);
        if !alone {
            value.insert("weight".to_owned(), json!(weight));
        }
        if !headers.is_empty() {
            value.insert("headers".to_owned(), Value::Object(headers));
        }
        backends.route.push(Value::Object(value));
        backends
            .foreign
            .extend(to.foreign.map(|name| (name, place.clone())));
        backends.places.push(place);
    }
    backends
}

fn read(field: Field<'_>, kind: Kind, route: &ResourceId) -> Option<Backend> {
    let fields = field.fields()?;
    let weight = fields.read("weight", |field| field.number(0, 1_000_000));
    let changed = match kind.is_of_requests() {
        true => filters::read(&fields, kind, Place::Backend, route),
        false => filters::Filters::default(),
    };
    let to = read_reference(&fields, &route.namespace)?;
    Some(Backend {
        to,
        weight: weight.and_then(|it| u32::try_from(it).ok()).unwrap_or(1),
        headers: changed.headers,
        place: field.cursor.path(),
    })
}
