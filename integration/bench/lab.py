"""What every part of the benchmarks needs: programs, ports, certificates, the origin, DNS, and load."""

import functools
import http.client
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
QUICK = bool(os.environ.get("QUICK"))
# How long anything may take that has no sign of its own, in seconds.
LIMIT = 60
HOST = "api.bench.example.com"
CIPHERS = {"TLSv1.3": "TLS_AES_128_GCM_SHA256", "TLSv1.2": "ECDHE-ECDSA-AES128-GCM-SHA256"}


class Failure(Exception):
    """What was measured would not be what the table says."""


@functools.cache
def program(name):
    """A program that a script of .setup/ finds or unpacks."""
    script = {"envoy": ["envoy.sh"], "nginx": ["nginx.sh"], "wasm-opt": ["binaryen.sh"]}.get(name, ["bench.sh", name])
    found = subprocess.run([ROOT / ".setup" / script[0], *script[1:]], check=True, stdout=subprocess.PIPE, text=True)
    return str((ROOT / found.stdout.strip()).absolute())


def fill(template, **values):
    """A file beside this one, with `@NAME@` replaced."""
    return re.sub(r"@([A-Z]+)@", lambda name: str(values[name[1].lower()]), (HERE / template).read_text())


def wait_for(what, condition, limit=LIMIT, step=0.02):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(step)
    raise Failure(f"{what}: not within {limit} s")


