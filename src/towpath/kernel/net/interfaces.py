# SPDX-License-Identifier: Apache-2.0
"""Network devices of the calling thread's network namespace.

pyroute2 takes long to import, so it is imported by the functions that speak netlink.
"""

from __future__ import annotations

import errno as errnos
import socket
from contextlib import contextmanager
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.kernel.errors import KernelError
from towpath.kernel.net.sysctl import FORWARDING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.kernel.net.sysctl import Family

# <linux/if_addr.h>, <linux/rtnetlink.h>
_PASSING = 0x01 | 0x08 | 0x20 | 0x40  # IFA_F_SECONDARY (IPv6: TEMPORARY), DADFAILED, DEPRECATED,
# TENTATIVE
_UNIVERSE = 0  # RT_SCOPE_UNIVERSE


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


class Given(NamedTuple):
    """An address of a device."""

    address: IPv4Address | IPv6Address
    stays: bool
    """Whether it is for packets of any way, and isn't temporary, deprecated or beside another."""


def given_addresses(index: int) -> list[Given]:
    """The same with what is known of them, as the kernel orders them."""
    with connected() as netlink:
        return [
            Given(
                ip_address(message.get("local") or message.get("address")),
                message["scope"] == _UNIVERSE
                and not (message.get("flags") or message["flags"]) & _PASSING,
            )
            for message in netlink.get_addr(index=index)
            if message["index"] == index
        ]


def mac(index: int) -> bytes:
    """The link-layer address of a device: 6 bytes of an Ethernet device. KernelError: none such."""
    return bytes.fromhex((_link(index).get("address") or "").replace(":", ""))


def mtu(index: int) -> int:
    """The MTU of a device in bytes. KernelError: no such device."""
    return int(_link(index).get("mtu"))


def _link(index: int) -> Any:
    with connected() as netlink:
        try:
            return netlink.link("get", index=index)[0]
        except netlink_error() as error:
            if error.code == errnos.ENODEV:
                device_name(index)
            raise KernelError(f"read device {index}", error.code) from error


def set_forwarding(name: str, family: Family, on: bool) -> bool:  # noqa: FBT001 -- the new state
    """Switch a device's packet forwarding; returns what it was before.

    ``name`` can be "all" or "default" as well. KernelError: no such device, or not allowed.
    """
    try:
        before = FORWARDING[family].read(name) != "0"
        if before != on:
            FORWARDING[family].write(name, "1" if on else "0")
    except KernelError as error:
        if error.errno == errnos.ENOENT:
            device_index(name)
        raise
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
