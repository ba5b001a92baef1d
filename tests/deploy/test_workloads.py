"""What runs in the pods: known settings with values that fit, images and commands that exist, the
limits of Docker Compose, no rights, and no more workers than partitions.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path
from unittest import mock

import pytest
import yaml

from fulgurite.topics import GROUP_PARTITIONS
from services.common.runtime.backends import parse_backends
from services.gateway.settings import GatewaySettings
from services.learner.config_file import keys, variable
from services.local_stack.preflight import check_settings
from services.local_stack.vllm_settings import VllmSettings
from tests.contract.test_compose import resolved
from tests.contract.test_docs_commands import problem_of
from tests.deploy.rendering import ROOT, Workload, environment, of_kind, workloads, yaml_of_page

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""Of a container, by the Pod Security Standard `restricted`, with a file system that it cannot
write besides."""
NAMED_ELSEWHERE = {"vllm-gpu": "vllm", "learner-gpu": "learner"}
"""Services of Docker Compose whose containers have another name here."""
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}
compose = functools.cache(resolved)
"""The services of Docker Compose with some profiles."""


def test_every_variable_is_a_setting(overlay: str) -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    known = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", page)) | {variable(key) for key in keys()}
    # Ray's own.
    known.add("RAY_ADDRESS")
    for workload in workloads(overlay).values():
        for container in workload.containers:
            assert environment(overlay, workload, container).keys() <= known