class Lab:
    """A folder, its certificates, and all that was started; it goes away with the `with` block."""

    def __init__(self, pinned=False):
        """With `pinned` proxies have the first core that there is, and everything else the other ones."""
        self.cores = sorted(os.sched_getaffinity(0))
        self.pinned = pinned
        self.folder = tempfile.TemporaryDirectory(prefix="bench-")
        self.run = Path(self.folder.name)
        self.children = []
        self.ports = set()
        self.made = 0

    def __enter__(self):
        if self.pinned:
            if len(self.cores) < 2:
                raise Failure("Envoy needs a core of its own, and there is one in all")
            os.sched_setaffinity(0, self.cores[1:])
        self.certificates()
        return self

    def __exit__(self, *_):
        os.sched_setaffinity(0, self.cores)
        for child in reversed(self.children):
            stop(child)
        self.folder.cleanup()

    def port(self):
        """A port that nobody has, and that was not given out before."""
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            if port not in self.ports:
                self.ports.add(port)
                return port

    def write(self, name, text):
        self.made += 1
        path = self.run / f"{self.made}-{name}"
        path.write_text(text)
        return path

    def start(self, *command, env=None, stdout=None, proxy=False):
        self.made += 1
        errors = self.run / f"{self.made}-{Path(str(command[0])).name}.stderr"
        if proxy and self.pinned:
            command = ["taskset", "--cpu-list", self.cores[0], *command]
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=stdout or subprocess.DEVNULL,
            stderr=errors.open("w"),
            env={**os.environ, "SSL_CERT_FILE": str(self.run / "ca.pem"), **(env or {})},
            cwd=self.run,
            text=stdout is not None,
        )
        child.errors = errors
        self.children.append(child)
        return child

    def end(self, child):
        stop(child)
        self.children.remove(child)

    def certificates(self):
        """An authority, a server's certificate and a client's; and two that no client may accept."""
        openssl = lambda *words: subprocess.run(
            ["openssl", *map(str, words)], check=True, capture_output=True, cwd=self.run
        )
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        for authority in ["ca", "stranger"]:
            openssl("req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-days", 2, "-subj",
                    f"/CN={authority}")  # fmt: skip
        leaves = {
            "good": ("ca", "DNS:*.bench.example.com"),
            "wrong-name": ("ca", "DNS:other.example.com"),
            "wrong-authority": ("stranger", "DNS:*.bench.example.com"),
            "client": ("ca", "DNS:client.example.com"),
        }
        for name, (authority, names) in leaves.items():
            openssl("req", "-new", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            (self.run / f"{name}.ext").write_text(f"subjectAltName={names}\n")
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
                    "-CAcreateserial", "-days", 2, "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip


def stop(child):
    if child.poll() is None:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
            child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout:
        child.stdout.close()


def asked(port, host=HOST, path="/"):
    """Status and body of one request; no status where there was no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return None, str(error)
    finally:
        connection.close()


def listening(name, child, port):
    """Waits until it answers a request, with whatever status."""

    wait_for(name, lambda: alive(name, child) and asked(port)[0] is not None)


def alive(name, child):
    if child.poll() is not None:
        raise Failure(f"{name} ended: {child.errors.read_text()[-3000:]}")
    return True


class Origin:
    """nginx with TLS, which counts requests and connections and notes how each connection was made."""

    def __init__(self, lab, services):
        """`services` has for each name the settings of its server: tls, h2, resumed, mutual and closes."""
        self.lab = lab
        self.services = services
        self.ports = {name: lab.port() for name in services}
        self.status = lab.port()
        self.child = None
        self.log = lab.run / "origin.log"

    def serve(self, certificate):
        """Starts, or starts anew, with this certificate. What was noted before is forgotten."""
        if self.child:
            self.lab.end(self.child)
        self.log.unlink(missing_ok=True)
        servers = "\n".join(self.server(name, certificate, **settings) for name, settings in self.services.items())
        text = fill("origin.conf", run=self.lab.run, status=self.status, servers=servers)
        self.child = self.lab.start(program("nginx"), "-p", self.lab.run, "-c", self.lab.write("origin.conf", text))
        listening("the origin", self.child, self.status)
        self.counted = 0
        self.counter = http.client.HTTPConnection("127.0.0.1", self.status, timeout=20)

    def server(self, name, certificate, tls="TLSv1.3", h2=False, resumed=True, mutual=False, closes=False):
        run = self.lab.run
        lines = [
            f"listen 127.0.0.1:{self.ports[name]} ssl{' http2' if h2 else ''};",
            f"ssl_certificate {run}/{certificate}.pem; ssl_certificate_key {run}/{certificate}.key;",
            f"ssl_protocols {tls}; ssl_ciphers {CIPHERS['TLSv1.2']}; ssl_ecdh_curve X25519:P-256;",
            f"ssl_conf_command Ciphersuites {CIPHERS['TLSv1.3']};",
            f"ssl_session_tickets {'on' if resumed else 'off'}; ssl_session_cache off;",
            # Twice as long as the longest run, so that no session expires within.
            "ssl_session_timeout 2h;",
            'location / { return 200 "$ssl_server_name $request_id 0123456789abcdef0123456789abcdef\\n"; }',
        ]
        if mutual:
            lines.append(f"ssl_client_certificate {run}/ca.pem; ssl_verify_client on;")
        if closes:
            lines.append("keepalive_timeout 0;")
        return "  server {\n    " + "\n    ".join(lines) + "\n  }"

    def counts(self):
        """Connections and requests so far, without those that asked for the counts."""
        self.counted += 1
        self.counter.request("GET", "/")
        words = self.counter.getresponse().read().split()
        return int(words[7]), int(words[9]) - self.counted

    def seen(self):
        """What it noted of each connection, as words."""
        time.sleep(1.2)  # it writes once a second
        return [line.split(" ") for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def must_be_verified_tls(self):
        """Nothing but what all variants were asked to do has arrived; the names of the ports that heard something."""
        names = {str(port): name for name, port in self.ports.items()}
        heard = {}
        for port, status, http_version, protocol, cipher, sni, reused, client in self.seen():
            name = names[port]
            settings = self.services[name]
            tls = settings.get("tls", "TLSv1.3")
            told = (status, http_version, protocol, cipher, client)
            asked_for = (
                "200",
                "HTTP/2.0" if settings.get("h2") else "HTTP/1.1",
                tls,
                CIPHERS[tls],
                "SUCCESS" if settings.get("mutual") else "NONE",
            )
            if told != asked_for or not sni.endswith(".bench.example.com"):
                raise Failure(f"{name} was asked over {told} with SNI {sni}, not over {asked_for}")
            heard.setdefault(name, []).append(reused == "r")
        return heard


class Dns:
    """Answers 127.0.0.1 to everything, and counts."""

    def __init__(self, ttl):
        self.asked = 0
        self.ttl = ttl.to_bytes(4, "big")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        with suppress(PermissionError):  # ten thousand hosts ask at once
            self.socket.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), 1 << 25)
        threading.Thread(target=self.serve, daemon=True).start()

    def answer(self):
        """The code of the answer, and the addresses of the name; no code for silence."""
        return 0, ["127.0.0.1"]

    def serve(self):
        while True:
            query, client = self.socket.recvfrom(2048)
            self.asked += 1
            code, addresses = self.answer()
            if code is None:
                continue
            end = query.index(b"\0", 12) + 5
            is_a = query[end - 4 : end - 2] == b"\0\1"
            records = [
                b"\xc0\x0c\0\1\0\1" + self.ttl + b"\0\4" + socket.inet_aton(address)
                for address in (addresses if is_a else [])
            ]
            head = query[:2] + b"\x85" + bytes([0x80 | code]) + b"\0\1\0" + bytes([len(records)])
            self.socket.sendto(head + b"\0\0\0\0" + query[12:end] + b"".join(records), client)


class Load:
    """A wrk that can be held still; its connections stay open meanwhile."""

    def __init__(self, lab, origin, port, host=HOST, connections=8):
        self.lab = lab
        self.origin = origin
        before = origin.counts()[1]
        self.child = lab.start(program("wrk"), "-t1", f"-c{connections}", "-d3600s", "-H", f"Host: {host}",
                               f"http://127.0.0.1:{port}/", stdout=subprocess.PIPE)  # fmt: skip
        wait_for("the first requests", lambda: alive("wrk", self.child) and origin.counts()[1] - before > 100)
        self.pause()

    def pause(self):
        self.child.send_signal(signal.SIGSTOP)

    def resume(self):
        self.child.send_signal(signal.SIGCONT)

    def sample(self, clock, which, settle, duration):
        """What `clock` says of each of what the origin counts: 0 is connections, 1 requests."""
        self.resume()
        time.sleep(settle)
        begun, before = clock(), self.origin.counts()[which]

        def enough():
            ended, after = clock(), self.origin.counts()[which]
            return after - before >= 100 and (ended - begun) / (after - before)

        time.sleep(duration)
        each = wait_for("a sample", enough)
        self.pause()
        return each

    def finish(self, what):
        """How many requests it made, none of which may have failed."""
        self.resume()
        time.sleep(0.1)
        self.child.send_signal(signal.SIGINT)
        told = self.child.communicate(timeout=LIMIT)[0]
        self.lab.children.remove(self.child)
        made = re.search(r"(\d+) requests in", told)
        # What wrk calls a timeout is an answer that waited while wrk was held still.
        errors = re.search(r"Socket errors: (?!connect 0, read 0, write 0,)", told)
        if self.child.returncode or not made or int(made[1]) == 0 or "Non-2xx" in told or errors:
            raise Failure(f"requests to {what} failed:\n{told}")
        return int(made[1])
