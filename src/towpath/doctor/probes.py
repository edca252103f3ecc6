# SPDX-License-Identifier: Apache-2.0
"""What is asked of the kernel, by the keys that `rules` uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from towpath.doctor import devices, permissions, programs
from towpath.doctor.capability import Answer, either, no, unprobed, yes
from towpath.doctor.outside import declared
from towpath.doctor.ways import ways
from towpath.kernel import cgroup
from towpath.kernel.bpf import bpffs, fragments, probe, probe_net
from towpath.kernel.bpf.map_types import MapType
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.errors import CAP_SYS_ADMIN, KernelError
from towpath.kernel.net import interfaces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# <linux/bpf.h>, what is used nowhere else.
_REDIRECT_NEIGH = 152  # BPF_FUNC_redirect_neigh
_PROBE_READ_KERNEL = 113  # BPF_FUNC_probe_read_kernel
_XDP_LOAD_BYTES = 189  # BPF_FUNC_xdp_load_bytes
_RINGBUF = 27  # BPF_MAP_TYPE_RINGBUF

_KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
_FILE_SYSTEMS = Path("/proc/filesystems")


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to the kernel."""

    run: Callable[..., Answer]
    """Takes what follows the ``:`` of its key, if anything does."""
    needs: Literal["nothing", "bpf", "namespace"] = "bpf"
    """Without which it isn't run: loading programs; and a network namespace to do it in."""


def ask(key: str, probes: Mapping[str, Probe] | None = None) -> Answer:
    """Run the probe of a key such as ``tcx`` or ``native:eth0``. Raises nothing.

    One of ``probes``, if they are others than those that are here.
    """
    name, _, argument = key.partition(":")
    wanted = (probes or PROBES)[name]
    if wanted.needs != "nothing":
        obstacle = permissions.obstacle(namespace=wanted.needs == "namespace")
        if obstacle:
            return unprobed(f"not probed: {obstacle}")
    try:
        return wanted.run(argument) if argument else wanted.run()
    except (KernelError, OSError) as error:
        return unprobed(f"could not be probed: {error}")


def _either(question: Callable[[], bool], if_yes: str, if_no: str) -> Callable[[], Answer]:
    return lambda: either(question(), if_yes, if_no)


def _helper(number: int, name: str, program: ProgramType = ProgramType.XDP) -> Probe:
    return Probe(
        _either(lambda: probe.helper(number, program), name, f"this kernel does not allow {name}")
    )


def _always(found: str) -> Callable[[], Answer]:
    return lambda: yes(found)


# ---- Files ---------------------------------------------------------------------------------------


def _bpffs(pins: str = str(bpffs.ROOT)) -> Answer:
    place = _nearest(Path(pins))
    if bpffs.is_bpffs(place):
        return yes(f"{pins} is on a BPF file system")
    return no(f"{place} is not on a BPF file system")