def test_services_take_the_values(overlay: str, tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text((ROOT / "deploy/kubernetes/base/run.toml").read_text())
    found = workloads(overlay)
    for name, container in (("gateway", "gateway"), ("vllm", "applier"), ("learner", "learner")):
        given = environment(overlay, found["gateway"], "gateway") | environment(
            overlay, found[name], container
        )
        given |= {"FULGURITE_RUN": str(run), "FULGURITE_BACKEND": "vllm-0"}
        with mock.patch.dict(os.environ, given, clear=True):
            assert list(check_settings(given)) == []


def test_ports_are_those_that_the_settings_name(overlay: str) -> None:
    found = workloads(overlay)
    gateway = environment(overlay, found["gateway"], "gateway")
    assert found["gateway"].ports == {"http": int(gateway["FULGURITE_GATEWAY_PORT"])}
    assert f"--port={found['vllm'].ports['http']}" in found["vllm"].containers["vllm"]["args"]
    for workload in found.values():
        for name, container in workload.containers.items():
            for port in container.get("ports", ()):
                if port["name"] == "metrics":
                    given = environment(overlay, workload, name)
                    assert port["containerPort"] == int(given["FULGURITE_METRICS_PORT"])


def test_the_gateway_calls_each_engine_as_its_applier_does(overlay: str) -> None:
    vllm = workloads(overlay)["vllm"]
    gateway = environment(overlay, workloads(overlay)["gateway"], "gateway")
    port = vllm.ports["http"]
    assert parse_backends(gateway["VLLM_BASE_URL"], "vllm") == {
        f"vllm-{number}": f"http://vllm-{number}.{vllm.spec['serviceName']}:{port}"
        for number in range(vllm.spec["replicas"])
    }
    applier = environment(overlay, vllm, "applier")
    assert applier["FULGURITE_BACKEND"] == "vllm-0"
    assert applier["VLLM_BASE_URL"] == f"http://127.0.0.1:{port}"


def test_images_are_those_that_docker_compose_builds(overlay: str) -> None:
    services = compose("cpu,gpu,rewards")
    built = {service["image"] for service in services.values()}
    for workload in workloads(overlay).values():
        for container in workload.containers.values():
            assert container["image"].removeprefix("registry.example/") in built


def test_commands_exist(overlay: str) -> None:
    for workload in workloads(overlay).values():
        for name, container in workload.containers.items():
            given = container.get("args", ())
            if workload.name == "redis" or name == "vllm":
                continue
            assert "command" not in container, "the image's entry point runs it"
            if given[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(given[2])
            elif given[:2] == ["sh", "-c"]:
                assert given[2].endswith(" && exec python -m services.learner.main")
            elif given:
                assert problem_of(given) is None


def test_vllm_and_redis_start_as_in_docker_compose(overlay: str) -> None:
    services = compose("cpu")
    redis = workloads(overlay)["redis"].containers["redis"]
    assert redis["command"] == services["redis"]["command"]
    given = environment(overlay, workloads(overlay)["vllm"], "vllm")
    named = [
        re.sub(r"\$\((\w+)\)", lambda match: given[match[1]], argument)
        for argument in workloads(overlay)["vllm"].containers["vllm"]["args"]
    ]
    expected = services["vllm"]["command"]
    assert [one.partition("=")[0] for one in named] == [
        one.partition("=")[0] for one in expected[:4]
    ]
    assert {one.partition("=")[0] for one in expected[4:]} == {
        "--max-model-len",
        "--allowed-media-domains",
    }
    with mock.patch.dict(os.environ, given, clear=True):
        added = VllmSettings.read().arguments(Path(given["FULGURITE_MODEL"]), named)
    assert f"--max-model-len={given['FULGURITE_VLLM_CONTEXT_LENGTH']}" in added
    assert "--allowed-media-domains=none.invalid" in added


def test_limits_and_grace_are_those_of_docker_compose(overlay: str) -> None:
    services = compose("cpu,rewards" if overlay == "cpu" else "gpu,rewards")
    for service, settings in services.items():
        name = NAMED_ELSEWHERE.get(service, service)
        for workload in workloads(overlay).values():
            if name in workload.containers and workload.kind != "Job":
                limits = workload.containers[name]["resources"]["limits"]
                assert bytes_of(limits["memory"]) == int(settings["mem_limit"]), name
                assert grace_of(workload) >= seconds_of(settings.get("stop_grace_period", "10s"))


def bytes_of(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def grace_of(workload: Workload) -> int:
    return workload.pod.get("terminationGracePeriodSeconds", 30)


def seconds_of(duration: str) -> int:
    """Of a duration as Docker Compose writes it: `2m10s`."""
    parts = {unit: int(number) for number, unit in re.findall(r"(\d+)([ms])", duration)}
    return parts.get("m", 0) * 60 + parts.get("s", 0)


def test_a_gateway_has_time_to_drain(overlay: str) -> None:
    gateway = workloads(overlay)["gateway"]
    container = gateway.containers["gateway"]
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain_s = GatewaySettings.model_fields["drain_s"].default
    assert grace_of(gateway) >= before + drain_s + 10


def test_pods_have_no_rights(overlay: str) -> None:
    for workload in workloads(overlay).values():
        assert workload.pod["automountServiceAccountToken"] is False, workload.name
        user = workload.pod["securityContext"]
        assert user["runAsNonRoot"]
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        assert user["runAsUser"] == (999 if workload.name == "redis" else 10001)
        assert user["fsGroup"] == user["runAsGroup"]
        for container in workload.containers.values():
            assert container["securityContext"] == RESTRICTED, workload.name
        for volume in workload.volumes.values():
            assert volume.keys() & {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def test_no_variable_comes_from_the_names_of_services(overlay: str) -> None:
    for workload in workloads(overlay).values():
        assert workload.pod["enableServiceLinks"] is False, workload.name


def test_what_is_written_is_a_volume(overlay: str) -> None:
    services = compose("cpu,gpu,rewards")
    for workload in workloads(overlay).values():
        if workload.kind == "RayCluster":
            continue
        for name, container in workload.containers.items():
            is_read_only = {
                mount["mountPath"]: mount.get("readOnly", False)
                for mount in container["volumeMounts"]
            }
            suffix = "-gpu" if overlay != "cpu" and name in ("vllm", "learner") else ""
            service = services[f"{name}{suffix}"]
            written = {
                mount["target"]: mount.get("read_only", False)
                for mount in service.get("volumes", ())
                if mount["type"] == "volume" and mount["target"] != "/secrets"
            }
            assert written.items() <= is_read_only.items(), name
            assert workload.name == "redis" or not (
                is_read_only["/tmp"] or is_read_only["/home/fulgurite"]
            )


def test_only_the_gateway_has_its_keys(overlay: str) -> None:
    for workload in workloads(overlay).values():
        for name in workload.containers:
            keys_held = {"FULGURITE_SIGNING_KEYS", "FULGURITE_ADMIN_KEY"} & environment(
                overlay, workload, name
            ).keys()
            assert bool(keys_held) == (name == "gateway"), name


def test_a_worker_is_ready_by_its_pulse_and_never_killed_for_kafka(overlay: str) -> None:
    assert (ROOT / "containers" / "healthy.sh").is_file()
    for workload in workloads(overlay).values():
        for name, container in workload.containers.items():
            if name in ("applier", "aggregator", "rewarder", "reward-worker", "learner"):
                command = container["readinessProbe"]["exec"]["command"]
                assert command[0] == "/app/containers/healthy.sh"
                assert "livenessProbe" not in container
                service = compose("cpu,rewards")[name]
                assert service["healthcheck"]["test"][1:] == command


def test_the_gateway_is_asked_for_its_health(overlay: str) -> None:
    routes = (ROOT / "services" / "gateway" / "http" / "health_routes.py").read_text()
    gateway = workloads(overlay)["gateway"].containers["gateway"]
    ready, alive = (
        gateway[f"{kind}Probe"]["httpGet"]["path"] for kind in ("readiness", "liveness")
    )
    assert (ready, alive) == ("/readyz", "/healthz")
    assert f'"{ready}"' in routes
    assert f'"{alive}"' in routes


def test_workers_are_no_more_than_partitions_and_have_names_that_last(overlay: str) -> None:
    for name in ("aggregator", "rewarder"):
        workload = workloads(overlay)[name]
        assert workload.kind == "StatefulSet"
        assert workload.spec["replicas"] <= GROUP_PARTITIONS
        given = environment(overlay, workload, name)
        assert given[f"FULGURITE_{name.upper()}_INSTANCE"] == f"{name}-0"


def test_a_policy_has_one_learner_and_its_folder_one_user(overlay: str) -> None:
    learner = workloads(overlay)["learner"]
    assert (learner.kind, learner.spec["replicas"]) == ("StatefulSet", 1)
    if overlay == "several-gpus":
        assert learner.spec["volumeClaimTemplates"] == [], "its workers write into it, too"
        return
    (claim,) = learner.spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_what_several_nodes_write_can_be_shared(overlay: str) -> None:
    for claim in of_kind(overlay, "PersistentVolumeClaim"):
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"], claim["metadata"]["name"]


def test_gateways_share_a_store(overlay: str) -> None:
    gateway = workloads(overlay)["gateway"]
    assert gateway.spec["replicas"] > 1
    assert environment(overlay, gateway, "gateway")["REDIS_URL"] == "redis://redis:6379/0"
    assert workloads(overlay)["redis"].ports == {"redis": 6379}


@pytest.mark.parametrize("name", ["vllm", "learner"])
def test_gpus_are_asked_for_where_there_are_some(name: str) -> None:
    def asked(overlay: str) -> str | None:
        limits = workloads(overlay)[name].containers[name]["resources"]["limits"]
        return limits.get("nvidia.com/gpu")

    assert (asked("cpu"), asked("gpu"), asked("shown")) == (None, "1", "1")


def test_processes_that_share_work_have_shared_memory(overlay: str) -> None:
    for workload in workloads(overlay).values():
        for name, container in workload.containers.items():
            gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
            if name != "vllm" and gpus < 2:
                continue
            (mount,) = (one for one in container["volumeMounts"] if one["mountPath"] == "/dev/shm")
            shared = workload.volumes[mount["name"]]["emptyDir"]
            assert shared["medium"] == "Memory", workload.name
            memory = bytes_of(container["resources"]["limits"]["memory"])
            assert 1 << 30 <= bytes_of(shared["sizeLimit"]) < memory, workload.name


def test_the_learners_workers_have_several_gpus() -> None:
    workers = workloads("several-gpus")["learner-workers-gpus"].containers["ray-worker"]
    assert int(workers["resources"]["limits"]["nvidia.com/gpu"]) > 1


def test_kafkas_user_may_use_the_topics_and_the_groups() -> None:
    user = yaml.safe_load(yaml_of_page("KafkaUser"))
    given = environment("shown", workloads("shown")["topics"], "topics")
    acls = user["spec"]["authorization"]["acls"]
    allowed = {acl["resource"]["type"]: acl["resource"] for acl in acls}
    assert user["metadata"]["name"] == given["KAFKA_SASL_USERNAME"]
    assert allowed["topic"]["name"] == given["FULGURITE_TOPIC_PREFIX"]
    for group in (f"{given['FULGURITE_TOPIC_PREFIX']}{name}" for name in ("aggregator", "reader")):
        assert group.startswith(allowed["group"]["name"])
