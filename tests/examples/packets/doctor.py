# SPDX-License-Identifier: Apache-2.0
"""What counting packets needs of a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.doctor.capability import Answer, no, yes
from towpath.doctor.probes import Probe
from towpath.doctor.rules import Rule, Way
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_index

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.examples.packets.model import Section


def rules(section: Section | None) -> Iterator[Rule]:
    """What a section needs; None: what any needs."""
    needed_by, loses = "packets", "nothing is counted"
    tc = (Way("tcx"), Way("clsact", "a process that is killed leaves its filter behind"))
    yield Rule("counting at tc ingress", tc, needed_by, loses, required=True)
    if section is not None:
        device = (Way(f"packets_device:{section.device}"),)
        yield Rule(f"packets on {section.device}", device, needed_by, loses, required=True)


def _device(name: str) -> Answer:
    try:
        device_index(name)
    except KernelError as error:
        return no(str(error))
    return yes("it is there")


PROBES = {"packets_device": Probe(_device, "nothing")}
