//! The harness that proves the product on a real Envoy, shared by the tests and by the demo.
//!
//! It has the three parties of a request, each of which can say what it saw:
//!
//! - the application, [`probe`]: plain HTTP, HTTPS of its own, and bytes that no client would send;
//! - the proxy: [`egressctl`] runs the product, [`envoy`] runs Envoy on a bootstrap written by hand;
//! - the web site, [`stand_in`]: redirects over HTTP and answers over HTTPS, with certificates from
//!   a throw-away [`pki`]. Beside it a [`silent_port`] hears whatever was sent without TLS, and
//!   [`dns`] leads names to the test machine. [`nginx`] is the site of the page's second half, with
//!   certificates made by the page's [`openssl`] commands. For what is not HTTP there are a real [`redis`] and a
//!   [`tls_server`] that answers bytes with bytes. [`tinyproxy`] is a company's proxy, and [`connect_proxy`] one
//!   that speaks TLS and takes POST. [`old_server`] speaks TLS as it was.
//!
//! [`scripted`] is a server of which a test writes each answer, and [`modern_site`] a script as sites are today.
//!
//! [`frames`] is HTTP/2 that no client and no server would speak.
//!
//! [`istiod`] makes of rules and patches what a live one was seen to make.
//!
//! Everything lives on 127.0.0.1, on ports that the kernel chose, or in a network of its own ([`netns`]), and ends when its value is
//! dropped. Nothing here knows a rule of the engine: a harness that did could only agree with it.
//!
//! # Examples
//!
//! ```
//! use egress_integration::{pki::{Ca, Leaf}, probe, stand_in::{StandIn, StandInConfig}};
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! let ca = Ca::new("test CA")?;
//! let certificate = ca.issue(&Leaf::for_names(["edition.cnn.com"]))?;
//! let site = StandIn::start(StandInConfig::new(certificate)).await?;
//!
//! let host = "edition.cnn.com";
//! let tls = probe::get_tls(site.tls_addr(), host, host, "/politics", &ca.pem()).await?;
//! assert_eq!(tls.answer.status, 200);
//! for seen in site.seen() {
//!     println!("{seen}");
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod connect_proxy;
pub mod dns;
pub mod egressctl;
pub mod envoy;
pub mod frames;
pub mod istiod;
pub mod modern_site;
pub mod netns;
pub mod nginx;
pub mod old_server;
pub mod openssl;
pub mod pki;
pub mod probe;
pub mod redis;
pub mod scripted;
pub mod silent_port;
pub mod stand_in;
pub mod tinyproxy;
pub mod tls_server;

mod child;
mod tls;
mod workspace;
