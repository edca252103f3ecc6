# SPDX-License-Identifier: Apache-2.0
"""Network devices of the calling thread's network namespace.

pyroute2 takes long to import, so it is imported by the functions that speak netlink.
"""

from __future__ import annotations

import errno as errnos
import socket
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


_ETH_P_8021Q = 0x8100


def device_index(name: str) -> int:
    """The interface index of a device. KernelError: there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        there = ", ".join(name for _, name in socket.if_nameindex())
        raise KernelError(f"no such device: {name}", hint=f"there are: {there}") from None


def device_name(index: int) -> str:
    """The name of the device with that interface index. KernelError: there is none."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        there = ", ".join(f"{number} {name}" for number, name in socket.if_nameindex())
        raise KernelError(f"no device has index {index}", hint=f"there are: {there}") from None


def addresses(index: int) -> list[IPv4Interface | IPv6Interface]:
    """The addresses of a device with their prefix lengths, as the kernel orders them."""
    with connected() as netlink:
        # The kernel filters only where it checks the request strictly; older ones send all.
        return [
            ip_interface(f"{message.get('local') or message.get('address')}/{message['prefixlen']}")
            for message in netlink.get_addr(index=index)
            if message["index"] == index
        ]


def mac(index: int) -> bytes:
    """The link-layer address of a device: 6 bytes of an Ethernet device. KernelError: none such."""
    return bytes.fromhex((_link(index).get("address") or "").replace(":", ""))


def mtu(index: int) -> int:
    """The MTU of a device in bytes. KernelError: no such device."""
    return int(_link(index).get("mtu"))


def vlan_devices() -> list[tuple[int, int, int]]:
    """All 802.1Q devices: index, index of the device below, VLAN id.

    Those whose device below is in another network namespace aren't among them.
    """
    with connected() as netlink:
        return vlans_among(netlink.get_links())


def vlans_among(messages: Iterable[Any]) -> list[tuple[int, int, int]]:
    """The same, of link messages from anywhere."""
    found = []
    for message in messages:
        info = message.get("linkinfo")
        if info is None or info.get("kind") != "vlan" or message.get("link_netnsid") is not None:
            continue
        data = info.get("data")
        if data.get("vlan_protocol") == _ETH_P_8021Q:
            found.append((message["index"], message.get("link"), data.get("vlan_id")))
    return found


def entrances(index: int) -> list[str]:
    """Names of the devices that packets of a device come in by, as routing sees it.

    Its VLAN devices, the devices that it is a bond of, and itself. KernelError: no such device.
    """
    with connected() as netlink:
        return [device_name(index), *entrances_among(netlink.get_links(), index)]


def entrances_among(messages: Iterable[Any], index: int) -> list[str]:
    """The same without the device itself, of link messages from anywhere."""
    messages = list(messages)
    tagged = {upper for upper, lower, _ in vlans_among(messages) if lower == index}
    return [
        message.get("ifname")
        for message in messages
        if message["index"] in tagged or (message.get("master") == index and _is_bonded(message))
    ]


def _is_bonded(message: Any) -> bool:
    info = message.get("linkinfo")
    return info is not None and info.get("slave_kind") == "bond"


def _link(index: int) -> Any:
    with connected() as netlink:
        try:
            return netlink.link("get", index=index)[0]
        except netlink_error() as error:
            if error.code == errnos.ENODEV:
                device_name(index)
            raise KernelError(f"read device {index}", error.code) from error


Family = Literal["ipv4", "ipv6"]
_SYSCTL = Path("/proc/sys/net")


def set_forwarding(name: str, family: Family, on: bool) -> bool:  # noqa: FBT001 -- the new state
    """Switch a device's packet forwarding; returns what it was before.

    ``name`` can be "all" or "default" as well. KernelError: no such device, or not allowed.
    """
    path = _SYSCTL / family / "conf" / name / "forwarding"
    try:
        before = path.read_text().strip() != "0"
        if before != on:
            path.write_text("1" if on else "0")
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            device_index(name)
        hint = permission_hint(CAP_NET_ADMIN) if isinstance(error, PermissionError) else ""
        what = f"set {family} forwarding of {name}"
        raise KernelError(what, error.errno or 0, hint) from error
    return before


@contextmanager
def connected() -> Iterator[Any]:
    """A netlink socket in this thread's namespace (pyroute2.IPRoute)."""
    from pyroute2 import IPRoute  # noqa: PLC0415 -- see above

    with IPRoute() as netlink:
        yield netlink


def netlink_error() -> type[Any]:
    """pyroute2's exception, whose ``code`` is the error number."""
    from pyroute2 import NetlinkError  # noqa: PLC0415 -- see above

    found: type[Any] = NetlinkError
    return found
