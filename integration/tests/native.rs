//! The native form of the filter: what it needs of a machine, how it is chosen and replaced, and that it does what the
//! wasm form does.
#![expect(clippy::indexing_slicing, reason = "a test")]

mod common;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, SectionHeader as _};
use serde_json::Value;

use egress_integration::{
    egressctl::{self, Running},
    envoy, probe,
    stand_in::{Seen, StandIn},
};

use common::{
    HOST, SOON, Trusted, entry, entry_with, eventually, load::Load, only, originated, route, rule,
};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The newest version of the C library that the module may ask for: that of Debian 12 and Ubuntu 22.04.
const NEWEST_GLIBC: (u32, u32) = (2, 35);

fn beside(name: &str) -> Result<PathBuf> {
    let path = egressctl::binary()?.with_file_name(name);
    ensure!(
        path.is_file(),
        "{} is not there: `make module`",
        path.display()
    );
    Ok(path)
}

fn module() -> Result<PathBuf> {
    beside("libegress_filter.so")
}

/// What a library names: the libraries that it needs, and the versions of their functions.
fn needs(file: &[u8]) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let elf = ElfFile64::<object::Endianness>::parse(file)?;
    let (endian, header) = (elf.endian(), elf.elf_header());
    let sections = header.sections(endian, file)?;
    let (dynamic, strings) = sections
        .dynamic(endian, file)?
        .context("no dynamic section")?;
    let strings = sections.strings(endian, file, strings)?;
    let mut libraries = BTreeSet::new();
    for entry in dynamic {
        if entry.tag(endian) == object::elf::DT_NEEDED {
            let name = entry.string(endian, strings)?;
            libraries.insert(String::from_utf8(name.to_vec())?);
        }
    }
    let mut versions = BTreeSet::new();
    for section in sections.iter() {
        let Some((mut needed, link)) = section.gnu_verneed(endian, file)? else {
            continue;
        };
        let strings = sections.strings(endian, file, link)?;
        while let Some((_, mut auxiliaries)) = needed.next()? {
            while let Some(auxiliary) = auxiliaries.next()? {
                let name = auxiliary.name(endian, strings)?;
                versions.insert(String::from_utf8(name.to_vec())?);
            }
        }
    }
    Ok((libraries, versions))
}

#[test]
fn it_needs_the_c_library_and_no_newer_one_than_is_said() -> Result<()> {
    let (libraries, versions) = needs(&fs::read(module()?)?)?;
    let others: Vec<_> = libraries
        .iter()
        .filter(|name| *name != "libc.so.6" && !name.starts_with("ld-linux"))
        .collect();
    ensure!(others.is_empty(), "it needs {others:?}");
    ensure!(!versions.is_empty());
    for version in versions {
        let number = version
            .strip_prefix("GLIBC_")
            .with_context(|| version.clone())?;
        let mut parts = number.split('.').map(str::parse::<u32>);
        let version = (
            parts.next().context("major")??,
            parts.next().context("minor")??,
        );
        ensure!(version <= NEWEST_GLIBC, "it asks for GLIBC_{number}");
    }
    Ok(())
}

#[test]
fn it_tells_nothing_of_where_it_was_built() -> Result<()> {
    let module = fs::read(module()?)?;
    let workspace = fs::canonicalize(WORKSPACE)?;
    let home = format!("{}/", std::env::var("HOME")?);
    let workspace = workspace.to_str().context("no text")?;
    for word in [home.as_str(), workspace, ".cargo/registry"] {
        let bytes = word.as_bytes();
        let found = module.windows(bytes.len()).any(|part| part == bytes);
        ensure!(!found, "the module has `{word}` in it");
    }
    Ok(())
}

/// Builds the module in which requests and connections can ask for a panic.
fn panicking(trusted: &Trusted) -> Result<PathBuf> {
    let host = Command::new("rustc").arg("-vV").output()?;
    let host = String::from_utf8(host.stdout)?;
    let host = host
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("no host")?;
    let linker = format!(
        "CARGO_TARGET_{}_LINKER",
        host.to_uppercase().replace('-', "_")
    );
    let built = Command::new(env!("CARGO"))
        .current_dir(WORKSPACE)
        .args([
            "build",
            "--locked",
            "-p",
            "egress-filter-module",
            "--features",
            "panics",
        ])
        .arg("--message-format=json")
        .env(linker, Path::new(WORKSPACE).join(".setup/module-linker.sh"))
        .output()?;
    ensure!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let messages = String::from_utf8(built.stdout)?;
    let made = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let files = message.get("filenames")?.as_array()?.clone();
            files
                .iter()
                .filter_map(Value::as_str)
                .map(PathBuf::from)
                .find(|path| path.file_name() == Some(OsStr::new("libegress_filter_module.so")))
        })
        .next_back()
        .context("no library was made")?;
    let copy = trusted.path("libegress_filter.so");
    fs::copy(made, &copy)?;
    Ok(copy)
}

