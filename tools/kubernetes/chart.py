# SPDX-License-Identifier: Apache-2.0
"""The Helm chart, and the plain manifests that are rendered from it.

    python -m tools.kubernetes.chart          say whether deploy/kubernetes is what it renders
    python -m tools.kubernetes.chart --write  make it so

Needs helm, which `python -m tools.kubernetes --build` builds.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from tools.kubernetes import binaries
from tools.kubernetes.errors import KubernetesError

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/towpath"
PLAIN = ROOT / "deploy/kubernetes"
NAMESPACE = "kube-system"
_VALUES = ("kubernetes.server=https://192.0.2.1:6443", "restartOnChange=false")
_POOLS = ("pools[0].name=public", "pools[0].addresses={192.0.2.0/28,2001:db8::/124}")
"""Besides, in a file of their own."""
_LICENSE = "# SPDX-License-Identifier: Apache-2.0\n"
_HEADS = {
    "rbac.yaml": "",
    "towpath.yaml": """\
# An agent on each node. Put your API server in the place of 192.0.2.1, by a way that doesn't lead
# through a Service: nobody serves `kubernetes` yet when the first agent of a node starts. Apply
# rbac.yaml, then this; docs/kubernetes.md says how the image is made and why the pod has what it
# has.
""",
    "pools.yaml": """\
# Addresses for Services of type LoadBalancer, and the rights to give them. Put yours in their
# place, and add `pools: kube-system/towpath-pools` to the section `kubernetes` of towpath.yaml.
""",
}


def digest() -> str:
    """Of all that the chart is made of."""
    found = hashlib.sha256()
    for path in sorted(each for each in CHART.rglob("*") if each.is_file()):
        found.update(f"{path.relative_to(CHART)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def helm(*words: str | Path) -> str:
    """What helm says. KubernetesError: it isn't built, or fails."""
    command = [str(each) for each in (binaries.program("helm"), *words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubernetesError(f"helm {words[0]}: {(done.stderr + done.stdout).strip()}")
    return done.stdout


def render(*values: str, namespace: str = NAMESPACE) -> str:
    """The chart's manifests, with values as `--set-json` takes them or NAME=VALUE."""
    given = [word for each in values for word in ("--set", each)]
    return helm("template", "towpath", CHART, "--namespace", namespace, *given)


def plain() -> dict[str, str]:
    """What files of deploy/kubernetes are to say, by name."""
    parts: dict[str, list[str]] = {name: [] for name in _HEADS}
    rendered = render(*_VALUES), render(*_VALUES, *_POOLS)
    for part in _parts(rendered[0]):
        source, _, text = part.partition("\n")
        name = "rbac.yaml" if source.endswith("/rbac.yaml") else "towpath.yaml"
        parts[name].append(text.strip() + "\n")
    for part in _parts(rendered[1]):
        source, _, text = part.partition("\n")
        if source.endswith("/pools.yaml"):
            parts["pools.yaml"].append(text.strip() + "\n")
    return {name: _head(name) + "---\n".join(texts) for name, texts in parts.items()}


def _parts(rendered: str) -> list[str]:
    found = re.split(r"^---\n", rendered, flags=re.MULTILINE)
    return [each for each in found if each.partition("\n")[2].strip()]


def _head(name: str) -> str:
    return f"{_LICENSE}{_HEADS[name]}# Rendered from deploy/helm/towpath, {digest()}\n"


def main() -> int:
    """Do what the command line says."""
    wanted = plain()
    if "--write" in sys.argv[1:]:
        for name, text in wanted.items():
            (PLAIN / name).write_text(text)
        return 0
    other = [name for name, text in wanted.items() if (PLAIN / name).read_text() != text]
    for name in other:
        print(f"{PLAIN.name}/{name} isn't what the chart renders; --write makes it so")
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
