# SPDX-License-Identifier: Apache-2.0
"""From answers to verdicts, whatever kernel they come from."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.doctor import Answer, Capability, judge, rules
from towpath.doctor.capability import no, unprobed, yes
from towpath.doctor.rules import RULES, Rule, Way
from towpath.model import Backend, Config, Device, Service, Snat
from towpath.model.socket import Packets, Section

RULE = Rule("thing", (Way("best"), Way("second", "speed")), "someone", "all", required=True)

# What a kernel lacks that has everything needed and nothing more, and what the user loses by it.
FALLBACKS = {
    "batched map operations": ("batch", "a large map takes longer to read"),
    "JIT compiler": ("jit", "packets take several times as long"),
    "waiting for packets in flight": ("membarrier", "nothing: it waits as long"),
    "programs at tc ingress": ("tcx", "a process that is killed leaves its filter behind"),
    "source address from bpf_fib_lookup": (
        "fib_source",
        "the outer source may be another than the route prefers",
    ),
    "recorder program": (
        "recorder_program_of_source_nat",
        "no captures where there are addresses in snat",
    ),
    "copies of frames": ("xdp_load_bytes", "captures, too, if the kernel is locked down"),
    "BPF file system": ("bpffs", "only the mount namespace of the agent sees the pins"),
    "permissions": ("permissions", "an agent can't take over what an earlier one has pinned"),
}


def verdicts(lacking: set[str], config: Config | None = None) -> dict[str, Capability]:
    """What is made of a kernel that has all but some things."""

    def ask(key: str) -> Answer:
        return no(f"no {key}") if key.partition(":")[0] in lacking else yes(key)

    return {rule.name: judge(rule, ask) for rule in rules(config)}


def config(*devices: Device, backend: str | None = None) -> Config:
    """A configuration of these devices, with or without a backend."""
    if backend is None:
        return Config(devices=devices)
    address = (IPv6Address if ":" in backend else IPv4Address)(backend)
    service = Service("web", IPv4Address("203.0.113.10"), 80, backends=(Backend(address),))
    return Config(devices=devices, services=(service,))


@pytest.mark.parametrize(
    ("answers", "state", "found", "loses"),
    [
        ((yes("fine"),), "available", "fine", ""),
        ((no("not so"), yes("so-so")), "fallback", "so-so (not so)", "speed"),
        ((no("not so"), no("nor so")), "missing", "not so; nor so", "all"),
        ((no("not so"), no("not so")), "missing", "not so", "all"),
        ((unprobed("no right"),), "unknown", "no right", "all"),
        ((no("not so"), unprobed("no right")), "unknown", "no right", "all"),
    ],
)
def test_the_best_way_that_works_decides(
    answers: tuple[Answer, ...], state: str, found: str, loses: str
) -> None:
    """And no way is asked about that the verdict doesn't depend on."""
    waiting = list(answers)
    capability = judge(RULE, lambda _: waiting.pop(0))
    assert not waiting
    assert capability == Capability("thing", state, found, "someone", loses, required=True)  # type: ignore[arg-type]


@given(st.lists(st.sampled_from([True, False, None]), min_size=2, max_size=2))
def test_a_verdict_never_claims_more_than_was_answered(answers: list[bool | None]) -> None:
    """Available or fallback only if a way works, fatal only if all are known not to."""
    by_probe = {
        way.probe: Answer(works, "x") for way, works in zip(RULE.ways, answers, strict=True)
    }
    capability = judge(RULE, by_probe.__getitem__)
    assert (capability.state in {"available", "fallback"}) <= (True in answers)
    assert capability.fatal == (answers == [False, False])
    assert (capability.loses == "") == (answers[0] is True)


def test_a_kernel_with_everything_loses_nothing() -> None:
    """All is available, and nothing is lost."""
    for capability in verdicts(set()).values():
        assert (capability.state, capability.loses) == ("available", "")


@pytest.mark.parametrize("name", FALLBACKS)
def test_a_fallback_says_what_is_lost(name: str) -> None:
    """What takes the place of a thing that is lacking, and at which price."""
    probe, loses = FALLBACKS[name]
    found = verdicts({probe})[name]
    assert (found.state, found.loses) == ("fallback", loses)
    assert found.found.endswith(f"(no {probe})")


def test_every_fallback_is_tested() -> None:
    """The table above is complete."""
    assert {rule.name for rule in RULES if len(rule.ways) > 1} == set(FALLBACKS)


def test_what_can_be_done_without_is_not_fatal() -> None:
    """Of the oldest kernel's gaps none keeps a load balancer from running."""
    gaps = {"tcx", "fib_source", "fib_mtu", "managed_neighbours", "fq", "batch"}
    found = verdicts(gaps)
    assert not any(each.fatal for each in found.values())
    assert found["MTU from bpf_fib_lookup"].state == "missing"
    assert "not recognised" in found["MTU from bpf_fib_lookup"].loses


@pytest.mark.parametrize("probe", ["balancer_program", "xdp_link", "map_mmap", "fib", "libbpf"])
def test_what_a_load_balancer_cannot_do_without_is_fatal(probe: str) -> None:
    """Exactly one capability says so."""
    assert len([each for each in verdicts({probe}).values() if each.fatal]) == 1


