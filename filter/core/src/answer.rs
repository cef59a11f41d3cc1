//! Repair: what a server says to a client that speaks TLS, for an application that speaks plain HTTP.
//!
//! A URL of an origin that the table would originate becomes the one by which the application reaches it. A cookie can
//! lose what makes it useless over plain HTTP. Nothing else of an answer changes, and no part of a request is written into
//! it but the number of a port.

mod cookie;
mod csp;
mod url;

use std::borrow::Cow;

use egress_policy::{Authority, Note, Notes, PolicyTable, PortNumber, Reach, words};

use crate::text::itoa;

pub use url::Redirect;

/// What is repaired of hosts whose rules say nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Repair {
    /// Nothing.
    None,
    /// What is safe for every client.
    #[default]
    Default,
    /// What only some clients need, too.
    All,
}

words! {
    /// The words that the configuration uses.
    Repair {
        None "NONE",
        Default "DEFAULT",
        All "ALL",
    }
}

/// What is repaired in answers of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repairs {
    /// URLs in `Location`, `Content-Location` and `Refresh`.
    pub urls: bool,
    /// URLs in `Link`.
    pub links: bool,
    /// Cookies.
    pub cookies: bool,
    /// Cookies whose names say that they are for TLS alone.
    pub prefixed: bool,
    /// `Strict-Transport-Security` and `Alt-Svc` are removed.
    pub hints: bool,
    /// What tells so in `Content-Security-Policy` is removed.
    pub csp: bool,
}

impl Repairs {
    /// Returns what is repaired of a host, as `repair` and what its rule says.
    pub fn of(repair: Repair, notes: Notes) -> Self {
        let (default, all) = (repair != Repair::None, repair == Repair::All);
        let urls = !notes.say(Note::RedirectsKeep);
        let links = urls && (all || notes.say(Note::RedirectsLink));
        let cookies = !notes.say(Note::CookiesKeep);
        let prefixed = cookies && (all || notes.say(Note::CookiesPrefixed));
        let hints = !notes.say(Note::HintsKeep);
        let csp = hints && (all || notes.say(Note::HintsCsp));
        Repairs {
            urls: urls && (default || links || notes.say(Note::RedirectsRewrite)),
            links,
            cookies: cookies && (default || prefixed || notes.say(Note::CookiesRepair)),
            prefixed,
            hints: hints && (default || csp || notes.say(Note::HintsRemove)),
            csp,
        }
    }

    /// Whether anything is repaired.
    pub fn any(self) -> bool {
        self.look() || self.hints
    }

    /// Whether the filter has to look at answers. `Strict-Transport-Security` and `Alt-Svc` are removed by routes.
    pub fn look(self) -> bool {
        self.urls || self.links || self.cookies || self.csp
    }
}

/// A response header that may need repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repairable {
    /// `Location`.
    Location,
    /// `Content-Location`.
    ContentLocation,
    /// `Refresh`.
    Refresh,
    /// `Link`.
    Link,
    /// `Set-Cookie`.
    Cookie,
    /// `Content-Security-Policy`.
    Csp,
}

/// The lines of an answer that may need repair, in the order in which they came.
pub type Lines = Vec<(Repairable, Vec<u8>)>;

/// All headers that may need repair, with their names.
pub const REPAIRABLE: [(Repairable, &str); 6] = [
    (Repairable::Location, "location"),
    (Repairable::ContentLocation, "content-location"),
    (Repairable::Refresh, "refresh"),
    (Repairable::Link, "link"),
    (Repairable::Cookie, "set-cookie"),
    (Repairable::Csp, "content-security-policy"),
];

impl Repairable {
    /// Returns which header a name is, as Envoy writes it: in lower case.
    pub fn of(name: &[u8]) -> Option<Self> {
        let mut all = REPAIRABLE.iter();
        all.find(|(_, known)| known.as_bytes() == name)
            .map(|(header, _)| *header)
    }

    fn word(self) -> &'static str {
        match self {
            Repairable::Location => "location",
            Repairable::ContentLocation => "content-location",
            Repairable::Refresh => "refresh",
            Repairable::Link => "link",
            Repairable::Cookie => "cookie",
            Repairable::Csp => "csp",
        }
    }
}

/// Why a cookie kept what makes it useless over plain HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CookieKept {
    /// It could leave in plaintext.
    PlaintextPort,
    /// Its name says that it is for TLS alone.
    Prefix,
}

