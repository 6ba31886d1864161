"""The Helm chart as objects, and the plain manifests that come from it: `python -m tests.harness.chart` writes those."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

PACKAGING = Path(__file__).parents[2] / "packaging"
CHART = PACKAGING / "helm" / "stucktrace"
MANIFEST = PACKAGING / "kubernetes" / "daemonset.yaml"
HELM = Path(sys.executable).with_name("helm")
MANIFEST_OPTIONS = ("--set=namespace.create=true,sentry.secret=stucktrace-sentry,sentry.optional=true",)
KUBERNETES = "1.30"
"""The first one that knows appArmorProfile: the manifests are for this and later."""
HEAD = """\
# The node agent on every node: set `image` to where you have pushed it, then `kubectl apply -f daemonset.yaml`.
# Alerts are JSON lines in the pods' logs; figures and health are on port 9464 of each pod. For Sentry:
#   kubectl -n stucktrace create secret generic stucktrace-sentry --from-literal=dsn=https://KEY@HOST/PROJECT
#
# This is what the Helm chart in packaging/helm/stucktrace gives with its defaults, for Kubernetes 1.30 and later. It is
# written by `make manifests`: change the chart. What each capability is for stands in the chart's values.yaml.
"""


def helm(*args: str | Path, refused: bool = False) -> str:
    """What helm says; an AssertionError when it refuses, or with `refused` when it does not."""
    done = subprocess.run([HELM, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert (done.returncode != 0) is refused, f"helm {args}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stderr if refused else done.stdout


def render(*options: str, kubernetes: str = KUBERNETES) -> str:
    return helm("template", "stucktrace", CHART, "--namespace=stucktrace", f"--kube-version={kubernetes}.0", *options)


def objects(*options: str, kubernetes: str = KUBERNETES) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(render(*options, kubernetes=kubernetes)) if one]


def of_kind(documents: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only one of this kind."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def manifest() -> str:
    """packaging/kubernetes/daemonset.yaml as it should be."""
    return HEAD + render(*MANIFEST_OPTIONS)


if __name__ == "__main__":
    MANIFEST.write_text(manifest())
    print(f"{MANIFEST}: written")
