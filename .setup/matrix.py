#!/usr/bin/env python3
"""Which Envoy can do what, by the integration tests.

`matrix.py run VERSION ENVOY [TEST...]` runs the test programs that cargo names on the standard input
(`cargo test --no-run --message-format=json`) on one Envoy, all of them or those of the files named, and
keeps what became of each test in MATRIX/VERSION.json; what is there of other files stays.

`matrix.py table README` writes the table between the README's two markers, from all that is kept. It fails when a
test failed for which integration/matrix.txt has no reason, or passed although it has one.

MATRIX is target/matrix.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MATRIX = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "matrix"
LEDGER = ROOT / "integration" / "matrix.txt"
# Test files that prove the harness and not the product.
HARNESS = {"child", "envoy_process", "harness", "nginx"}
# What `egressctl` says when it refuses a feature for the sake of Envoy's version.
REFUSED = re.compile(r"needs Envoy (\d+\.\d+) or later")
BEGIN, END = "<!-- matrix: begin, by make matrix -->", "<!-- matrix: end -->"


def programs(messages):
    """The test programs that cargo has built, by the name of their file."""
    found = {}
    for line in messages:
        message = json.loads(line)
        target = message.get("target", {})
        ours = message.get("manifest_path", "").endswith("/integration/Cargo.toml")
        if ours and message.get("executable") and target.get("kind") == ["test"]:
            found[target["name"]] = message["executable"]
    return {name: found[name] for name in sorted(found) if name not in HARNESS}


def outcomes(output):
    """What became of each test, from what the test program printed."""
    tests = {}
    for name, end in re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED)$", output, re.MULTILINE):
        said = ""
        if end == "FAILED":
            parts = re.split(r"^---- (\S+) stdout ----$", output, flags=re.MULTILINE)
            said = dict(zip(parts[1::2], parts[2::2])).get(name, "").strip()
            said = said.split("\n\n\n")[0].split("\nfailures:")[0].strip()
        needs = REFUSED.search(said)
        tests[name] = {"passed": end == "ok"}
        if end != "ok":
            tests[name]["said"] = said[-4000:]
        if needs:
            tests[name]["needs"] = needs[1]
    return tests


def run(version, envoy, wanted):
    """Runs the tests on one Envoy, and keeps what became of them."""
    kept = MATRIX / f"{version}.json"
    files = json.loads(kept.read_text()) if kept.is_file() else {}
    found = programs(sys.stdin)
    if unknown := set(wanted) - set(found):
        sys.exit(f"error: no test file {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    envoy = pathlib.Path(envoy).resolve()
    # `egressctl` looks on PATH for it, and the harness at the variable.
    env = os.environ | {
        "EGRESS_ENVOY": str(envoy),
        "PATH": f"{envoy.parent}:{os.environ['PATH']}",
        "RUST_BACKTRACE": "0",
    }
    threads = os.environ.get("TEST_THREADS")
    for name, program in found.items():
        if wanted and name not in wanted:
            continue
        command = [program] + ([f"--test-threads={threads}"] if threads else [])
        end = subprocess.run(
            command,
            check=False,
            cwd=ROOT / "integration",
            env=env,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        tests = outcomes(end.stdout)
        if not tests or (end.returncode != 0 and all(test["passed"] for test in tests.values())):
            sys.exit(f"error: {name} ended early on Envoy {version}:\n{end.stdout[-4000:]}")
        files[name] = tests
        failed = sum(not test["passed"] for test in tests.values())
        print(f"Envoy {version}: {name}: {len(tests) - failed} passed, {failed} failed", flush=True)
        MATRIX.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(".new")
        new.write_text(json.dumps(files, indent=1) + "\n")
        new.replace(kept)


def ordered(version):
    return [int(part) for part in version.split(".")]


def ledger():
    """The known reasons for failures: the version from which it works, the text, the tests, and whether they always fail."""
    reasons = []
    for line in LEDGER.read_text().splitlines():
        if begin := re.fullmatch(r"before (\d+\.\d+)(, at times)?: (.+)", line):
            reasons.append((begin[1], begin[3], set(), not begin[2]))
        elif line.startswith("  "):
            reasons[-1][2].add(line.strip())
        elif line and not line.startswith("#"):
            sys.exit(
                f"error: {LEDGER}: neither `before X.Y: REASON`, with `, at times` perhaps, nor an indented test: {line}"
            )
    return reasons


def cell(version, name, tests, reasons, surprises):
    """What one version makes of one feature."""
    if tests is None:
        return "not run"
    refused, letters, failed, times = {}, set(), 0, set()
    for test, end in tests.items():
        known = [
            (chr(ord("a") + at), always)
            for at, (since, _, listed, always) in enumerate(reasons)
            if ordered(version) < ordered(since) and f"{name}::{test}" in listed
        ]
        if "needs" in end:
            refused[end["needs"]] = refused.get(end["needs"], 0) + 1
        elif not end["passed"]:
            failed += 1
            letters.update(letter for letter, _ in known)
            if not known:
                surprises.append(f"{name}::{test} fails on Envoy {version}: {end['said'][:300]}")
        elif not all(always for _, always in known):
            times.update(letter for letter, always in known if not always)
        elif known:
            surprises.append(f"{name}::{test} passes on Envoy {version}")
    parts = []
    for needs, count in sorted(refused.items()):
        some = "" if count == len(tests) else f"{count} of {len(tests)} "
        parts.append(f"{some}refused: needs {needs}")
    if failed:
        parts.append(f"{failed} of {len(tests)} fail {''.join(f'({letter})' for letter in sorted(letters))}".strip())
    if times:
        parts.append(
            f"{'the rest ' if parts else 'yes, '}at times not {''.join(f'({letter})' for letter in sorted(times))}"
        )
    return "; ".join(parts) or "yes"


def table(readme):
    """Writes the table into the README."""
    kept = {path.stem: json.loads(path.read_text()) for path in MATRIX.glob("*.json")}
    if not kept:
        sys.exit(f"error: nothing is kept in {MATRIX}; `make matrix` runs the tests")
    versions = sorted(kept, key=ordered)
    reasons, surprises = ledger(), []
    features = sorted({name for files in kept.values() for name in files})
    rows = [["tests", *versions], ["---"] * (len(versions) + 1)]
    for name in features:
        cells = [cell(version, name, kept[version].get(name), reasons, surprises) for version in versions]
        count = max(len(files.get(name, {})) for files in kept.values())
        rows.append([f"{name.replace('_', ' ')} ({count})", *cells])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    for at, (since, reason, _, always) in enumerate(reasons):
        lines.append(f"\n({chr(ord('a') + at)}) Before {since}{'' if always else ', at times'}: {reason}")
    text = "\n".join(lines)
    path = pathlib.Path(readme)
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"error: {readme} has no `{BEGIN}` with `{END}` behind it")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    if surprises:
        sys.exit("error: {} does not say so:\n{}".format(LEDGER.relative_to(ROOT), "\n".join(surprises)))


match sys.argv[1:]:
    case ["run", version, envoy, *wanted]:
        run(version, envoy, wanted)
    case ["table", readme]:
        table(readme)
    case _:
        sys.exit(__doc__)
