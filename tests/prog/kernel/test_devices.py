# SPDX-License-Identifier: Apache-2.0
"""Devices and addresses as they are by what the kernel tells, compared with what iproute2 says."""

from __future__ import annotations

import json
import subprocess
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

import pytest
from tests.prog.kernel.conftest import ip

from towpath.kernel.net.devices import Devices
from towpath.kernel.net.interfaces import set_forwarding
from towpath.kernel.net.netns import new_netns
from towpath.kernel.net.sysctl import FAMILIES
from towpath.kernel.net.watch import Group, Watch
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def devices() -> Iterator[Devices]:
    """Of a namespace of the test's own, followed from when it was empty."""
    with new_netns(), Devices() as made:
        yield made


def shown(*what: str) -> Any:
    """What iproute2 says."""
    command = ["ip", "-json", "-details", *what]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def as_shown() -> list[object]:
    """What iproute2 says of all devices, whose list is made anew."""
    told = shown("address")
    indexes = {each["ifname"]: each["ifindex"] for each in told} | {None: 0}
    return [
        (
            each["ifindex"],
            each["ifname"],
            each.get("altnames", []),
            indexes[each.get("master")],
            {
                (ip_interface(f"{one['local']}/{one['prefixlen']}"), one.get("deprecated", False))
                for one in each["addr_info"]
            },
        )
        for each in sorted(told, key=lambda each: int(each["ifindex"]))
    ]


def as_followed(devices: Devices) -> list[object]:
    """The same as it is known by what was told."""
    return [
        (
            each.index,
            each.name,
            list(each.altnames),
            each.master,
            {(one.interface, one.deprecated) for one in devices.addresses([each.index])},
        )
        for each in sorted(devices.interfaces, key=lambda each: each.index)
    ]


def assert_agrees(devices: Devices, after: str) -> None:
    """What a worker of the kernel does, as with IPv6 addresses, is told when it is done."""

    def agrees() -> bool:
        devices.read()
        return as_followed(devices) == as_shown()

    wait_until(agrees, seconds=60, what=f"what is told after {after} to be what there is")


def test_all_that_happens_to_devices_is_followed(devices: Devices) -> None:
    """Made, renamed, given other names, made ports of a bridge, removed."""
    steps = [
        "link add tp0 type veth peer name tp1",
        "link set tp0 addrgenmode none",
        "link set tp1 addrgenmode none",
        "link set tp0 up",
        "link set tp1 up",
        "link property add dev tp0 altname other altname longer-than-any-name-may-be",
        "link set tp1 down",
        "link set tp1 name tp9",
        "link set tp9 up",
        "link property del dev tp0 altname other",
        "link add tpbr type bridge",
        "link set tp0 master tpbr",
        "link set tp0 nomaster",
        "link delete tpbr",
        "link delete tp9",
    ]
    for step in steps:
        ip(step)
        assert_agrees(devices, step)
    assert devices.read() is False
    assert devices.resyncs == 0


def test_a_port_that_leaves_its_bridge_is_still_there(devices: Devices) -> None:
    """The bridge says of it that it is gone, which it is from there only."""
    ip("link add tp0 type veth peer name tp1")
    ip("link add tpbr type bridge")
    ip("link set tp0 master tpbr")
    devices.read()
    before = devices.named("tp0")
    ip("link set tp0 nomaster")
    devices.read()
    after = devices.named("tp0")
    assert before
    assert after
    # Not another one that has its index: it is the one that it was.
    assert (after.index, after.serial) == (before.index, before.serial)


def test_addresses_are_followed(devices: Devices) -> None:
    """Added, deprecated, removed, several alike on one device, and gone with it."""
    ip("link add tp0 type veth peer name tp1")
    ip("link set tp0 addrgenmode none")
    ip("link set tp1 addrgenmode none")
    steps = [
        "address add 192.0.2.1/24 dev tp0",
        "address add 192.0.2.2/24 dev tp0",
        "address add 10.0.0.1 peer 10.0.0.2 dev tp0",
        "address add 10.0.0.1 peer 10.0.0.3 dev tp0",
        "link set tp0 up",
        "link set tp1 up",
        "address add 2001:db8::1/64 dev tp0 nodad",
        "address add 2001:db8::2/64 dev tp0 nodad",
        "address change 2001:db8::2/64 dev tp0 preferred_lft 0",
        "address del 10.0.0.1 peer 10.0.0.2 dev tp0",
        "address del 2001:db8::1/64 dev tp0",
        "link set tp0 down",
        "link delete tp0",
    ]
    for step in steps:
        ip(step)
        assert_agrees(devices, step)
    assert devices.addresses() == []


def test_a_name_is_a_name_before_it_is_another_name(devices: Devices) -> None:
    """And one that nobody has is nobody's. Of devices that are down the kernel doesn't tell."""
    ip("link add tp0 type veth peer name tp1")
    ip("link property add dev tp0 altname tp-other")
    devices.read()
    found = devices.named("tp-other")
    assert found is not None
    assert found.name == "tp0"
    assert devices.named("tp2") is None
    ip("link property del dev tp0 altname tp-other")
    assert devices.named("tp-other") is None
    ip("link set tp1 name tp-other")
    devices.read()
    found = devices.named("tp-other")
    assert found is not None
    assert found.name == "tp-other"


def test_what_became_of_a_device_is_known(devices: Devices) -> None:
    """Whether it is gone, or somewhere else."""
    ip("link add tp0 type veth peer name tp1")
    devices.read()
    indexes = {name: devices.named(name) for name in ("tp0", "tp1")}
    assert indexes["tp0"]
    assert indexes["tp1"]
    ip("netns add tp-devices-test")
    try:
        ip("link set tp1 netns tp-devices-test")
        devices.read()
        assert devices.get(indexes["tp1"].index) is None
        moved = "it was moved to another network namespace"
        assert devices.became(indexes["tp1"].index) == moved
        ip("link delete tp0")
        devices.read()
        assert devices.became(indexes["tp0"].index) == "it is gone"
    finally:
        ip("netns delete tp-devices-test")


def test_lost_messages_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is asked for again, however often; what has gone meanwhile is gone."""
    monkeypatch.setattr("towpath.kernel.net.devices.Watch", _small)
    with new_netns(), Devices() as devices:
        for count in (1, 2, 3):
            for number in range(12):
                ip(f"link add tp{number} type veth peer name tp{number}p")
                ip(f"address add 192.0.2.{number}/24 dev tp{number}")
            assert_agrees(devices, "many were made")
            for number in range(1, 12):
                ip(f"link delete tp{number}")
            assert_agrees(devices, "many were removed")
            assert devices.resyncs >= count
            ip("link delete tp0")
            assert_agrees(devices, "the last was removed")


def _small(groups: list[Group], netns: object) -> Watch:
    assert netns is None
    return Watch(groups, buffer=4096)


def test_switches_of_devices_are_told(devices: Devices) -> None:
    """So that what is switched off by others can be noticed at once."""
    ip("link add tp0 type veth peer name tp1")
    devices.read()
    for family in FAMILIES:
        set_forwarding("tp0", family, on=True)
        assert devices.read() is True
        assert devices.read() is False
