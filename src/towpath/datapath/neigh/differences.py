# SPDX-License-Identifier: Apache-2.0
"""Whether flows between the same hosts may have different ways: then none is kept for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.datapath.neigh.next_hops import Destination, Way
    from towpath.kernel.net.selectors import Selectors


class Differences(NamedTuple):
    """Why the ways of one family's flows may differ."""

    fields: bool = False
    """Rules look at protocols, ports or DSCP."""
    sources: bool = False
    """Rules look at sources."""
    backends: bool = False
    """There are several ways to some destination that is wanted."""
    clients: bool = False
    """There are several ways to somewhere."""


class Differ(NamedTuple):
    """Whose ways differ: ``struct way_masks`` of bpf/abi/lb.h."""

    tunnel: bool
    """Those of packets in tunnels to one backend."""
    backend: bool
    """Of packets that are translated, to one backend."""
    client: bool
    """And of the answers to one client."""

    @classmethod
    def by(cls, why: Differences, version: int, *, vary: bool, ports: bool = False) -> Differ:
        """``vary``: outer sources of tunnels do, by flow; ``ports``: their UDP ports do.

        In IPv6 their flow labels do anyway.
        """
        fields, sources, backends, clients = why
        labelled = backends and (ports or version == 6)  # noqa: PLR2004
        return cls(
            tunnel=fields or labelled or (vary and (sources or backends)),
            backend=fields or sources or backends,
            client=fields or sources or clients,
        )


ByVersion = tuple[Differences, Differences]
"""Of IPv4 and of IPv6."""
NONE: ByVersion = (Differences(), Differences())


def differences(
    selectors: Mapping[int, Selectors],
    ways: Iterable[tuple[Destination, Way]],
    anywhere: Mapping[int, bool],
) -> ByVersion:
    """``anywhere``: whether some route has several next hops; both by IP version."""
    backends = {destination.address.version for destination, way in ways if way.several}
    v4, v6 = (
        Differences(*selectors[version], version in backends, anywhere[version])
        for version in (4, 6)
    )
    return v4, v6
