"""Part 3: what many hosts cost: time to ready, memory, a change of one host under load, DNS."""

import http.client
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import proxies
from figures import table
from lab import QUICK, RELEASE, Dns, Failure, Lab, Load, Origin, alive, asked, program, wait_for
from memory import MB, resident_memories

OURS, EIGHT, WASM, ISTIO = "ours", "ours, 8 workers", "ours, wasm form", "Istio's shape"
SIZES = (
    {OURS: [1, 1000], EIGHT: [1, 1000], WASM: [1, 1000], ISTIO: [1, 100]}
    if QUICK
    else {
        OURS: [1, 100, 1000, 10000, 100000],
        EIGHT: [1, 10000],
        WASM: [1, 10000],
        ISTIO: [1, 100, 1000, 10000],
    }
)
TTL = WINDOW = 5 if QUICK else 15
IN_USE = {EIGHT: 1000}  # hosts that were asked something before DNS queries are counted, where not this many:
FEW_IN_USE = 50
PATIENCE = 180
MANY = 1000 if QUICK else 10000  # ours must be reached; the budgets are about them
# Istio's shape of 10,000 hosts; where the memory is not there, the row says so.
KB_A_HOST = 500


def hosts(count):
    return [f"host-{n}.bench.example.com" for n in range(count)]


def resident(pid):
    """MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def free_kb():
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])


def worked(proxy):
    """The CPU seconds so far of `egressctl`, where there is one, and of Envoy's threads by what they do.

    Those of `egressctl` are counted in ticks of 10 ms, threads that have ended included.
    """
    seconds = dict.fromkeys(["Envoy's main thread", "Envoy's worker", "V8's threads", "Envoy's other threads"], 0.0)
    envoy = proxy.envoy()
    if proxy.child.pid != envoy:
        fields = Path(f"/proc/{proxy.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds["egressctl"] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{envoy}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            seconds[part(task, envoy)] += int((task / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def part(task, envoy):
    """What a thread of Envoy does."""
    if task.name == str(envoy):
        return "Envoy's main thread"
    named = (task / "comm").read_text()
    words = {"wrk:": "Envoy's worker", "V8 ": "V8's threads"}
    return next((words[start] for start in words if named.startswith(start)), "Envoy's other threads")


def since(before, after):
    return {name: round(seconds - before.get(name, 0), 2) for name, seconds in after.items()}


def replace(path, text):
    """As a rename, so that nobody reads half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def admin_says(admin, path):
    """What Envoy's admin interface, a socket, has at a path."""
    connection = http.client.HTTPConnection("envoy")
    with socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.connect(admin)
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())


class Ours:
    """`egressctl run`, and what it does when the file of rules changes."""

    form, workers = "module", 1

    def __init__(self, lab, targets, dns, bundle):
        self.targets, self.port = targets, lab.port()
        self.path = lab.run / "scale-rules.yaml"
        self.path.write_text(proxies.as_text(proxies.rules(targets, "DNS")))
        command = [RELEASE / "egressctl", "run", "-f", self.path, "--port", f"80={self.port}", "--port", f"443={lab.port()}",
                   "--resolver", f"127.0.0.1:{dns.port}", "--access-log", "/dev/null", "--concurrency", self.workers,
                   "--filter", self.form, "--envoy", program("envoy")]  # fmt: skip
        self.begun = time.monotonic()
        self.child = lab.start(*command, env={"SSL_CERT_FILE": str(bundle)})

    def prepared(self, changed):
        return self.path, proxies.as_text(proxies.rules(self.targets, "DNS", changed=changed))

    def envoy(self):
        for child in Path(f"/proc/{self.child.pid}/task").glob("*/children"):
            for pid in child.read_text().split():
                if "envoy" in Path(f"/proc/{pid}/comm").read_text():
                    return int(pid)
        raise Failure("egressctl run has started no Envoy")

    def memory_parts(self):
        """What Envoy's memory consists of, in MB: the VMs' memories; what its allocator has given out, and keeps; and how
        large one copy of the filter's configuration is."""
        pid = self.envoy()
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        bootstrap = json.loads(Path(words[words.index("--config-path") + 1]).read_text())
        admin = bootstrap["admin"]["address"]["pipe"]["path"]
        memory = admin_says(admin, "/memory")
        filters = [dump["ecds_filter"] for dump in admin_says(admin, "/config_dump?resource=ecds_filters")["configs"]]
        configs = [one["typed_config"] for one in filters]
        told = [one["filter_config"] if "filter_config" in one else one["config"]["configuration"] for one in configs]
        texts = [one["value"] for one in told]
        parts = {
            "vms": resident_memories(pid),
            "allocated": int(memory["allocated"]),
            "free": int(memory["pageheap_free"]),
            "configuration": sum(len(text) for text in texts),
        }
        return {name: size / MB for name, size in parts.items()}


class Eight(Ours):
    """The same, with as many workers as a larger machine has cores."""

    workers = 8


class Wasm(Ours):
    """The same, with the filter in VMs."""

    form = "wasm"


