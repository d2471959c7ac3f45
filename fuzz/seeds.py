#!/usr/bin/env python3
"""Writes the fuzz targets' seeds, made from the vectors, to corpus/. Run it before `cargo +nightly fuzz run`."""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
VECTORS = json.loads((HERE.parent / "tests/vectors/client_ip.json").read_text())
LISTS = {"x-forwarded-for": "xff_list", "forwarded": "forwarded_list"}


def write(target, name, text):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode("latin-1"))


configs = []
for vector in VECTORS:
    if vector["config"] not in configs:
        configs.append(vector["config"])
    headers = vector["headers"]
    request = [chr(configs.index(vector["config"])) + (vector["peer"] or "")]
    request += [f"{name}:{value}" for name, value in headers]
    write("client_ip_request", vector["name"], "\n".join(request))
    for header, target in LISTS.items():
        lines = [value for name, value in headers if name.lower() == header]
        if lines:
            write(target, vector["name"], "\n".join(lines))

# Configurations as the documentation shows them: the words that a fuzzer would not guess.
for page in [HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))]:
    blocks = page.read_text().split("```json\n")[1:]
    for at, block in enumerate(blocks):
        write("config_json", f"{page.stem}-{at}", block.split("```")[0])

for found in sorted((HERE / "regressions").glob("*/*")):
    write(found.parent.name, found.name, found.read_bytes().decode("latin-1"))
