//! The URL of the proxy that all connections go through.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use egress_policy::HostName;
use http::Uri;
use percent_encoding::percent_decode_str;

/// A proxy as its URL names it: `http://user:password@proxy.example.com:3128`.
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamProxy {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// What stands in `Proxy-Authorization`.
    pub(super) authorization: Option<String>,
}

/// Who reads it in a log reads no password.
impl fmt::Debug for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// Why a text names no proxy. It never shows the text, which may have a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProxy {
    /// Not of the form.
    #[error("write it as http://HOST:PORT, http://USER:PASSWORD@HOST:PORT or https://HOST:PORT")]
    Form,
    /// A URL that says more than where a proxy is.
    #[error("a proxy's URL has no path and no query")]
    Path,
    /// The host is no host.
    #[error("its host is not a host name or address")]
    Host,
}

impl FromStr for UpstreamProxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let uri: Uri = text.parse().map_err(|_| InvalidProxy::Form)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(InvalidProxy::Form),
        };
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(InvalidProxy::Path);
        }
        let authority = uri.authority().ok_or(InvalidProxy::Form)?;
        let port = authority.port_u16().filter(|port| *port != 0);
        let host = authority.host();
        let address = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        let host = match address.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => HostName::dns(host)
                .map_err(|_| InvalidProxy::Host)?
                .as_str()
                .to_owned(),
        };
        let user = authority.as_str().rsplit_once('@').map(|(user, _)| user);
        Ok(UpstreamProxy {
            tls,
            host,
            port: port.ok_or(InvalidProxy::Form)?,
            authorization: user.map(|user| basic(&of_url(user))),
        })
    }
}

impl UpstreamProxy {
    /// Gives it the user and password that a file has: `user:password`, as they are.
    ///
    /// # Errors
    /// When the URL has others, or the text has no such form. Neither is shown.
    pub fn log_in(&mut self, text: &str) -> Result<(), InvalidLogin> {
        if self.authorization.is_some() {
            return Err(InvalidLogin::Twice);
        }
        if !text.contains(':') || text.chars().any(char::is_control) {
            return Err(InvalidLogin::Form);
        }
        self.authorization = Some(basic(text.as_bytes()));
        Ok(())
    }
}

/// Why a text does not log in to a proxy. It never shows the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLogin {
    /// The URL has a user already.
    #[error("the URL has a user and password too; leave them out there")]
    Twice,
    /// Not of the form.
    #[error("write one line, USER:PASSWORD")]
    Form,
}

/// Writes `user:password` as a URL has it.
fn of_url(user: &str) -> Vec<u8> {
    let mut plain: Vec<u8> = percent_decode_str(user).collect();
    if !user.contains(':') {
        plain.push(b':');
    }
    plain
}

/// Writes the value of `Proxy-Authorization`.
///
/// Source: RFC 7617, 2.
fn basic(plain: &[u8]) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_from_its_url() {
        let proxy: UpstreamProxy = "http://us%40er:p%3Aw@Proxy.example.com:3128/"
            .parse()
            .unwrap();
        assert_eq!(proxy.host, "proxy.example.com");
        assert_eq!((proxy.port, proxy.tls), (3128, false));
        // `us@er:p:w`
        let authorization = proxy.authorization.as_deref();
        assert_eq!(authorization, Some("Basic dXNAZXI6cDp3"));
        assert_eq!(format!("{proxy:?}"), "http://proxy.example.com:3128");

        let proxy: UpstreamProxy = "https://[::1]:3129".parse().unwrap();
        assert_eq!(
            (proxy.host.as_str(), proxy.port, proxy.tls),
            ("::1", 3129, true)
        );
        assert_eq!(proxy.authorization, None);
    }

    #[test]
    fn a_login_is_read_from_one_line() {
        let mut proxy: UpstreamProxy = "http://proxy:3128".parse().unwrap();
        assert_eq!(proxy.log_in("user"), Err(InvalidLogin::Form));
        assert_eq!(proxy.log_in("user:pass\nword"), Err(InvalidLogin::Form));
        proxy.log_in("us%40er:p:w").unwrap();
        // `us%40er:p:w`
        let authorization = proxy.authorization.as_deref();
        assert_eq!(authorization, Some("Basic dXMlNDBlcjpwOnc="));
        assert_eq!(proxy.log_in("user:other"), Err(InvalidLogin::Twice));
    }

    #[test]
    fn what_names_no_proxy_is_refused_without_its_password() {
        for text in [
            "",
            "proxy:3128",
            "http://proxy",
            "http://proxy:0",
            "socks5://proxy:1080",
            "http://user:secret@pro xy:1",
            "http://user:secret@:3128",
            "http://user:secret@proxy:3128/path",
            "http://user:secret@-:3128",
        ] {
            let error = text.parse::<UpstreamProxy>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{text}: {error}");
        }
    }
}
