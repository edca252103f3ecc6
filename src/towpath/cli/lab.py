# SPDX-License-Identifier: Apache-2.0
"""``towpath lab``: a load balancer, clients and backends in network namespaces."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towpath.cli.command import ManualGroup
from towpath.cli.output import Format, emit, output_option, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab import Lab

DIRECTORY = Path("/run/towpath-lab")
CHECKOUT = Path(__file__).resolve().parents[3]
"""The repository, if this is installed from one as it stands."""

backends_option = click.option(
    "--backends",
    type=click.IntRange(1, 63),
    default=4,
    show_default=True,
    help="How many backends.",
)


@contextmanager
def reported() -> Iterator[None]:
    """Turn the lab's own errors into one line on stderr and exit code 1."""
    from towpath.lab.errors import LabError

    _need_root()
    try:
        yield
    except LabError as error:
        raise click.ClickException(str(error)) from error


@click.group(
    cls=ManualGroup,
    invoke_without_command=True,
    no_args_is_help=True,
    examples={
        "towpath lab demo": "All of it once, with a report.",
        "towpath lab up --backends 8": "A lab to play with.",
        "towpath lab exec lb -- towpath agent --config lb.yaml": "An agent in it.",
        "towpath lab exec client -- curl http://203.0.113.10/": "A client's request.",
        "towpath lab down": "Nothing of it is left.",
        "towpath lab --kubernetes": "A Kubernetes of two nodes, and a shell to look at it.",
    },
    files={
        str(DIRECTORY): "The lab that is up: servers' files and logs, pins, the agent's socket."
    },
)
@click.option(
    "--kubernetes",
    is_flag=True,
    help="A real Kubernetes of two nodes in its place, with agents on them, and a shell. For a"
    " checkout of the repository: Go builds Kubernetes once, in some 10 minutes.",
)
@click.pass_context
def lab(context: click.Context, *, kubernetes: bool) -> None:
    """A load balancer, clients and backends in network namespaces.

    Namespaces tp-client, tp-router, tp-lb and tp-be1, tp-be2, ... are joined by
    veth devices with addresses of the documentation ranges. The VIPs 203.0.113.10
    and 2001:db8:ff::10 are routed to tp-lb; every backend owns both, runs nginx on
    port 80 and unwraps what the balancer sends. Nothing touches this machine's own
    network. Needs root.
    """
    if not kubernetes:
        return
    if context.invoked_subcommand is not None:
        raise click.UsageError("--kubernetes is no option of a command: it has a shell of its own")
    if not (CHECKOUT / "tools/kubernetes/demo.py").exists():
        what = "Kubernetes is built by tools of the repository, which aren't installed"
        raise click.ClickException(f"{what}: in a checkout `make kubernetes-demo` does it")
    _need_root()
    os.chdir(CHECKOUT)
    command = [sys.executable, "-m", "tools.kubernetes.demo"]
    os.execv(command[0], command)  # noqa: S606  no shell


def _need_root() -> None:
    if os.geteuid() != 0:
        raise click.ClickException("the lab makes network namespaces: run it as root")


@lab.command()
@backends_option
def up(backends: int) -> None:
    """Build the lab; nothing is left behind if that fails."""
    from towpath.lab import Lab
    from towpath.lab.interrupt import interruptible

    with reported(), interruptible():
        built = Lab.up(backends)
    _print_nodes(built, "table")


@lab.command()
def down() -> None:
    """Take the lab down, whatever is left of it. No lab is no error."""
    from towpath.lab import Lab
    from towpath.lab.state import read

    with reported():
        if read() is not None:
            Lab.current().down()


@lab.command()
@output_option
def status(form: Format) -> None:
    """What is up: namespaces, addresses, processes."""
    from towpath.lab import Lab

    with reported():
        current = Lab.current()
    _print_nodes(current, form)


@lab.command(name="exec", examples={"towpath lab exec be1 -- ip address": "A backend's addresses."})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the namespace NAME (client or tp-client)."""
    from towpath.kernel.net.netns import in_netns
    from towpath.lab import Lab

    with reported():
        namespace = Lab.current().topology.namespace(name)
    with in_netns(namespace):
        try:
            os.execvp(command[0], command)  # noqa: S606  the user's own command, no shell
        except OSError as error:
            raise click.ClickException(f"{command[0]}: {error.strerror}") from error


@lab.command()
@backends_option
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    help="For each family.",
)
@click.option(
    "--output",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-out"),
    show_default=True,
    help="Where the plot and the summary go.",
)
def demo(backends: int, requests: int, directory: Path) -> None:
    """Build a lab, balance real traffic, show what happened, take it all down.

    Requests go to an IPv4 and an IPv6 VIP; then a backend is removed while a long
    download from another one goes on. Writes distribution.png and summary.json.
    Exits with 1 unless every request was answered and both downloads are whole.
    """
    from towpath.lab.demo import Demo
    from towpath.lab.interrupt import interruptible

    with reported(), interruptible():
        succeeded = Demo(backends, requests, directory).run()
    sys.exit(0 if succeeded else 1)


def _print_nodes(current: Lab, form: Format) -> None:
    from towpath.lab.namespaces import processes

    nodes = [
        {
            "namespace": link.node,
            "ipv4": [str(address.ip) for address in link.node4],
            "ipv6": [str(address.ip) for address in link.node6],
            "processes": len(processes(link.node)),
        }
        for link in current.topology.links
    ]
    emit(
        nodes,
        form,
        lambda: print_table(
            ["namespace", "ipv4", "ipv6", "processes"],
            [
                [node["namespace"], _short(node["ipv4"]), _short(node["ipv6"]), node["processes"]]
                for node in nodes
            ],
            numbers=["processes"],
        ),
    )


def _short(addresses: object) -> str:
    if not isinstance(addresses, list):
        return ""
    return str(addresses[0]) + (f" (+{len(addresses) - 1})" if len(addresses) > 1 else "")
