# SPDX-License-Identifier: Apache-2.0
"""Writes docs/kernels.md from what was found in the guests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.kernels import growth

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


_HEAD = """# Kernels

Towpath is written for Linux 5.10 and newer. Features are probed (`towpath doctor`), versions are
never compared. This page is written by `make kernels WRITE=1` from what was found in each kernel,
booted in QEMU; the list of kernels is `tools/kernels/supported.py`.
"""

_TAIL = """
## What a device needs

Native XDP for speed (otherwise `mode: generic`). What XDP can't send, the kernel sends: packets
are handed to it, counted `handoff`, and take longer. That is so on devices that take no frames
from XDP (no `ndo_xdp_xmit`, such as a bridge; a veth whose peer has no NAPI running, that is
neither an XDP program nor GRO) or are no Ethernet, and for frames in fragments on devices that
take none. Which those are is told by the kernel from Linux 6.3 on, and tried before;
`towpath trace` says so of a packet.

Where frames are larger than some 3,400 bytes native mode needs frames in fragments: Linux 5.18,
and a driver that has them. Headers must lie in the first fragment, where most drivers put them;
where they may not (mlx5 with a striding receive queue) Linux 6.18 moves them there, and before
such packets are left to the kernel.

Senders on veth towards XDP must have TX checksum offload and TSO off, and in VLANs
tx-vlan-offload: the lab does so. Of other devices rx-vlan-offload is switched off while they are
attached to ([operations.md](operations.md#settings-of-devices)).

Kernels before 5.12 don't tell the MTU when the FIB is asked: packets larger than the egress MTU
are not recognised there before they are sent, and the device drops them.
"""

_SUITES = {
    "prog": "tests of programs",
    "lab": "lab tests for guests",
    "degrade": "what is lost, and told",
    "compilers": "tests of what the newest clang makes",
    "tags": "tags of sockets beside programs of cgroups",
}

_SHARED = """Beside each other on two CPUs. As in CI they shared the tests of programs among them,
and those of the lab that need what most kernels have: each module ran in one of them, but for
what the host's tests say as well."""
_WHOLE = "Each ran all tests of programs that are not marked for the host alone."

_MARKS = {"available": "yes", "fallback": "fallback", "missing": "**no**", "unknown": "?"}


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def page(reports: Mapping[str, dict[str, Any]]) -> str:
    """Return the page."""
    lines = [_HEAD, "## Which kernels", "", *_kernels(reports), ""]
    lines += ["## What each can do", "", *_capabilities(reports), ""]
    lines += ["## What the verifier says", ""]
    lines += [*_verified(reports), _TAIL]
    return "\n".join(lines)


def loaded(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the programs that were loaded, by the version of the clang that has made them."""
    lists = ("programs", "newest")
    return {report["clang"][each]: report[each] for each in lists if each in report}


def sizes(report: dict[str, Any]) -> dict[str, growth.Sizes]:
    """Return the sizes of these, by compiler."""
    return {
        growth.compiler(version): growth.sizes(programs)
        for version, programs in loaded(report).items()
    }


def counted(suite: dict[str, Any]) -> str:
    """Return how many tests passed and failed, and in how many seconds."""
    counts = ", ".join(f"{number} {word}" for word, number in suite["counts"].items())
    return f"{counts} in {suite['seconds']:.0f} s"


def _kernels(reports: Mapping[str, dict[str, Any]]) -> list[str]:
    def seconds(report: dict[str, Any]) -> str:
        return f"{report['seconds']:.0f} s"

    def ran(report: dict[str, Any], suite: str) -> str:
        found = report["suites"].get(suite)
        return counted(found) if found else "-"

    rows = (
        (name, report["release"], *(ran(report, suite) for suite in _SUITES), seconds(report))
        for name, report in reports.items()
    )
    lines = _table(("kernel", "booted", *_SUITES.values(), "in all"), rows)
    return [*lines, "", _SHARED if any(r.get("shared") for r in reports.values()) else _WHOLE]


def _capabilities(reports: Mapping[str, dict[str, Any]]) -> list[str]:
    found = {
        name: {each["name"]: each for each in report["doctor"]} for name, report in reports.items()
    }
    names = list(dict.fromkeys(each for one in found.values() for each in one))
    rows = []
    for name in names:
        states = [one[name]["state"] if name in one else "unknown" for one in found.values()]
        losses = [one[name]["loses"] for one in found.values() if name in one]
        needed = next(one[name]["needed_by"] for one in found.values() if name in one)
        loses = next((loss for loss in losses if loss), "")
        rows.append((name, *(_MARKS[state] for state in states), needed, loses))
    return _table(("capability", *reports, "needed by", "without it"), rows)


def _verified(reports: Mapping[str, dict[str, Any]]) -> list[str]:
    said = (
        "Instructions processed by the verifier, and bytes of machine code. Programs of which a"
        " kernel gets another form have none there."
    )
    lines = [said]
    versions = dict.fromkeys(version for report in reports.values() for version in loaded(report))
    for version in versions:
        by_kernel = {name: loaded(report).get(version, []) for name, report in reports.items()}
        lines += ["", f"### clang {version}", "", *_programs(by_kernel)]
    return lines


def _programs(loaded: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    by_kernel = {
        name: {each["program"]: each for each in programs if "program" in each}
        for name, programs in loaded.items()
    }
    names = list(dict.fromkeys(each for one in by_kernel.values() for each in one))
    rows = []
    for name in names:
        cells = [
            f"{one[name]['verified']:,} / {one[name]['jited']:,}" if name in one else "-"
            for one in by_kernel.values()
        ]
        rows.append((f"`{name}`", *cells))
    return _table(("program", *loaded), rows)
