"""Part 1: what a request costs over connections that are kept, and how long it takes."""

import re
import subprocess
from statistics import median

import calls
import figures
import proxies
from figures import Compared, ratio, spread, table
from lab import HOST, QUICK, Dns, Failure, Lab, Load, Origin, asked, program

LIMIT, ISTIO, EMPTY, LUA = "Envoy without a filter", "Istio's plain shape", "an empty wasm filter", "a Lua filter"
OURS, SHARED = "ours, own cluster", "ours, shared cluster"
NATIVE, NATIVE_SHARED = "the native module, own cluster", "the native module, shared cluster"
# What ours cannot do without: the calls of ours to Envoy on its routes, with nothing behind them; and the shared
# cluster, a dynamic forward proxy, with no filter at all.
BARE, BARE_SHARED = "a wasm filter that makes the calls of ours, own cluster", "the same, shared cluster"
FORWARD = "Envoy's forward proxy without a filter"
NGINX, HAPROXY, STUNNEL = "NGINX", "HAProxy", "stunnel"
ROUNDS = 5 if QUICK else 31
SAMPLE = 0.12
# Whether it is HTTP/2 to the server, whether requests are logged, and whether latency is measured too.
SETTINGS = [(False, False, True), (True, False, not QUICK)]
SETTINGS += [] if QUICK else [(False, True, False), (True, True, False)]
SETTLE = 0.03


def start_all(lab, origin, dns, h2, log):
    """All variants at once, each idle until its turn."""
    target = origin.ports["h2" if h2 else "h1"]
    targets = {HOST: target}
    ours = proxies.rendered(lab, proxies.rules(targets), lab.port())
    shared = proxies.rendered(lab, proxies.rules(targets, "DNS"), lab.port(), "--resolver", f"127.0.0.1:{dns.port}")
    native = ["--filter", "module", "--envoy-version", proxies.pinned()]
    module = proxies.rendered(lab, proxies.rules(targets), lab.port(), *native)
    module_shared = proxies.rendered(
        lab, proxies.rules(targets, "DNS"), lab.port(), "--resolver", f"127.0.0.1:{dns.port}", *native
    )
    bare = proxies.limit(ours, targets)
    clusters = proxies.istio_clusters(targets, str(lab.run / "ca.pem"), h2)
    # Servers' ports are not 443 here. So that ours is asked what it is asked elsewhere, a host whose port needs not
    # be named, clients name it.
    named = {name: f"{HOST}:{target}" for name in (OURS, SHARED, NATIVE, NATIVE_SHARED, BARE, BARE_SHARED, FORWARD)}
    cluster = f"outbound|80||{HOST}"
    own, common = calls.module(lab, calls.OWN, cluster), calls.module(lab, calls.SHARED)
    bootstraps = {
        LIMIT: bare,
        ISTIO: proxies.istio(ours, targets, clusters, dns.port),
        FORWARD: proxies.without_filter(shared),
        EMPTY: proxies.empty_wasm(bare, lab),
        BARE: proxies.wasm(proxies.without_filter(ours), own),
        BARE_SHARED: proxies.wasm(proxies.without_filter(shared), common),
        LUA: proxies.lua(ours, HOST, target),
        OURS: ours,
        SHARED: shared,
        NATIVE: module,
        NATIVE_SHARED: module_shared,
    }
    running = {}
    for name, bootstrap in bootstraps.items():
        bootstrap = proxies.at_port(bootstrap if log else proxies.without_log(bootstrap), lab.port())
        running[name] = proxies.envoy(lab, name.replace(" ", "-"), bootstrap, named.get(name, HOST))
    running[HAPROXY] = proxies.haproxy(lab, targets, log, h2)
    if not h2:
        running[NGINX] = proxies.nginx(lab, targets, log)
        running[STUNNEL] = proxies.stunnel(lab, target)
    return running


def must_verify(origin, running):
    """Each variant refuses the wrong name and the wrong authority, and takes the right ones."""
    for certificate in ["wrong-name", "wrong-authority"]:
        origin.serve(certificate)
        for name, proxy in running.items():
            status, body = asked(proxy.port, proxy.authority)
            if status == 200:
                raise Failure(f"{name} accepted a certificate with the {certificate}: {body}")
    origin.serve("good")
    for name, proxy in running.items():
        status, body = asked(proxy.port, proxy.authority)
        if status != 200 or not body.startswith(f"{HOST} "):
            raise Failure(f"{name} does not answer: {status} {body} {proxy.child.errors.read_text()[-2000:]}")


