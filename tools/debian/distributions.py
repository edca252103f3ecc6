# SPDX-License-Identifier: Apache-2.0
"""The releases of Debian that Towpath is tried on. This is the one list."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Distribution:
    """One release of Debian."""

    name: str
    """Its codename."""
    title: str
    """How it is called in tables."""
    blocking: bool = True
    """Whether a failure of the README's commands there fails the run."""


SUPPORTED = (
    Distribution("bookworm", "Debian 12"),
    Distribution("trixie", "Debian 13"),
    # It changes every day: what breaks there is news, not a failure.
    Distribution("sid", "Debian unstable", blocking=False),
)


def named(name: str) -> Distribution:
    """Return a distribution. KeyError: there is none of that name."""
    for each in SUPPORTED:
        if each.name == name:
            return each
    raise KeyError(f"no distribution {name}; there are: {', '.join(d.name for d in SUPPORTED)}")
