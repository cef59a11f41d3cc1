"""Part 5: memory over ten million requests, as a plot. Not part of `make bench` as a whole, for it takes a quarter of an hour."""

import re
import time
from itertools import pairwise
from pathlib import Path

import proxies
from figures import table
from lab import HERE, HOST, QUICK, Dns, Failure, Lab, Load, Origin, alive

REQUESTS = 30_000 if QUICK else 10_000_000
POINTS = 10 if QUICK else 200
OTHER = "other.bench.example.com"
# A tenth of the requests warms up what is kept: connections, buffers, the allocators' pages.
WARM = 10
# What may come on top in the nine tenths behind it. One byte a request would be nine times as much, in MB.
FLAT_MB = 1.0
MB = 1 << 20
# V8 puts a guard behind each memory of wasm, which nothing else has as large.
GUARD = 1 << 31


class Sample:
    """Memory after so many requests, in bytes."""

    def __init__(self, requests, pid):
        self.requests = requests
        status = Path(f"/proc/{pid}/status").read_text()
        self.resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10
        self.vms = sum(linear_memories(pid))


def linear_memories(pid):
    """The size of each VM's memory, as wasm sees it."""
    return [end - begin for begin, end in places_of_memories(pid)]


def resident_memories(pid):
    """What of the VMs' memories is resident, in bytes."""
    begins = {begin for begin, _ in places_of_memories(pid)}
    resident, here = 0, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if place := re.match(r"([0-9a-f]+)-", line):
            here = int(place[1], 16)
        elif line.startswith("Rss:") and here in begins:
            resident += int(line.split()[1]) << 10
    return resident


def places_of_memories(pid):
    """Where each VM's memory is: what lies, readable and writable, before a guard."""
    maps = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights = line.split()[:2]
        begin, end = (int(word, 16) for word in span.split("-"))
        maps.append((begin, end, rights))
    for (begin, end, rights), (after, after_end, after_rights) in pairwise(maps):
        if rights.startswith("rw") and after_rights.startswith("---") and end == after and after_end - after >= GUARD:
            yield begin, end


def rules(targets):
    """A host with a cluster of its own, and one that shares a cluster."""
    port = targets["h1"]
    yield from proxies.rules({HOST: port})
    yield from proxies.rules({OTHER: port}, "DNS")


def measure(note):
    """The text of this part and its plot."""
    note(f"memory over {REQUESTS:,} requests")
    with Lab() as lab:
        dns = Dns(ttl=60)
        origin = Origin(lab, {"h1": {}})
        origin.serve("good")
        bootstrap = proxies.rendered(lab, rules(origin.ports), lab.port(), "--resolver", f"127.0.0.1:{dns.port}")
        envoy = proxies.envoy(lab, "envoy", bootstrap)
        loads = [Load(lab, origin, envoy.port, host) for host in (HOST, OTHER)]
        samples = [Sample(0, envoy.child.pid)]
        before = origin.counts()[1]
        for load in loads:
            load.resume()
        for point in range(1, POINTS + 1):
            while (done := origin.counts()[1] - before) < REQUESTS * point // POINTS:
                alive("Envoy", envoy.child)
                time.sleep(0.05)
            samples.append(Sample(done, envoy.child.pid))
        made = sum(load.finish("the filter") for load in loads)
        origin.must_be_verified_tls()
    if not samples[-1].vms:
        raise Failure("no memory of a VM was found")
    if made < REQUESTS:
        raise Failure(f"{made} requests were made, not {REQUESTS}")
    return told(samples), plot(samples)


def growth(samples, of):
    """From the first tenth to the end, in MB: between medians of tenths, for single samples have what is in flight."""
    tenth = max(1, len(samples) // WARM)
    middle = lambda some: sorted(of(one) for one in some)[len(some) // 2]
    return (middle(samples[-tenth:]) - middle(samples[tenth : 2 * tenth])) / MB


def told(samples):
    rows = []
    for words, of in [
        ("resident memory of Envoy", lambda one: one.resident),
        ("memory of all VMs, as wasm sees it", lambda one: one.vms),
    ]:
        more = growth(samples, of)
        flat = "kept" if more <= FLAT_MB else "missed"
        rows.append(
            [
                words,
                *(f"{of(one) / MB:.1f} MB" for one in (samples[0], samples[len(samples) // WARM], samples[-1])),
                f"{more:+.2f} MB",
                flat,
            ]
        )
    head = [
        "",
        "at first",
        f"after {samples[len(samples) // WARM].requests:,}",
        f"after {samples[-1].requests:,}",
        "from then on",
        "",
    ]
    words = (
        "Half of the requests go to a host with a cluster of its own, half to a host of a shared cluster. All are logged to "
        "/dev/null. From then on is the difference between the medians of the second and the last tenth of the requests. The "
        f"budget is that memory is flat, up to {FLAT_MB:.0f} MB.\n"
    )
    return table(head, rows) + "\n" + words


def plot(samples):
    """An SVG of both lines."""
    width, height, left, top = 720, 320, 60, 20
    most = max(one.resident for one in samples) * 1.15
    x = lambda one: left + (width - left - 20) * one.requests / samples[-1].requests
    y = lambda size: height - 40 - (height - 40 - top) * size / most
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for step in range(6):
        size = most * step / 5
        parts.append(f'<path d="M{left} {y(size):.1f}H{width - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(size) + 4:.1f}" text-anchor="end">{size / MB:.0f} MB</text>')
        requests = samples[-1].requests * step / 5
        at = left + (width - left - 20) * step / 5
        parts.append(f'<text x="{at:.1f}" y="{height - 22}" text-anchor="middle">{requests / 1e6:.3g}</text>')
    parts.append(f'<text x="{width / 2:.0f}" y="{height - 5}" text-anchor="middle">requests, in millions</text>')
    for words, colour, of in [
        ("Envoy, resident", "#1f77b4", lambda one: one.resident),
        ("all VMs", "#d62728", lambda one: one.vms),
    ]:
        points = " ".join(f"{x(one):.1f},{y(of(one)):.1f}" for one in samples)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{width - 24}" y="{y(of(samples[-1])) - 6:.1f}" text-anchor="end" fill="{colour}">{words}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(text, drawing):
    """Beside RESULTS.md, which a run of the other parts writes."""
    (HERE / "memory.svg").write_text(drawing)
    (HERE / "MEMORY.md").write_text(
        f"# Memory over {REQUESTS:,} requests\n\n{text}\n![Memory by the number of requests](memory.svg)\n"
    )
