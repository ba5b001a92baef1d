"""Who reaches whom, as the network policies say; a cluster's network plug-in has to enforce them."""

from __future__ import annotations

from typing import Any

from services.console.pages.settings import PageSettings
from tests.deploy.rendering import Manifest, environment, is_selected, of_kind, render, workloads

PART = {"app.kubernetes.io/part-of": "fulgurite"}
STRANGER = {"app.kubernetes.io/name": "gateway"}
"""The labels of a pod of somebody else in the same namespace."""


def may_call(overlay: str, caller: dict[str, str], workload: str, port: str) -> bool:
    """Whether a pod of the namespace with these labels reaches a port of the workload."""
    called = workloads(overlay)[workload].labels
    policies = [
        one["spec"]
        for one in of_kind(overlay, "NetworkPolicy")
        if is_selected(one["spec"]["podSelector"], called) and "Ingress" in one["spec"]["policyTypes"]
    ]  # fmt: skip
    assert policies, "what no policy selects is open to all"
    rules = [rule for policy in policies for rule in policy.get("ingress", ())]
    return any(
        ("ports" not in rule or any(one["port"] == port for one in rule["ports"]))
        and ("from" not in rule or any(is_peer(peer, caller) for peer in rule["from"]))
        for rule in rules
    )


def is_peer(peer: Manifest, labels: dict[str, str]) -> bool:
    """Whether a peer of a rule means a pod of the namespace with these labels."""
    assert set(peer) <= {"podSelector", "namespaceSelector"}
    return peer.get("namespaceSelector", {}) == {} and is_selected(
        peer.get("podSelector", {}), labels
    )


def test_only_the_gateway_reaches_vllm(overlay: str) -> None:
    for name, workload in workloads(overlay).items():
        assert may_call(overlay, workload.labels, "vllm", "http") == (name == "gateway")
    assert not may_call(overlay, STRANGER, "vllm", "http")


def test_only_the_gateway_reaches_redis(overlay: str) -> None:
    for name, workload in workloads(overlay).items():
        assert may_call(overlay, workload.labels, "redis", "redis") == (name == "gateway")
    assert not may_call(overlay, STRANGER, "redis", "redis")


def test_all_reach_the_gateway_and_metrics(overlay: str) -> None:
    assert may_call(overlay, STRANGER, "gateway", "http")
    for workload in workloads(overlay).values():
        if "metrics" in workload.ports:
            assert may_call(overlay, STRANGER, workload.name, "metrics")


def test_all_reach_the_console_which_asks_for_its_key(overlay: str) -> None:
    console = workloads(overlay)["console"]
    assert may_call(overlay, STRANGER, "console", "http")
    given = environment(overlay, console, "console")
    assert PageSettings.model_validate(
        {
            "console_host": given["FULGURITE_CONSOLE_HOST"],
            "console_read_key": given["FULGURITE_CONSOLE_READ_KEY"],
        }
    )
    assert console.ports["http"] == int(given["FULGURITE_CONSOLE_PORT"])
    assert (console.kind, console.spec["replicas"]) == ("StatefulSet", 1)


def test_no_port_leads_around_the_policies(overlay: str) -> None:
    assert not {one["kind"] for one in render(overlay)} & {"Ingress", "HTTPRoute"}
    assert {one["spec"].get("type", "ClusterIP") for one in of_kind(overlay, "Service")} == {
        "ClusterIP"
    }
    for workload in workloads(overlay).values():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & workload.pod.keys()
        ports = [port for one in workload.containers.values() for port in one.get("ports", ())]
        assert all(set(port) <= {"name", "containerPort"} for port in ports)


def test_who_needs_only_kafka_reaches_only_kafka(overlay: str) -> None:
    for name, workload in workloads(overlay).items():
        rules: list[Any] = [
            rule
            for one in of_kind(overlay, "NetworkPolicy")
            if is_selected(one["spec"]["podSelector"], workload.labels)
            for rule in one["spec"].get("egress", ())
        ]
        ports = {port["port"] for rule in rules for port in rule.get("ports", ())}
        if workload.kind == "RayCluster":
            assert ports == {53}
        else:
            assert ports == (set() if name in ("gateway", "model", "redis") else {53, 9092})


def test_only_the_learner_and_its_workers_reach_a_worker() -> None:
    found = workloads("several-gpus")
    inside = {name for name in found if name.startswith("learner")}
    assert inside == {"learner", "learner-workers-head", "learner-workers-gpus"}
    for called in inside - {"learner"}:
        for name, workload in found.items():
            may = may_call("several-gpus", workload.labels, called, "gcs-server")
            assert may == (name in inside), (name, called)
        assert not may_call("several-gpus", {"app.kubernetes.io/name": "learner"}, called, "any")


def test_every_policy_selects_pods_and_ports_that_exist() -> None:
    found = workloads("shown").values()
    for one in of_kind("shown", "NetworkPolicy"):
        spec = one["spec"]
        targets = [
            workload for workload in found if is_selected(spec["podSelector"], workload.labels)
        ]
        named = {name for workload in targets for name in workload.ports}
        assert targets, one["metadata"]["name"]
        assert {port["port"] for rule in spec.get("ingress", ()) for port in rule["ports"]} <= named
        assert PART.items() <= spec["podSelector"]["matchLabels"].items()
