# SPDX-License-Identifier: Apache-2.0
"""Whether a plan fits, found before its first step is taken.

A dry run executes the plan's own steps, by the same code, over parts that count instead of
store: what a step needs is asked for in the very order in which it will be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from towpath.core.lb.steps import BackendStep, SetRoutes
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.dry_run import (
    DryRunBackends,
    DryRunOptions,
    DryRunRows,
    DryRunSlots,
    Tally,
)
from towpath.datapath.lb.execute import execute
from towpath.datapath.lb.extents import NoExtentError
from towpath.datapath.lb.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from towpath.core.lb.steps import Step
    from towpath.datapath.lb.kernel_tables import KernelTables
    from towpath.datapath.lb.services import Installed
    from towpath.model.service import Backend, ServiceKey


def check(tables: KernelTables, steps: Iterable[Step]) -> None:
    """Raise CapacityError if the steps would not all find room.

    Nothing is changed, but that Maglev slots that were retired are reclaimed, after a grace
    period, if there would not be room otherwise.
    """
    steps = tuple(steps)
    if not steps:
        return
    shortage = DryRun(tables, steps).shortage()
    if isinstance(shortage, NoExtentError) and tables.extents.reclaim():
        shortage = DryRun(tables, steps).shortage()
    if shortage is not None:
        raise shortage


class DryRun:
    """One trial of ``steps`` on copies of what ``tables`` know, which stay as they are."""

    def __init__(self, tables: KernelTables, steps: Sequence[Step]) -> None:
        backends, rows, options = tables.backends, tables.rows, tables.options
        ids = tables.server_ids
        # Most changes are of backends, which neither find services nor have options.
        only_backends = all(_is_of_backends(tables, each) for each in steps)
        # Counted where it matters: routes take rows as services do.
        routes = 0 if only_backends else sum(len(e.routes) for e in tables.services.values())
        services = len(tables.services)
        users = {} if only_backends else options.users
        self._steps = steps
        self._tallies = (
            Tally("services", services + routes, rows.limit),
            Tally("backends", backends.in_use, backends.capacity),
            Tally("sources", sum(map(len, users)), options.sources_limit),
            Tally("server ids", ids.in_use, ids.capacity, "server_ids"),
        )
        of_services, of_backends, of_sources, of_ids = self._tallies
        unused: Any = None
        self._tables = _Tables(
            unused if only_backends else tables.endpoints.dry_run(),
            DryRunBackends(of_backends),
            tables.extents.dry_run(),
            DryRunSlots(),
            DryRunRows(of_services),
            unused
            if only_backends
            else DryRunOptions(of_sources, users, options.allowed, options.rows_of),
            ids.dry_run(of_ids),
        )
        self._tables.services = _Copies(tables.services)

    def shortage(self) -> CapacityError | None:
        """Execute the steps: what there is too little of, None if all is well.

        Of what is only counted the need of the whole plan is known, and is told first.
        """
        stopped: CapacityError | None = None
        for step in self._steps:
            try:
                execute(step, self._tables)
            except CapacityError as error:
                # What comes after it is counted all the same.
                stopped = stopped or error
        counted = (tally.shortage() for tally in self._tallies)
        return next((each for each in counted if each is not None), stopped)


class _Tables(Tables):
    """The steps, but that new backends are only counted: a plan does nothing else with them."""

    def add_backends(self, key: ServiceKey, backends: Sequence[Backend]) -> None:
        """Count backends and their ids."""
        index = self.services[key].index
        handles = self._backends.add(index, backends)
        for each, handle in zip(backends, handles, strict=True):
            if each.server_id:
                self._server_ids.enter(index, each.server_id, handle)


class _Copies(dict["ServiceKey", "Installed"]):
    """Services that a dry run may change: each is copied when it is first looked at."""

    def __init__(self, services: Mapping[ServiceKey, Installed]) -> None:
        super().__init__()
        self._services = services

    def __missing__(self, key: ServiceKey) -> Installed:
        self[key] = self._services[key].copy()
        return self[key]

    def pop(self, key: ServiceKey) -> Installed:  # type: ignore[override]
        """Take a service out."""
        found = self[key]
        del self[key]
        return found


def _is_of_backends(tables: KernelTables, step: Step) -> bool:
    """Whether a step finds no service, and changes neither options nor routes."""
    if not isinstance(step, BackendStep) or isinstance(step, SetRoutes):
        return False
    service = tables.services.get(step.key)
    return service is None or not service.routes
