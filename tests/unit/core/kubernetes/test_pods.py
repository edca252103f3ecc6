# SPDX-License-Identifier: Apache-2.0
"""What annotations of Pods and Namespaces limit, in whatever order things are told."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.core.kubernetes.harness_cluster import read

from towpath.core.kubernetes.pods import PRIORITY, Pods, pod_name
from towpath.model.bandwidth import Group, Pod
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from towpath.model.bandwidth import Sourced

EGRESS, INGRESS = "kubernetes.io/egress-bandwidth", "kubernetes.io/ingress-bandwidth"
ALL_EGRESS, ALL_INGRESS = "towpath.alt/egress-bandwidth", "towpath.alt/ingress-bandwidth"
FIRST, SECOND, SIXTH = map(ip_address, ("10.244.0.5", "10.244.0.6", "fd00::5"))


class Told:
    """Pods of a node, told as a watch does."""

    def __init__(self, *before: Pod) -> None:
        self.pods = Pods(before)

    def pod(
        self, name: str = "web", *ips: str, uid: str = "", phase: str = "Running", **more: Any
    ) -> None:
        """A Pod; ``more``: its annotations, with ``_`` for their names' rest."""
        annotations = more.pop("annotations", {EGRESS: "10M"})
        self.pods.put(
            read(
                objects.Pod,
                {
                    "metadata": {
                        "name": name,
                        "namespace": "default",
                        "uid": uid or f"uid-{name}",
                        "annotations": annotations,
                        "creationTimestamp": more.pop("created", "2026-11-28T10:00:00Z"),
                    },
                    "spec": {"nodeName": "n1", **more},
                    "status": {"phase": phase, "podIPs": [{"ip": each} for each in ips]},
                },
            )
        )

    def namespace(self, **annotations: str) -> None:
        """The namespace ``default``."""
        names = {"egress": ALL_EGRESS, "ingress": ALL_INGRESS, "priority": PRIORITY}
        found = {names[key]: each for key, each in annotations.items()}
        meta = {"name": "default", "uid": "ns", "annotations": found}
        self.pods.put(read(objects.Namespace, {"metadata": meta}))

    @property
    def wanted(self) -> Sourced:
        """What it amounts to."""
        return self.pods.wanted()

    @property
    def limits(self) -> dict[str, tuple[int | None, int | None]]:
        """Rates by name."""
        return {each.name: (each.egress, each.ingress) for each in self.wanted.pods}

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """Addresses by name."""
        return {each.name: tuple(map(str, each.addresses or ())) for each in self.wanted.pods}

    @property
    def refused(self) -> list[tuple[str, str]]:
        """Reasons and what they are about."""
        self.pods.wanted()
        return [(each.reason, each.name) for each in self.pods.refusals()]


def test_both_ways_and_both_families() -> None:
    """The first address is that of the node's first family only: all count."""
    told = Told()
    told.pod("web", "10.244.0.5", "fd00::5", annotations={EGRESS: "10M", INGRESS: "1.5Mi"})
    assert told.wanted.pods == (
        Pod("default:web", addresses=(FIRST, SIXTH), egress=10_000_000, ingress=1_572_864),
    )


def test_without_annotations_there_is_no_limit() -> None:
    """Nor without an address."""
    told = Told()
    told.pod("web", "10.244.0.5", annotations={})
    told.pod("late", annotations={EGRESS: "10M"}, phase="Pending")
    assert told.wanted.pods == ()
    assert told.pods.waiting == 1


def test_a_change_on_a_running_pod() -> None:
    """It holds from then on; taken away, there is none."""
    told = Told()
    told.pod("web", "10.244.0.5")
    assert told.limits == {"default:web": (10_000_000, None)}
    told.pod("web", "10.244.0.5", annotations={EGRESS: "20M", INGRESS: "1M"})
    assert told.limits == {"default:web": (20_000_000, 1_000_000)}
    told.pod("web", "10.244.0.5", annotations={})
    assert told.limits == {}


