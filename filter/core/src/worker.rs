//! What one worker thread has of a configuration.

use std::cell::Cell;
use std::sync::Arc;

use crate::effect::{Act, HostError};
use crate::facts::Facts;
use crate::load::Loaded;
use crate::plan::Scratch;
use crate::plan::cache::PlanCache;

/// A configuration, which all workers share, and what one of them keeps for it: the plans that were made by it, and room
/// for texts.
///
/// A configuration that replaces this one has a worker of its own, so a plan is never that of another configuration.
pub struct Worker {
    config: Arc<Loaded>,
    room: Cell<Room>,
}

#[derive(Default)]
struct Room {
    plans: PlanCache,
    scratch: Scratch,
}

impl Worker {
    /// Begins with no plan.
    pub fn new(config: Arc<Loaded>) -> Self {
        Worker {
            config,
            room: Cell::default(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Loaded {
        &self.config
    }

    /// Has `act` do each effect that [`plan_http`](crate::plan_http) has for these facts, in order. A request like one
    /// before it takes no memory.
    ///
    /// # Errors
    /// The first of `act`, after which it is asked nothing more.
    pub fn plan_http(&self, facts: &Facts<'_>, act: Act<'_>) -> Result<(), HostError> {
        self.with_room(|Room { plans, scratch }| plans.plan_http(&self.config, facts, scratch, act))
    }

    pub(crate) fn with_scratch<R>(&self, plan: impl FnOnce(&mut Scratch) -> R) -> R {
        self.with_room(|room| plan(&mut room.scratch))
    }

    /// Who asks from within another's `act` finds a room that is empty.
    fn with_room<R>(&self, plan: impl FnOnce(&mut Room) -> R) -> R {
        let mut room = self.room.take();
        let result = plan(&mut room);
        self.room.set(room);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use serde_json::json;

    use super::*;
    use crate::load::load;

    fn loaded() -> Arc<Loaded> {
        let config = json!({"listener": {"port": 80}, "resources": [{
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "web"},
            "spec": {
                "hosts": ["web.example"], "resolution": "DNS",
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            },
        }]});
        Arc::new(load(config.to_string().as_bytes()).unwrap())
    }

    fn effects(worker: &Worker, authority: &str) -> Vec<String> {
        let facts = Facts {
            authority,
            port: None,
            connect: false,
            within: None,
            route: None,
        };
        let mut effects = Vec::new();
        worker
            .plan_http(&facts, &mut |effect| {
                effects.push(format!("{effect:?}"));
                Ok(())
            })
            .unwrap();
        effects
    }

    #[test]
    fn workers_share_a_configuration() {
        fn is_shared<T: Send + Sync>(_: &T) {}
        let loaded = loaded();
        is_shared(&*loaded);
        let expected = effects(&Worker::new(Arc::clone(&loaded)), "web.example");
        assert!(!expected.is_empty());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let worker = Worker::new(Arc::clone(&loaded));
                    assert_eq!(effects(&worker, "web.example"), expected);
                });
            }
        });
    }

    #[test]
    fn one_may_ask_from_within_anothers_effects() {
        let worker = Worker::new(loaded());
        let alone = [
            effects(&worker, "web.example"),
            effects(&worker, "no.example"),
        ];
        let facts = Facts {
            authority: "web.example",
            port: None,
            connect: false,
            within: None,
            route: None,
        };
        let mut outer = Vec::new();
        worker
            .plan_http(&facts, &mut |effect| {
                assert_eq!(effects(&worker, "no.example"), alone[1]);
                outer.push(format!("{effect:?}"));
                Ok(())
            })
            .unwrap();
        assert_eq!(outer, alone[0]);
    }
}
