//! Rules as they are deployed, and how to read them again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use egress_render::xds::{Admin, Options, SecretRequest, Secrets};
use egress_rules::yaml::AlreadyRead;
use egress_rules::{Complaint, Nothing, Refusal, Rules, Source};

use super::folder::{ADMIN_SOCKET, DISCOVERY_SOCKET};
use super::{filter_file, resolver};
use egress_credentials::Store;

/// All that rendering needs.
#[derive(Debug)]
pub struct Deployment {
    /// The rules, compiled.
    pub rules: Rules,
    /// How to render them.
    pub options: Options,
    /// The version of Envoy they are rendered for, for people.
    pub version: String,
    /// Where the certificates come from that they need.
    pub store: Store,
}

impl Deployment {
    /// Returns all secrets that Envoy will ask for, one for each name, in the order of the names.
    pub fn needs(&self) -> Vec<SecretRequest> {
        let tables = std::iter::once(&self.rules.table).chain(&self.options.workloads);
        let needs: BTreeMap<String, SecretRequest> = tables
            .flat_map(SecretRequest::of)
            .map(|need| (need.name(), need))
            .collect();
        needs.into_values().collect()
    }

    /// Puts what Envoy is told of this run in the options: where in its folder things are, and what of it listens.
    ///
    /// # Errors
    /// When the filter cannot be put there.
    pub(super) fn place(
        &mut self,
        folder: &Path,
        reloads: bool,
        guarded_dns: Option<SocketAddr>,
    ) -> Result<(), Complaint> {
        let options = &mut self.options;
        options.filter = filter_file::keep(folder, &options.filter)
            .map_err(|error| Complaint::us(error.to_string()))?;
        options.guarded_dns = guarded_dns;
        options.ipv6 = resolver::reaches_ipv6();
        if let Admin::Pipe(path) = &mut options.admin {
            *path = folder.join(ADMIN_SOCKET).display().to_string();
        }
        let socket = folder.join(DISCOVERY_SOCKET);
        options.secrets = Secrets::Served(socket.display().to_string());
        options.reloads = reloads;
        Ok(())
    }
}

/// How rules are read and compiled again. Whoever starts a run knows that; the run does not.
pub trait Recompile: Send + Sync {
    /// Returns the folders in which something changes when [`Recompile::read`] would read something else.
    fn folders(&self) -> BTreeSet<PathBuf>;

    /// Returns a text that is another one when the file of the filter is.
    fn filter(&self) -> String;

    /// Reads the rules as they are now.
    ///
    /// # Errors
    /// When a file cannot be read.
    fn read(&self) -> Result<Vec<Source>, Complaint>;

    /// Compiles what was read. `known` is what was read before, and becomes what was read now.
    ///
    /// # Errors
    /// With everything that is wrong with the rules, or what else is.
    fn compile(
        &self,
        sources: &[Source],
        nothing: Nothing,
        known: &mut AlreadyRead,
    ) -> Result<Deployment, Refusal>;
}
