# SPDX-License-Identifier: Apache-2.0
"""What balancing at sockets needs of a kernel."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from towpath.datapath.socket.listing import refusal
from towpath.datapath.socket.program import chooses_errors
from towpath.doctor.capability import Answer, either, no, yes
from towpath.doctor.cgroup import PROOF
from towpath.doctor.probes import Probe
from towpath.doctor.rules import Rule, Way
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.cgroup_mounts import mounted
from towpath.kernel.errors import KernelError
from towpath.kernel.net.sockets import Ends, destroy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.model.socket import Section

_SK_STORAGE_GET = 107  # BPF_FUNC_sk_storage_get
_SOCKET = "socket"


def rules(section: Section | None) -> Iterator[Rule]:
    """What a section needs; None: what any needs."""
    nothing = "connect() to a service isn't balanced"
    required = section is not None
    cgroups = Way("cgroups"), Way("cgroups_privately", "nothing: the agent mounts them for itself")
    yield Rule("cgroups of version 2", cgroups, _SOCKET, nothing, required=required)
    yield Rule("programs at connect()", (Way("connect"),), _SOCKET, nothing, required=required)
    yield Rule("storage at sockets", (Way("socket_storage"),), _SOCKET, nothing, required=required)
    eperm = Way("connect", "calls to services without a backend fail with EPERM")
    yield Rule("errors of programs' choice", (Way("socket_errors"), eperm), _SOCKET, nothing)
    stays = "connected sockets of UDP stay with a backend that has gone"
    yield Rule("lists of sockets", (Way("socket_lists"),), _SOCKET, f"{stays}; none are listed")
    yield Rule("ending sockets", (Way("socket_end"),), _SOCKET, stays)
    if section is None:
        return
    where = f":{section.cgroup}" if section.cgroup else ""
    run: tuple[Way, ...] = (Way(f"cgroup_proof{where}"),)
    if section.packets is not None:
        tc = (Way("tcx"), Way("clsact", "a process that is killed leaves its filters behind"))
        loses = "pods' packets to services leave as they are"
        yield Rule("programs at both sides of tc", tc, _SOCKET, loses, required=True)
        alone = "only packets of `packets.devices` are balanced, and no process of the node's"
        run += (Way("packets_at_tc", alone),)
    yield Rule("programs run for processes that connect", run, _SOCKET, nothing)


def _storage() -> Answer:
    hook = AttachType.CGROUP_INET4_CONNECT
    works = probe.helper(_SK_STORAGE_GET, ProgramType.CGROUP_SOCK_ADDR, hook)
    return either(works, "bpf_sk_storage_get", "this kernel does not allow bpf_sk_storage_get")


def _errors() -> Answer:
    return either(chooses_errors(), "bpf_set_retval", "this kernel does not allow bpf_set_retval")


def _lists() -> Answer:
    found = refusal()
    return yes("iterators over bpf_sk_storage_map") if found is None else no(found)


def _end() -> Answer:
    """By a socket that there is not."""
    nowhere = (bytes(16), 1)
    (result,) = destroy([Ends(socket.AF_INET, socket.IPPROTO_UDP, nowhere, nowhere, 0, 1)])
    works = result == errno.ENOENT
    return either(works, "SOCK_DESTROY", f"SOCK_DESTROY: {errno.errorcode.get(result, result)}")


def _privately() -> Answer:
    """Whether they can be had where they are mounted nowhere."""
    try:
        mounted().close()
    except KernelError as error:
        return no(str(error))
    return yes("a private mount")


PROBES = {
    # Whether there can be programs has a line of its own.
    "packets_at_tc": Probe(lambda: yes("packets are translated at tc"), needs="nothing"),
    "cgroups_privately": Probe(_privately),
    "cgroup_proof": PROOF,
    "socket_storage": Probe(_storage),
    "socket_errors": Probe(_errors),
    "socket_lists": Probe(_lists),
    "socket_end": Probe(_end),
}
