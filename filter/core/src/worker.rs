//! What one worker thread has of a configuration.

use std::cell::RefCell;
use std::sync::Arc;

use crate::effect::Act;
use crate::facts::Facts;
use crate::load::Loaded;
use crate::plan::Scratch;
use crate::plan::cache::PlanCache;

/// A configuration, which all workers share, and what one of them keeps for it: the plans that were made by it, and room
/// for texts.
///
/// A configuration that replaces this one has a worker of its own, so a plan is never that of another configuration.
#[derive(Debug)]
pub struct Worker {
    config: Arc<Loaded>,
    room: RefCell<Room>,
}

#[derive(Debug, Default)]
struct Room {
    plans: PlanCache,
    scratch: Scratch,
}

impl Worker {
    /// Begins with no plan.
    pub fn new(config: Arc<Loaded>) -> Self {
        Worker {
            config,
            room: RefCell::default(),
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
    pub fn plan_http<E>(&self, facts: &Facts<'_>, act: Act<'_, E>) -> Result<(), E> {
        self.with_room(|Room { plans, scratch }| plans.plan_http(&self.config, facts, scratch, act))
    }

    pub(crate) fn with_scratch<R>(&self, plan: impl FnOnce(&mut Scratch) -> R) -> R {
        self.with_room(|room| plan(&mut room.scratch))
    }

    fn with_room<R>(&self, plan: impl FnOnce(&mut Room) -> R) -> R {
        match self.room.try_borrow_mut() {
            Ok(mut room) => plan(&mut room),
            // One asks from within another's `act`.
            Err(_) => plan(&mut Room::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
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
        };
        let mut effects = Vec::new();
        let Ok(()) = worker.plan_http::<Infallible>(&facts, &mut |effect| {
            effects.push(format!("{effect:?}"));
            Ok(())
        });
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
        };
        let mut outer = Vec::new();
        let Ok(()) = worker.plan_http::<Infallible>(&facts, &mut |effect| {
            assert_eq!(effects(&worker, "no.example"), alone[1]);
            outer.push(format!("{effect:?}"));
            Ok(())
        });
        assert_eq!(outer, alone[0]);
    }
}