@pytest.mark.parametrize(
    ("mode", "lacking", "state"),
    [
        ("auto", {"native"}, "fallback"),
        ("auto", {"native", "generic"}, "missing"),
        ("native", {"native"}, "missing"),
        ("generic", {"native"}, "available"),
    ],
)
def test_a_device_must_do_what_its_mode_says(mode: str, lacking: set[str], state: str) -> None:
    """Generic mode takes the place of native mode only where it may."""
    found = verdicts(lacking, config(Device("eth0", mode)))["XDP on eth0"]  # type: ignore[arg-type]
    assert found.state == state
    assert found.fatal == (state == "missing")


def test_each_device_has_its_own_lines() -> None:
    """By the device's name."""
    found = verdicts({"vlan_tags"}, config(Device("eth0"), Device("eth1")))
    assert found["VLAN tags on eth0"].state == found["VLAN tags on eth1"].state == "missing"
    assert not found["VLAN tags on eth0"].required


def test_what_xdp_cannot_send_the_kernel_does() -> None:
    """Which takes longer, and is told."""
    found = verdicts({"redirect_target"}, config(Device("eth0")))
    assert found["redirects to eth0"].state == "fallback"
    assert not found["redirects to eth0"].required


@pytest.mark.parametrize(
    ("backend", "required"),
    [(None, set()), ("192.0.2.11", {4}), ("2001:db8::11", {6})],
)
def test_only_the_families_of_the_backends_are_needed(
    backend: str | None, required: set[int]
) -> None:
    """Forwarding and look-ups of the other one may be off."""
    found = verdicts(set(), config(Device("eth0"), backend=backend))
    for version in (4, 6):
        assert found[f"IPv{version} forwarding on eth0"].required == (version in required)
    assert found["bpf_fib_lookup of IPv6"].required == (6 in required)


def test_a_mount_of_the_agents_own_is_as_good() -> None:
    """Where cgroups of version 2 are mounted nowhere."""
    found = verdicts({"cgroups"}, at_sockets())["cgroups of version 2"]
    assert (found.state, found.loses) == ("fallback", "nothing: the agent mounts them for itself")
    assert verdicts({"cgroups", "cgroups_privately"}, at_sockets())["cgroups of version 2"].fatal


def test_packets_are_what_is_left_where_no_program_runs_for_sockets() -> None:
    """If devices are named for that."""
    name = "programs run for processes that connect"
    assert verdicts(set(), at_sockets(Packets(("veth*",))))[name].state == "available"
    found = verdicts({"cgroup_proof"}, at_sockets(Packets(("veth*",))))[name]
    assert (found.state, found.found) == ("fallback", "packets_at_tc (no cgroup_proof)")
    assert found.loses.startswith("only packets of `packets.devices` are balanced")
    found = verdicts({"cgroup_proof"}, at_sockets())[name]
    assert (found.state, found.loses) == ("missing", "connect() to a service isn't balanced")


def at_sockets(packets: Packets | None = None) -> Config:
    """A configuration for sockets alone."""
    return Config(sections={"socket": Section(packets=packets)})


def test_source_nat_is_needed_by_whom_it_is_configured_for() -> None:
    """By the addresses: without any no service can be translated."""
    lacking = {"source_nat_program"}
    assert not verdicts(lacking)["source NAT program"].fatal
    without = config(Device("eth0"))
    assert not verdicts(lacking, without)["source NAT program"].fatal
    for snat in (Snat((IPv4Address("192.0.2.1"),)), Snat((), (IPv6Address("2001:db8::1"),))):
        found = verdicts(lacking, replace(without, snat=snat))["source NAT program"]
        assert found.fatal
        assert found.loses == "with addresses in snat the agent does not start"


def test_captures_and_checks_can_be_done_without() -> None:
    """Packets are balanced all the same."""
    lacking = {
        "ring_buffer": "ring buffer",
        "recorder_program": "recorder program",
        "recorder_program_of_source_nat": "recorder program",
        "xdp_load_bytes": "copies of frames",
        "probe_read_kernel": "copies of frames",
        "libpcap": "libpcap",
        "rules_by_mark": "policy routing",
    }
    found = verdicts(set(lacking), config(Device("eth0")))
    for name in set(lacking.values()):
        assert (found[name].state, found[name].required) == ("missing", False)
    assert found["recorder program"].loses == "packets can't be captured"


def test_an_agent_needs_a_place_for_its_pins() -> None:
    """A load balancer in a script doesn't."""
    lacking = {"bpffs", "bpffs can be mounted"}
    assert not verdicts(lacking)["BPF file system"].fatal
    assert verdicts(lacking, config(Device("eth0")))["BPF file system"].fatal


def test_the_fields_are_those_of_the_json_output() -> None:
    """Names and their order are what programs rely on."""
    names = ["name", "state", "found", "needed_by", "loses", "required", "attached"]
    assert [field.name for field in fields(Capability)] == names
    capability = judge(RULE, lambda _: yes("fine"))
    assert list(asdict(capability)) == names


def test_names_are_unique() -> None:
    """A capability can be looked up by its name."""
    found = rules(config(Device("eth0"), Device("eth1")))
    assert len({rule.name for rule in found}) == len(found)
