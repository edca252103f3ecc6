# SPDX-License-Identifier: Apache-2.0
"""Which address of this node an unspecified one stands for, where clients are translated to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from towpath.datapath.errors import DatapathError
from towpath.kernel.net.interfaces import Given, device_index, given_addresses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.model.kinds import Address
    from towpath.model.snat import Snat


def resolved(snat: Snat, devices: Sequence[str]) -> Snat:
    """Return it with addresses of this node's in the place of 0.0.0.0 and ``::``.

    KernelError: no such device. DatapathError: none of them has an address of that family.
    """
    if not any(each.is_unspecified for version in (4, 6) for each in snat.addresses(version)):
        return snat
    there = [given_addresses(device_index(name)) for name in devices]
    changed: dict[str, Any] = {
        f"ipv{version}": tuple(
            _own(there, version, devices) if each.is_unspecified else each
            for each in snat.addresses(version)
        )
        for version in (4, 6)
    }
    return replace(snat, **changed)


def _own(there: Sequence[Sequence[Given]], version: int, devices: Sequence[str]) -> Address:
    found = [own for given in there if (own := oldest(given, version)) is not None]
    if not found:
        names = ", ".join(devices) or "no device"
        raise DatapathError(
            f"snat.ipv{version} is for an address of this node's,"
            f" and {names} has none of IPv{version}"
        )
    return found[0]


def oldest(given: Sequence[Given], version: int) -> Address | None:
    """Return the address that a device was given first, of those that stay.

    The kernel lists IPv4 in the order in which addresses were given, IPv6 the other way round.
    """
    stay = [each.address for each in given if each.stays and each.address.version == version]
    return (stay[0] if version == 4 else stay[-1]) if stay else None  # noqa: PLR2004
