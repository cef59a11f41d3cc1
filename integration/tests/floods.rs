//! More than a proxy can carry: connections, descriptors, slow and large heads. It refuses what is too much, and serves
//! the others. And what servers may not say to applications.

mod common;

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use egress_integration::{
    egressctl::{self, Builder, Running},
    pki::Leaf,
    probe,
    scripted::{Asked, Reply, Scripted},
};

use common::{HOST, SIMPLE, SOON, Trusted, entry, eventually, request, route, rule};

/// Longer than a client may take for the head of a request.
const HEAD: Duration = Duration::from_secs(60);

async fn server(
    trusted: &Trusted,
    script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> Result<Scripted> {
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    Scripted::start(&certificate, ([127, 0, 0, 1], 0).into(), script).await
}

fn answers(_: &Asked) -> Reply {
    Reply::Answer(200, "here\n".to_owned())
}

fn run(trusted: &Trusted, server: &Scripted) -> Builder {
    let rules = entry(HOST, 443) + &rule(HOST, SIMPLE);
    trusted
        .egressctl(&rules)
        .port(80, 0)
        .connect_to(&route(HOST, 443, server.addr()))
}

/// Asks on a connection that stays open; fails where it is closed.
async fn ask(stream: &mut TcpStream) -> Result<()> {
    let host = format!("Host: {HOST}");
    let lines = request(&["GET / HTTP/1.1", &host]);
    stream.write_all(lines.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"here\n") {
        let byte = timeout(SOON, stream.read_u8()).await?;
        answer.push(byte.context("the connection is closed")?);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"));
    Ok(())
}

async fn is_served(at: SocketAddr) -> Result<bool> {
    let answer = probe::get(at, HOST, "/").await;
    Ok(answer.is_ok_and(|answer| answer.status == 200))
}

/// Opens so many connections that ask for nothing.
async fn idle(at: SocketAddr, many: usize) -> Result<Vec<TcpStream>> {
    let mut all = Vec::new();
    for _ in 0..many {
        all.push(timeout(SOON, TcpStream::connect(at)).await??);
    }
    Ok(all)
}

/// One client is served on while others take all there is; when they leave, new ones are.
async fn survives(proxy: &Running, many: usize) -> Result<()> {
    let at = proxy.listener(80)?;
    let mut first = TcpStream::connect(at).await?;
    ask(&mut first).await?;
    let others = idle(at, many).await?;
    eventually("new connections are refused", async || {
        Ok(!is_served(at).await?)
    })
    .await?;
    ask(&mut first).await?;
    drop(others);
    eventually("new connections are served again", async || {
        is_served(at).await
    })
    .await?;
    ask(&mut first).await
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_others_go_on() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, answers).await?;
    let proxy = run(&trusted, &server).arg("--max-connections").arg("20");
    survives(&proxy.start().await?, 60).await
}

#[tokio::test]
async fn few_descriptors_are_a_limit_of_connections_and_no_spinning() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, answers).await?;
    let program = egressctl::binary()?;
    let text = format!(
        "#!/bin/sh\nulimit -n 300\nexec '{}' \"$@\"\n",
        program.display()
    );
    let limited = trusted.file("limited", &text)?;
    std::fs::set_permissions(&limited, std::fs::Permissions::from_mode(0o700))?;
    let proxy = run(&trusted, &server).binary(limited).start().await?;
    survives(&proxy, 400).await?;
    let stats = proxy
        .admin_get("/stats?filter=downstream_global_cx_overflow")
        .await?;
    let mut counts = stats.body.lines().filter(|line| !line.contains(".admin."));
    ensure!(counts.any(|line| !line.ends_with(": 0")), "{}", stats.body);
    Ok(())
}

#[tokio::test]
async fn heads_that_do_not_end_are_not_waited_for() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, answers).await?;
    let proxy = run(&trusted, &server).start().await?;
    let mut slow = Vec::new();
    for mut stream in idle(proxy.listener(80)?, 50).await? {
        stream
            .write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n").as_bytes())
            .await?;
        slow.push(stream);
    }
    for stream in &mut slow {
        let mut told = Vec::new();
        timeout(HEAD, stream.read_to_end(&mut told)).await??;
        ensure!(
            told.starts_with(b"HTTP/1.1 408"),
            "{}",
            String::from_utf8_lossy(&told)
        );
    }
    ensure!(server.asked().is_empty());
    Ok(())
}

