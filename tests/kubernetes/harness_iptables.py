# SPDX-License-Identifier: Apache-2.0
"""kube-proxy in iptables mode, on nodes whose machine may have no iptables."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tools.kubernetes import binaries, kept

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kubernetes.node import Node
    from tools.kubernetes.programs import Program

_SCRIPT = """#!/bin/sh
export LD_LIBRARY_PATH={library} XTABLES_LIBDIR={library}/xtables
exec {root}/usr/sbin/{program} "$@"
"""


def programs(node: Node, backend: str) -> Path:
    """A directory with iptables and ip6tables of a backend, by that backend's names too."""
    kept.make_root(kept.IPTABLES)
    root = kept.IPTABLES.path
    library = root / "usr/lib/x86_64-linux-gnu"
    made = node.directory / f"iptables-{backend}"
    made.mkdir(exist_ok=True)
    for family in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            program = f"{family}-{backend}{suffix}"
            for name in (program, f"{family}{suffix}"):
                text = _SCRIPT.format(library=library, root=root, program=program)
                (made / name).write_text(text)
                (made / name).chmod(0o755)
    return made


def kube_proxy(node: Node, backend: str) -> Program:
    """It, with that backend."""
    words = [
        *with_path(programs(node, backend)),
        str(binaries.program("kube-proxy")),
        f"--kubeconfig={node.plane.node_kubeconfig}",
        f"--hostname-override={node.name}",
        "--proxy-mode=iptables",
        "--conntrack-max-per-core=0",
    ]
    return node.program(f"kube-proxy-{backend}", *words)


def with_path(directory: Path) -> list[str]:
    """What runs a command that finds these programs."""
    return ["env", f"PATH={directory}:{os.environ['PATH']}:/usr/sbin:/sbin"]
