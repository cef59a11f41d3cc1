#!/usr/bin/env python3
"""`make bench`: what originating TLS costs, against Envoy without our filter and against other proxies.

It prints and writes RESULTS.md: ratios, of which each has its two sides measured in this run. QUICK=1 takes few
samples and small sizes, and prints only. PARTS=kept,scale measures only these, and prints only as well; PARTS=memory
sends ten million requests, which takes a quarter of an hour or more, and writes MEMORY.md and memory.svg. PARTS=costs, with the budgets by Istio's measure,
needs two cores that nothing else uses, and writes COSTS.md.
"""

import os
import platform
import re
import signal
import subprocess
import sys
import time

import costs
import engine
import fresh
import kept
import memory
import merged
import scale
from figures import ratio, table
from lab import CIPHERS, HERE, QUICK, RELEASE, ROOT, Failure, program

PARTS = ["kept", "fresh", "scale", "engine", "merge", "costs"]
ALONE = ["memory"]
CPU_LIMIT, CPU_EMPTY = 1.15, 1.10
# Seconds, and MB of Envoy's memory.
READY_ONE, READY, READY_MOST, APPLIED = 0.3, 2.0, 4.0, 1.0
ABOVE, ABOVE_NATIVE, MEMORY_MOST = 40, 30, 250
DECIDE, COMPILE = 150, 500_000
NOISE = 0.05
FEW, MOST = 10, 100_000


def note(words):
    print(f"==> bench: {words}", file=sys.stderr, flush=True)


def calls(compared, name, bare):
    """What stands in the way of a request's budgets, in numbers of the same run."""
    low = {variant: one.low for variant, one in compared.items()}
    more = low[name] - low[bare]
    ours = f"{more:+.2f} is our code" if more > NOISE else f"at most the machine's noise of {NOISE} above that"
    return (
        f"An empty wasm filter takes {ratio(low[kept.EMPTY])} of the limit. A filter that makes our calls with constants, and "
        f"does nothing else, takes {ratio(low[bare])}. Ours takes {ratio(low[name])}: {ours}. The rest is Envoy's own, "
        "for the callbacks and calls that every decision, route and log line needs."
    )


def grown(means, group, words):
    """What many hosts cost that few do not, in numbers of the same run."""
    few, most = (means[group, count] for count in (FEW, MOST))
    return f"{group} takes {few:.0f} ns at {FEW} hosts and {most:.0f} ns at {MOST:,}: {words}."


def worked(parts):
    """What took CPU time until something had happened, the most first."""
    most = sorted((part for part in parts.items() if part[1] >= 0.05), key=lambda part: -part[1])
    told = ", ".join(f"{seconds:.2f} s of {name}" for name, seconds in most)
    return f"It took, in CPU time that partly overlaps: {told}. With one host"


def held(few, most):
    """What Envoy's memory of many hosts consists of, above that of one."""
    more = {name: size - few[name] for name, size in most.items()}
    vms = f"{more['vms']:.0f} MB are in the memories of the filter's two VMs. " if more["vms"] else ""
    return (
        f"Above one host, {vms}Envoy has allocated {more['allocated']:.0f} MB; one copy of the filter's configuration has "
        f"{most['configuration']:.1f} MB. Its allocator keeps {more['free']:.0f} MB for later."
    )


