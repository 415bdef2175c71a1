"""The chart as users get it: linted, packaged, and rendered with several values.

Reads {"chart": directory, "package": directory, "values": {case: values}, "refused": {case: values}},
writes {case: text of all manifests}. Ends with 1 and says why where Helm finds fault, or finds none
with values that the schema has to refuse."""

import json
import sys

import helm_python as helm

job = json.load(sys.stdin)
problems = []

for values in job["values"].values():
    report = helm.lint(job["chart"], values, strict=True)
    # 2 is a warning; 1 asks for an icon.
    problems += [str(message) for message in report["messages"] if message["severity"] >= 2]

manifests = {}
with helm.Chart.load(helm.package(job["chart"], destination=job["package"])) as chart:
    for case, values in job["values"].items():
        rendered = chart.render(values, name="finrace", namespace="finrace")
        texts = [text for name, text in sorted(rendered.items()) if not name.endswith(".txt")]
        manifests[case] = "\n---\n".join(texts)
    for case, values in job["refused"].items():
        try:
            chart.render(values, name="finrace", namespace="finrace")
            problems.append(f"{case}: values are accepted that must not be")
        except (helm.HelmValuesError, helm.HelmRenderError):
            pass

json.dump(manifests, sys.stdout)
if problems:
    sys.exit("\n".join(problems))
