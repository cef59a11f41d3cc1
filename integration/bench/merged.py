"""Part 6: what a request costs in Istio, with Istio's own TLS and with what `render istio` merges into it.

Both are the configuration that a live istiod gave (integration/tests/istio-live/own-simple.json). They differ in what is
merged, and in nothing else.
"""

import copy
import json
import subprocess
from pathlib import Path

import kept
import proxies
from figures import Compared, ratio, spread, table
from lab import HOST, QUICK, RELEASE, ROOT, Failure, Lab, Origin

RECORDED = ROOT / "integration/tests/istio-live/own-simple.json"
RECORDED_HOST = "api.example.com"
ALONE, MERGED = "Istio's own TLS", "the same, with ours merged into it"
MOST = 1.02
ROUNDS = 11 if QUICK else 151


def merged(lab, given):
    """What is merged into the cluster: the last of the patches for it, which replaces what the first one left."""
    items = {"apiVersion": "v1", "kind": "List", "items": given}
    command = [RELEASE / "egressctl", "render", "istio", "-o", "json", "-f", lab.write("rules.json", json.dumps(items))]
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"egressctl render istio: {done.stderr}")
    items = json.loads(done.stdout)["items"]
    patches = next(item for item in items if item["kind"] == "EnvoyFilter")["spec"]["configPatches"]
    name = f"outbound|80||{HOST}"
    mine = [one["patch"]["value"] for one in patches if one["match"]["cluster"]["name"] == name]
    if [list(one) for one in mine] != [["transport_socket"]] * 2:
        raise Failure(f"other patches than one that clears and one that fills: {patches}")
    return mine[1]["transport_socket"]


def bootstrap(lab, recorded, port, socket=None):
    """An Envoy with the recorded listener, routes and cluster, whose server is on a port."""
    cluster = copy.deepcopy(next(one for one in recorded["clusters"] if one["name"] == f"outbound|80||{HOST}"))
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    if socket:
        # Of a rule with names, such as the closed one, istiod makes a cluster without this.
        options = cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
        options["upstream_http_protocol_options"].pop("auto_san_validation")
        cluster["transport_socket"] = copy.deepcopy(socket)
    context = cluster["transport_socket"]["typed_config"]["common_tls_context"]["combined_validation_context"]
    secret = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "file-root:system",
        "validation_context": {"trusted_ca": {"filename": str(lab.run / "ca.pem")}},
    }
    path = lab.write("secret.json", json.dumps({"resources": [secret]}))
    source = {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}
    context["validation_context_sds_secret_config"]["sds_config"] = source
    listener = copy.deepcopy(next(one for one in recorded["listeners"] if one["name"].endswith("_80")))
    listener["address"]["socket_address"]["port_value"] = lab.port()
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    name = manager.pop("rds")["route_config_name"]
    manager["route_config"] = next(one for one in recorded["routes"] if one["name"] == name)
    return {
        "node": {"id": "sidecar", "cluster": "bench"},
        "static_resources": {"clusters": [cluster], "listeners": [listener]},
    }


def measure(note):
    """The table of this part, and the ratio."""
    note("requests in Istio, without and with what is merged")
    recorded = json.loads(Path(RECORDED).read_text().replace(RECORDED_HOST, HOST))
    with Lab() as lab:
        origin = Origin(lab, {"h1": {}})
        origin.serve("good")
        socket = merged(lab, recorded["given"])
        running = {}
        for name, mine in [(ALONE, None), (MERGED, socket)]:
            made = bootstrap(lab, recorded, origin.ports["h1"], mine)
            running[name] = proxies.envoy(lab, "alone" if mine is None else "merged", made)
        kept.must_verify(origin, running)
        taken = kept.cpu(lab, origin, running, ROUNDS)
        if set(origin.must_be_verified_tls()) != {"h1"}:
            raise Failure("the origin was asked in another protocol")
    compared = {name: Compared(samples, taken[ALONE]) for name, samples in taken.items()}
    rows = [[name, ratio(one.low), ratio(one.paired), spread(one.spread)] for name, one in compared.items()]
    head = ["CPU per request", "10th percentile", "median of paired differences", "its quartiles"]
    return table(head, rows), compared[MERGED]