/// Rules of an originated host, and of a port of TLS that is passed on.
fn rules() -> String {
    let spec = "resolution: DNS, ports: [\
                {number: 80, name: http, protocol: HTTP, targetPort: 443}, \
                {number: 443, name: https, protocol: TLS}, \
                {number: 6379, name: tcp, protocol: TCP, targetPort: 443}]";
    let policy = "{portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}, \
                  {port: {number: 6379}, tls: {mode: SIMPLE}}]}";
    entry_with(HOST, spec) + &rule(HOST, policy)
}

async fn start(trusted: &Trusted, site: &StandIn, args: &[&OsStr]) -> Result<Running> {
    let mut run = trusted
        .egressctl(&rules())
        .port(80, 0)
        .port(443, 0)
        .port(6379, 0)
        .env("EGRESS_PANICS", "1")
        .connect_to(&route(HOST, 443, site.tls_addr()));
    for arg in args {
        run = run.arg(*arg);
    }
    run.start().await
}

async fn counter(proxy: &Running, name: &str) -> Result<u64> {
    let answer = proxy
        .admin_get(&format!("/stats?format=json&filter=^{name}$"))
        .await?;
    let body: Value = serde_json::from_str(&answer.body)?;
    let mut stats = body
        .get("stats")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let value = stats.find_map(|stat| stat.get("value")?.as_u64());
    value.with_context(|| format!("no {name}: {}", answer.body))
}

#[tokio::test]
async fn a_panic_refuses_the_one_stream_and_is_counted() -> Result<()> {
    let trusted = Trusted::new()?;
    let module = panicking(&trusted)?;
    let site = trusted.site([HOST]).await?;
    let proxy = start(&trusted, &site, &["--module".as_ref(), module.as_os_str()]).await?;
    let http = proxy.listener(80)?;

    let answer = probe::get_with(http, HOST, "/panic", &[("x-panic", "request")]).await?;
    assert_eq!(answer.status, 500);
    ensure!(
        answer.body.starts_with("egress: host_error: "),
        "{}",
        answer.body
    );
    let logged = proxy
        .wait_for_log(|line| line.contains("/panic"), SOON)
        .await?;
    ensure!(logged.contains(" egress_host_error "), "{logged}");
    assert_eq!(counter(&proxy, "wasmcustom.egress.panics").await?, 1);
    ensure!(site.take_seen().is_empty(), "the request went on");

    // Of what the server has said nothing more comes.
    let broken = probe::get_with(http, HOST, "/late", &[("x-panic", "response")]).await;
    ensure!(
        broken.as_ref().map_or(true, |answer| answer.status >= 500),
        "{broken:?}"
    );
    assert_eq!(counter(&proxy, "wasmcustom.egress.panics").await?, 2);

    let nothing = probe::raw(proxy.listener(6379)?, b"GET / HTTP/1.0\r\n\r\n", SOON).await;
    ensure!(nothing.as_ref().map_or(true, Vec::is_empty), "{nothing:?}");
    assert_eq!(counter(&proxy, "wasmcustom.egress.panics").await?, 3);

    site.take_seen();
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);
    common::assert_originated(&only(&site)?, HOST, HOST);
    Ok(())
}

/// The libraries that a program needs, but for the compiler's.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let told = Command::new("ldd").arg(program).output()?;
    let told = String::from_utf8(told.stdout)?;
    let paths = told
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'));
    Ok(paths
        .filter(|path| !path.contains("libgcc"))
        .map(PathBuf::from)
        .collect())
}

