# SPDX-License-Identifier: Apache-2.0
"""Towpath's own programs, loaded and closed again: the verifier's word on them."""

from __future__ import annotations

from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, cast

from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.observe.refused import Refusals
from towpath.datapath.program.program import LoadedProgram
from towpath.datapath.recorder.recorder import Recorder
from towpath.doctor.capability import Answer, no, yes
from towpath.kernel.bpf import pcap
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError
from towpath.model.capture import Capture
from towpath.model.settings import Limits
from towpath.model.snat import Snat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.datapath.program.attachment import Attachment
    from towpath.kernel.bpf.programs import Program

# Small tables are made at once, and the verifier walks the same way for all sizes.
_SMALL = Limits(services=128, backends=128, flows=1024, nat_flows=1024, table_slots=4096)
# Without addresses to translate to, the verifier leaves source NAT out.
_SNAT = Snat((IPv4Address("192.0.2.1"),), (IPv6Address("2001:db8::1"),))
_CAPTURE = Capture(("198.51.100.0/24 0 203.0.113.10 80 tcp",))


def balancer() -> Answer:
    """The programs of the load balancer."""
    return _balancer(Snat())


def source_nat() -> Answer:
    """The same with source NAT in them."""
    return _balancer(_SNAT)


@contextmanager
def _loaded(snat: Snat) -> Iterator[LoadedProgram]:
    """The load balancer's program over tables of its own."""
    with (
        closing(SharedMaps(_SMALL)) as tables,
        closing(LoadedProgram(tables, snat=snat, mark=1)) as program,
    ):
        yield program


def _balancer(snat: Snat) -> Answer:
    try:
        with _loaded(snat) as program:
            return yes(_described(program.object.programs.values()))
    except KernelError as error:
        return no(str(error))


def recorder() -> Answer:
    """The program of a capture."""
    return _recorder(Snat())


def recorder_of_source_nat() -> Answer:
    """The same of a load balancer with source NAT: the largest program that there is."""
    return _recorder(_SNAT)


def _recorder(snat: Snat) -> Answer:
    """Over the tables of a load balancer that is attached nowhere."""
    nowhere = cast("Attachment", None)
    try:
        with (
            _loaded(snat) as program,
            closing(Recorder(program, nowhere)) as made,
            made.tried(_CAPTURE) as tried,
        ):
            return yes(_described([tried]))
    except KernelError as error:
        return no(str(error))


def refusals() -> Answer:
    """The programs at tracepoints."""
    with closing(SharedMaps(_SMALL)) as tables, Refusals(tables) as counted:
        return no(counted.missing) if counted.missing else yes("at its tracepoints")


def expressions() -> Answer:
    """The system's libpcap."""
    try:
        return yes(pcap.version())
    except KernelError as error:
        return no(str(error))


def decap() -> Answer:
    """The program that unwraps on a backend."""
    try:
        with BpfObject.packaged("decap") as loaded:
            loaded.load()
            return yes(_described(loaded.programs.values()))
    except KernelError as error:
        return no(str(error))


def _described(programs: Iterable[Program]) -> str:
    return "; ".join(_size(program) for program in programs)


def _size(program: Program) -> str:
    """How many instructions the verifier walked (told since 5.16) and what became of them."""
    walked = program.verified_instructions
    verified = f"{walked} instructions verified, " if walked else ""
    return f"{program.name} {verified}{program.jited_bytes} bytes jited"
