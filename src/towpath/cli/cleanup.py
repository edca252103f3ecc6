# SPDX-License-Identifier: Apache-2.0
"""``towpath cleanup``."""

from __future__ import annotations

import click

from towpath.cli.command import LazyGroup, Verb

VERBS = {
    "kube-proxy": Verb(
        "towpath.cli.cleanup_kube_proxy:kube_proxy",
        "What kube-proxy has left: listed, then taken out with a way back.",
    ),
    "towpath": Verb(
        "towpath.cli.cleanup_towpath:towpath",
        "What Towpath's own agents have left: programs, tables, files.",
    ),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def cleanup() -> None:
    """Take out what was left on this node: by others, or by agents."""