#[tokio::test]
async fn it_loads_where_there_is_no_libgcc() -> Result<()> {
    let trusted = Trusted::new()?;
    let root = trusted.path("root");
    let put = |from: &Path, to: &Path| -> Result<()> {
        let to = root.join(to.strip_prefix("/").unwrap_or(to));
        fs::create_dir_all(to.parent().context("no folder")?)?;
        fs::copy(from, to)?;
        Ok(())
    };
    let envoy = envoy::binary()?;
    put(&envoy, Path::new("/envoy"))?;
    fs::set_permissions(root.join("envoy"), fs::Permissions::from_mode(0o755))?;
    for library in libraries(&envoy)? {
        put(&library, &library)?;
    }
    put(&module()?, Path::new("/libegress_filter.so"))?;
    let file = trusted.file("libegress_filter.so", "")?;
    let file = file.to_str().context("no text")?;
    let admin = ["--filter", "module", "--module", file];
    let mut bootstrap = common::rendered(&trusted, &rules(), &admin).await?;
    let text = bootstrap.to_string().replace(file, "/libegress_filter.so");
    bootstrap = serde_json::from_str(&text)?;
    // The system's authorities are not in this root.
    let own = trusted.bundle().display().to_string();
    let text = bootstrap.to_string().replace(&own, "/authorities.pem");
    put(&trusted.bundle(), Path::new("/authorities.pem"))?;
    fs::write(root.join("bootstrap.json"), text)?;
    let output = Command::new("unshare")
        .args(["--map-root-user", "chroot"])
        .arg(&root)
        .args([
            "/envoy",
            "--mode",
            "validate",
            "--disable-hot-restart",
            "-c",
            "/bootstrap.json",
        ])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}

#[tokio::test]
async fn an_envoy_that_is_too_old_for_it_is_refused_with_a_sentence() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = trusted.file("rules.yaml", &rules())?;
    let render = |version: &str| {
        let output = Command::new(egressctl::binary()?)
            .args([
                "render",
                "envoy",
                "--filter",
                "module",
                "--envoy-version",
                version,
                "-f",
            ])
            .arg(&rules)
            .output()?;
        Ok::<_, anyhow::Error>(output)
    };
    let output = render("1.38.2")?;
    ensure!(!output.status.success());
    let said = String::from_utf8(output.stderr)?;
    ensure!(
        said.contains("the native filter needs Envoy 1.39 or later, and 1.38 was asked for"),
        "{said}"
    );
    ensure!(render("1.39.3")?.status.success());
    Ok(())
}

/// Replaces a file as package managers do.
fn replace(path: &Path, with: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, with)?;
    Ok(fs::rename(new, path)?)
}

/// What stands behind the end of a library is not looked at, and yet makes it another file.
fn another_module(module: &[u8]) -> Vec<u8> {
    [module, b"another"].concat()
}

/// A section of a name of one letter, with nothing in it.
fn another_wasm(module: &[u8]) -> Vec<u8> {
    [module, b"\0\x02\x01x"].concat()
}

async fn reloaded(proxy: &Running, times: usize) -> Result<()> {
    let done = eventually("it is taken over", async || {
        let lines = proxy.stdout();
        Ok(lines
            .iter()
            .filter(|line| line.starts_with("reloaded "))
            .count()
            >= times)
    });
    done.await.with_context(|| proxy.stderr().join("\n"))
}

