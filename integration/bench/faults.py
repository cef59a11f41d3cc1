#!/usr/bin/env python3
"""`make faults`: what becomes of requests while names and servers fail, with NGINX, HAProxy, Istio's clusters and us.

Each proxy takes plain HTTP for one host and opens verified TLS to it. Each meets the same fault, alone on the machine, with
settings as its manual gives them for names that may move; Istio's column is an Envoy with the cluster and the retries that
istiod gives. It prints the table and writes FAULTS.md. `ONLY=regex` runs these faults alone, and only prints.
"""

import contextlib
import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time

import proxies
from figures import table
from lab import HERE, HOST, Dns, Failure, Lab, alive, asked, fill, program, wait_for

# How long a fault is watched, in seconds.
PATIENCE = 75
REQUESTS = 30
LIVES, DEAD = "127.0.0.1", "127.0.0.9"
RETRIES = {
    "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
    "num_retries": 2,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": "5",
    "retriable_status_codes": [503],
}


class Names(Dns):
    """Leads every name to the same addresses, and fails as often as it is told to."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.code, self.times = 0, 0
        super().__init__(ttl=2)

    def fail(self, code, times):
        self.times, self.code = times, code

    def answer(self):
        if self.times > 0:
            self.times -= 1
            return self.code, []
        return 0, self.addresses


class Server:
    """HTTP in TLS on one address. `turn` says how a connection goes on behind its first answer."""

    def __init__(self, lab, address=LIVES, port=0, turn="keeps"):
        self.turn = turn
        self.requests = 0
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(lab.run / "good.pem", lab.run / "good.key")
        self.listener = socket.create_server((address, port), backlog=256)
        self.port = self.listener.getsockname()[1]
        self.open = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, raw):
        with contextlib.suppress(OSError):
            connection = self.tls.wrap_socket(raw, server_side=True)
            self.open.append(connection)
            caller, answers = None, 0
            while head := self.head(connection):
                self.requests += 1
                if self.turn == "silent" and answers > 0:
                    time.sleep(PATIENCE * 2)
                if self.turn == "resets" and answers > 0:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    break
                # As NTLM does: who logs in has the connection.
                told = re.search(rb"(?i)\r\nauthorization: NTLM (\w+)", head)
                caller = told[1] if told else caller
                body = b"hello " + (caller or b"nobody") + b"\n"
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                answers += 1
                if self.turn == "closes":
                    time.sleep(0.002)
                    break
            connection.close()

    @staticmethod
    def head(connection):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (more := connection.recv(1)):
                return b""
            head += more
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        left = int(length[1]) if length else 0
        while left > 0 and (more := connection.recv(left)):
            left -= len(more)
        return head

    def end(self):
        self.listener.close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.close()


# --- the proxies ---


def ours(lab, port, dns):
    names = [f"127.0.0.1:{one.port}" for one in dns]
    rules = list(proxies.rules({HOST: port}, "DNS"))
    options = [word for name in names for word in ("--resolver", name)]
    return proxies.envoy(lab, "egress", proxies.rendered(lab, rules, lab.port(), *options))


def istio(lab, port, dns):
    plain = proxies.rendered(
        lab, proxies.rules({HOST: port}, "DNS"), lab.port(), "--resolver", f"127.0.0.1:{dns[0].port}"
    )
    clusters = list(proxies.istio_clusters({HOST: port}, str(lab.run / "ca.pem")))
    bootstrap = proxies.istio(plain, {HOST: port}, clusters, dns[0].port)
    for route in proxies.manager(bootstrap)["route_config"]["virtual_hosts"][0]["routes"]:
        route["route"]["retry_policy"] = RETRIES
    resolvers = bootstrap["typed_dns_resolver_config"]["typed_config"]["resolvers"]
    resolvers[:] = [{"socket_address": {"address": "127.0.0.1", "port_value": one.port}} for one in dns]
    return proxies.envoy(lab, "istio", bootstrap)


def nginx(lab, port, dns):
    """The name is in a variable: that is how NGINX looks it up again."""
    resolvers = " ".join(f"127.0.0.1:{one.port}" for one in dns)
    return nginx_with(
        lab,
        f"resolver {resolvers} ipv6=off; resolver_timeout 5s;",
        f"set $up {HOST}; proxy_pass https://$up:{port}; proxy_connect_timeout 5s;",
    )


def nginx_kept(lab, port, dns):
    """With connections that are kept, which a name in a variable does not have."""
    return nginx_with(lab, f"upstream kept {{ server 127.0.0.1:{port}; keepalive 64; }}", "proxy_pass https://kept;")


def nginx_with(lab, above, way):
    listen = lab.port()
    servers = f"""  {above}
  server {{ listen 127.0.0.1:{listen}; location / {{ {way} proxy_ssl_name {HOST}; }} }}"""
    text = fill("nginx.conf", run=lab.run, log="off", ca=lab.run / "ca.pem", servers=servers)
    return started(lab, "nginx", listen, "-p", lab.run, "-c", lab.write("nginx.conf", text))


def started(lab, name, listen, *words):
    child = lab.start(program(name), *words)
    wait_for(name, lambda: alive(name, child) and proxies.listens(listen))
    return proxies.Proxy(name, listen, child, None)


def haproxy(lab, port, dns):
    listen = lab.port()
    servers = "\n".join(f"  nameserver n{at} 127.0.0.1:{one.port}" for at, one in enumerate(dns))
    text = fill("haproxy.cfg", port=listen, log="no log", routes="  default_backend b", backends=f"""backend b
  retries 3
  option redispatch 1
  retry-on conn-failure empty-response
  server-template s 2 {HOST}:{port} check resolvers r init-addr none resolve-prefer ipv4 ssl verify required ca-file {lab.run}/ca.pem \