impl CookieKept {
    /// The word of the log.
    pub fn as_str(self) -> &'static str {
        match self {
            CookieKept::PlaintextPort => "kept:plaintext_port",
            CookieKept::Prefix => "kept:prefix",
        }
    }
}

/// How the request came whose answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// The host that the application asked for, normalised.
    pub host: &'a str,
    /// The service port.
    pub port: PortNumber,
    /// The port that the application wrote, if it did.
    pub written: Option<PortNumber>,
    /// The ports that applications dial in place of service ports.
    pub mapped: &'a [(PortNumber, PortNumber)],
}

impl Arrival<'_> {
    /// Returns the port that the application has to write to reach a service port; `None` is that of plain HTTP.
    fn written_for(&self, port: PortNumber) -> Option<PortNumber> {
        if port == self.port {
            return self.written;
        }
        let of = |port: PortNumber| {
            let mut mapped = self.mapped.iter();
            mapped.find(|(service, _)| *service == port)
        };
        // Whoever wrote the service port dials service ports.
        let maps = of(self.port).is_none_or(|(_, own)| Some(*own) == self.written);
        let number = of(port)
            .filter(|_| maps)
            .map_or(port, |(_, mapped)| *mapped);
        Some(number).filter(|number| *number != PortNumber::HTTP)
    }
}

/// Repairs the headers of one answer, and notes what it did.
#[derive(Debug)]
pub struct Answer<'a> {
    table: &'a PolicyTable,
    repairs: Repairs,
    arrival: Arrival<'a>,
    /// Hosts that no rule has may be reached in plaintext.
    others_are_let_out: bool,
    /// Whether cookies of a domain could leave in plaintext, of the domains that were asked for.
    domains: Vec<(String, bool)>,
    noted: Noted,
}

/// What was done to an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// The headers that changed.
    pub repaired: Vec<Repairable>,
    /// What became of its URL, if that was not simply repaired.
    pub redirect: Option<Redirect>,
    /// Why a cookie stayed as it was.
    pub cookies: Option<CookieKept>,
}

impl Noted {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.repaired.is_empty() && self.redirect.is_none() && self.cookies.is_none()
    }

    /// Returns the words for what was repaired, separated by commas.
    pub fn words(&self) -> String {
        let mut all = String::new();
        for header in &self.repaired {
            all.push_str(if all.is_empty() { "" } else { "," });
            all.push_str(header.word());
        }
        all
    }
}

impl<'a> Answer<'a> {
    /// Begins with nothing repaired. `foreign` says that hosts that no rule has are somebody else's to decide about.
    pub fn new(
        table: &'a PolicyTable,
        repairs: Repairs,
        arrival: Arrival<'a>,
        foreign: bool,
    ) -> Self {
        Answer {
            table,
            repairs,
            arrival,
            others_are_let_out: foreign,
            domains: Vec::new(),
            noted: Noted::default(),
        }
    }

    /// Returns what was done.
    pub fn noted(self) -> Noted {
        self.noted
    }

