//! Envoy's admin interface, as far as we ask it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use egress_render::xds::{
    Admin, CAPTURE, CAPTURED, FORWARD_PROXY, FORWARD_PROXY_WITHIN, UPSTREAM_PROXY,
};

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Where an Envoy listens.
#[derive(Debug)]
pub struct Addresses {
    /// Service port and address, in the order of the ports.
    pub listeners: Vec<(u16, String)>,
    /// Host, service port and address of each TCP service that has an address of its own.
    pub vips: Vec<(String, u16, SocketAddr)>,
    /// Where the forward proxy is, if there is one.
    pub forward_proxy: Option<String>,
    /// Where redirected connections come in, if they do.
    pub capture: Option<String>,
    /// Where probes and Prometheus ask, if they may.
    pub status: Option<SocketAddr>,
    /// The form of the filter: `wasm` or `module`.
    pub filter: &'static str,
    /// The admin interface: an address, or the path of a socket.
    pub admin: String,
}

/// Returns where Envoy listens, once it is ready to take requests. `written` is the file into which
/// Envoy writes the address of an admin interface whose port the kernel chose.
pub(super) async fn listening(admin: &Admin, written: &Path) -> Option<Addresses> {
    let admin = &found(admin, written)?;
    let (status, _) = get(admin, "/ready").await?;
    if status != 200 {
        return None;
    }
    let (_, body) = get(admin, "/listeners?format=json").await?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    let (mut listeners, mut vips) = (Vec::new(), Vec::new());
    let (mut forward_proxy, mut capture) = (None, None);
    for listener in body.get("listener_statuses")?.as_array()? {
        let name = listener.get("name")?.as_str()?;
        // Nobody connects to these.
        if [UPSTREAM_PROXY, FORWARD_PROXY_WITHIN].contains(&name) || name.starts_with(CAPTURED) {
            continue;
        }
        let address = listener.get("local_address")?.get("socket_address")?;
        let number = address.get("port_value")?.as_u64()?;
        let ip: std::net::IpAddr = address.get("address")?.as_str()?.parse().ok()?;
        let number = u16::try_from(number).ok().filter(|number| *number != 0)?;
        let address = SocketAddr::new(ip, number);
        if name == FORWARD_PROXY {
            forward_proxy = Some(address.to_string());
            continue;
        }
        if name == CAPTURE {
            capture = Some(address.to_string());
            continue;
        }
        let name = name.strip_prefix("outbound_")?;
        match name.split_once('_') {
            Some((port, host)) => vips.push((host.to_owned(), port.parse().ok()?, address)),
            None => listeners.push((name.parse().ok()?, address.to_string())),
        }
    }
    listeners.sort();
    vips.sort();
    let admin = match admin {
        Admin::Tcp(address, port) => SocketAddr::new(address.parse().ok()?, *port).to_string(),
        Admin::Pipe(path) => path.clone(),
    };
    Some(Addresses {
        listeners,
        vips,
        forward_proxy,
        capture,
        status: None,
        filter: "",
        admin,
    })
}

/// Returns the admin interface as it can be reached.
fn found(admin: &Admin, written: &Path) -> Option<Admin> {
    Some(match admin {
        Admin::Tcp(_, 0) => {
            let address: SocketAddr = std::fs::read_to_string(written).ok()?.trim().parse().ok()?;
            Admin::Tcp(address.ip().to_string(), address.port())
        }
        admin => admin.clone(),
    })
}

/// Where an Envoy is with the clusters or the listeners that it reads from a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// The version that it took last, as it was written; empty before the first.
    pub(super) version: String,
    /// How often it refused one.
    pub(super) refused: u64,
    /// How many are not in use yet.
    pub(super) warming: u64,
}

/// Asks what Envoy has taken: of the clusters, then of the listeners.
pub(super) async fn taken(admin: &Admin, written: &Path) -> Option<(Taken, Taken)> {
    let admin = found(admin, written)?;
    let path = "/stats?format=json&filter=%5E(cluster_manager%5C.(cds%5C.%7Cwarming)%7Clistener_manager%5C.(lds%5C.%7Ctotal_listeners_warming))";
    let (_, body) = get(&admin, path).await?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    let stats = body.get("stats")?.as_array()?;
    let stat = |name: &str| {
        let named = |stat: &&Value| stat.get("name").and_then(Value::as_str) == Some(name);
        stats.iter().find(named)?.get("value")
    };
    let taken = |prefix: &str, warming: &str| Taken {
        version: stat(&format!("{prefix}.version_text"))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        refused: stat(&format!("{prefix}.update_rejected"))
            .and_then(Value::as_u64)
            .unwrap_or_default(),
        warming: stat(warming).and_then(Value::as_u64).unwrap_or_default(),
    };
    Some((
        taken("cluster_manager.cds", "cluster_manager.warming_clusters"),
        taken(
            "listener_manager.lds",
            "listener_manager.total_listeners_warming",
        ),
    ))
}

