# SPDX-License-Identifier: Apache-2.0
"""``towpath cleanup``."""

from __future__ import annotations

import click

from towpath.cli.command import LazyGroup, Verb

VERBS = {
    "kube-proxy": Verb(
        "towpath.cli.cleanup_kube_proxy:kube_proxy",
        "What kube-proxy has left: listed, then taken out with a way back.",
    )
}


@click.group(cls=LazyGroup, verbs=VERBS)
def cleanup() -> None:
    """Take out what others have left on this node."""
