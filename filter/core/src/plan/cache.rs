//! Plans that were made before. A request like an earlier one gets the same effects, without deciding or writing
//! anything again.

use std::ops::Range;

use egress_policy::PortNumber;

use crate::effect::{Act, Effect, HostError};
use crate::facts::Facts;
use crate::load::Loaded;
use crate::plan::Scratch;
use crate::plan::http::plan_http;

/// How many plans are kept: a power of two. Each takes some hundred bytes.
const PLANS: usize = 256;

/// The longest authority for which a plan is kept, in bytes; hosts' names are no longer than this, with a port.
const LONGEST: usize = 260;

/// The plans that were made by one configuration.
///
/// A plan is made of the configuration and of facts alone, so the same facts have the same one. A plan stays until
/// another takes its place, which is that of its authority's hash, so more hosts than there are places are planned
/// again and take no more memory. Answers of our own are not kept.
#[derive(Debug, Default)]
pub(crate) struct PlanCache {
    plans: Vec<Option<Box<Plan>>>,
}

/// A plan, and the facts that it was made of.
#[derive(Debug, Default)]
struct Plan {
    authority: String,
    port: Option<PortNumber>,
    connect: bool,
    within: Option<String>,
    /// That of the facts, or nothing.
    route: Option<String>,
    /// All its effects are here, and the host could apply them.
    whole: bool,
    effects: Vec<Kept>,
    /// The texts of the effects, one behind the other.
    text: String,
    metadata: Vec<u8>,
}

