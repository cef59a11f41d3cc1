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
NATIVE_REPAIRS, WASM_REPAIRS = (
    "the native module, repair on, nothing to repair",
    "the wasm filter, repair on, nothing to repair",
)
BUDGETS = {
    SHAPE: 1.00,
    SHAPE_SHARED: 1.00,
    NATIVE: 1.05,
    NATIVE_SHARED: 1.05,
    NATIVE_REPAIRS: 1.10,
    WASM: 1.25,
    WASM_SHARED: 1.25,
    WASM_REPAIRS: 1.30,
}
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
    # Answers are looked at where that is what is measured.
    alone = ["--repair", "none"]
    native_repairs, wasm_repairs = rendered(own, *module), rendered(own, *module[2:])
    native, native_shared = rendered(own, *module, *alone), rendered(by_name, *shared, *module, *alone)
    wasm, wasm_shared = rendered(own, *module[2:], *alone), rendered(by_name, *shared, *module[2:], *alone)
    clusters = proxies.istio_clusters(targets, str(lab.run / "ca.pem"), h2)
    named = f"{HOST}:{target}"
    # Without a filter there is nothing of it to be logged, and to find that out costs some.
    bare = [proxies.limit(native_repairs, targets), proxies.without_filter(native_shared)]
    for one in bare:
        proxies.manager(one)["access_log"] = [proxies.istio_log(proxies.manager(one)["access_log"][0])]
    made = {
        ISTIO: (proxies.istio(wasm, targets, clusters, dns.port), HOST),
        SHAPE: (bare[0], HOST),
        SHAPE_SHARED: (bare[1], named),
        NATIVE: (native, named),
        NATIVE_SHARED: (native_shared, named),
        NATIVE_REPAIRS: (native_repairs, named),
        WASM: (wasm, named),
        WASM_SHARED: (wasm_shared, named),
        WASM_REPAIRS: (wasm_repairs, named),
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


def without(*keys):
    """Takes fields from the connection manager."""

    def change(bootstrap):
        for key in keys:
            proxies.manager(bootstrap).pop(key)

    return change


def routes(bootstrap):
    return [route for host in proxies.manager(bootstrap)["route_config"]["virtual_hosts"] for route in host["routes"]]


def without_in_routes(*path):
    """Takes a field from each route."""

    def change(bootstrap):
        for found in routes(bootstrap):
            for key in path[:-1]:
                found = found[key]
            found.pop(path[-1])

    return change


def one_route(bootstrap):
    """All requests take the route of those that may not be sent twice."""
    for host in proxies.manager(bootstrap)["route_config"]["virtual_hosts"]:
        host["routes"] = host["routes"][-1:]


def idle_filter(bootstrap):
    """A filter of Envoy's that does nothing."""
    config = {"@type": f"{proxies.HTTP}.header_mutation.v3.HeaderMutation"}
    proxies.manager(bootstrap)["http_filters"].insert(0, {"name": "idle", "typed_config": config})


# What our shape has that Istio's has not, and what takes it away; and what each filter costs for being there.
PIECES = {
    "without taking clients' x-egress- and x-envoy- headers": without("early_header_mutation_extensions"),
    "without `:scheme` as the server sees it": without("scheme_header_transformation"),
    "without `x-forwarded-proto: https`": without_in_routes("request_headers_to_add"),
    "without the dialled port in `Host`": without_in_routes("route", "host_rewrite_literal"),
    "without a route of their own for requests that may be sent twice": one_route,
    "without retries": without_in_routes("route", "retry_policy"),
    "without statistics by route": without_in_routes("stat_prefix"),
    "without limits of headers and time": without(
        "request_headers_timeout", "stream_idle_timeout", "max_request_headers_kb", "common_http_protocol_options"
    ),
    "without what old clients need": without("http_protocol_options", "local_reply_config"),
    "with a filter of Envoy's that does nothing": idle_filter,
}


def pieces(note):
    """What each piece of our shape costs, alone and all together."""
    note("the pieces of our shape")
    with Lab(pinned=True) as lab:
        dns = Dns(ttl=60)
        origin = Origin(lab, {"h1": {}, "h2": {"h2": True}})
        origin.serve("good")
        shape, _ = bootstraps(lab, origin, dns, False)[SHAPE]
        variants = {SHAPE: []} | {name: [change] for name, change in PIECES.items()}
        taken_away = [change for name, change in PIECES.items() if name.startswith("without")]
        variants["without all of these"] = taken_away
        running = {}
        for name, changes in variants.items():
            for number in range(PROCESSES):
                mine = proxies.at_port(proxies.without_log(shape), lab.port())
                for change in changes:
                    change(mine)
                running[name, number] = proxies.envoy(lab, f"piece-{len(running)}", mine)
        taken = kept.cpu(lab, origin, running, ROUNDS)
        if set(origin.must_be_verified_tls()) != {"h1"}:
            raise Failure("the origin was asked in another protocol")
        told, _ = compared(taken, SHAPE)
    return f"### What our shape consists of\n\nHTTP/1.1 to the server, access log off.\n\n{told}"


def measure(note):
    """The tables of this part, and which budgets were kept."""
    text, verdicts = [pieces(note)], {}
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
