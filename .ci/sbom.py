#!/usr/bin/env python3
"""sbom.py PACKAGE TARGET: what a package is made of for a target, as a CycloneDX document, from cargo's own lock file."""

import json
import subprocess
import sys

package, target = sys.argv[1:]
command = ["cargo", "metadata", "--locked", "--format-version=1", "--filter-platform", target]
metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
packages = {found["id"]: found for found in metadata["packages"]}
# What is linked: dependencies that are for tests or build scripts alone are no part of it.
edges = {
    node["id"]: [edge["pkg"] for edge in node["deps"] if any(kind["kind"] is None for kind in edge["dep_kinds"])]
    for node in metadata["resolve"]["nodes"]
}
root = next(id for id in metadata["workspace_members"] if packages[id]["name"] == package)
seen, todo = {root}, [root]
while todo:
    new = set(edges[todo.pop()]) - seen
    seen |= new
    todo += new


def purl(id):
    return f"pkg:cargo/{packages[id]['name']}@{packages[id]['version']}"


def component(id):
    found = packages[id]
    described = {"type": "library", "bom-ref": purl(id), "purl": purl(id), "name": found["name"], "version": found["version"]}
    if found["license"]:
        described["licenses"] = [{"expression": found["license"].replace("/", " OR ")}]
    return described


order = sorted(seen, key=purl)
document = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "metadata": {"component": component(root) | {"type": "application"}},
    "components": [component(id) for id in order if id != root],
    "dependencies": [{"ref": purl(id), "dependsOn": sorted(purl(on) for on in edges[id] if on in seen)} for id in order],
}
print(json.dumps(document, indent=1))
