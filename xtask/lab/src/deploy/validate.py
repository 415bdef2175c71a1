"""Checks manifests against the schemas of Kubernetes versions, strictly: no field that is unknown.

Reads {"versions": [...], "custom": {kind: schema, "definitions": ...}, "manifests": {case: text of YAML documents}}, writes
{case: {"objects": [...], "problems": [...]}}."""

import functools
import json
import sys

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils as utils
import yaml

# It would read and parse megabytes anew for each object.
utils.schema_contents = functools.lru_cache(maxsize=None)(utils.schema_contents)

job = json.load(sys.stdin)


def problem_with(thing, version):
    try:
        if schema := job["custom"].get(thing["kind"]):
            jsonschema.validate(thing, schema | {"definitions": job["custom"]["definitions"]})
        else:
            kubernetes_validate.validate(thing, version, strict=True)
        return None
    except jsonschema.ValidationError as error:
        return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return error.message


@functools.lru_cache(maxsize=None)
def problems_with(text):
    thing = json.loads(text)
    name = f"{thing['kind']} {thing['metadata']['name']}"
    found = ((version, problem_with(thing, version)) for version in job["versions"])
    return [f"{name}, Kubernetes {version}: {problem}" for version, problem in found if problem]


result = {}
for case, text in job["manifests"].items():
    objects = [thing for thing in yaml.safe_load_all(text) if thing]
    problems = [problem for thing in objects for problem in problems_with(json.dumps(thing))]
    result[case] = {"objects": objects, "problems": problems}
json.dump(result, sys.stdout)
