//! Certificates, keys and revocation lists: where they come from, and whether Envoy would take them.
//!
//! ```text
//! PolicyTable ──SecretRequest::of──► SecretRequest ──Store::load──► Material, or what is Missing
//! ```
//!
//! A [`SecretRequest`](egress_render::xds::SecretRequest) is what a rule asks for under a name. A [`Store`] knows the
//! places where it may be. These are the files that rules name, folders with a subfolder for each credential, and the
//! Secrets among the rules. [`Store::load`] returns PEM that Envoy takes. It refuses a pair of which only one half has
//! been replaced.
//!
//! What [`Store::load`] does not do: it judges no dates and no signers, because a certificate may expire while it is in
//! use. For `egressctl check`, [`inspect()`] reads in the same way and judges them, and [`connect()`] asks the servers.

#![forbid(unsafe_code)]

mod connect;
mod file;
mod files;
mod holder;
mod inspect;
mod judge;
mod material;
mod pair;
mod part;
mod pem;
mod store;
mod trust_store;

pub use connect::connect;
pub use file::folders_on_the_way;
pub use inspect::inspect;
pub use material::{Key, Material};
pub use part::Missing;
pub use store::Store;
pub use trust_store::trust_store;

#[cfg(test)]
mod tests;
