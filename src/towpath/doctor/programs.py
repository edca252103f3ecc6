# SPDX-License-Identifier: Apache-2.0
"""Towpath's own programs, loaded and closed again: the verifier's word on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.program import LoadedProgram
from towpath.doctor.capability import Answer, no, yes
from towpath.kernel.errors import KernelError
from towpath.kernel.object import BpfObject
from towpath.model.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.kernel.programs import Program

# Small tables are made at once, and the verifier walks the same way for all sizes.
_SMALL = Limits(services=128, backends=128, flows=1024, table_slots=4096)


def balancer() -> Answer:
    """The programs of the load balancer."""
    try:
        program = LoadedProgram(_SMALL, mark=1)
    except KernelError as error:
        return no(str(error))
    try:
        return yes(_described(program.object.programs.values()))
    finally:
        program.close()


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
