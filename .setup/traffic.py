#!/usr/bin/env python3
"""`traffic.py TEST...`: runs these integration tests, all of them even when one fails.

What cargo has built is read from the standard input, as its JSON messages: to choose tests with cargo would compile
them again, for other tests bring other features.
"""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "integration"


def main():
    programs = {}
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("executable") and Path(message["manifest_path"]).parent == FOLDER.resolve():
            programs[message["target"]["name"]] = message["executable"]
    failed = [name for name in sys.argv[1:] if name not in programs]
    for name in failed:
        print(f"error: there is no test `{name}`", file=sys.stderr)
    for name in sys.argv[1:]:
        if name in programs:
            print(f"     Running tests/{name}.rs", flush=True)
            if subprocess.run([programs[name]], cwd=FOLDER, check=False).returncode:
                failed.append(name)
    sys.exit(bool(failed))


main()
