"""Derives the schema of a kind from a custom resource definition: `python derive.py CRDS.yaml Kind "source" >Kind.json`; needs PyYAML."""

import json
import sys

import yaml

crds, kind, source = sys.argv[1:]
DROPPED = ("description", "format", "default", "title")


def convert(schema):
    if isinstance(schema, list):
        return [convert(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in DROPPED and not key.startswith("x-kubernetes-")}
    converted = {}
    for key, value in kept.items():
        named = key in ("properties", "patternProperties", "definitions")
        converted[key] = {name: convert(of) for name, of in value.items()} if named else convert(value)
    if "required" in converted:
        defaults = {name for name, of in schema.get("properties", {}).items() if "default" in of}
        converted["required"] = [name for name in converted["required"] if name not in defaults]
    if converted.pop("nullable", False):
        converted["type"] = [converted["type"], "null"]
    if schema.get("x-kubernetes-int-or-string"):
        converted = {"type": ["integer", "string"]}
    if "properties" in converted and "additionalProperties" not in converted:
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            converted["additionalProperties"] = False
    return converted


lines = [line for line in open(crds) if not line.startswith("{{")]            # Helm's
documents = [document for document in yaml.safe_load_all("".join(lines)) if document]
crd = next(document for document in documents if document.get("spec", {}).get("names", {}).get("kind") == kind)
served = [version for version in crd["spec"]["versions"] if version["served"]]
schema = convert(next(version for version in served if version["storage"])["schema"]["openAPIV3Schema"])
group = crd["spec"]["group"]
schema["properties"].update(
    apiVersion={"enum": [f"{group}/{version['name']}" for version in served]},
    kind={"const": kind},
    metadata={"$ref": "#/definitions/ObjectMeta"},
)
names = {"type": "object", "additionalProperties": {"type": "string"}}
schema["definitions"] = {
    "ObjectMeta": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": names, "annotations": names},
        "additionalProperties": False,
    }
}
schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": f"{kind} ({group})", "$comment": f"from {source}, Apache-2.0; see README.md"}
print(json.dumps(head | schema))
