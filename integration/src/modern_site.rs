//! A site as sites are today, behind TLS: it leads everybody to `https://`, its cookies are for TLS alone, and it tells
//! browsers never to speak plain HTTP again. Applications that speak nothing else have to live with that.

use std::path::{Component, Path, PathBuf};

use crate::scripted::{Asked, Reply};

/// What every answer says beside what it is about.
const ALWAYS: &str = "Strict-Transport-Security: max-age=63072000; includeSubDomains; preload\r\n\
    Alt-Svc: h3=\":443\"; ma=86400\r\n\
    Content-Security-Policy: default-src 'self'; upgrade-insecure-requests\r\n";

/// A script for [`Scripted`](crate::scripted::Scripted).
///
/// | path | answer |
/// |---|---|
/// | `/moved` | 301 to `https://HOST/` |
/// | `/to?URL` | 302 to the URL |
/// | `/login` | a session, in cookies for TLS alone, and 302 to `https://HOST/account` |
/// | `/account` | `welcome` to those with the session; others go to `https://HOST/login` |
/// | a file of the folder | its bytes, and 404 beside it |
/// | any other | `METHOD PATH` |
///
/// Who says in `X-Forwarded-Proto` that the request came over plain HTTP is sent to `https://`, whatever the path.
#[derive(Clone, Debug, Default)]
pub struct ModernSite {
    /// Files to serve.
    pub folder: Option<PathBuf>,
}

impl ModernSite {
    /// Answers a request.
    pub fn answer(&self, asked: &Asked) -> Reply {
        let host = asked.header("host").unwrap_or_default();
        let path = asked.path();
        let to = |path: &str| format!("https://{host}{path}");
        if asked.header("x-forwarded-proto") != Some("https") {
            return redirect(asked, 301, &to(path), "");
        }
        if let Some((_, url)) = path.split_once("/to?") {
            return redirect(asked, 302, url, "");
        }
        match path {
            "/moved" => redirect(asked, 301, &to("/"), ""),
            "/login" => {
                let session = "Set-Cookie: sid=1234; Path=/; Secure; HttpOnly\r\n\
                    Set-Cookie: theme=dark; Path=/; SameSite=None; Secure\r\n";
                redirect(asked, 302, &to("/account"), session)
            }
            "/account" => match has_session(asked) {
                true => whole(asked, 200, "", "welcome\n"),
                false => redirect(asked, 302, &to("/login"), ""),
            },
            _ => match self.file(path) {
                Some(Some(bytes)) => Reply::File(bytes),
                Some(None) => whole(asked, 404, "", "nothing there\n"),
                None => whole(asked, 200, "", &format!("{} {path}\n", asked.method())),
            },
        }
    }

    /// Returns the file below a folder of ours, if there is one; `None` for other paths.
    fn file(&self, path: &str) -> Option<Option<Vec<u8>>> {
        let path = path.split('?').next()?.trim_start_matches('/');
        let mut parts = Path::new(path).components();
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        let first = parts.clone().next().filter(|_| parts.all(inside))?;
        let folder = self.folder.as_ref()?;
        let ours = folder.join(first).exists();
        ours.then(|| std::fs::read(folder.join(path)).ok())
    }
}

fn has_session(asked: &Asked) -> bool {
    let cookies = asked.header("cookie").unwrap_or_default();
    cookies.split(';').any(|it| it.trim() == "sid=1234")
}

fn redirect(asked: &Asked, status: u16, to: &str, more: &str) -> Reply {
    let headers = format!("Location: {to}\r\n{more}");
    whole(asked, status, &headers, "over there\n")
}

fn whole(asked: &Asked, status: u16, headers: &str, text: &str) -> Reply {
    let length = text.len();
    let body = if asked.method() == "HEAD" { "" } else { text };
    Reply::Whole(format!(
        "HTTP/1.1 {status} Modern\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n{ALWAYS}{headers}\r\n{body}"
    ))
}