/// A filter that is replaced while Envoy runs: the form, its file, and how it becomes another one.
async fn replaced(form: &str, original: &Path, another: fn(&[u8]) -> Vec<u8>) -> Result<()> {
    let trusted = Trusted::new()?;
    let folder = trusted.path("filter");
    fs::create_dir(&folder)?;
    let file = folder.join(original.file_name().context("no name")?);
    fs::copy(original, &file)?;
    let site = trusted.site([HOST]).await?;
    let flag = format!("--{form}");
    let proxy = start(&trusted, &site, &[flag.as_ref(), file.as_os_str()]).await?;
    let first = fs::read(&file)?;
    let load = Load::start(proxy.listener(80)?, 4);
    load.goes_on().await?;
    replace(&file, &another(&first))?;
    reloaded(&proxy, 1).await?;
    load.goes_on().await?;

    // Half of it is refused by name, and what was there goes on.
    replace(&file, &first[..first.len() / 2])?;
    proxy
        .wait_for_stderr(
            |line| line.contains("Envoy cannot load the new filter"),
            SOON,
        )
        .await?;
    load.goes_on().await?;

    // In place, which is never what Envoy has mapped.
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&file)?
        .write_all(&another(&another(&first)))?;
    reloaded(&proxy, 3).await?;
    load.goes_on().await?;
    let answered = load.end().await?;
    ensure!(answered > 150, "{answered}");
    let seen = site.take_seen();
    ensure!(
        seen.iter().all(|one| one.sni.as_deref() == Some(HOST)),
        "a request in plaintext"
    );
    let dump = proxy
        .admin_get("/config_dump?resource=ecds_filters")
        .await?
        .body;
    let copies = dump.matches("egress_filter_").count() + dump.matches("egress-filter_").count();
    ensure!(copies > 0, "{dump}");
    assert!(proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn another_native_filter_is_taken_over_without_a_failed_request() -> Result<()> {
    replaced("module", &module()?, another_module).await
}

#[tokio::test]
async fn another_wasm_filter_is_taken_over_without_a_failed_request() -> Result<()> {
    replaced("wasm", &beside("egress-filter.wasm")?, another_wasm).await
}

/// What became of a stream: the answer, what the log says of it, and what the server saw.
#[derive(Debug, PartialEq)]
struct Outcome {
    path: String,
    answer: (u16, String),
    headers: BTreeSet<String>,
    log: Vec<(String, String)>,
    seen: Vec<String>,
}

/// Sends all kinds of requests through one form of the filter.
async fn outcomes(form: &str) -> Result<Vec<Outcome>> {
    let trusted = Trusted::new()?;
    let (good, bad) = (
        trusted.site([HOST]).await?,
        trusted.site(["other.example"]).await?,
    );
    let rules = rules()
        + &entry("plain.example", 80)
        + &originated("bad.example", 443)
        + &originated("gone.example", 443)
        + &rule("plain.example", "{tls: {mode: DISABLE}}");
    let proxy = trusted
        .egressctl(&rules)
        .port(80, 0)
        .connect_to(&route(HOST, 443, good.tls_addr()))
        .connect_to(&route("bad.example", 443, bad.tls_addr()))
        .connect_to(&route("gone.example", 443, ([127, 0, 0, 1], 1).into()))
        .connect_to(&route("plain.example", 80, good.plain_addr()))
        .arg("--filter")
        .arg(form)
        .arg("--access-log-format")
        .arg("json")
        .arg("--forward-proxy")
        .arg("127.0.0.1:0")
        .start()
        .await?;
    let http = proxy.listener(80)?;
    let mut outcomes = Vec::new();
    let hosts = [
        HOST,
        "EDITION.cnn.com:80",
        "edition.cnn.com:8080",
        "edition.cnn.com.",
        "plain.example",
        "bad.example",
        "gone.example",
        "unknown.example",
        "[::1]",
        "a.wild.example.x",
        "",
    ];
    for (number, host) in hosts.into_iter().enumerate() {
        for header in [
            None,
            Some(("authorization", "NTLM x")),
            Some(("x-egress-originate", "PassthroughCluster")),
            Some(("content-type", "application/grpc")),
        ] {
            let path = format!("/{number}/{}", header.map_or("none", |(name, _)| name));
            let answer = probe::get_with(http, host, &path, header.as_slice()).await?;
            let quoted = format!("\"{path}\"");
            let log = proxy
                .wait_for_log(|line| line.contains(&quoted), SOON)
                .await?;
            let log: Value = serde_json::from_str(&log)?;
            let facts = |value: &Value| value.to_string();
            let log = [
                "response_code",
                "response_flags",
                "response_code_details",
                "upstream_cluster",
                "authority",
                "egress",
            ]
            .map(|key| (key.to_owned(), facts(&log[key])));
            let seen: Vec<Seen> = [good.take_seen(), bad.take_seen()].concat();
            outcomes.push(Outcome {
                path,
                answer: (answer.status, answer.body),
                headers: answer
                    .headers
                    .iter()
                    .map(|(name, _)| name.to_string())
                    .collect(),
                log: log.into(),
                seen: seen
                    .iter()
                    .map(|seen| format!("{:?} {:?} {:?}", seen.listener, seen.sni, seen.headers))
                    .collect(),
            });
        }
    }
    Ok(outcomes)
}

#[tokio::test]
async fn both_forms_do_the_same_with_the_same_requests() -> Result<()> {
    let (wasm, module) = (outcomes("wasm").await?, outcomes("module").await?);
    ensure!(wasm.len() == module.len() && wasm.len() > 40);
    let different: Vec<_> = wasm
        .iter()
        .zip(&module)
        .filter(|(one, other)| one != other)
        .collect();
    ensure!(different.is_empty(), "{different:#?}");
    ensure!(wasm.iter().any(|one| one.answer.0 == 200));
    Ok(())
}
