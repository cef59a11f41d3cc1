"""Part 2: what a new connection costs, by TLS version, with and without resumption, SIMPLE and MUTUAL."""

import itertools

import figures
import proxies
from figures import Compared, ratio, spread, table
from lab import QUICK, Dns, Failure, Lab, Load, Origin, asked

LIMIT, OURS, NGINX, HAPROXY = "Envoy without a filter", "ours", "NGINX", "HAProxy"
NATIVE, ISTIO = "ours, native", "Istio's plain shape"
# Of Istio's plain shape.
NATIVE_MOST = 1.03
ROUNDS = 3 if QUICK else 31
SAMPLE = 0.08
VERSIONS = ["TLSv1.3"] if QUICK else ["TLSv1.2", "TLSv1.3"]
SESSIONS = 64  # more than there are connections at a time


def services():
    """For each way of connecting the settings of the origin's server."""
    for tls, resumed, mutual in itertools.product(VERSIONS, [False, True], [False, True]):
        words = [tls, "resumed" if resumed else "full", "MUTUAL" if mutual else "SIMPLE"]
        yield " ".join(words), {"tls": tls, "resumed": resumed, "mutual": mutual, "closes": True}


def host_of(name):
    return name.replace(" ", "-").replace(".", "").lower() + ".bench.example.com"


def with_sessions(bootstrap):
    """Room for the session of every connection, in each cluster's TLS context."""

    def walk(value):
        if isinstance(value, dict):
            if "max_session_keys" in value:
                value["max_session_keys"] = SESSIONS
            value = list(value.values())
        for one in value if isinstance(value, list) else []:
            walk(one)

    walk(bootstrap)
    return bootstrap


def start_all(lab, origin, dns):
    """Each variant with its port for each of the services; all but Envoy in two processes, with and without a key."""
    (lab.run / "client-both.pem").write_text(
        (lab.run / "client.pem").read_text() + (lab.run / "client.key").read_text()
    )
    targets = {host_of(name): port for name, port in origin.ports.items()}
    mutual = {host_of(name): lab.run for name, settings in origin.services.items() if settings["mutual"]}
    port = lab.port()
    rules = list(proxies.rules(targets, mutual=mutual))
    bootstrap = proxies.rendered(lab, rules, port)
    bootstrap = with_sessions(proxies.without_log(bootstrap))
    native = proxies.rendered(lab, rules, lab.port(), "--filter", "module", "--envoy-version", proxies.pinned())
    native = proxies.envoy(lab, "native", with_sessions(proxies.without_log(native)))
    clusters = proxies.istio_clusters(targets, str(lab.run / "ca.pem"), mutual=mutual)
    istio = with_sessions(proxies.istio(bootstrap, targets, clusters, dns.port))
    istio = proxies.envoy(lab, "istio", proxies.at_port(istio, lab.port()))
    running = {}
    bare = proxies.envoy(lab, "limit", proxies.at_port(proxies.limit(bootstrap, targets), lab.port()))
    ours = proxies.envoy(lab, "ours", bootstrap)
    for name in origin.services:
        running[LIMIT, name], running[OURS, name] = bare, ours
        running[NATIVE, name], running[ISTIO, name] = native, istio
    for resumed, wanted in itertools.product([False, True], [False, True]):
        names = [name for name, one in origin.services.items() if (one["resumed"], one["mutual"]) == (resumed, wanted)]
        some = {host_of(name): origin.ports[name] for name in names}
        key = lab.run if wanted else None
        nginx = proxies.nginx(lab, some, False, folder=key, resumed=resumed)
        haproxy = proxies.haproxy(lab, some, False, folder=key, resumed=resumed)
        for name in names:
            running[NGINX, name], running[HAPROXY, name] = nginx, haproxy
    return running


def measure(note):
    """The table of this part, and what the budgets need of it."""
    note("new connections")
    with Lab() as lab:
        origin = Origin(lab, dict(services()))
        origin.serve("good")
        running = start_all(lab, origin, Dns(ttl=60))
        origin.serve("good")  # what is noted begins here
        for (variant, name), proxy in running.items():
            status, body = asked(proxy.port, host_of(name))
            if status != 200:
                raise Failure(f"{variant}, {name}: {status} {body}")
        loads = {key: Load(lab, origin, proxy.port, host_of(key[1]), connections=4) for key, proxy in running.items()}
        settle = 0.02
        taken = figures.rounds(ROUNDS, running, lambda key: loads[key].sample(running[key].clock, 0, settle, SAMPLE))
        for key, load in loads.items():
            load.finish(f"{key[0]}, {key[1]}")
        for name, reused in origin.must_be_verified_tls().items():
            share = sum(reused) / len(reused)
            if origin.services[name]["resumed"] and share < 0.9 or not origin.services[name]["resumed"] and share > 0:
                raise Failure(f"{name}: {share:.0%} of the connections were resumed")
    rows, facts = [], {}
    base = taken[LIMIT, "TLSv1.3 full SIMPLE"]
    for name in origin.services:
        limit = taken[LIMIT, name]
        row = [name, ratio(figures.tenth(limit) / figures.tenth(base))]
        facts[name] = Compared(taken[NATIVE, name], taken[ISTIO, name])
        row += [ratio(facts[name].low), spread(facts[name].spread)]
        for variant in [OURS, NGINX, HAPROXY]:
            one = Compared(taken[variant, name], limit)
            row += [ratio(one.low), spread(one.spread)]
        rows.append(row)
    head = ["CPU per connection and its request", "limit, to TLSv1.3 full SIMPLE"]
    head += [f"{NATIVE}, to {ISTIO}", "quartiles"]
    for variant in [OURS, NGINX, HAPROXY]:
        head += [f"{variant}, to the limit", "quartiles"]
    told = (
        f"10th percentiles of {len(base)} samples, quartiles of paired differences. The limit is Envoy without a filter: "
        f"it took, for a full TLSv1.3 handshake with SIMPLE and one request, {figures.tenth(base) / 1000:.0f} µs of the worker's CPU. "
        f"`max_session_keys` is {SESSIONS} here. In rows with resumed, the origin saw at least 90 % of the connections "
        "resume; in the others, none.\n"
    )
    return table(head, rows) + "\n" + told, facts
