# SPDX-License-Identifier: Apache-2.0
"""A node of Kubernetes: what kube-proxy has left, its runtime, the cgroups of its pods."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from towpath.doctor.capability import Answer, either, no, unprobed, yes
from towpath.doctor.probes import Probe
from towpath.doctor.rules import Rule, Way
from towpath.kernel import processes
from towpath.kernel.cgroup import mounts
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.model.sources.kubernetes import Section

_KUBERNETES = "Kubernetes"
_SECONDS = 10.0
_KUBEPODS = re.compile(r"(?P<root>(?:/[^/]+)*?/[^/]*kubepods[^/]*)(?:/|$)")
_VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)\b")
_CONTAINERD = 2
"""Kubelets after 1.37 take no containerd before that."""


def rules(section: Section | None) -> Iterator[Rule]:
    """What a section needs; None, there is none: nothing, for this needn't be a node."""
    if section is None:
        return
    yield Rule(
        "nothing of kube-proxy's without kube-proxy",
        (Way("kube_proxy"),),
        _KUBERNETES,
        "rules that nobody keeps send what Towpath doesn't serve to pods that are gone;"
        " `towpath cleanup kube-proxy` takes them out",
    )
    yield Rule(
        "a container runtime that the next kubelet takes",
        (Way("container_runtime"),),
        _KUBERNETES,
        "a newer kubelet doesn't start with this one, and the node has no pods then",
    )
    yield Rule(
        "pods in cgroups of their own",
        (Way("kubepods"),),
        "Kubernetes: socket.cgroup for pods alone",
        "pods can't be told from the node by cgroup: the node's root is all that has them",
    )


# ---- kube-proxy ----------------------------------------------------------------------------------


def _kube_proxy() -> Answer:
    from towpath.cleanup.found import find, kube_proxies, sees_node  # noqa: PLC0415 - if asked

    running = kube_proxies()
    if running:
        return yes(f"kube-proxy runs beside (process {running[0]})")
    try:
        found = find()
    except KernelError as error:
        return unprobed(str(error))
    if found and not sees_node():
        return unprobed("rules of kube-proxy's are there; a pod doesn't see whether it runs")
    names = [f"table {each.name}{' (asleep)' * each.dormant}" for each in found.tables]
    for program, of in found.rules.items():
        chains = sum(map(len, of.chains.values()))
        names.append(f"{program}: {chains} chains, {len(of.jumps)} rules that lead there")
    names += found.ipvs
    if found.hold:
        names.append("table inet towpath-kube-proxy, until connections of before are over")
    return no("; ".join(names)) if found or found.ipvs else yes("; ".join(names))


# ---- The runtime ---------------------------------------------------------------------------------


def _container_runtime() -> Answer:
    process = next(processes.named("containerd"), None)
    if process is None:
        return unprobed("no process is containerd, as far as this one sees")
    said = ""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [str(process / "exe"), "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        said = done.stdout
    return judge_containerd(said)


def judge_containerd(said: str) -> Answer:
    """By what ``containerd --version`` says."""
    version = _VERSION.search(said)
    if version is None:
        return unprobed("containerd doesn't tell its version")
    found = f"containerd {version[0].removeprefix('v')}"
    return either(int(version[1]) >= _CONTAINERD, found, f"{found}: a kubelet of 1.38 wants 2.0")


# ---- Cgroups -------------------------------------------------------------------------------------


class Kubepods(NamedTuple):
    """Where processes of pods are."""

    v2: frozenset[str]
    """The roots of pods, as this process's cgroup namespace has them."""
    v1: frozenset[str]
    """The same in hierarchies of version 1."""
    apart: frozenset[str]
    """Where processes are in version 2 that version 1 has in a pod's cgroup, if not there."""


def kubepods(processes: Iterable[str]) -> Kubepods:
    """By what processes' /proc/PID/cgroup say."""
    v2, v1, apart = set(), set(), set()
    for text in processes:
        lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") > 1]
        own = {root for *_, path in lines[:] if (root := _root_of(path))}
        mine = next((path for number, _, path in lines if number == "0"), None)
        root = _root_of(mine) if mine is not None else None
        if root is not None:
            v2.add(root)
        v1 |= own - ({root} if root is not None else set())
        if own and mine is not None and root is None:
            apart.add(mine)
    return Kubepods(frozenset(v2), frozenset(v1), frozenset(apart))


def _root_of(path: str) -> str | None:
    found = _KUBEPODS.match(path)
    return found["root"] if found else None


def _cgroups() -> Iterator[str]:
    for process in processes.PROC.iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                yield (process / "cgroup").read_text()


def _pods() -> Answer:
    found = kubepods(_cgroups())
    if found.apart:
        where = ", ".join(sorted(found.apart))
        mounted = ", ".join(point for _, point in mounts()) or "nowhere"
        return no(
            f"pods are in {where} of version 2, which is mounted at {mounted}; the kubelet makes"
            " their cgroups there if it is /sys/fs/cgroup or /sys/fs/cgroup/unified"
        )
    if not found.v2:
        return unprobed("no process of a pod is to be seen from here")
    proofs = [_prove(root) for root in sorted(found.v2)]
    failed = [each for each in proofs if not each.works]
    return failed[0] if failed else yes("; ".join(each.found for each in proofs))


def _prove(root: str) -> Answer:
    """Have a process connect below, and see whether a program runs for it."""
    from towpath.datapath.cgroup.root import CgroupRoot  # noqa: PLC0415 - if there are pods

    path = next(
        (
            Path(point, Path(root).relative_to(begin))
            for begin, point in mounts()
            if Path(root).is_relative_to(begin)
        ),
        None,
    )
    if path is None:
        return no(f"{root} of version 2 is mounted nowhere that this process sees")
    try:
        with CgroupRoot(path) as of:
            proof = of.prove()
    except KernelError as error:
        return no(str(error))
    return either(proof.proven, proof.why, proof.why)


PROBES = {
    "kube_proxy": Probe(_kube_proxy, needs="nothing"),
    "container_runtime": Probe(_container_runtime, needs="nothing"),
    "kubepods": Probe(_pods),
}
