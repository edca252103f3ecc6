# SPDX-License-Identifier: Apache-2.0
"""The Helm chart allows what the configuration has, and the plain manifests are what it renders."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import yaml
from tools.kubernetes import binaries, chart
from tools.kubernetes.errors import KubernetesError

from towpath.capabilities import CAPABILITIES
from towpath.cleanup import record
from towpath.cli import cleanup_kube_proxy
from towpath.model import parse_config
from towpath.model.settings import Config, Limits
from towpath.model.sources.kubernetes import Section
from towpath.model.sources.kubernetes.pools import parse_pools

SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((chart.CHART / "values.yaml").read_text())
MANIFESTS = ("rbac.yaml", "towpath.yaml", "pools.yaml")
SERVER = "kubernetes.server=https://192.0.2.1:6443"


@pytest.fixture
def helm() -> None:
    """Helm, where it was built."""
    if not binaries.CHARTS.is_kept:
        pytest.skip("NOT RUN: helm isn't built; `python -m tools.kubernetes --build` does that")


def test_every_option_of_the_section_is_a_value() -> None:
    """All but ``node``, which each pod is told."""
    known = {each.name for each in fields(Section)}
    assert set(SCHEMA["properties"]["kubernetes"]["properties"]) == known - {"node"}


def test_every_value_has_a_rule() -> None:
    """At the top, and one below; what is made of sections of the configuration is the agent's."""
    assert set(VALUES) == set(SCHEMA["properties"]) - {"global"}
    for name, rule in SCHEMA["properties"].items():
        if rule.get("additionalProperties") is False:
            assert set(VALUES[name]) <= set(rule["properties"]), name


def test_limits_and_sections_are_the_configurations() -> None:
    """The limits that it sets are there; sections that are values of their own exist."""
    assert set(VALUES["limits"]) <= {each.name for each in fields(Limits)}
    sections = {each.name for each in fields(Config)} | {each.name for each in CAPABILITIES}
    assert {"socket", "limits"} <= sections


def test_the_manifests_are_of_this_chart() -> None:
    """Known without helm: they name the chart that they were rendered from."""
    for name in MANIFESTS:
        assert chart.digest() in (chart.PLAIN / name).read_text(), (
            "python -m tools.kubernetes.chart --write"
        )


def test_the_manifests_configuration_is_one() -> None:
    """The agent takes it."""
    objects = yaml.safe_load_all((chart.PLAIN / "towpath.yaml").read_text())
    (settings,) = (each for each in objects if each["kind"] == "ConfigMap")
    found = parse_config(settings["data"]["towpath.yaml"], "towpath.yaml")
    assert found.sections["kubernetes"].server == "https://192.0.2.1:6443"
    assert found.limits.services == VALUES["limits"]["services"]


@pytest.mark.usefixtures("helm")
def test_the_manifests_are_what_it_renders() -> None:
    """To the letter; and helm has nothing against the chart."""
    chart.helm("lint", "--strict", chart.CHART, "--set", SERVER)
    assert chart.plain() == {name: (chart.PLAIN / name).read_text() for name in MANIFESTS}


@pytest.mark.usefixtures("helm")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((), "kubernetes.server: the API server's URL"),
        (("kubernetes.server=192.0.2.1",), "/kubernetes/server"),
        ((SERVER, "kubernetes.nod=x"), "'nod' not allowed"),
        ((SERVER, "kubernetes.node=x"), "'node' not allowed"),
        ((SERVER, "config.socket.cgroup=/x"), "config.socket: it is a value of its own"),
        ((SERVER, "hostPaths.bpf=sys"), "/hostPaths/bpf"),
        ((SERVER, "kubernetes.pools=mine"), "/kubernetes/pools"),
        ((SERVER, "pools[0].name=x", "pools[0].addresses=10.0.0.x"), "/pools/0/addresses"),
    ],
)
def test_what_makes_no_sense_is_refused(values: tuple[str, ...], said: str) -> None:
    """By the schema, or by the chart itself."""
    with pytest.raises(KubernetesError, match=said):
        chart.render(*values)


