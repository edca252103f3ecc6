# SPDX-License-Identifier: Apache-2.0
"""Of what is declared in outside.txt, what commands need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.doctor.outside import Need, declared

if TYPE_CHECKING:
    from collections.abc import Collection

ALWAYS = ("build", "run")
"""What every command needs."""


def needs(commands: Collection[str], without: Collection[str] = ()) -> list[Need]:
    """Return what these commands need; ``without``: but for these, or what these packages have."""
    users = {*ALWAYS, *commands}
    return [
        each
        for each in declared()
        if users & set(each.users) and not {*each.ways, *each.packages} & set(without)
    ]
