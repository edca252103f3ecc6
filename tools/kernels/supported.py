# SPDX-License-Identifier: Apache-2.0
"""The kernels that Towpath is made for, and what is run in each.

This is the one list: the matrix, docs/kernels.md and its test all read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Suite = Literal["load", "prog", "lab", "degrade", "compilers", "tags"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel, as a Debian package."""

    name: str
    """How it is called in tables: its upstream series."""
    release: str
    """Codename of the Debian release that has it."""
    package: str
    """Package of the image, or one that depends on it."""
    suites: tuple[Suite, ...]
    """What is run: every object loaded, the prog tests, the lab tests for guests or of those the
    cases in which something is lost; what the newest compiler makes of all objects loaded, and
    packets run through it; last, since it may be for good, tags of sockets, which lab has too."""
    version: str | None = None
    """Exactly this version; None: the release's newest."""
    blocking: bool = True
    """Whether a failure fails the matrix."""
    without: tuple[str, ...] = ()
    """Test files that are not run: what they test is documented to need a newer kernel."""


SUPPORTED = (
    # Pinned: the last one before the release's security updates changed how
    # sockets and cgroups are tied.
    Kernel(
        "5.10",
        "bullseye",
        "linux-image-5.10.0-32-cloud-amd64",
        ("load", "prog", "degrade", "compilers", "tags"),
        "5.10.223-1",
    ),
    Kernel("6.1", "bookworm", "linux-image-cloud-amd64", ("load", "prog", "lab", "compilers")),
    Kernel("6.12", "trixie", "linux-image-cloud-amd64", ("load", "prog", "lab", "compilers")),
    # Its packages rotate out of the archive: what breaks there is news, not a failure.
    Kernel(
        "unstable",
        "sid",
        "linux-image-cloud-amd64",
        ("load", "prog", "lab", "compilers"),
        blocking=False,
    ),
)


def named(name: str) -> Kernel:
    """Return a supported kernel. KeyError: there is none of that name."""
    for kernel in SUPPORTED:
        if kernel.name == name:
            return kernel
    raise KeyError(f"no kernel {name}; there are: {', '.join(k.name for k in SUPPORTED)}")
