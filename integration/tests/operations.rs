//! What those see who operate a run: probes, Prometheus, programs that read events, and systemd.

mod common;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};

use egress_integration::{egressctl, probe};

use common::{HOST, SOON, Trusted, entry_with, eventually, originated, route, rule};

/// Rules that let a host be reached in plaintext.
fn plain() -> String {
    let spec = "resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]";
    entry_with(HOST, spec) + &rule(HOST, "{tls: {mode: DISABLE}}")
}

#[tokio::test]
async fn probes_see_whether_it_is_ready_and_nothing_else_of_the_admin_interface() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = trusted.file("watched.yaml", &plain())?;
    let server = common::slow(16).await?;
    let proxy = egressctl::Egressctl::builder()
        .rules(&rules)
        .env("SSL_CERT_FILE", trusted.bundle())
        .port(80, 0)
        .connect_to(&route(HOST, 80, server))
        .arg("--status=127.0.0.1:0")
        .arg("--drain=0s,60s")
        .start()
        .await?;
    let status = proxy.status()?;
    let get = async |path: &str| probe::get(status, "probe", path).await;
    for (path, body) in [("/ready", "ready\n"), ("/live", "live\n")] {
        let answer = get(path).await?;
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
    }
    for path in [
        "/",
        "/config_dump",
        "/stats",
        "/stats/prometheus",
        "/quitquitquit",
        "/certs",
        "/listeners",
        "/ready/",
        "//config_dump",
        "/metrics/../config_dump",
        "/help",
    ] {
        assert_eq!(get(path).await?.status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        let request = format!("{method} /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = probe::raw(status, request.as_bytes(), SOON).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 405 "), "{method}");
    }

    let metrics = get("/metrics").await?;
    assert_eq!(metrics.status, 200);
    for line in [
        "egressctl_ready 1",
        "egressctl_rules_current 1",
        "egressctl_reloads_total{result=\"refused\"} 0",
        "egressctl_envoy_answers 1",
        "# TYPE envoy_server_live gauge",
    ] {
        ensure!(
            metrics.body.lines().any(|found| found == line),
            "no `{line}`"
        );
    }
    fs::write(&rules, "kind: Nonsense")?;
    eventually("the metrics tell of refused rules", async || {
        let metrics = get("/metrics").await?.body;
        Ok(metrics.contains("\negressctl_rules_current 0\n")
            && metrics.contains("egressctl_reloads_total{result=\"refused\"} 1"))
    })
    .await?;
    assert_eq!(get("/ready").await?.status, 200);

    let http = proxy.listener(80)?;
    let request = tokio::spawn(async move { probe::get(http, HOST, "/slow").await });
    eventually("the request is at the server", async || {
        let metrics = get("/metrics").await?.body;
        let name =
            "envoy_http_downstream_rq_active{envoy_http_conn_manager_prefix=\"outbound_80\"} 1";
        Ok(metrics.contains(name))
    })
    .await?;
    proxy.signal(Signal::SIGTERM)?;
    eventually("it is ready no more", async || {
        let answer = get("/ready").await?;
        Ok((answer.status, answer.body.as_str()) == (503, "draining\n"))
    })
    .await?;
    assert_eq!(get("/live").await?.status, 200);
    assert_eq!(request.await??.status, 200);
    assert!(proxy.ended().await?.success());
    Ok(())
}

#[tokio::test]
async fn an_address_for_the_status_that_is_taken_is_refused_by_name() -> Result<()> {
    let trusted = Trusted::new()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let at = taken.local_addr()?;
    let started = trusted
        .egressctl(&plain())
        .port(80, 0)
        .arg(format!("--status={at}"))
        .start()
        .await;
    let error = started.err().context("it started")?;
    let ended = error.downcast::<egressctl::EndedEarly>()?;
    assert_eq!(ended.status.code(), Some(1));
    let said = format!("error: cannot listen on {at} for the status: ");
    ensure!(ended.stderr.contains(&said), "{}", ended.stderr);
    Ok(())
}

