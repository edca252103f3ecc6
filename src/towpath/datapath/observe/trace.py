# SPDX-License-Identifier: Apache-2.0
"""Ask the loaded program what it would do with a flow's next packet, or with one about it.

The frame carries a secret in place of its MAC addresses, by which the program
knows that it must change nothing and write down what it decides.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import family, unpack
from towpath.datapath.errors import DatapathError
from towpath.datapath.observe.counters import verdict_names
from towpath.datapath.observe.testpackets import sample
from towpath.documents import ServiceName, Trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.core.lb.options import Options
    from towpath.datapath.lb.services import Installed
    from towpath.datapath.program.program import LoadedProgram
    from towpath.model.flow import FlowTuple
    from towpath.model.service import Service, ServiceKey, SourceRoute

_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_ENCAPSULATIONS = {(4, 4): "ipip", (6, 6): "ip6ip6", (4, 6): "4in6"}
_VLAN_VID = 0xFFF
_NOT_ASKED = -1
_QUIC = "QUIC_"
_NOTHING = "QUIC_NOTHING"
_LINK = 14
# A page less what the kernel needs of it: a test run has the rest in fragments.
_LINEAR = 3500
_REFUSED = "drop_source"
_HANDOFF, _LOCAL = "handoff", "local"
_SUCCESS = 0
# enum in linux/bpf.h, BPF_FIB_LKUP_RET_*
_FIB_RESULTS = (
    "success",
    "blackhole",
    "unreachable",
    "prohibit",
    "not forwarded",
    "forwarding disabled",
    "unsupported encapsulation",
    "no neighbour",
    "fragmentation needed",
    "no source address",
)
_OWN_RESULTS = {"FIB_NOT_ON_LINK": "behind a gateway"}


def run(
    program: LoadedProgram,
    flow: FlowTuple,
    device: tuple[int, str],
    services: Mapping[int, Installed],
    named: Mapping[ServiceKey, Service],
) -> Trace:
    """Trace one packet that comes in on ``device``, an interface index and name.

    ``services``: what is in the kernel, by index; ``named``: the same with names. One trace
    at a time: there is one record to write to. DatapathError: the packet is larger than this kernel
    can have.
    """
    table = program.maps["traces"]
    record = np.zeros((), program.btf.dtype("trace"))
    record["fib_result"] = _NOT_ASKED
    record["quic"] = program.btf.enum("quic_outcome")[_NOTHING]
    table.update(0, record)
    frame = (
        program.cookie.to_bytes(8, "little")
        + device[0].to_bytes(4, "little")
        + _ETHERTYPES[flow.source.version].to_bytes(2, "big")
        + sample(flow)
    )
    if len(frame) > _LINEAR and not program.fragments:
        raise DatapathError(
            f"size: no more than {_LINEAR - _LINK} bytes can be traced by this kernel"
        )
    program.object.programs["towpath_lb"].test_run(frame)
    return _decode(program, flow, device[1], services, named, table.lookup(0))


def _decode(
    program: LoadedProgram,
    flow: FlowTuple,
    device: str,
    services: Mapping[int, Installed],
    named: Mapping[ServiceKey, Service],
    record: Any,
) -> Trace:
    verdict = verdict_names(program)[int(record["verdict"])]
    found = Trace(str(flow), device, verdict)
    flags = {name: int(flag) for name, flag in program.btf.enum("trace_flags").__members__.items()}
    is_set = {name: bool(int(record["flags"]) & flag) for name, flag in flags.items()}
    service = services.get(int(record["service"]))
    if not is_set["TRACE_VIP"] or service is None:
        return found
    name = ServiceName.of(named[service.key])
    by_maglev, known = is_set["TRACE_MAGLEV"], is_set["TRACE_FLOW_HIT"]
    if verdict == _REFUSED:
        return replace(found, service=name)
    asked_for_client = service.options.affinity is not None and not known
    found = replace(
        found,
        service=name,
        hash=int(record["hash"]),
        flow_hit=known,
        client_hit=is_set["TRACE_AFFINITY"] if asked_for_client else None,
        quic=_quic(program, int(record["quic"])) if service.options.quic else None,
        route=_route(service, int(record["route"])) if is_set["TRACE_ROUTE"] else None,
        slot=int(record["slot"]) if by_maglev else None,
        table_size=int(record["table_size"]) if by_maglev else None,
    )
    handle = int(record["handle"])
    backend = next((a for a, its_handle in service.noted.items() if its_handle == handle), None)
    if backend is None:
        return found
    found = replace(found, backend=backend, forwarding=service.options.forwarding)
    if is_set["TRACE_SNAT"]:
        found = replace(
            found,
            outer_source=unpack(record["outer_saddr"].tobytes(), family(backend)),
            source_port=int(record["source_port"]) or None,
            destination_port=int(record["destination_port"]),
        )
    if verdict == _LOCAL:
        translated = found.forwarding == "snat"
        port = int(record["destination_port"]) if translated else None
        return replace(found, destination_port=port)
    if found.forwarding == "dsr":
        found = replace(
            found,
            encapsulation=_encapsulation(
                service.options, flow.destination.version, backend.version
            ),
            outer_source=unpack(record["outer_saddr"].tobytes(), family(backend)),
        )
    fib = _SUCCESS if is_set["TRACE_FIB_CACHED"] else int(record["fib_result"])
    found = _with_way(found, record, _fib_result(program, fib))
    if verdict == _HANDOFF:
        found = replace(found, handoff=_why_handoff(program, record, resolved=fib == _SUCCESS))
    return found


def _quic(program: LoadedProgram, number: int) -> str | None:
    """What a connection id has said, None if there was none to ask."""
    words = program.btf.enum("quic_outcome").__members__
    name = next(name for name, member in words.items() if int(member) == number)
    return None if name == _NOTHING else name.removeprefix(_QUIC).lower()


def _route(service: Installed, index: int) -> SourceRoute | None:
    found = next((each for each in service.routes if each.index == index), None)
    return None if found is None else found.route


def _encapsulation(options: Options, inside: int, outside: int) -> str:
    """By ``bpf/abi/encap.h``. Of IPIP each pair of families has a name of its own."""
    if options.encap == "ipip":
        return _ENCAPSULATIONS[inside, outside]
    return options.encap if options.encap_port is None else f"{options.encap}:{options.encap_port}"


def _why_handoff(program: LoadedProgram, record: Any, *, resolved: bool) -> str:
    """Why XDP can't send a packet that goes to the kernel."""
    if not resolved:
        return "the next hop is not resolved"
    hop = record["hop"]
    ways, flags = program.btf.enum("way_out"), program.btf.enum("egress_flags")
    index = int(hop["tx_ifindex"])
    name = _device_name(index) or f"device {index}"
    if int(hop["way"]) & int(ways["WAY_LINEAR"]):
        return f"{name} takes no frames in fragments from XDP"
    device = program.maps["egress_devices"].lookup(index)
    if device is None:
        return f"it is not known what {name} takes from XDP"
    if int(device["flags"]) & int(flags["EGRESS_ETHERNET"]):
        return f"{name} takes no frames from XDP"
    return f"{name} takes packets without Ethernet frames"


def _fib_result(program: LoadedProgram, number: int) -> str:
    own = program.btf.enum("fib_own_results")
    words = {int(own[name]): said for name, said in _OWN_RESULTS.items()}
    words |= dict(enumerate(_FIB_RESULTS))
    return words.get(number, f"error {number}")


def _with_way(found: Trace, record: Any, fib_result: str) -> Trace:
    """Add what the record says of the next hop."""
    hop = record["hop"]
    return replace(
        found,
        fib_result=fib_result,
        egress=_device_name(int(hop["tx_ifindex"])),
        vlan=int(hop["tx_vlan"]) & _VLAN_VID or None,
        source_mac=_mac(hop["smac"]),
        next_hop_mac=_mac(hop["dmac"]),
        mtu=int(hop["mtu"]) or None,
    )


def _device_name(ifindex: int) -> str | None:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return None


def _mac(raw: Any) -> str | None:
    return raw.tobytes().hex(":") if raw.any() else None