def _nearest(path: Path) -> Path:
    """The path, or of its parents the first that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def _mountable(pins: str = str(bpffs.ROOT)) -> Answer:
    """Whether the agent would mount one: at the usual place, and nowhere else."""
    if not Path(pins).is_relative_to(bpffs.ROOT):
        return no(f"only {bpffs.ROOT} is mounted when it is needed")
    if not permissions.held(CAP_SYS_ADMIN):
        return no("mounting one needs CAP_SYS_ADMIN")
    if "\tbpf\n" not in _FILE_SYSTEMS.read_text():
        return no("this kernel has none")
    return yes(f"mounted at {bpffs.ROOT} when it is needed")


def _btf() -> Answer:
    return either(os.access(_KERNEL_BTF, os.R_OK), str(_KERNEL_BTF), f"no {_KERNEL_BTF} to read")


def _cgroups() -> Answer:
    """Where programs for cgroups could be attached."""
    try:
        return yes(f"mounted at {cgroup.mount_point()}")
    except KernelError as error:
        return no(error.hint)


# ---- Waiting -------------------------------------------------------------------------------------


def _membarrier() -> Answer:
    """As `rcu.wait_for_readers` decides."""
    if os.sysconf("SC_NPROCESSORS_ONLN") == 1:
        return no("membarrier(2) does not wait with one CPU")
    return either(probe.membarrier(), "membarrier(2)", "no membarrier(2) for all CPUs")


# ---- The FIB -------------------------------------------------------------------------------------


def _fib(field: str, if_yes: str, if_no: str) -> Probe:
    return Probe(_either(lambda: getattr(fib_lookup(), field), if_yes, if_no), "namespace")


# ---- Devices -------------------------------------------------------------------------------------


def _device(question: Callable[[str, int], Answer]) -> Probe:
    """A probe of a device, which must exist."""

    def run(name: str) -> Answer:
        try:
            index = interfaces.device_index(name)
        except KernelError as error:
            return no(str(error))
        return question(name, index)

    return Probe(run, "nothing")


def _outside(name: str) -> Answer:
    """A program or a file that outside.txt declares."""
    need = next(each for each in declared() if each.name == name)
    if found := need.found():
        return yes(found)
    return no(f"not there; the package {need.packages[0]} has it")


# ---- All -----------------------------------------------------------------------------------------

PROBES = {
    "libbpf": Probe(permissions.library, "nothing"),
    "permissions": Probe(permissions.everything, "nothing"),
    "permissions without CAP_SYS_ADMIN": Probe(permissions.may_load, "nothing"),
    "bpffs": Probe(_bpffs, "nothing"),
    "bpffs can be mounted": Probe(_mountable, "nothing"),
    "jit": Probe(_either(probe.jit, "programs are compiled", "net.core.bpf_jit_enable is 0")),
    "interpreter": Probe(_always("programs are interpreted")),
    "map_mmap": Probe(_either(probe.map_mmap, "BPF_F_MMAPABLE", "no BPF_F_MMAPABLE")),
    "batch": Probe(_either(probe.batch, "thousands of elements a call", "no batches")),
    "single": Probe(_always("one element a call")),
    "membarrier": Probe(_membarrier, "nothing"),
    "map_in_map": Probe(
        _either(lambda: probe.map_type(MapType.ARRAY_OF_MAPS), "a map of maps", "no maps of maps")
    ),
    "xdp_link": Probe(_either(probe.xdp_link, "bpf_link", "no bpf_link for XDP"), "namespace"),
    "balancer_program": Probe(programs.balancer),
    "source_nat_program": Probe(programs.source_nat),
    "decap_program": Probe(programs.decap),
    "recorder_program": Probe(programs.recorder),
    "recorder_program_of_source_nat": Probe(programs.recorder_of_source_nat),
    "xdp_load_bytes": _helper(_XDP_LOAD_BYTES, "bpf_xdp_load_bytes"),
    "probe_read_kernel": _helper(_PROBE_READ_KERNEL, "bpf_probe_read_kernel"),
    "libpcap": Probe(programs.expressions, "nothing"),
    "rules_by_mark": Probe(
        _either(probe_net.rules_by_mark, "rules by mark", "no rules by mark"), "namespace"
    ),
    "tcx": Probe(_either(probe.tcx, "TCX links", "no TCX links")),
    "clsact": Probe(
        _either(probe_net.clsact, "clsact and cls_bpf", "no clsact or cls_bpf"), "namespace"
    ),
    "redirect_neigh": Probe(
        _either(
            lambda: probe.helper(_REDIRECT_NEIGH, ProgramType.SCHED_CLS),
            "at tc ingress",
            "this kernel does not have it",
        )
    ),
    "fib": _fib("works", "it finds a neighbour", "it finds nothing"),
    "fib_ipv6": _fib("ipv6", "it knows IPv6", "IPv6 is switched off"),
    "fib_mtu": _fib("mtu", "it is told", "it is not told"),
    "fib_egress": _fib("egress", "it is told", "it is not told"),
    "fib_source": _fib("source", "BPF_FIB_LOOKUP_SRC", "no BPF_FIB_LOOKUP_SRC"),
    "first_address": Probe(_always("the first address of the devices"), "nothing"),
    "native": _device(devices.native),
    "generic": _device(devices.generic),
    "dispatcher": _device(devices.dispatcher),
    "programs": _device(devices.programs),
    "redirect_target": _device(devices.redirect_target),
    "by_the_kernel": _device(devices.by_the_kernel),
    "vlan_tags": _device(devices.vlan_tags),
    "fragments": Probe(_either(probe.fragments, "BPF_F_XDP_HAS_FRAGS", "no frames in fragments")),
    "pull_data": Probe(_either(fragments.pulls, "bpf_xdp_pull_data", "no bpf_xdp_pull_data")),
    "refusals": Probe(programs.refusals),
    "forwarding4": _device(lambda name, _: devices.forwarding(name, "ipv4")),
    "forwarding6": _device(lambda name, _: devices.forwarding(name, "ipv6")),
    "ring_buffer": Probe(
        _either(lambda: probe.map_type(_RINGBUF), "BPF_MAP_TYPE_RINGBUF", "no ring buffer")
    ),
    "outside": Probe(_outside, "nothing"),
    "ways": Probe(ways, "nothing"),
    "kernel_btf": Probe(_btf, "nothing"),
    "managed_neighbours": Probe(
        _either(probe_net.managed_neighbours, "NTF_EXT_MANAGED", "NTF_EXT_MANAGED is ignored"),
        "namespace",
    ),
    "connect": Probe(
        _either(
            lambda: probe.program_type(ProgramType.CGROUP_SOCK_ADDR),
            "BPF_PROG_TYPE_CGROUP_SOCK_ADDR",
            "no programs of cgroups at connect()",
        )
    ),
    "cgroups": Probe(_cgroups, "nothing"),
}