    /// Repairs all lines of a header. `None` leaves them as they are.
    pub fn repair<'l>(
        &mut self,
        header: Repairable,
        lines: &[&'l [u8]],
    ) -> Option<Vec<Cow<'l, [u8]>>> {
        let wanted = match header {
            Repairable::Location | Repairable::ContentLocation | Repairable::Refresh => {
                // Of several no two clients take the same.
                self.repairs.urls && lines.len() == 1
            }
            Repairable::Link => self.repairs.links,
            Repairable::Cookie => self.repairs.cookies,
            Repairable::Csp => self.repairs.csp,
        };
        if !wanted {
            return None;
        }
        let (mut changed, mut all) = (false, Vec::with_capacity(lines.len()));
        for line in lines {
            let (drops, repaired) = match header {
                Repairable::Location | Repairable::ContentLocation => (false, self.url(line)),
                Repairable::Refresh => (false, self.within(line, url::of_refresh)),
                Repairable::Link => (false, self.within(line, url::next_of_link)),
                Repairable::Cookie => (false, self.cookie(line)),
                Repairable::Csp => (true, csp::without_upgrades(line)),
            };
            changed |= repaired.is_some();
            match repaired {
                Some(repaired) if drops && repaired.is_empty() => {}
                Some(repaired) => all.push(Cow::Owned(repaired)),
                None => all.push(Cow::Borrowed(*line)),
            }
        }
        if changed {
            self.noted.repaired.push(header);
        }
        changed.then_some(all)
    }

    /// Returns a URL with scheme and port by which the application reaches it, if it is to change.
    fn url(&mut self, url: &[u8]) -> Option<Vec<u8>> {
        let https = match url::parse(url) {
            url::Parsed::Other => return None,
            url::Parsed::Kept(why) => {
                self.note(why);
                return None;
            }
            url::Parsed::Https(https) => https,
        };
        let first = Some(self.arrival.port);
        let reach = Authority::parse(https.host)
            .map(|authority| self.table.reach(&authority.host, https.port, first));
        let kept = match reach {
            Ok(Reach::Plain(port)) => return self.written(url, &https, port),
            Ok(Reach::Passthrough) => Redirect::Passthrough,
            Ok(Reach::UnknownHost) => Redirect::Leaves,
            Ok(Reach::OtherPort) => Redirect::OtherPort,
            Err(_) => Redirect::Malformed,
        };
        if https.names_scheme {
            self.note(kept);
        }
        None
    }

    /// Writes a URL as the application has to write it, where that is something else.
    fn written(&self, url: &[u8], https: &url::Https<'_>, port: PortNumber) -> Option<Vec<u8>> {
        let mut repaired = Vec::with_capacity(url.len() + 6);
        // What names no scheme takes that of the page.
        repaired.extend_from_slice(if https.names_scheme {
            b"http://"
        } else {
            b"//"
        });
        repaired.extend_from_slice(https.host.as_bytes());
        if let Some(port) = self.arrival.written_for(port) {
            repaired.push(b':');
            repaired.extend_from_slice(itoa(port.get(), &mut [0; 5]).as_bytes());
        }
        repaired.extend_from_slice(https.rest);
        (repaired != url).then_some(repaired)
    }

    /// Repairs the URLs that stand in a line. `next` says where the next one is, from a place on.
    fn within(
        &mut self,
        line: &[u8],
        next: impl Fn(&[u8], usize) -> Option<(usize, usize)>,
    ) -> Option<Vec<u8>> {
        let (mut repaired, mut changed, mut at) = (Vec::new(), false, 0);
        while let Some((start, end)) = next(line, at) {
            repaired.extend_from_slice(line.get(at..start)?);
            let url = line.get(start..end)?;
            let new = self.url(url);
            changed |= new.is_some();
            repaired.extend_from_slice(new.as_deref().unwrap_or(url));
            at = end;
        }
        repaired.extend_from_slice(line.get(at..)?);
        changed.then_some(repaired)
    }

    fn cookie(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        let cookie = cookie::parse(line)?;
        if cookie.is_prefixed() && !self.repairs.prefixed {
            self.noted.cookies.get_or_insert(CookieKept::Prefix);
            return None;
        }
        let domain = match cookie.domain {
            None => None,
            Some(domain) => Some(self.own_domain(domain)?),
        };
        if self.leaves_in_plaintext(domain.as_deref()) {
            self.noted.cookies = Some(CookieKept::PlaintextPort);
            return None;
        }
        Some(cookie.without_secure())
    }

    /// Returns a domain as hosts compare, if the host has it: clients take no cookie for another. So there are few.
    fn own_domain(&self, domain: &[u8]) -> Option<String> {
        let domain = std::str::from_utf8(domain).ok()?.to_ascii_lowercase();
        let before = self.arrival.host.strip_suffix(domain.as_str())?;
        (before.is_empty() || before.ends_with('.')).then_some(domain)
    }

    /// Whether a cookie of the host, or of a domain, could leave in plaintext. Cookies do not know ports.
    fn leaves_in_plaintext(&mut self, domain: Option<&str>) -> bool {
        if self.others_are_let_out {
            return true;
        }
        let host = self.arrival.host;
        let Some(domain) = domain else {
            return self.table.forwards(host);
        };
        let mut known = self.domains.iter();
        if let Some((_, leaves)) = known.find(|(it, _)| it == domain) {
            return *leaves;
        }
        let leaves = self.table.forwards_below(domain) || self.table.forwards(host);
        self.domains.push((domain.to_owned(), leaves));
        leaves
    }

    fn note(&mut self, redirect: Redirect) {
        self.noted.redirect.get_or_insert(redirect);
    }
}

#[cfg(test)]
mod tests;
