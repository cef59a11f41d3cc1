"""Part 4: the filter's size, the start of its VM, and how fast the engine compiles and decides, natively and inside V8."""

import gzip
import json
import os
import subprocess
import time
from pathlib import Path
from statistics import median

import figures
import proxies
from figures import ratio, spread, table
from lab import HERE, HOST, QUICK, ROOT, Failure, Lab, Origin, asked

SIZES = [10, 1000] if QUICK else [10, 1000, 10000, 100000]
LIMIT, EMPTY, OURS = "Envoy without a filter", "an empty wasm filter", "ours"


def start_up(note):
    """From the start of Envoy to its first answer, for one host."""
    note("start of the VM")
    with Lab() as lab:
        origin = Origin(lab, {"h1": {}})
        origin.serve("good")
        targets = {HOST: origin.ports["h1"]}
        ours = proxies.without_log(proxies.rendered(lab, proxies.rules(targets), lab.port()))
        bare = proxies.limit(ours, targets)
        bootstraps = {LIMIT: bare, EMPTY: proxies.empty_wasm(bare, lab), OURS: ours}

        def sample(name):
            bootstrap = proxies.at_port(bootstraps[name], lab.port())
            begun = time.monotonic()
            proxy = proxies.envoy(lab, "envoy", bootstrap)
            taken = time.monotonic() - begun
            if asked(proxy.port)[0] != 200:
                raise Failure(f"{name} does not answer")
            lab.end(proxy.child)
            return taken

        taken = figures.rounds(2 if QUICK else 10, bootstraps, sample)
        origin.must_be_verified_tls()
    base = median(taken[LIMIT])
    rows = [
        [name, ratio(median(one) / base), spread((min(one) / base, max(one) / base))] for name, one in taken.items()
    ]
    told = f"1.00 is {base * 1000:.0f} ms from the start of Envoy to its first answer.\n"
    return table(["start with one host", "median", "from–to"], rows) + "\n" + told


def size():
    """The module that Envoy loads."""
    module = proxies.WASM.read_bytes()
    packed = len(gzip.compress(module, 9))
    return f"`egress-filter.wasm` has {len(module) / 1000:.0f} kB, {packed / 1000:.0f} kB with gzip.\n"


def criterion(note):
    """What `make bench-engine` measures, in one run of it: the table, and nanoseconds by group and number of hosts."""
    note("the engine")
    subprocess.run(["cargo", "bench", "-q", "-p", "egress-policy", "--bench", "engine", "--", "--quick", "--noplot"], check=True,
                   cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "criterion"
    rows = []
    for path in folder.glob("**/new/benchmark.json"):
        if path.stat().st_mtime < time.time() - 3600:
            continue  # of a benchmark that no longer exists
        about, estimates = json.loads(path.read_text()), json.loads(path.with_name("estimates.json").read_text())
        each = (about["throughput"] or {}).get("Elements", 1)
        mean = estimates["mean"]
        interval = mean["confidence_interval"]
        values = [value / each for value in (mean["point_estimate"], interval["lower_bound"], interval["upper_bound"])]
        rows.append((about["group_id"], int(about["value_str"] or 0), values))
    if not rows:
        raise Failure("cargo bench left no estimates")
    told = lambda value: f"{value:.0f} ns"
    cells = [
        [f"{group}, {count:,} hosts", told(mean), f"{told(lower)}–{told(upper)}"]
        for group, count, (mean, lower, upper) in sorted(rows)
    ]
    means = {(group, count): values[0] for group, count, values in rows}
    return table(["engine, each resource or request", "mean", "interval"], cells), means


def inside_v8(note):
    """What the module costs in the V8 of Node, whose host answers every call at once."""
    note("the filter inside V8")
    node = subprocess.run([ROOT / ".setup/node.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    env = {**os.environ, "PATH": f"{node}:{os.environ['PATH']}" if node else os.environ["PATH"]}
    command = ["node", HERE / "filter.mjs", proxies.WASM, *map(str, SIZES)]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"filter.mjs: {done.stderr.strip()}")
    head = [
        "the filter inside V8",
        "configured, a resource",
        "a request, hosts in turn",
        "a request, one host",
        "the VM's memory, a host",
    ]
    rows = []
    for one in map(json.loads, done.stdout.splitlines()):
        times = [f"{one[key]:.0f} ns" for key in ("configure", "several", "one")]
        rows.append([f"{one['hosts']:,} hosts", *times, f"{one['memory']:.0f} bytes"])
    told = (
        "That is `egress-filter.wasm` in the V8 of Node. JavaScript answers each call to the host at once, and these times include "
        "it. Configured is the time to read and compile the JSON. Memory is what is above one host, and comes in pages of 64 KiB.\n"
    )
    return table(head, rows) + "\n" + told


def measure(note):
    """The tables of this part, and how fast the engine is where that was measured."""
    parts, means = [start_up(note), size(), inside_v8(note)], {}
    if not QUICK:
        text, means = criterion(note)
        parts.append(text)
    return "\n".join(parts), means
