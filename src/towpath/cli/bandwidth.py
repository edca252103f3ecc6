# SPDX-License-Identifier: Apache-2.0
"""``towpath bandwidth``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import click

from towpath.cli.command import ManualGroup
from towpath.cli.output import Format, emit, output_option, print_table, say, socket_option

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.documents import Bandwidth, BandwidthAggregate
    from towpath.model.kinds import Kind

EXAMPLES = {
    "towpath bandwidth set web --egress 50M --ingress 100M": "Limit a pod of the configuration.",
    "towpath bandwidth list": "All limits, and what pods have of them.",
    "towpath bandwidth watch": "The same, again each second.",
    "towpath bandwidth bbr on": "Have BBR in pods.",
}
_COLUMNS = ("name", "kind", "group", "egress", "ingress", "sent", "received", "dropped", "delay")
_NUMBERS = ("sent", "received", "dropped", "delay")


class QuantityType(click.ParamType[int]):
    """A number with a unit, as the model has it."""

    name = "quantity"

    def __init__(self, field: str) -> None:
        self._field = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        from towpath.model import bandwidth as model
        from towpath.model.kinds import FieldError

        kind: Kind = {"rate": model.RATE, "burst": model.BURST}[self._field]
        try:
            return kind.parse(int(value) if str(value).isdigit() else value)
        except FieldError as error:
            self.fail(str(error), param, ctx)


@click.group("bandwidth", cls=ManualGroup, examples=EXAMPLES)
def command() -> None:
    """Limits of what pods send and receive."""


@command.command("set", examples={k: v for k, v in EXAMPLES.items() if " set " in k})
@click.argument("target", metavar="NAME|DEVICE|ADDRESS")
@click.option("--egress", type=QuantityType("rate"), help="Bits a second that leave the node.")
@click.option("--ingress", type=QuantityType("rate"), help="Bits a second that it receives.")
@click.option("--burst", type=QuantityType("burst"), help="Bytes at once after a pause.")
@click.option("--packets", type=click.IntRange(10), help="Packets a second, each way.")
@click.option("--priority", type=click.IntRange(0, 7), help="Of its packets (skb->priority).")
@socket_option
@output_option
def set_(target: str, socket_path: Path, form: Format, **given: int | None) -> None:
    """Give a pod or group of the configuration, a device or an address another limit.

    Rates are written as Kubernetes writes them: 10M, 1G, 512Ki. What isn't given stays as it is.
    It is in force at once, and outlives the agent.
    """
    from towpath.api.client import Client

    if all(each is None for each in given.values()):
        raise click.UsageError("no limit is given: --egress, --ingress or another")
    with Client(socket_path) as client:
        found = client.set_bandwidth(target, **given)
    _emit(found, form, target)


@command.command("delete", examples={"towpath bandwidth delete web": "As it is configured."})
@click.argument("target", metavar="NAME|DEVICE|ADDRESS")
@socket_option
@output_option
def delete(target: str, socket_path: Path, form: Format) -> None:
    """Take back what was set: a pod has what is configured, what isn't configured has no limit."""
    from towpath.api.client import Client

    with Client(socket_path) as client:
        found = client.delete_bandwidth(target)
    _emit(found, form, target)


@command.command("list", examples={"towpath bandwidth list": EXAMPLES["towpath bandwidth list"]})
@socket_option
@output_option
def list_(socket_path: Path, form: Format) -> None:
    """List limits, and what pods have sent, received and lost since these were made.

    delay: how long what a pod has sent takes to leave now, and the longest that a packet had.
    """
    from towpath.api.client import Client

    with Client(socket_path) as client:
        found = client.bandwidth()
    _emit(found, form)


@command.command("watch", examples={"towpath bandwidth watch": EXAMPLES["towpath bandwidth watch"]})
@click.option("--seconds", type=click.FloatRange(0.1), default=1.0, help="Between two looks.")
@click.option("--count", type=click.IntRange(1), help="Looks; without, until it is stopped.")
@socket_option
def watch(seconds: float, count: int | None, socket_path: Path) -> None:
    """Show what pods send and receive now, in bits a second."""
    from towpath.api.client import Client

    with Client(socket_path) as client:
        before, at = client.bandwidth(), time.monotonic()
        looks = 0
        while count is None or looks < count:
            time.sleep(seconds)
            found, now = client.bandwidth(), time.monotonic()
            if looks:
                say()
            print_table(_WATCHED, list(_now(before, found, now - at)), numbers=_WATCHED[1:])
            before, at, looks = found, now, looks + 1


_WATCHED = ("name", "sends", "of", "receives", "of ", "dropped", "marked", "delay", "flows")


def _now(before: Bandwidth, found: Bandwidth, seconds: float) -> Any:
    earlier = {each.name: each for each in before.aggregates}
    for each in found.aggregates:
        was = earlier.get(each.name, each)
        yield (
            each.name,
            _rate(8 * (each.egress_bytes - was.egress_bytes) / seconds),
            _written(each.egress),
            _rate(8 * (each.ingress_bytes - was.ingress_bytes) / seconds),
            _written(each.ingress),
            str(_dropped(each) - _dropped(was)),
            str(_marked(each) - _marked(was)),
            f"{each.backlog_ms:.1f} ms",
            str(each.flows),
        )


@command.command("bbr", examples={"towpath bandwidth bbr on": EXAMPLES["towpath bandwidth bbr on"]})
@click.argument("mode", type=click.Choice(["on", "off", "host"]))
@socket_option
@output_option
def bbr(mode: Literal["on", "off", "host"], socket_path: Path, form: Format) -> None:
    """Have BBR (on) or CUBIC (off) in the pods' namespaces, or what the node itself has (host).

    For connections that begin from then on. Refused where nobody would pace it.
    """
    from towpath.api.client import Client

    with Client(socket_path) as client:
        found = client.set_bbr(mode)
    _emit(found, form)


def _emit(found: Bandwidth, form: Format, name: str | None = None) -> None:
    from towpath.api.codec import plain

    emit(plain(found), form, lambda: _print(found, name))


def _print(found: Bandwidth, name: str | None) -> None:
    shown = [each for each in found.aggregates if name is None or each.name == name]
    print_table(_COLUMNS, [_row(each) for each in shown], numbers=_NUMBERS)
    if name is None:
        for device in found.devices:
            how = "paced by fq" if device.paces else f"policed: {device.why}"
            dropped = f", {device.dropped} dropped by fq itself" if device.dropped else ""
            say(f"{device.name}: {how}{dropped}")
        if found.stamps_kept is not None:
            kept = " and ".join(map(str.upper, found.stamps_kept)) or "none"
            say(f"times of departure that survive the way out of pods: {kept}")
        for trouble in found.troubles:
            say(trouble)


def _row(each: BandwidthAggregate) -> tuple[str, ...]:
    return (
        each.name,
        each.kind,
        each.group or "-",
        _written(each.egress),
        _written(each.ingress),
        str(each.egress_bytes),
        str(each.ingress_bytes),
        str(_dropped(each)),
        f"{each.backlog_ms:.1f}/{each.longest_ms:.1f} ms",
    )


def _dropped(each: BandwidthAggregate) -> int:
    return sum(number for name, number in each.verdicts.items() if name.startswith("drop"))


def _marked(each: BandwidthAggregate) -> int:
    return each.verdicts["marked"] + each.verdicts["received_marked"]


def _written(rate: int | None) -> str:
    from towpath.model.kinds.rates import written

    return written(rate) if rate else "-"


def _rate(bits: float) -> str:
    return f"{bits / 1e6:.2f}M"
