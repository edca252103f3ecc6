# SPDX-License-Identifier: Apache-2.0
"""``towpath``: finds the verb, imports its module, reports its errors.

Nothing but click and the standard library is imported here, so that ``--help``
and shell completion answer at once.
"""

from __future__ import annotations

from typing import Any

import click

from towpath import __version__
from towpath.capabilities import CAPABILITIES
from towpath.cli.command import LazyGroup, Verb
from towpath.errors import Error
from towpath.printable import printable_lines

VERBS = {
    "agent": Verb("towpath.cli.agent:agent", "Run the agent: attach, serve the API, follow FILE."),
    "status": Verb("towpath.cli.status:status", "What the agent runs, and what it refused."),
    "service": Verb("towpath.cli.service:service", "List, apply, plan and delete services."),
    "backend": Verb("towpath.cli.drain:backend", "List and change a service's backends."),
    "source": Verb("towpath.cli.source:source", "Where services come from, and what is withheld."),
    "flows": Verb("towpath.cli.flows:flows", "The flows that are remembered, and their backends."),
    "trace": Verb("towpath.cli.trace:trace", "Which backend a flow goes to, and why."),
    "route": Verb("towpath.cli.route:route", "What becomes of a packet for an address."),
    "record": Verb("towpath.cli.record:record", "Capture packets, both sides of each."),
    "recorder": Verb("towpath.cli.recorder:recorder", "List and stop captures."),
    "import": Verb("towpath.cli.imports:import_", "Other load balancers' setups as services."),
    "decap": Verb("towpath.cli.decap:decap", "Unwrap balanced packets on a backend."),
    "doctor": Verb("towpath.cli.doctor:doctor", "What this kernel can do, and what is lost."),
    "cleanup": Verb("towpath.cli.cleanup:cleanup", "Take out what was left here."),
    "lab": Verb("towpath.cli.lab:lab", "A load balancer, clients and backends in namespaces."),
    "bench": Verb("towpath.cli.bench:bench", "Time the datapath inside the kernel."),
}

VERBS |= {each.name: Verb(each.command(), each.summary) for each in CAPABILITIES if each.summary}

EXAMPLES = {
    "towpath agent --config /etc/towpath/towpath.yaml": "Run the agent in the foreground.",
    "towpath service list": "What is balanced.",
    "towpath service plan new-services.yaml": "What an apply would change.",
    "towpath backend drain web 192.0.2.11": "No new flows for a backend.",
    'towpath trace "198.51.100.7:40000 -> 203.0.113.10:80 tcp"': "Which backend, and why.",
    'eval "$(_TOWPATH_COMPLETE=bash_source towpath)"': "Completion (also zsh_, fish_source).",
}

FILES = {
    "/run/towpath/agent.sock": "The agent's API; another by --socket or TOWPATH_SOCKET.",
    "/var/lib/towpath": "What was set through the API.",
    "/sys/fs/bpf/towpath": "The datapath, which outlives the agent.",
}


class Root(LazyGroup):
    """The top-level command; turns known errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click leaves quietly when whoever read the output has gone
        except click.ClickException as error:
            error.message = printable_lines(error.message)  # type: ignore[misc]
            raise
        except (OSError, Error) as error:
            raise click.ClickException(printable_lines(str(error))) from error


@click.group(cls=Root, verbs=VERBS, examples=EXAMPLES, files=FILES)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """An XDP layer-4 load balancer, programmed and operated from Python.

    Clients' packets to a VIP are encapsulated towards a backend, chosen by
    consistent hashing, before the kernel's own network stack sees them; backends
    answer clients directly.
    """


def main() -> None:
    """Entry point of the ``towpath`` command."""
    cli(prog_name="towpath")