/// An effect whose texts are in [`Plan::text`].
#[derive(Debug)]
enum Kept {
    Authority(Range<usize>),
    Header(&'static str, Range<usize>),
    RemoveHeader(&'static str),
    ChooseRouteAgain,
    FilterState(&'static str, Range<usize>),
    TransportSocket(Range<usize>),
    Tunnel(Range<usize>),
    Within(Range<usize>),
    CountAllowed,
    Metadata,
}

impl PlanCache {
    /// Has `act` do each effect that [`plan_http`] has for these facts, in order. The configuration is always the same.
    pub(crate) fn plan_http(
        &mut self,
        config: &Loaded,
        facts: &Facts<'_>,
        scratch: &mut Scratch,
        act: Act<'_>,
    ) -> Result<(), HostError> {
        if self.plans.is_empty() {
            self.plans.resize_with(PLANS, || None);
        }
        let Some(slot) = self.plans.get_mut(index(facts.authority, facts.route)) else {
            return plan_http(config, facts, scratch, act);
        };
        if let Some(plan) = slot
            && plan.is_for(facts)
        {
            return plan.effects().try_for_each(act);
        }
        let plan = slot.get_or_insert_default();
        plan.begin();
        let mut keep = facts.authority.len() <= LONGEST;
        plan_http(config, facts, scratch, &mut |effect| {
            keep = keep && plan.add(effect);
            act(effect)
        })?;
        if keep {
            plan.finish(facts);
        }
        Ok(())
    }
}

impl Plan {
    fn is_for(&self, facts: &Facts<'_>) -> bool {
        self.whole
            && self.authority == facts.authority
            && self.port == facts.port
            && self.connect == facts.connect
            && self.within.as_deref() == facts.within
            && self.route.as_deref() == facts.route
    }

    /// Forgets what was kept here: another plan takes its place.
    fn begin(&mut self) {
        self.whole = false;
        self.effects.clear();
        self.text.clear();
        self.metadata.clear();
    }

    /// Keeps what was added since [`Plan::begin`] for these facts.
    fn finish(&mut self, facts: &Facts<'_>) {
        self.authority.clear();
        self.authority.push_str(facts.authority);
        (self.port, self.connect) = (facts.port, facts.connect);
        self.within = facts.within.map(str::to_owned);
        match (&mut self.route, facts.route) {
            (Some(route), Some(name)) => {
                route.clear();
                route.push_str(name);
            }
            (route, name) => *route = name.map(str::to_owned),
        }
        self.whole = true;
    }

    /// Adds an effect; `false` when a plan with it is not kept.
    fn add(&mut self, effect: Effect<'_>) -> bool {
        let text = &mut self.text;
        let mut put = |value: &str| {
            let begin = text.len();
            text.push_str(value);
            begin..text.len()
        };
        self.effects.push(match effect {
            Effect::Authority(value) => Kept::Authority(put(value)),
            Effect::Header(name, value) => Kept::Header(name, put(value)),
            Effect::RemoveHeader(name) => Kept::RemoveHeader(name),
            Effect::ChooseRouteAgain => Kept::ChooseRouteAgain,
            Effect::FilterState(key, value) => Kept::FilterState(key, put(value)),
            Effect::TransportSocket(name) => Kept::TransportSocket(put(name)),
            Effect::Tunnel(target) => Kept::Tunnel(put(target)),
            Effect::Within(target) => Kept::Within(put(target)),
            Effect::CountAllowed => Kept::CountAllowed,
            Effect::Metadata(value) => {
                self.metadata.extend_from_slice(value);
                Kept::Metadata
            }
            // The request ends here, or its response was looked at: neither is kept.
            Effect::Answer { .. }
            | Effect::Close
            | Effect::CloseRequest
            | Effect::Count(_)
            | Effect::CountLeaving
            | Effect::ResponseHeader(..)
            | Effect::ResponseLines(..)
            | Effect::AnswerInstead { .. }
            | Effect::Login => return false,
        });
        true
    }

    fn effects(&self) -> impl Iterator<Item = Effect<'_>> {
        let text = |range: &Range<usize>| self.text.get(range.clone()).unwrap_or_default();
        self.effects.iter().map(move |kept| match kept {
            Kept::Authority(value) => Effect::Authority(text(value)),
            Kept::Header(name, value) => Effect::Header(name, text(value)),
            Kept::RemoveHeader(name) => Effect::RemoveHeader(name),
            Kept::ChooseRouteAgain => Effect::ChooseRouteAgain,
            Kept::FilterState(key, value) => Effect::FilterState(key, text(value)),
            Kept::TransportSocket(name) => Effect::TransportSocket(text(name)),
            Kept::Tunnel(target) => Effect::Tunnel(text(target)),
            Kept::Within(target) => Effect::Within(text(target)),
            Kept::CountAllowed => Effect::CountAllowed,
            Kept::Metadata => Effect::Metadata(&self.metadata),
        })
    }
}

/// Where the plan for an authority and a route is kept. Those that share a place are planned anew each time, and decided
/// no differently.
fn index(authority: &str, route: Option<&str>) -> usize {
    let hash = mixed(0, authority);
    let hash = route.map_or(hash, |route| mixed(hash, route));
    // Only the uppermost bits of a product depend on all that went in.
    usize::try_from(hash >> (u64::BITS - PLANS.trailing_zeros())).unwrap_or(0)
}

fn mixed(hash: u64, text: &str) -> u64 {
    let mix =
        |hash: u64, part: u64| (hash.rotate_left(5) ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (chunks, rest) = text.as_bytes().as_chunks::<8>();
    let hash = chunks
        .iter()
        .fold(hash, |hash, chunk| mix(hash, u64::from_le_bytes(*chunk)));
    rest.iter()
        .fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{PLANS, index};

    #[test]
    fn authorities_that_differ_in_their_last_letters_have_places_of_their_own() {
        for (begin, end) in [
            ("cdn.example:8", ""),
            ("h", ".example.com"),
            ("cdn.example-", "xyz:80"),
        ] {
            let indexes: BTreeSet<usize> = (100..400)
                .map(|n| index(&format!("{begin}{n}{end}"), None))
                .collect();
            assert!(indexes.len() > 150, "{begin}…{end}: {}", indexes.len());
            assert!(indexes.iter().all(|index| *index < PLANS));
        }
    }
}