@pytest.mark.parametrize("text", ["500", "abc", "2P", "-1M"])
def test_what_the_runtime_refuses_changes_nothing(text: str) -> None:
    """The last right limit stays, and it is told."""
    told = Told()
    told.pod("web", "10.244.0.5")
    assert told.refused == []
    told.pod("web", "10.244.0.5", annotations={EGRESS: text, INGRESS: "1M"})
    assert told.limits == {"default:web": (10_000_000, 1_000_000)}
    (refusal,) = told.pods.refusals()
    assert (refusal.kind, refusal.reason) == ("Pod", "InvalidBandwidth")
    assert f"{EGRESS}: {text!r}" in refusal.message
    assert refusal.message.endswith("; 10000000 stays")


def test_the_node_knows_the_address_first() -> None:
    """The sandbox's are the pod's before the API server knows any, and when it is wrong."""
    told = Told()
    told.pod("web", phase="Pending")
    assert told.limits == {}
    told.pods.sandboxes({"uid-web": (FIRST,)})
    assert told.places == {"default:web": ("10.244.0.5",)}
    told.pod("web", "10.244.0.5")
    assert told.places == {"default:web": ("10.244.0.5",)}


def test_other_addresses_under_one_uid() -> None:
    """A pod whose sandbox was made anew: the API server has the old address for 2 s."""
    told = Told()
    told.pod("web", "10.244.0.5")
    told.pods.sandboxes({"uid-web": (FIRST,)})
    assert told.places == {"default:web": ("10.244.0.5",)}
    told.pods.sandboxes({"uid-web": (SECOND,)})
    assert told.places == {"default:web": ("10.244.0.6",)}
    told.pod("web", "10.244.0.6")
    assert told.places == {"default:web": ("10.244.0.6",)}


def test_a_static_pod_is_known_by_its_hash() -> None:
    """Its Pod in the API has a UID that the runtime doesn't know."""
    told = Told()
    told.pods.sandboxes({"hash": (FIRST,)})
    told.pod("etcd", annotations={EGRESS: "10M", "kubernetes.io/config.hash": "hash"})
    assert told.places == {"default:etcd": ("10.244.0.5",)}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_pod_has_no_address(phase: str) -> None:
    """Its status keeps one for ever that another pod has by now."""
    told = Told()
    told.pod("job", "10.244.0.5", phase=phase)
    assert told.limits == {}
    told.pod("web", "10.244.0.5", annotations={EGRESS: "20M"})
    assert told.limits == {"default:web": (20_000_000, None)}


def test_a_pod_that_finishes_is_limited_until_its_device_is_gone() -> None:
    """Or until another has its address."""
    told = Told()
    told.pod("job", "10.244.0.5")
    assert told.limits
    told.pod("job", "10.244.0.5", phase="Succeeded")
    assert told.limits == {"default:job": (10_000_000, None)}
    told.pod("web", "10.244.0.5", annotations={EGRESS: "20M"})
    assert told.limits == {"default:web": (20_000_000, None)}


def test_a_pod_that_is_gone_from_the_list_keeps_its_limit() -> None:
    """A list that isn't true takes none away; when the device is gone it ends."""
    told = Told()
    told.pod("web", "10.244.0.5")
    assert told.limits
    told.pods.replace(objects.Pod, [])
    assert told.limits == {"default:web": (10_000_000, None)}
    assert told.pods.leaving == ("default:web",)
    told.pods.gone(["default:web"])
    assert told.limits == {}


def test_what_an_earlier_agent_had_is_kept_alike() -> None:
    """A pod that was deleted meanwhile by force runs on as long as its device is there."""
    old = Pod("default:old", addresses=(FIRST,), egress=5_000_000)
    told = Told(old)
    assert told.wanted.pods == (old,)
    told.pod("web", "10.244.0.5")
    assert told.limits == {"default:web": (10_000_000, None)}