sni str({HOST}) verifyhost {HOST}
resolvers r
{servers}
  resolve_retries 3
  timeout resolve 1s
  timeout retry 1s
  hold valid 2s
""")  # fmt: skip
    return started(lab, "haproxy", listen, "-f", lab.write("haproxy.cfg", text))


# --- the faults ---


def back_after(proxy, begun, good=lambda status, body: status == 200):
    """In how many seconds requests are answered again."""
    while time.monotonic() < begun + PATIENCE:
        if good(*asked(proxy.port)):
            return f"{time.monotonic() - begun:.1f} s"
        time.sleep(0.2)
    return f"more than {PATIENCE} s"


def looked_up(code, times):
    def fault(lab, start):
        server, names = Server(lab), Names([LIVES])
        names.fail(code, times)
        proxy = start(lab, server.port, [names])
        return back_after(proxy, time.monotonic())

    return fault


def dead_resolver(lab, start):
    server, names = Server(lab), Names([LIVES])
    dead = Names([])
    dead.fail(None, 1 << 30)
    proxy = start(lab, server.port, [dead, names])
    return back_after(proxy, time.monotonic())


def moves(lab, start):
    """A client asks without a pause; the server at the old address lives on."""
    old = Server(lab)
    new = Server(lab, DEAD, old.port)
    names = Names([LIVES])
    proxy = start(lab, old.port, [names])
    back_after(proxy, time.monotonic())
    names.addresses = [DEAD]
    begun, before = time.monotonic(), new.requests
    return back_after(proxy, begun, lambda *_: new.requests > before)


def half_dead(lab, start):
    server = Server(lab, turn="closes")
    proxy = start(lab, server.port, [Names([DEAD, LIVES])])
    back_after(proxy, time.monotonic())
    good = sum(asked(proxy.port)[0] == 200 for _ in range(REQUESTS))
    return f"{good} of {REQUESTS}"


def raced(method):
    def fault(lab, start):
        """Every second request on a connection meets a reset."""
        server = Server(lab, turn="resets")
        proxy = (nginx_kept if start is nginx else start)(lab, server.port, [Names([LIVES])])
        back_after(proxy, time.monotonic())
        good, before = 0, server.requests
        for _ in range(REQUESTS):
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request(method, "/", headers={"Host": HOST}, body=b"x" if method == "POST" else None)
                good += connection.getresponse().status == 200
            connection.close()
        return f"{good} of {REQUESTS}, sent {server.requests - before} times"

    return fault


def logged_in(lab, start):
    """Alice logs in on her connection; then Bob comes, who has no password."""
    server = Server(lab)
    proxy = (nginx_kept if start is nginx else start)(lab, server.port, [Names([LIVES])])
    back_after(proxy, time.monotonic())
    found = []
    for authorization in ["NTLM alice", None]:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
        headers = {"Host": HOST, **({"Authorization": authorization} if authorization else {})}
        connection.request("GET", "/", headers=headers)
        found.append(connection.getresponse().read().decode().split()[1])
        if authorization:
            kept = connection  # she stays
        else:
            connection.close()
    kept.close()
    return "Bob is nobody" if found == ["alice", "nobody"] else f"Bob is {found[1]}"


BACK = "a_host_is_back_within_seconds_after_dns_has_failed"
AGAIN = "a_request_that_meets_the_end_of_its_connection_is_tried_again_if_it_changes_nothing"

# The words, the fault, and the test that holds ours.
FAULTS = [
    ("the first lookup is answered SERVFAIL", looked_up(2, 2), BACK),
    ("the first answer is lost", looked_up(None, 2), BACK),
    ("the name is made after the first lookup", looked_up(3, 2), BACK),
    ("the first of two name servers is dead", dead_resolver, "a_dead_dns_server_before_a_living_one_fails_no_request"),
    ("the name moves, the client is busy", moves, "a_name_that_moves_is_followed_by_a_client_that_never_rests"),
    ("one of two addresses is dead, GET", half_dead, "a_dead_address_beside_a_living_one_fails_no_request"),
    ("the server resets a kept connection, GET", raced("GET"), AGAIN),
    ("the same, POST (sent once each is right)", raced("POST"), AGAIN),
    ("NTLM: a caller without a login comes next", logged_in, "a_login_is_its_clients_alone"),
]
PROXIES = [("NGINX", nginx), ("HAProxy", haproxy), ("Istio's cluster", istio), ("ours", ours)]


def version(words, pattern):
    told = subprocess.run(words, capture_output=True, text=True, check=True)
    return re.search(pattern, told.stdout + told.stderr)[1]


def main():
    rows = []
    only = os.environ.get("ONLY", "")
    for words, fault, test in FAULTS:
        if not re.search(only, words):
            continue
        row = [words]
        for name, start in PROXIES:
            with Lab() as lab:
                row.append(fault(lab, start))
            print(f"==> faults: {words}: {name}: {row[-1]}", file=sys.stderr, flush=True)
        rows.append([*row, f"`{test}`" if test else "-"])
    versions = {
        "NGINX": version([program("nginx"), "-v"], r"nginx/([\d.]+)"),
        "HAProxy": version([program("haproxy"), "-v"], r"version ([\d.]+)"),
        "Envoy": version([program("envoy"), "--version"], r"/([\d.]+)/"),
    }
    text = "# What becomes of requests while names and servers fail\n\n"
    text += "`make faults` ran each proxy through each fault, one at a time, all in this run. Times are from "
    text += "when a proxy listens until a request is answered: what it looks up before is not in them. Nothing here is cited: NGINX and HAProxy are Debian's, and Istio's column is an Envoy with the cluster "
    text += "and the retries that istiod gives. Our tests are in `faults.rs` and `login.rs` of `integration/tests`.\n\n"
    text += table(["fault", *(name for name, _ in PROXIES), "our test"], rows)
    text += "\n" + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".\n"
    print(text)
    if not only:
        (HERE / "FAULTS.md").write_text(text)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"faults: {failure}")
