# SPDX-License-Identifier: Apache-2.0
"""Asking devices, compared with what iproute2 says."""

from __future__ import annotations

import json
import subprocess
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.prog.kernel.conftest import ip

from towpath.kernel.errors import KernelError
from towpath.kernel.net import interfaces, sysctl

if TYPE_CHECKING:
    from collections.abc import Callable


def told_by_ip(device: str) -> Any:
    """Return iproute2's account of a device."""
    command = ["ip", "-json", "address", "show", device]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0]


def test_names_and_indexes_belong_together(veth: int) -> None:
    """One leads to the other."""
    assert interfaces.device_index("tp0") == veth == told_by_ip("tp0")["ifindex"]
    assert interfaces.device_name(veth) == "tp0"


def test_device_is_what_iproute2_says(veth: int) -> None:
    """MAC address, MTU and addresses are the same."""
    for address in ("192.0.2.1/24", "2001:db8::1/64"):
        ip(f"addr add {address} dev tp0 nodad")
    ip("addr add 10.0.0.1 peer 10.0.0.2 dev tp0")
    ip("addr add 203.0.113.9/32 dev tp1")
    told = told_by_ip("tp0")
    assert interfaces.mac(veth).hex(":") == told["address"]
    assert interfaces.mtu(veth) == told["mtu"]
    found = interfaces.addresses(veth)
    assert {address.ip for address in found} == {
        ip_interface(each["local"]).ip for each in told["addr_info"]
    }
    assert ip_interface("192.0.2.1/24") in found


def test_device_without_an_address_has_none(veth: int) -> None:
    """No addresses is a list of none."""
    assert interfaces.addresses(interfaces.device_index("lo")) == []
    assert veth


@pytest.mark.parametrize(
    "ask",
    [
        lambda: interfaces.device_index("nope"),
        lambda: interfaces.device_name(999),
        lambda: interfaces.mac(999),
        lambda: interfaces.mtu(999),
        lambda: interfaces.set_forwarding("nope", "ipv4", on=True),
    ],
)
def test_missing_devices_are_told_with_those_there_are(
    veth: int, ask: Callable[[], object]
) -> None:
    """The message helps against typing errors."""
    assert veth
    with pytest.raises(KernelError, match=r"no (such )?device.*there are: .*lo.*tp0"):
        ask()


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_forwarding_tells_what_was_before(veth: int, family: sysctl.Family) -> None:
    """So that it can be put back."""
    assert veth
    setting = Path(f"/proc/sys/net/{family}/conf/tp0/forwarding")
    before = setting.read_text() != "0\n"
    assert interfaces.set_forwarding("tp0", family, on=True) is before
    assert setting.read_text() == "1\n"
    assert interfaces.set_forwarding("tp0", family, on=False) is True
    assert interfaces.set_forwarding("tp0", family, on=False) is False
    assert setting.read_text() == "0\n"
