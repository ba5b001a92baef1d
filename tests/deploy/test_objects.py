"""Every object fits Kubernetes' published schemas, and what objects name of one another is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.rendering import (
    KUBERNETES,
    PAGE,
    Workload,
    config_maps,
    environment,
    of_kind,
    render,
    selected,
    workloads,
)

VERSIONS = ("1.30", "1.37")
"""The oldest that the page promises, and the newest that has schemas."""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schemas(overlay: str, version: str) -> None:
    for one in render(overlay):
        if one["kind"] != "RayCluster":
            kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_ray_cluster_fits_the_schema_of_kuberay_and_its_pods_that_of_kubernetes(
    version: str,
) -> None:
    schema = yaml.safe_load((Path(__file__).parent / "raycluster.yaml").read_text())
    (cluster,) = of_kind("several-gpus", "RayCluster")
    assert cluster["apiVersion"] == "ray.io/v1"
    jsonschema.validate(cluster["spec"], closed(schema))
    for workload in workloads("several-gpus").values():
        if workload.kind == "RayCluster":
            pod = {"apiVersion": "v1", "kind": "Pod", **workload.spec["template"]}
            kubernetes_validate.validate(pod, version, strict=True)
    misspelled: dict[str, Any] = {**cluster["spec"], "workerGroupSpec": []}
    with pytest.raises(jsonschema.ValidationError, match="workerGroupSpec"):
        jsonschema.validate(misspelled, closed(schema))


def closed(schema: Any) -> Any:
    """The schema, refusing fields that it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(value) for name, value in cast("dict[str, Any]", schema).items()}
    return found | {"additionalProperties": False} if "properties" in found else found


def test_the_ray_cluster_has_the_nodes_and_gpus_that_the_run_asks_for() -> None:
    found = workloads("several-gpus")
    given = environment("several-gpus", found["learner"], "learner")
    group = found["learner-workers-gpus"]
    assert group.spec["replicas"] == int(given["FULGURITE__ENGINE__NODES"])
    limits = group.containers["ray-worker"]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == given["FULGURITE__ENGINE__WORKERS_PER_NODE"]
    assert "nvidia.com/gpu" not in found["learner"].containers["learner"]["resources"]["limits"]
    assert given["RAY_ADDRESS"] == "learner-workers-head-svc:6379"
    assert found["learner-workers-head"].ports == {"gcs-server": 6379}
    (cluster,) = of_kind("several-gpus", "RayCluster")
    pins = (KUBERNETES.parents[1] / "requirements" / "services.txt").read_text()
    assert f"\nray=={cluster['spec']['rayVersion']} " in pins


def test_workers_see_the_folders_of_the_learner_under_its_paths() -> None:
    found = workloads("several-gpus")
    learner, worker = found["learner"], found["learner-workers-gpus"]

    def folders(workload: Workload, container: str) -> dict[str, str]:
        return {
            mount["mountPath"]: workload.volumes[mount["name"]]["persistentVolumeClaim"][
                "claimName"
            ]
            for mount in workload.containers[container]["volumeMounts"]
            if "persistentVolumeClaim" in workload.volumes[mount["name"]]
        }

    assert folders(worker, "ray-worker") == folders(learner, "learner")
    assert folders(worker, "ray-worker").keys() == {
        *("/data/checkpoints", "/data/artifacts", "/models"),
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_a_misspelled_field_is_refused(version: str) -> None:
    budget = next(of_kind("cpu", "PodDisruptionBudget"))
    misspelled = {**budget, "spec": {**budget["spec"], "maxUnavialable": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="maxUnavialable"):
        kubernetes_validate.validate(misspelled, version, strict=True)


def test_every_file_is_named_by_the_kustomization_beside_it() -> None:
    for file in KUBERNETES.rglob("kustomization.yaml"):
        for other in set(file.parent.iterdir()) - {file}:
            assert re.search(rf"[ \[]{re.escape(other.name)}\b", file.read_text()), other


def test_what_pods_mount_is_there(overlay: str) -> None:
    claims = {one["metadata"]["name"] for one in of_kind(overlay, "PersistentVolumeClaim")}
    for workload in workloads(overlay).values():
        own = {one["metadata"]["name"] for one in workload.spec.get("volumeClaimTemplates", ())}
        mounted = {
            mount["name"]
            for container in workload.containers.values()
            for mount in container["volumeMounts"]
        }
        assert mounted == workload.volumes.keys() | own, workload.name
        for volume in workload.volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in config_maps(overlay), workload.name
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims, workload.name


def test_secrets_are_those_that_the_page_names(overlay: str) -> None:
    page = PAGE.read_text()
    made = {
        (name, key)
        for name, options in re.findall(r"^kubectl create secret generic (\S+)(.*(?:\n  .*)?)", page, re.MULTILINE)
        for key in re.findall(r"--from-literal=([\w.-]+)=", options)
    }  # fmt: skip
    optional = {
        (name, key)
        for key, name in re.findall(r"`([\w-]+)` in the Secret `([\w-]+)`", page)
    }  # fmt: skip
    read = dict(secrets_read(overlay))
    assert read.keys() == made | optional
    assert not any(is_needed for key, is_needed in read.items() if key in optional)


def secrets_read(overlay: str) -> Iterator[tuple[tuple[str, str], bool]]:
    """Name and key of each secret, and whether a pod needs it to start."""
    for workload in workloads(overlay).values():
        for volume in workload.volumes.values():
            if "secret" in volume:
                yield (volume["secret"]["secretName"], "ca.crt"), not volume["secret"]["optional"]
        for container in workload.containers.values():
            for variable in container.get("env", ()):
                match variable:
                    case {"valueFrom": {"secretKeyRef": {"name": name, "key": key, **rest}}}:
                        yield (name, key), not rest.get("optional", False)
                    case _:
                        pass


def test_no_secret_stands_in_the_manifests(overlay: str) -> None:
    assert not list(of_kind(overlay, "Secret"))
    for settings in config_maps(overlay).values():
        for name, value in settings.items():
            assert not re.search(r"(KEYS?|PASSWORD|SECRET|TOKEN)$", name), name
            assert not re.search(r"://[^/\s]*:[^/\s]*@", value), name


def test_services_lead_to_the_ports_of_one_workload(overlay: str) -> None:
    for service in of_kind(overlay, "Service"):
        (target,) = selected(overlay, {"matchLabels": service["spec"]["selector"]})
        assert target.spec["serviceName"] == service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            assert port["port"] == target.ports[port["targetPort"]]


def test_selectors_mean_the_pods_of_their_workload(overlay: str) -> None:
    for workload in workloads(overlay).values():
        if workload.kind not in ("Job", "RayCluster"):
            assert selected(overlay, workload.spec["selector"]) == [workload]
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        (target,) = selected(overlay, budget["spec"]["selector"])
        assert target.name == budget["metadata"]["name"]


def test_probes_ask_ports_that_their_container_has(overlay: str) -> None:
    for workload in workloads(overlay).values():
        for container in workload.containers.values():
            names = {port["name"] for port in container.get("ports", ())}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                for how, asked in container.get(kind, {}).items():
                    if how in ("httpGet", "tcpSocket"):
                        assert asked["port"] in names, workload.name
