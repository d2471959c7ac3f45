#!/usr/bin/env python3
"""Writes the fuzz targets' seeds, made from the vectors, to corpus/. Run it before `cargo +nightly fuzz run`."""

import json
import struct
from pathlib import Path

HERE = Path(__file__).resolve().parent
VECTORS = json.loads((HERE.parent / "tests/vectors/client_ip.json").read_text())
LISTS = {"x-forwarded-for": "xff_list", "forwarded": "forwarded_list"}


def write(target, name, text):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode("latin-1"))


def field(tag, content):
    length, size = len(content), b""
    while length > 0x7F:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([tag]) + size + bytes([length]) + content


def as_struct(entries):
    """An object in the wire format of google.protobuf.Struct."""
    return b"".join(field(0x0A, field(0x0A, key.encode()) + field(0x12, as_value(of))) for key, of in entries.items())


def as_value(of):
    match of:
        case None:
            return b"\x08\0"
        case bool():
            return bytes([0x20, of])
        case int() | float():
            return b"\x11" + struct.pack("<d", of)
        case str():
            return field(0x1A, of.encode())
        case list():
            return field(0x32, b"".join(field(0x0A, as_value(element)) for element in of))
        case dict():
            return field(0x2A, as_struct(of))


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
        text = block.split("```")[0]
        write("config_json", f"{page.stem}-{at}", text)
        write("config_struct", f"{page.stem}-{at}", as_struct(json.loads(text)).decode("latin-1"))

for found in sorted((HERE / "regressions").glob("*/*")):
    write(found.parent.name, found.name, found.read_bytes().decode("latin-1"))
