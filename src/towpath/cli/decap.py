# SPDX-License-Identifier: Apache-2.0
"""``towpath decap``: unwraps balanced packets on a backend."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from towpath.cli.command import Manual
from towpath.cli.output import Format, count, emit, output_option, print_table, say
from towpath.printable import printable_lines
from towpath.signals import asked_to_end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.decap.decap import Decap
    from towpath.datapath.decap.table import DecapCounters

PINS = Path("/sys/fs/bpf/towpath-decap")
REFRESH = 1.0  # seconds between two looks at the device, and at the counters in a terminal

EXAMPLES = {
    "towpath decap eth0 --address 192.0.2.11": "Unwrap until Ctrl-C; then print the counters.",
    "towpath decap eth0 -a 192.0.2.11 -a 2001:db8::11": "For an address of each family.",
    "towpath decap eth0 -a 192.0.2.11 --udp-port 6080": "For services with encap gue.",
    "towpath decap eth0 -a 192.0.2.11 --attach dispatcher": "Beside a load balancer, or a filter.",
    f"towpath decap eth0 -a 192.0.2.11 --pin {PINS}": "Attach, and leave it attached.",
    "towpath decap --show -o json": "The counters of what is pinned there.",
    "towpath decap --detach": "End what is pinned there.",
    "ip address add 203.0.113.10/32 dev lo": "What else a backend needs: the VIP as its own.",
}


@click.command(
    cls=Manual,
    examples=EXAMPLES,
    files={str(PINS): "Where --show and --detach look without --pin. Gone after a reboot."},
)
@click.argument("device", required=False)
@click.option(
    "-a",
    "--address",
    "addresses",
    metavar="ADDRESS",
    multiple=True,
    help="Unwrap packets sent to this address, which the balancer has as a backend's. Repeatable.",
)
@click.option("--gre", is_flag=True, help="Unwrap what comes in GRE, too.")
@click.option(
    "--udp-port",
    "udp_ports",
    metavar="PORT",
    multiple=True,
    type=click.IntRange(1, 65535),
    help="And what comes in UDP to this port: FOU, GUE. Repeatable, 4 at most. GUE's own is 6080.",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "native", "generic"]),
    default="auto",
    show_default=True,
    help="native: in the driver. generic: in the kernel's stack, slower. auto: native if it can.",
)
@click.option(
    "--attach",
    type=click.Choice(["link", "dispatcher"]),
    default="link",
    show_default=True,
    help="link: the device's XDP hook is its alone. dispatcher: shared, by libxdp's protocol.",
)
@click.option(
    "--priority",
    metavar="NUMBER",
    type=click.IntRange(0, (1 << 31) - 1),
    help="In a dispatcher: programs of lower ones see packets first. Default: 50, as of any.",
)
@click.option(
    "--pin",
    "pins",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path),
    help="Attach, pin in this new directory of a BPF file system, and return.",
)
@click.option("--show", "action", flag_value="show", help="Print the counters of what is pinned.")
@click.option("--detach", "action", flag_value="detach", help="End what is pinned.")
@output_option
def decap(
    device: str | None,
    addresses: tuple[str, ...],
    gre: bool,
    udp_ports: tuple[int, ...],
    mode: Literal["auto", "native", "generic"],
    attach: Literal["link", "dispatcher"],
    priority: int | None,
    pins: Path | None,
    action: str | None,
    form: Format,
) -> None:
    """Unwrap the balancer's packets that come in on DEVICE.

    A balancer that leaves the answer to the backend (direct server return) sends
    each client's packet inside another one. This takes the outer header off before
    the kernel sees the packet, so that no tunnel device is needed: IPv4 and IPv6 in
    IPv4 (IPIP, 6in4), IPv6 and IPv4 in IPv6 (IP6IP6, 4in6). With --gre and --udp-port
    also what is in GRE (without options), FOU or GUE, of either variant, optional fields
    and private data skipped; what is in it has checksums of its own, and UDP's isn't
    looked at. The ECN field is merged
    as RFC 6040 says; an 802.1Q tag stays. All other packets, fragments of tunnel
    packets, and those behind an 802.1ad tag or two tags, are left as they are.

    Every VIP has to be an address of the backend itself, such as one on lo, and rp_filter
    must not be 1 if answers take another way than DEVICE.

    Without --pin it runs until SIGINT, SIGTERM or SIGHUP, then detaches and prints the
    counters; a DEVICE that goes is attached to again when it is back. With --pin nobody is
    there to do that. One command serves one device.

    With --attach dispatcher other programs are called beside it, in the order of their
    priorities. Those that come later see packets without their outer header, which a
    load balancer must not: it would balance them again. Of one priority it comes first.
    """
    if action is not None:
        if device is not None or addresses or gre or udp_ports or priority is not None:
            raise click.UsageError(f"--{action} takes --pin only: device and addresses are known")
        with _undisturbed():
            _pinned(pins or PINS, action, form)
        return
    if device is None or not addresses:
        raise click.UsageError("a DEVICE and at least one --address are needed")
    if priority is not None and attach != "dispatcher":
        raise click.UsageError("--priority is for --attach dispatcher only")
    with _undisturbed():
        from towpath.datapath.decap.decap import Decap

        with Decap(
            device,
            addresses,
            mode,
            gre=gre,
            udp_ports=udp_ports,
            pins=pins,
            attach=attach,
            priority=priority,
        ) as running:
            if pins is None:
                _wait(running)
                counters = running.counters()
            else:
                say(f"{_what(running)}, pinned in {pins}", error=True)
                if form != "table":
                    _print(running.counters(), form)
    if pins is None:
        _print(counters, form)


def _pinned(pins: Path, action: str, form: Format) -> None:
    from towpath.datapath.decap.decap import Decap, detach_pinned

    if action == "detach":
        detach_pinned(pins)
        return
    with Decap.pinned(pins) as running:
        _print(running.counters(), form)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Within, a signal to stop waits until it is asked for: nothing is left half done.

    Threads inherit that, so it comes before the imports: numpy's library starts some.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, asked_to_end())
    try:
        from towpath.datapath.decap.addresses import DecapError

        try:
            yield
        except DecapError as error:
            raise click.ClickException(str(error)) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(running: Decap) -> None:
    """Show what goes on until a signal to stop comes."""
    from rich.console import Console
    from rich.text import Text

    def shown(text: str) -> Text:
        return Text(printable_lines(text))

    console = Console(stderr=True, highlight=False)
    what, told = _what(running), ""
    if not console.is_terminal:
        say(what, error=True)
        while signal.sigtimedwait(asked_to_end(), REFRESH) is None:
            trouble = running.follow()
            if trouble != told:
                say(trouble or _what(running), error=True)
            told = trouble
        return
    with console.status(shown(what)) as status:
        while signal.sigtimedwait(asked_to_end(), REFRESH) is None:
            status.update(shown(running.follow() or f"{what}: {_totals(running.counters())}"))


def _what(running: Decap) -> str:
    addresses = ", ".join(map(str, running.addresses))
    reason = f" ({running.why_generic})" if running.why_generic else ""
    shared = ", by a dispatcher" if running.shared else ""
    mode = f"{running.mode} mode{shared}{reason}"
    return f"{running.device}: unwrapping for {addresses} in {mode}"


def _totals(counters: DecapCounters) -> str:
    sums = {"unwrapped": 0, "pass": 0, "drop": 0}
    for verdict, packets in counters.verdicts.items():
        sums[verdict.partition("_")[0]] += packets
    return (
        f"{count(sums['unwrapped'])} unwrapped, {count(sums['pass'])} passed, "
        f"{count(sums['drop'])} dropped"
    )


def _print(counters: DecapCounters, form: Format) -> None:
    data = {
        "verdicts": counters.verdicts,
        "addresses": {
            str(address): {"packets": one.packets, "bytes": one.bytes}
            for address, one in counters.addresses.items()
        },
    }
    emit(data, form, lambda: _tables(counters))


def _tables(counters: DecapCounters) -> None:
    print_table(
        ["address", "packets", "bytes"],
        [
            [address, count(one.packets), count(one.bytes)]
            for address, one in counters.addresses.items()
        ],
        numbers=["packets", "bytes"],
    )
    say()
    print_table(
        ["verdict", "packets"],
        [[verdict, count(packets)] for verdict, packets in counters.verdicts.items()],
        numbers=["packets"],
    )
