"""Renders the overlays of `deploy/kubernetes`, and the one that the page shows, with the `kubectl`
that a package puts beside this Python.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
PAGE = ROOT / "docs" / "how-to" / "kubernetes.md"
SHOWN = "shown"
"""The overlay of the page."""
OVERLAYS = ("cpu", "gpu", "several-gpus", SHOWN)

Manifest = dict[str, Any]


class Workload(NamedTuple):
    """What starts pods."""

    name: str
    kind: str
    spec: Manifest

    @property
    def pod(self) -> Manifest:
        """The specification of its pods."""
        return self.spec["template"]["spec"]

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its pods."""
        return self.spec["template"]["metadata"]["labels"]

    @property
    def containers(self) -> dict[str, Manifest]:
        """The containers of its pods, by name."""
        return {one["name"]: one for one in self.pod["containers"]}

    @property
    def volumes(self) -> dict[str, Manifest]:
        """The volumes of its pods, by name, without those that it claims for each pod."""
        return {one["name"]: one for one in self.pod.get("volumes", ())}

    @property
    def ports(self) -> dict[str, int]:
        """The numbers of its pods' ports, by name."""
        return {
            port["name"]: port["containerPort"]
            for container in self.containers.values()
            for port in container.get("ports", ())
        }


@functools.cache
def render(overlay: str) -> tuple[Manifest, ...]:
    """The objects of an overlay, as `kubectl apply --kustomize` would send them."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "kubernetes"
        shutil.copytree(KUBERNETES, tree)
        if overlay == SHOWN:
            shown = tree / "overlays" / SHOWN
            shown.mkdir()
            (shown / "kustomization.yaml").write_text(yaml_of_page("Kustomization"))
            shutil.copy(ROOT / "examples" / "calculator" / "rewards.py", shown)
        done = subprocess.run(
            [Path(sys.executable).parent / "kubectl", "kustomize", tree / "overlays" / overlay],
            capture_output=True,
            text=True,
            check=False,
        )
    # It warns of fields that are deprecated, too.
    assert (done.returncode, done.stderr) == (0, "")
    return tuple(yaml.safe_load_all(done.stdout))


def yaml_of_page(kind: str) -> str:
    """The page's block of YAML that is of a kind."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if yaml.safe_load(block)["kind"] == kind)
    return block


def of_kind(overlay: str, *kinds: str) -> Iterator[Manifest]:
    """An overlay's objects of some kinds."""
    return (one for one in render(overlay) if one["kind"] in kinds)


def config_maps(overlay: str) -> dict[str, dict[str, str]]:
    """What stands in each ConfigMap, by its name."""
    return {one["metadata"]["name"]: one["data"] for one in of_kind(overlay, "ConfigMap")}


def workloads(overlay: str) -> dict[str, Workload]:
    """All that starts pods, by name."""
    found = [
        Workload(one["metadata"]["name"], one["kind"], one["spec"])
        for one in of_kind(overlay, "StatefulSet", "Deployment", "Job")
    ]
    for one in of_kind(overlay, "RayCluster"):
        name, spec = one["metadata"]["name"], one["spec"]
        groups = {"head": spec["headGroupSpec"]} | {
            group["groupName"]: group for group in spec["workerGroupSpecs"]
        }
        found += [Workload(f"{name}-{group}", "RayCluster", groups[group]) for group in groups]
    return {one.name: one for one in found}


def environment(overlay: str, workload: Workload, container: str) -> dict[str, str]:
    """The variables of a container in the first pod, with a sample in place of each secret."""
    found: dict[str, str] = {}
    for source in workload.containers[container].get("envFrom", ()):
        found |= config_maps(overlay)[source["configMapRef"]["name"]]
    for variable in workload.containers[container].get("env", ()):
        match variable:
            case {"value": str(value)}:
                found[variable["name"]] = value
            case {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}:
                found[variable["name"]] = f"{workload.name}-0"
            case {"valueFrom": {"secretKeyRef": {"optional": True}}}:
                pass
            case _:
                found[variable["name"]] = f"k1:{'0123456789abcdef' * 4}"
    return found


def is_selected(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a selector means pods with these labels."""
    expressions = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )


def selected(overlay: str, selector: Manifest) -> list[Workload]:
    """The workloads whose pods a selector means."""
    return [one for one in workloads(overlay).values() if is_selected(selector, one.labels)]
