# SPDX-License-Identifier: Apache-2.0
"""``towpath backend list|add|set|drain|remove``."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from pathlib import Path

Address = IPv4Address | IPv6Address

EXAMPLES = {
    "towpath backend list web": "Backends, their shares and their traffic.",
    "towpath backend add web 192.0.2.13 --weight 2": "One more, for twice as many flows.",
    "towpath backend set web 192.0.2.11 --weight 2": "Twice as many new flows.",
    "towpath backend drain web 192.0.2.11": "No new flows; those it has stay.",
    "towpath backend remove web 192.0.2.11": "Its flows go to the others at once.",
}

weight_option = click.option(
    "--weight",
    type=click.IntRange(0, 65535),
    default=1,
    show_default=True,
    help="Share of new flows relative to the others; 0: none.",
)


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
    """List a service's backends, with what each should get and has got."""
    from towpath.agent.wire import plain
    from towpath.client import Client

    with Client(socket_path) as client:
        backends = client.backends(service)
        counters = client.counters()
        checks = {check.backend: check for check in client.checks(service)}
    seen = {
        each.address: each
        for counted in counters.services
        if counted.service.name == service
        for each in counted.backends
    }
    total = sum(each.weight for each in backends) or 1
    data = [
        {
            **plain(each),
            "share": each.weight / total,
            "packets": seen[each.address].packets if each.address in seen else 0,
            "bytes": seen[each.address].bytes if each.address in seen else 0,
            "health": plain(checks.get(each.address)),
        }
        for each in backends
    ]

    def table() -> None:
        numbers = ("weight", "share", "packets", "bytes")
        rows = [
            (
                each["address"],
                each["weight"],
                percent(each["share"]),
                count(each["packets"]),
                count(each["bytes"]),
                *standing(checks.get(backend.address)),
            )
            for backend, each in zip(backends, data, strict=True)
        ]
        print_table(("backend", *numbers, *STANDING), rows, numbers=numbers)

    emit(data, form, table)


@backend.command("add", examples={"towpath backend add web 192.0.2.13": "One more."})
@service_argument
@address_argument
@weight_option
@socket_option
def add(service: str, address: Address, weight: int, socket_path: Path) -> None:
    """Add a backend; refused when the service has it."""
    from towpath.client import Client

    with Client(socket_path) as client:
        if address in {each.address for each in client.backends(service)}:
            raise click.ClickException(
                f"service {service!r} has backend {address} already; change it with"
                f" towpath backend set {service} {address} --weight N"
            )
        done(client.set_backend(service, address, weight))


@backend.command(
    "set", examples={"towpath backend set web 192.0.2.11 --weight 2": "Twice as many."}
)
@service_argument
@address_argument
@click.option(
    "--weight",
    type=click.IntRange(0, 65535),
    required=True,
    help="Share of new flows relative to the others; 0: none.",
)
@socket_option
def set_(service: str, address: Address, weight: int, socket_path: Path) -> None:
    """Change a backend's weight; refused when the service does not have it."""
    _set_weight(service, address, weight, socket_path)


def _set_weight(service: str, address: Address, weight: int, socket_path: Path) -> None:
    """Change the weight of a backend that is there."""
    from towpath.client import Client

    with Client(socket_path) as client:
        known = [each.address for each in client.backends(service)]
        if address not in known:
            raise click.ClickException(
                f"service {service!r} has no backend {address}; it has:"
                f" {', '.join(map(str, known)) or 'none'}; add one with towpath backend add"
            )
        done(client.set_backend(service, address, weight))


@backend.command(
    "drain", examples={"towpath backend drain web 192.0.2.11": "Before it is upgraded."}
)
@service_argument
@address_argument
@socket_option
def drain(service: str, address: Address, socket_path: Path) -> None:
    """Give a backend no new flows: weight 0. Those it has stay."""
    _set_weight(service, address, 0, socket_path)


@backend.command("remove", examples={"towpath backend remove web 192.0.2.11": "At once."})
@service_argument
@address_argument
@socket_option
def remove(service: str, address: Address, socket_path: Path) -> None:
    """Remove a backend; its flows go to the others at once."""
    from towpath.client import Client

    with Client(socket_path) as client:
        done(client.remove_backend(service, address))