#[tokio::test]
async fn requests_are_refused_while_memory_is_short() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, answers).await?;
    let proxy = run(&trusted, &server)
        .arg("--max-heap")
        .arg("64")
        .start()
        .await?;
    let at = proxy.listener(80)?;
    ensure!(is_served(at).await?);
    let mut large = Vec::new();
    let head = format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nx: {}",
        "x".repeat(50 << 10)
    );
    for mut stream in idle(at, 1_500).await? {
        // Whoever comes when it is too much is refused.
        let _refused = stream.write_all(head.as_bytes()).await;
        large.push(stream);
    }
    eventually("requests are refused", async || Ok(!is_served(at).await?)).await?;
    proxy
        .wait_for_log(
            |line| {
                line.contains(" 503 - overload ")
                    && line.contains(" action=reject reason=overload ")
            },
            SOON,
        )
        .await?;
    drop(large);
    eventually("requests are served again", async || is_served(at).await).await
}

#[tokio::test]
async fn servers_do_not_speak_for_us_and_we_add_nothing() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, |_| {
        let head = "HTTP/1.1 200 OK\r\nx-egress-reason: ours\r\nx-envoy-decorator-operation: x\r\nx-envoy-overloaded: true";
        Reply::Whole(format!("{head}\r\nx-own: yes\r\ncontent-length: 0\r\n\r\n"))
    })
    .await?;
    let proxy = run(&trusted, &server).start().await?;
    let client = [
        ("x-forwarded-for", "192.0.2.1"),
        ("with_underscore", "passes"),
        ("x-request-id", "the application's"),
    ];
    let answer = probe::get_with(proxy.listener(80)?, HOST, "/", &client).await?;
    ensure!(answer.header("x-own") == Some("yes"));
    for (name, value) in &answer.headers {
        if name == "x-envoy-upstream-service-time" {
            continue;
        }
        ensure!(
            !name.starts_with("x-egress-") && !name.starts_with("x-envoy-"),
            "{name}: {value}"
        );
    }
    probe::get(proxy.listener(80)?, HOST, "/").await?;
    let [first, second] = &server.asked()[..] else {
        anyhow::bail!("{:?}", server.asked());
    };
    ensure!(
        first.header("x-forwarded-for") == Some("192.0.2.1"),
        "{}",
        first.head
    );
    ensure!(
        first.header("with_underscore") == Some("passes"),
        "{}",
        first.head
    );
    ensure!(
        first.header("x-request-id") == Some("the application's"),
        "{}",
        first.head
    );
    for name in ["x-forwarded-for", "x-request-id"] {
        ensure!(second.header(name).is_none(), "{}", second.head);
    }
    ensure!(
        !second.head.to_ascii_lowercase().contains("x-envoy-"),
        "{}",
        second.head
    );
    Ok(())
}

#[tokio::test]
async fn nothing_of_servers_reads_like_ours_or_envoys() -> Result<()> {
    const SAID: [&str; 6] = [
        "x-envoy-a",
        "x-envoy-overloaded",
        "x-envoy-decorator-operation",
        "x-envoy-upstream-canary",
        "x-envoy-upstream-service-time",
        "x-egress-a",
    ];
    let trusted = Trusted::new()?;
    let head: String = SAID
        .iter()
        .map(|name| format!("{name}: said\r\n"))
        .collect();
    let server = server(&trusted, move |_| {
        Reply::Whole(format!(
            "HTTP/1.1 200 OK\r\n{head}content-length: 0\r\n\r\n"
        ))
    })
    .await?;
    for form in ["wasm", "module"] {
        let proxy = run(&trusted, &server).arg("--filter").arg(form);
        let proxy = proxy.start().await?;
        let answer = probe::get(proxy.listener(80)?, HOST, "/").await?;
        ensure!(answer.status == 200, "{form}: {answer:?}");
        for name in SAID {
            let told = answer.header(name);
            match name {
                "x-envoy-upstream-service-time" => {
                    let time = told.context("Envoy says nothing of the time")?;
                    ensure!(time.parse::<u64>().is_ok(), "{form}: {time}");
                }
                _ => ensure!(told.is_none(), "{form}: {name}"),
            }
        }
    }
    Ok(())
}