def hosted(many, budget):
    """The budgets of many hosts."""

    def timed(label, count, what, words, most):
        few, mine = many[label, 1], many[label, count]
        reason = f"{worked(mine[what + '_parts'])} it takes {few[what]:.2f} s."
        budget(reason, f"{words} in ≤ {most:.1f} s", mine[what], f"{mine[what]:.2f} s", most)

    def above(label, when, words, most):
        few, mine = many[label, 1], many[label, scale.MANY]
        reason = held(few["memory_parts"], mine["memory_parts"])
        more = mine[when] - few[when]
        budget(reason, f"{words} ≤ {most} MB above one", more, f"{more:.0f} MB", most)

    timed(scale.OURS, 1, "ready", "one host ready", READY_ONE)
    timed(scale.OURS, scale.MANY, "ready", f"{scale.MANY:,} hosts ready", READY)
    timed(scale.OURS, scale.MANY, "applied", f"{scale.MANY:,} hosts, a change of one applied", APPLIED)
    above(scale.EIGHT, "idle", f"{scale.MANY:,} hosts, 8 workers", ABOVE_NATIVE)
    above(scale.WASM, "memory", f"{scale.MANY:,} hosts, wasm form", ABOVE)
    if (scale.OURS, MOST) in many:
        timed(scale.OURS, MOST, "ready", f"{MOST:,} hosts ready", READY_MOST)
        timed(scale.OURS, MOST, "applied", f"{MOST:,} hosts, a change of one applied", APPLIED)
        one, mine = many[scale.OURS, 1], many[scale.OURS, MOST]
        reason = held(one["memory_parts"], mine["memory_parts"])
        words = f"{MOST:,} hosts, memory of Envoy ≤ {MEMORY_MOST} MB"
        budget(reason, words, mine["memory"], f"{mine['memory']:.0f} MB", MEMORY_MOST)


def budgets(requests, connections, many, means, inside):
    """What we aim at, beside what was measured; what is missed stays, with what stands in the way, measured too."""
    rows, missing = [], {}

    def budget(reason, words, measured, told, most):
        missed = measured > most  # of a speed, its inverse is given
        rows.append([words, told, "missed" if missed else "kept"])
        if missed:
            missing.setdefault(reason, {})[words.split(":")[0]] = True

    for (h2, log), compared in requests.items():
        where = f"HTTP/{'2' if h2 else '1.1'}, log {'on' if log else 'off'}"
        for name, bare in [(kept.OURS, kept.BARE), (kept.SHARED, kept.BARE_SHARED)]:
            mine, empty = compared[name].low, compared[name].low / compared[kept.EMPTY].low
            words = f"{name}, {where}: CPU per request"
            reason = calls(compared, name, bare)
            budget(reason, f"{words} ≤ {CPU_LIMIT} of the limit", mine, ratio(mine), CPU_LIMIT)
            budget(reason, f"{words} ≤ {CPU_EMPTY:.2f} of the empty wasm filter", empty, ratio(empty), CPU_EMPTY)
    for name, compared in connections.items():
        words = f"native, {name}: CPU per new connection ≤ {fresh.NATIVE_MOST} of Istio's plain shape"
        reason = "The module adds what it adds to each request of a kept connection, and nothing to the handshake."
        budget(reason, words, compared.low, ratio(compared.low), fresh.NATIVE_MOST)
    if many:
        hosted(many, budget)
    if means:
        for kind in ["exact", "miss", "mixed", "wildcard"]:
            group = f"decide/{kind}"
            took, reason = (
                means[group, MOST],
                grown(means, group, "the steps are the same, and the table is larger than the processor's caches"),
            )
            budget(reason, f"{group} at {MOST:,} hosts ≤ {DECIDE} ns", took, f"{took:.0f} ns", DECIDE)
        took, reason = (
            means["compile", MOST],
            grown(means, "compile", "each resource is looked up among more, and put among more"),
        )
        told = f"{1e9 / took:,.0f}"
        budget(reason, f"compile at {MOST:,} hosts ≥ {COMPILE:,} resources a second", took, told, 1e9 / COMPILE)
    if inside:
        reason = "The patches change one message of a cluster, and nothing that a request passes through."
        words = f"in Istio, merged into its own cluster: CPU per request ≤ {merged.MOST} of Istio's own TLS"
        budget(reason, words, inside.low, ratio(inside.low), merged.MOST)
    reasons = [f"{reason} Hence: {'; '.join(words)}.\n" for reason, words in missing.items()]
    return "\n".join([table(["budget", "measured", ""], rows), *reasons]) if rows else ""


