# SPDX-License-Identifier: Apache-2.0
"""``towpath backend drain|undrain|remove``: letting flows end, or not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import click

from towpath.cli.backend import Address, address_argument, backend, change, service_argument
from towpath.cli.command import EXIT_CODES
from towpath.cli.output import say, socket_option
from towpath.cli.plans import done
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from towpath.api.client import Client

POLL_SECONDS = 1.0
TIMEOUT_SECONDS = 600.0
CODES = {**EXIT_CODES, "1": f"{EXIT_CODES['1']} With --wait also: flows remain."}

F = TypeVar("F", bound="Callable[..., None]")


def wait_options(function: F) -> F:
    """--wait and --timeout."""
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(min=0),
        default=TIMEOUT_SECONDS,
        show_default=True,
        help="With --wait: give up after so many seconds.",
    )
    wait = click.option("--wait", is_flag=True, help="Return when its last flow has ended.")
    return wait(timeout(function))


@backend.command(
    "drain",
    examples={
        "towpath backend drain web 192.0.2.11 --wait": "Before it is upgraded.",
        "towpath backend undrain web 192.0.2.11": "Afterwards.",
    },
    exit_codes=CODES,
)
@service_argument
@address_argument
@wait_options
@socket_option
def drain(
    service: str,
    address: Address,
    wait: bool,
    timeout: float,
    socket_path: Path,
) -> None:
    """Give a backend no new flows. Those it has stay, and so does its weight."""
    change(service, address, socket_path, state=BackendState.DRAINING)
    if wait:
        _wait(service, address, timeout, socket_path)


@backend.command("undrain", examples={"towpath backend undrain web 192.0.2.11": "It is back."})
@service_argument
@address_argument
@socket_option
def undrain(service: str, address: Address, socket_path: Path) -> None:
    """Give a backend new flows again, by its weight."""
    change(service, address, socket_path, state=BackendState.ACTIVE)


@backend.command(
    "remove",
    examples={
        "towpath backend remove web 192.0.2.11": "It goes when its flows have ended.",
        "towpath backend remove web 192.0.2.11 --force": "Its flows go to the others at once.",
    },
    exit_codes=CODES,
)
@service_argument
@address_argument
@click.option("--force", is_flag=True, help="Don't let flows end: they go to the others at once.")
@wait_options
@socket_option
def remove(
    service: str,
    address: Address,
    force: bool,
    wait: bool,
    timeout: float,
    socket_path: Path,
) -> None:
    """Remove a backend. It gets no new flows, and goes when those that it has have ended.

    At the latest that is after drain.timeout of the agent's configuration. One that is
    terminating can be removed once more, by --force.
    """
    from towpath.api.client import Client

    with Client(socket_path) as client:
        done(client.remove_backend(service, address, force=force))
    if wait:
        _wait(service, address, timeout, socket_path)


def _wait(service: str, address: Address, timeout: float, socket_path: Path) -> None:
    """Return when a backend has no flows; say how many there are whenever that changes."""
    from towpath.api.client import Client

    end = time.monotonic() + timeout
    said = None
    with Client(socket_path) as client:
        while (flows := _flows(client, service, address)) > 0:
            if flows != said:
                say(f"{flows} flows remain")
                said = flows
            if time.monotonic() >= end:
                raise click.ClickException(
                    f"{flows} flows of {address} remain after {timeout:g} s; they go on"
                )
            time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
    say("no flows remain")


def _flows(client: Client, service: str, address: Address) -> int:
    """Count the flows of a backend; 0 when it is gone."""
    return sum(each.flows for each in client.backend_status(service) if each.address == address)