/// A run whose standard output and error are read line by line.
struct Run {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Run {
    fn start(
        trusted: &Trusted,
        rules: &Path,
        more: &[String],
        notify: Option<&Path>,
    ) -> Result<Self> {
        let mut command = Command::new(egressctl::binary()?);
        command
            .args(["run", "--output=json", "--port=80=0", "-f"])
            .arg(rules)
            .args(more);
        command
            .env("SSL_CERT_FILE", trusted.bundle())
            .kill_on_drop(true);
        if let Some(socket) = notify {
            command.env("NOTIFY_SOCKET", socket);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let stderr = child.stderr.take().context("no stderr")?;
        Ok(Self {
            child,
            stdout: BufReader::new(stdout).lines(),
            stderr: BufReader::new(stderr).lines(),
        })
    }

    /// The next event of this name. Each line before it must be one, too.
    async fn event(&mut self, name: &str) -> Result<Value> {
        loop {
            let line = timeout(SOON * 3, self.stderr.next_line())
                .await
                .context(name.to_owned())??;
            let line = line.with_context(|| format!("it ended before `{name}`"))?;
            let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            ensure!(
                ["time", "level"]
                    .iter()
                    .all(|key| event.get(key).is_some_and(Value::is_string)),
                "{line}"
            );
            if event.get("event").is_some_and(|found| found == name) {
                return Ok(event);
            }
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().context("it has ended")?;
        Ok(nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.try_into()?),
            signal,
        )?)
    }
}

fn listener(event: &Value) -> Result<SocketAddr> {
    let address = event.pointer("/listeners/80").and_then(Value::as_str);
    Ok(address.with_context(|| event.to_string())?.parse()?)
}

#[tokio::test]
async fn events_are_json_lines_and_the_standard_output_is_the_access_log() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = trusted.file("watched.yaml", &plain())?;
    let server = common::slow(1).await?;
    let more = [
        "--access-log-format=json".to_owned(),
        format!("--connect-to={}", route(HOST, 80, server)),
    ];
    let mut run = Run::start(&trusted, &rules, &more, None)?;
    let http = listener(&run.event("ready").await?)?;
    assert_eq!(probe::get(http, HOST, "/logged").await?.status, 200);