def version(name, flag, pattern):
    done = subprocess.run(
        [program(name), flag], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    found = re.search(pattern, done.stdout)
    if not found:
        raise Failure(f"{name} {flag} tells no version")
    return f"{name} {found[1]}"


def preface():
    versions = [version("nginx", "-v", r"nginx/(\S+)"), version("haproxy", "-v", r"version (\S+)")]
    versions.append(version("stunnel", "-version", r"stunnel (\d\S+)"))
    pinned = [word for word in (ROOT / "envoy/envoy.txt").read_text().split() if "==" in word]
    envoy = pinned[0].split("==")[1]
    return f"""# What originating TLS costs

Written by `make bench{" QUICK=1" if QUICK else ""}`. Read the ratios, and do not compare them with those of another run.
Envoy {envoy}, {", ".join(versions)}; {os.cpu_count()} processors, {platform.machine()}.

All variants verify chain and name. In part 1 each is first tried with a wrong name and with a wrong authority. The server's
log has a line for each connection. Every connection had TLS of the intended version, protocol and cipher
({CIPHERS["TLSv1.3"]} unless stated), and the right SNI. No request failed.

CPU time is that of Envoy's one worker thread, of NGINX's worker, of HAProxy's one thread, and of all of stunnel's threads.
Variants take turns, in an order that is shuffled each round. The 10th percentile is the quiet machine. Logs go to /dev/null.
stunnel has no log of requests; NGINX and stunnel speak no HTTP/2 to servers.
"""


def main():
    chosen = os.environ.get("PARTS", ",".join(PARTS)).split(",")
    if unknown := set(chosen) - {*PARTS, *ALONE}:
        raise Failure(f"PARTS has {', '.join(sorted(unknown))}; there are {', '.join(PARTS + ALONE)}")
    for file in [RELEASE / "egressctl", RELEASE / "egress-filter.wasm"]:
        if not file.exists():
            raise Failure(f"no {file.name}; make build makes it")
    begun = time.monotonic()
    requests, connections, many, means, inside, sections = {}, {}, {}, {}, None, []
    if "kept" in chosen:
        text, requests = kept.measure(note)
        sections.append(f"## 1. Requests over kept connections\n\n{text}")
    if "fresh" in chosen:
        text, connections = fresh.measure(note)
        sections.append(f"## 2. New connections\n\n{text}")
    if "scale" in chosen:
        text, many = scale.measure(note)
        sections.append(f"## 3. Many hosts\n\n{text}")
    if "engine" in chosen:
        text, means = engine.measure(note)
        sections.append(f"## 4. The filter and its engine\n\n{text}")
    if "merge" in chosen:
        text, inside = merged.measure(note)
        sections.append(f"## 6. In Istio\n\n{text}")
    if "memory" in chosen:
        text, plot = memory.measure(note)
        sections.append(f"## 5. Memory over many requests\n\n{text}")
        if not QUICK:
            memory.write(text, plot)
            note("written to integration/bench/MEMORY.md and memory.svg")
    if "costs" in chosen:
        text, _ = costs.measure(note)
        sections.append(f"## 7. Requests, by Istio's measure\n\n{text}")
        if not QUICK:
            (HERE / "COSTS.md").write_text(f"{preface()}\n## Requests, by Istio's measure\n\n{text}")
            note("written to integration/bench/COSTS.md")
    if held := budgets(requests, connections, many, means, inside):
        sections.insert(0, f"## Budgets\n\n{held}")
    text = "\n".join([preface(), *sections])
    print(text)
    note(f"{time.monotonic() - begun:.0f} s")
    if not QUICK and chosen == PARTS:
        (HERE / "RESULTS.md").write_text(text)
        note("written to integration/bench/RESULTS.md")


if __name__ == "__main__":
    for stopped in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stopped, lambda number, _: sys.exit(128 + number))  # so that what was started is stopped
    try:
        main()
    except Failure as failure:
        sys.exit(f"error: {failure}")
