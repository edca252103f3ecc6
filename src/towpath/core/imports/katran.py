# SPDX-License-Identifier: Apache-2.0
"""Katran's VIPs as services: of a script of ``katran_goclient``, or of what its ``-l`` prints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from towpath.core.imports.imported import Collected, NoteKind, Remark
from towpath.core.imports.katran_commands import read_script
from towpath.core.imports.katran_listing import read_listing
from towpath.core.imports.lvs import weights_of
from towpath.model.kinds import ANY_PORT
from towpath.model.quic import MAX_SERVER_IDS, Quic
from towpath.model.service import Affinity, Backend, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.core.imports.imported import Imported
    from towpath.core.imports.katran_table import Named, Vip
    from towpath.model.kinds import Address

UDP_TIMEOUT = 30
"""Seconds after which Katran forgets a flow of UDP."""

_LISTING = re.compile(r"^(VIP:|Vip's flags:|\s*->|real:|\d{4}/\d\d/\d\d .* vips len)", re.MULTILINE)


def import_katran(text: str, file: str) -> Imported:
    """Return what becomes of a script or a listing. ConfigError, with all that is wrong."""
    into = Collected()
    read = read_listing if _LISTING.search(text) else read_script
    found = read(text, file, into)
    for vip in found.vips.values():
        _carry(vip, found.ids, into)
    return into.result()


def _carry(vip: Vip, ids: Mapping[int, Named], into: Collected) -> None:
    remarks: list[Remark] = []
    service = _service(vip, ids, remarks)
    if into.add(service, vip.place, remarks):
        why = (
            "varies with the flow (172.16.0.0/16 and 100::/64 unless compiled otherwise); here "
            "it is the node's, unless source: {ipv4: PREFIX, ipv6: PREFIX} says otherwise"
        )
        into.once(NoteKind.DIFFERS, "outer source address", why, vip.place)


def _service(vip: Vip, ids: Mapping[int, Named], remarks: list[Remark]) -> Service:
    udp = vip.protocol == Protocol.UDP
    by_port = "DPORT_HASH" in vip.flags
    reals = list(vip.reals.values())
    weights = weights_of([each.weight for each in reals], remarks=remarks, place=vip.place)
    _remark(vip, remarks)
    quic = Quic("katran") if udp and "QUIC_VIP" in vip.flags else None
    named = _ids(vip, ids, remarks) if quic else {}
    return Service(
        name=f"{vip.protocol}-{vip.address}-{vip.port or 'any'}",
        vip=vip.address,
        port=vip.port or ANY_PORT,
        protocol=Protocol(vip.protocol),
        backends=tuple(
            Backend(
                each.address,
                weight=weight,
                local="LOCAL_VIP" in vip.flags and "LOCAL_REAL" in each.flags,
                server_id=tuple(named.get(each.address, ())),
            )
            for each, weight in zip(reals, weights, strict=True)
        ),
        flow_table="NO_LRU" not in vip.flags,
        flow_timeout=UDP_TIMEOUT if udp else None,
        affinity=Affinity() if "NO_SPORT" in vip.flags and not by_port else None,
        hash_by="port" if by_port else "flow",
        quic=quic,
    )


def _ids(vip: Vip, ids: Mapping[int, Named], remarks: list[Remark]) -> dict[Address, list[int]]:
    """Return the ids of a VIP's reals; there they name whomever they say, of the VIP or not."""
    found: dict[Address, list[int]] = {}
    for server_id, (address, place) in ids.items():
        why = ""
        if address not in vip.reals:
            why = "is no real of the VIP: ids name a service's own backends, also of weight 0"
        elif len(found.setdefault(address, [])) >= MAX_SERVER_IDS:
            why = f"has {MAX_SERVER_IDS} ids already; allowed: so many to a backend"
        else:
            found[address].append(server_id)
        if why:
            remarks.append(Remark(f"connection id {server_id}", f"{address} {why}", place))
    if not found:
        why = "no real has an id (-quic_mapping), by which connection ids would name it: server_id"
        remarks.append(Remark("QUIC_VIP", why, vip.flags["QUIC_VIP"]))
    return found


def _remark(vip: Vip, remarks: list[Remark]) -> None:
    whys = {
        "NO_SPORT": "hashes a client's address and the port that it connects to; here affinity "
        "hashes its address alone, and remembers its backend when backends come and go",
        "QUIC_VIP": "has no effect without UDP",
        "LOCAL_VIP": "has no effect without a real of LOCAL_REAL",
    }
    local = any("LOCAL_REAL" in each.flags for each in vip.reals.values())
    without = {"LOCAL_VIP"} if local else set()
    if "DPORT_HASH" in vip.flags:
        without.add("NO_SPORT")
    if vip.protocol == Protocol.UDP:
        without.add("QUIC_VIP")
    for flag, why in whys.items():
        if flag in vip.flags.keys() - without:
            remarks.append(Remark(flag, why, vip.flags[flag]))
    for each in vip.reals.values() if "LOCAL_VIP" not in vip.flags else ():
        for flag, place in each.flags.items():
            why = "has no effect without LOCAL_VIP"
            remarks.append(Remark(f"{flag} of {each.address}", why, place))
    if not vip.port and not vip.flags.keys() & {"NO_SPORT", "DPORT_HASH"}:
        why = (
            "what a client sends from one port goes to one real, whatever port it is for; here "
            "each port of the VIP is a flow of its own (affinity keeps a client's together)"
        )
        remarks.append(Remark("port 0", why, vip.place))