def test_the_same_pod_again_is_not_two() -> None:
    """What the earlier agent had is the pod that is told."""
    told = Told(Pod("default:web", addresses=(FIRST,), egress=5_000_000))
    told.pod("web", "10.244.0.5", annotations={})
    assert told.wanted.pods == ()


def test_a_pod_made_anew_under_its_name() -> None:
    """Both are limited while the first one's device is there."""
    told = Told()
    told.pod("db-0", "10.244.0.5", uid="a")
    assert told.limits
    told.pod("db-0", "10.244.0.6", uid="b", annotations={EGRESS: "20M"})
    assert told.places == {
        "default:db-0": ("10.244.0.6",),
        "default:db-0:leaving": ("10.244.0.5",),
    }
    told.pods.gone(["default:db-0:leaving"])
    assert told.places == {"default:db-0": ("10.244.0.6",)}


def test_one_address_is_of_one_pod() -> None:
    """Of that which the node has given it to, then of the younger."""
    told = Told()
    told.pod("old", "10.244.0.5", created="2026-11-28T10:00:00Z")
    told.pod("new", "10.244.0.5", created="2026-11-28T11:00:00Z")
    assert told.places == {"default:new": ("10.244.0.5",)}
    told.pods.sandboxes({"uid-old": (FIRST,)})
    assert told.places == {"default:old": ("10.244.0.5",)}


def test_a_pod_of_the_nodes_network_has_none() -> None:
    """Its address is the node's; it is told if it asks for a limit."""
    told = Told()
    told.pod("proxy", "192.0.2.1", hostNetwork=True)
    told.pod("other", "192.0.2.1", hostNetwork=True, annotations={})
    assert told.limits == {}
    assert told.refused == [("HostNetwork", "proxy")]
    assert told.pods.waiting == 0


def test_a_namespace_has_one_limit_for_its_pods() -> None:
    """Also for those without one of their own, and only for as long as there are any."""
    told = Told()
    told.namespace(egress="50M")
    assert told.wanted.groups == ()
    told.pod("web", "10.244.0.5")
    told.pod("quiet", "10.244.0.6", annotations={})
    wanted = told.wanted
    assert wanted.groups == (Group("default:-all", egress=50_000_000),)
    assert {each.name: each.group for each in wanted.pods} == {
        "default:web": "default:-all",
        "default:quiet": "default:-all",
    }
    told.namespace()
    assert told.wanted.groups == ()
    assert told.limits == {"default:web": (10_000_000, None)}


def test_a_namespace_with_pods_is_not_gone() -> None:
    """Whatever a list of Namespaces lacks."""
    told = Told()
    told.namespace(egress="50M")
    told.pod("web", "10.244.0.5")
    told.pods.replace(objects.Namespace, [])
    assert told.wanted.groups
    told.pods.remove(objects.Pod, "default", "web")
    told.pods.gone(["default:web"])
    told.pods.remove(objects.Namespace, "", "default")
    assert told.wanted.groups == ()


def test_priorities() -> None:
    """The pod's own, else its namespace's; by itself it makes an aggregate too."""
    told = Told()
    told.namespace(priority="2")
    told.pod("web", "10.244.0.5", annotations={PRIORITY: "5"})
    told.pod("quiet", "10.244.0.6", annotations={})
    assert {each.name: each.priority for each in told.wanted.pods} == {
        "default:web": 5,
        "default:quiet": 2,
    }


@pytest.mark.parametrize("text", ["8", "-1", "high", "", "٣", "07"])
def test_a_wrong_priority(text: str) -> None:
    """It is told, and the limit holds."""
    told = Told()
    told.pod("web", "10.244.0.5", annotations={EGRESS: "10M", PRIORITY: text})
    assert told.refused == [("InvalidPriority", "web")]
    assert told.limits == {"default:web": (10_000_000, None)}


def test_names_that_are_longer_than_tables_have_room_for() -> None:
    """Are cut, and stay apart."""
    first, second = (pod_name("n" * 63, "p" * 252 + each) for each in "ab")
    assert len(first) == len(second) == 120
    assert first != second
