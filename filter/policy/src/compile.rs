//! Compiles resources into a table.

pub(crate) mod owners;

mod check;
mod cluster;
mod compiler;
mod connections;
mod gate;
mod hops;
mod kubernetes;
mod leads;
mod pinned;
mod routes;
pub(crate) mod routing;
mod scope;
mod services;
mod tunnels;

use crate::cluster::Cluster;
use crate::compile::compiler::{Compiler, Fault};
use crate::options::CompileOptions;
use crate::port::PortNumber;
use crate::problem::{Problem, Problems};
use crate::proxy::{Proxy, Role};
use crate::reason::Reason;
use crate::resource::Resources;
use crate::table::PolicyTable;
use crate::table::verdict::{Verdict, narrow};

impl PolicyTable {
    /// Compiles resources for one proxy, or tells everything that prevents it.
    ///
    /// The problems returned beside a table are warnings.
    ///
    /// # Errors
    /// When any part of any rule cannot be honoured; then nothing of the table exists.
    pub fn compile(
        resources: &Resources,
        options: &CompileOptions,
    ) -> Result<(PolicyTable, Problems), Problems> {
        let compiled = PolicyTable::compile_with_errors(resources, options);
        match compiled.problems.has_errors() {
            true => Err(compiled.problems),
            false => Ok((compiled.table, compiled.problems)),
        }
    }

    /// Compiles resources for one proxy, whatever is wrong with them: a host and port whose rules have an error is
    /// refused with [`Reason::InvalidRule`]. For people who ask about another host; such a table decides nothing.
    pub fn compile_with_errors(resources: &Resources, options: &CompileOptions) -> Compiled {
        let mut compiler = Compiler::new(resources, options);
        compiler.entries();
        compiler.kubernetes();
        compiler.gate();
        compiler.finish()
    }
}

/// A table, with everything that is wrong with what it was compiled from.
#[derive(Debug)]
pub struct Compiled {
    /// The table. With errors among the problems it is for answers only.
    pub table: PolicyTable,
    /// Everything that is wrong.
    pub problems: Problems,
    /// The gateways whose part the table plays: those that requests go through, or the proxy itself.
    pub gateways: Vec<Proxy>,
    /// The errors, by the host and port that are refused for them.
    faults: Vec<Fault>,
}

impl Compiled {
    /// Returns the errors for which a host and port of `table`, the one that was compiled, are refused.
    pub fn errors_of(&self, table: &PolicyTable, host: &str, port: PortNumber) -> Vec<&Problem> {
        let found = table.hosts.find_map(host, |found| {
            table.hosts.port(found, port)?;
            Some(&found.pattern)
        });
        let of_it = |fault: &&Fault| {
            let pattern = table.hosts.get(fault.host).map(|host| &host.pattern);
            fault.port == port && pattern == found
        };
        let problem = |fault: &Fault| self.problems.0.get(fault.problem);
        self.faults
            .iter()
            .filter(of_it)
            .filter_map(problem)
            .collect()
    }
}

impl Compiler<'_> {
    fn finish(mut self) -> Compiled {
        let (connections, outbound) = (self.connections(), self.outbound());
        for fault in &self.faults {
            if let Some(port) = self.hosts.port_mut(fault.host, fault.port)
                && (port.verdict.refusal()).is_none_or(|reason| reason == Reason::NoRoute)
            {
                port.verdict = Verdict::refused(Reason::InvalidRule, port.verdict.rule());
            }
        }
        self.pin();
        // By name, so that the table does not depend on the order of the documents.
        let mut order: Vec<usize> = self.names.values().copied().collect();
        // What only refused services would have used is not there.
        let used = self.hosts.clusters();
        order.retain(|index| used.contains(&narrow(*index)));
        let mut indexes = vec![usize::MAX; self.clusters.len()];
        for (to, from) in order.iter().enumerate() {
            indexes
                .get_mut(*from)
                .into_iter()
                .for_each(|index| *index = to);
        }
        let mut clusters: Vec<Option<Cluster>> = self.clusters.into_iter().map(Some).collect();
        let sorted = order
            .drain(..)
            .filter_map(|from| clusters.get_mut(from).and_then(Option::take))
            .collect();
        let mut hosts = self.hosts;
        for verdict in hosts
            .verdicts_mut()
            .filter(|verdict| verdict.refusal().is_none())
        {
            verdict.cluster = narrow(
                indexes
                    .get(verdict.cluster as usize)
                    .copied()
                    .unwrap_or(usize::MAX),
            );
        }
        let entries = self
            .resources
            .service_entries
            .iter()
            .map(|entry| entry.meta.id.clone());
        let rules = self
            .resources
            .destination_rules
            .iter()
            .map(|rule| rule.meta.id.clone());
        let services = self.resources.virtual_services.iter();
        let services = services.map(|service| service.meta.id.clone());
        let ids = entries.chain(rules).chain(services).collect();
        let table = PolicyTable {
            hosts,
            clusters: sorted,
            resources: ids,
            outbound,
            router: self.options.proxy.role == Role::Gateway && !self.options.foreign,
            connect_to: self.options.connect_to.clone(),
            connections,
            allow_plaintext: self.options.allow_plaintext.clone(),
            summary: self.summary,
        };
        Compiled {
            table,
            problems: Problems(self.problems),
            gateways: self.routers.into_iter().map(|(router, _)| router).collect(),
            faults: self.faults,
        }
    }
}