@pytest.mark.usefixtures("helm")
def test_values_become_configuration_and_pod() -> None:
    """Sections beside each other; without sockets; an agent that leaves nothing."""
    more = ("socket=null", "config.devices[0].name=eth0", "kubernetes.lost_share=80")
    text = chart.render(SERVER, *more, "detachOnExit=true", "image.tag=2", namespace="net")
    objects = {each["kind"]: each for each in yaml.safe_load_all(text)}
    found = parse_config(objects["ConfigMap"]["data"]["towpath.yaml"], "towpath.yaml")
    assert [each.name for each in found.devices] == ["eth0"]
    assert (found.sections["kubernetes"].lost_share, "socket" in found.sections) == (80, False)
    pod = objects["DaemonSet"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "localhost/towpath:2"
    assert container["args"][-1] == "--detach-on-exit"
    assert {each["metadata"].get("namespace") for each in objects.values()} == {"net", None}
    other = chart.render(SERVER, "kubernetes.lost_share=81", namespace="net")
    changed = next(e for e in yaml.safe_load_all(other) if e["kind"] == "DaemonSet")
    checksum = "checksum/configuration"
    told = [
        each["metadata"]["annotations"][checksum] for each in (pod, changed["spec"]["template"])
    ]
    assert told[0] != told[1]


@pytest.mark.usefixtures("helm")
def test_limits_of_pods_need_what_the_runtime_keeps() -> None:
    """The directory, which can't be written, and rights: only where limits are asked for."""
    wishes = ("kubernetes.pod_limits=true", "config.bandwidth.devices[0]=eth0")
    for more, there in ((wishes, True), ((), False)):
        text = chart.render(SERVER, *more)
        objects = {each["kind"]: each for each in yaml.safe_load_all(text)}
        parse_config(objects["ConfigMap"]["data"]["towpath.yaml"], "towpath.yaml")
        (container,) = objects["DaemonSet"]["spec"]["template"]["spec"]["containers"]
        mounted = {each["mountPath"]: each.get("readOnly") for each in container["volumeMounts"]}
        assert mounted.get("/var/lib/cni") == (True if there else None)
        rules = objects["ClusterRole"]["rules"]
        listed = {name for each in rules if "list" in each["verbs"] for name in each["resources"]}
        assert listed == {"services", "nodes", "endpointslices"} | (
            {"pods", "namespaces"} if there else set()
        )


@pytest.mark.usefixtures("helm")
def test_pools() -> None:
    """A ConfigMap that agents take, named to them; rights for that and nothing else."""
    pools = ("pools[0].name=public", "pools[0].addresses={192.0.2.0/28,192.0.2.40-192.0.2.49}")
    listed = list(yaml.safe_load_all(chart.render(SERVER, *pools, namespace="net")))
    maps = {e["metadata"]["name"]: e["data"] for e in listed if e["kind"] == "ConfigMap"}
    (pool,) = parse_pools(maps["towpath-pools"]["pools.yaml"], "pools.yaml")
    assert [str(each) for each in pool.addresses] == [
        "192.0.2.0-192.0.2.15",
        "192.0.2.40-192.0.2.49",
    ]
    found = parse_config(maps["towpath"]["towpath.yaml"], "towpath.yaml")
    assert found.sections["kubernetes"].pools == "net/towpath-pools"
    (role,) = (each for each in listed if each["kind"] == "Role")
    assert role["metadata"]["namespace"] == "net"
    assert [each.get("resourceNames") for each in role["rules"]] == [["towpath-pools"]] * 2 + [None]
    listed = list(yaml.safe_load_all(chart.render(SERVER, "kubernetes.pools=other/mine")))
    assert not [e for e in listed if e["kind"] == "ConfigMap" and e["metadata"]["name"] == "mine"]
    (role,) = (each for each in listed if each["kind"] == "Role")
    assert role["metadata"]["namespace"] == "other"
    assert not [e for e in yaml.safe_load_all(chart.render(SERVER)) if e["kind"] == "Role"]


@pytest.mark.usefixtures("helm")
def test_a_pod_for_clean_ups() -> None:
    """Beside agents, or alone; it sees the node's processes, and asks nothing of the API server."""
    (alone,) = yaml.safe_load_all(chart.render("agents=false", "cleanup.enabled=true"))
    beside = list(yaml.safe_load_all(chart.render(SERVER, "cleanup.enabled=true")))
    assert alone in beside
    assert {each["metadata"]["name"] for each in beside} == {"towpath", "towpath-cleanup"}
    pod = alone["spec"]["template"]["spec"]
    assert (pod["hostPID"], pod["automountServiceAccountToken"]) == (True, False)
    (container,) = pod["containers"]
    # Its command is one, which stays.
    with cleanup_kube_proxy.kube_proxy.make_context("kube-proxy", container["args"][2:]) as parsed:
        assert parsed.params["action"] == "stay"
    assert not container["securityContext"]["privileged"]
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    assert str(record.DIRECTORY.parent) in mounted
