# SPDX-License-Identifier: Apache-2.0
"""kube-proxy in nftables mode: a table in each family.

A table that is dormant has no hooks: nothing of it is lost, and it wakes as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from towpath.core.kube_proxy.served import Served, service_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NAME = "kube-proxy"
FAMILIES = ("ip", "ip6")
HOLD = "towpath-kube-proxy"
"""Our own table. The kernel translates packets of known connections only while a chain of type nat
and a rule that asks for connections exist, whoever's."""
_MAPS = ("service-ips", "no-endpoint-services")
_NODE_PORT_MAPS = ("service-nodeports", "no-endpoint-nodeports")


@dataclass(frozen=True, slots=True)
class Table:
    """One of kube-proxy's tables."""

    family: str
    dormant: bool
    served: tuple[Served, ...]

    @property
    def name(self) -> str:
        """As nft has it."""
        return f"{self.family} {NAME}"


def read(family: str, listed: Sequence[Mapping[str, Any]], *, dormant: bool) -> Table:
    """A table, by what ``nft -j list table`` lists."""
    mine = {
        kind[key]["name"]: kind[key].get("elem", [])
        for kind in listed
        for key in ("map", "set")
        if key in kind
    }
    return Table(family, dormant, tuple(sorted(set(_served(mine)), key=str)))


def hold() -> str:
    """What makes our own table; made twice it is one."""
    chain = "type nat hook postrouting priority 300; policy accept;"
    return (
        f"add table inet {HOLD}\n"
        f"add chain inet {HOLD} hold {{ {chain} }}\n"
        f"flush chain inet {HOLD} hold\n"
        f"add rule inet {HOLD} hold ct state new counter\n"
    )


def release() -> str:
    """What deletes it."""
    return f"delete table inet {HOLD}\n"


def put_to_sleep(found: Sequence[Table]) -> str:
    """What takes tables' hooks away, all or none."""
    return "".join(f"add table {each.name} {{ flags dormant; }}\n" for each in found)


def wake(found: Sequence[Table]) -> str:
    """What gives them back."""
    return "".join(f"add table {each.name}\n" for each in found)


def delete(found: Sequence[Table]) -> str:
    """What deletes tables, all or none."""
    return "".join(f"delete table {each.name}\n" for each in found)


def _served(mine: Mapping[str, Any]) -> Iterator[Served]:
    for name in _MAPS:
        for key, target in _elements(mine.get(name, ())):
            address, protocol, port = key
            yield Served(ip_address(address), port, protocol, _service(target))
    addresses = [ip_address(each) for each in mine.get("nodeport-ips", ()) if "/" not in str(each)]
    for name in _NODE_PORT_MAPS:
        for key, target in _elements(mine.get(name, ())):
            protocol, port = key
            for address in addresses:
                yield Served(address, port, protocol, _service(target), node_port=True)


def _elements(listed: Sequence[Any]) -> Iterator[tuple[Sequence[Any], str]]:
    """Keys of a verdict map, and where they lead to."""
    for key, verdict in listed:
        bare = key["elem"]["val"] if "elem" in key else key
        chain = next(iter(verdict.values())) if isinstance(verdict, dict) else None
        yield bare["concat"], chain["target"] if isinstance(chain, dict) else ""


def _service(chain: str) -> str:
    """service-HASH-NAMESPACE/NAME/PROTOCOL/PORT, cut off if that is long."""
    parts = chain.split("-", 2)[-1].split("/")
    if len(parts) != 4:  # noqa: PLR2004 - as above
        return chain or "without endpoints"
    namespace, name, _, port = parts
    return service_name(namespace, name, port)
