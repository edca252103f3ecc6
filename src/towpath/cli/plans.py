# SPDX-License-Identifier: Apache-2.0
"""How a plan is shown: before an apply, and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.cli.output import Format, emit, percent, print_table, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.api.documents import Plan, ServiceChange

COLUMNS = ("", "service", "for", "what changes", "new flows moved")
SIGNS = {"add": "+", "remove": "-", "change": "~"}


def show_plan(plan: Plan, form: Format) -> None:
    """Print a plan."""
    from towpath.api.codec import plain

    def table() -> None:
        if not plan.changes:
            say("No change.")
            return
        print_table(COLUMNS, map(_row, plan.changes), numbers=("new flows moved",))
        say(f"\n{plan.steps} steps; {percent(plan.moved)} of all services' new flows move.")

    emit(plain(plan), form, table)


def done(plan: Plan) -> None:
    """Say in one line what a change did."""
    names = [f"{SIGNS[change.action]}{change.service.name}" for change in plan.changes]
    moved = f"; {percent(plan.moved)} of all services' new flows move" if plan.moved else ""
    say(f"{' '.join(names)}: {plan.steps} steps{moved}" if names else "No change.")


def _row(change: ServiceChange) -> tuple[str, ...]:
    service = change.service
    vip = f"[{service.vip}]" if service.vip.version == 6 else service.vip  # noqa: PLR2004
    moved = "-" if change.action == "add" else percent(change.moved)
    return (
        SIGNS[change.action],
        service.name,
        f"{vip}:{service.port}/{service.protocol}",
        "\n".join(_differences(change)) or change.action,
        moved,
    )


def _differences(change: ServiceChange) -> Iterator[str]:
    if change.fields:
        yield ", ".join(change.fields)
    for sign, addresses in (
        ("+", change.backends_added),
        ("-", change.backends_removed),
        ("~ weight of", change.backends_reweighted),
        ("~ state of", change.backends_restated),
        ("~ port of", change.backends_redirected),
        ("~ place of", change.backends_relocated),
        ("~ server id of", change.backends_reidentified),
    ):
        for address in addresses:
            flows = " when its flows have ended" if address in change.backends_leaving else ""
            yield f"{sign} {address}{flows}"
