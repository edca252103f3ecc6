# SPDX-License-Identifier: Apache-2.0
"""``towpath cleanup kube-proxy``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towpath.cli.command import Manual
from towpath.cli.output import Format, emit, output_option, print_table, say, socket_option

if TYPE_CHECKING:
    from towpath.cleanup.found import Found
    from towpath.cleanup.record import Record
    from towpath.core.kube_proxy.served import Served

DIRECTORY = Path("/var/lib/towpath/kube-proxy")
_SHOWN = 5
"""Addresses that an error names."""

EXAMPLES = {
    "towpath cleanup kube-proxy": "What would be taken out, and what changes for whom.",
    "towpath cleanup kube-proxy --remove": "Unhook it; after 120 s without --confirm it is back.",
    "towpath cleanup kube-proxy --confirm": "All is well: delete it.",
    "towpath cleanup kube-proxy --restore": "It isn't: hook it in again, now.",
}

FILES = {str(DIRECTORY): "What is to be put back, and the log of the process that does it."}


@click.command(cls=Manual, examples=EXAMPLES, files=FILES)
@click.option("--remove", "action", flag_value="remove", help="Unhook kube-proxy's rules.")
@click.option("--confirm", "action", flag_value="confirm", help="Delete what is unhooked.")
@click.option("--restore", "action", flag_value="restore", help="Hook it in again, as it was.")
@click.option(
    "--release",
    "action",
    flag_value="release",
    help="After --confirm: don't wait for connections that kube-proxy has translated. They end.",
)
@click.option(
    "--stay",
    "action",
    flag_value="stay",
    help="Run until told to end, and put back what isn't confirmed: in a pod, for who works there.",
)
@click.option(
    "--within",
    metavar="SECONDS",
    type=click.FloatRange(5, 86_400),
    default=120,
    show_default=True,
    help="With --remove: how long to wait for --confirm before all is put back.",
)
@click.option(
    "--unserved",
    is_flag=True,
    help="With --remove: also if there are addresses that nobody would serve then.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DIRECTORY,
    show_default=True,
    help="Where what is to be put back is kept.",
)
@socket_option
@output_option
def kube_proxy(
    action: str | None,
    within: float,
    unserved: bool,
    directory: Path,
    socket_path: Path,
    form: Format,
) -> None:
    """Take out what kube-proxy has left in netfilter on this node, without losing a connection.

    Without an option nothing is changed: what there is is listed by name, with the addresses that
    nobody would serve and the connections that pass it.

    End kube-proxy first. --remove unhooks its rules (nftables' tables sleep; of iptables the jumps
    into its chains go) and keeps the connections that they have begun. --confirm deletes what is
    unhooked. If that doesn't come in time all is hooked in again by itself, also if this command,
    the terminal or the way to this node is gone. What kube-proxy shares with the kubelet
    (KUBE-FIREWALL), its settings and IPVS's table are told and left.

    On a node whose agent is a pod, run it by a shell on the node, or in the pod that the chart
    makes for it (cleanup.enabled), not in the agent's: that sees no kube-proxy.
    """
    from towpath.cleanup import kube_proxy as actions
    from towpath.cleanup import record

    if action == "confirm":
        actions.confirm(directory)
        say("deleted; connections that kube-proxy has begun are kept until they are over")
    elif action == "restore":
        actions.restore(directory)
        say("kube-proxy's rules are hooked in again")
    elif action == "release":
        actions.release(directory, force=True)
        say("nothing of kube-proxy's is kept any more")
    elif action == "stay":
        _stay(directory)
    else:
        begun = record.read(directory)
        found, left = _look(begun, socket_path)
        if action == "remove":
            _remove(directory, found, left, within, unserved)
        else:
            _tell(found, left, begun, form)


def _stay(directory: Path) -> None:
    import logging

    from towpath.cleanup import watch

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    watch.stay(directory)


def _look(begun: Record | None, socket_path: Path) -> tuple[Found, list[tuple[Served, str]]]:
    from towpath.cleanup.found import find
    from towpath.cleanup.kube_proxy import unserved

    found = find(begun.served if begun else ())
    return found, unserved(found, _served(socket_path)) if found else []


def _served(socket_path: Path) -> dict[tuple[object, int, str], bool]:
    """What the agent serves, and whether for all who ask; nothing: there is none, or it is ill."""
    from towpath.api.client import Client
    from towpath.api.errors import ApiError, ClientError

    served: dict[tuple[object, int, str], bool] = {}
    try:
        with Client(socket_path) as client:
            client.health()
            for entry in client.entries():
                key = entry.service.key
                if isinstance(key.port, int):
                    # Nobody outside asks a ClusterIP: pods and nodes are all there is.
                    inside = entry.service.name.split(":")[3:4] == ["cluster"]
                    wide = key.scope == "all" or inside
                    at = key.vip, key.port, str(key.protocol)
                    served[at] = served.get(at, False) or wide
    except (ApiError, ClientError) as error:
        say(f"Towpath's agent serves nothing that is known: {error}", error=True)
    return served


def _remove(
    directory: Path, found: Found, left: list[tuple[Served, str]], within: float, force: bool
) -> None:
    from towpath.cleanup.errors import CleanupError
    from towpath.cleanup.found import sees_node
    from towpath.cleanup.kube_proxy import unhook

    if not sees_node():
        raise CleanupError(
            "in this pod the node's processes can't be seen, and so not whether kube-proxy runs;"
            " remove it by a shell on the node itself"
        )
    if not found.works:
        raise CleanupError("there is nothing of kube-proxy's that is hooked in")
    if left and not force:
        shown = "; ".join(f"{each}, for {whom}" for each, whom in left[:_SHOWN])
        more = f"; and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise CleanupError(f"nobody would serve {shown}{more}. --unserved does it all the same")
    unhook(directory, found, within)
    say(f"unhooked. It comes back in {within:.0f} s, unless: towpath cleanup kube-proxy --confirm")


def _tell(found: Found, left: list[tuple[Served, str]], begun: Record | None, form: Format) -> None:
    data = _plain(found, left, begun)

    def table() -> None:
        if not found and not found.hold:
            say("kube-proxy has left nothing in netfilter")
        else:
            rows = [(kind, name) for kind in ("removed", "kept") for name in data[kind]]
            print_table(("", "what"), rows)
        if left:
            say("\nnobody would serve")
            print_table(("address", "for"), [(str(each), whom) for each, whom in left])
        if found.connections:
            say("\nconnections that pass it, and go on")
            of = sorted(found.connections.items())
            counts = [(name, protocol, count) for (name, protocol), count in of]
            print_table(("service", "protocol", "connections"), counts, numbers=("connections",))
        if found.processes:
            say(f"\nkube-proxy runs (process {', '.join(map(str, found.processes))}): end it first")
        if begun is not None and data["seconds_left"] is not None:
            say(f"\nunhooked; back in {data['seconds_left']:.0f} s unless --confirm")

    emit(data, form, table)


def _plain(found: Found, left: list[tuple[Served, str]], begun: Record | None) -> dict[str, Any]:
    from towpath.cleanup.record import now

    waiting = begun is not None and begun.phase == "unhooked"
    return {
        "removed": _removed(found),
        "kept": _kept(found),
        "unserved": [{"address": str(each), "for": whom} for each, whom in left],
        "connections": [
            {"service": name, "protocol": protocol, "count": count}
            for (name, protocol), count in sorted(found.connections.items())
        ],
        "processes": found.processes,
        "phase": begun.phase if begun else None,
        "seconds_left": max(0.0, begun.deadline - now()) if begun and waiting else None,
    }


def _removed(found: Found) -> list[str]:
    names = [
        f"nftables: table {each.name}{' (asleep)' if each.dormant else ''}" for each in found.tables
    ]
    for program, rules in found.rules.items():
        names += [f"{program}: {j.table} {j.chain} {j.rule}" for j in rules.jumps]
        names += [
            f"{program}: {table} {chain}" for table, of in rules.chains.items() for chain in of
        ]
    return names


def _kept(found: Found) -> list[str]:
    hold = ["nftables: table inet towpath-kube-proxy, until those connections are over"]
    return [*(hold if found.hold else []), *found.ipvs, *found.settings]