def cpu(lab, origin, running, rounds=ROUNDS):
    """Nanoseconds of the worker for each request, as many samples as there are rounds."""
    loads = {name: Load(lab, origin, proxy.port, proxy.authority) for name, proxy in running.items()}

    taken = figures.rounds(rounds, running, lambda name: loads[name].sample(running[name].clock, 1, SETTLE, SAMPLE))
    for name, load in loads.items():
        load.finish(name)
    return taken


def h2load(proxy, *options, log=None):
    """What h2load told; a request that was not answered with 2xx fails the run."""
    command = [
        program("h2load"),
        "--h1",
        f"--connect-to=127.0.0.1:{proxy.port}",
        *options,
        f"http://{proxy.authority}/",
    ]
    if log:
        command.insert(1, f"--log-file={log}")
        log.unlink(missing_ok=True)
    told = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True).stdout
    if " 0 failed, 0 errored, 0 timeout" not in told or " 0 3xx, 0 4xx, 0 5xx" not in told:
        raise Failure(f"requests failed:\n{told}")
    return told


def throughput(running):
    """Requests a second of a closed loop."""
    number = 1500 if QUICK else 8000

    def sample(name):
        told = h2load(running[name], "-c", 16, "-n", number)
        return float(re.search(r"([0-9.]+) req/s", told)[1])

    return figures.rounds(2 if QUICK else 3, running, sample)


def latency(lab, running, rate):
    """The rate, and for each variant the p50 and p99 of each round, in microseconds.

    Each of so many connections keeps to its share of the rate, so that hardly a request waits for an answer to another.
    """
    clients, seconds = 50, 0.5 if QUICK else 1
    log = lab.run / "h2load.log"
    each = max(1, rate // clients)

    def sample(name):
        h2load(running[name], "-c", clients, "--rps", each, "-n", int(each * clients * seconds), log=log)
        times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
        return times[len(times) // 2], times[len(times) * 99 // 100]

    return each * clients, figures.rounds(2 if QUICK else 3, running, sample)


def cpu_table(taken):
    base = taken[LIMIT]
    rows, compared = [], {}
    for name, samples in taken.items():
        one = compared[name] = Compared(samples, base)
        istio = Compared(samples, taken[ISTIO])
        rows.append([name, ratio(one.low), ratio(one.paired), spread(one.spread), ratio(istio.paired)])
    head = [
        "CPU per request",
        "10th percentile",
        "median of paired differences",
        "its quartiles",
        "of Istio's plain shape",
    ]
    told = f"1.00 is {figures.tenth(base) / 1000:.1f} µs of the worker's CPU; {len(base)} samples a variant.\n"
    return table(head, rows) + "\n" + told, compared


def latency_table(measured, speeds, rate):
    base50 = median(one[0] for one in measured[LIMIT])
    base99 = median(one[1] for one in measured[LIMIT])
    base_speed = median(speeds[LIMIT])
    rows = []
    for name, taken in measured.items():
        p50, p99 = [one[0] for one in taken], [one[1] for one in taken]
        speed = speeds[name]
        rows.append([
            name,
            ratio(median(p50) / base50), spread((min(p50) / base50, max(p50) / base50)),
            ratio(median(p99) / base99), spread((min(p99) / base99, max(p99) / base99)),
            ratio(median(speed) / base_speed), spread((min(speed) / base_speed, max(speed) / base_speed)),
        ])  # fmt: skip
    head = ["", "p50", "from–to", "p99", "from–to", "throughput", "from–to"]
    told = (
        f"Latency is at {rate} requests a second, half of what the slowest variant can do. 1.00 is {base50} µs (p50) and "
        f"{base99} µs (p99). Throughput is that of 16 connections in a closed loop. 1.00 is {base_speed:.0f} requests a second.\n"
    )
    return table(head, rows) + "\n" + told


def measure(note):
    """The tables of this part, and what the budgets need of them."""
    text, facts = [], {}
    for h2, log, timed in SETTINGS:
        title = f"HTTP/{'2' if h2 else '1.1'} to the server, access log {'on' if log else 'off'}"
        note(title)
        with Lab() as lab:
            dns = Dns(ttl=60)
            origin = Origin(lab, {"h1": {}, "h2": {"h2": True}})
            origin.serve("good")
            running = start_all(lab, origin, dns, h2, log)
            must_verify(origin, running)
            taken, compared = cpu_table(cpu(lab, origin, running))
            text.append(f"### {title}\n\n{taken}")
            facts[h2, log] = compared
            if timed:
                speeds = throughput(running)
                rate = int(min(median(one) for one in speeds.values()) / 2)
                rate, measured = latency(lab, running, rate)
                text.append(latency_table(measured, speeds, rate))
            if set(origin.must_be_verified_tls()) != {"h2" if h2 else "h1"}:
                raise Failure("the origin was asked in another protocol")
    return "\n".join(text), facts