/// Returns how many requests and TCP connections Envoy serves at this moment.
pub(super) async fn active(admin: &Admin, written: &Path) -> Option<u64> {
    let admin = found(admin, written)?;
    let path = "/stats?format=json&filter=%5C.downstream_(rq%7Ccx)_active$";
    let (_, body) = get(&admin, path).await?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    let stats = body.get("stats")?.as_array()?;
    Some(served(stats.iter().filter_map(|stat| {
        Some((stat.get("name")?.as_str()?, stat.get("value")?.as_u64()?))
    })))
}

/// Adds up what is served: requests, and connections on which no HTTP is spoken. Envoy counts the latter with all
/// others only. What asks the admin interface does not count.
fn served<'s>(stats: impl Iterator<Item = (&'s str, u64)>) -> u64 {
    let (mut requests, mut http, mut all) = (0, 0, 0);
    for (name, value) in stats {
        match name.split_once('.') {
            Some(("http", rest)) if !rest.starts_with("admin.") => {
                match rest.ends_with("rq_active") {
                    true => requests += value,
                    false => http += value,
                }
            }
            Some(("listener", rest))
                if !rest.starts_with("admin.") && !rest.contains(".worker_") =>
            {
                all += value;
            }
            _ => {}
        }
    }
    requests + u64::saturating_sub(all, http)
}

/// Asks Envoy something, wherever its admin interface is.
pub(super) async fn asked(admin: &Admin, written: &Path, path: &str) -> Option<(u16, Bytes)> {
    get(&found(admin, written)?, path).await
}

/// Tells Envoy to do something; returns whether it did.
pub(super) async fn post(admin: &Admin, written: &Path, path: &str) -> bool {
    let Some(admin) = found(admin, written) else {
        return false;
    };
    let answer = ask_at(&admin, Method::POST, path).await;
    matches!(answer, Some((200, _)))
}

/// Asks once, for commands that do nothing else meanwhile; `None` when there is no good answer.
pub fn get_once(admin: &Admin, path: &str) -> Option<Bytes> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let (status, body) = runtime.block_on(get(admin, path))?;
    (status == 200).then_some(body)
}

async fn get(admin: &Admin, path: &str) -> Option<(u16, Bytes)> {
    ask_at(admin, Method::GET, path).await
}

async fn ask_at(admin: &Admin, method: Method, path: &str) -> Option<(u16, Bytes)> {
    let answer = async {
        match admin {
            Admin::Pipe(socket) => {
                let stream = UnixStream::connect(socket).await.ok()?;
                ask(stream, method, path).await
            }
            Admin::Tcp(address, port) => {
                let stream = TcpStream::connect((address.as_str(), *port)).await.ok()?;
                ask(stream, method, path).await
            }
        }
    };
    timeout(LIMIT, answer).await.ok()?
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    method: Method,
    path: &str,
) -> Option<(u16, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .ok()?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "admin")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let response = sender.send_request(request).await.ok()?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    connection.abort();
    Some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_connections_without_http_are_served() {
        let served = |stats: &[(&'static str, u64)]| served(stats.iter().copied());
        let idle = [
            ("http.admin.downstream_cx_active", 1),
            ("http.admin.downstream_rq_active", 1),
            ("listener.admin.downstream_cx_active", 1),
            ("http.outbound_80.downstream_cx_active", 3),
            ("http.outbound_80.downstream_rq_active", 0),
            ("listener.127.0.0.1_80.downstream_cx_active", 3),
            ("listener.127.0.0.1_80.worker_0.downstream_cx_active", 3),
        ];
        assert_eq!(served(&idle), 0);
        let tcp = ("listener.127.0.0.1_6379.downstream_cx_active", 2);
        let requests = ("http.outbound_8080.downstream_rq_active", 4);
        assert_eq!(served(&[&idle[..], &[tcp, requests]].concat()), 6);
    }
}
