"""Part 7: what a request costs by Istio's measure: in CPU time of Envoy, with each variant in several processes.

Envoy has one core, and everything else another. Two processes of one program differ by some per cent, which no number
of samples evens out; so Istio's shape is measured against itself as well, and a budget is met within that spread.
"""

import copy
import json
from statistics import median

import figures
import kept
import merged
import proxies
from figures import ratio, spread, table
from lab import HOST, QUICK, Dns, Failure, Lab, Origin

ISTIO, LIVE = "Istio's plain shape", "Istio's, as a live istiod has it"
SHAPE, SHAPE_SHARED = "our shape without a filter, own cluster", "our shape without a filter, shared cluster"
NATIVE, NATIVE_SHARED = "the native module, own cluster", "the native module, shared cluster"
WASM, WASM_SHARED = "the wasm filter, own cluster", "the wasm filter, shared cluster"
BUDGETS = {SHAPE: 1.00, SHAPE_SHARED: 1.00, NATIVE: 1.05, NATIVE_SHARED: 1.05, WASM: 1.25, WASM_SHARED: 1.25}
PROCESSES = 2 if QUICK else 5
ROUNDS = 5 if QUICK else 15
# Whether it is HTTP/2 to the server, and whether requests are logged.
SETTINGS = [(False, False)] if QUICK else [(False, False), (False, True), (True, False), (True, True)]


def bootstraps(lab, origin, dns, h2):
    """The configuration of each variant that is an Envoy, and what its clients call the host."""
    target = origin.ports["h2" if h2 else "h1"]
    targets = {HOST: target}
    module = ["--filter", "module", "--envoy-version", proxies.pinned()]
    shared = ["--resolver", f"127.0.0.1:{dns.port}"]
    own, by_name = proxies.rules(targets), proxies.rules(targets, "DNS")
    own, by_name = list(own), list(by_name)
    rendered = lambda rules, *options: proxies.rendered(lab, rules, lab.port(), *options)
    native, native_shared = rendered(own, *module), rendered(by_name, *shared, *module)
    wasm, wasm_shared = rendered(own, *module[2:]), rendered(by_name, *shared, *module[2:])
    clusters = proxies.istio_clusters(targets, str(lab.run / "ca.pem"), h2)
    named = f"{HOST}:{target}"
    # Without a filter there is nothing of it to be logged, and to find that out costs some.
    bare = [proxies.limit(native, targets), proxies.without_filter(native_shared)]
    for one in bare:
        proxies.manager(one)["access_log"] = [proxies.istio_log(proxies.manager(one)["access_log"][0])]
    made = {
        ISTIO: (proxies.istio(wasm, targets, clusters, dns.port), HOST),
        SHAPE: (bare[0], HOST),
        SHAPE_SHARED: (bare[1], named),
        NATIVE: (native, named),
        NATIVE_SHARED: (native_shared, named),
        WASM: (wasm, named),
        WASM_SHARED: (wasm_shared, named),
    }
    if not h2:
        recorded = json.loads(merged.RECORDED.read_text().replace(merged.RECORDED_HOST, HOST))
        live = merged.bootstrap(lab, recorded, target)
        proxies.manager(live)["access_log"] = proxies.manager(made[ISTIO][0])["access_log"]
        made[LIVE] = (live, HOST)
    return made


def start_all(lab, origin, dns, h2, log):
    """Each variant in as many processes as are measured; other proxies in one."""
    running = {}
    for name, (bootstrap, authority) in bootstraps(lab, origin, dns, h2).items():
        bootstrap = bootstrap if log else proxies.without_log(bootstrap)
        for number in range(PROCESSES):
            mine = proxies.at_port(copy.deepcopy(bootstrap), lab.port())
            running[name, number] = proxies.envoy(lab, f"costs-{len(running)}", mine, authority)
    targets = {HOST: origin.ports["h2" if h2 else "h1"]}
    running["HAProxy", 0] = proxies.haproxy(lab, targets, log, h2)
    if not h2:
        running["NGINX", 0] = proxies.nginx(lab, targets, log)
        running["stunnel", 0] = proxies.stunnel(lab, targets[HOST])
    return running


def processes(taken, name):
    """The samples of each process of a variant."""
    return [samples for (variant, _), samples in taken.items() if variant == name]


def compared(taken, istio):
    """One table: each variant against Istio's shape, and Istio's processes against each other."""
    base = processes(taken, istio)
    own = max(figures.Processes([one], base[:at] + base[at + 1 :]).middle for at, one in enumerate(base))
    rows, verdicts = [], {}
    for name in dict.fromkeys(variant for variant, _ in taken):
        one = figures.Processes(processes(taken, name), base)
        budget, verdict = BUDGETS.get(name), ""
        if budget and istio == ISTIO:
            verdict = verdicts[name] = "kept" if one.interval[1] <= budget + own - 1 else "missed"
        rows.append([name, ratio(one.middle), spread(one.interval), f"≤ {budget:.2f}" if verdict else "", verdict])
    head = [f"CPU per request, to {istio}", "median of paired differences", "its 95 % interval", "budget", ""]
    middle = median([sample for samples in base for sample in samples])
    told = (
        f"1.00 is {middle / 1000:.1f} µs. One process of {istio} against the others of it: up to {own:.3f}. A budget is kept if the "
        f"interval ends at most {own - 1:.3f} above it. {len(base)} processes a variant (other proxies: one), {len(base[0])} samples each.\n"
    )
    return table(head, rows) + "\n" + told, verdicts


def measure(note):
    """The tables of this part, and which budgets were kept."""
    text, verdicts = [], {}
    for h2, log in SETTINGS:
        title = f"HTTP/{'2' if h2 else '1.1'} to the server, access log {'on' if log else 'off'}"
        note(f"{title}, {PROCESSES} processes each")
        with Lab(pinned=True) as lab:
            dns = Dns(ttl=60)
            origin = Origin(lab, {"h1": {}, "h2": {"h2": True}})
            origin.serve("good")
            running = start_all(lab, origin, dns, h2, log)
            kept.must_verify(origin, running)
            taken = kept.cpu(lab, origin, running, ROUNDS)
            told, verdicts[h2, log] = compared(taken, ISTIO)
            text.append(f"### {title}\n\n{told}")
            if not h2:
                told, _ = compared(taken, LIVE)
                text.append(told)
            if set(origin.must_be_verified_tls()) != {"h2" if h2 else "h1"}:
                raise Failure("the origin was asked in another protocol")
    return "\n".join(text), verdicts
