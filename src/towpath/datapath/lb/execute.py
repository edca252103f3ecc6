# SPDX-License-Identifier: Apache-2.0
"""Carries out a plan's steps on the kernel's tables, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from towpath.core.lb.steps import (
    AddBackends,
    BackendStep,
    CreateService,
    DiscardService,
    MoveService,
    PublishService,
    RemoveBackend,
    SetBackend,
    SetOptions,
    SetRoutes,
    SetServerIds,
    SetTable,
    Step,
    WithdrawService,
)

if TYPE_CHECKING:
    from towpath.core.lb.steps import ServiceStep
    from towpath.datapath.lb.tables import Tables


def execute(step: Step, tables: Tables) -> None:
    """Carry out one step."""
    if isinstance(step, BackendStep):
        _of_backends(step, tables)
    else:
        _of_service(step, tables)


def _of_service(step: ServiceStep, tables: Tables) -> None:
    match step:
        case CreateService(service):
            tables.create(service)
        case SetOptions(key, options):
            tables.set_options(key, options)
        case PublishService(key):
            tables.publish(key)
        case MoveService(key, to):
            tables.move(key, to)
        case WithdrawService(key):
            tables.withdraw(key)
        case DiscardService(key):
            tables.discard(key)
        case _:
            assert_never(step)


def _of_backends(step: BackendStep, tables: Tables) -> None:
    match step:
        case AddBackends(key, backends):
            tables.add_backends(key, backends)
        case SetServerIds(key, backends):
            tables.set_server_ids(key, backends)
        case SetBackend(key, backend):
            tables.set_backend(key, backend)
        case SetTable(key, backends):
            tables.set_table(key, backends)
        case SetRoutes(key, routes, backends):
            tables.set_routes(key, routes, backends)
        case RemoveBackend(key, address):
            tables.remove_backend(key, address)
        case _:
            assert_never(step)