class Istio:
    """An Envoy with two STRICT_DNS clusters a host, which come by a file that it watches."""

    def __init__(self, lab, targets, dns, bundle):
        self.targets, self.port, self.bundle = targets, lab.port(), str(bundle)
        self.path = lab.run / "clusters.json"
        self.path.write_text(self.clusters())
        one = dict([next(iter(targets.items()))])
        pattern = proxies.without_log(proxies.rendered(lab, proxies.rules(one), self.port))
        bootstrap = proxies.istio(pattern, targets, [], dns.port)
        bootstrap["dynamic_resources"] = {"cds_config": {"path_config_source": {"path": str(self.path)}}}
        path = lab.write("istio.json", json.dumps(bootstrap))
        self.begun = time.monotonic()
        self.child = lab.start(
            program("envoy"), "-c", path, "--concurrency", 1, "--use-dynamic-base-id", "--log-level", "error"
        )

    def clusters(self, changed=None):
        kind = {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster"}
        clusters = proxies.istio_clusters(self.targets, self.bundle, changed=changed)
        return json.dumps({"resources": [{**kind, **cluster} for cluster in clusters]})

    def prepared(self, changed):
        return self.path, self.clusters(changed)

    def envoy(self):
        return self.child.pid


class NotReady(Exception):
    """It gave up before it answered anything; which is a result."""


def until(proxy, host, body):
    """Asks until the origin saw this SNI."""

    def condition():
        alive("the proxy", proxy.child)
        status, told = asked(proxy.port, host)
        return status == 200 and told.startswith(f"{body} ")

    wait_for(f"an answer of {host}", condition, limit=PATIENCE, step=0.01)


def one(label, kind, count):
    """The figures of one shape and size.

    `ready_parts` and `applied_parts` are CPU seconds by what took them; they may overlap, and the worker's are those of the
    load as well.
    """
    with Lab() as lab:
        bundle = lab.run / "bundle.pem"
        system = Path("/etc/ssl/certs/ca-certificates.crt")
        bundle.write_text((lab.run / "ca.pem").read_text() + (system.read_text() if system.exists() else ""))
        origin = Origin(lab, {"h1": {}})
        origin.serve("good")
        dns = Dns(TTL)
        names = hosts(count)
        proxy = kind(lab, dict.fromkeys(names, origin.ports["h1"]), dns, bundle)
        try:
            until(proxy, names[0], names[0])
        except Failure as failure:
            raise NotReady(" ".join(str(failure).split())) from failure
        ready, ready_parts = time.monotonic() - proxy.begun, since({}, worked(proxy))
        idle = resident(proxy.envoy())
        for name in names[: IN_USE.get(label, FEW_IN_USE)]:
            until(proxy, name, name)
        before = dns.asked
        time.sleep(WINDOW)
        queries = (dns.asked - before) * 60 / WINDOW
        memory = resident(proxy.envoy())
        parts = proxy.memory_parts() if kind is not Istio else {}
        load = Load(lab, origin, proxy.port, names[0])
        changing = names[-1]
        path, text = proxy.prepared({changing: "changed.bench.example.com"})
        load.resume()
        before = worked(proxy)
        begun = time.monotonic()
        replace(path, text)
        until(proxy, changing, "changed.bench.example.com")
        applied, applied_parts = time.monotonic() - begun, since(before, worked(proxy))
        requests = load.finish(f"{kind.__name__} of {count} hosts during the change")
        origin.must_be_verified_tls()
    return {
        "ready": ready, "idle": idle, "memory": memory, "queries": queries, "applied": applied, "requests": requests,
        "ready_parts": ready_parts, "applied_parts": applied_parts, "memory_parts": parts,
    }  # fmt: skip


def measure(note):
    """The table of this part, and what the budgets need of it."""
    rows, facts = [], {}
    for name, kind in [(OURS, Ours), (EIGHT, Eight), (WASM, Wasm), (ISTIO, Istio)]:
        for count in SIZES[name]:
            note(f"{count} hosts, {name}")
            if name == ISTIO and free_kb() < count * KB_A_HOST * 1.5:
                rows.append([name, f"{count:,}", f"not measured: {free_kb() >> 20} GB of memory are free", *[""] * 6])
                continue
            try:
                fact = facts[name, count] = one(name, kind, count)
            except NotReady as reason:
                if name != ISTIO and count <= MANY:
                    raise Failure(str(reason)) from reason
                rows.append([name, f"{count:,}", f"not ready: {reason}", *[""] * 6])
                continue
            above, idle = (fact[when] - facts[name, 1][when] for when in ["memory", "idle"])
            rows.append([
                name, f"{count:,}", f"{fact['ready']:.2f} s", f"{fact['memory']:.0f} MB", f"{idle:+.0f} MB", f"{above:+.0f} MB",
                f"{fact['applied']:.2f} s", f"0 of {fact['requests']:,}", f"{fact['queries']:.0f}",
            ])  # fmt: skip
    head = [
        "",
        "hosts",
        "ready",
        "Envoy's memory",
        "above one host, idle",
        "in use",
        "a change applied",
        "failed meanwhile",
        "DNS queries a minute",
    ]
    told = (
        "Ready is the time from the start of `egressctl run` to the first answer. For Istio's shape it starts with Envoy, "
        "because its configuration is generated before. Memory is resident memory, when it no longer changes. Applied is the "
        "time from the rename of the changed file to the first answer from a server that saw the changed host's new SNI. "
        f"There is load on another host meanwhile. DNS answers have a TTL of {TTL} s. {FEW_IN_USE} hosts (or all; with 8 workers {IN_USE[EIGHT]:,}) are in use, and "
        f"queries are counted for {WINDOW} s. Istio's shape is read from a file as a whole; istiod would send only the cluster "
        "that changed.\n"
    )
    return table(head, rows) + "\n" + told, facts
