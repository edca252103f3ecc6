# SPDX-License-Identifier: Apache-2.0
"""``towpath backend list|add|set``, and what :mod:`towpath.cli.drain` has."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import click

from towpath.cli.command import ManualGroup
from towpath.cli.health import STANDING, standing
from towpath.cli.output import (
    Format,
    count,
    emit,
    output_option,
    percent,
    print_table,
    socket_option,
)
from towpath.cli.plans import done
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.api.client import Client

Address = IPv4Address | IPv6Address

EXAMPLES = {
    "towpath backend list web": "Backends, their shares and their traffic.",
    "towpath backend add web 192.0.2.13 --weight 2": "One more, for twice as many flows.",
    "towpath backend set web 192.0.2.11 --weight 2": "Twice as many new flows.",
    "towpath backend set web 192.0.2.11 --port 8080": "New flows go there (forwarding snat).",
    "towpath backend set quic 192.0.2.11 --server-id 17": "Connection ids with it name it.",
    "towpath backend set quic 192.0.2.11 --server-id 17,41": "With either of them, such as until"
    " the last connection of before has ended.",
    "towpath backend drain web 192.0.2.11 --wait": "No new flows; wait until the last has ended.",
    "towpath backend undrain web 192.0.2.11": "It is back.",
    "towpath backend remove web 192.0.2.11": "It goes when its flows have ended.",
}

weight_option = click.option(
    "--weight",
    type=click.IntRange(0, 65535),
    default=1,
    show_default=True,
    help="Share of new flows relative to the others; 0: none.",
)


port_option = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Its own port, with forwarding snat; 0: the service's. Flows that there are keep theirs.",
)


server_id_option = click.option(
    "--server-id",
    metavar="NUMBER,...|none",
    help="By which connection ids of QUIC name it, of a service with quic; all of them.",
)


def server_id_of(text: str | None) -> tuple[int, ...] | None:
    """What is meant by the option; None: it wasn't given."""
    from towpath.model.kinds import FieldError
    from towpath.model.service import SERVER_ID

    if text is None or text == "none":
        return None if text is None else ()
    try:
        return SERVER_ID.parse(numbers(text))
    except FieldError as error:
        raise click.BadParameter(f"{error}; or none", param_hint="--server-id") from None


def numbers(text: str) -> list[int | str]:
    """Numbers with commas between; what is none stays, for the model to refuse."""
    return [
        int(each) if each.isdecimal() and len(each) <= _DIGITS else each for each in text.split(",")
    ]


_DIGITS = 20
"""Of the largest number that anything takes."""


class AddressType(click.ParamType[Address]):
    """An IPv4 or IPv6 address; anything else is wrong usage."""

    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """Text to address."""
        try:
            return ip_address(str(value))
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 or IPv6 address.", param, ctx)


service_argument = click.argument("service")
address_argument = click.argument("address", type=AddressType())


@click.group(cls=ManualGroup, examples=EXAMPLES)
def backend() -> None:
    """List and change a service's backends."""


@backend.command("list", examples={"towpath backend list web -o json": "For a program."})
@service_argument
@socket_option
@output_option
def list_(service: str, socket_path: Path, form: Format) -> None:
    """List a service's backends, with what each should get and has got.

    Those too that were removed and are terminating, which is shown as leaving: they have no
    share, and go when their flows have ended.

    local: it is on this node, which delivers to it itself.

    unreached is why packets don't get there: no route, one that refuses, a next hop that doesn't
    answer.
    """
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        rows = list(_rows(client, service))
        checks = {str(check.backend): check for check in client.checks(service)}
    data = [row | {"health": plain(checks.get(row["address"]))} for row in rows]

    def table() -> None:
        numbers = ("weight", "share", "flows", "packets", "bytes")
        shown = [
            (
                row["address"],
                "leaving" if row["leaving"] else row["state"],
                row["weight"],
                percent(row["share"]),
                *(count(row[name]) for name in numbers[2:]),
                row["local"],
                *standing(checks.get(row["address"])),
                row["trouble"],
            )
            for row in rows
        ]
        columns = ("backend", "state", *numbers, "local", *STANDING, "unreached")
        print_table(columns, shown, numbers=numbers)

    emit(data, form, table)


def _rows(client: Client, service: str) -> Iterator[dict[str, Any]]:
    """Return each backend as it is wished for and as it is."""
    from towpath.api.codec import plain

    weights = {each.address: each.weight for each in client.backends(service)}
    backends = client.backend_status(service)
    seen = {
        each.address: each
        for counted in client.counters().services
        if counted.service.name == service
        for each in counted.backends
    }
    active = {each.address for each in backends if each.state is BackendState.ACTIVE}
    total = sum(weights.get(address, 0) for address in active) or 1
    for each in backends:
        weight, traffic = weights.get(each.address, 0), seen.get(each.address)
        yield {
            **plain(each),
            "weight": weight,
            "share": weight / total if each.address in active else 0.0,
            "packets": traffic.packets if traffic else 0,
            "bytes": traffic.bytes if traffic else 0,
        }


@backend.command("add", examples={"towpath backend add web 192.0.2.13": "One more."})
@service_argument
@address_argument
@weight_option
@port_option
@server_id_option
@socket_option
def add(
    service: str,
    address: Address,
    weight: int,
    port: int | None,
    server_id: str | None,
    socket_path: Path,
) -> None:
    """Add a backend; refused when the service has it."""
    from towpath.api.client import Client

    with Client(socket_path) as client:
        if address in {each.address for each in client.backends(service)}:
            raise click.ClickException(
                f"service {service!r} has backend {address} already; change it with"
                f" towpath backend set {service} {address} --weight N"
            )
        named = server_id_of(server_id)
        done(client.set_backend(service, address, weight, port=port, server_id=named))


@backend.command(
    "set",
    examples={
        "towpath backend set web 192.0.2.11 --weight 2": "Twice as many.",
        "towpath backend set web 192.0.2.11 --state down": "Its flows go to the others at once.",
    },
)
@service_argument
@address_argument
@click.option(
    "--weight",
    type=click.IntRange(0, 65535),
    help="Share of new flows relative to the others; 0: none.",
)
@click.option(
    "--state",
    type=click.Choice([str(state) for state in BackendState]),
    help="active; draining or quarantined: no new flows; down: no flows.",
)
@port_option
@server_id_option
@socket_option
def set_(
    service: str,
    address: Address,
    weight: int | None,
    state: str | None,
    port: int | None,
    server_id: str | None,
    socket_path: Path,
) -> None:
    """Change a backend's weight, state, port or server id; refused when the service lacks it."""
    given = {"weight": weight, "state": state, "port": port, "server_id": server_id_of(server_id)}
    if all(each is None for each in given.values()):
        raise click.UsageError(
            "Name what to change: --weight, --state, --port, --server-id or several."
        )
    change(service, address, socket_path, **given)


def change(
    service: str,
    address: Address,
    socket_path: Path,
    **fields: Any,
) -> None:
    """Change a backend that is there."""
    from towpath.api.client import Client

    with Client(socket_path) as client:
        known = [each.address for each in client.backends(service)]
        if address not in known:
            raise click.ClickException(
                f"service {service!r} has no backend {address}; it has:"
                f" {', '.join(map(str, known)) or 'none'}; add one with towpath backend add"
            )
        done(client.set_backend(service, address, **fields))