    fs::write(&rules, plain().replace("DISABLE", "DISABEL"))?;
    let refused = run.event("refused").await?;
    assert_eq!(refused["level"], "error");
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(message.contains("unknown mode `DISABEL`"), "{refused}");
    fs::write(&rules, plain() + &originated("money.cnn.com", 443))?;
    let reloaded = run.event("reloaded").await?;
    ensure!(reloaded["digest"].is_string(), "{reloaded}");
    assert_eq!(listener(&reloaded)?, http);
    run.signal(Signal::SIGTERM)?;
    let draining = run.event("draining").await?;
    assert_eq!(draining["limitSeconds"], 30.0);
    assert!(timeout(SOON, run.child.wait()).await??.success());
    let mut logged = Vec::new();
    while let Some(line) = run.stdout.next_line().await? {
        let line: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        logged.push(line["path"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(logged, ["/logged"]);
    Ok(())
}

#[tokio::test]
async fn a_run_that_cannot_start_says_so_as_json() -> Result<()> {
    let trusted = Trusted::new()?;
    let mut run = Run::start(&trusted, &trusted.path("missing.yaml"), &[], None)?;
    let said = run.event("message").await?;
    assert_eq!(said["level"], "error");
    assert_eq!(run.child.wait().await?.code(), Some(1));
    Ok(())
}

#[tokio::test]
async fn only_errors_are_reported_when_only_they_are_asked_for() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = trusted.file("watched.yaml", &plain())?;
    let mut run = Run::start(&trusted, &rules, &["--log-level=error".to_owned()], None)?;
    run.event("ready").await?;
    run.signal(Signal::SIGUSR1)?;
    fs::write(&rules, "kind: Nonsense")?;
    // It would come after the other.
    let line = timeout(SOON, run.stderr.next_line())
        .await??
        .context("no line")?;
    ensure!(line.contains("\"refused\""), "{line}");
    run.signal(Signal::SIGINT)?;
    assert!(timeout(SOON, run.child.wait()).await??.success());

    let mut run = Run::start(
        &trusted,
        &trusted.file("b.yaml", &plain())?,
        &["--log-level=info".to_owned()],
        None,
    )?;
    let line = loop {
        let event = run.event("envoy").await?;
        if event["level"] == "info" {
            break event;
        }
    };
    ensure!(line["message"].is_string(), "{line}");
    Ok(())
}

/// What a service manager is told next.
async fn told(socket: &tokio::net::UnixDatagram) -> Result<String> {
    let mut text = [0; 500];
    let length = timeout(SOON * 3, socket.recv(&mut text))
        .await
        .context("nothing is told")??;
    Ok(String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned())
}

#[tokio::test]
async fn the_service_manager_is_told_of_all_states() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = trusted.file("watched.yaml", &plain())?;
    let path = trusted.path("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixDatagram::from_std(socket)?;
    let mut run = Run::start(&trusted, &rules, &[], Some(&path))?;
    ensure!(told(&socket).await?.starts_with("READY=1\n"));
    run.event("ready").await?;
    run.signal(Signal::SIGHUP)?;
    let text = told(&socket).await?;
    ensure!(text.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{text}");
    ensure!(told(&socket).await?.starts_with("READY=1\n"));
    // Rules that are refused end a reload as well.
    fs::write(&rules, "kind: Nonsense")?;
    ensure!(told(&socket).await?.starts_with("RELOADING=1\n"));
    let text = told(&socket).await?;
    ensure!(
        text.starts_with("READY=1\nSTATUS=The rules in the files are refused"),
        "{text}"
    );
    run.signal(Signal::SIGTERM)?;
    ensure!(told(&socket).await?.starts_with("STOPPING=1\n"));
    assert!(timeout(SOON, run.child.wait()).await??.success());
    Ok(())
}

const UNIT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../envoy/examples/egressctl.service"
);

/// The unit with the program that is tested, in a folder of its own.
fn unit(trusted: &Trusted) -> Result<PathBuf> {
    let text = fs::read_to_string(UNIT)?;
    let program = egressctl::binary()?;
    let ours = text.replace("/usr/bin/egressctl", &program.display().to_string());
    ensure!(ours != text, "it starts another program");
    trusted.file("egressctl.service", &ours)
}

async fn analyzed(args: &[&str], unit: &Path) -> Result<String> {
    let mut command = Command::new("systemd-analyze");
    command
        .args(args)
        .arg(unit)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(Duration::from_secs(120), command.output()).await?;
    let output = output.context("no `systemd-analyze`; type `make systemd`")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{said}");
    Ok(said)
}

#[tokio::test]
async fn systemd_finds_nothing_wrong_with_the_unit() -> Result<()> {
    let trusted = Trusted::new()?;
    let unit = unit(&trusted)?;
    let said = analyzed(&["verify", "--man=no"], &unit).await?;
    ensure!(!said.contains("egressctl.service"), "{said}");
    // As it sees hardening, 0 is none to lose, and 10 is none.
    analyzed(
        &["security", "--offline=true", "--threshold=20", "--no-pager"],
        &unit,
    )
    .await?;
    Ok(())
}

/// The unit's own command line, at ports that are free, as systemd would start it.
#[tokio::test]
async fn the_command_of_the_unit_starts() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = trusted.file("rules.yaml", &plain())?;
    let text = fs::read_to_string(UNIT)?;
    let command = text
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let words = command
        .context("no command")?
        .split(' ')
        .skip(2)
        .map(|word| match word {
            "/etc/egress/rules" => rules.display().to_string(),
            "80=10080" => "80=0".to_owned(),
            "443=10443" => "443=0".to_owned(),
            "127.0.0.1:9902" => "127.0.0.1:0".to_owned(),
            word => word.to_owned(),
        });
    let path = trusted.path("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixDatagram::from_std(socket)?;
    let mut command = Command::new(egressctl::binary()?);
    command.arg("run").args(words).env("NOTIFY_SOCKET", &path);
    command
        .env("SSL_CERT_FILE", trusted.bundle())
        .kill_on_drop(true);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    ensure!(told(&socket).await?.starts_with("READY=1\n"));
    let pid = nix::unistd::Pid::from_raw(child.id().context("ended")?.try_into()?);
    nix::sys::signal::kill(pid, Signal::SIGTERM)?;
    ensure!(told(&socket).await?.starts_with("STOPPING=1\n"));
    assert!(timeout(SOON, child.wait()).await??.success());
    Ok(())
}

/// The Deployment's own arguments, at ports that are free.
#[tokio::test]
async fn the_deployment_starts_and_ends_before_kubernetes_would_kill_it() -> Result<()> {
    const DEPLOYMENT: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../envoy/examples/kubernetes.yaml"
    );
    let trusted = Trusted::new()?;
    trusted.file("rules.yaml", &plain())?;
    let file: Value = serde_saphyr::from_str(&fs::read_to_string(DEPLOYMENT)?)?;
    let pod = &file["spec"]["template"]["spec"];
    let args = pod["containers"][0]["args"].as_array().context("no args")?;
    let args: Vec<&str> = args.iter().filter_map(Value::as_str).collect();
    let drain = args.iter().find_map(|arg| arg.strip_prefix("--drain="));
    let drain = drain.context("no --drain")?.split(',');
    let seconds = drain.map(|time| Ok(time.trim_end_matches('s').parse::<u64>()?));
    let longest: u64 = seconds.sum::<Result<u64>>()?;
    let grace = pod["terminationGracePeriodSeconds"].as_u64();
    ensure!(grace >= Some(longest + 5), "{grace:?} for {longest}");
    let [run, rules, args @ ..] = &args[..] else {
        anyhow::bail!("{args:?}")
    };
    assert_eq!((*run, *rules), ("run", "--filename=/etc/egress"));
    let builder = egressctl::Egressctl::builder().rules(trusted.path("rules.yaml"));
    let builder = args.iter().fold(builder, |builder, arg| {
        builder.arg(arg.replace("=10080", "=0").replace(":9902", ":0"))
    });
    let proxy = builder
        .env("SSL_CERT_FILE", trusted.bundle())
        .start()
        .await?;
    for probe in ["readinessProbe", "livenessProbe"] {
        let path = pod["containers"][0][probe]["httpGet"]["path"].as_str();
        let status = proxy.status()?;
        let status = (Ipv4Addr::LOCALHOST, status.port()).into();
        let answer = probe::get(status, "status", path.context("no path")?).await?;
        assert_eq!(answer.status, 200, "{probe}: {}", answer.body);
    }
    assert!(proxy.stop().await?.success());
    Ok(())
}
