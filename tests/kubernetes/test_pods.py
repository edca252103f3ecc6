# SPDX-License-Identifier: Apache-2.0
"""Annotations limit real pods on a real node, from their first packet on."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tests.kubernetes.harness_bursts import burster, links, moments, told
from tests.kubernetes.harness_pods import (
    BUCKET,
    EGRESS,
    INGRESS,
    OVERHEAD,
    SIZE,
    Receiver,
    address,
    annotate,
    bits_a_second,
    events,
    excess,
    knows_pods,
    limiting,
    limits,
    sender,
    status,
    troubles,
    until,
    without_plugin,
)
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.node import Node
    from tools.kubernetes.programs import Program

RATE = 10_000_000
WIRE = SIZE + OVERHEAD
MANY = int(os.environ.get("TOWPATH_PODS") or 20)
"""Pods at once: more take a machine of more than two CPUs, or patience."""
KILL_PAUSE = """
for each in /proc/[0-9]*; do
  grep -q 'pod{uid}' $each/cgroup && [ "$(cat $each/comm)" = pause ] && kill -9 ${{each#/proc/}}
done
true
"""

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def agent(cluster: Cluster) -> Iterator[Program]:
    """One on the first node, whose new pods have no CNI bandwidth plugin."""
    without_plugin(cluster.nodes[0])
    with limiting(cluster.nodes[0], {}) as made:
        yield made
    without_plugin(cluster.nodes[0], plugin=True)


@pytest.fixture
def limited(cluster: Cluster, agent: Program) -> Cluster:
    """The cluster with it."""
    assert agent.pid
    return cluster


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Who is sent to."""
    made = Receiver()
    yield made
    made.close()


def most(rate: int) -> float:
    """What may arrive in two seconds, in bits a second: what the bucket had comes with it.

    A busy machine's pods send less; others' tests say that limits are used up.
    """
    return 1.05 * rate + BUCKET * 8 / 2


def gone(cluster: Cluster, *names: str) -> None:
    """Delete pods, and wait until their limits have ended."""
    cluster.plane.kubectl("delete", "pod", *names, "--now")
    ours = {f"default:{name}" for name in names}
    until(lambda: not ours & limits(cluster.nodes[0]).keys(), "limits to end with their pods")


def _is_limited(node: Node, name: str) -> bool:
    """Whether an agent that may not serve yet has a limit."""
    try:
        return name in limits(node)
    except KubernetesError:
        return False


def test_from_the_first_packet(limited: Cluster, receiver: Receiver) -> None:
    """The pod's first act is to send all it can: no more than its limit ever arrives."""
    limited.plane.apply(sender("first", limited.nodes[0].name, {EGRESS: "10M"}))
    receiver.listen(6)
    (times,) = receiver.by_source().values()
    assert excess(times, RATE) <= BUCKET + 2 * WIRE
    assert bits_a_second(times, 0.5, 2.5) <= most(RATE)
    gone(limited, "first")


def test_many_at_once(
    limited: Cluster, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each holds from its first packet, which a small program sends as soon as it runs."""
    node = limited.nodes[0]
    names = [f"many-{number}" for number in range(MANY)]
    with links(node) as seen:
        limited.plane.apply(*(burster(name, node.name, {EGRESS: "1M"}, 3) for name in names))
        end = time.monotonic() + 60 + 2 * MANY
        while len(receiver.by_source()) < MANY and time.monotonic() < end:
            receiver.listen(2)
        receiver.listen(4)
        found = receiver.by_source()
        said = told(moments(node, seen, found))
    above = sorted(excess(times, 1_000_000) for times in found.values())
    missed = [each for each in above if each > BUCKET + 2 * WIRE]
    with capsys.disabled():
        sys.stdout.write(f"\n{said}; most beyond the limit: {above[-1]:.0f} bytes\n")
    assert not missed, (len(missed), said)
    assert len(found) == MANY
    gone(limited, *names)


def test_a_change_on_a_running_pod(limited: Cluster, receiver: Receiver) -> None:
    """It holds at once; what is refused changes nothing, by an Event; without it all goes."""
    node = limited.nodes[0]
    limited.plane.apply(sender("runs", node.name, {EGRESS: "5M"}, seconds=600))
    ip = address(limited, "runs")
    assert receiver.rates().get(ip, 0.0) <= most(5_000_000)
    annotate(limited, "pod", "runs", **{EGRESS: "20M", INGRESS: "1.5Mi"})
    until(lambda: limits(node)["default:runs"]["egress"] == 20_000_000, "the change")
    assert receiver.rates().get(ip, 0.0) <= most(20_000_000)
    assert limits(node)["default:runs"]["ingress"] == 1_572_864
    annotate(limited, "pod", "runs", **{EGRESS: "500"})
    until(lambda: "InvalidBandwidth" in events(limited, "runs"), "an Event")
    told = [each["message"] for each in status(node)["unserved"]]
    assert any("unreasonably small (< 1kbit); 20000000 stays" in each for each in told), told
    assert receiver.rates().get(ip, 0.0) <= most(20_000_000)
    annotate(limited, "pod", "runs", **{EGRESS: "", INGRESS: ""})
    until(lambda: "default:runs" not in limits(node), "no limit")
    until(lambda: receiver.rates().get(ip, 0.0) > most(20_000_000), "it to send without a limit")
    gone(limited, "runs")


def test_a_namespace_has_one_limit(limited: Cluster, receiver: Receiver) -> None:
    """Two pods share it, of which one has a limit of its own."""
    node = limited.nodes[0]
    annotate(limited, "namespace", "default", **{"towpath.alt/egress-bandwidth": "12M"})
    limited.plane.apply(
        sender("one", node.name, {EGRESS: "3M"}, seconds=60),
        sender("other", node.name, {}, seconds=60),
    )
    one, other = address(limited, "one"), address(limited, "other")
    until(lambda: {"default:one", "default:other"} <= limits(node).keys(), "both to be limited")
    rates = receiver.rates(4)
    assert rates[one] <= most(3_000_000)
    assert rates[one] + rates[other] <= most(12_000_000)
    annotate(limited, "namespace", "default", **{"towpath.alt/egress-bandwidth": ""})
    until(lambda: "default:other" not in limits(node), "the common limit to end")
    assert receiver.rates().get(one, 0.0) <= most(3_000_000)
    gone(limited, "one", "other")


def test_other_addresses_under_one_uid(limited: Cluster, receiver: Receiver) -> None:
    """The pause process dies; the pod goes on at another device, limited from its first packet."""
    node = limited.nodes[0]
    limited.plane.apply(sender("anew", node.name, {EGRESS: "10M"}, seconds=60))
    first = address(limited, "anew")
    uid = limited.pod("anew")["metadata"]["uid"]
    receiver.rates(1)
    receiver.arrivals.clear()
    node.run("sh", "-c", KILL_PAUSE.format(uid=uid))
    end = time.monotonic() + 60
    while not receiver.by_source().keys() - {first} and time.monotonic() < end:
        receiver.listen(1)
    receiver.listen(2)
    (second,) = receiver.by_source().keys() - {first}
    assert limited.pod("anew")["metadata"]["uid"] == uid
    times = receiver.by_source()[second]
    assert excess(times, RATE) <= BUCKET + 2 * WIRE
    gone(limited, "anew")


def test_it_holds_without_the_agent_and_without_the_api(
    limited: Cluster, agent: Program, receiver: Receiver
) -> None:
    """Killed; started again where no API server answers."""
    node = limited.nodes[0]
    limited.plane.apply(sender("stays", node.name, {EGRESS: "10M"}, seconds=120))
    ip = address(limited, "stays")
    until(lambda: "default:stays" in limits(node), "a limit")
    agent.stop(signal.SIGKILL)
    assert receiver.rates().get(ip, 0.0) <= most(RATE)
    path = node.directory / "towpath.yaml"
    whole = path.read_text()
    changed = json.loads(whole)
    changed["kubernetes"]["server"] = "https://192.168.88.250:6443"
    path.write_text(json.dumps(changed))
    agent.start()
    agent.wait_for(lambda: _is_limited(node, "default:stays"))
    assert receiver.rates(3).get(ip, 0.0) <= most(RATE)
    agent.stop(signal.SIGTERM)
    path.write_text(whole)
    agent.start()
    agent.wait_for(lambda: knows_pods(node))
    gone(limited, "stays")


def test_beside_the_bandwidth_plugin(limited: Cluster, receiver: Receiver) -> None:
    """Its limit stays, which doesn't hold at first, and no other is added; that is told."""
    node = limited.nodes[0]
    without_plugin(node, plugin=True)
    try:
        limited.plane.apply(sender("shaped", node.name, {EGRESS: "1.5M", INGRESS: "2M"}))
        receiver.listen(7)
    finally:
        without_plugin(node)
    (times,) = receiver.by_source().values()
    # Its bucket is some 21 MB; how much of that a busy machine has sent is not the point.
    assert excess(times, 1_500_000) > 4 * BUCKET
    found = limits(node)["default:shaped"]
    assert (found["egress"], found["ingress"]) == (None, None)
    assert "is shaped already, what it sends by tbf of 1500000 bit/s and what it" in troubles(node)
    gone(limited, "shaped")
